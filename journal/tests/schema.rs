//! Schema version 1 under version 2: a state directory that the last build of version 1 has written (`golden/v1-state`, with
//! its own export, `golden/v1-export.jsonl`) is read as it is, and gone on with. Nothing is converted, nothing is lost.
//!
//! 19 records in two segments (cut behind their last frame), a checkpoint at 9, an index of the closed segment, and sled's
//! files. Its clock began at 2023-11-14 22:13:20 UTC and went on by a millisecond whenever it was looked at.

mod sample;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use journal::segment::frame::push_frame;
use journal::{
    CheckpointPolicy, Config, EncodedRecord, ExportError, ImportError, Journal, OriginState, Retention, SourceState,
};
use sample::{origin, service, transaction, upsert};
use storage_schema::codec::{decode_record, encode_record, encode_record_in, encode_resource, hash_record, version_of};
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, ResourceKey};

/// The last record of version 1, and its hash as that build computed it.
const LAST: Lsn = Lsn(19);
const LAST_HASH: &str = "b3e8ddddee4e71f4726219293160fd27c51182064d80271dfbfc0ac5b5a76c5a";
const CLIENT: &str = "uid=0 gid=0 pid=4711";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

fn exported() -> Vec<EncodedRecord> {
    let lines = fs::read(golden("v1-export.jsonl")).unwrap();
    journal::read_jsonl(&lines[..]).collect::<Result<_, _>>().unwrap()
}

/// A copy of the state directory of version 1.
fn old_state() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&golden("v1-state"), &state(&dir));
    dir
}

fn state(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("state")
}

fn config(dir: &tempfile::TempDir) -> Config {
    let checkpoint = CheckpointPolicy { records: u64::MAX, bytes: u64::MAX };
    Config { segment_bytes: 64 << 10, checkpoint, retention: Retention::default(), ..Config::new(state(dir)) }
}

fn open(dir: &tempfile::TempDir) -> Journal {
    Journal::open(config(dir)).unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}

/// Appends records of version 2, several segments of them, behind the old ones.
fn append(journal: &Journal, records: std::ops::RangeInclusive<u64>) {
    for number in records {
        let name = format!("shop/svc-{}", number % 12);
        let delta = if number % 7 == 0 {
            Delta::Remove(ResourceKey::new(Kind::Service, name))
        } else {
            let mut service = service(&name);
            service.hostname = "h".repeat(1500);
            upsert(service)
        };
        let permit = journal.blocking_reserve().unwrap().client((number % 2 == 0).then(|| CLIENT.to_owned()));
        let mut transaction = transaction("istiod", Some(1000 + number), vec![delta]);
        transaction.origin.incarnation = 2;
        let submitted = permit.submit(transaction).unwrap();
        assert_eq!(submitted.ack.blocking_wait().unwrap().lsn, Lsn(number));
    }
}

fn records(journal: &Journal) -> Vec<EncodedRecord> {
    let mut records = journal.read_from(Lsn(1)).unwrap();
    std::iter::from_fn(|| records.next_encoded()).map(|record| record.unwrap().into_inner()).collect()
}

type Contents = BTreeMap<(Kind, String), (Lsn, Vec<u8>)>;

/// The state after record `lsn`, folded from decoded records.
fn folded(records: &[EncodedRecord], lsn: Lsn) -> Contents {
    let mut state = Contents::new();
    for record in records.iter().filter(|record| record.lsn <= lsn) {
        for delta in record.decode().unwrap().transaction.deltas {
            let key = delta.key();
            let key = (key.kind, key.name);
            match delta {
                Delta::Upsert(resource) => drop(state.insert(key, (record.lsn, encode_resource(&resource)))),
                Delta::Remove(_) => drop(state.remove(&key)),
            }
        }
    }
    state
}

