//! From resources to table entries: pure functions.
//!
//! Nothing here remembers anything. The entries of a service or workload follow from it, its members and the services it
//! backs; how the tables looked before does not matter.

use std::net::IpAddr;

use storage_schema::id::ResourceId;
use storage_schema::map::{self, FrontendKey, key::address_words};
use storage_schema::resource::{Kind, NoEndpoints, Policy, Protocol, WorkloadStatus};

use crate::both::both;
use crate::entry::{BackendKey, Changes, Family, ServiceEntry, ServiceKey};
use crate::model::{Model, Service, Workload};
use crate::{direct, place, selection};

/// The destinations that lead to a service, on a node with these addresses.
pub fn frontends(
    id: ResourceId,
    service: &Service,
    node: &[IpAddr],
) -> impl Iterator<Item = (FrontendKey, ServiceKey)> {
    let of_service = service.addresses.iter().flat_map(move |address| {
        ports(service).map(move |(port, protocol)| (FrontendKey::new(*address, port, protocol), port))
    });
    let of_node = node.iter().flat_map(move |address| {
        let ports = service.ports.iter().filter(|port| port.node_port != 0);
        ports.map(move |port| (FrontendKey::new(*address, port.node_port, port.protocol.number()), port.port))
    });
    of_service.chain(of_node).map(move |(key, port)| {
        let service = ServiceKey { service: id, port, protocol: key.protocol, family: Family::of(key.ip()) };
        (key, service)
    })
}

/// The service ports of a service: one for each port and family that it may be reached over.
pub fn service_keys(id: ResourceId, service: &Service) -> impl Iterator<Item = ServiceKey> {
    families(service).flat_map(move |family| {
        ports(service).map(move |(port, protocol)| ServiceKey { service: id, port, protocol, family })
    })
}

/// Ports and protocols; port 0 is every other port.
pub(crate) fn ports(service: &Service) -> impl Iterator<Item = (u16, u8)> {
    let every_other = Protocol::ALL.into_iter().filter(|_| service.all_ports).map(|protocol| (0, protocol.number()));
    service.ports.iter().map(|port| (port.port, port.protocol.number())).chain(every_other)
}

/// The entry of a service port, with the backends that may be chosen: of the members that the preference of locality lets
/// choose, the healthy ones, or, if there is none, those that are terminating. With a waypoint these are for its own connections,
/// and all others go to it, those of its own family: no client's connection goes round it.
pub fn service_entry(model: &Model, key: ServiceKey, service: &Service) -> ServiceEntry {
    let no_endpoints = match service.no_endpoints {
        None => 0,
        Some(NoEndpoints::Pass) => map::Service::NO_ENDPOINTS_PASS,
        Some(NoEndpoints::Refuse) => map::Service::NO_ENDPOINTS_REFUSE,
    };
    let flags = no_endpoints | if service.accelerate { map::Service::ACCELERATE } else { 0 };
    let flags = flags | if service.waypoint.is_some() { map::Service::WAYPOINT } else { 0 };
    let waypoint = waypoint_key(key.service, service).filter(|waypoint| waypoint.family == key.family);
    if service.waypoint.is_some() && waypoint.is_none() {
        return ServiceEntry { policy: map::Service::RANDOM, flags, ..ServiceEntry::default() };
    }
    let members = choosable(model, key, service);
    let policy = selection::policy_number(service.policy);
    let weights = match service.policy {
        Policy::Weighted => members.iter().map(|(_, workload)| workload.weight.max(1)).collect(),
        Policy::Random | Policy::Maglev => Vec::new(),
    };
    let table_slots = match service.policy {
        Policy::Maglev => selection::table_slots(model.members_count(key.service)),
        Policy::Random | Policy::Weighted => 0,
    };
    let endpoints = members.into_iter().map(|(endpoint, _)| endpoint).collect();
    let affinity = match service.policy {
        Policy::Maglev => 0,
        Policy::Random | Policy::Weighted => service.affinity,
    };
    ServiceEntry { policy, flags, affinity, waypoint, endpoints, weights, table_slots }
}

