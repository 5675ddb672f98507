//! Why the journal refuses something. Each message names what, where, and what to do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use storage_schema::codec::DecodeError;
use storage_schema::id::Lsn;
use storage_schema::resource::ResourceKey;

use crate::checkpoint::CheckpointError;
use crate::segment::recovery::Damage;

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting that cannot work.
    #[error("journal configuration: {field}: {reason}")]
    BadConfig {
        /// The field of [`crate::Config`].
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process has it open.
    #[error("{path} is in use by process {pid}: stop that one first", path = path.display())]
    InUse {
        /// The state directory.
        path: PathBuf,
        /// The process that holds the lock, 0 if it did not say.
        pid: u32,
    },
    /// A directory with other people's files in it.
    #[error("{path} is not empty and holds no journal: choose another state directory", path = path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
    /// There is nothing to read.
    #[error("{path} holds no journal: is it an agent's state directory?", path = path.display())]
    NoJournal {
        /// The directory.
        path: PathBuf,
    },
    /// The file that names the store is not readable.
    #[error("{path} holds no store id (32 hexadecimal digits); remove it to take the id from the segments", path = path.display())]
    BadIdentity {
        /// The file.
        path: PathBuf,
    },
    /// The log is not whole, and acknowledged records may be affected.
    #[error("{path}: {damage}", path = path.display())]
    Damaged {
        /// The file in which it shows.
        path: PathBuf,
        /// What was found, with the LSN.
        #[source]
        damage: Damage,
    },
    /// A record that is whole but not readable by this build.
    #[error("record {lsn} cannot be read: {source}")]
    Undecodable {
        /// The record.
        lsn: Lsn,
        /// Why not.
        #[source]
        source: DecodeError,
    },
    /// The store cannot be brought up to date from what the log still has.
    #[error("the store cannot be brought up to date: {source}")]
    Unreadable {
        /// Why not.
        #[source]
        source: ReadError,
    },
    /// The derived store could be neither opened nor rebuilt.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system said no.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
}

/// Why a transaction was not, or may not have been, made durable.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The encoded record exceeds the limit. Nothing was journaled.
    #[error("the transaction takes {bytes} bytes, more than record_bytes_max = {limit}: split it")]
    TooLarge {
        /// Its encoded size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The source may not write this. Nothing was journaled.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// This version of this source is in the journal already; [`crate::Journal::origin`] gives its receipt.
    #[error("version {version} of source `{origin}` is in the journal already")]
    Repeated {
        /// The source.
        origin: String,
        /// Its version.
        version: u64,
    },
    /// The queue is full (`try_reserve` alone; `reserve` waits). Nothing was journaled.
    #[error("the journal's queue is full: {records} records, {bytes} bytes are waiting for the disk")]
    QueueFull {
        /// How many records wait.
        records: usize,
        /// Their bytes.
        bytes: u64,
    },
    /// The disk refused. Records that were not acknowledged may or may not be found after a restart; pushing them again
    /// with the same version is safe.
    #[error("the journal accepts nothing: {0}")]
    Failed(Arc<WriteFailure>),
    /// The journal is being closed.
    #[error("the journal is closed")]
    Closed,
}

/// The write that ended a writer.
#[derive(Debug, thiserror::Error)]
#[error("{action} failed at record {lsn} ({path}): {source}", path = path.display())]
pub struct WriteFailure {
    /// What was tried.
    pub action: &'static str,
    /// The first record that is not durable because of it.
    pub lsn: Lsn,
    /// The segment file.
    pub path: PathBuf,
    /// The disk's answer.
    #[source]
    pub source: io::Error,
}

/// Why the journal cannot accept again yet.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The disk still refuses.
    #[error("the journal in {path} cannot go on yet: {source}", path = path.display())]
    Disk {
        /// The directory of the segments.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: io::Error,
    },
    /// The log or the store cannot be read.
    #[error("the journal cannot go on yet: {0}")]
    Read(#[from] ReadError),
}

