//! The state of the domain, as small as planning allows, and the check that a transaction fits it.
//!
//! The full resources are in the journal's store. The model keeps what table entries depend on: addresses, ports,
//! statuses and who backs what. Pushes are admitted against the model *before* they are journaled, under one lock that
//! also gives them their LSNs, so that the model is always the state after the last submitted transaction.
//!
//! Invariant: whatever was admitted can be applied. References, uniqueness of destinations and capacities are checked
//! here, on the state that the transaction would lead to; a transaction that fails a check changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use storage_schema::id::ResourceId;
use storage_schema::map::{self, Capacities, FrontendKey};
use storage_schema::record::{Delta, Transaction};
use storage_schema::resource::{
    self, Kind, LoadBalancing, NoEndpoints, Resource, ResourceKey, ServicePort, WorkloadStatus,
};

use crate::apply::Pressure;
use crate::backings::Backings;
use crate::both::both;
use crate::entry::{BackendKey, Changes};
use crate::hash::HashMap;
use crate::plan;
use crate::validate::{self, Violation};

/// The state of the domain.
#[derive(Debug, Default)]
pub struct Model {
    pub(crate) services: HashMap<ResourceId, Service>,
    pub(crate) workloads: HashMap<ResourceId, Workload>,
    /// Which workloads back a service, also while the service itself is not there yet.
    pub(crate) members: HashMap<ResourceId, BTreeSet<ResourceId>>,
    /// Whose destination is whose.
    frontends: HashMap<FrontendKey, ResourceId>,
    pub(crate) node: Option<Node>,
    usage: Usage,
}

/// A service, as far as table entries depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub(crate) name: Box<str>,
    pub(crate) vips: Box<[IpAddr]>,
    pub(crate) ports: Box<[ServicePort]>,
    pub(crate) load_balancing: LoadBalancing,
}

/// A workload, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub(crate) uid: Box<str>,
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
    pub(crate) status: WorkloadStatus,
    pub(crate) backings: Backings,
}

/// The node, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: Box<str>,
    pub(crate) no_endpoints: NoEndpoints,
}

/// How many table entries the state takes. Endpoints are counted as if every member could be chosen, so that a change of
/// health never runs out of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries of `frontends`.
    pub frontends: u64,
    /// Entries of `services`.
    pub services: u64,
    /// Entries of `backends`.
    pub backends: u64,
    /// Endpoints of all service ports together.
    pub endpoints: u64,
}

impl Usage {
    /// The usage beside the capacities.
    pub fn pressure(&self, capacities: &Capacities) -> [Pressure; 4] {
        let Self { frontends, services, backends, endpoints } = *self;
        [
            Pressure { table: map::name::FRONTENDS, used: frontends, capacity: capacities.frontends.into() },
            Pressure { table: map::name::SERVICES, used: services, capacity: capacities.services.into() },
            Pressure { table: map::name::BACKENDS, used: backends, capacity: capacities.backends.into() },
            Pressure { table: map::name::ENDPOINTS, used: endpoints, capacity: capacities.endpoints.into() },
        ]
    }
}

/// Why a transaction is not admitted. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It has no deltas.
    #[error("the transaction is empty: give it at least one resource")]
    Empty,
    /// A field is wrong in itself.
    #[error("{resource}: {violation}")]
    Invalid {
        /// Whose field.
        resource: ResourceKey,
        /// Position of the delta in the transaction.
        index: usize,
        /// What is wrong.
        violation: Violation,
    },
    /// A workload backs a service that is not there.
    #[error("Workload {workload}: {field}: there is no Service {service}: push it before, or in the same transaction")]
    DanglingService {
        /// The workload's uid.
        workload: String,
        /// The field that names the service.
        field: String,
        /// The service's name.
        service: String,
    },
    /// A workload names a port that its service does not have.
    #[error("Workload {workload}: {field}: Service {service} has no port {port}")]
    DanglingPort {
        /// The workload's uid.
        workload: String,
        /// The field that names the port.
        field: String,
        /// The service's name.
        service: String,
        /// The port.
        port: u16,
    },
    /// A service is removed while workloads back it.
    #[error(
        "Service {service}: Workload {workload} backs it: remove or change that one before, or in the same transaction"
    )]
    StillBacked {
        /// The service's name.
        service: String,
        /// One of the workloads.
        workload: String,
    },
    /// Two services want one destination.
    #[error("Service {service}: {vip} port {port} belongs to Service {owner}")]
    DuplicateFrontend {
        /// The service's name.
        service: String,
        /// The virtual address.
        vip: IpAddr,
        /// The port.
        port: u16,
        /// Who has it.
        owner: String,
    },
    /// A second node configuration.
    #[error("Node {name}: this node is configured as {configured}: remove that one before, or in the same transaction")]
    SecondNode {
        /// The name given.
        name: String,
        /// The name there is.
        configured: String,
    },
    /// Two names have one number. One pair in 2^64: rename one.
    #[error("{resource}: its number is that of {other}: choose another name")]
    NumberTaken {
        /// The resource that was pushed.
        resource: ResourceKey,
        /// The name of the one that is there.
        other: String,
    },
    /// The tables have no room.
    #[error(
        "the transaction needs {needed} entries of {table}, whose capacity is {capacity}: raise capacities.{table} and restart the agent"
    )]
    OverCapacity {
        /// Which table.
        table: &'static str,
        /// Entries after the transaction.
        needed: u64,
        /// Entries there are.
        capacity: u64,
    },
}

