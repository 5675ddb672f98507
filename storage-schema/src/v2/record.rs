//! What the journal holds.

use rkyv::{Archive, Deserialize, Serialize};

use crate::id::{BootId, Lsn, RecordHash};
use crate::v1;

pub use v1::record::{ArchivedDelta, ArchivedOrigin, ArchivedTransaction, Delta, Origin, Transaction};

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
    /// Wall clock when its pusher asked for a place in the queue, nanoseconds since 1970-01-01 UTC: how much earlier than
    /// `wall_ns` is how long it waited. `None` in records of version 1.
    pub received_wall_ns: Option<u64>,
    /// Who pushed it, as the transport knows it: `uid=0 gid=0 pid=4711` of a unix socket's peer. `None` if not known.
    pub client: Option<String>,
}

/// The upcast.
impl From<v1::record::Record> for Record {
    fn from(record: v1::record::Record) -> Self {
        let v1::record::Record { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash } = record;
        Self { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns: None, client: None }
    }
}

/// The way back; what version 1 cannot say is the error.
impl TryFrom<Record> for v1::record::Record {
    type Error = &'static str;

    fn try_from(record: Record) -> Result<Self, &'static str> {
        let Record { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns, client } =
            record;
        match (received_wall_ns, client) {
            (None, None) => Ok(Self { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash }),
            (Some(_), _) => Err("received_wall_ns"),
            (None, Some(_)) => Err("client"),
        }
    }
}