/// Why a source may not write what it wants to.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OriginError {
    /// An older version than the source's last, and not one that is known.
    #[error("source `{origin}`: version {given} is older than its last one, {last}")]
    Stale {
        /// The source.
        origin: String,
        /// The version that was pushed.
        given: u64,
        /// The last version that was accepted.
        last: u64,
    },
    /// A life of the source that another one has superseded.
    #[error("source `{origin}`: incarnation {given} is fenced off by incarnation {current}")]
    Fenced {
        /// The source.
        origin: String,
        /// The incarnation that pushed.
        given: u64,
        /// The newest incarnation seen.
        current: u64,
    },
    /// The receipt of an earlier push could not be read.
    #[error("the receipts of source `{origin}` cannot be read: {cause}")]
    Unreadable {
        /// The source.
        origin: String,
        /// Why not.
        cause: Arc<StoreError>,
    },
}

/// Why something could not be read from the journal.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Retention has removed it.
    #[error("record {wanted} is no longer kept: the oldest one is {oldest_lsn}")]
    Compacted {
        /// The record asked for.
        wanted: Lsn,
        /// The oldest one that is still there.
        oldest_lsn: Lsn,
    },
    /// It is not there (yet).
    #[error("record {wanted} is not there: the last durable one is {durable_lsn}")]
    NotThere {
        /// The record asked for.
        wanted: Lsn,
        /// The last durable record.
        durable_lsn: Lsn,
    },
    /// The log is damaged at this record.
    #[error("{path}: {damage}", path = path.display())]
    Damaged {
        /// The segment file.
        path: PathBuf,
        /// What was found, with the LSN.
        #[source]
        damage: Damage,
    },
    /// A record that is whole but not readable by this build.
    #[error("record {lsn} cannot be read: {source}")]
    Undecodable {
        /// The record.
        lsn: Lsn,
        /// Why not.
        #[source]
        source: DecodeError,
    },
    /// A stored resource that is not readable.
    #[error("{key} cannot be read from the store: {source}")]
    UndecodableResource {
        /// The resource.
        key: ResourceKey,
        /// Why not.
        #[source]
        source: DecodeError,
    },
    /// The derived store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file system said no.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
    /// A checkpoint cannot be used, or could not be made.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Nothing that is kept leads to this state.
    #[error("the state at record {wanted} cannot be computed: the oldest that can is {oldest_lsn}")]
    NoState {
        /// The record asked for.
        wanted: Lsn,
        /// The oldest state that can be computed.
        oldest_lsn: Lsn,
    },
    /// The store does not follow the journal.
    #[error("the store is stuck at record {store_lsn}: {cause}")]
    Stuck {
        /// The record it shows.
        store_lsn: Lsn,
        /// Why it does not come any further.
        cause: Arc<ReadError>,
    },
    /// The journal was closed while waiting, or whoever asked has given up.
    #[error("the journal is closed")]
    Closed,
}

/// Catching up reads the log and writes the store; either may refuse.
impl From<ReadError> for OpenError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged { path, damage } => Self::Damaged { path, damage },
            ReadError::Undecodable { lsn, source } => Self::Undecodable { lsn, source },
            ReadError::Store(source) => Self::Store(source),
            ReadError::Io { action, path, source } => Self::Io { action, path, source },
            source => Self::Unreadable { source },
        }
    }
}

/// What is wrong with the derived store. It is rebuilt from the journal at the next open.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database said no.
    #[error("the store in {path} failed: {source}", path = path.display())]
    Database {
        /// Its directory.
        path: PathBuf,
        /// Its answer.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database gave up on its own files.
    #[error("the store in {path} cannot be opened: {panic}", path = path.display())]
    Panicked {
        /// Its directory.
        path: PathBuf,
        /// What it said.
        panic: String,
    },
    /// Its contents make no sense.
    #[error("the store in {path} is damaged: {what}", path = path.display())]
    Damaged {
        /// Its directory.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// It failed and could not be opened again yet.
    #[error("the store in {path} is not open", path = path.display())]
    Absent {
        /// Its directory.
        path: PathBuf,
    },
    /// Its directory could not be prepared.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
}
