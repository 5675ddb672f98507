//! Checkpoints, the state at any record, and retention.

mod sample;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use journal::{CheckpointPolicy, Config, Journal, OriginState, ReadError, Retention, State};
use sample::{origin, service, transaction, upsert};
use storage_schema::codec::encode_resource;
use storage_schema::id::Lsn;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, ResourceKey};

const SELDOM: CheckpointPolicy = CheckpointPolicy { records: u64::MAX, bytes: u64::MAX };

fn config(dir: &tempfile::TempDir) -> Config {
    Config { segment_bytes: 64 << 10, checkpoint: SELDOM, retention: Retention::default(), ..Config::new(dir.path()) }
}

type Folded = BTreeMap<String, (Lsn, Vec<u8>)>;

/// Appends records `from..=to` (upserts and removals over 30 services) and folds them into `folded`, noting each state.
fn append(journal: &Journal, from: u64, to: u64, folded: &mut Folded, states: &mut Vec<Folded>) {
    let mut last = None;
    for number in from..=to {
        let name = format!("shop/svc-{:02}", number * 7 % 30);
        let delta = if number % 5 == 0 {
            folded.remove(&name);
            Delta::Remove(ResourceKey::new(Kind::Service, &*name))
        } else {
            let mut service = service(&name);
            service.hostname = "h".repeat(usize::try_from(number * 13 % 700).unwrap());
            let delta = upsert(service);
            let Delta::Upsert(resource) = &delta else { unreachable!() };
            folded.insert(name, (Lsn(number), encode_resource(resource)));
            delta
        };
        let permit = journal.blocking_reserve().unwrap();
        last = Some(permit.submit(transaction("cp", Some(number), vec![delta])).unwrap());
        states.push(folded.clone());
    }
    last.unwrap().ack.blocking_wait().unwrap();
    journal.blocking_wait_stored(Lsn(to)).unwrap();
}

fn as_folded(state: &State) -> Folded {
    state.iter().map(|found| (found.name.to_owned(), (found.changed_lsn, found.encoded.to_vec()))).collect()
}

#[test]
fn the_state_at_any_record_is_the_fold_up_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(&dir)).unwrap();
    let (mut folded, mut states) = (Folded::new(), vec![Folded::new()]);
    for step in 0..4 {
        append(&journal, step * 150 + 1, step * 150 + 150, &mut folded, &mut states);
        let checkpoint = journal.checkpoint().unwrap();
        assert_eq!(checkpoint.lsn, Lsn(step * 150 + 150));
        assert_eq!(journal.checkpoint().unwrap(), checkpoint, "there is one already");
    }
    append(&journal, 601, 650, &mut folded, &mut states);
    for lsn in (0..=650).step_by(13).chain([149, 150, 151, 650]) {
        let state = journal.reader().state_at(Lsn(lsn)).unwrap();
        assert_eq!(state.head().lsn, Lsn(lsn));
        assert_eq!(as_folded(&state), states[usize::try_from(lsn).unwrap()], "at {lsn}");
        if lsn > 0 {
            assert_eq!(state.head().hash, journal.encoded_record(Lsn(lsn)).unwrap().hash());
        }
    }
    assert!(matches!(journal.reader().state_at(Lsn(651)), Err(ReadError::NotThere { .. })));
}

