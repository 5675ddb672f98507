//! What the journal holds.

use core::fmt;

use rkyv::{Archive, Deserialize, Serialize};
use serde::{Deserialize as SerdeDeserialize, Serialize as SerdeSerialize};

use super::resource::{DrainMode, Resource, ResourceKey};
use crate::id::{BootId, Lsn, RecordHash};

pub use crate::v1::record::{ArchivedOrigin, Origin};

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

/// Deltas that take effect together: all of them are seen, or none.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Transaction {
    /// Who pushed it.
    pub origin: Origin,
    /// The changes, in order; of two for one resource, the later one holds.
    pub deltas: Vec<Delta>,
    /// Why it was written.
    pub cause: Cause,
    /// Whether the pusher took resources over by force that another source had pushed.
    pub take_over: bool,
    /// What happened, in a record that tells of an event. Such a record has no deltas: it changes no resource and no table.
    pub event: Option<Event>,
}

impl Transaction {
    /// Changes that somebody pushes.
    pub const fn push(origin: Origin, deltas: Vec<Delta>) -> Self {
        Self { origin, deltas, cause: Cause::Push, take_over: false, event: None }
    }
}

/// Why a record was written. The numbers are stored: they never change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Cause {
    /// Somebody pushed it.
    #[default]
    Push = 0,
    /// It is what a source's whole state differed by from what was here.
    Sync = 1,
    /// What it removes was not renewed in time.
    Expiry = 2,
    /// The agent itself has something to say.
    Agent = 3,
}

impl Cause {
    /// The cause as it is written everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Sync => "sync",
            Self::Expiry => "expiry",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that happened and that no table shows. The order of the variants is stored: new ones are added at the end.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase")]
pub enum Event {
    /// Connections to a backend that was gone were dealt with as the service says.
    Drained(Drained),
    /// The record's source has said how long what it owns stays when it is gone.
    Leased(Lease),
}

/// What became of connections to a backend that was gone.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drained {
    /// The service's name.
    pub service: String,
    /// The uid of the workload that backed it; empty: it was the service's waypoint.
    pub workload: String,
    /// How the service wanted it.
    pub mode: DrainMode,
    /// How many sockets were closed.
    pub closed: u32,
    /// How many were given another backend.
    pub reselected: u32,
}

/// How long what a source owns stays when the source is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lease {
    /// So many seconds; 0: for ever.
    pub ttl_seconds: u32,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained(Drained { service, workload, mode, closed, reselected }) => {
                write!(f, "drained Service {service} of ")?;
                match &**workload {
                    "" => f.write_str("its waypoint")?,
                    uid => write!(f, "Workload {uid}")?,
                }
                write!(f, " ({mode}): {closed} closed, {reselected} reselected")
            }
            Self::Leased(Lease { ttl_seconds: 0 }) => f.write_str("lease: none, what it owns stays"),
            Self::Leased(Lease { ttl_seconds }) => {
                write!(f, "lease: what it owns expires after {ttl_seconds} s without it")
            }
        }
    }
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
    /// Wall clock when its pusher asked for a place in the queue, nanoseconds since 1970-01-01 UTC: how much earlier than
    /// `wall_ns` is how long it waited. `None` in records of version 1.
    pub received_wall_ns: Option<u64>,
    /// Who pushed it, as the transport knows it: `uid=0 gid=0 pid=4711` of a unix socket's peer. `None` if not known.
    pub client: Option<String>,
}
