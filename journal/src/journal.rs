//! The handle: what the rest of Holdfast sees of the journal.

use std::time::Duration;

use storage_schema::id::{Lsn, StoreId};
use storage_schema::record::{Origin, Record, Transaction};
use storage_schema::resource::{Kind, Resource, ResourceKey};

use crate::append::{Ack, Submitted};
use crate::config::Config;
use crate::durable::{Durable, Head};
use crate::error::{AppendError, OpenError, OriginError, ReadError};
use crate::read::{EncodedRecord, Records};

/// An open journal. Clones share it; the last one to go closes it: what was submitted is written and acknowledged, the
/// store is brought to rest, and the lock is released.
#[derive(Clone, Debug)]
pub struct Journal {}

/// What opening found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// Whether the journal was created just now.
    pub created: bool,
    /// The oldest record that is kept.
    pub oldest_lsn: Lsn,
    /// The last record.
    pub durable_lsn: Lsn,
    /// Bytes of a torn, never acknowledged tail that were cut.
    pub cut_bytes: u64,
    /// Records that were folded into the store to bring it up to date.
    pub folded: u64,
    /// Why the store was rebuilt, if it was.
    pub store_rebuilt: Option<String>,
}

/// How far the journal is. `appended_lsn ≥ durable_lsn ≥ store_lsn`, all inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The last record that has a number.
    pub appended_lsn: Lsn,
    /// The last record that is behind an fsync.
    pub durable_lsn: Lsn,
    /// The record whose state the store shows.
    pub store_lsn: Lsn,
    /// The oldest record that is kept; `durable_lsn + 1` when there is none.
    pub oldest_lsn: Lsn,
}

/// What the journal knows about a push before it happens.
#[derive(Debug)]
pub enum OriginState {
    /// New: it may be submitted.
    Fresh,
    /// In the journal already, or on its way there: here is the first push's acknowledgement.
    Duplicate(Ack),
}

/// A place in the queue.
#[derive(Debug)]
pub struct Permit {}

impl Permit {
    /// Gives the transaction the next LSN and queues it for the disk. Synchronous and brief: no I/O.
    pub fn submit(self, _transaction: &Transaction) -> Result<Submitted, AppendError> {
        todo!()
    }
}

/// A subscription to the durable head.
#[derive(Clone, Debug)]
pub struct DurableWatch {}

impl DurableWatch {
    /// The head as it is now.
    pub fn head(&self) -> Durable<Head> {
        todo!()
    }

    /// Waits until the head is past `lsn`; `None` when the journal is closed before that.
    pub async fn past(&mut self, _lsn: Lsn) -> Option<Durable<Head>> {
        todo!()
    }

    /// [`DurableWatch::past`] for threads; `None` also when `timeout` is over.
    pub fn blocking_past(&mut self, _lsn: Lsn, _timeout: Duration) -> Option<Durable<Head>> {
        todo!()
    }
}

/// A resource as the store has it, not decoded.
#[derive(Clone, Copy, Debug)]
pub struct StoredResource<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: &'a str,
    /// The record that changed it last.
    pub changed_lsn: Lsn,
    /// The encoded resource: for `storage_schema::codec::access_resource`.
    pub encoded: &'a [u8],
}

impl Journal {
    /// Opens the journal, creating it if it is not there: takes the lock, recovers the log, catches the store up.
    pub fn open(_config: Config) -> Result<Self, OpenError> {
        todo!()
    }

    /// What opening found and did.
    pub fn open_report(&self) -> &OpenReport {
        todo!()
    }

    /// Which journal this is.
    pub fn store_id(&self) -> StoreId {
        todo!()
    }

    /// How far it is.
    pub fn watermarks(&self) -> Watermarks {
        todo!()
    }

    /// A subscription to the durable head.
    pub fn durable(&self) -> DurableWatch {
        todo!()
    }

    /// Whether this push is new. Takes what is queued but not durable into account; call it under the lock that orders
    /// pushes, right before `submit`.
    pub fn origin(&self, _origin: &Origin) -> Result<OriginState, OriginError> {
        todo!()
    }

    /// The last version of a source that is in the journal or on its way there, with its incarnation.
    pub fn source(&self, _name: &str) -> Option<SourceState> {
        todo!()
    }

    /// A place in the queue, waited for while the queue is full.
    pub async fn reserve(&self) -> Result<Permit, AppendError> {
        todo!()
    }

    /// [`Journal::reserve`] for threads.
    pub fn blocking_reserve(&self) -> Result<Permit, AppendError> {
        todo!()
    }

    /// A place in the queue, or [`AppendError::QueueFull`] at once.
    pub fn try_reserve(&self) -> Result<Permit, AppendError> {
        todo!()
    }

    /// The records from `first` up to the durable head at the time of each step.
    pub fn read_from(&self, _first: Lsn) -> Result<Records, ReadError> {
        todo!()
    }

    /// One record, with the bytes it is stored as.
    pub fn encoded_record(&self, _lsn: Lsn) -> Result<Durable<EncodedRecord>, ReadError> {
        todo!()
    }

    /// One record.
    pub fn record(&self, _lsn: Lsn) -> Result<Durable<Record>, ReadError> {
        todo!()
    }

    /// Waits until the store shows at least `lsn`, so that one reads what one has written.
    pub async fn wait_stored(&self, _lsn: Lsn) -> Result<(), ReadError> {
        todo!()
    }

    /// [`Journal::wait_stored`] for threads.
    pub fn blocking_wait_stored(&self, _lsn: Lsn) -> Result<(), ReadError> {
        todo!()
    }

    /// A resource, with the record that changed it last, as of the store.
    pub fn resource(&self, _key: &ResourceKey) -> Result<Option<(Resource, Lsn)>, ReadError> {
        todo!()
    }

    /// All resources of a kind (or of all), in the order of kind and name, with the record that changed each last.
    pub fn resources(&self, _kind: Option<Kind>) -> impl Iterator<Item = Result<(Resource, Lsn), ReadError>> + use<> {
        std::iter::empty()
    }

    /// Shows every stored resource to `visit` without decoding it, in the order of kind and name, as of the LSN that is
    /// returned. The store stands still meanwhile; appends go on.
    pub fn for_each_encoded(&self, _visit: impl FnMut(StoredResource<'_>)) -> Result<Lsn, ReadError> {
        todo!()
    }
}

/// What is known about a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// The newest life of it that has written.
    pub incarnation: u64,
    /// Its last version, if it numbers its transactions.
    pub last_version: Option<u64>,
    /// The last record it wrote.
    pub last_lsn: Lsn,
}
