//! The entries of workloads that have a waypoint: where connections to their own addresses go.
//!
//! TCP connections on every port go to the waypoint, which learns where the client dialled and goes on from there. A service's
//! address or node port that names the port comes first. Nothing else is redirected: datagrams cannot carry what the waypoint has
//! to know, and a service that balances to the workload has a waypoint of its own, or none.

use std::net::IpAddr;

use storage_schema::id::ResourceId;
use storage_schema::map::{self, FrontendKey, key::address_words};
use storage_schema::resource::Protocol;

use crate::entry::{BackendKey, Family, ServiceEntry, ServiceKey};
use crate::model::Workload;

/// The waypoint of a workload, and the addresses that it stands before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirect {
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) waypoint: (IpAddr, u16),
}

const TCP: u8 = Protocol::Tcp.number();

/// The destinations that lead to a workload's waypoint.
pub(crate) fn frontends(id: ResourceId, workload: &Workload) -> impl Iterator<Item = (FrontendKey, ServiceKey)> {
    addresses(workload).iter().map(move |address| {
        let service = ServiceKey { service: id, port: 0, protocol: TCP, family: Family::of(*address) };
        (FrontendKey::new(*address, 0, TCP), service)
    })
}

/// The entries of `services` that these lead to: one for each family.
pub(crate) fn service_keys(id: ResourceId, workload: &Workload) -> impl Iterator<Item = ServiceKey> {
    let has = |family| addresses(workload).iter().any(|address| Family::of(*address) == family);
    let families = [Family::V4, Family::V6].into_iter().filter(move |family| has(*family));
    families.map(move |family| ServiceKey { service: id, port: 0, protocol: TCP, family })
}

/// One of these entries: the waypoint alone, for clients of its own family.
pub(crate) fn service_entry(key: ServiceKey, workload: &Workload) -> ServiceEntry {
    ServiceEntry {
        policy: map::Service::RANDOM,
        flags: map::Service::WAYPOINT | map::Service::WORKLOAD,
        waypoint: waypoint_key(key.service, workload).filter(|waypoint| waypoint.family == key.family),
        ..ServiceEntry::default()
    }
}

/// The entry of `backends` for a workload's waypoint, if any of the workload's clients can be sent to it.
pub(crate) fn waypoint_key(id: ResourceId, workload: &Workload) -> Option<BackendKey> {
    let (address, port) = workload.redirect.as_ref()?.waypoint;
    let family = Family::of(address);
    let dialled = service_keys(id, workload).any(|key| key.family == family);
    dialled.then_some(BackendKey { workload: id, port, family, is_waypoint: true })
}

/// The same, with its address.
pub(crate) fn waypoint(id: ResourceId, workload: &Workload) -> Option<(BackendKey, [u32; 4])> {
    let (address, _) = workload.redirect.as_ref()?.waypoint;
    waypoint_key(id, workload).map(|key| (key, address_words(address)))
}

fn addresses(workload: &Workload) -> &[IpAddr] {
    workload.redirect.as_ref().map_or(&[], |redirect| &redirect.addresses)
}
