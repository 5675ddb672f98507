//! The journal through its public handle, on a real directory.

mod sample;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use journal::{AppendError, Config, Journal, OpenError, OriginError, OriginState, ReadError};
use sample::{origin, service, transaction, upsert};
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, Resource, ResourceKey};

fn small(dir: &tempfile::TempDir) -> Config {
    Config { segment_bytes: 64 << 10, ..Config::new(dir.path()) }
}

fn append(journal: &Journal, name: &str) -> journal::Receipt {
    let permit = journal.blocking_reserve().unwrap();
    permit.submit(transaction("test", None, vec![upsert(service(name))])).unwrap().ack.blocking_wait().unwrap()
}

#[test]
fn what_was_acknowledged_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    assert!(journal.open_report().created);
    let mut hash = RecordHash::default();
    // Enough for several segments.
    for number in 1..=600 {
        let receipt = append(&journal, &format!("shop/svc-{number}"));
        assert_eq!(receipt.lsn, Lsn(number));
        let record = journal.record(receipt.lsn).unwrap();
        assert_eq!(record.previous_hash, hash);
        hash = receipt.hash;
    }
    let store_id = journal.store_id();
    drop(journal);
    let segments = std::fs::read_dir(dir.path().join("journal")).unwrap().count();
    assert!(segments > 2, "{segments} segments");

    let journal = Journal::open(small(&dir)).unwrap();
    let report = journal.open_report();
    assert_eq!(
        (report.created, report.durable_lsn, report.cut_bytes, report.folded),
        (false, Lsn(600), 0, 0),
        "{report:?}"
    );
    assert_eq!((report.store_rebuilt.as_deref(), report.lost, journal.store_id()), (None, None, store_id));
    let mut next = Lsn::FIRST;
    for record in journal.read_from(Lsn::FIRST).unwrap() {
        let record = record.unwrap();
        assert_eq!(record.lsn, next);
        assert_eq!(record.transaction.deltas[0].key().name, format!("shop/svc-{next}"));
        next = next.next();
    }
    assert_eq!(next, Lsn(601));
    assert_eq!(journal.resources(Some(Kind::Service)).count(), 600);
    assert_eq!(append(&journal, "shop/one-more").lsn, Lsn(601));
    assert_eq!(journal.record(Lsn(601)).unwrap().previous_hash, hash);
}

#[test]
fn records_are_found_by_number_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    for number in 1..=500 {
        append(&journal, &format!("shop/svc-{number}"));
    }
    drop(journal);
    let journal = Journal::open(small(&dir)).unwrap();
    for lsn in [500, 1, 250, 499, 2, 333, 251].map(Lsn) {
        assert_eq!(journal.record(lsn).unwrap().lsn, lsn);
    }
    assert!(matches!(journal.record(Lsn(501)), Err(ReadError::NotThere { durable_lsn: Lsn(500), .. })));
    assert!(matches!(journal.record(Lsn(0)), Err(ReadError::NotThere { .. })));
}

#[test]
fn a_reader_goes_on_when_more_has_become_durable() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    append(&journal, "shop/a");
    let mut records = journal.read_from(Lsn(1)).unwrap();
    assert_eq!(records.next().unwrap().unwrap().lsn, Lsn(1));
    assert!(records.next().is_none());
    for round in 2..400 {
        append(&journal, "shop/b");
        assert_eq!(records.next().unwrap().unwrap().lsn, Lsn(round));
        assert!(records.next().is_none());
    }
}

#[test]
fn one_reads_what_one_has_written() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    let receipt = append(&journal, "shop/cart");
    journal.blocking_wait_stored(receipt.lsn).unwrap();
    let key = ResourceKey::new(Kind::Service, "shop/cart");
    let (found, changed) = journal.resource(&key).unwrap().unwrap();
    assert_eq!((found, changed), (Resource::Service(service("shop/cart")), Lsn(1)));

    let permit = journal.try_reserve().unwrap();
    let removal = transaction("test", None, vec![Delta::Remove(key.clone())]);
    let receipt = permit.submit(removal).unwrap().ack.blocking_wait().unwrap();
    journal.blocking_wait_stored(receipt.lsn).unwrap();
    assert_eq!(journal.resource(&key).unwrap(), None);
    assert_eq!(journal.resources_count().unwrap(), 0);
}

