//! Folds that are interrupted between any two writes: what a kill leaves there at worst is copied, opened, and folded on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use storage_schema::codec::{decode_record, encode_record};
use storage_schema::record::{Cause, Delta, Event, Lease, Origin, Transaction};
use storage_schema::resource::Service;
use tokio::sync::watch;

use super::*;
use crate::durable::Durable;
use crate::fold::Batch;
use crate::gate::Gate;
use crate::read::{EncodedRecord, Library};
use crate::segment::open::{LogConfig, OpenLog, open_log};
use crate::shelf::Shelf;
use crate::{Config, Journal};

pub(crate) const RECORDS: u64 = 300;
const RECEIPTS_PER_SOURCE: usize = 60;

/// Everything in a store: tree and key → value.
pub(crate) type Contents = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

/// A closed journal of [`RECORDS`] records without a store.
pub(crate) struct Rig {
    dir: tempfile::TempDir,
    pub(crate) records: Vec<EncodedRecord>,
    store_id: StoreId,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(config(dir.path())).unwrap();
        for number in 1..=RECORDS {
            journal.blocking_reserve().unwrap().submit(transaction(number)).unwrap();
        }
        journal.durable().blocking_past(Lsn(RECORDS - 1), std::time::Duration::from_mins(1)).unwrap();
        let mut read = journal.read_from(Lsn::FIRST).unwrap();
        let records = std::iter::from_fn(|| read.next_encoded()).map(|record| record.unwrap().into_inner()).collect();
        let store_id = journal.store_id();
        drop(journal);
        fs::remove_dir_all(dir.path().join("store")).unwrap();
        Self { dir, records, store_id }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn store(&self, name: &str) -> Store {
        self.store_showing(name, &mut |_| {})
    }

    fn store_showing(&self, name: &str, show: &mut Show<'_>) -> Store {
        let (opened, ()) = Store::open(&self.path(name), self.store_id, 8 << 20, RECEIPTS_PER_SOURCE, || {});
        opened.unwrap().prove(show, || {}).0.unwrap()
    }

    /// The journal's records as they are read, up to record `last`. Keep the log while that is used.
    pub(crate) fn library(&self, last: u64) -> (Library, OpenLog) {
        let Config { disk, clock, segment_bytes, .. } = config(self.dir.path());
        let log = LogConfig {
            disk: Arc::clone(&disk),
            dir: self.path("journal"),
            store_id: self.store_id,
            segment_bytes,
            clock,
        };
        let log = open_log(&log).unwrap();
        let record = &self.records[usize::try_from(last).unwrap() - 1];
        let head = Durable::vouch(Head { lsn: record.lsn, hash: record.hash() });
        let durable = watch::Sender::new(head).subscribe();
        (Library { disk, store_id: self.store_id, catalogue: Arc::clone(&log.catalogue), durable }, log)
    }

    /// A shelf for the store in `store`, brought up to date, and how many records that took.
    pub(crate) fn shelf(&self, library: &Library, gate: &Arc<Gate>) -> (Shelf, Option<crate::shelf::Rebuilt>, u64) {
        let mut shelf = Shelf::new(&config(self.dir.path()), self.store_id, Arc::clone(gate));
        let (found, ()) = shelf.find(|| {});
        let opened = shelf.open(found, library, &mut |_| {}).unwrap();
        let behind = shelf.bring_up(library, || {}, |_, _| {}).unwrap();
        (shelf, opened.rebuilt, opened.folded + behind)
    }

    /// Folds all records as one batch; the store as it is on disk after each write and each step but the last is left in
    /// `copy-<n>`. Returns how many of those there are, and what is in the store at the end.
    pub(crate) fn interrupt(&self, records: &[EncodedRecord]) -> (usize, Contents) {
        // A failpoint is the whole process's.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut store = self.store("interrupted");
        let copies = Arc::new(AtomicUsize::new(0));
        let copy = {
            let (db, dir, copies) = (store.db.clone(), self.dir.path().to_owned(), Arc::clone(&copies));
            move || {
                db.flush().unwrap();
                let number = copies.fetch_add(1, Ordering::SeqCst);
                copy_dir(&dir.join("interrupted"), &dir.join(format!("copy-{number}")));
            }
        };
        fail::cfg_callback("journal.store.write.after", copy.clone()).unwrap();
        store.fold(batch(records), &mut || copy()).unwrap();
        fail::remove("journal.store.write.after");
        assert!(store.is_whole());
        (copies.load(Ordering::SeqCst), contents(&store))
    }
}

fn config(state_dir: &Path) -> Config {
    Config { segment_bytes: 64 << 10, receipts_per_source: RECEIPTS_PER_SOURCE, ..Config::new(state_dir) }
}

