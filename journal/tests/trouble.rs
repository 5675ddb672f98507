//! A disk in trouble: appends are refused with the cause, reads go on, and appends go on when the trouble is over.

mod sample;

use std::collections::BTreeSet;
use std::sync::Arc;

use journal::disk::simulated::{Faults, SimulatedDisk};
use journal::{AppendError, Config, Journal, OriginState, ResumeError};
use sample::{origin, service, transaction, upsert};
use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, ResourceKey};

fn open(dir: &tempfile::TempDir, disk: &SimulatedDisk) -> Journal {
    let disk = Arc::new(disk.clone());
    Journal::open(Config { segment_bytes: 64 << 10, disk, ..Config::new(dir.path()) }).unwrap()
}

fn push(journal: &Journal, version: u64) -> Result<journal::Receipt, AppendError> {
    let mut service = service(&format!("shop/svc-{version}"));
    service.hostname = "h".repeat(500);
    let submitted = journal.blocking_reserve()?.submit(transaction("cp", Some(version), vec![upsert(service)]))?;
    submitted.ack.blocking_wait()
}

/// Pushes until the journal refuses; returns the version that was refused first.
fn push_until_refused(journal: &Journal, from: u64) -> u64 {
    for version in from..from + 10_000 {
        if let Err(error) = push(journal, version) {
            let AppendError::Failed(cause) = &error else { panic!("{error}") };
            assert_eq!(cause.lsn, Lsn(version));
            return version;
        }
    }
    panic!("nothing was refused");
}

/// While the disk refuses: appends say why, everything that is durable can be read.
fn check_refusing(journal: &Journal, refused: u64, cause: &str) {
    for error in [push(journal, refused).unwrap_err(), journal.try_reserve().map(drop).unwrap_err()] {
        assert!(error.to_string().contains(cause), "{error}");
    }
    assert!(journal.failure().unwrap().to_string().contains(cause));
    let durable = refused - 1;
    assert_eq!(journal.watermarks().durable_lsn, Lsn(durable));
    let lsns: Vec<u64> = journal.read_from(Lsn(1)).unwrap().map(|record| record.unwrap().lsn.0).collect();
    assert_eq!(lsns, (1..=durable).collect::<Vec<_>>());
    journal.blocking_wait_stored(Lsn(durable)).unwrap();
    let key = ResourceKey::new(Kind::Service, format!("shop/svc-{durable}"));
    assert!(journal.resource(&key).unwrap().is_some());
}

/// After the trouble: the refused version is new, gets the number after the last durable record, and all of it stays.
fn check_going_on(journal: Journal, dir: &tempfile::TempDir, disk: &SimulatedDisk, refused: u64) {
    assert_eq!(journal.resume().unwrap().lsn, Lsn(refused - 1));
    assert!(journal.failure().is_none());
    assert!(matches!(journal.origin(&origin("cp", 1, refused)).unwrap(), OriginState::Fresh));
    for version in refused..refused + 200 {
        assert_eq!(push(&journal, version).unwrap().lsn, Lsn(version));
    }
    drop(journal);
    disk.power_cycle();
    let journal = open(dir, disk);
    assert_eq!(journal.open_report().durable_lsn, Lsn(refused + 199));
    assert_eq!(journal.open_report().lost, None);
    assert!(journal.verify(|_| {}).unwrap().wrong.is_empty());
}

#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::new(1);
    let journal = open(&dir, &disk);
    disk.set_faults(Faults { capacity_bytes: Some(200 << 10), ..Faults::default() });
    let refused = push_until_refused(&journal, 1);
    check_refusing(&journal, refused, "No space left on device");
    assert!(matches!(journal.resume(), Err(ResumeError::Disk { .. })), "there is no space yet");
    check_refusing(&journal, refused, "No space left on device");
    disk.set_faults(Faults::default());
    check_going_on(journal, &dir, &disk, refused);
}

#[test]
fn a_file_system_that_becomes_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::new(2);
    let journal = open(&dir, &disk);
    for version in 1..=20 {
        push(&journal, version).unwrap();
    }
    disk.set_faults(Faults { read_only: true, ..Faults::default() });
    assert_eq!(push_until_refused(&journal, 21), 21);
    check_refusing(&journal, 21, "Read-only file system");
    assert!(matches!(journal.resume(), Err(ResumeError::Disk { .. })), "it still is");
    check_refusing(&journal, 21, "Read-only file system");
    disk.set_faults(Faults::default());
    check_going_on(journal, &dir, &disk, 21);
}

#[test]
fn an_error_on_any_write_or_sync() {
    for ahead in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let disk = SimulatedDisk::new(ahead);
        let journal = open(&dir, &disk);
        for version in 1..=20 {
            push(&journal, version).unwrap();
        }
        disk.set_faults(Faults { eio_at: BTreeSet::from([disk.operations() + ahead]), ..Faults::default() });
        let refused = push_until_refused(&journal, 21);
        check_refusing(&journal, refused, "Input/output error");
        check_going_on(journal, &dir, &disk, refused);
    }
}

#[test]
fn an_error_that_comes_again_while_going_on() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::new(7);
    let journal = open(&dir, &disk);
    push(&journal, 1).unwrap();
    disk.set_faults(Faults { eio_at: BTreeSet::from([disk.operations()]), ..Faults::default() });
    assert_eq!(push_until_refused(&journal, 2), 2);
    for ahead in [0, 1, 2, 3, 5, 8] {
        disk.set_faults(Faults { eio_at: BTreeSet::from([disk.operations() + ahead]), ..Faults::default() });
        if journal.resume().is_ok() {
            break;
        }
        check_refusing(&journal, 2, "Input/output error");
    }
    disk.set_faults(Faults::default());
    check_going_on(journal, &dir, &disk, 2);
}

#[test]
fn an_error_at_the_first_record_of_all() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimulatedDisk::new(7);
    let journal = open(&dir, &disk);
    disk.set_faults(Faults { eio_at: BTreeSet::from([disk.operations() + 1]), ..Faults::default() });
    assert_eq!(push_until_refused(&journal, 1), 1);
    disk.set_faults(Faults::default());
    check_going_on(journal, &dir, &disk, 1);
}
