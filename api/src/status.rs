//! What an agent says about itself.

use std::time::{Duration, SystemTime};

use storage_schema::id::{Epoch, Lsn, StoreId};
use storage_schema::resource::Kind;

use crate::convert::{Path, decode_kind, encode_kind};
use crate::proto;
use crate::rejection::Violations;

/// What the agent logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter {
    /// The tracing filter that holds now.
    pub now: String,
    /// The one that held before.
    pub before: String,
}

/// An agent's condition at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Which journal this is.
    pub store_id: StoreId,
    /// How long the agent has been ready.
    pub uptime: Duration,
    /// The last record that was given a number.
    pub appended_lsn: Lsn,
    /// The last record that survives a power cut.
    pub durable_lsn: Lsn,
    /// The last record that connections see.
    pub applied_lsn: Lsn,
    /// The last record that the derived store has taken in.
    pub stored_lsn: Lsn,
    /// Where the tables are.
    pub datapath: Datapath,
    /// What the last start had to do.
    pub restart: Restart,
    /// How full each table is.
    pub tables: Vec<TablePressure>,
    /// How many resources there are of each kind.
    pub resources: Vec<(Kind, u64)>,
    /// Why durable transactions are not being applied, if something is in the way.
    pub blocked_reason: Option<String>,
    /// Whether connections go on with pinned tables while the journal's state is still being loaded: pushes wait for it, and
    /// `tables` and `resources` are empty.
    pub loading: bool,
}

/// Where the tables are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatapathKind {
    /// In pinned BPF maps, read by programs in the kernel.
    Kernel,
    /// In the agent's memory: nothing is balanced.
    Memory,
}

impl DatapathKind {
    /// The kind as it is written in settings and reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Memory => "memory",
        }
    }
}

/// The state of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datapath {
    /// Where they are kept.
    pub kind: DatapathKind,
    /// The LSN whose state the kernel shows.
    pub active_epoch: Epoch,
    /// The set of pinned maps and programs in use; empty without a kernel datapath.
    pub generation: String,
    /// The cgroup whose processes are balanced; empty without a kernel datapath.
    pub cgroup: String,
    /// The pins that outlive the agent.
    pub pins: Vec<String>,
    /// Map entries written since the agent started.
    pub map_writes: u64,
    /// Generations that were built since the agent was ready.
    pub generations_built: u64,
    /// What other hands have changed in the kernel.
    pub drift: Drift,
}

/// What other hands have changed in the kernel, as far as it was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Links, pinned maps and pinned programs that were changed, since the agent started.
    pub changes: u64,
    /// When the tables were last compared with the journal.
    pub compared_at: Option<SystemTime>,
    /// Entries that this comparison looked at.
    pub entries_checked: u64,
    /// Entries that were not as the journal says, since the agent started.
    pub entries_differing: u64,
}

/// What the last start of the agent had to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restart {
    /// From the start of the process to readiness, microseconds.
    pub time_to_ready_us: u64,
    /// Map entries written to show the journal's state.
    pub entries_rewritten: u64,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePressure {
    /// The table's name.
    pub table: String,
    /// Entries in use.
    pub used: u64,
    /// Entries that are admitted at most.
    pub capacity: u64,
    /// Entries that the present generation's table has room for.
    pub room: u64,
}

/// A status message that cannot be read: the server speaks another version of the API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent's answer cannot be read: {field} is missing or unknown (is the agent of another version?)")]
pub struct UnreadableStatus {
    /// The first field that is wrong.
    pub field: &'static str,
}

