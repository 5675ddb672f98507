//! Whose destination is whose: each belongs to one service, or to one workload that has a waypoint.
//!
//! A transaction first releases what its resources had, and then claims what they have, so that destinations may change hands
//! within it, in whatever order.

use std::collections::BTreeSet;
use std::net::IpAddr;

use storage_schema::id::ResourceId;
use storage_schema::map::FrontendKey;
use storage_schema::resource::{Kind, ResourceKey};

use crate::entry::{Changes, ServiceKey};
use crate::model::{Before, Model, NodeBefore, Rejection, Service};
use crate::{direct, plan};

impl Model {
    /// The node's addresses before the transaction.
    pub(crate) fn node_addresses_before<'b>(&'b self, before: &'b Before) -> &'b [IpAddr] {
        match &before.node {
            None => self.node_addresses(),
            Some(NodeBefore(previous)) => previous.as_ref().map_or(&[], |node| &node.addresses),
        }
    }

    /// The services whose destinations may have changed: those that were touched, and those with node ports if the node's
    /// addresses were.
    pub(crate) fn with_moved_frontends(&self, before: &Before) -> BTreeSet<ResourceId> {
        let mut moved: BTreeSet<ResourceId> = before.services.keys().copied().collect();
        if self.node_addresses_before(before) != self.node_addresses() {
            let on_nodes = |service: &Service| service.ports.iter().any(|port| port.node_port != 0);
            moved.extend(self.services.iter().filter(|(_, service)| on_nodes(service)).map(|(id, _)| *id));
        }
        moved
    }

    pub(crate) fn release_frontends(
        &mut self,
        id: ResourceId,
        frontends: impl Iterator<Item = (FrontendKey, ServiceKey)>,
    ) {
        for (frontend, _) in frontends {
            if self.frontends.get(&frontend) == Some(&id) {
                self.frontends.remove(&frontend);
            }
        }
    }

    pub(crate) fn claim_frontends(&mut self, id: ResourceId) -> Result<(), Rejection> {
        let Some(service) = self.services.get(&id) else { return Ok(()) };
        let node = self.node.as_ref().map_or(&[][..], |node| &node.addresses);
        for (frontend, _) in plan::frontends(id, service, node) {
            let owner = *self.frontends.entry(frontend).or_insert(id);
            if owner != id {
                let service = ResourceKey::new(Kind::Service, &*service.name);
                return Err(self.taken(service, "vips", &frontend, owner));
            }
        }
        Ok(())
    }

    pub(crate) fn claim_addresses(&mut self, id: ResourceId) -> Result<(), Rejection> {
        let Some(workload) = self.workloads.get(&id) else { return Ok(()) };
        for (frontend, _) in direct::frontends(id, workload) {
            let owner = *self.frontends.entry(frontend).or_insert(id);
            if owner != id {
                let workload = ResourceKey::new(Kind::Workload, &*workload.uid);
                return Err(self.taken(workload, "addresses", &frontend, owner));
            }
        }
        Ok(())
    }

    /// A destination belongs to another owner.
    fn taken(
        &self,
        resource: ResourceKey,
        field: &'static str,
        frontend: &FrontendKey,
        owner: ResourceId,
    ) -> Rejection {
        let of_service = self.services.get(&owner).map(|service| ResourceKey::new(Kind::Service, &*service.name));
        let of_workload = || self.workloads.get(&owner).map(|owner| ResourceKey::new(Kind::Workload, &*owner.uid));
        let owner = of_service.or_else(of_workload).expect("a destination is released before its owner goes");
        Rejection::DuplicateFrontend { resource, field, address: frontend.ip(), port: frontend.port(), owner }
    }

    pub(crate) fn settle_frontends(&self, before: &Before, changes: &mut Changes) {
        let mut gone = BTreeSet::new();
        let mut there = Vec::new();
        let (node_before, node) = (self.node_addresses_before(before), self.node_addresses());
        for id in self.with_moved_frontends(before) {
            let now = self.services.get(&id);
            let previous = before.services.get(&id).map_or(now, Option::as_ref);
            gone.extend(previous.into_iter().flat_map(|service| plan::frontends(id, service, node_before)));
            there.extend(now.into_iter().flat_map(|service| plan::frontends(id, service, node)));
        }
        for (id, previous) in &before.workloads {
            gone.extend(previous.iter().flat_map(|workload| direct::frontends(*id, workload)));
            there.extend(self.workloads.get(id).into_iter().flat_map(|workload| direct::frontends(*id, workload)));
        }
        // A destination that moves from one owner to another is gone from one and there in the other.
        changes.frontends.extend(gone.into_iter().map(|(key, _)| (key, None)));
        changes.frontends.extend(there.into_iter().map(|(key, service)| (key, Some(service))));
    }
}