/// The members of a service port that connections may go to, in the order of their keys.
fn choosable<'m>(model: &'m Model, key: ServiceKey, service: &Service) -> Vec<(BackendKey, &'m Workload)> {
    let here = model.here();
    let with_status = |status: WorkloadStatus| -> Vec<(BackendKey, &Workload)> {
        let members = model.members(key.service).filter(|(_, workload)| workload.status == status);
        let reachable = members.filter_map(|(id, workload)| {
            workload.address(key.family)?;
            let port = workload.target_port(key, service)?;
            Some((BackendKey { workload: id, port, family: key.family, is_waypoint: false }, workload))
        });
        let mut members = place::prefer(reachable.collect(), &service.locality, &here, |(_, workload)| workload.place);
        // A weight of 0 is no share, unless nobody has one.
        if service.policy == Policy::Weighted && members.iter().any(|(_, workload)| workload.weight > 0) {
            members.retain(|(_, workload)| workload.weight > 0);
        }
        members
    };
    let healthy = with_status(WorkloadStatus::Healthy);
    if healthy.is_empty() { with_status(WorkloadStatus::Terminating) } else { healthy }
}

/// The most slots that the runs of a service with this many members take.
pub fn slots_max(id: ResourceId, service: &Service, members: usize) -> u64 {
    let each = u64::from(service.waypoint.is_some()) + selection::slots_max(service.policy, members);
    service_keys(id, service).count() as u64 * each
}

/// The entry of `backends` for a service's waypoint, if it has one that any of its clients can be sent to.
pub fn waypoint_key(id: ResourceId, service: &Service) -> Option<BackendKey> {
    let (address, port) = service.waypoint?;
    let family = Family::of(address);
    let dialled = families(service).any(|own| own == family);
    dialled.then_some(BackendKey { workload: id, port, family, is_waypoint: true })
}

/// The entry of `backends` for a service's waypoint, with its address.
pub fn waypoint(id: ResourceId, service: &Service) -> Option<(BackendKey, [u32; 4])> {
    let (address, _) = service.waypoint?;
    waypoint_key(id, service).map(|key| (key, address_words(address)))
}

