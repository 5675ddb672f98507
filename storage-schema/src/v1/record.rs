//! What the journal holds.

use rkyv::{Archive, Deserialize, Serialize};

use super::resource::{Resource, ResourceKey};
use crate::id::{BootId, Lsn, RecordHash};

/// A change of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "nearly all deltas are upserts")]
pub enum Delta {
    /// The resource is now as given, whether or not it was there before.
    Upsert(Resource),
    /// The resource is gone, whether or not it was there before.
    Remove(ResourceKey),
}

impl Delta {
    /// The key of the resource that changes.
    pub fn key(&self) -> ResourceKey {
        match self {
            Self::Upsert(resource) => resource.key(),
            Self::Remove(key) => key.clone(),
        }
    }
}

/// Who pushed a transaction, and which of theirs it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
pub struct Origin {
    /// The source's name, for example `istiod` or `cli`.
    pub source: String,
    /// Which life of the source: a newer incarnation supersedes the older ones.
    pub incarnation: u64,
    /// The source's own version of this transaction; pushed again, it changes nothing. `None`: not deduplicated.
    pub version: Option<u64>,
}

/// Deltas that take effect together: all of them are seen, or none.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Transaction {
    /// Who pushed it.
    pub origin: Origin,
    /// The changes, in order; of two for one resource, the later one holds.
    pub deltas: Vec<Delta>,
}

/// A transaction in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Record {
    /// The record's number.
    pub lsn: Lsn,
    /// What it says.
    pub transaction: Transaction,
    /// Wall clock at the append, nanoseconds since 1970-01-01 UTC; may step back between records.
    pub wall_ns: u64,
    /// `CLOCK_BOOTTIME` at the append, nanoseconds; compares only within one boot.
    pub monotonic_ns: u64,
    /// The boot in which it was appended.
    pub boot_id: BootId,
    /// The hash of the record before it; zeros before the first.
    pub previous_hash: RecordHash,
}
