//! Holdfast's durable event log.

#![forbid(unsafe_code)]

mod append;
mod block_on;
mod clock;
mod config;
pub mod disk;
mod durable;
mod error;
mod follow;
mod journal;
mod lock;
mod read;
pub mod segment;
mod shelf;
mod sources;
mod store;
mod writer;

pub use append::{Ack, Permit, Receipt, Submitted};
pub use clock::{Clock, Instant, SystemClock};
pub use config::Config;
pub use durable::{Durable, Head};
pub use error::{AppendError, OpenError, OriginError, ReadError, StoreError, WriteFailure};
pub use journal::{DurableWatch, Journal, OpenReport, OriginState, Resources, Watermarks};
pub use read::{EncodedRecord, Records};
pub use sources::SourceState;
pub use store::StoredResource;

/// Names of the failpoints that bracket each write, fsync, segment creation and store fold.
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
    "journal.store.fold.after",
];
