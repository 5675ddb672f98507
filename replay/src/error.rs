//! Why a question about the past has no answer.

use applier::ApplyError;
use journal::ReadError;
use storage_schema::id::Lsn;

/// Why a question about the past has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] ReadError),
    /// The time is before what is kept.
    #[error("what was so then is not kept any more: the oldest record is {oldest_lsn}")]
    BeforeOldest {
        /// The oldest record.
        oldest_lsn: Lsn,
    },
    /// The tables of a state cannot be made.
    #[error("the tables of that state cannot be made: {0}")]
    Tables(#[from] ApplyError),
    /// A connection cannot have been decided after the moment at which it was made.
    #[error("epoch {epoch} is behind the moment that was given: that is record {at_lsn}")]
    EpochAhead {
        /// The epoch given.
        epoch: Lsn,
        /// The moment's record.
        at_lsn: Lsn,
    },
}
