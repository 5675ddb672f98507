//! The state of the domain, as small as planning allows, and the check that a transaction fits it.
//!
//! The full resources are in the journal's store. The model keeps what table entries depend on: addresses, ports,
//! statuses and who backs what. Pushes are admitted against the model *before* they are journaled, under one lock that
//! also gives them their LSNs, so that the model is always the state after the last submitted transaction.
//!
//! Invariant: whatever was admitted can be applied. References, uniqueness of destinations and capacities are checked
//! here, on the state that the transaction would lead to; a transaction that fails a check changes nothing.

mod departures;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use storage_schema::id::{Lsn, ResourceId};
use storage_schema::map::key::address_words;
use storage_schema::map::{self, Capacities, FrontendKey};
use storage_schema::record::{Cause, Delta, Transaction};
use storage_schema::resource::{self, Kind, LocalityMode, NoEndpoints, Resource, ResourceKey};

use crate::apply::Pressure;
use crate::entry::{BackendKey, Changes};
use crate::hash::HashMap;
use crate::owner::{Owner, Owners};
use crate::place::Place;
use crate::projection::Node;
pub use crate::projection::{Service, Workload};
pub use crate::rejection::Rejection;
use crate::validate;
use crate::{direct, plan};

/// The state of the domain.
#[derive(Debug, Default)]
pub struct Model {
    pub(crate) services: HashMap<ResourceId, Service>,
    /// In boxes: there are many, a table is mostly half empty, and growing it moves all that is in it.
    pub(crate) workloads: HashMap<ResourceId, Box<Workload>>,
    /// Which workloads back a service, also while the service itself is not there yet.
    pub(crate) members: HashMap<ResourceId, BTreeSet<ResourceId>>,
    /// Workloads that have a waypoint.
    pub(crate) redirected: BTreeSet<ResourceId>,
    /// Whose destination is whose: a service's, or a workload's.
    pub(crate) frontends: HashMap<FrontendKey, ResourceId>,
    pub(crate) node: Option<Node>,
    pub(crate) owners: Owners,
    pub(crate) usage: Usage,
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

/// A transaction that fits, and is part of the model now.
#[derive(Debug)]
pub struct Admitted {
    /// What it changes in the tables.
    pub changes: Changes,
    /// Whether a service that has its connections drained may have lost a backend by it.
    pub departs: bool,
    before: Before,
}

/// How touched resources were before.
#[derive(Debug, Default)]
pub(crate) struct Before {
    pub(crate) services: BTreeMap<ResourceId, Option<Service>>,
    pub(crate) workloads: BTreeMap<ResourceId, Option<Box<Workload>>>,
    pub(crate) node: Option<NodeBefore>,
    pub(crate) usage: Usage,
    /// How many sources were known.
    pub(crate) sources: usize,
}

/// The node's configuration before, if there was one.
#[derive(Debug)]
pub(crate) struct NodeBefore(pub(crate) Option<Node>);

impl Model {
    /// Takes in resources that were admitted earlier, in any order and without checks.
    pub fn load<E>(resources: impl IntoIterator<Item = Result<Resource, E>>) -> Result<Self, E> {
        let mut model = Self::default();
        let mut before = Before::default();
        for resource in resources {
            model.upsert(&resource?, Owner::UNKNOWN, &mut before);
        }
        Ok(model.loaded())
    }

    /// Takes in a record whose transaction was admitted earlier, likewise without checks.
    pub(crate) fn replay(&mut self, transaction: &Transaction, lsn: Lsn) {
        let mut before = Before::default();
        let owner = self.owners.number(&transaction.origin.source);
        for delta in &transaction.deltas {
            match delta {
                Delta::Upsert(resource) => self.upsert(resource, owner, &mut before),
                Delta::Remove(key) => self.remove(key, &mut before),
            }
        }
        self.stamp(&before, lsn);
    }

    /// Checks a transaction and makes it part of the model; on an error nothing has changed.
    pub fn admit(&mut self, transaction: &Transaction, capacities: &Capacities) -> Result<Admitted, Rejection> {
        if transaction.deltas.is_empty() && transaction.event.is_none() && transaction.cause != Cause::Sync {
            return Err(Rejection::Empty);
        }
        if !transaction.deltas.is_empty() && transaction.event.is_some() {
            return Err(Rejection::EventWithDeltas);
        }
        for (index, delta) in transaction.deltas.iter().enumerate() {
            let checked = match delta {
                Delta::Upsert(resource) => validate::resource(resource),
                Delta::Remove(key) => validate::key(key),
            };
            checked.map_err(|violation| Rejection::Invalid { resource: delta.key(), index, violation })?;
        }
        self.check_owners(transaction)?;
        let mut before = Before { usage: self.usage, sources: self.owners.len(), ..Before::default() };
        match self.try_admit(transaction, capacities, &mut before) {
            Ok(changes) => Ok(Admitted { changes, departs: self.departs(&before), before }),
            Err(rejection) => {
                self.restore(before);
                Err(rejection)
            }
        }
    }

