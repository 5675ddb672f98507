//! Export, import, snapshot, restore.

mod sample;

use std::fs;

use journal::{Config, ExportError, ImportError, Journal, OriginState, ReadError, Retention, SnapshotError};
use sample::{origin, service, transaction, upsert};
use storage_schema::id::Lsn;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, ResourceKey};

fn config(dir: &tempfile::TempDir) -> Config {
    Config { segment_bytes: 64 << 10, ..Config::new(dir.path().join("state")) }
}

fn filled(dir: &tempfile::TempDir) -> Journal {
    let journal = Journal::open(config(dir)).unwrap();
    let mut last = None;
    for number in 1..=700_u64 {
        let name = format!("shop/svc-{:02}", number % 40);
        let delta = match number % 9 {
            0 => Delta::Remove(ResourceKey::new(Kind::Service, name)),
            _ => upsert(service(&name)),
        };
        let version = (number % 3 > 0).then_some(number);
        let submitted = journal.blocking_reserve().unwrap().submit(transaction("cp", version, vec![delta])).unwrap();
        if number == 350 {
            submitted.ack.blocking_wait().unwrap();
            journal.blocking_wait_stored(Lsn(350)).unwrap();
            journal.checkpoint().unwrap();
        }
        last = Some(submitted);
    }
    last.unwrap().ack.blocking_wait().unwrap();
    journal.blocking_wait_stored(Lsn(700)).unwrap();
    journal
}

/// Name, last change, and the encoded resource.
type Stored = (String, Lsn, Vec<u8>);

/// Hashes of all records, and what the store has.
fn contents(journal: &Journal) -> (Vec<String>, Vec<Stored>) {
    let mut records = journal.read_from(journal.watermarks().oldest_lsn).unwrap();
    let hashes =
        std::iter::from_fn(|| records.next_encoded()).map(|record| record.unwrap().hash().to_string()).collect();
    let mut stored = Vec::new();
    journal
        .for_each_encoded(|found| stored.push((found.name.to_owned(), found.changed_lsn, found.encoded.to_vec())))
        .unwrap();
    (hashes, stored)
}

fn exported(journal: &Journal) -> Vec<u8> {
    let mut out = Vec::new();
    let mut records = journal.read_from(Lsn(1)).unwrap();
    assert_eq!(journal::export_jsonl(&mut records, Lsn(u64::MAX), &mut out).unwrap(), 700);
    out
}

#[test]
fn an_export_comes_back_as_the_same_records() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let journal = filled(&from);
    let lines = exported(&journal);
    assert_eq!(lines.split(|byte| *byte == b'\n').count(), 701, "each line ends");
    assert_eq!(journal::import_jsonl(&config(&to), &lines[..]).unwrap(), 700);
    let copy = Journal::open(config(&to)).unwrap();
    assert_eq!(contents(&copy), contents(&journal));
    assert_ne!(copy.store_id(), journal.store_id());
    assert!(copy.verify(|_| {}).unwrap().wrong.is_empty());
    drop(copy);
    assert!(matches!(journal::import_jsonl(&config(&to), &lines[..]), Err(ImportError::Occupied { .. })));
}

#[test]
fn an_export_that_was_altered_is_refused_by_line() {
    let from = tempfile::tempdir().unwrap();
    let lines = String::from_utf8(exported(&filled(&from))).unwrap();
    let all: Vec<&str> = lines.lines().collect();
    let refused = |lines: &[&str]| {
        let to = tempfile::tempdir().unwrap();
        match journal::import_jsonl(&config(&to), lines.join("\n").as_bytes()) {
            Err(ImportError::Export(ExportError::Line { line, reason })) => (line, reason),
            other => panic!("{other:?}"),
        }
    };
    let altered = all[99].replace("10.96.0.1", "10.96.0.2");
    let (line, reason) = refused(&[&all[..99], &[&altered], &all[100..]].concat());
    assert!(line == 100 && reason.contains("altered"), "{line}: {reason}");
    let (line, reason) = refused(&[&all[..99], &all[100..]].concat());
    assert!(line == 100 && reason.contains("does not continue"), "{line}: {reason}");
    assert_eq!(refused(&[all[0], "{}"]).0, 2);
    assert_eq!(refused(&["nonsense"]).0, 1);
    let to = tempfile::tempdir().unwrap();
    let later = journal::import_jsonl(&config(&to), all[5..].join("\n").as_bytes());
    assert!(matches!(later, Err(ImportError::Partial { first: Lsn(6) })));
}

#[test]
fn a_snapshot_comes_back_as_the_same_journal() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let journal = filled(&from);
    journal.compact(&Retention { records: Some(50), ..Retention::default() }).unwrap();
    let mut file = Vec::new();
    let snapshot = journal.snapshot(&mut file).unwrap();
    assert_eq!((snapshot.bytes, snapshot.head.lsn), (file.len() as u64, Lsn(700)));
    let state = to.path().join("state");
    assert_eq!(journal::restore(&state, &mut &file[..]).unwrap(), journal.store_id());
    assert!(matches!(journal::restore(&state, &mut &file[..]), Err(SnapshotError::Occupied { .. })));
    let copy = Journal::open(config(&to)).unwrap();
    assert_eq!(copy.store_id(), journal.store_id());
    assert_eq!(contents(&copy), contents(&journal));
    let oldest = journal.watermarks().oldest_lsn;
    assert!(oldest > Lsn(1));
    assert!(matches!(copy.read_from(Lsn(1)).map(drop), Err(ReadError::Compacted { .. })));
    assert!(matches!(copy.origin(&origin("cp", 1, 700)).unwrap(), OriginState::Duplicate(_)));
    // It goes on by itself.
    let submit = copy.blocking_reserve().unwrap();
    let receipt = submit.submit(transaction("cp", Some(701), vec![])).unwrap().ack.blocking_wait().unwrap();
    assert_eq!(receipt.lsn, Lsn(701));
}

#[test]
fn a_damaged_snapshot_leaves_nothing_behind() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut file = Vec::new();
    filled(&from).snapshot(&mut file).unwrap();
    let state = to.path().join("state");
    for at in (0..file.len()).step_by(file.len() / 60) {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        assert!(journal::restore(&state, &mut &damaged[..]).is_err(), "byte {at}");
        assert!(journal::restore(&state, &mut &file[..at]).is_err(), "{at} bytes");
        let left: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["LOCK"]);
    }
    journal::restore(&state, &mut &file[..]).unwrap();
}
