//! A store that is behind its journal is brought up to date while the journal is used already.

mod sample;

use std::fs;
use std::path::Path;
use std::thread;

use journal::{Config, Journal, OriginState, Receipt, Recollection};
use sample::{copy_dir, service, transaction, upsert};
use storage_schema::id::Lsn;
use storage_schema::record::Origin;

/// The failpoint where a fold begins.
const FOLD: &str = "journal.store.fold.before";

fn append(journal: &Journal, version: u64, name: &str) -> Receipt {
    let permit = journal.blocking_reserve().expect("the journal accepts");
    let submitted = permit.submit(transaction("one", Some(version), vec![upsert(service(name))]));
    submitted.expect("the journal accepts").ack.blocking_wait().expect("the disk works")
}

/// A state directory with three records, whose store has seen the first one only; and the receipts.
fn behind(state: &Path, aside: &Path) -> Vec<Receipt> {
    let journal = Journal::open(Config::new(state)).expect("the journal opens");
    let mut receipts = vec![append(&journal, 1, "a/one")];
    drop(journal);
    copy_dir(&state.join("store"), aside);
    let journal = Journal::open(Config::new(state)).expect("the journal opens");
    receipts.extend([append(&journal, 2, "a/two"), append(&journal, 3, "a/three")]);
    drop(journal);
    fs::remove_dir_all(state.join("store")).expect("the store can be removed");
    fs::rename(aside, state.join("store")).expect("an older store can be put back");
    receipts
}

#[test]
fn appends_go_on_and_readers_wait() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let receipts = behind(&state, &dir.path().join("store"));

    fail::cfg(FOLD, "pause").unwrap();
    let journal = Journal::open(Config::new(&state)).expect("the journal opens");
    assert_eq!((journal.open_report().folded, &journal.open_report().store_rebuilt), (2, &None));
    assert_eq!(journal.watermarks().store_lsn, Lsn(1));
    // What sources have pushed is known from the log.
    let source = journal.source("one").expect("it is known");
    assert_eq!((source.last_version, source.last_lsn), (Some(3), Lsn(3)));
    assert_eq!(append(&journal, 4, "a/four").lsn, Lsn(4));

    let ask = |version| {
        let journal = journal.clone();
        let origin = Origin { source: "one".to_owned(), incarnation: 1, version: Some(version) };
        thread::spawn(move || journal.origin(&origin))
    };
    let pushed_again = ask(2);
    let reader = {
        let journal = journal.clone();
        thread::spawn(move || journal.resources_count())
    };
    // A version that was pushed in this life is answered without the store.
    assert!(matches!(ask(4).join().unwrap(), Ok(OriginState::Duplicate(_))));
    assert!(!pushed_again.is_finished() && !reader.is_finished(), "the store shows none of the records it is behind");

    fail::remove(FOLD);
    assert!(reader.join().unwrap().unwrap() >= 3);
    let Ok(OriginState::Duplicate(ack)) = pushed_again.join().unwrap() else { panic!("it is in the journal") };
    let again = ack.blocking_wait().expect("it is durable");
    assert_eq!((again.lsn, again.hash), (receipts[1].lsn, receipts[1].hash));
    for receipt in receipts {
        let Ok(Recollection::Accepted(ack)) = journal.recollect("one", receipt.lsn.0) else { panic!("accepted") };
        let again = ack.blocking_wait().expect("it is durable");
        assert_eq!((again.lsn, again.hash), (receipt.lsn, receipt.hash));
    }
    journal.blocking_wait_stored(Lsn(4)).expect("the store follows");
    assert_eq!(journal.resources_count().unwrap(), 4);
}

#[test]
fn a_journal_that_is_closed_at_once_leaves_a_store_that_is_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    behind(&state, &dir.path().join("store"));
    drop(Journal::open(Config::new(&state)).expect("the journal opens"));
    let journal = Journal::open(Config::new(&state)).expect("the journal opens");
    assert_eq!((journal.open_report().folded, journal.open_report().shown_lsn), (0, Some(Lsn(3))));
}

#[test]
fn a_store_that_fails_meanwhile_is_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    behind(&state, &dir.path().join("store"));
    fail::cfg(FOLD, "1*return").unwrap();
    let journal = Journal::open(Config::new(&state)).expect("the journal opens");
    assert_eq!(append(&journal, 4, "a/four").lsn, Lsn(4));
    while journal.watermarks().store_lsn < Lsn(4) {
        // It may say that it is stuck, until it has been opened again.
        let _ = journal.blocking_wait_stored(Lsn(4));
        thread::yield_now();
    }
    assert_eq!(journal.resources_count().unwrap(), 4);
}