/// Three changes: resources of one and of several pieces come, grow, shrink and go.
fn transaction(number: u64) -> Transaction {
    let deltas = (0..3).map(|delta| {
        let name = format!("shop/svc-{}", (number * 11 + delta * 31) % 210);
        if (number + delta).is_multiple_of(5) {
            return Delta::Remove(ResourceKey::new(Kind::Service, name));
        }
        let bytes = if (number + delta).is_multiple_of(37) { 9000 } else { number * 13 % 300 };
        let hostname = "h".repeat(usize::try_from(bytes).unwrap());
        Delta::Upsert(Resource::Service(Service { name, hostname, ..Service::default() }))
    });
    // One that fills pages of receipts, some that have few, and one that does not number its transactions.
    let source = if number.is_multiple_of(2) { "busy".to_owned() } else { format!("source-{}", number / 2 % 100) };
    let version = (source != "source-0").then_some(number);
    let origin = Origin { source, incarnation: 1 + number / 100, version };
    // What else records say of their sources.
    let (cause, event) = match number % 7 {
        0 => (Cause::Sync, None),
        1 => (Cause::Expiry, None),
        2 => (Cause::Push, Some(Event::Leased(Lease { ttl_seconds: u32::try_from(number).unwrap() }))),
        _ => (Cause::Push, None),
    };
    Transaction { cause, event, ..Transaction::push(origin, deltas.collect()) }
}

fn batch(records: &[EncodedRecord]) -> Batch {
    let mut batch = Batch::default();
    for record in records {
        batch.add(record.clone(), RECEIPTS_PER_SOURCE).unwrap();
    }
    batch
}

fn contents(store: &Store) -> Contents {
    let Trees { resources, overflow, sources, receipts, meta } = &store.trees;
    let named = [
        ("resources", resources),
        ("overflow", overflow),
        ("sources", sources),
        ("receipts", receipts),
        ("meta", meta),
    ];
    let entries = named.into_iter().flat_map(|(name, tree)| tree.iter().map(move |entry| (name, entry.unwrap())));
    entries.map(|(name, (key, value))| ((name, key.to_vec()), value.to_vec())).collect()
}