/// What the store shows.
fn stored(journal: &Journal) -> Contents {
    let mut state = Contents::new();
    journal.blocking_wait_stored(journal.watermarks().durable_lsn).unwrap();
    journal
        .for_each_encoded(|found| {
            state.insert((found.kind, found.name.to_owned()), (found.changed_lsn, found.encoded.to_vec()));
        })
        .unwrap();
    state
}

fn state_at(journal: &Journal, lsn: Lsn) -> Contents {
    let state = journal.reader().state_at(lsn).unwrap();
    assert_eq!(state.head().lsn, lsn);
    state
        .iter()
        .map(|found| ((found.kind, found.name.to_owned()), (found.changed_lsn, found.encoded.to_vec())))
        .collect()
}

/// Compares everything that can be read with what the records say.
fn check(journal: &Journal, expected: &[EncodedRecord]) {
    let last = Lsn(expected.len() as u64);
    assert_eq!(records(journal), expected);
    assert_eq!(stored(journal), folded(expected, last));
    for lsn in [Lsn(0), Lsn(8), Lsn(9), Lsn(12), LAST, Lsn(LAST.0.midpoint(last.0)), last] {
        assert_eq!(state_at(journal, lsn), folded(expected, lsn), "at {lsn}");
    }
    for name in ["shop/svc-2", "shop/svc-1", "shop/large"] {
        let key = ResourceKey::new(Kind::Service, name);
        let changed = |record: &&EncodedRecord| {
            record.decode().unwrap().transaction.deltas.iter().any(|delta| delta.key() == key)
        };
        let history: Vec<Lsn> = expected.iter().filter(changed).map(|record| record.lsn).collect();
        assert_eq!(journal.reader().history(&key, Lsn(1), last).unwrap(), history);
    }
    let walls: Vec<u64> = expected.iter().map(|record| record.decode().unwrap().wall_ns).collect();
    for lsn in [1, 11, 12, 19, expected.len()] {
        let found = journal.reader().lsn_at(walls[lsn - 1]).unwrap();
        assert_eq!(found, Lsn(walls.iter().rposition(|wall_ns| *wall_ns <= walls[lsn - 1]).unwrap() as u64 + 1));
    }
    let mut stream = journal.watch(Lsn(17)).unwrap();
    for record in &expected[16..] {
        assert_eq!(*stream.blocking_next(Duration::from_secs(10)).unwrap().unwrap(), *record);
    }
    let report = journal.verify(|_| {}).unwrap();
    assert_eq!((report.wrong, report.trusted_lsn, report.records), (Vec::new(), last, last.0));
}

#[test]
fn a_state_directory_of_schema_1_is_read_as_it_is() {
    let dir = old_state();
    let report = journal::verify(&state(&dir), |_| {}).unwrap();
    assert_eq!((report.trusted_lsn, report.wrong), (LAST, Vec::new()));
    let journal = open(&dir);
    let report = journal.open_report();
    assert_eq!((report.durable_lsn, report.cut_bytes, report.lost, report.created), (LAST, 0, None, false));
    assert_eq!((report.folded, &report.store_rebuilt), (0, &None), "the store of version 1 serves on");
    let expected = exported();
    check(&journal, &expected);
    assert_eq!(journal.encoded_record(LAST).unwrap().hash().to_string(), LAST_HASH);
    for record in &expected {
        assert_eq!(version_of(&record.encoded).unwrap(), 1);
        let archived = record.access().unwrap();
        assert!(archived.received_wall_ns.is_none() && archived.client.is_none());
    }
    let state = |incarnation, last_version, last_lsn| SourceState { incarnation, last_version, last_lsn };
    let sources = [("cli".to_owned(), state(0, None, Lsn(12))), ("istiod".to_owned(), state(2, Some(116), LAST))];
    assert_eq!(journal.sources(), sources);
    let OriginState::Duplicate(ack) = journal.origin(&origin("istiod", 2, 113)).unwrap() else { panic!("it is known") };
    assert_eq!((ack.lsn(), ack.hash()), (Lsn(16), expected[15].hash()));
}

