//! Every decoder of stored bytes over arbitrary and over mutated bytes: an answer or an error, never a panic.

mod sample;

use std::sync::OnceLock;

use journal::segment::frame::parse_frame;
use journal::segment::header::SegmentHeader;
use journal::{Config, Journal};
use proptest::prelude::*;
use sample::{service, transaction, upsert};
use storage_schema::codec::{decode_record, decode_resource, encode_resource};
use storage_schema::id::{Lsn, StoreId};
use storage_schema::resource::Resource;

/// One valid input for each decoder: record, resource, segment file, checkpoint, snapshot, export.
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
            let submit = journal.blocking_reserve().unwrap();
            submit.submit(transaction("cp", Some(number), vec![delta])).unwrap().ack.blocking_wait().unwrap();
        }
        journal.blocking_wait_stored(Lsn(20)).unwrap();
        let record = journal.encoded_record(Lsn(7)).unwrap().encoded.to_vec();
        let resource = encode_resource(&Resource::Service(service("shop/cart")));
        let mut segment = std::fs::read(dir.path().join("journal/00000000000000000001.seg")).unwrap();
        segment.truncate(8192);
        let checkpoint = std::fs::read(journal.checkpoint().unwrap().path).unwrap();
        let (mut snapshot, mut export) = (Vec::new(), Vec::new());
        journal.snapshot(&mut snapshot).unwrap();
        journal::export_jsonl(&mut journal.read_from(Lsn(1)).unwrap(), Lsn(20), &mut export).unwrap();
        Valid { store_id: journal.store_id(), inputs: vec![record, resource, segment, checkpoint, snapshot, export] }
    })
}

fn decode_all(bytes: &[u8], store_id: StoreId) {
    let _ = decode_record(bytes);
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
        which in 0usize..6,
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