#[test]
fn the_past_goes_in_whole_segments_and_everything_else_stays() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(&dir)).unwrap();
    let (mut folded, mut states) = (Folded::new(), vec![Folded::new()]);
    append(&journal, 1, 500, &mut folded, &mut states);
    journal.checkpoint().unwrap();
    append(&journal, 501, 1000, &mut folded, &mut states);
    let segments = fs::read_dir(dir.path().join("journal")).unwrap().count();
    let mut reader = journal.read_from(Lsn(1)).unwrap();
    reader.next_encoded().unwrap().unwrap();

    let compacted = journal.compact(&Retention { records: Some(300), ..Retention::default() }).unwrap();
    assert!(compacted.segments_removed > 0 && compacted.bytes_freed > 0);
    let oldest = compacted.oldest_lsn;
    assert!(oldest > Lsn(1) && oldest <= Lsn(501), "{oldest}");
    assert_eq!(journal.watermarks().oldest_lsn, oldest);
    assert!(fs::read_dir(dir.path().join("journal")).unwrap().count() < segments);
    match journal.read_from(Lsn(1)).map(drop) {
        Err(error @ ReadError::Compacted { .. }) => assert!(error.to_string().contains(&oldest.to_string())),
        other => panic!("{other:?}"),
    }
    // Who had a segment open reads it to its end, and then learns that it was left behind.
    let end = std::iter::from_fn(|| reader.next_encoded()).find_map(Result::err);
    assert!(end.is_none() || matches!(end, Some(ReadError::Compacted { .. })), "{end:?}");

    for lsn in [500, 501, 777, 1000] {
        assert_eq!(as_folded(&journal.reader().state_at(Lsn(lsn)).unwrap()), states[usize::try_from(lsn).unwrap()]);
    }
    assert!(matches!(journal.reader().state_at(Lsn(10)), Err(ReadError::NoState { oldest_lsn: Lsn(500), .. })));
    drop(reader);
    drop(journal);

    // Reopened, and with the store rebuilt from the checkpoint.
    let journal = Journal::open(config(&dir)).unwrap();
    assert_eq!(journal.open_report().oldest_lsn, oldest);
    drop(journal);
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    let journal = Journal::open(config(&dir)).unwrap();
    assert!(journal.open_report().store_rebuilt.is_some());
    assert_eq!(journal.open_report().folded, 0, "the newest checkpoint is at the last record");
    let stored = journal.reader().state_at(Lsn(1000)).unwrap();
    assert_eq!(as_folded(&stored), folded);
    assert_eq!(journal.resources_count().unwrap(), folded.len() as u64);
    assert!(matches!(journal.origin(&origin("cp", 1, 999)).unwrap(), OriginState::Duplicate(_)), "receipts come along");
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(&dir)).unwrap();
    let (mut folded, mut states) = (Folded::new(), vec![Folded::new()]);
    append(&journal, 1, 200, &mut folded, &mut states);
    journal.checkpoint().unwrap();
    append(&journal, 201, 300, &mut folded, &mut states);
    let newest = journal.checkpoint().unwrap();
    drop(journal);
    let mut bytes = fs::read(&newest.path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    fs::write(&newest.path, bytes).unwrap();
    fs::remove_dir_all(dir.path().join("store")).unwrap();
    fs::write(dir.path().join("checkpoints/00000000000000000250.new"), "half").unwrap();
    let journal = Journal::open(config(&dir)).unwrap();
    assert_eq!(journal.open_report().folded, 100, "from the older checkpoint on");
    assert_eq!(as_folded(&journal.reader().state_at(Lsn(300)).unwrap()), folded);
    assert!(!dir.path().join("checkpoints/00000000000000000250.new").exists());
}

#[test]
fn checkpoints_and_retention_happen_by_themselves_and_disk_stays_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(Config {
        checkpoint: CheckpointPolicy { records: 100, bytes: u64::MAX },
        retention: Retention { bytes: Some(128 << 10), ..Retention::default() },
        ..config(&dir)
    })
    .unwrap();
    let (mut folded, mut states) = (Folded::new(), vec![Folded::new()]);
    let mut number = 0;
    // Until the keeper, which looks twice a second, has let something go several times.
    while journal.watermarks().oldest_lsn < Lsn(2000) {
        append(&journal, number + 1, number + 200, &mut folded, &mut states);
        states.clear();
        number += 200;
        assert!(number < 200_000, "nothing was ever let go");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(as_folded(&journal.reader().state_at(Lsn(number)).unwrap()), folded);
}

/// A wall clock that is set by hand.
#[derive(Debug, Default)]
struct ClockByHand(std::sync::atomic::AtomicU64);

