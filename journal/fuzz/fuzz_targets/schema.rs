//! Records and resources, of every schema version: what decodes can be encoded, upcast, exported and imported again.
#![no_main]

use journal::EncodedRecord;
use libfuzzer_sys::{Corpus, fuzz_target};
use storage_schema::codec::{
    SCHEMA_VERSION, access_link, access_record, decode_record, decode_resource, encode_record, encode_record_in,
    encode_resource, upcast_record, version_of,
};
use storage_schema::id::{Lsn, RecordHash};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Some((version, archive)) = bytes.split_first() else { return Corpus::Reject };
    // Mostly versions that there are.
    let version = u32::from(*version) % (SCHEMA_VERSION + 2);
    let stored = [&version.to_le_bytes(), archive].concat();
    round(&stored);
    // A valid record with its bytes changed: place and byte, in turns.
    let mut edited = journal_fuzz::record(Lsn(1 + u64::from(version % 3)), RecordHash([7; 32]));
    let edits: Vec<_> =
        archive.as_chunks().0.iter().map(|[low, high, byte]| (u16::from_le_bytes([*low, *high]), *byte)).collect();
    journal_fuzz::edit(&mut edited, &edits);
    round(&edited);
    Corpus::Keep
});

fn round(stored: &[u8]) {
    let link = access_link(stored);
    if let Ok(record) = decode_record(stored) {
        let link = link.expect("it can be decoded");
        assert_eq!((link.lsn, link.previous_hash), (record.lsn, record.previous_hash));
        assert_eq!(decode_record(&encode_record(&record)).expect("what was decoded can be encoded"), record);
        if let Some(upcast) = upcast_record(stored).expect("it can be decoded") {
            assert!(access_record(&upcast).is_ok());
            assert_eq!(decode_record(&upcast).expect("an upcast is current"), record);
        }
        let version = version_of(stored).expect("it can be decoded");
        let encoded = encode_record_in(version, record.clone()).expect("it was said in this version");
        let encoded = EncodedRecord::new(record.lsn, encoded.into()).expect("what was encoded can be read");
        let mut line = Vec::new();
        journal::write_line(&encoded, &mut line).expect("memory takes everything");
        let read = journal::read_jsonl(&line[..]).next().expect("a line");
        let first = record.lsn == Lsn::FIRST && record.previous_hash != RecordHash::default();
        if record.lsn.is_of_record() && !first {
            assert_eq!(read.expect("an export can be read"), encoded);
        } else {
            read.expect_err("no record has that number, or none comes before the first");
        }
    } else {
        assert!(link.is_err());
    }
    if let Ok(resource) = decode_resource(stored) {
        assert_eq!(decode_resource(&encode_resource(&resource)).expect("what was decoded can be encoded"), resource);
    }
}