/// A status as a message.
pub fn encode_status(status: Status) -> proto::GetStatusResponse {
    let Datapath { kind, active_epoch, generation, cgroup, pins, map_writes, generations_built, drift } =
        status.datapath;
    proto::GetStatusResponse {
        version: status.version,
        store_id: status.store_id.0.to_vec(),
        uptime: status.uptime.try_into().ok(),
        journal: Some(proto::JournalStatus {
            appended_lsn: status.appended_lsn.0,
            durable_lsn: status.durable_lsn.0,
            applied_lsn: status.applied_lsn.0,
            stored_lsn: status.stored_lsn.0,
        }),
        datapath: Some(proto::DatapathStatus {
            kind: match kind {
                DatapathKind::Kernel => proto::DatapathKind::Kernel,
                DatapathKind::Memory => proto::DatapathKind::Memory,
            }
            .into(),
            active_epoch: active_epoch.0,
            generation,
            cgroup,
            pins,
            map_writes,
            generations_built,
            drift: Some(proto::DriftStatus {
                changes: drift.changes,
                compared_at: drift.compared_at.map(Into::into),
                entries_checked: drift.entries_checked,
                entries_differing: drift.entries_differing,
            }),
        }),
        restart: Some(proto::RestartStatus {
            time_to_ready_us: status.restart.time_to_ready_us,
            entries_rewritten: status.restart.entries_rewritten,
        }),
        tables: status
            .tables
            .into_iter()
            .map(|TablePressure { table, used, capacity, room }| proto::TablePressure { table, used, capacity, room })
            .collect(),
        resources: status
            .resources
            .into_iter()
            .map(|(kind, count)| proto::KindCount { kind: encode_kind(kind).into(), count })
            .collect(),
        blocked_reason: status.blocked_reason.unwrap_or_default(),
        loading: status.loading,
    }
}

/// A message's status.
pub fn decode_status(message: proto::GetStatusResponse) -> Result<Status, UnreadableStatus> {
    let missing = |field| UnreadableStatus { field };
    let journal = message.journal.ok_or(missing("journal"))?;
    let datapath = message.datapath.ok_or(missing("datapath"))?;
    let restart = message.restart.ok_or(missing("restart"))?;
    // An older agent does not look for it.
    let drift = datapath.drift.unwrap_or_default();
    Ok(Status {
        version: message.version,
        store_id: StoreId(message.store_id.try_into().map_err(|_| missing("store_id"))?),
        uptime: message.uptime.and_then(|uptime| uptime.try_into().ok()).unwrap_or_default(),
        appended_lsn: Lsn(journal.appended_lsn),
        durable_lsn: Lsn(journal.durable_lsn),
        applied_lsn: Lsn(journal.applied_lsn),
        stored_lsn: Lsn(journal.stored_lsn),
        datapath: Datapath {
            kind: match proto::DatapathKind::try_from(datapath.kind) {
                Ok(proto::DatapathKind::Kernel) => DatapathKind::Kernel,
                Ok(proto::DatapathKind::Memory) => DatapathKind::Memory,
                Ok(proto::DatapathKind::Unspecified) | Err(_) => return Err(missing("datapath.kind")),
            },
            active_epoch: Epoch(datapath.active_epoch),
            generation: datapath.generation,
            cgroup: datapath.cgroup,
            pins: datapath.pins,
            map_writes: datapath.map_writes,
            generations_built: datapath.generations_built,
            drift: Drift {
                changes: drift.changes,
                compared_at: drift.compared_at.and_then(|at| at.try_into().ok()),
                entries_checked: drift.entries_checked,
                entries_differing: drift.entries_differing,
            },
        },
        restart: Restart { time_to_ready_us: restart.time_to_ready_us, entries_rewritten: restart.entries_rewritten },
        tables: message
            .tables
            .into_iter()
            .map(|proto::TablePressure { table, used, capacity, room }| TablePressure { table, used, capacity, room })
            .collect(),
        // A kind that a newer agent knows is left out of an older client's report, which is what it can say about it.
        resources: message
            .resources
            .into_iter()
            .filter_map(|entry| {
                let kind = decode_kind(&Path::root("kind"), entry.kind, &mut Violations::default())?;
                Some((kind, entry.count))
            })
            .collect(),
        blocked_reason: Some(message.blocked_reason).filter(|reason| !reason.is_empty()),
        loading: message.loading,
    })
}
