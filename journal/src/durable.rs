//! `Durable<T>`: the proof, carried by the type, that something is behind a real fsync.
//!
//! Architecture invariant: only this crate makes one, and the applier takes nothing else, so that no code path leads from
//! an unsynced record to a kernel map. A test of another crate that needs one opens a real journal in a temporary
//! directory and appends to it.

use std::ops::Deref;

use storage_schema::id::{Lsn, RecordHash};

/// Something that a power cut cannot take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable<T>(T);

impl<T> Durable<T> {
    /// Vouches for `value`. Invariant: callers have seen the fdatasync that covers it succeed, or read it from below the
    /// durable LSN.
    pub(crate) const fn vouch(value: T) -> Self {
        Self(value)
    }

    /// What is durable.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Durable<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// The end of the log: the last record's number and hash. `Head::EMPTY` before the first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The last record's number.
    pub lsn: Lsn,
    /// The last record's hash, zeros before the first.
    pub hash: RecordHash,
}

impl Head {
    /// An empty journal.
    pub const EMPTY: Self = Self { lsn: Lsn::ZERO, hash: RecordHash([0; 32]) };
}
