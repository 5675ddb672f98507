//! A connection that is asked about, and the part of a state that it depends on.

use std::net::IpAddr;

use applier::entry::{Changes, ServiceKey};
use decision::Again;
use storage_schema::id::Lsn;
use storage_schema::map::FrontendKey;
use storage_schema::resource::{Kind, ResourceKey, Service, Waypoint, Workload};

use crate::slice::{Known, Slice};
use crate::tables::canonical;

/// A connection, and what it depends on.
pub(crate) struct Asked<'a> {
    pub(crate) slice: &'a Slice,
    pub(crate) changes: &'a Changes,
    pub(crate) key: &'a FrontendKey,
    pub(crate) dialled: Option<Dialled<'a>>,
    /// Whether it goes to the node's DNS proxy, whoever was dialled.
    pub(crate) looks_up: bool,
    /// Whether the client is the waypoint of what it dials.
    pub(crate) from_waypoint: bool,
}

/// What a destination leads to.
pub(crate) struct Dialled<'a> {
    /// The service, or the workload that has a waypoint.
    pub(crate) owner: ResourceKey,
    pub(crate) changed_lsn: Lsn,
    pub(crate) port: ServiceKey,
    pub(crate) service: Option<&'a Service>,
    pub(crate) waypoint: Option<&'a Waypoint>,
}

impl<'a> Dialled<'a> {
    fn at(key: &FrontendKey, changes: &Changes, slice: &'a Slice) -> Option<Self> {
        let entry = |key: &FrontendKey| changes.frontends.get(key).copied().flatten();
        let port = entry(key).or_else(|| entry(&key.any_port()))?;
        let owner = slice.names.key(port.service)?;
        if owner.kind == Kind::Workload {
            let (workload, changed_lsn) = slice.workloads.get(&owner.name)?;
            let waypoint = workload.waypoint.as_ref();
            return Some(Self { owner, changed_lsn: *changed_lsn, port, service: None, waypoint });
        }
        let (service, changed_lsn) = slice.services.get(&owner.name)?;
        let waypoint = service.waypoint.as_ref();
        Some(Self { owner, changed_lsn: *changed_lsn, port, service: Some(service), waypoint })
    }
}

impl<'a> Asked<'a> {
    pub(crate) fn of(slice: &'a Slice, changes: &'a Changes, key: &'a FrontendKey, from: Option<IpAddr>) -> Self {
        let dialled = Dialled::at(key, changes, slice);
        let waypoint = dialled.as_ref().and_then(|dialled| dialled.waypoint);
        let from_waypoint =
            waypoint.is_some_and(|waypoint| from.is_some_and(|from| canonical(from) == waypoint.address));
        Self { slice, changes, key, dialled, looks_up: false, from_waypoint }
    }

    /// Nothing that was dialled matters then.
    pub(crate) fn goes_to_dns_proxy(&mut self) {
        self.looks_up = true;
        self.dialled = None;
    }

    pub(crate) const fn words(&self, entropy: u32) -> Again {
        Again { entropy, from_waypoint: self.from_waypoint }
    }

    /// Everything whose history matters: the service, the node and the client first.
    pub(crate) fn traced(&self) -> Vec<ResourceKey> {
        let services = self.slice.services.keys().map(|name| ResourceKey::new(Kind::Service, name.clone()));
        let node = self.slice.node.iter().map(|(node, _)| ResourceKey::new(Kind::Node, node.name.clone()));
        let client = self.slice.client.iter().map(|(client, _)| ResourceKey::new(Kind::Workload, client.uid.clone()));
        let members = self.members().map(|(uid, _)| ResourceKey::new(Kind::Workload, uid.clone()));
        let mut keys: Vec<_> = services.chain(node).chain(client).chain(members).collect();
        if let Some(Dialled { owner, .. }) = &self.dialled
            && !keys.contains(owner)
        {
            keys.insert(0, owner.clone());
        }
        keys
    }

    /// The workloads that back the service.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&String, &Known<Workload>)> {
        let service = self.dialled.as_ref().and_then(|dialled| dialled.service);
        self.slice.workloads.iter().filter(move |(_, (workload, _))| {
            service.is_some_and(|service| workload.services.iter().any(|backing| backing.service == service.name))
        })
    }
}
