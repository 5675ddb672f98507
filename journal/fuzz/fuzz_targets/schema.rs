//! Records and resources, of every schema version: what decodes can be encoded, exported and imported again.
#![no_main]

use journal::EncodedRecord;
use libfuzzer_sys::{Corpus, fuzz_target};
use storage_schema::codec::{SCHEMA_VERSION, decode_record, decode_resource, encode_record, encode_resource};
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
    if let Ok(record) = decode_record(stored) {
        let encoded = encode_record(&record);
        assert_eq!(decode_record(&encoded).expect("what was decoded can be encoded"), record);
        let encoded = EncodedRecord { lsn: record.lsn, encoded: encoded.into() };
        let mut line = Vec::new();
        journal::write_line(&encoded, &mut line).expect("memory takes everything");
        let read = journal::read_jsonl(&line[..]).next().expect("a line");
        let first = record.lsn == Lsn::FIRST && record.previous_hash != RecordHash::default();
        if record.lsn.is_of_record() && !first {
            assert_eq!(read.expect("an export can be read"), record);
        } else {
            read.expect_err("no record has that number, or none comes before the first");
        }
    }
    if let Ok(resource) = decode_resource(stored) {
        assert_eq!(decode_resource(&encode_resource(&resource)).expect("what was decoded can be encoded"), resource);
    }
}