#[test]
fn large_resources_grow_shrink_and_survive() {
    let dir = tempfile::tempdir().unwrap();
    let key = ResourceKey::new(Kind::Service, "shop/large");
    let large = |bytes: usize| {
        let mut service = service("shop/large");
        service.hostname = "x".repeat(bytes);
        service
    };
    let journal = Journal::open(small(&dir)).unwrap();
    for bytes in [100, 4096, 300_000, 9000, 20_000, 1] {
        let permit = journal.blocking_reserve().unwrap();
        let submitted = permit.submit(transaction("test", None, vec![upsert(large(bytes))])).unwrap();
        submitted.ack.blocking_wait().unwrap();
        journal.blocking_wait_stored(submitted.lsn).unwrap();
        assert_eq!(journal.resource(&key).unwrap().unwrap().0, Resource::Service(large(bytes)));
    }
    drop(journal);
    let journal = Journal::open(small(&dir)).unwrap();
    assert_eq!(journal.open_report().store_rebuilt, None, "the digest still fits");
    assert_eq!(journal.resource(&key).unwrap().unwrap().0, Resource::Service(large(1)));
}

#[test]
fn a_push_that_comes_again_gets_the_first_receipt() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    let mut receipts = Vec::new();
    for version in 1..=20 {
        assert!(matches!(journal.origin(&origin("cp", 1, version)).unwrap(), OriginState::Fresh));
        let submitted = journal
            .blocking_reserve()
            .unwrap()
            .submit(transaction("cp", Some(version), vec![upsert(service("shop/a"))]))
            .unwrap();
        // Still on its way: the same acknowledgement is waited for.
        let OriginState::Duplicate(ack) = journal.origin(&origin("cp", 1, version)).unwrap() else { panic!("fresh") };
        let receipt = submitted.ack.blocking_wait().unwrap();
        let again = ack.blocking_wait().unwrap();
        assert_eq!((again.lsn, again.hash), (receipt.lsn, receipt.hash));
        receipts.push(receipt);
    }
    for (version, receipt) in (1..).zip(&receipts) {
        let OriginState::Duplicate(ack) = journal.origin(&origin("cp", 1, version)).unwrap() else { panic!("fresh") };
        assert_eq!((ack.lsn(), ack.hash()), (receipt.lsn, receipt.hash));
    }
    let refused = journal.blocking_reserve().unwrap().submit(transaction("cp", Some(20), vec![]));
    assert!(matches!(refused, Err(AppendError::Repeated { version: 20, .. })));
    drop(journal);

    let journal = Journal::open(small(&dir)).unwrap();
    for (version, receipt) in (1..).zip(&receipts) {
        let OriginState::Duplicate(ack) = journal.origin(&origin("cp", 1, version)).unwrap() else { panic!("fresh") };
        assert_eq!(ack.blocking_wait().unwrap().lsn, receipt.lsn);
    }
    assert!(matches!(journal.origin(&origin("cp", 1, 0)), Err(OriginError::Stale { given: 0, last: 20, .. })));
    assert!(matches!(journal.origin(&origin("cp", 0, 21)), Err(OriginError::Fenced { given: 0, current: 1, .. })));
    assert!(matches!(journal.origin(&origin("cp", 1, 21)).unwrap(), OriginState::Fresh));
    assert_eq!(journal.source("cp").unwrap().last_version, Some(20));
}

#[test]
fn old_receipts_expire() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { receipts_per_source: 10, ..small(&dir) };
    let journal = Journal::open(config.clone()).unwrap();
    for version in 1..=300 {
        let submitted = journal.blocking_reserve().unwrap().submit(transaction("cp", Some(version), vec![])).unwrap();
        submitted.ack.blocking_wait().unwrap();
        if version % 14 == 0 {
            journal.blocking_wait_stored(submitted.lsn).unwrap();
        }
    }
    drop(journal);
    let journal = Journal::open(config).unwrap();
    assert_eq!(journal.open_report().store_rebuilt, None);
    for version in 1..=100 {
        assert!(matches!(journal.origin(&origin("cp", 1, version)), Err(OriginError::Stale { .. })), "{version}");
    }
    for version in 291..=300 {
        assert!(matches!(journal.origin(&origin("cp", 1, version)), Ok(OriginState::Duplicate(_))), "{version}");
    }
}

