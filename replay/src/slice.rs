//! The part of a state that one connection depends on.
//!
//! A decision reads one frontend, its service or workload, that one's backends and the node. So the tables of the few resources that these
//! follow from say the same about a connection as those of the whole state, and are made in no time. More than is needed may be
//! chosen; what is left out has no address in common with what the client dials.

use std::collections::BTreeMap;
use std::net::IpAddr;

use applier::{Loader, Model};
use journal::{ReadError, State, StoredResource};
use storage_schema::codec::access_resource;
use storage_schema::id::Lsn;
use storage_schema::resource::{
    ArchivedResource, ArchivedService, ArchivedWorkload, Kind, Node, Resource, ResourceKey, Service, Workload,
};

use crate::entries::{Names, finish};
use crate::tables::canonical;
use crate::{ReplayError, decode};

/// A resource, and the record that changed it last.
pub(crate) type Known<R> = (R, Lsn);

/// What one connection depends on.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Services that have the address, by name.
    pub(crate) services: BTreeMap<String, Known<Service>>,
    /// Workloads that back them, or have the address and a waypoint before it, by uid.
    pub(crate) workloads: BTreeMap<String, Known<Workload>>,
    /// The node.
    pub(crate) node: Option<Known<Node>>,
    /// Who dials.
    pub(crate) client: Option<Known<Workload>>,
    /// The model of all of them.
    pub(crate) model: Model,
    /// Their names by their numbers.
    pub(crate) names: Names,
}

impl Slice {
    /// The part of a state that a connection to `to` from `from` depends on.
    pub(crate) fn of(state: &State, to: IpAddr, from: Option<IpAddr>) -> Result<Self, ReplayError> {
        let to = canonical(to);
        let mut chosen = Chosen { loader: Loader::new(0), names: Names::default() };
        let mut node = None;
        for stored in state.of_kind(Kind::Node) {
            if let Resource::Node(found) = chosen.take(stored)? {
                node = Some((found, stored.changed_lsn));
            }
        }
        let to_node = node.as_ref().is_some_and(|(node, _): &Known<Node>| node.addresses.contains(&to));
        let mut services = BTreeMap::new();
        for stored in state.of_kind(Kind::Service) {
            if matches!(access(stored)?, ArchivedResource::Service(service) if serves(service, to, to_node))
                && let Resource::Service(service) = chosen.take(stored)?
            {
                services.insert(service.name.clone(), (service, stored.changed_lsn));
            }
        }
        let (mut workloads, mut client) = (BTreeMap::new(), None);
        for stored in state.of_kind(Kind::Workload) {
            let ArchivedResource::Workload(archived) = access(stored)? else { continue };
            let backs = archived.services.iter().any(|backing| services.contains_key(backing.service.as_str()));
            if (backs || archived.waypoint.is_some() && has_address(archived, to))
                && let Resource::Workload(workload) = chosen.take(stored)?
            {
                workloads.insert(workload.uid.clone(), (workload, stored.changed_lsn));
            }
            if client.is_none()
                && from.is_some_and(|from| has_address(archived, canonical(from)))
                && let Resource::Workload(workload) = decode(key_of(stored), stored.encoded)?
            {
                client = Some((workload, stored.changed_lsn));
            }
        }
        let Chosen { loader, names } = chosen;
        Ok(Self { services, workloads, node, client, model: finish(loader)?, names })
    }
}

struct Chosen {
    loader: Loader,
    names: Names,
}

impl Chosen {
    fn take(&mut self, stored: StoredResource<'_>) -> Result<Resource, ReplayError> {
        self.loader.add(&stored);
        self.names.add(stored.kind, stored.name);
        decode(key_of(stored), stored.encoded)
    }
}

fn key_of(stored: StoredResource<'_>) -> ResourceKey {
    ResourceKey::new(stored.kind, stored.name)
}

fn access(stored: StoredResource<'_>) -> Result<&ArchivedResource, ReplayError> {
    access_resource(stored.encoded)
        .map_err(|source| ReadError::UndecodableResource { key: key_of(stored), source }.into())
}

/// Whether a service may be reached at an address: one of its own, or one of the node's, which lead to those with a node port.
fn serves(service: &ArchivedService, address: IpAddr, of_node: bool) -> bool {
    service.vips.iter().chain(service.external_addresses.iter()).any(|own| own.as_ipaddr() == address)
        || of_node && service.ports.iter().any(|port| port.node_port != 0)
}

fn has_address(workload: &ArchivedWorkload, address: IpAddr) -> bool {
    workload.addresses.iter().any(|own| own.as_ipaddr() == address)
}