/// The socket addresses at which a workload serves, given the services it backs, each once, in order.
pub fn backend_keys<'m>(
    id: ResourceId,
    workload: &Workload,
    service: impl Fn(ResourceId) -> Option<&'m Service>,
) -> Vec<BackendKey> {
    let mut keys = Vec::new();
    for (backed, _) in workload.backings.iter() {
        let Some(service) = service(backed) else { continue };
        for key in service_keys(backed, service) {
            if workload.address(key.family).is_some()
                && let Some(port) = workload.target_port(key, service)
            {
                keys.push(BackendKey { workload: id, port, family: key.family, is_waypoint: false });
            }
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// At how many ports the members of a service serve it, over IPv4 and over IPv6: those that say nothing about ports.
pub(crate) fn ports_of_members(id: ResourceId, service: &Service) -> [u64; 2] {
    let mut ports: Vec<_> =
        service_keys(id, service).filter_map(|key| Some((key.family, service.target_port(key)?))).collect();
    ports.sort_unstable();
    ports.dedup();
    [Family::V4, Family::V6].map(|family| ports.iter().filter(|(of, _)| *of == family).count() as u64)
}

/// The backends at which a service's members serve it, and its waypoint, with their addresses. One may be there twice.
pub(crate) fn backends_of_service(model: &Model, id: ResourceId, service: &Service) -> Vec<(BackendKey, [u32; 4])> {
    let keys: Vec<ServiceKey> = service_keys(id, service).collect();
    let of_member = |(member, workload): (ResourceId, &Workload)| {
        let keys = keys.iter().filter_map(move |key| {
            let address = backend_address(workload, key.family)?;
            let port = workload.target_port(*key, service)?;
            Some((BackendKey { workload: member, port, family: key.family, is_waypoint: false }, address))
        });
        keys.collect::<Vec<_>>()
    };
    model.members(id).flat_map(of_member).chain(waypoint(id, service)).collect()
}

/// The address that a backend's entry holds.
pub fn backend_address(workload: &Workload, family: Family) -> Option<[u32; 4]> {
    workload.address(family).map(address_words)
}

/// Everything that the tables shall hold for a model, and nothing besides.
pub fn everything(model: &Model) -> Changes {
    let node = Some(model.node_entry());
    let entries = model.count(Kind::Workload);
    // Maps are collected whole: that sorts once and builds them from one end to the other.
    let (backends, services) = both(
        entries,
        || backends(model).map(|(key, address)| (key, Some(address))).collect(),
        || services(model).map(|(key, entry)| (key, Some(entry))).collect(),
    );
    let frontends = all_frontends(model).map(|(frontend, key)| (frontend, Some(key))).collect();
    Changes { frontends, services, backends, node }
}

/// All destinations, with the service ports that they lead to.
pub(crate) fn all_frontends(model: &Model) -> impl Iterator<Item = (FrontendKey, ServiceKey)> {
    let of_services = model.services().flat_map(|(id, service)| frontends(id, service, model.node_addresses()));
    of_services.chain(model.redirected().flat_map(|(id, workload)| direct::frontends(id, workload)))
}

/// All entries of `services`.
fn services(model: &Model) -> impl Iterator<Item = (ServiceKey, ServiceEntry)> {
    let of_services = model.services().flat_map(move |(id, service)| {
        service_keys(id, service).map(move |key| (key, service_entry(model, key, service)))
    });
    let of_workloads = model.redirected().flat_map(|(id, workload)| {
        direct::service_keys(id, workload).map(move |key| (key, direct::service_entry(key, workload)))
    });
    of_services.chain(of_workloads)
}

/// All backends, with their addresses.
fn backends(model: &Model) -> impl Iterator<Item = (BackendKey, [u32; 4])> {
    let of = |(id, workload)| {
        let keys = backend_keys(id, workload, |id| model.service(id));
        keys.into_iter().filter_map(move |key| Some((key, backend_address(workload, key.family)?)))
    };
    let waypoints = model.services().filter_map(|(id, service)| waypoint(id, service));
    let of_workloads = model.redirected().filter_map(|(id, workload)| direct::waypoint(id, workload));
    model.workloads().flat_map(of).chain(waypoints).chain(of_workloads)
}

/// The families that a service has an address of; with node ports both, whatever addresses the node has just now.
pub fn families(service: &Service) -> impl Iterator<Item = Family> {
    let on_nodes = service.ports.iter().any(|port| port.node_port != 0);
    let has = move |family| on_nodes || service.addresses.iter().any(|address| Family::of(*address) == family);
    [Family::V4, Family::V6].into_iter().filter(move |family| has(*family))
}

impl Workload {
    /// Its address of a family.
    pub fn address(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// The port on which it serves a service port (0: the one that the client dialled); `None` if it does not back the service.
    pub(crate) fn target_port(&self, key: ServiceKey, service: &Service) -> Option<u16> {
        let (_, overrides) = self.backings.iter().find(|(backed, _)| *backed == key.service)?;
        if key.port == 0 {
            return Some(0);
        }
        let own = overrides.iter().find(|port| port.service_port == key.port).map(|port| port.target_port);
        own.or_else(|| service.target_port(key))
    }
}

impl Service {
    /// The port on which members serve a service port, those that do not say otherwise.
    fn target_port(&self, key: ServiceKey) -> Option<u16> {
        if key.port == 0 {
            return Some(0);
        }
        let port = self.ports.iter().find(|p| p.port == key.port && p.protocol.number() == key.protocol)?;
        Some(port.target_port)
    }
}
