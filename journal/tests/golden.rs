//! The golden segment file: format version 1, with records of schema version 1, as it is on people's disks.
//!
//! `HOLDFAST_BLESS=1 cargo test -p journal --test golden` writes the file if it is missing; it never replaces it.

mod sample;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use journal::segment::frame::{frame_bytes, parse_frame, push_frame};
use journal::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use journal::{Config, Journal};
use sample::{service, transaction, upsert};
use storage_schema::codec::{encode_record_in, hash_record};
use storage_schema::id::{BootId, Lsn, RecordHash, StoreId};
use storage_schema::record::Record;

const STORE: StoreId = StoreId(*b"a golden journal");

/// A header and three records, the last two written as one group.
fn segment() -> Vec<u8> {
    let header = SegmentHeader {
        store_id: STORE,
        first_lsn: Lsn(1),
        previous_hash: RecordHash::default(),
        previous_first: Lsn::ZERO,
        previous_end: 0,
        created_wall_ns: 1_700_000_000_000_000_000,
    };
    let mut bytes = header.encode().to_vec();
    let mut previous_hash = RecordHash::default();
    for (lsn, group_first) in [(1, 1), (2, 2), (3, 2)] {
        let record = Record {
            lsn: Lsn(lsn),
            transaction: transaction("golden", Some(lsn * 10), vec![upsert(service(&format!("shop/svc-{lsn}")))]),
            wall_ns: 1_700_000_000_000_000_000 + lsn,
            monotonic_ns: lsn,
            boot_id: BootId([1; 16]),
            previous_hash,
            received_wall_ns: None,
            client: None,
        };
        let body = encode_record_in(1, record).unwrap();
        previous_hash = hash_record(&body);
        push_frame(&mut bytes, STORE, Lsn(lsn), Lsn(group_first), &body);
    }
    bytes
}

fn golden() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/segment-v1.seg");
    if std::env::var_os("HOLDFAST_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, segment()).expect("the golden directory is writable");
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn segments_are_written_as_ever() {
    let golden = golden();
    assert!(segment() == golden, "a byte of the segment format has moved: this needs a new format version");
    assert_eq!(SegmentHeader::decode(&golden).unwrap().store_id, STORE);
    let (header, body, total) = parse_frame(&golden[SEGMENT_HEADER_BYTES..], STORE).unwrap();
    assert_eq!((header.lsn, total), (Lsn(1), frame_bytes(body.len())));
}

#[test]
fn a_journal_of_format_1_is_opened_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let segments: PathBuf = dir.path().join("journal");
    std::fs::create_dir(&segments).unwrap();
    std::fs::write(segments.join("00000000000000000001.seg"), golden()).unwrap();
    std::fs::write(dir.path().join("store-id"), format!("{STORE}\n")).unwrap();
    let journal = Journal::open(Config { clock: Arc::new(journal::SystemClock), ..Config::new(dir.path()) }).unwrap();
    assert_eq!((journal.store_id(), journal.open_report().durable_lsn), (STORE, Lsn(3)));
    assert_eq!(journal.resources(None).count(), 3);
    let permit = journal.blocking_reserve().unwrap();
    let submitted = permit.submit(transaction("golden", Some(40), vec![])).unwrap();
    assert_eq!(submitted.ack.blocking_wait().unwrap().lsn, Lsn(4));
}