#[test]
fn a_record_that_is_too_large_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(Config { record_bytes_max: 1000, ..small(&dir) }).unwrap();
    let mut huge = service("shop/huge");
    huge.hostname = "x".repeat(2000);
    let refused = journal.try_reserve().unwrap().submit(transaction("cp", Some(1), vec![upsert(huge)]));
    let Err(error @ AppendError::TooLarge { limit: 1000, .. }) = refused else { panic!("{refused:?}") };
    assert!(error.to_string().contains("record_bytes_max = 1000"), "{error}");
    assert_eq!(journal.watermarks().appended_lsn, Lsn(0));
    assert!(matches!(journal.origin(&origin("cp", 1, 1)).unwrap(), OriginState::Fresh));
    assert_eq!(append(&journal, "shop/a").lsn, Lsn(1));
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    let mut huge = service("shop/huge");
    huge.hostname = "x".repeat(200_000);
    append(&journal, "shop/a");
    let submitted = journal.try_reserve().unwrap().submit(transaction("cp", None, vec![upsert(huge)])).unwrap();
    submitted.ack.blocking_wait().unwrap();
    append(&journal, "shop/b");
    drop(journal);
    let journal = Journal::open(small(&dir)).unwrap();
    assert_eq!(journal.read_from(Lsn(1)).unwrap().map(|record| record.unwrap().lsn.0).collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn the_queue_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(Config { queue_records_max: 3, ..small(&dir) }).unwrap();
    let permits: Vec<_> = (0..3).map(|_| journal.try_reserve().unwrap()).collect();
    assert!(matches!(journal.try_reserve(), Err(AppendError::QueueFull { .. })));
    drop(permits);
    // A place comes back when its record has left the queue.
    for _ in 0..20 {
        append(&journal, "shop/a");
    }
}

#[test]
fn a_second_opening_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    match Journal::open(small(&dir)) {
        Err(error @ OpenError::InUse { pid, .. }) => {
            assert_eq!(pid, std::process::id());
            assert!(error.to_string().contains(&pid.to_string()));
        }
        other => panic!("{other:?}"),
    }
    drop(journal);
    Journal::open(small(&dir)).unwrap();
}

#[test]
fn only_the_owner_can_read_the_state() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let journal = Journal::open(Config { segment_bytes: 64 << 10, ..Config::new(&state) }).unwrap();
    append(&journal, "shop/a");
    drop(journal);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("journal")), 0o700);
    for file in [state.join("LOCK"), state.join("store-id"), state.join("journal/00000000000000000001.seg")] {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn closing_writes_what_was_submitted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(small(&dir)).unwrap();
    let acks: Vec<_> = (0..50)
        .map(|number| {
            let submit = journal.try_reserve().unwrap();
            submit.submit(transaction("t", None, vec![upsert(service(&format!("s/{number}")))])).unwrap().ack
        })
        .collect();
    let permit = journal.try_reserve().unwrap();
    let mut durable = journal.durable();
    drop(journal);
    for ack in acks {
        ack.blocking_wait().unwrap();
    }
    assert!(matches!(permit.submit(transaction("t", None, vec![])), Err(AppendError::Closed)));
    assert_eq!(durable.head().lsn, Lsn(50));
    assert_eq!(durable.blocking_past(Lsn(50), Duration::from_mins(1)), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pushers_share_groups_and_get_dense_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(Config { queue_records_max: 16, ..small(&dir) }).unwrap();
    let mut pushers = tokio::task::JoinSet::new();
    for pusher in 0..32 {
        let journal = journal.clone();
        pushers.spawn(async move {
            let mut lsns = Vec::new();
            for number in 0..50 {
                let permit = journal.reserve().await.unwrap();
                let name = format!("p{pusher}/s{number}");
                let submitted = permit.submit(transaction("t", None, vec![upsert(service(&name))])).unwrap();
                lsns.push(submitted.ack.wait().await.unwrap().lsn.0);
            }
            lsns
        });
    }
    let mut all: Vec<u64> = pushers.join_all().await.concat();
    all.sort_unstable();
    assert_eq!(all, (1..=1600).collect::<Vec<_>>());
    journal.wait_stored(Lsn(1600)).await.unwrap();
    let mut seen = 0;
    assert_eq!(journal.for_each_encoded(|_| seen += 1).unwrap(), Lsn(1600));
    assert_eq!(seen, 1600);
}
