//! Records of all schema versions, and resources.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage_schema::codec::{
    access_link, access_record, decode_record, decode_resource, encode_record, encode_record_in, encode_resource,
    upcast_record, version_of,
};

fuzz_target!(|bytes: &[u8]| {
    let link = access_link(bytes);
    if let Ok(record) = decode_record(bytes) {
        let link = link.expect("it can be decoded");
        assert_eq!((link.lsn, link.previous_hash), (record.lsn, record.previous_hash));
        assert_eq!(decode_record(&encode_record(&record)).expect("what was decoded can be encoded"), record);
        let version = version_of(bytes).expect("it can be decoded");
        let again = encode_record_in(version, record.clone()).expect("it was said in this version");
        assert_eq!(decode_record(&again).expect("what was decoded can be encoded"), record);
        if let Some(upcast) = upcast_record(bytes).expect("it can be decoded") {
            assert!(access_record(&upcast).is_ok());
            assert_eq!(decode_record(&upcast).expect("an upcast is current"), record);
        }
    } else {
        assert!(link.is_err());
    }
    if let Ok(resource) = decode_resource(bytes) {
        assert_eq!(decode_resource(&encode_resource(&resource)).expect("what was decoded can be encoded"), resource);
    }
});
