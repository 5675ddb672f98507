//! The way in (skeleton).

use storage_schema::id::{Lsn, RecordHash};

use crate::error::AppendError;

/// A transaction that has its number and waits for the disk.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Its number.
    pub lsn: Lsn,
    /// Its acknowledgement to come.
    pub ack: Ack,
}

/// Proof of a durable record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The record.
    pub lsn: Lsn,
    /// Its hash.
    pub hash: RecordHash,
    /// When it was first known to be durable, nanoseconds since 1970-01-01 UTC.
    pub durable_wall_ns: u64,
}

/// An acknowledgement to come. Clones wait for the same one.
#[derive(Clone, Debug)]
pub struct Ack {}

impl Ack {
    /// The record's number.
    pub fn lsn(&self) -> Lsn {
        todo!()
    }

    /// The record's hash.
    pub fn hash(&self) -> RecordHash {
        todo!()
    }

    /// Waits until the record is durable, or known not to be.
    pub async fn wait(&self) -> Result<Receipt, AppendError> {
        todo!()
    }

    /// [`Ack::wait`] for threads; it must not be called from async code.
    pub fn blocking_wait(&self) -> Result<Receipt, AppendError> {
        todo!()
    }
}
