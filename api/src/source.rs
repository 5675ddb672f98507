//! Who pushes, and what is theirs.

use storage_schema::id::Lsn;

use crate::journal::{decode_time, encode_time};
use crate::proto;
use crate::push::SourceState;

/// A source that the journal knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// What the journal has of it.
    pub state: SourceState,
    /// When its last record was appended, nanoseconds since 1970-01-01 UTC; `None` if the journal keeps that no more.
    pub last_wall_ns: Option<u64>,
    /// How many resources of each kind it owns, in the order of [`Kind::ALL`](storage_schema::resource::Kind::ALL).
    pub owned: [u64; 3],
}

/// Sources that were read together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcesPage {
    /// The sources, in the order of their names.
    pub sources: Vec<Source>,
    /// The name after which to go on; `None`: that was all.
    pub next: Option<String>,
}

/// A source as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSource {
    /// The source.
    pub source: Source,
    /// Whether it has a stream open.
    pub connected: bool,
}

pub(crate) fn encode_source(source: Source, connected: bool) -> proto::Source {
    let Source { name, state, last_wall_ns, owned: [services, workloads, nodes] } = source;
    let SourceState { incarnation, last_version, last_lsn } = state;
    proto::Source {
        name,
        incarnation,
        last_version,
        last_lsn: last_lsn.0,
        last_time: last_wall_ns.map(encode_time),
        services,
        workloads,
        nodes,
        connected,
    }
}

pub(crate) fn decode_source(source: proto::Source) -> ListedSource {
    let proto::Source { name, incarnation, last_version, last_lsn, last_time, services, workloads, nodes, connected } =
        source;
    let state = SourceState { incarnation, last_version, last_lsn: Lsn(last_lsn) };
    let last_wall_ns = last_time.as_ref().and_then(decode_time);
    ListedSource { source: Source { name, state, last_wall_ns, owned: [services, workloads, nodes] }, connected }
}
