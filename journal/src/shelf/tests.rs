//! Readers while the store is folded, and stores that come back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use super::*;
use crate::store::tests::{RECORDS, Rig};

/// Lets `shelf` fold until it waits at the gate between two steps, with the store away.
fn stop_within_a_fold(shelf: &Shelf, gate: &Gate) {
    loop {
        while gate.sleeping() == 0 {
            thread::yield_now();
        }
        if shelf.store.try_read().is_err() {
            return;
        }
        gate.open_for(std::time::Duration::ZERO);
        gate.shut();
    }
}

#[test]
fn a_reader_who_comes_while_it_folds_does_not_wait_for_the_gate() {
    let rig = Rig::new();
    let gate = Arc::new(Gate::default());
    let (nothing, _log) = rig.library(1);
    let (shelf, _, _) = rig.shelf(&nothing, &gate);
    let (library, _log) = rig.library(RECORDS);
    gate.shut();
    thread::scope(|scope| {
        let folding = scope.spawn(|| shelf.catch_up(&library, |_, _| {}).unwrap());
        stop_within_a_fold(&shelf, &gate);
        // Nobody opens the gate but the reader, who sees no state between two records.
        let (head, whole) = shelf.with(|store| Ok::<_, StoreError>((store.head().lsn, store.is_whole()))).unwrap();
        assert_eq!((head, whole), (Lsn(RECORDS), true));
        // What comes after that is in no hurry.
        while gate.sleeping() == 0 && !folding.is_finished() {
            thread::yield_now();
        }
        gate.leave_open();
        assert_eq!(folding.join().unwrap(), RECORDS - 1);
    });
}

#[test]
fn a_checkpoint_does_not_hurry_a_fold() {
    let rig = Rig::new();
    let gate = Arc::new(Gate::default());
    let (nothing, _log) = rig.library(1);
    let (shelf, _, _) = rig.shelf(&nothing, &gate);
    let (library, _log) = rig.library(RECORDS);
    gate.shut();
    thread::scope(|scope| {
        let folding = scope.spawn(|| shelf.catch_up(&library, |_, _| {}).unwrap());
        stop_within_a_fold(&shelf, &gate);
        let checkpoint = scope.spawn(|| shelf.checkpoint().unwrap());
        // Each goes on step by step: the fold first, the checkpoint behind it.
        while !folding.is_finished() || !checkpoint.is_finished() {
            gate.leave();
            gate.come_back(std::time::Duration::ZERO);
        }
        assert_eq!(checkpoint.join().unwrap().lsn, Lsn(RECORDS));
    });
}

#[test]
fn a_store_that_fails_within_a_fold_stays_away_until_it_is_whole() {
    let rig = Rig::new();
    let gate = Arc::new(Gate::default());
    let (begin, _log) = rig.library(RECORDS / 2);
    let (shelf, _, _) = rig.shelf(&begin, &gate);
    let (library, _log) = rig.library(RECORDS);
    let mut records = library.read_from(shelf.head().next()).unwrap();
    let batch = shelf.next_batch(&mut records, Lsn::LAST).unwrap();
    let bytes: usize = rig.records[rig.records.len() / 2..].iter().map(|record| record.encoded.len()).sum();
    let died = catch_unwind(AssertUnwindSafe(|| {
        let mut place = shelf.store.write().unwrap();
        let mut steps = 0;
        shelf.fold_in(&mut place, batch, &mut || {
            steps += 1;
            assert!(steps < 3, "the third step is not reached");
        })
    }));
    assert!(died.is_err());
    let absent = shelf.with(|store| Ok::<_, StoreError>(store.head())).unwrap_err();
    assert!(matches!(absent, StoreError::Absent { .. }), "{absent}");
    assert_eq!(shelf.reopen(&library, Lsn(RECORDS / 2)).unwrap(), (Lsn(RECORDS), bytes as u64));
    assert!(shelf.with(|store| Ok::<_, StoreError>(store.is_whole())).unwrap());
}
