//! Older schema versions under this one: a state directory that the last build of such a version has written
//! (`golden/v1-state`, `golden/v2-state`, each with its own export) is read, and gone on with. No record is converted, nothing
//! is lost; the store, which is derived, is rebuilt from checkpoint and log, as resources have changed.
//!
//! Version 1: 19 records in two segments (cut behind their last frame), a checkpoint at 9, an index of the closed segment, and
//! sled's files. Its clock began at 2023-11-14 22:13:20 UTC and went on by a millisecond whenever it was looked at.
//!
//! Version 2: 40 records that `holdfast apply` and `delete` pushed (their segment cut likewise), and a checkpoint at 30.

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
use sample::{copy_dir, origin, service, transaction, upsert};
use storage_schema::codec::{
    SCHEMA_VERSION, decode_record, encode_record, encode_record_in, encode_resource, hash_record, version_of,
};
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::{Cause, Delta, Drained, Event, Lease, Transaction};
use storage_schema::resource::{Affinity, DrainMode, Kind, LoadBalancing, Policy, ResourceKey, Service};

/// What the last build of an older version has left behind.
struct Past {
    version: u32,
    /// The last record, and its hash as that build computed it.
    last: Lsn,
    last_hash: &'static str,
    checkpoint: u64,
    /// A version of `istiod`'s that has its receipt, and the record that it stands for.
    known: (u64, Lsn),
    last_version: u64,
}

const PASTS: [Past; 2] = [
    Past {
        version: 1,
        last: Lsn(19),
        last_hash: "b3e8ddddee4e71f4726219293160fd27c51182064d80271dfbfc0ac5b5a76c5a",
        checkpoint: 9,
        known: (113, Lsn(16)),
        last_version: 116,
    },
    Past {
        version: 2,
        last: Lsn(40),
        last_hash: "894ffe94d68cecfe8a23921cfd29f073f4b72a581783d06520cac296b89f2781",
        checkpoint: 30,
        known: (1033, Lsn(33)),
        last_version: 1040,
    },
];
const CLIENT: &str = "uid=0 gid=0 pid=4711";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

impl Past {
    fn exported(&self) -> Vec<EncodedRecord> {
        journal::read_jsonl(&self.export()[..]).collect::<Result<_, _>>().unwrap()
    }

    fn export(&self) -> Vec<u8> {
        fs::read(golden(&format!("v{}-export.jsonl", self.version))).unwrap()
    }