impl journal::Clock for ClockByHand {
    fn now(&self) -> journal::Instant {
        let wall_ns = self.0.load(std::sync::atomic::Ordering::SeqCst);
        journal::Instant { wall_ns, monotonic_ns: 1 }
    }
}

#[test]
fn records_are_found_by_time_even_if_the_clock_steps_back() {
    let dir = tempfile::tempdir().unwrap();
    let clock = std::sync::Arc::new(ClockByHand::default());
    let config = Config { clock: clock.clone(), ..config(&dir) };
    let journal = Journal::open(config.clone()).unwrap();
    let mut walls = vec![0];
    for number in 1..=3000_u64 {
        // It goes on by 10, and steps back by 3000 every 1100 records.
        let wall_ns = 100_000 + number * 10 - number / 1100 * 3000;
        clock.0.store(wall_ns, std::sync::atomic::Ordering::SeqCst);
        walls.push(wall_ns);
        let submit = journal.blocking_reserve().unwrap();
        let submitted = submit.submit(transaction("cp", None, vec![upsert(service("shop/a"))])).unwrap();
        if number == 3000 || number % 100 == 0 {
            submitted.ack.blocking_wait().unwrap();
        }
    }
    assert!(fs::read_dir(dir.path().join("journal")).unwrap().count() > 5);
    let check = |journal: &Journal| {
        for wall_ns in (99_000..132_000).step_by(171).chain([0, u64::MAX, 100_010, 100_009]) {
            let expected = (1..=3000).rev().find(|lsn| walls[*lsn] <= wall_ns).unwrap_or(0);
            assert_eq!(journal.reader().lsn_at(wall_ns).unwrap(), Lsn(expected as u64), "at {wall_ns}");
        }
    };
    check(&journal);
    drop(journal);
    // From the index files, and with each of them damaged.
    check(&Journal::open(config.clone()).unwrap());
    for file in fs::read_dir(dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().path()) {
        if file.extension().is_some_and(|suffix| suffix == "idx") {
            let mut bytes = fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&file, bytes).unwrap();
        }
    }
    check(&Journal::open(config).unwrap());
}

#[test]
fn a_resource_has_its_history() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(&dir)).unwrap();
    let (mut folded, mut states) = (Folded::new(), vec![Folded::new()]);
    append(&journal, 1, 1500, &mut folded, &mut states);
    for number in 0..30 {
        let key = ResourceKey::new(Kind::Service, format!("shop/svc-{number:02}"));
        let expected: Vec<Lsn> = (1..=1500).filter(|lsn| lsn * 7 % 30 == number).map(Lsn).collect();
        assert_eq!(journal.reader().history(&key, Lsn(1), Lsn(u64::MAX)).unwrap(), expected);
        let part: Vec<Lsn> = expected.into_iter().filter(|lsn| (Lsn(400)..=Lsn(1111)).contains(lsn)).collect();
        assert_eq!(journal.reader().history(&key, Lsn(400), Lsn(1111)).unwrap(), part);
    }
    let nothing = ResourceKey::new(Kind::Workload, "shop/svc-01");
    assert_eq!(journal.reader().history(&nothing, Lsn(1), Lsn(1500)).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_live_without_gap_or_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(&dir)).unwrap();
    let (mut folded, mut states) = (Folded::new(), vec![Folded::new()]);
    append(&journal, 1, 100, &mut folded, &mut states);
    let mut stream = journal.watch(Lsn(50)).unwrap();
    let pusher = journal.clone();
    let pushing = tokio::task::spawn_blocking(move || {
        let (mut folded, mut states) = (Folded::new(), vec![Folded::new()]);
        append(&pusher, 101, 2000, &mut folded, &mut states);
    });
    for lsn in 50..=2000 {
        assert_eq!(stream.next().await.unwrap().unwrap().lsn, Lsn(lsn));
    }
    pushing.await.unwrap();
    assert!(stream.blocking_next(Duration::from_millis(1)).is_none());
    drop(journal);
    assert!(stream.next().await.is_none(), "the journal is closed");
}
