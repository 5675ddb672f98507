//! Holdfast's durable event log, and the current state that is derived from it.
//!
//! ```text
//!  origin?            submit                 group            one write,
//!  reserve ─► permit ───────► LSN, hash, ──────────► writer ─► one fdatasync ─► durable head ─► acks
//!  (waits while the queue     frame, place           thread         │                 │
//!   is full)                  in a segment                          ▼                 ▼
//!                             (under one lock)            journal/<first LSN>.seg   follower ─► store (sled):
//!                                                         the truth                 thread      state, sources
//!                                                             ▲                                 derived, lazy
//!                                                     readers, by LSN
//! ```
//!
//! **In.** A pusher asks [`Journal::origin`] whether its transaction is new, takes a place in the bounded queue
//! ([`Journal::reserve`]) and submits. The record gets its number, is chained to its predecessor by BLAKE3, and becomes a frame
//! at a place that is already decided. The writer thread takes everything that has gathered while it was at the disk: one
//! write, one fdatasync, then the durable head moves and all of it is acknowledged.
//!
//! **Out.** [`Journal::read_from`] reads what is durable, from any LSN on. [`Journal::resource`] and its companions read the
//! store, which follows in small steps that give way to the writer; [`Journal::wait_stored`] waits until it has caught up with
//! what one has written. [`Reader`] is all that needs no store, of a running journal or of a directory that nobody has open.
//!
//! **Failure.** A write or sync that fails is final: the writer stops, every queued push gets the error, and the cause is kept
//! ([`Journal::failure`]). Reads go on. [`Journal::resume`] opens the log again behind the last durable record.
//! [`segment::recovery`] holds the table of what the end of a log can look like and what is done about it.
//!
//! # Invariants
//!
//! * `ACKED_IS_DURABLE`: an ack, and a [`Durable`], exists only after the fdatasync that covers its record returned `Ok`.
//! * `DENSE`: LSNs have no gaps; record *n* holds the hash of record *n*−1.
//! * `WHOLE`: a transaction is one frame: a record is there whole, or not at all.
//! * `PREFIX`: what a crash leaves is a prefix of what was submitted, and no shorter than what was acknowledged.
//! * `NO_SILENT_LOSS`: damage to an acknowledged record is refused with its LSN, never cut. (The one case that cannot be told
//!   from a torn write, damage to the whole last group, is reported as `OpenReport::lost` when the store knows better.)
//! * `DERIVED`: the store can be deleted at any time; it equals the fold of the log up to its LSN or it is rebuilt.
//! * `ONCE`: a (source, version) is in the log at most once, however often it is pushed.
//! * `BOUNDED`: queue, group, record, receipts, the store's cache and its lag have limits.
//!
//! Architecture invariant: this crate knows no meaning of a resource; it validates nothing but sizes and origins.
//!
//! # Files
//!
//! ```text
//! <state dir>/           mode 0700
//!   LOCK                 flock; the holder's pid
//!   store-id             32 hexadecimal digits
//!   journal/*.seg        the log
//!   journal/*.idx        where to find what by time and resource; derived
//!   store/               sled
//!   checkpoints/*.ckpt   whole states
//!   cut/                 what a repair has cut off
//! ```

#![forbid(unsafe_code)]

mod append;
mod block_on;
mod checkpoint;
mod clock;
mod config;
pub mod disk;
mod durable;
mod error;
mod export;
mod fold;
mod follow;
mod gate;
mod import;
mod index;
mod journal;
mod keep;
mod lock;
mod read;
mod reader;
mod resources;
mod retention;
pub mod segment;
mod select;
mod shelf;
#[cfg(all(test, feature = "simulation"))]
mod simulation;
mod snapshot;
mod sources;
mod state;
mod stats;
mod store;
mod verify;
mod watch;
mod writer;

pub use append::{Ack, Permit, Receipt, Submitted};
pub use checkpoint::{Checkpoint, CheckpointError, CheckpointHeader, verify_checkpoint};
pub use clock::{Clock, Instant, SystemClock};
pub use config::Config;
pub use disk::{Disk, DiskFile, RealDisk};
pub use durable::{Durable, Head};
pub use error::{AppendError, OpenError, OriginError, ReadError, ResumeError, StoreError, WriteFailure};
pub use export::ExportError;
pub use export::jsonl::{export_jsonl, read_jsonl, write_line};
#[cfg(feature = "parquet")]
pub use export::parquet::{PARQUET_COLUMNS, ParquetColumn, ParquetExport, export_parquet};
pub use import::{ImportError, import_jsonl};
pub use journal::{DurableWatch, Journal, OpenReport, OriginState, PAGE_VISITS_MAX, ResourcePage, Watermarks};
pub use keep::Compacted;
pub use read::{EncodedRecord, Records};
pub use reader::Reader;
pub use resources::Resources;
pub use retention::{CheckpointPolicy, Retention};
pub use select::{Filter, Selection};
pub use snapshot::{Snapshot, SnapshotError, restore};
pub use sources::{Recollection, SourceState};
pub use state::State;
pub use stats::{Histogram, Stats, WriteStats};
pub use store::{OwnedResource, StoredResource};
pub use verify::{RepairReport, VerifyProgress, VerifyReport, Wrong, repair, verify};
pub use watch::RecordStream;

/// Names of the failpoints that bracket each write, fsync and segment creation, and each step of a store's fold.
pub const FAILPOINTS: &[&str] = &[
    "journal.segment.prepare.before",
    "journal.segment.prepare.after",
    "journal.segment.header.before",
    "journal.segment.rename.before",
    "journal.segment.rename.after",
    "journal.segment.named.after",
    "journal.write.before",
    "journal.write.after",
    "journal.fsync.before",
    "journal.fsync.after",
    "journal.ack.before",
    "journal.store.fold.before",
    "journal.store.write.after",
    "journal.store.step.after",
    "journal.store.fold.after",
    "journal.checkpoint.write.before",
    "journal.checkpoint.sync.after",
    "journal.checkpoint.rename.after",
    "journal.retention.unlink.before",
];
