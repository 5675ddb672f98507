//! How a service chooses a backend, and what becomes of connections to one that is gone.

use storage_schema::resource::{
    Affinity, Drain, DrainMode, LoadBalancing, LocalityMode, LocalityPreference, LocalityScope, Policy,
};

use super::Path;
use super::resource::known;
use crate::proto;
use crate::rejection::Violations;

pub(super) fn encode_policy(policy: Policy) -> proto::LoadBalancing {
    match policy {
        Policy::Random => proto::LoadBalancing::Random,
        Policy::Weighted => proto::LoadBalancing::Weighted,
        Policy::Maglev => proto::LoadBalancing::Maglev,
    }
}

pub(super) fn encode_locality_preference(locality: &LocalityPreference) -> Option<proto::LocalityPreference> {
    let mode = match locality.mode {
        LocalityMode::None => proto::LocalityMode::None,
        LocalityMode::Strict => proto::LocalityMode::Strict,
        LocalityMode::Failover => proto::LocalityMode::Failover,
    };
    let scope = |scope: &LocalityScope| match scope {
        LocalityScope::Network => proto::LocalityScope::Network,
        LocalityScope::Region => proto::LocalityScope::Region,
        LocalityScope::Zone => proto::LocalityScope::Zone,
        LocalityScope::Subzone => proto::LocalityScope::Subzone,
        LocalityScope::Node => proto::LocalityScope::Node,
        LocalityScope::Cluster => proto::LocalityScope::Cluster,
    };
    let routing_preference = locality.routing_preference.iter().map(|one| scope(one).into()).collect();
    (!locality.is_none()).then(|| proto::LocalityPreference { mode: mode.into(), routing_preference })
}

pub(super) fn encode_affinity(affinity: Affinity) -> proto::Affinity {
    proto::Affinity { timeout_seconds: affinity.timeout_seconds }
}

pub(super) fn decode_load_balancing(
    service: &Path<'_>,
    policy: i32,
    locality: Option<proto::LocalityPreference>,
    affinity: Option<proto::Affinity>,
    found: &mut Violations,
) -> Option<LoadBalancing> {
    let policy = known(&service.field("load_balancing"), policy, found).map(|policy| match policy {
        proto::LoadBalancing::Unspecified | proto::LoadBalancing::Random => Policy::Random,
        proto::LoadBalancing::Weighted => Policy::Weighted,
        proto::LoadBalancing::Maglev => Policy::Maglev,
    });
    let locality = match locality {
        None => Some(LocalityPreference::default()),
        Some(locality) => decode_locality_preference(&service.field("locality_preference"), locality, found),
    };
    let affinity = affinity.map(|proto::Affinity { timeout_seconds }| Affinity { timeout_seconds });
    Some(LoadBalancing { policy: policy?, locality: locality?, affinity })
}

fn decode_locality_preference(
    path: &Path<'_>,
    message: proto::LocalityPreference,
    found: &mut Violations,
) -> Option<LocalityPreference> {
    let mode = known(&path.field("mode"), message.mode, found).map(|mode| match mode {
        proto::LocalityMode::Unspecified | proto::LocalityMode::None => LocalityMode::None,
        proto::LocalityMode::Strict => LocalityMode::Strict,
        proto::LocalityMode::Failover => LocalityMode::Failover,
    });
    let scopes = &path.field("routing_preference");
    let routing_preference =
        found.list(scopes, message.routing_preference, |path, scope, found| match known(path, scope, found)? {
            proto::LocalityScope::Unspecified => found.note(path, "is required"),
            proto::LocalityScope::Network => Some(LocalityScope::Network),
            proto::LocalityScope::Region => Some(LocalityScope::Region),
            proto::LocalityScope::Zone => Some(LocalityScope::Zone),
            proto::LocalityScope::Subzone => Some(LocalityScope::Subzone),
            proto::LocalityScope::Node => Some(LocalityScope::Node),
            proto::LocalityScope::Cluster => Some(LocalityScope::Cluster),
        });
    Some(LocalityPreference { mode: mode?, routing_preference: routing_preference? })
}

/// A drain mode as a message.
pub(crate) fn encode_drain_mode(mode: DrainMode) -> proto::DrainMode {
    match mode {
        DrainMode::Keep => proto::DrainMode::Keep,
        DrainMode::Graceful => proto::DrainMode::Graceful,
        DrainMode::Terminate => proto::DrainMode::Terminate,
        DrainMode::Reselect => proto::DrainMode::Reselect,
    }
}

pub(super) fn encode_drain(drain: Drain) -> Option<proto::Drain> {
    let Drain { mode, timeout_seconds } = drain;
    (!drain.is_default()).then(|| proto::Drain { mode: encode_drain_mode(mode).into(), timeout_seconds })
}

pub(super) fn decode_drain(path: &Path<'_>, message: Option<proto::Drain>, found: &mut Violations) -> Option<Drain> {
    let proto::Drain { mode, timeout_seconds } = message.unwrap_or_default();
    let mode = known(&path.field("mode"), mode, found).map(|mode| match mode {
        proto::DrainMode::Unspecified | proto::DrainMode::Keep => DrainMode::Keep,
        proto::DrainMode::Graceful => DrainMode::Graceful,
        proto::DrainMode::Terminate => DrainMode::Terminate,
        proto::DrainMode::Reselect => DrainMode::Reselect,
    });
    Some(Drain { mode: mode?, timeout_seconds })
}