/// Resources alone.
fn only_resources(contents: Contents) -> Contents {
    contents.into_iter().filter(|((tree, _), _)| matches!(*tree, "resources" | "overflow")).collect()
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn what_is_left_between_any_two_writes_is_folded_on() {
    let rig = Rig::new();
    let last = rig.records.last().unwrap();
    let (copies, whole) = rig.interrupt(&rig.records);
    assert!(copies > 150, "only {copies} places");
    let mut with_sources = 0;
    for copy in 0..copies {
        let show = &mut |stored: StoredResource<'_>| panic!("{} is no record's", stored.name);
        let mut store = rig.store_showing(&format!("copy-{copy}"), show);
        assert_eq!(store.resources_count(), store.trees.resources.len() as u64);
        assert_eq!((store.head(), store.touched().lsn), (Head::EMPTY, last.lsn));
        assert!(!store.is_whole(), "copy {copy}");
        with_sources += usize::from(!store.sources().unwrap().is_empty());
        store.fold(batch(&rig.records), &mut || {}).unwrap();
        assert!(store.is_whole());
        assert_eq!(contents(&store), whole, "copy {copy}");
        assert_eq!(store.resources_count(), store.trees.resources.len() as u64);
    }
    assert!(with_sources > 1 && copies - with_sources > 1, "{with_sources} of {copies}");
}

/// The batches of the second attempt need not be those of the first: it is not whole before it has passed where that was.
#[test]
fn it_is_folded_on_in_smaller_batches() {
    let rig = Rig::new();
    let (copies, whole) = rig.interrupt(&rig.records);
    for copy in (0..copies).step_by(3) {
        let mut store = rig.store(&format!("copy-{copy}"));
        for records in rig.records.chunks(70) {
            assert!(!store.is_whole(), "copy {copy}: {:?} {}", store.head(), store.touched().lsn);
            store.fold(batch(records), &mut || {}).unwrap();
        }
        assert!(store.is_whole());
        // How receipts are divided into pages follows from the batches, and with it how many old ones are still there.
        assert_eq!(only_resources(contents(&store)), only_resources(whole.clone()), "copy {copy}");
        check_sources(&store, &rig.records);
    }
}

/// The second attempt has more records, which change again what the first one had: nothing of that is left over.
#[test]
fn it_is_folded_on_together_with_later_records() {
    let rig = Rig::new();
    let (copies, _) = rig.interrupt(&rig.records[..200]);
    let mut expected = rig.store("expected");
    expected.fold(batch(&rig.records), &mut || {}).unwrap();
    for copy in 0..copies {
        let mut store = rig.store(&format!("copy-{copy}"));
        store.fold(batch(&rig.records), &mut || {}).unwrap();
        assert!(store.is_whole());
        assert_eq!(only_resources(contents(&store)), only_resources(contents(&expected)), "copy {copy}");
        check_sources(&store, &rig.records);
    }
}

/// Sources and their newest receipts are those of the records.
fn check_sources(store: &Store, records: &[EncodedRecord]) {
    let (mut states, mut receipts) = (BTreeMap::<String, SourceState>::new(), BTreeMap::<String, Vec<_>>::new());
    for record in records {
        let Transaction { origin: Origin { source, incarnation, version }, cause, event, .. } =
            record.decode().unwrap().transaction;
        let state = states.entry(source.clone()).or_default();
        *state = SourceState { incarnation, last_lsn: record.lsn, ..*state };
        state.last_version = version.or(state.last_version);
        if let Some(Event::Leased(Lease { ttl_seconds })) = event {
            state.ttl_seconds = Some(ttl_seconds);
        }
        match cause {
            Cause::Expiry => state.expired = Some(true),
            Cause::Sync => state.expired = Some(false),
            Cause::Push | Cause::Agent => {}
        }
        receipts.entry(source).or_default().extend(version.map(|version| (version, record.lsn, record.hash())));
    }
    assert_eq!(store.sources().unwrap(), states.into_iter().collect::<Vec<_>>());
    for (name, receipts) in &receipts {
        for (version, lsn, hash) in receipts.iter().rev().take(RECEIPTS_PER_SOURCE) {
            let receipt = store.receipt(name, *version).unwrap().unwrap();
            assert_eq!((receipt.lsn, receipt.hash), (*lsn, *hash));
        }
        let all: Vec<u64> = store
            .trees
            .receipts
            .range(receipts_key(name, 0)..=receipts_key(name, u64::MAX))
            .flat_map(|page| decode_receipts(&page.unwrap().1).unwrap())
            .map(|(version, _)| version)
            .collect();
        assert!(all.is_sorted_by(|one, next| one < next), "{name}: none twice: {all:?}");
        let kept = decode_source(&store.trees.sources.get(name).unwrap().unwrap()).unwrap().1;
        assert_eq!(kept, all.len() as u64, "{name}");
    }
}

#[test]
fn an_interrupted_store_that_knows_a_lost_record_is_rebuilt() {
    let rig = Rig::new();
    let (_, whole) = rig.interrupt(&rig.records);
    fs::rename(rig.path("copy-30"), rig.path("store")).unwrap();
    let (library, _log) = rig.library(RECORDS - 1);
    let (shelf, rebuilt, folded) = rig.shelf(&library, &Arc::default());
    let rebuilt = rebuilt.unwrap();
    assert_eq!((rebuilt.ahead_lsn, folded), (Some(Lsn(RECORDS)), RECORDS - 1));
    assert_eq!(rebuilt.reason, "it knows record 300, the journal ends at 299");
    drop(shelf);
    // With the whole journal it goes on from there.
    let (library, _log) = rig.library(RECORDS);
    let (shelf, rebuilt, folded) = rig.shelf(&library, &Arc::default());
    assert_eq!((rebuilt, folded), (None, 1));
    let resources = |contents: Contents| contents.into_iter().filter(|((tree, _), _)| *tree == "resources").collect();
    let is: Contents = shelf.with(|store| Ok::<_, StoreError>(resources(contents(store)))).unwrap();
    let expected: Contents = resources(whole);
    assert_eq!(is, expected);
}

#[test]
fn an_interrupted_store_that_knows_another_record_is_rebuilt() {
    let rig = Rig::new();
    let mut other = decode_record(&rig.records[rig.records.len() - 1].encoded).unwrap();
    other.wall_ns ^= 1;
    let mut records = rig.records.clone();
    *records.last_mut().unwrap() = EncodedRecord::new(other.lsn, encode_record(&other).into()).unwrap();
    rig.interrupt(&records);
    fs::rename(rig.path("copy-30"), rig.path("store")).unwrap();
    let (library, _log) = rig.library(RECORDS);
    let (_shelf, rebuilt, folded) = rig.shelf(&library, &Arc::default());
    let rebuilt = rebuilt.unwrap();
    assert_eq!((rebuilt.ahead_lsn, folded), (None, RECORDS));
    assert_eq!(rebuilt.reason, "it disagrees with the journal on record 300");
}

#[test]
fn an_interrupted_store_is_gone_on_with_when_the_journal_is_opened() {
    let rig = Rig::new();
    let (copies, whole) = rig.interrupt(&rig.records);
    fs::rename(rig.path(&format!("copy-{}", copies - 1)), rig.path("store")).unwrap();
    let journal = Journal::open(config(rig.dir.path())).unwrap();
    let report = journal.open_report();
    assert_eq!((report.folded, &report.store_rebuilt, report.lost), (RECORDS, &None, None));
    assert_eq!(report.shown_lsn, None);
    drop(journal);
    assert_eq!(contents(&rig.store("store")), whole);
}