#[test]
fn a_journal_of_both_versions_is_one_journal() {
    let dir = old_state();
    let journal = open(&dir);
    append(&journal, 20..=150);
    let all = records(&journal);
    assert_eq!(all[..19], exported(), "what was written stays as it was written");
    check(&journal, &all);
    for record in &all[19..] {
        let version = version_of(&record.encoded).unwrap();
        let record = record.decode().unwrap();
        assert_eq!(version, 2);
        assert_eq!(record.client.as_deref(), (record.lsn.0 % 2 == 0).then_some(CLIENT));
        assert!(record.received_wall_ns.is_some_and(|received| received.abs_diff(record.wall_ns) < 60_000_000_000));
    }
    drop(journal);

    // Reopened, and rebuilt from the checkpoint of version 1.
    let journal = open(&dir);
    assert_eq!((journal.open_report().durable_lsn, &journal.open_report().store_rebuilt), (Lsn(150), &None));
    check(&journal, &all);
    drop(journal);
    fs::remove_dir_all(state(&dir).join("store")).unwrap();
    let journal = open(&dir);
    assert_eq!(journal.open_report().folded, 141, "the checkpoint is at record 9");
    check(&journal, &all);
    journal.checkpoint().unwrap();

    // As a snapshot, and as an export.
    let restored = tempfile::tempdir().unwrap();
    let mut snapshot = Vec::new();
    journal.snapshot(&mut snapshot).unwrap();
    journal::restore(&state(&restored), &mut &snapshot[..]).unwrap();
    check(&open(&restored), &all);
    let imported = tempfile::tempdir().unwrap();
    let mut export = Vec::new();
    journal::export_jsonl(&mut journal.read_from(Lsn(1)).unwrap(), Lsn(150), &mut export).unwrap();
    assert!(export.starts_with(&fs::read(golden("v1-export.jsonl")).unwrap()), "old records have the lines they had");
    let lines = String::from_utf8(export.clone()).unwrap();
    let told = lines.lines().skip(19).filter(|line| line.starts_with(r#"{"schema":2,"lsn":"#)).count();
    assert_eq!(told, 131);
    assert_eq!(journal::import_jsonl(&config(&imported), &export[..]).unwrap(), 150);
    check(&open(&imported), &all);

    // What retention leaves begins with records of version 2.
    append(&journal, 151..=260);
    let all = records(&journal);
    journal.compact(&Retention { records: Some(20), ..Retention::default() }).unwrap();
    assert!(journal.watermarks().oldest_lsn > LAST);
    assert_eq!(stored(&journal), folded(&all, Lsn(260)));
    drop(journal);
    fs::remove_dir_all(state(&dir).join("store")).unwrap();
    assert_eq!(stored(&open(&dir)), folded(&all, Lsn(260)));
}

#[test]
fn an_export_of_version_1_becomes_a_journal_with_the_same_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let lines = fs::read(golden("v1-export.jsonl")).unwrap();
    assert_eq!(journal::import_jsonl(&config(&dir), &lines[..]).unwrap(), 19);
    let journal = open(&dir);
    check(&journal, &exported());
    assert_eq!(journal.encoded_record(LAST).unwrap().hash().to_string(), LAST_HASH);
    append(&journal, 20..=30);
    check(&journal, &records(&journal));
}

#[test]
fn a_line_says_what_its_version_can_say() {
    let lines = fs::read_to_string(golden("v1-export.jsonl")).unwrap();
    let first = lines.lines().next().unwrap();
    let refused = |line: String| match journal::import_jsonl(&config(&tempfile::tempdir().unwrap()), line.as_bytes()) {
        Err(ImportError::Export(ExportError::Line { line: 1, reason })) => reason,
        other => panic!("{other:?}"),
    };
    let with = |fields: &str| format!("{{{fields},{}", &first[1..]);
    assert_eq!(refused(with(r#""client":"uid=0""#)), "a record of schema version 1 has no client");
    assert_eq!(refused(with(r#""receivedWallNs":7"#)), "a record of schema version 1 has no received_wall_ns");
    assert!(refused(with(r#""schema":2"#)).contains("record 1 was altered"));
    let newer = refused(with(r#""schema":3"#));
    assert_eq!(newer, "schema version 3 is not known here (newest known: 2): use a newer holdfast");
    assert!(journal::read_jsonl(with(r#""schema":1"#).as_bytes()).all(|record| record.is_ok()));

    // A first record with a predecessor, its hash recomputed.
    let mut record = exported()[0].decode().unwrap();
    record.previous_hash = RecordHash([1; 32]);
    let hash = hash_record(&encode_record_in(1, record.clone()).unwrap()).to_string();
    let forged = first.replace(&RecordHash::default().to_string(), &record.previous_hash.to_string());
    let forged = forged.replace(&exported()[0].hash().to_string(), &hash);
    assert_eq!(refused(forged), "record 1 is the first one, but names the hash of one before it");
}

#[test]
fn a_record_of_a_newer_version_is_refused_by_its_version() {
    let dir = old_state();
    let last = state(&dir).join("journal/00000000000000000012.seg");
    let mut segment = fs::read(&last).unwrap();
    let mut record = decode_record(&exported()[18].encoded).unwrap();
    record.lsn = Lsn(20);
    let mut body = encode_record(&record);
    body[..4].copy_from_slice(&3_u32.to_le_bytes());
    let store_id = journal::verify(&state(&dir), |_| {}).unwrap().store_id;
    push_frame(&mut segment, store_id, Lsn(20), Lsn(20), &body);
    fs::write(&last, segment).unwrap();
    let error = Journal::open(config(&dir)).unwrap_err();
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    assert!(message.contains("record 20") || message.contains("LSN 20"), "{message}");
    assert!(
        message.contains("schema version 3 is not known here (newest known: 2): use a newer holdfast"),
        "{message}"
    );
}

/// A wall clock that is set by hand, and counts how often it is looked at.
#[derive(Debug, Default)]
struct ClockByHand {
    wall_ns: AtomicU64,
    looks: AtomicU64,
}

impl journal::Clock for ClockByHand {
    fn now(&self) -> journal::Instant {
        let wall_ns = self.wall_ns.load(Ordering::SeqCst);
        self.looks.fetch_add(1, Ordering::SeqCst);
        journal::Instant { wall_ns, monotonic_ns: 1 }
    }
}

#[test]
fn a_record_says_since_when_its_pusher_waited() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ClockByHand::default());
    let config = Config { clock: clock.clone(), queue_records_max: 1, ..config(&dir) };
    let journal = Journal::open(config).unwrap();
    let times = |lsn| {
        let record = journal.record(lsn).unwrap().into_inner();
        (record.received_wall_ns, record.wall_ns)
    };
    // One place: the second pusher waits for the first one's record to leave the queue.
    clock.wall_ns.store(1000, Ordering::SeqCst);
    let permit = journal.try_reserve().unwrap();
    let looks = clock.looks.load(Ordering::SeqCst);
    let second = std::thread::spawn({
        let journal = journal.clone();
        move || {
            let submitted = journal.blocking_reserve().unwrap().submit(transaction("two", None, vec![])).unwrap();
            submitted.ack.blocking_wait().unwrap()
        }
    });
    while clock.looks.load(Ordering::SeqCst) == looks {
        std::thread::yield_now();
    }
    clock.wall_ns.store(5000, Ordering::SeqCst);
    permit.submit(transaction("one", None, vec![])).unwrap();
    assert_eq!(second.join().unwrap().lsn, Lsn(2));
    assert_eq!((times(Lsn(1)), times(Lsn(2))), ((Some(1000), 5000), (Some(1000), 5000)));
}