    /// Takes an admitted transaction back, the last one first: it could not be journaled, or was not meant to be.
    pub fn revert(&mut self, admitted: Admitted) {
        self.restore(admitted.before);
    }

    /// Notes the record as which an admitted transaction is in the journal.
    pub fn journaled(&mut self, admitted: &Admitted, lsn: Lsn) {
        self.stamp(&admitted.before, lsn);
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
        self.workloads.iter().map(|(id, workload)| (*id, &**workload))
    }

    /// The workloads that have a waypoint.
    pub(crate) fn redirected(&self) -> impl Iterator<Item = (ResourceId, &Workload)> {
        self.redirected.iter().filter_map(|id| Some((*id, &**self.workloads.get(id)?)))
    }

    pub(crate) fn members(&self, service: ResourceId) -> impl Iterator<Item = (ResourceId, &Workload)> {
        let ids = self.members.get(&service).into_iter().flatten();
        ids.filter_map(|id| Some((*id, &**self.workloads.get(id)?)))
    }

    pub(crate) fn members_count(&self, service: ResourceId) -> usize {
        self.members.get(&service).map_or(0, BTreeSet::len)
    }

    /// The node's own addresses.
    pub(crate) fn node_addresses(&self) -> &[IpAddr] {
        self.node.as_ref().map_or(&[], |node| &node.addresses)
    }

    /// Where the node is.
    pub(crate) fn here(&self) -> Place {
        place_of(self.node.as_ref())
    }

    pub(crate) fn node_entry(&self) -> map::Node {
        let Some(node) = &self.node else { return map::Node::default() };
        let pass = match node.no_endpoints {
            NoEndpoints::Refuse => 0,
            NoEndpoints::Pass => map::Node::NO_ENDPOINTS_PASS,
        };
        let flags = map::Node::PRESENT | pass;
        match node.dns {
            None => map::Node { flags, ..map::Node::default() },
            Some((proxy, port)) => map::Node {
                flags: flags | map::Node::DNS,
                dns_address: address_words(proxy),
                dns_port_be: port.to_be(),
                ..map::Node::default()
            },
        }
    }