    /// A copy of its state directory.
    fn state(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        copy_dir(&golden(&format!("v{}-state", self.version)), &state(&dir));
        dir
    }
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

/// Appends records of this version, several segments of them, behind the old ones.
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
    for lsn in [0, 8, 9, 12, 19, last.0.midpoint(19), last.0 - 10, last.0].map(Lsn) {
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
fn a_state_directory_of_an_older_schema_is_read() {
    for past in PASTS {
        let dir = past.state();
        let last = past.last;
        let report = journal::verify(&state(&dir), |_| {}).unwrap();
        assert_eq!((report.trusted_lsn, report.wrong), (last, Vec::new()));
        let journal = open(&dir);
        let report = journal.open_report();
        assert_eq!((report.durable_lsn, report.cut_bytes, report.lost, report.created), (last, 0, None, false));
        let rebuilt = report.store_rebuilt.as_deref().expect("resources have changed since");
        assert!(rebuilt.contains("schema"), "{rebuilt}");
        assert_eq!(report.folded, last.0 - past.checkpoint, "from the checkpoint on");
        let expected = past.exported();
        check(&journal, &expected);
        assert_eq!(journal.encoded_record(last).unwrap().hash().to_string(), past.last_hash);
        for record in &expected {
            let version = version_of(&record.encoded).unwrap();
            assert_eq!(version, past.version);
            let archived = record.access().unwrap();
            assert_eq!(archived.received_wall_ns.is_some(), version == 2);
            assert!(!archived.transaction.take_over && archived.transaction.event.is_none());
        }
        let state = |incarnation, last_version, last_lsn| SourceState {
            incarnation,
            last_version,
            last_lsn,
            ..SourceState::default()
        };
        let sources = [
            ("cli".to_owned(), state(0, None, Lsn(12))),
            ("istiod".to_owned(), state(2, Some(past.last_version), last)),
        ];
        assert_eq!(journal.sources(), sources);
        let (version, lsn) = past.known;
        let OriginState::Duplicate(ack) = journal.origin(&origin("istiod", 2, version)).unwrap() else {
            panic!("it is known")
        };
        let index = usize::try_from(lsn.0 - 1).unwrap();
        assert_eq!((ack.lsn(), ack.hash()), (lsn, expected[index].hash()));
        drop(journal);
        let journal = open(&dir);
        assert_eq!((journal.open_report().folded, &journal.open_report().store_rebuilt), (0, &None), "once is enough");
        check(&journal, &expected);
    }
}

#[test]
fn a_journal_of_several_versions_is_one_journal() {
    for past in PASTS {
        go_on_with(&past);
    }
}

fn go_on_with(past: &Past) {
    let dir = past.state();
    let last = usize::try_from(past.last.0).unwrap();
    let journal = open(&dir);
    append(&journal, past.last.0 + 1..=150);
    let all = records(&journal);
    assert_eq!(all[..last], past.exported(), "what was written stays as it was written");
    check(&journal, &all);
    for record in &all[last..] {
        let version = version_of(&record.encoded).unwrap();
        let record = record.decode().unwrap();
        assert_eq!(version, SCHEMA_VERSION);
        assert_eq!(record.client.as_deref(), (record.lsn.0 % 2 == 0).then_some(CLIENT));
        assert!(record.received_wall_ns.is_some_and(|received| received.abs_diff(record.wall_ns) < 60_000_000_000));
    }
    drop(journal);

    // Reopened, and rebuilt from the checkpoint of the older version.
    let journal = open(&dir);
    assert_eq!((journal.open_report().durable_lsn, &journal.open_report().store_rebuilt), (Lsn(150), &None));
    check(&journal, &all);
    drop(journal);
    fs::remove_dir_all(state(&dir).join("store")).unwrap();
    let journal = open(&dir);
    assert_eq!(journal.open_report().folded, 150 - past.checkpoint);
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
    assert!(export.starts_with(&past.export()), "old records have the lines they had");
    let lines = String::from_utf8(export.clone()).unwrap();
    let begins = format!("{{\"schema\":{SCHEMA_VERSION},\"lsn\":");
    let told = lines.lines().skip(last).filter(|line| line.starts_with(&begins)).count();
    assert_eq!(told, 150 - last);
    assert_eq!(journal::import_jsonl(&config(&imported), &export[..]).unwrap(), 150);
    check(&open(&imported), &all);

    // What retention leaves begins with records of this version.
    append(&journal, 151..=260);
    let all = records(&journal);
    journal.compact(&Retention { records: Some(20), ..Retention::default() }).unwrap();
    assert!(journal.watermarks().oldest_lsn > past.last);
    assert_eq!(stored(&journal), folded(&all, Lsn(260)));
    drop(journal);
    fs::remove_dir_all(state(&dir).join("store")).unwrap();
    assert_eq!(stored(&open(&dir)), folded(&all, Lsn(260)));
}

#[test]
fn an_export_of_an_older_version_becomes_a_journal_with_the_same_hashes() {
    for past in PASTS {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(journal::import_jsonl(&config(&dir), &past.export()[..]).unwrap(), past.last.0);
        let journal = open(&dir);
        check(&journal, &past.exported());
        assert_eq!(journal.encoded_record(past.last).unwrap().hash().to_string(), past.last_hash);
        append(&journal, past.last.0 + 1..=past.last.0 + 11);
        check(&journal, &records(&journal));
    }
}

/// Everything that only this version can say comes back from an export as it was.
#[test]
fn what_is_new_is_exported_and_imported() {
    let dir = tempfile::tempdir().unwrap();
    let journal = open(&dir);
    let event = Event::Drained(Drained {
        service: "shop/cart".to_owned(),
        workload: "c//Pod/shop/cart-1".to_owned(),
        mode: DrainMode::Graceful,
        closed: 3,
        reselected: 0,
    });
    let balanced =
        LoadBalancing { affinity: Some(Affinity { timeout_seconds: 60 }), ..LoadBalancing::of(Policy::Maglev) };
    let cart = Service { load_balancing: balanced, all_ports: true, ..service("shop/cart") };
    let taken = Transaction { cause: Cause::Sync, take_over: true, ..transaction("b", None, vec![upsert(cart)]) };
    let told = Transaction { cause: Cause::Agent, event: Some(event), ..transaction("holdfast", None, vec![]) };
    let leased = Event::Leased(Lease { ttl_seconds: 30 });
    let leased = Transaction { event: Some(leased), ..transaction("b", None, vec![]) };
    for transaction in [&taken, &told, &leased] {
        let submitted = journal.blocking_reserve().unwrap().submit(transaction.clone()).unwrap();
        submitted.ack.blocking_wait().unwrap();
    }
    let mut export = Vec::new();
    journal::export_jsonl(&mut journal.read_from(Lsn(1)).unwrap(), Lsn(3), &mut export).unwrap();
    let text = String::from_utf8(export.clone()).unwrap();
    assert!(text.contains(r#""cause":"sync","takeOver":true,"deltas":[{"upsert""#), "{text}");
    let event = r#""cause":"agent","deltas":[],"event":{"drained":{"service":"shop/cart","workload":"c//Pod/shop/cart-1","mode":"graceful","closed":3,"reselected":0}}"#;
    assert!(text.contains(event), "{text}");
    assert!(text.contains(r#""deltas":[],"event":{"leased":{"ttlSeconds":30}}"#), "{text}");
    let read: Vec<EncodedRecord> = journal::read_jsonl(&export[..]).collect::<Result<_, _>>().unwrap();
    assert_eq!(read, records(&journal));
    assert_eq!(read[0].decode().unwrap().transaction, taken);
    assert_eq!(read[1].decode().unwrap().transaction, told);
    assert_eq!(read[2].decode().unwrap().transaction, leased);

    // What the records say of their sources is in checkpoints as well.
    let known = journal.sources();
    assert_eq!((known[0].1.ttl_seconds, known[0].1.expired), (Some(30), Some(false)));
    journal.checkpoint().unwrap();
    drop(journal);
    fs::remove_dir_all(state(&dir).join("store")).unwrap();
    let journal = open(&dir);
    assert_eq!((journal.open_report().folded, journal.sources()), (0, known));
}

#[test]
fn a_line_says_what_its_version_can_say() {
    let [past, _] = PASTS;
    let lines = String::from_utf8(past.export()).unwrap();
    let first = lines.lines().next().unwrap();
    let refused = |line: String| match journal::import_jsonl(&config(&tempfile::tempdir().unwrap()), line.as_bytes()) {
        Err(ImportError::Export(ExportError::Line { line: 1, reason })) => reason,
        other => panic!("{other:?}"),
    };
    let with = |fields: &str| format!("{{{fields},{}", &first[1..]);
    assert_eq!(refused(with(r#""client":"uid=0""#)), "a record of schema version 1 has no client");
    assert_eq!(refused(with(r#""receivedWallNs":7"#)), "a record of schema version 1 has no received_wall_ns");
    assert_eq!(refused(with(r#""takeOver":true"#)), "a record of schema version 1 has no take_over");
    assert_eq!(refused(with(r#""schema":2,"cause":"expiry""#)), "a record of schema version 2 has no cause");
    assert!(refused(with(r#""schema":2"#)).contains("record 1 was altered"));
    let newer = refused(with(r#""schema":4"#));
    assert_eq!(newer, "schema version 4 is not known here (newest known: 3): use a newer holdfast");
    assert!(journal::read_jsonl(with(r#""schema":1"#).as_bytes()).all(|record| record.is_ok()));

    // A first record with a predecessor, its hash recomputed.
    let mut record = past.exported()[0].decode().unwrap();
    record.previous_hash = RecordHash([1; 32]);
    let hash = hash_record(&encode_record_in(1, record.clone()).unwrap()).to_string();
    let forged = first.replace(&RecordHash::default().to_string(), &record.previous_hash.to_string());
    let forged = forged.replace(&past.exported()[0].hash().to_string(), &hash);
    assert_eq!(refused(forged), "record 1 is the first one, but names the hash of one before it");
}

#[test]
fn a_record_of_a_newer_version_is_refused_by_its_version() {
    let [past, _] = PASTS;
    let dir = past.state();
    let last = state(&dir).join("journal/00000000000000000012.seg");
    let mut segment = fs::read(&last).unwrap();
    let mut record = decode_record(&past.exported()[18].encoded).unwrap();
    record.lsn = Lsn(20);
    let mut body = encode_record(&record);
    body[..4].copy_from_slice(&4_u32.to_le_bytes());
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
        message.contains("schema version 4 is not known here (newest known: 3): use a newer holdfast"),
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
