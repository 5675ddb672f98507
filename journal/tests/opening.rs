//! What opening shows of the store while it proves it, and when that counts.

mod sample;

use std::fs;
use std::path::Path;

use journal::{Config, Journal};
use sample::{copy_dir, service, transaction, upsert};
use storage_schema::id::Lsn;
use storage_schema::record::Delta;

/// Name and encoded resource of everything that was shown.
type Shown = Vec<(String, Vec<u8>)>;

fn open(state: &Path) -> (Journal, Shown) {
    let mut shown = Shown::new();
    let journal = Journal::open_showing(Config::new(state), |stored| {
        shown.push((stored.name.to_owned(), stored.encoded.to_vec()));
    });
    (journal.expect("the journal opens"), shown)
}

fn visited(journal: &Journal) -> Shown {
    journal.blocking_wait_stored(journal.durable().head().lsn).expect("the store follows");
    let mut visited = Shown::new();
    let all = journal.for_each_encoded(|stored| visited.push((stored.name.to_owned(), stored.encoded.to_vec())));
    all.expect("the store can be read");
    visited
}

fn append(journal: &Journal, delta: Delta) {
    let permit = journal.blocking_reserve().expect("the journal accepts");
    let submitted = permit.submit(transaction("one", None, vec![delta])).expect("the journal accepts");
    submitted.ack.blocking_wait().expect("the disk works");
}

#[test]
fn what_is_shown_is_the_state_of_the_record_that_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (journal, shown) = open(&state);
    assert_eq!((journal.open_report().shown_lsn, shown.len()), (Some(Lsn::ZERO), 0));
    append(&journal, upsert(service("a/one")));
    // Several pieces in the store.
    let mut large = service("a/two");
    large.hostname = "x".repeat(40_000);
    append(&journal, upsert(large));
    let before = visited(&journal);
    drop(journal);
    copy_dir(&state.join("store"), &dir.path().join("store"));

    let (journal, shown) = open(&state);
    assert_eq!(journal.open_report().shown_lsn, Some(Lsn(2)));
    assert_eq!(shown, before);
    append(&journal, upsert(service("a/three")));
    drop(journal);

    // A store that was behind is shown as it was; the rest is in the log.
    fs::remove_dir_all(state.join("store")).expect("the store can be removed");
    fs::rename(dir.path().join("store"), state.join("store")).expect("an older store can be put back");
    let (journal, shown) = open(&state);
    assert_eq!((journal.open_report().shown_lsn, journal.open_report().folded), (Some(Lsn(2)), 1));
    assert_eq!(shown, before);
    assert_eq!(visited(&journal).len(), 3);
}

#[test]
fn a_store_that_is_rebuilt_has_shown_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let (journal, _) = open(&state);
    append(&journal, upsert(service("a/one")));
    drop(journal);
    fs::remove_dir_all(state.join("store")).expect("the store can be removed");
    let (journal, _) = open(&state);
    assert!(journal.open_report().store_rebuilt.is_some());
    assert_eq!(journal.open_report().shown_lsn, None);
    assert_eq!(visited(&journal).len(), 1);
}