    fn try_admit(
        &mut self,
        transaction: &Transaction,
        capacities: &Capacities,
        before: &mut Before,
    ) -> Result<Changes, Rejection> {
        let owner = self.owners.number(&transaction.origin.source);
        for delta in &transaction.deltas {
            match delta {
                Delta::Upsert(resource) => {
                    self.check_identity(resource)?;
                    self.upsert(resource, owner, before);
                }
                Delta::Remove(key) => self.remove(key, before),
            }
        }
        let moved = self.with_moved_frontends(before);
        let addresses = self.node_addresses_before(before).to_vec();
        for id in &moved {
            let service = before.services.get(id).cloned().unwrap_or_else(|| self.services.get(id).cloned());
            if let Some(service) = service {
                self.release_frontends(*id, plan::frontends(*id, &service, &addresses));
            }
        }
        for (id, previous) in &before.workloads {
            let gone = previous.iter().flat_map(|workload| direct::frontends(*id, workload));
            self.release_frontends(*id, gone);
        }
        for id in moved {
            self.claim_frontends(id)?;
        }
        for id in before.workloads.keys() {
            self.claim_addresses(*id)?;
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

    fn upsert(&mut self, resource: &Resource, owner: Owner, before: &mut Before) {
        let id = ResourceId::named(resource.kind(), resource.name());
        match resource {
            Resource::Service(service) => {
                let previous = self.services.insert(id, Service::project(service, owner));
                before.services.entry(id).or_insert(previous);
            }
            Resource::Workload(workload) => {
                self.set_workload(id, Some(Box::new(Workload::project(workload, owner))), before);
            }
            Resource::Node(node) => {
                let previous = self.node.replace(Node::project(node, owner));
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

    fn set_workload(&mut self, id: ResourceId, workload: Option<Box<Workload>>, before: &mut Before) {
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
        if workload.as_ref().is_some_and(|workload| workload.redirect.is_some()) {
            self.redirected.insert(id);
        } else {
            self.redirected.remove(&id);
        }
        let previous = match workload {
            Some(workload) => self.workloads.insert(id, workload),
            None => self.workloads.remove(&id),
        };
        before.workloads.entry(id).or_insert(previous);
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
        self.settle_frontends(before, &mut changes);
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
        let mut difference = 0;
        for (id, previous) in &before.services {
            let now = self.services.get(id);
            if !same_addresses(previous.as_ref(), now) {
                affected.extend(self.members.get(id).into_iter().flatten());
            }
            let waypoint_before = previous.as_ref().and_then(|service| plan::waypoint_key(*id, service));
            let waypoint = now.and_then(|service| plan::waypoint(*id, service));
            changes.backends.extend(waypoint_before.map(|key| (key, None)));
            changes.backends.extend(waypoint.map(|(key, address)| (key, Some(address))));
            difference += i64::from(waypoint.is_some()) - i64::from(waypoint_before.is_some());
        }
        for (id, previous) in &before.workloads {
            let waypoint_before = previous.as_ref().and_then(|workload| direct::waypoint_key(*id, workload));
            let waypoint = self.workloads.get(id).and_then(|workload| direct::waypoint(*id, workload));
            changes.backends.extend(waypoint_before.map(|key| (key, None)));
            changes.backends.extend(waypoint.map(|(key, address)| (key, Some(address))));
            difference += i64::from(waypoint.is_some()) - i64::from(waypoint_before.is_some());
        }
        for id in affected {
            let now = self.workloads.get(&id).map(|workload| &**workload);
            let previous = before.workloads.get(&id).map_or(now, Option::as_deref);
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
        if before.node.as_ref().is_some_and(|NodeBefore(previous)| place_of(previous.as_ref()) != self.here()) {
            let by_place = self.services.iter().filter(|(_, service)| service.locality.mode != LocalityMode::None);
            by_place.for_each(|(id, _)| _ = joined.entry(*id).or_default());
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
            let slots = |service: Option<&Service>, members: i64| -> i64 {
                let members = usize::try_from(members).expect("no more have left than there were");
                signed_u64(service.map_or(0, |service| plan::slots_max(id, service, members)))
            };
            endpoints += slots(now, members_now) - slots(previous, members_now - joined);
            changes.services.extend(keys_before.into_iter().map(|key| (key, None)));
            if let Some(service) = now {
                let entries = keys_now.into_iter().map(|key| (key, Some(plan::service_entry(self, key, service))));
                changes.services.extend(entries);
            }
        }
        for (id, previous) in &before.workloads {
            let keys_before = previous.iter().flat_map(|workload| direct::service_keys(*id, workload));
            let gone: Vec<_> = keys_before.map(|key| (key, None)).collect();
            let now = self.workloads.get(id).map(|workload| &**workload).into_iter();
            let there: Vec<_> = now
                .flat_map(|workload| direct::service_keys(*id, workload).map(move |key| (key, workload)))
                .map(|(key, workload)| (key, Some(direct::service_entry(key, workload))))
                .collect();
            let difference = signed(there.len()) - signed(gone.len());
            services += difference;
            // A slot for the waypoint.
            endpoints += difference;
            changes.services.extend(gone);
            changes.services.extend(there);
        }
        (services, endpoints)
    }

    /// Notes the record that has changed what was touched.
    fn stamp(&mut self, touched: &Before, lsn: Lsn) {
        for id in touched.services.keys() {
            if let Some(service) = self.services.get_mut(id) {
                service.changed_lsn = lsn;
            }
        }
        for id in touched.workloads.keys() {
            if let Some(workload) = self.workloads.get_mut(id) {
                workload.changed_lsn = lsn;
            }
        }
        if touched.node.is_some()
            && let Some(node) = &mut self.node
        {
            node.changed_lsn = lsn;
        }
    }

    fn restore(&mut self, before: Before) {
        let moved = self.with_moved_frontends(&before);
        let addresses = self.node_addresses().to_vec();
        for id in &moved {
            if let Some(service) = self.services.get(id).cloned() {
                self.release_frontends(*id, plan::frontends(*id, &service, &addresses));
            }
        }
        let touched: Vec<ResourceId> = before.workloads.keys().copied().collect();
        for id in &touched {
            if let Some(workload) = self.workloads.get(id).cloned() {
                self.release_frontends(*id, direct::frontends(*id, &workload));
            }
        }
        for (id, previous) in before.services {
            match previous {
                Some(service) => drop(self.services.insert(id, service)),
                None => drop(self.services.remove(&id)),
            }
        }
        if let Some(NodeBefore(previous)) = before.node {
            self.node = previous;
        }
        for (id, previous) in before.workloads {
            self.set_workload(id, previous, &mut Before::default());
        }
        let claimed = moved.into_iter().try_for_each(|id| self.claim_frontends(id));
        let claimed = claimed.and_then(|()| touched.into_iter().try_for_each(|id| self.claim_addresses(id)));
        claimed.expect("what was there before fits together");
        self.usage = before.usage;
        self.owners.truncate(before.sources);
    }
}

fn place_of(node: Option<&Node>) -> Place {
    node.map_or_else(Place::default, |node| node.place)
}

/// Whether members serve the same socket addresses for both: same ports, same families.
fn same_addresses(one: Option<&Service>, other: Option<&Service>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => {
            one.ports == other.ports
                && one.all_ports == other.all_ports
                && plan::families(one).eq(plan::families(other))
        }
        (None, None) => true,
        _ => false,
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).expect("no collection has more than 2^63 entries")
}

fn signed_u64(count: u64) -> i64 {
    i64::try_from(count).expect("capacities are far below 2^63")
}
