//! From resources to table entries: pure functions.
//!
//! Nothing here remembers anything. The entries of a service or workload follow from it, its members and the services it
//! backs; how the tables looked before does not matter.

use std::collections::BTreeMap;
use std::net::IpAddr;

use storage_schema::id::ResourceId;
use storage_schema::map::{self, FrontendKey, key::address_words};
use storage_schema::resource::{Kind, LoadBalancing, WorkloadStatus};

use crate::both::both;
use crate::entry::{BackendKey, Changes, Family, ServiceEntry, ServiceKey};
use crate::model::{Model, Service, Workload};

/// The destinations that lead to a service.
pub fn frontends(id: ResourceId, service: &Service) -> impl Iterator<Item = (FrontendKey, ServiceKey)> {
    service.vips.iter().flat_map(move |vip| {
        service.ports.iter().map(move |port| {
            let protocol = port.protocol.number();
            let family = Family::of(*vip);
            (FrontendKey::new(*vip, port.port, protocol), ServiceKey { service: id, port: port.port, protocol, family })
        })
    })
}

/// The service ports of a service: one for each port and family that it has a virtual address of.
pub fn service_keys(id: ResourceId, service: &Service) -> impl Iterator<Item = ServiceKey> {
    families(service).flat_map(move |family| {
        service.ports.iter().map(move |port| ServiceKey {
            service: id,
            port: port.port,
            protocol: port.protocol.number(),
            family,
        })
    })
}

/// The entry of a service port, with the members' addresses that may be chosen: the healthy ones, or, if there is none,
/// those that are terminating.
pub fn service_entry(model: &Model, key: ServiceKey, service: &Service) -> ServiceEntry {
    let policy = match service.load_balancing {
        LoadBalancing::Random => map::Service::RANDOM,
    };
    let with_status = |status: WorkloadStatus| -> Vec<BackendKey> {
        model
            .members(key.service)
            .filter(|(_, workload)| workload.status == status)
            .filter_map(|(id, workload)| {
                workload.address(key.family)?;
                let port = workload.target_port(key, service)?;
                Some(BackendKey { workload: id, port, family: key.family })
            })
            .collect()
    };
    let mut endpoints = with_status(WorkloadStatus::Healthy);
    if endpoints.is_empty() {
        endpoints = with_status(WorkloadStatus::Terminating);
    }
    ServiceEntry { policy, endpoints }
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
                keys.push(BackendKey { workload: id, port, family: key.family });
            }
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The address that a backend's entry holds.
pub fn backend_address(workload: &Workload, family: Family) -> Option<[u32; 4]> {
    workload.address(family).map(address_words)
}

/// Everything that the tables shall hold for a model, and nothing besides.
pub fn everything(model: &Model) -> Changes {
    let node = Some(model.node_entry());
    let entries = model.count(Kind::Workload);
    let (backends, services) = both(entries, || all_backends(model), || all_services(model));
    let frontends = model.services().flat_map(|(id, service)| frontends(id, service));
    let frontends = frontends.map(|(frontend, key)| (frontend, Some(key))).collect();
    Changes { frontends, services, backends, node }
}

// Maps are collected whole: that sorts once and builds them from one end to the other.

fn all_services(model: &Model) -> BTreeMap<ServiceKey, Option<ServiceEntry>> {
    let keys = model.services().flat_map(|(id, service)| service_keys(id, service).map(move |key| (key, service)));
    keys.map(|(key, service)| (key, Some(service_entry(model, key, service)))).collect()
}

fn all_backends(model: &Model) -> BTreeMap<BackendKey, Option<[u32; 4]>> {
    let of = |(id, workload)| {
        let keys = backend_keys(id, workload, |id| model.service(id));
        keys.into_iter().map(move |key| (key, backend_address(workload, key.family)))
    };
    model.workloads().flat_map(of).collect()
}

/// The families that a service has a virtual address of.
pub fn families(service: &Service) -> impl Iterator<Item = Family> {
    let has = |family| service.vips.iter().any(|vip| Family::of(*vip) == family);
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

    /// The port on which it serves a service port; `None` if it does not back the service.
    fn target_port(&self, key: ServiceKey, service: &Service) -> Option<u16> {
        let (_, overrides) = self.backings.iter().find(|(backed, _)| *backed == key.service)?;
        let own = overrides.iter().find(|port| port.service_port == key.port).map(|port| port.target_port);
        own.or_else(|| {
            let port = service.ports.iter().find(|p| p.port == key.port && p.protocol.number() == key.protocol)?;
            Some(port.target_port)
        })
    }
}
