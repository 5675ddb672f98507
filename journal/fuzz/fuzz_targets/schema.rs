//! Records and resources.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage_schema::codec::{decode_record, decode_resource, encode_record, encode_resource};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(record) = decode_record(bytes) {
        assert_eq!(decode_record(&encode_record(&record)).expect("what was decoded can be encoded"), record);
    }
    if let Ok(resource) = decode_resource(bytes) {
        assert_eq!(decode_resource(&encode_resource(&resource)).expect("what was decoded can be encoded"), resource);
    }
});
