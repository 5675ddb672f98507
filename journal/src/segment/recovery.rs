//! Recovery classification (skeleton).

use storage_schema::id::Lsn;

/// Why a log cannot be trusted from some record on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// A record whose CRC is wrong although a later one proves that it was acknowledged.
    #[error("record {lsn} is damaged, and later ones are not: run `holdfast journal repair`")]
    BadRecord {
        /// The record.
        lsn: Lsn,
    },
}
