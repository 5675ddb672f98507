//! Where the store stands: opened, proven against the journal, brought up to date, rebuilt when it has to be, replaced while
//! the journal runs.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use storage_schema::id::{Lsn, StoreId};

use crate::checkpoint::{
    Checkpoint, CheckpointError, Entry, list_checkpoints, read_checkpoint, remove_unfinished, verify_checkpoint,
    write_checkpoint,
};
use crate::config::Config;
use crate::durable::Head;
use crate::error::{OpenError, ReadError, StoreError};
use crate::fold::Batch;
use crate::gate::Gate;
use crate::read::{Library, Records};
use crate::sources::Behind;
use crate::store::{LOADING, Put, Show, Store, Unproven};

/// The most that is folded together.
pub(crate) const BATCH_RECORDS_MAX: usize = 16_384;
pub(crate) const BATCH_BYTES_MAX: usize = 8 << 20;
/// How many records are read before the gate is asked again.
const STEP_RECORDS: usize = 64;
/// How many entries of a checkpoint go into the store at once.
const LOAD_ENTRIES: usize = 4096;
/// Where checkpoints are, in the state directory.
pub(crate) const CHECKPOINTS_DIR: &str = "checkpoints";

/// The store's place. Readers hold it still, and a fold waits for them; a reader who comes while it folds hurries it on. What is
/// here shows the state at its head: a store is away while it is between two states, and stays away if it does not reach the
/// second one.
#[derive(Debug)]
pub(crate) struct Shelf {
    path: PathBuf,
    store_id: StoreId,
    cache_bytes: u64,
    receipts_per_source: usize,
    checkpoints: PathBuf,
    store: RwLock<Option<Store>>,
    gate: Arc<Gate>,
}

/// Why a store was built anew, and what it knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rebuilt {
    pub(crate) reason: String,
    /// The record it showed, if that is beyond the journal's end.
    pub(crate) ahead_lsn: Option<Lsn>,
}

/// What is in the store's place, not yet held against the journal.
#[derive(Debug)]
pub(crate) struct Found {
    there: bool,
    store: Result<Unproven, StoreError>,
}

/// What opening found and did.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) rebuilt: Option<Rebuilt>,
    /// The record whose state was shown, if it was one's.
    pub(crate) shown_lsn: Option<Lsn>,
    /// How many records went into a store that was rebuilt.
    pub(crate) folded: u64,
    /// The records that the store is behind, if it was not.
    pub(crate) behind: Behind,
}

impl Shelf {
    /// An empty one.
    pub(crate) fn new(config: &Config, store_id: StoreId, gate: Arc<Gate>) -> Self {
        Self {
            path: config.state_dir.join("store"),
            store_id,
            cache_bytes: config.store_cache_bytes,
            receipts_per_source: config.receipts_per_source,
            checkpoints: config.state_dir.join(CHECKPOINTS_DIR),
            store: RwLock::new(None),
            gate,
        }
    }

    /// Looks what is in the store's place, and does `here` meanwhile: it takes no journal to do that.
    pub(crate) fn find<H>(&self, here: impl FnOnce() -> H) -> (Found, H) {
        let there = self.path.exists();
        let (store, here) = Store::open(&self.path, self.store_id, self.cache_bytes, self.receipts_per_source, here);
        (Found { there, store }, here)
    }

    /// Takes the store that was found, which [`Shelf::bring_up`] folds what is missing into; one that cannot be used is deleted
    /// and built anew before this returns. `show` is shown the resources that it had.
    pub(crate) fn open(&mut self, found: Found, library: &Library, show: &mut Show<'_>) -> Result<Opened, OpenError> {
        remove_unfinished(&self.checkpoints).map_err(|source| OpenError::Io {
            action: "clean up",
            path: self.checkpoints.clone(),
            source,
        })?;
        let (mut store, rebuilt, behind) = self.judge(found, library, show)?;
        let shown_lsn = (rebuilt.is_none() && store.is_whole()).then(|| store.head().lsn);
        let folded = match rebuilt {
            Some(_) => self.fold_until(&mut store, library, Lsn::LAST, |_, _| {})?,
            None => 0,
        };
        *self.store.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(store);
        Ok(Opened { rebuilt, shown_lsn, folded, behind })
    }

