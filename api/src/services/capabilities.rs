//! What the server says about itself and about its caller.

use crate::access::{Caller, Sources};
use crate::layers::Limits;
use crate::{DELTAS_MAX, MESSAGE_BYTES_MAX, TEXT_BYTES_MAX, WAIT_TIMEOUT_MAX, proto};

/// The protocol's versions: packages of the proto.
const PROTOCOLS: [&str; 1] = ["holdfast.v1"];

/// What a client may find by name here instead of by trying.
const FEATURES: [&str; 15] = [
    "apply",
    "push",
    "sync",
    "dry_run",
    "preconditions",
    "expire",
    "list_filters",
    "list_sources",
    "journal",
    "watch_records",
    "watch_state",
    "replay",
    "namespaces",
    "health",
    "reflection",
];

pub(crate) fn answer(limits: &Limits, caller: &Caller, server_version: String) -> proto::GetCapabilitiesResponse {
    let count = |limit: usize| u64::try_from(limit).unwrap_or(u64::MAX);
    let sources = match &caller.sources {
        Sources::All => vec!["*".to_owned()],
        Sources::Only(names) => names.iter().cloned().collect(),
    };
    proto::GetCapabilitiesResponse {
        server_version,
        protocols: PROTOCOLS.map(str::to_owned).to_vec(),
        features: FEATURES.map(str::to_owned).to_vec(),
        limits: Some(proto::ServerLimits {
            message_bytes: count(MESSAGE_BYTES_MAX),
            deltas: count(DELTAS_MAX),
            text_bytes: count(TEXT_BYTES_MAX),
            wait_timeout: WAIT_TIMEOUT_MAX.try_into().ok(),
            request_timeout: limits.request_timeout.try_into().ok(),
            requests: count(limits.requests_per_client_max),
            requests_per_second: limits.requests_per_second_max.into(),
            streams: count(limits.streams_per_client_max),
            connections: count(limits.connections_per_client_max),
        }),
        caller: Some(proto::CallerInfo {
            name: caller.name.clone(),
            roles: caller.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            sources,
        }),
    }
}
