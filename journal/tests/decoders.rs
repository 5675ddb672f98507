//! Every decoder of stored bytes over arbitrary and over mutated bytes: an answer or an error, never a panic.

mod sample;

use std::sync::OnceLock;

use journal::segment::frame::{NoFrame, parse_frame, push_frame};
use journal::segment::header::{BadHeader, SegmentHeader};
use journal::segment::recovery::Finding;
use journal::{Config, EncodedRecord, Journal};
use proptest::prelude::*;
use sample::{service, transaction, upsert};
use storage_schema::codec::{
    access_link, access_record, decode_record, decode_resource, encode_record, encode_record_in, encode_resource,
    upcast_record, version_of,
};
use storage_schema::id::{BootId, Lsn, RecordHash, StoreId};
use storage_schema::record::Record;
use storage_schema::resource::Resource;

/// One valid input for each decoder: record of each schema version, resource, segment file, checkpoint, snapshot, export.
struct Valid {
    store_id: StoreId,
    inputs: Vec<Vec<u8>>,
}

fn valid() -> &'static Valid {
    static VALID: OnceLock<Valid> = OnceLock::new();
    VALID.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(Config { segment_bytes: 64 << 10, ..Config::new(dir.path()) }).unwrap();
        for number in 1..=20 {
            let delta = upsert(service(&format!("shop/svc-{number}")));
            let submit = journal.blocking_reserve().unwrap().client(Some("uid=0 gid=0 pid=4711".to_owned()));
            submit.submit(transaction("cp", Some(number), vec![delta])).unwrap().ack.blocking_wait().unwrap();
        }
        journal.blocking_wait_stored(Lsn(20)).unwrap();
        let record = journal.encoded_record(Lsn(7)).unwrap().encoded.to_vec();
        let old = Record { received_wall_ns: None, client: None, ..decode_record(&record).unwrap() };
        let old = encode_record_in(1, old).unwrap();
        let resource = encode_resource(&Resource::Service(service("shop/cart")));
        let mut segment = std::fs::read(dir.path().join("journal/00000000000000000001.seg")).unwrap();
        segment.truncate(8192);
        let checkpoint = std::fs::read(journal.checkpoint().unwrap().path).unwrap();
        let (mut snapshot, mut export) = (Vec::new(), Vec::new());
        journal.snapshot(&mut snapshot).unwrap();
        journal::export_jsonl(&mut journal.read_from(Lsn(1)).unwrap(), Lsn(20), &mut export).unwrap();
        let inputs = vec![record, old, resource, segment, checkpoint, snapshot, export];
        Valid { store_id: journal.store_id(), inputs }
    })
}

/// All ways to read a record agree, whatever its schema version.
fn decode_record_in_all_ways(bytes: &[u8]) {
    let (record, link) = (decode_record(bytes), access_link(bytes));
    let Ok(record) = record else {
        assert!(link.is_err() && access_record(bytes).is_err());
        return;
    };
    let link = link.expect("it can be decoded");
    assert_eq!((link.lsn, link.previous_hash), (record.lsn, record.previous_hash));
    let current = upcast_record(bytes).expect("it can be decoded").unwrap_or_else(|| bytes.to_vec());
    assert_eq!(access_record(&current).expect("it is current").lsn.0.to_native(), record.lsn.0);
    assert_eq!(decode_record(&current).expect("it is current"), record);
    assert_eq!(decode_record(&encode_record(&record)).expect("it was encoded just now"), record);
    let version = version_of(bytes).expect("it can be decoded");
    let again = encode_record_in(version, record.clone()).expect("it was said in this version");
    assert_eq!(decode_record(&again).expect("it was encoded just now"), record);
}

fn decode_all(bytes: &[u8], store_id: StoreId) {
    decode_record_in_all_ways(bytes);
    let _ = decode_resource(bytes);
    let _ = SegmentHeader::decode(bytes);
    let _ = parse_frame(bytes, store_id);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checkpoint");
    std::fs::write(&file, bytes).unwrap();
    let _ = journal::verify_checkpoint(&file, store_id);
    let _ = journal::restore(&dir.path().join("restored"), &mut &bytes[..]);
    let _ = journal::read_jsonl(bytes).take_while(Result::is_ok).count();
    // As the only segment of a journal.
    let state = dir.path().join("state");
    std::fs::create_dir_all(state.join("journal")).unwrap();
    std::fs::write(state.join("store-id"), format!("{store_id}\n")).unwrap();
    std::fs::write(state.join("journal/00000000000000000001.seg"), bytes).unwrap();
    let _ = journal::verify(&state, |_| {});
}

// What fuzzing has found (journal/fuzz): each is bytes with checksums that fit.

const STORE: StoreId = StoreId([6; 16]);

/// A segment file of records that are not decoded, one group each.
fn segment(first: u64, previous_first: u64, previous_end: u64, records: std::ops::Range<u64>) -> Vec<u8> {
    let (first_lsn, previous_first) = (Lsn(first), Lsn(previous_first));
    let previous_hash = RecordHash::default();
    let header =
        SegmentHeader { store_id: STORE, first_lsn, previous_hash, previous_first, previous_end, created_wall_ns: 1 };
    let mut bytes = header.encode().to_vec();
    for lsn in records {
        push_frame(&mut bytes, STORE, Lsn(lsn), Lsn(lsn), b"record");
    }
    bytes
}

