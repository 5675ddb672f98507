//! Every decoder of stored bytes over arbitrary and over mutated bytes: an answer or an error, never a panic.

mod sample;

use std::sync::OnceLock;

use journal::segment::frame::parse_frame;
use journal::segment::header::SegmentHeader;
use journal::{Config, Journal};
use proptest::prelude::*;
use sample::{service, transaction, upsert};
use storage_schema::codec::{
    access_link, access_record, decode_record, decode_resource, encode_record, encode_record_in, encode_resource,
    upcast_record, version_of,
};
use storage_schema::id::{Lsn, StoreId};
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
