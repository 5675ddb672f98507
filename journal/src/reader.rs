//! The past, for those who only read: the log, its checkpoints and indexes, without the store.
//!
//! A [`Journal`](crate::Journal) hands out readers of itself while it runs; [`Reader::open`] reads a state directory that no
//! process has open, a copy for instance, and changes nothing in it that counts (missing indexes are made if it may write).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage_schema::id::{Lsn, ResourceId, StoreId};
use storage_schema::resource::ResourceKey;
use tokio::sync::watch;

use crate::checkpoint::{Checkpoint, list_checkpoints};
use crate::disk::RealDisk;
use crate::durable::Durable;
use crate::error::{OpenError, ReadError};
use crate::index;
use crate::lock::{Lock, lock_for_reading, read_identity};
use crate::read::{EncodedRecord, Library};
use crate::segment::open::{ReadLog, read_log, store_id_of_segments};
use crate::select::{Filter, Selection};
use crate::shelf::CHECKPOINTS_DIR;
use crate::state::{State, state_at};
use crate::stats::Stats;

/// A reader. Clones share what it holds.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(crate) library: Library,
    pub(crate) checkpoints: PathBuf,
    /// Of a directory that is only read.
    _lock: Option<Arc<Lock>>,
}

impl Reader {
    pub(crate) fn of(library: Library, checkpoints: PathBuf) -> Self {
        Self { library, checkpoints, _lock: None }
    }

    /// Opens the state directory of an agent that does not run. A log that ends in a torn write is read up to there; one that is
    /// damaged is refused as opening it would be.
    pub fn open(state_dir: &Path) -> Result<Self, OpenError> {
        match Self::open_undamaged(state_dir)? {
            (_, Some(damage)) => Err(damage),
            (reader, None) => Ok(reader),
        }
    }

    /// [`Reader::open`], which of a log that is damaged near its end reads what is before the damage, and says what is wrong.
    pub fn open_undamaged(state_dir: &Path) -> Result<(Self, Option<OpenError>), OpenError> {
        let lock = lock_for_reading(state_dir)?;
        let dir = state_dir.join("journal");
        let no_journal = || OpenError::NoJournal { path: state_dir.to_owned() };
        if !dir.is_dir() {
            return Err(no_journal());
        }
        let failed = |source| OpenError::Io { action: "list", path: dir.clone(), source };
        let store_id = match read_identity(state_dir)? {
            Some(store_id) => store_id,
            None => store_id_of_segments(&RealDisk, &dir).map_err(failed)?.ok_or_else(no_journal)?,
        };
        let ReadLog { catalogue, head, damage } = read_log(&RealDisk, &dir, store_id)?.ok_or_else(no_journal)?;
        let durable = watch::channel(Durable::vouch(head)).1;
        let library = Library { disk: Arc::new(RealDisk), store_id, catalogue, durable };
        let reader = Self { library, checkpoints: state_dir.join(CHECKPOINTS_DIR), _lock: lock.map(Arc::new) };
        Ok((reader, damage))
    }

    /// Which journal this is.
    pub fn store_id(&self) -> StoreId {
        self.library.store_id
    }

    /// The oldest record that is kept; `durable_lsn() + 1` when there is none.
    pub fn oldest_lsn(&self) -> Lsn {
        self.library.catalogue.oldest_lsn()
    }

    /// The last record.
    pub fn durable_lsn(&self) -> Lsn {
        self.library.durable_lsn()
    }

    /// The records from `first` on, up to the durable head at the time of each step.
    pub fn records(
        &self,
        first: Lsn,
    ) -> Result<impl Iterator<Item = Result<EncodedRecord, ReadError>> + Send + use<>, ReadError> {
        let mut records = self.library.read_from(first)?;
        Ok(std::iter::from_fn(move || records.next_encoded().map(|record| record.map(Durable::into_inner))))
    }

    /// The records from `first` to `last` (inclusive) that `filter` chooses.
    pub fn select(&self, first: Lsn, last: Lsn, filter: Filter) -> Result<Selection, ReadError> {
        Selection::new(self, first, last.min(self.durable_lsn()), filter)
    }

    /// One record, as it is stored.
    pub fn record(&self, lsn: Lsn) -> Result<EncodedRecord, ReadError> {
        self.library.encoded_record(lsn).map(Durable::into_inner)
    }

    /// The last record at which the wall clock showed `wall_ns` (since 1970-01-01 UTC) or less; the one before the oldest if
    /// there is none. Order is by LSN; should the clock have stepped back, the last moment at which it showed the time counts.
    pub fn lsn_at(&self, wall_ns: u64) -> Result<Lsn, ReadError> {
        index::lsn_at(&self.library, wall_ns)
    }

    /// The records from `from` to `to` (inclusive) that changed a resource, ascending.
    pub fn history(&self, key: &ResourceKey, from: Lsn, to: Lsn) -> Result<Vec<Lsn>, ReadError> {
        let mut found = self.histories(std::slice::from_ref(key), from, to)?;
        Ok(found.pop().expect("one answer for one key"))
    }

    /// [`Reader::history`] of several resources, one after the other, in one pass.
    pub fn histories(&self, keys: &[ResourceKey], from: Lsn, to: Lsn) -> Result<Vec<Vec<Lsn>>, ReadError> {
        let ids: Vec<ResourceId> = keys.iter().map(ResourceId::of).collect();
        self.changes(&ids, from, to)
    }

    /// [`Reader::histories`] of resources of which only the numbers are known, as stamps have them.
    pub fn changes(&self, resources: &[ResourceId], from: Lsn, to: Lsn) -> Result<Vec<Vec<Lsn>>, ReadError> {
        index::histories(&self.library, resources, from, to)
    }

    /// The state as it was after record `lsn`: the nearest checkpoint before it, and the log from there on.
    pub fn state_at(&self, lsn: Lsn) -> Result<State, ReadError> {
        self.state_at_while(lsn, || true)
    }

    /// [`Reader::state_at`], given up with [`ReadError::Closed`] as soon as `go_on` says no.
    pub fn state_at_while(&self, lsn: Lsn, go_on: impl Fn() -> bool) -> Result<State, ReadError> {
        state_at(&self.library, &self.checkpoints()?, lsn, &go_on)
    }

    /// The checkpoints there are, oldest first.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>, ReadError> {
        Ok(list_checkpoints(&self.checkpoints)?)
    }

    /// What there is.
    pub fn stats(&self) -> Result<Stats, ReadError> {
        let segments = self.library.catalogue.all();
        Ok(Stats {
            store_id: self.store_id(),
            oldest_lsn: self.oldest_lsn(),
            durable_lsn: self.durable_lsn(),
            segments: segments.len(),
            bytes: segments.iter().map(|segment| segment.end()).sum(),
            checkpoints: self.checkpoints()?,
            writing: None,
        })
    }
}