/// A transaction that fits, and is part of the model now.
#[derive(Debug)]
pub struct Admitted {
    /// What it changes in the tables.
    pub changes: Changes,
    before: Before,
}

/// How touched resources were before.
#[derive(Debug, Default)]
struct Before {
    services: BTreeMap<ResourceId, Option<Service>>,
    workloads: BTreeMap<ResourceId, Option<Workload>>,
    node: Option<NodeBefore>,
    usage: Usage,
}

/// The node's configuration before, if there was one.
#[derive(Debug)]
struct NodeBefore(Option<Node>);

impl Model {
    /// Takes in resources that were admitted earlier, in any order and without checks.
    pub fn load<E>(resources: impl IntoIterator<Item = Result<Resource, E>>) -> Result<Self, E> {
        let mut model = Self::default();
        let mut before = Before::default();
        for resource in resources {
            model.upsert(&resource?, &mut before);
        }
        Ok(model.loaded())
    }

    /// Adds what follows from the resources, once all are there.
    pub(crate) fn loaded(mut self) -> Self {
        let Self { services, workloads, .. } = &self;
        let count_backends = || -> u64 {
            let keys = |(id, workload): (&ResourceId, _)| plan::backend_keys(*id, workload, |id| services.get(&id));
            workloads.iter().map(|entry| keys(entry).len() as u64).sum()
        };
        let claim_frontends = || {
            let mut frontends = HashMap::default();
            frontends.reserve(services.len());
            for (id, service) in services {
                for (frontend, _) in plan::frontends(*id, service) {
                    let owner = *frontends.entry(frontend).or_insert(*id);
                    assert_eq!(owner, *id, "the journal admits no two services for one destination");
                }
            }
            frontends
        };
        let (backends, frontends) = both(workloads.len(), count_backends, claim_frontends);
        self.frontends = frontends;
        self.usage = Usage { frontends: self.frontends.len() as u64, backends, ..Usage::default() };
        for (id, service) in &self.services {
            let keys = plan::service_keys(*id, service).count() as u64;
            self.usage.services += keys;
            self.usage.endpoints += keys * self.members.get(id).map_or(0, BTreeSet::len) as u64;
        }
        self
    }

    /// Checks a transaction and makes it part of the model; on an error nothing has changed.
    pub fn admit(&mut self, transaction: &Transaction, capacities: &Capacities) -> Result<Admitted, Rejection> {
        if transaction.deltas.is_empty() {
            return Err(Rejection::Empty);
        }
        for (index, delta) in transaction.deltas.iter().enumerate() {
            let checked = match delta {
                Delta::Upsert(resource) => validate::resource(resource),
                Delta::Remove(key) => validate::key(key),
            };
            checked.map_err(|violation| Rejection::Invalid { resource: delta.key(), index, violation })?;
        }
        let mut before = Before { usage: self.usage, ..Before::default() };
        match self.try_admit(transaction, capacities, &mut before) {
            Ok(changes) => Ok(Admitted { changes, before }),
            Err(rejection) => {
                self.restore(before);
                Err(rejection)
            }
        }
    }

    /// Takes an admitted transaction back, the last one first: it could not be journaled.
    pub fn revert(&mut self, admitted: Admitted) {
        self.restore(admitted.before);
    }

    /// How many table entries the state takes.
    pub const fn usage(&self) -> Usage {
        self.usage
    }

