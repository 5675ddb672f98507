//! Holdfast's durable event log.

#![forbid(unsafe_code)]

mod append;
mod clock;
mod config;
pub mod disk;
mod durable;
mod error;
mod journal;
mod read;
pub mod segment;

pub use append::{Ack, Receipt, Submitted};
pub use clock::{Clock, Instant, SystemClock};
pub use config::Config;
pub use durable::{Durable, Head};
pub use error::{AppendError, OpenError, OriginError, ReadError, StoreError, WriteFailure};
pub use journal::{DurableWatch, Journal, OpenReport, OriginState, Permit, SourceState, StoredResource, Watermarks};
pub use read::{EncodedRecord, Records};

/// Names of the failpoints that bracket each write, fsync, segment creation and store fold.
pub const FAILPOINTS: &[&str] = &[];
