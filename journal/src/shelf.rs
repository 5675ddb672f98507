//! Where the store stands: opened, proven against the journal, rebuilt when it has to be, replaced while the journal runs.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use storage_schema::id::{Lsn, StoreId};

use crate::checkpoint::{
    Checkpoint, CheckpointError, list_checkpoints, read_checkpoint, remove_unfinished, verify_checkpoint,
    write_checkpoint,
};
use crate::config::Config;
use crate::durable::Head;
use crate::error::{OpenError, ReadError, StoreError};
use crate::fold::Batch;
use crate::read::Library;
use crate::store::{LOADING, OwnedEntry, Store};

/// The most that is folded in one transaction.
pub(crate) const BATCH_RECORDS_MAX: usize = 8192;
pub(crate) const BATCH_BYTES_MAX: usize = 8 << 20;
/// How many entries of a checkpoint go into the store at once.
const LOAD_ENTRIES: usize = 4096;
/// Where checkpoints are, in the state directory.
pub(crate) const CHECKPOINTS_DIR: &str = "checkpoints";

/// The store's place. Readers hold it still; a fold waits for them.
#[derive(Debug)]
pub(crate) struct Shelf {
    path: PathBuf,
    store_id: StoreId,
    cache_bytes: u64,
    receipts_per_source: usize,
    checkpoints: PathBuf,
    store: RwLock<Option<Store>>,
}

/// Why a store was built anew, and what it knew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rebuilt {
    pub(crate) reason: String,
    /// The record it showed, if that is beyond the journal's end.
    pub(crate) ahead_lsn: Option<Lsn>,
}

impl Shelf {
    /// Opens the store; one that cannot be used is deleted and begins empty. It is not caught up yet.
    pub(crate) fn open(config: &Config, library: &Library) -> Result<(Self, Option<Rebuilt>), OpenError> {
        let shelf = Self {
            path: config.state_dir.join("store"),
            store_id: library.store_id,
            cache_bytes: config.store_cache_bytes,
            receipts_per_source: config.receipts_per_source,
            checkpoints: config.state_dir.join(CHECKPOINTS_DIR),
            store: RwLock::new(None),
        };
        remove_unfinished(&shelf.checkpoints).map_err(|source| OpenError::Io {
            action: "clean up",
            path: shelf.checkpoints.clone(),
            source,
        })?;
        let rebuilt = shelf.open_store(library).map_err(OpenError::from)?;
        Ok((shelf, rebuilt))
    }

    /// Opens the store again after it has failed; returns the record it shows then.
    pub(crate) fn reopen(&self, library: &Library) -> Result<Lsn, ReadError> {
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.open_store(library)?;
        Ok(self.head())
    }

    fn open_store(&self, library: &Library) -> Result<Option<Rebuilt>, ReadError> {
        let there = self.path.exists();
        let open = || Store::open(&self.path, self.store_id, self.cache_bytes, self.receipts_per_source);
        let (mut store, rebuilt) = match open().map(|store| (disagreement(&store, library), store)) {
            Ok((None, store)) => (store, None),
            Ok((Some(rebuilt), store)) => {
                drop(store);
                Store::delete(&self.path)?;
                (open()?, Some(rebuilt))
            }
            Err(error) => {
                Store::delete(&self.path)?;
                (open()?, Some(Rebuilt { reason: error.to_string(), ahead_lsn: None }))
            }
        };
        let missing = !there && library.durable_lsn() > Lsn::ZERO;
        let rebuilt =
            rebuilt.or_else(|| missing.then(|| Rebuilt { reason: "it was missing".to_owned(), ahead_lsn: None }));
        if let Some(rebuilt) = &rebuilt {
            let from = self.load_checkpoint(&mut store, library)?;
            let reason = &rebuilt.reason;
            tracing::warn!(path = %self.path.display(), reason, checkpoint_lsn = from.0, "rebuilding the store from the journal");
        }
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = Some(store);
        Ok(rebuilt)
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
            let mut entries = Vec::with_capacity(LOAD_ENTRIES);
            let head = read_checkpoint::<ReadError>(&checkpoint.path, self.store_id, |entry| {
                entries.push(OwnedEntry::from(entry));
                if entries.len() == LOAD_ENTRIES {
                    store.load(&entries, LOADING)?;
                    entries.clear();
                }
                Ok(())
            })?;
            store.load(&entries, head)?;
            return Ok(checkpoint.lsn);
        }
        Ok(Lsn::ZERO)
    }

    /// Writes a checkpoint of what the store shows, unless there is one. Folding waits; appends go on.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, ReadError> {
        self.with(|store| {
            let there = list_checkpoints(&self.checkpoints)?.into_iter().find(|there| there.lsn == store.head().lsn);
            if let Some(there) = there {
                return Ok(there);
            }
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.checkpoints)
                .map_err(|source| ReadError::Io { action: "create", path: self.checkpoints.clone(), source })?;
            write_checkpoint(&self.checkpoints, self.store_id, store.head(), |push| store.export(push))
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
            let mut batch = Batch::default();
            while batch.records < BATCH_RECORDS_MAX && batch.bytes < BATCH_BYTES_MAX {
                let Some(record) = records.next_encoded() else { break };
                batch.add(&*record?, self.receipts_per_source)?;
            }
            if batch.records == 0 {
                return Ok(folded);
            }
            folded += batch.records as u64;
            let bytes = batch.bytes as u64;
            let mut store = self.store.write().unwrap_or_else(PoisonError::into_inner);
            store.as_mut().ok_or_else(|| self.absent())?.fold(batch)?;
            drop(store);
            progress(Lsn(records.next_lsn().0 - 1), bytes);
        }
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

    fn read(&self) -> RwLockReadGuard<'_, Option<Store>> {
        self.store.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a store that is whole is not this journal's, if it is not.
fn disagreement(store: &Store, library: &Library) -> Option<Rebuilt> {
    let head = store.head();
    let durable: Head = **library.durable.borrow();
    if head == LOADING {
        return Some(Rebuilt { reason: "it was interrupted while it was rebuilt".to_owned(), ahead_lsn: None });
    }
    if head.lsn > durable.lsn {
        let reason = format!("it shows record {}, the journal ends at {}", head.lsn, durable.lsn);
        return Some(Rebuilt { reason, ahead_lsn: Some(head.lsn) });
    }
    let hash = if head.lsn == Lsn::ZERO {
        Head::EMPTY.hash
    } else {
        match library.encoded_record(head.lsn) {
            Ok(record) => record.hash(),
            // Retention may have been ahead of the store.
            Err(error) => return Some(Rebuilt { reason: error.to_string(), ahead_lsn: None }),
        }
    };
    (hash != head.hash)
        .then(|| Rebuilt { reason: format!("it disagrees with the journal on record {}", head.lsn), ahead_lsn: None })
}