    /// How many resources of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        match kind {
            Kind::Service => self.services.len(),
            Kind::Workload => self.workloads.len(),
            Kind::Node => usize::from(self.node.is_some()),
        }
    }

    pub(crate) fn service(&self, id: ResourceId) -> Option<&Service> {
        self.services.get(&id)
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = (ResourceId, &Service)> {
        self.services.iter().map(|(id, service)| (*id, service))
    }

    pub(crate) fn workloads(&self) -> impl Iterator<Item = (ResourceId, &Workload)> {
        self.workloads.iter().map(|(id, workload)| (*id, workload))
    }

    pub(crate) fn members(&self, service: ResourceId) -> impl Iterator<Item = (ResourceId, &Workload)> {
        let ids = self.members.get(&service).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.workloads.get(id)?)))
    }

    pub(crate) fn node_entry(&self) -> map::Node {
        let Some(node) = &self.node else { return map::Node::default() };
        let pass = match node.no_endpoints {
            NoEndpoints::Refuse => 0,
            NoEndpoints::Pass => map::Node::NO_ENDPOINTS_PASS,
        };
        map::Node { flags: map::Node::PRESENT | pass }
    }

    fn try_admit(
        &mut self,
        transaction: &Transaction,
        capacities: &Capacities,
        before: &mut Before,
    ) -> Result<Changes, Rejection> {
        for delta in &transaction.deltas {
            match delta {
                Delta::Upsert(resource) => {
                    self.check_identity(resource)?;
                    self.upsert(resource, before);
                }
                Delta::Remove(key) => self.remove(key, before),
            }
        }
        for (id, previous) in &before.services {
            if let Some(service) = previous {
                self.release_frontends(*id, service);
            }
        }
        for id in before.services.keys() {
            self.claim_frontends(*id)?;
        }
        self.check_references(transaction, before)?;
        let changes = self.settle(before);
        self.check_capacities(capacities)?;
        Ok(changes)
    }

    fn check_identity(&self, resource: &Resource) -> Result<(), Rejection> {
        let id = ResourceId::named(resource.kind(), resource.name());
        let holder = match resource {
            Resource::Service(_) => self.services.get(&id).map(|service| &service.name),
            Resource::Workload(_) => self.workloads.get(&id).map(|workload| &workload.uid),
            Resource::Node(node) => {
                return match &self.node {
                    Some(configured) if *configured.name != *node.name => {
                        Err(Rejection::SecondNode { name: node.name.clone(), configured: configured.name.to_string() })
                    }
                    _ => Ok(()),
                };
            }
        };
        match holder {
            Some(holder) if **holder != *resource.name() => {
                Err(Rejection::NumberTaken { resource: resource.key(), other: holder.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn upsert(&mut self, resource: &Resource, before: &mut Before) {
        let id = ResourceId::named(resource.kind(), resource.name());
        match resource {
            Resource::Service(service) => {
                let previous = self.services.insert(id, Service::project(service));
                before.services.entry(id).or_insert(previous);
            }
            Resource::Workload(workload) => self.set_workload(id, Some(Workload::project(workload)), before),
            Resource::Node(node) => {
                let previous = self.node.replace(Node { name: (*node.name).into(), no_endpoints: node.no_endpoints });
                before.node.get_or_insert(NodeBefore(previous));
            }
        }
    }

    fn remove(&mut self, key: &ResourceKey, before: &mut Before) {
        let id = ResourceId::of(key);
        match key.kind {
            Kind::Service => {
                let previous = self.services.remove(&id);
                before.services.entry(id).or_insert(previous);
            }
            Kind::Workload => self.set_workload(id, None, before),
            Kind::Node => {
                if self.node.as_ref().is_some_and(|node| *node.name == *key.name) {
                    let previous = self.node.take();
                    before.node.get_or_insert(NodeBefore(previous));
                }
            }
        }
    }

    fn set_workload(&mut self, id: ResourceId, workload: Option<Workload>, before: &mut Before) {
        for (service, _) in workload.iter().flat_map(|workload| workload.backings.iter()) {
            self.members.entry(service).or_default().insert(id);
        }
        let kept = |service| workload.iter().flat_map(|w| w.backings.iter()).any(|(other, _)| other == service);
        let previous = self.workloads.get(&id);
        for (service, _) in previous.into_iter().flat_map(|previous| previous.backings.iter()) {
            if !kept(service)
                && let Some(members) = self.members.get_mut(&service)
            {
                members.remove(&id);
                if members.is_empty() {
                    self.members.remove(&service);
                }
            }
        }
        let previous = match workload {
            Some(workload) => self.workloads.insert(id, workload),
            None => self.workloads.remove(&id),
        };
        before.workloads.entry(id).or_insert(previous);
    }

    fn release_frontends(&mut self, id: ResourceId, service: &Service) {
        for (frontend, _) in plan::frontends(id, service) {
            if self.frontends.get(&frontend) == Some(&id) {
                self.frontends.remove(&frontend);
            }
        }
    }

    fn claim_frontends(&mut self, id: ResourceId) -> Result<(), Rejection> {
        let Some(service) = self.services.get(&id) else { return Ok(()) };
        for (frontend, _) in plan::frontends(id, service) {
            let owner = *self.frontends.entry(frontend).or_insert(id);
            if owner != id {
                return Err(Rejection::DuplicateFrontend {
                    service: service.name.to_string(),
                    vip: frontend.ip(),
                    port: frontend.port(),
                    owner: self.services.get(&owner).map_or_else(String::new, |owner| owner.name.to_string()),
                });
            }
        }
        Ok(())
    }

    fn check_references(&self, transaction: &Transaction, before: &Before) -> Result<(), Rejection> {
        // Of several deltas for one workload, the last one holds.
        let mut seen = BTreeSet::new();
        for delta in transaction.deltas.iter().rev() {
            if seen.insert(delta.key())
                && let Delta::Upsert(Resource::Workload(workload)) = delta
            {
                self.check_backings(workload)?;
            }
        }
        for (id, previous) in &before.services {
            if let (Some(service), None) = (previous, self.services.get(id))
                && let Some((_, workload)) = self.members(*id).next()
            {
                return Err(Rejection::StillBacked {
                    service: service.name.to_string(),
                    workload: workload.uid.to_string(),
                });
            }
        }
        Ok(())
    }

    fn check_backings(&self, workload: &resource::Workload) -> Result<(), Rejection> {
        for (index, backing) in workload.services.iter().enumerate() {
            let id = ResourceId::named(Kind::Service, &backing.service);
            let Some(service) = self.services.get(&id) else {
                return Err(Rejection::DanglingService {
                    workload: workload.uid.clone(),
                    field: format!("services[{index}].service"),
                    service: backing.service.clone(),
                });
            };
            for (port_index, port) in backing.ports.iter().enumerate() {
                if !service.ports.iter().any(|own| own.port == port.service_port) {
                    return Err(Rejection::DanglingPort {
                        workload: workload.uid.clone(),
                        field: format!("services[{index}].ports[{port_index}].servicePort"),
                        service: backing.service.clone(),
                        port: port.service_port,
                    });
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check_capacities(&self, capacities: &Capacities) -> Result<(), Rejection> {
        match self.usage.pressure(capacities).into_iter().find(|table| table.used > table.capacity) {
            Some(Pressure { table, used: needed, capacity }) => {
                Err(Rejection::OverCapacity { table, needed, capacity })
            }
            None => Ok(()),
        }
    }

    /// Works out what the touched resources change, in the tables and in the usage.
    fn settle(&mut self, before: &Before) -> Changes {
        let mut changes = Changes::default();
        if before.node.is_some() {
            changes.node = Some(self.node_entry());
        }
        let backends = self.settle_backends(before, &mut changes);
        let (services, endpoints) = self.settle_services(before, &mut changes);
        for (id, previous) in &before.services {
            let gone = previous.iter().flat_map(|service| plan::frontends(*id, service)).map(|(key, _)| (key, None));
            let there = self.services.get(id).into_iter().flat_map(|service| plan::frontends(*id, service));
            for (key, entry) in gone.chain(there.map(|(key, service)| (key, Some(service)))) {
                // A destination that moves from one touched service to another is gone from one and there in the other.
                let slot = changes.frontends.entry(key).or_insert(None);
                *slot = entry.or(*slot);
            }
        }
        self.usage = Usage {
            frontends: self.frontends.len() as u64,
            services: self.usage.services.wrapping_add_signed(services),
            backends: self.usage.backends.wrapping_add_signed(backends),
            endpoints: self.usage.endpoints.wrapping_add_signed(endpoints),
        };
        changes
    }

    fn settle_backends(&self, before: &Before, changes: &mut Changes) -> i64 {
        let service_before = |id: ResourceId| match before.services.get(&id) {
            Some(previous) => previous.as_ref(),
            None => self.services.get(&id),
        };
        let mut affected: BTreeSet<ResourceId> = before.workloads.keys().copied().collect();
        for (id, previous) in &before.services {
            if !same_addresses(previous.as_ref(), self.services.get(id)) {
                affected.extend(self.members.get(id).into_iter().flatten());
            }
        }
        let mut difference = 0;
        for id in affected {
            let now = self.workloads.get(&id);
            let previous = before.workloads.get(&id).map_or(now, Option::as_ref);
            let keys_before = previous.map_or_else(Vec::new, |w| plan::backend_keys(id, w, service_before));
            let keys_now = now.map_or_else(Vec::new, |w| plan::backend_keys(id, w, |id| self.services.get(&id)));
            difference += signed(keys_now.len()) - signed(keys_before.len());
            let gone = keys_before.iter().filter(|key| !keys_now.contains(key));
            changes.backends.extend(gone.map(|key| (*key, None)));
            let address = |key: &BackendKey| now.and_then(|workload| plan::backend_address(workload, key.family));
            changes.backends.extend(keys_now.iter().map(|key| (*key, address(key))));
        }
        difference
    }

    fn settle_services(&self, before: &Before, changes: &mut Changes) -> (i64, i64) {
        let mut joined: BTreeMap<ResourceId, i64> = before.services.keys().map(|id| (*id, 0)).collect();
        for (id, previous) in &before.workloads {
            for (service, _) in previous.iter().flat_map(|workload| workload.backings.iter()) {
                *joined.entry(service).or_default() -= 1;
            }
            for (service, _) in self.workloads.get(id).into_iter().flat_map(|workload| workload.backings.iter()) {
                *joined.entry(service).or_default() += 1;
            }
        }
        let (mut services, mut endpoints) = (0, 0);
        for (id, joined) in joined {
            let now = self.services.get(&id);
            let previous = before.services.get(&id).map_or(now, Option::as_ref);
            let members_now = signed(self.members.get(&id).map_or(0, BTreeSet::len));
            let keys = |service: Option<&Service>| -> Vec<_> {
                service.into_iter().flat_map(|service| plan::service_keys(id, service)).collect()
            };
            let (keys_before, keys_now) = (keys(previous), keys(now));
            services += signed(keys_now.len()) - signed(keys_before.len());
            endpoints += signed(keys_now.len()) * members_now - signed(keys_before.len()) * (members_now - joined);
            changes.services.extend(keys_before.into_iter().map(|key| (key, None)));
            if let Some(service) = now {
                let entries = keys_now.into_iter().map(|key| (key, Some(plan::service_entry(self, key, service))));
                changes.services.extend(entries);
            }
        }
        (services, endpoints)
    }

    fn restore(&mut self, before: Before) {
        for id in before.services.keys() {
            if let Some(service) = self.services.remove(id) {
                self.release_frontends(*id, &service);
            }
        }
        for (id, previous) in before.services {
            if let Some(service) = previous {
                self.services.insert(id, service);
                self.claim_frontends(id).expect("what was there before fits together");
            }
        }
        for (id, previous) in before.workloads {
            self.set_workload(id, previous, &mut Before::default());
        }
        if let Some(NodeBefore(previous)) = before.node {
            self.node = previous;
        }
        self.usage = before.usage;
    }
}

impl Service {
    fn project(service: &resource::Service) -> Self {
        let ports = service.ports.iter().map(|port| ServicePort { name: String::new(), ..*port }).collect();
        Self {
            name: (*service.name).into(),
            vips: service.vips.clone().into(),
            ports,
            load_balancing: service.load_balancing,
        }
    }
}

impl Workload {
    fn project(workload: &resource::Workload) -> Self {
        let backing = |backing: &resource::Backing| {
            (ResourceId::named(Kind::Service, &backing.service), backing.ports.clone().into())
        };
        Self {
            uid: (*workload.uid).into(),
            v4: workload.addresses.iter().find_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
            v6: workload.addresses.iter().find_map(|address| match address {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            }),
            status: workload.status,
            backings: workload.services.iter().map(backing).collect(),
        }
    }
}

/// Whether members serve the same socket addresses for both: same ports, same families.
fn same_addresses(one: Option<&Service>, other: Option<&Service>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.ports == other.ports && plan::families(one).eq(plan::families(other)),
        (None, None) => true,
        _ => false,
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("no collection has more than 2^63 entries")
}