    /// Folds everything that is durable by now into the store that was opened, telling `progress` each record reached and how many
    /// bytes led there; returns how many records that were. Readers wait from before `begun` is called until it is done, so
    /// they never see less than what was durable when the journal was opened.
    pub(crate) fn bring_up(
        &self,
        library: &Library,
        begun: impl FnOnce(),
        progress: impl FnMut(Lsn, u64),
    ) -> Result<u64, ReadError> {
        let mut place = self.store.write().unwrap_or_else(PoisonError::into_inner);
        begun();
        let mut store = place.take().ok_or_else(|| self.absent())?;
        let folded = self.fold_until(&mut store, library, library.durable_lsn(), progress)?;
        *place = Some(store);
        Ok(folded)
    }

    /// Opens the store again after it has failed, and folds what is durable before anybody sees it: readers have seen it at
    /// `shown_lsn`. Returns the record it shows then, and how many bytes of records led from `shown_lsn` to there.
    pub(crate) fn reopen(&self, library: &Library, shown_lsn: Lsn) -> Result<(Lsn, u64), ReadError> {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = None;
        let (found, ()) = self.find(|| {});
        let (mut store, _, _) = self.judge(found, library, &mut |_| {})?;
        self.fold_until(&mut store, library, shown_lsn, |_, _| {})?;
        let mut bytes = 0;
        self.fold_until(&mut store, library, Lsn::LAST, |_, folded| bytes += folded)?;
        let head_lsn = store.head().lsn;
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store);
        Ok((head_lsn, bytes))
    }

    /// The store that was found, and the records that it is behind; or the beginning of a new one. It need not be whole.
    fn judge(
        &self,
        found: Found,
        library: &Library,
        show: &mut Show<'_>,
    ) -> Result<(Store, Option<Rebuilt>, Behind), ReadError> {
        let missing = !found.there && library.durable_lsn() > Lsn::ZERO;
        let rebuilt = |reason: String| Rebuilt { reason, ahead_lsn: None };
        let judged = found.store.map_err(|error| rebuilt(error.to_string())).and_then(|unproven| {
            if missing {
                return Err(rebuilt("it was missing".to_owned()));
            }
            let heads = unproven.heads();
            // The proof reads the store, and this the log.
            let (proven, behind) = unproven.prove(show, || match disagreement(heads, library) {
                Some(rebuilt) => Err(rebuilt),
                None => Ok(library.read_from(heads[0].lsn.next()).and_then(|mut records| Behind::read(&mut records))),
            });
            let store = proven.map_err(|error| rebuilt(error.to_string()))?;
            Ok((store, behind?))
        });
        let why = match judged {
            Ok((store, behind)) => return Ok((store, None, behind?)),
            Err(why) => why,
        };
        Store::delete(&self.path)?;
        let (found, ()) = self.find(|| {});
        let (store, ()) = found.store?.prove(&mut |_| {}, || {});
        let mut store = store?;
        let from = self.load_checkpoint(&mut store, library)?;
        let reason = &why.reason;
        tracing::warn!(path = %self.path.display(), reason, checkpoint_lsn = from.0, "rebuilding the store from the journal");
        Ok((store, Some(why), Behind::default()))
    }

    /// Fills an empty store from the newest checkpoint that can be used; returns its record, 0 if there is none.
    fn load_checkpoint(&self, store: &mut Store, library: &Library) -> Result<Lsn, ReadError> {
        for checkpoint in list_checkpoints(&self.checkpoints)?.iter().rev() {
            if checkpoint.lsn > library.durable_lsn() || checkpoint.lsn.next() < library.catalogue.oldest_lsn() {
                continue;
            }
            if let Err(error) = verify_checkpoint(&checkpoint.path, self.store_id) {
                tracing::error!(%error, "a checkpoint cannot be used; trying an older one");
                continue;
            }
            store.load(Vec::new(), LOADING)?;
            let mut entries = Vec::with_capacity(LOAD_ENTRIES);
            let mut owners = Owners { library, found: HashMap::new() };
            let head = read_checkpoint::<ReadError>(&checkpoint.path, self.store_id, |entry| {
                entries.push(Put::from(owners.complete(entry)));
                if entries.len() == LOAD_ENTRIES {
                    store.load(std::mem::take(&mut entries), LOADING)?;
                }
                Ok(())
            })?;
            store.load(entries, head)?;
            return Ok(checkpoint.lsn);
        }
        Ok(Lsn::ZERO)
    }

    /// Writes a checkpoint of what the store shows, unless there is one. Folding waits; appends go on, and come first.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, ReadError> {
        // Whoever makes one has time: it waits for a fold without hurrying it.
        let place = self.store.read().unwrap_or_else(PoisonError::into_inner);
        let store = place.as_ref().ok_or_else(|| self.absent())?;
        let there = list_checkpoints(&self.checkpoints)?.into_iter().find(|there| there.lsn == store.head().lsn);
        if let Some(there) = there {
            return Ok(there);
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.checkpoints).map_err(|source| ReadError::Io {
            action: "create",
            path: self.checkpoints.clone(),
            source,
        })?;
        write_checkpoint(&self.checkpoints, self.store_id, store.head(), &|| self.gate.pass(), |push| {
            store.export(push)
        })
    }

    /// The checkpoints there are, oldest first.
    pub(crate) fn checkpoints(&self) -> Result<Vec<Checkpoint>, CheckpointError> {
        list_checkpoints(&self.checkpoints)
    }

    /// Folds everything that is durable, telling `progress` each record reached and how many bytes led there; returns how many
    /// records that were.
    pub(crate) fn catch_up(&self, library: &Library, mut progress: impl FnMut(Lsn, u64)) -> Result<u64, ReadError> {
        let mut records = library.read_from(self.head_checked()?.next())?;
        let mut folded = 0;
        loop {
            let batch = self.next_batch(&mut records, Lsn::LAST)?;
            if batch.records() == 0 {
                return Ok(folded);
            }
            folded += batch.records() as u64;
            let bytes = batch.bytes as u64;
            let mut place = self.store.write().unwrap_or_else(PoisonError::into_inner);
            self.fold_in(&mut place, batch, &mut || self.gate.pass())?;
            drop(place);
            progress(Lsn(records.next_lsn().0 - 1), bytes);
        }
    }

    /// Takes the store, which comes back to its place if it is whole afterwards.
    fn fold_in(&self, place: &mut Option<Store>, batch: Batch, pass: &mut dyn FnMut()) -> Result<(), ReadError> {
        let mut store = place.take().ok_or_else(|| self.absent())?;
        let folded = store.fold(batch, pass);
        if store.is_whole() {
            *place = Some(store);
        }
        folded
    }

    /// Folds what is durable up to `last` into a store that nobody sees, telling `progress` as [`Shelf::catch_up`] does; returns
    /// how many records that were.
    fn fold_until(
        &self,
        store: &mut Store,
        library: &Library,
        last: Lsn,
        mut progress: impl FnMut(Lsn, u64),
    ) -> Result<u64, ReadError> {
        let mut records = library.read_from(store.head().lsn.next())?;
        let mut folded = 0;
        loop {
            let batch = self.next_batch(&mut records, last)?;
            if batch.records() == 0 {
                return Ok(folded);
            }
            folded += batch.records() as u64;
            let bytes = batch.bytes as u64;
            store.fold(batch, &mut || self.gate.pass())?;
            progress(store.head().lsn, bytes);
        }
    }

    /// The next records up to `last`, as many as are folded together.
    fn next_batch(&self, records: &mut Records, last: Lsn) -> Result<Batch, ReadError> {
        let mut batch = Batch::default();
        while batch.records() < BATCH_RECORDS_MAX && batch.bytes < BATCH_BYTES_MAX && records.next_lsn() <= last {
            if batch.records().is_multiple_of(STEP_RECORDS) {
                self.gate.pass();
            }
            let Some(record) = records.next_encoded() else { break };
            batch.add(record?.into_inner(), self.receipts_per_source)?;
        }
        Ok(batch)
    }

    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.with(Store::flush)
    }

    /// The record that the store shows; 0 while there is none.
    pub(crate) fn head(&self) -> Lsn {
        self.read().as_ref().map_or(Lsn::ZERO, |store| store.head().lsn)
    }

    /// Asks the store. It stands still meanwhile.
    pub(crate) fn with<T, E: From<StoreError>>(&self, question: impl FnOnce(&Store) -> Result<T, E>) -> Result<T, E> {
        question(self.read().as_ref().ok_or_else(|| self.absent())?)
    }

    fn head_checked(&self) -> Result<Lsn, StoreError> {
        self.with(|store| Ok(store.head().lsn))
    }

    fn absent(&self) -> StoreError {
        StoreError::Absent { path: self.path.clone() }
    }

    /// Waits for a fold, and has it hurry.
    fn read(&self) -> RwLockReadGuard<'_, Option<Store>> {
        match self.store.try_read() {
            Ok(store) => store,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let _hurry = self.gate.hurry();
                self.store.read().unwrap_or_else(PoisonError::into_inner)
            }
        }
    }
}

