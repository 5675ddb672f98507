//! Who pushes, and what is theirs.

use std::time::Duration;

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
    /// If it has none, and what it owns does not stay for ever: after which time that expires.
    pub expires_in: Option<Duration>,
}

pub(crate) fn encode_source(listed: ListedSource) -> proto::Source {
    let ListedSource { source, connected, expires_in } = listed;
    let Source { name, state, last_wall_ns, owned: [services, workloads, nodes] } = source;
    let SourceState { incarnation, last_version, last_lsn, ttl, expired } = state;
    let encode = |duration: Duration| duration.try_into().ok();
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
        ttl: ttl.and_then(encode),
        expires_in: expires_in.and_then(encode),
        expired,
    }
}

pub(crate) fn decode_source(source: proto::Source) -> ListedSource {
    let proto::Source {
        name,
        incarnation,
        last_version,
        last_lsn,
        last_time,
        services,
        workloads,
        nodes,
        connected,
        ttl,
        expires_in,
        expired,
    } = source;
    let decode = |duration: prost_types::Duration| Duration::try_from(duration).ok();
    let state = SourceState { incarnation, last_version, last_lsn: Lsn(last_lsn), ttl: ttl.and_then(decode), expired };
    let last_wall_ns = last_time.as_ref().and_then(decode_time);
    let source = Source { name, state, last_wall_ns, owned: [services, workloads, nodes] };
    ListedSource { source, connected, expires_in: expires_in.and_then(decode) }
}