/// A state directory with these segment files.
fn state_of(segments: &[(u64, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("journal")).unwrap();
    std::fs::write(dir.path().join("store-id"), format!("{STORE}\n")).unwrap();
    for (first, bytes) in segments {
        std::fs::write(dir.path().join(format!("journal/{first:020}.seg")), bytes).unwrap();
    }
    dir
}

#[test]
fn numbers_that_no_record_has_are_in_no_file() {
    for number in [0, u64::MAX] {
        let bytes = segment(number, 0, 0, 0..0);
        assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Damaged), "{number}");
        let mut frame = Vec::new();
        push_frame(&mut frame, STORE, Lsn(number), Lsn(number), b"record");
        assert_eq!(parse_frame(&frame, STORE), Err(NoFrame::Bad), "{number}");
        let state = state_of(&[(number, bytes)]);
        let report = journal::verify(state.path(), |_| {}).unwrap();
        assert_eq!((report.records, report.trusted_lsn, report.wrong), (0, Lsn::ZERO, vec![]), "a file of another's");
    }
    let last = u64::MAX - 1;
    let report = journal::verify(state_of(&[(last, segment(last, 0, 0, last..last + 1))]).path(), |_| {}).unwrap();
    assert_eq!((report.records, report.wrong.len()), (1, 1), "a frame whose body is no record");
}

#[test]
fn lines_with_numbers_or_links_that_no_record_has_are_refused() {
    let record = |lsn, previous_hash| Record {
        lsn: Lsn(lsn),
        transaction: transaction("cp", None, vec![]),
        wall_ns: 1,
        monotonic_ns: 1,
        boot_id: BootId([1; 16]),
        previous_hash: RecordHash(previous_hash),
        received_wall_ns: None,
        client: None,
    };
    for (lsn, previous_hash, reason) in [
        (0, [0; 32], "no record has the number 0"),
        (u64::MAX, [7; 32], "no record has the number 18446744073709551615"),
        (1, [7; 32], "record 1 is the first one"),
    ] {
        let encoded = encode_record(&record(lsn, previous_hash)).into();
        let mut line = Vec::new();
        journal::write_line(&EncodedRecord::new(Lsn(lsn), encoded).unwrap(), &mut line).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let error = journal::import_jsonl(&Config::new(dir.path()), &line.repeat(2)[..]).unwrap_err().to_string();
        assert!(error.starts_with("line 1: ") && error.contains(reason), "{error}");
    }
}

#[test]
fn an_index_with_blocks_of_no_segment_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { segment_bytes: 64 << 10, ..Config::new(dir.path()) };
    let index = dir.path().join("journal/00000000000000000001.idx");
    {
        let journal = Journal::open(config.clone()).unwrap();
        for number in 1..=700 {
            let deltas = vec![upsert(service("shop/cart"))];
            let submit = journal.blocking_reserve().unwrap();
            submit.submit(transaction("cp", Some(number), deltas)).unwrap().ack.blocking_wait().unwrap();
        }
        journal.reader().lsn_at(0).unwrap();
    }
    let valid = std::fs::read(&index).unwrap();
    for first_block in [0, 2, 600, u64::MAX] {
        let mut bytes = valid.clone();
        bytes[88..96].copy_from_slice(&u64::to_le_bytes(first_block));
        let end = bytes.len() - 32;
        let hash = blake3::hash(&bytes[..end]);
        bytes[end..].copy_from_slice(hash.as_bytes());
        std::fs::write(&index, &bytes).unwrap();
        let journal = Journal::open(config.clone()).unwrap();
        let wall_ns = journal.record(Lsn(1)).unwrap().wall_ns;
        assert!((Lsn(1)..Lsn(700)).contains(&journal.reader().lsn_at(wall_ns).unwrap()), "{first_block}");
        assert_eq!(std::fs::read(&index).unwrap(), valid, "{first_block}");
    }
}

#[test]
fn a_checkpoint_under_another_name_is_damaged() {
    let valid = valid();
    let dir = tempfile::tempdir().unwrap();
    let named = |lsn: u64| dir.path().join(format!("{lsn:020}.ckpt"));
    for lsn in [20, 19] {
        std::fs::write(named(lsn), &valid.inputs[4]).unwrap();
    }
    assert_eq!(journal::verify_checkpoint(&named(20), valid.store_id).unwrap().head.lsn, Lsn(20));
    let error = journal::verify_checkpoint(&named(19), valid.store_id).unwrap_err();
    assert!(error.to_string().contains("another record than its name says"), "{error}");
}

#[test]
fn a_segment_that_follows_another_than_it_says_is_a_gap() {
    let first = segment(1, 0, 0, 1..3);
    let end = first.len() as u64;
    let state = state_of(&[(1, first), (3, segment(3, 2, end, 0..0))]);
    let report = journal::verify(state.path(), |_| {}).unwrap();
    let gaps = report.wrong.iter().filter(|wrong| wrong.damage.finding() == Finding::Gap).count();
    assert_eq!(gaps, 1, "{report:?}");
}

#[test]
fn zeros_too_few_for_a_header_are_a_clean_end() {
    for (spare, end) in
        [(vec![0; 8], Finding::CleanEnd), (vec![0; 16], Finding::CleanEnd), (vec![1; 8], Finding::TornFrame)]
    {
        let mut bytes = segment(1, 0, 0, 1..1);
        bytes.extend_from_slice(&spare);
        let state = state_of(&[(1, bytes)]);
        assert_eq!(journal::verify(state.path(), |_| {}).unwrap().end, end, "{spare:?}");
        let report = Journal::open(Config { segment_bytes: 64 << 10, ..Config::new(state.path()) });
        let cut = if end == Finding::CleanEnd { 0 } else { 8 };
        assert_eq!(report.unwrap().open_report().cut_bytes, cut, "{spare:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn mutated_bytes(
        which in 0usize..7,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let valid = valid();
        let mut bytes = valid.inputs[which].clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        decode_all(&bytes, valid.store_id);
    }

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        decode_all(&bytes, StoreId([0; 16]));
    }
}