/// Finds the owners that a checkpoint of format version 1 does not name, in the records that it names.
struct Owners<'l> {
    library: &'l Library,
    /// Record → its source; empty if it is no longer kept.
    found: HashMap<Lsn, String>,
}

impl Owners<'_> {
    fn complete<'e>(&'e mut self, entry: Entry<'e>) -> Entry<'e> {
        let Entry::Resource { kind, name, changed_lsn, owner: "", encoded } = entry else { return entry };
        let library = self.library;
        let owner = self.found.entry(changed_lsn).or_insert_with(|| {
            let record = library.encoded_record(changed_lsn).ok();
            let archived = record.as_ref().and_then(|record| record.access().ok());
            archived.map(|archived| archived.transaction.origin.source.as_str().to_owned()).unwrap_or_default()
        });
        Entry::Resource { kind, name, changed_lsn, owner, encoded }
    }
}

/// Why a store is not this journal's, if it is not: each record that it names must be there, and be the same one.
fn disagreement([head, touched]: [Head; 2], library: &Library) -> Option<Rebuilt> {
    let durable: Head = **library.durable.borrow();
    if head == LOADING {
        return Some(Rebuilt { reason: "it was interrupted while it was rebuilt".to_owned(), ahead_lsn: None });
    }
    if touched.lsn > durable.lsn {
        let reason = format!("it knows record {}, the journal ends at {}", touched.lsn, durable.lsn);
        return Some(Rebuilt { reason, ahead_lsn: Some(touched.lsn) });
    }
    if head.lsn == Lsn::ZERO && library.catalogue.oldest_lsn() > Lsn::FIRST {
        // As when it was interrupted before the first entry of a checkpoint.
        return Some(Rebuilt {
            reason: "it is empty, and the journal's beginning is gone".to_owned(),
            ahead_lsn: None,
        });
    }
    for known in [head, touched] {
        let hash = if known.lsn == Lsn::ZERO {
            Head::EMPTY.hash
        } else {
            match library.encoded_record(known.lsn) {
                Ok(record) => record.hash(),
                // Retention may have been ahead of the store.
                Err(error) => return Some(Rebuilt { reason: error.to_string(), ahead_lsn: None }),
            }
        };
        if hash != known.hash {
            let reason = format!("it disagrees with the journal on record {}", known.lsn);
            return Some(Rebuilt { reason, ahead_lsn: None });
        }
    }
    None
}
