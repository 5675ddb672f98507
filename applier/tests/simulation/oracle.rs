//! What must be seen: the decision, made from the plan of a whole state instead of from tables; and what the tables show,
//! read back into such a plan.

use std::collections::HashMap;

use applier::entry::{BackendKey, Changes, Family, ServiceEntry, ServiceKey};
use applier::tables::{MemoryTables, Table, Tables};
use applier::{Model, plan};
use decision::{Again, Verdict};
use storage_schema::id::ResourceId;
use storage_schema::map::{Backend, Frontend, FrontendKey, Node, Service, Stamp, cell, cell::Payload};
use zerocopy::{FromBytes, IntoBytes};

use crate::tables::version_words;

/// The whole state at one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State(Changes);

impl State {
    pub(crate) fn of(model: &Model) -> Self {
        Self(plan::everything(model))
    }

    /// The entries that tables with this state hold: frontends, services, backends.
    pub(crate) fn sizes(&self) -> [u64; 3] {
        [self.0.frontends.len(), self.0.services.len(), self.0.backends.len()].map(|size| size as u64)
    }

    pub(crate) fn destinations(&self) -> impl Iterator<Item = FrontendKey> + '_ {
        self.0.frontends.keys().copied()
    }

    /// The only verdict that this state allows.
    pub(crate) fn decide(&self, destination: &FrontendKey, words: Again) -> Verdict {
        let entry = |key: &FrontendKey| self.0.frontends.get(key).copied().flatten();
        let Some(key) = entry(destination).or_else(|| entry(&destination.any_port())) else { return Verdict::Pass };
        let Again { entropy, from_waypoint } = words;
        let entry = self.0.services[&key].as_ref().expect("a whole state removes nothing");
        let address = |backend| self.0.backends[backend].expect("a whole state removes nothing");
        if let Some(waypoint) = &entry.waypoint {
            if !from_waypoint {
                return Verdict::Forward {
                    service: key.service.0,
                    backend: waypoint.workload.0,
                    address: address(waypoint),
                    port_be: waypoint.port.to_be(),
                    entropy: 0,
                    flags: Stamp::WAYPOINT,
                };
            }
            if entry.flags & Service::WORKLOAD != 0 {
                return Verdict::Pass;
            }
        }
        let Ok(length) = u32::try_from(entry.endpoints.len()) else { unreachable!("capacities are u32") };
        if length == 0 {
            let pass = self.0.node.is_some_and(|node| node.flags & Node::NO_ENDPOINTS_PASS != 0);
            let flags = if entry.waypoint.is_some() { Stamp::FROM_WAYPOINT } else { 0 };
            return if pass { Verdict::Pass } else { Verdict::Refuse { service: key.service.0, flags } };
        }
        let backend = entry.endpoints[decision::scale(entropy, length) as usize];
        Verdict::Forward {
            service: key.service.0,
            backend: backend.workload.0,
            address: address(&backend),
            port_be: backend.port.to_be(),
            entropy,
            flags: if entry.waypoint.is_some() { Stamp::FROM_WAYPOINT } else { 0 },
        }
    }

    /// The state that the tables show at `epoch`, with nothing left out; `Err`: it is none.
    pub(crate) fn shown(memory: &MemoryTables, epoch: u64) -> Result<Self, String> {
        let family = |number| Family::from_number(number).ok_or_else(|| format!("address family {number}"));
        let mut shown = Changes::default();
        let mut backends = HashMap::new();
        for (cell, payload) in visible::<Backend>(memory, Table::Backends, epoch) {
            let port = u16::from_be(payload.port_be);
            let (workload, family) = (ResourceId(payload.id), family(payload.family)?);
            let key = BackendKey { workload, port, family, is_waypoint: payload.flags & Backend::WAYPOINT != 0 };
            backends.insert(cell, key);
            if shown.backends.insert(key, Some(payload.address)).is_some() {
                return Err(format!("two cells show {key:?}"));
            }
        }
        let mut services = HashMap::new();
        for (cell, payload) in visible::<Service>(memory, Table::Services, epoch) {
            let Service { id, port, protocol, policy, flags, affinity, .. } = payload;
            let key = ServiceKey { service: ResourceId(id), port, protocol, family: family(payload.family)? };
            let endpoints = run(memory, &payload).map(|slot| backends.get(&slot).copied()).collect::<Option<_>>();
            let mut endpoints: Vec<BackendKey> =
                endpoints.ok_or_else(|| format!("{key:?} leads to a backend that is not shown"))?;
            let has_waypoint = flags & Service::WAYPOINT != 0 && !endpoints.is_empty();
            let waypoint = has_waypoint.then(|| endpoints.remove(0));
            services.insert(cell, key);
            if shown
                .services
                .insert(
                    key,
                    Some(ServiceEntry { policy, flags, affinity, waypoint, endpoints, ..ServiceEntry::default() }),
                )
                .is_some()
            {
                return Err(format!("two cells show {key:?}"));
            }
        }
        for (cell, Frontend { key, index, .. }) in visible::<Frontend>(memory, Table::Frontends, epoch) {
            if !matches!(memory.index_get(&key), Ok(Some(found)) if found == cell) {
                return Err(format!("the index does not lead to {key:?}"));
            }
            let service =
                services.get(&index).ok_or_else(|| format!("{key:?} leads to a service that is not shown"))?;
            shown.frontends.insert(key, Some(*service));
        }
        let node = visible::<Node>(memory, Table::Node, epoch).next();
        shown.node = Some(node.map(|(_, node)| node).unwrap_or_default());
        Ok(Self(shown))
    }
}

/// The payloads of a table that are visible and present at `epoch`, with their cells.
pub(crate) fn visible<P: Payload + FromBytes + IntoBytes>(
    memory: &MemoryTables,
    table: Table,
    epoch: u64,
) -> impl Iterator<Item = (u32, P)> + '_ {
    let payload = move |first: usize| {
        let mut payload = P::default();
        for (word, bytes) in payload.as_mut_bytes().chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&memory.load(table, first + 1 + word).to_ne_bytes());
        }
        payload
    };
    let cells = visible_versions(memory, table, epoch).map(move |(cell, first)| (cell, payload(first)));
    cells.filter(|(_, payload)| payload.is_present())
}

/// The first words of the versions that are visible at `epoch`, with their cells.
pub(crate) fn visible_versions(
    memory: &MemoryTables,
    table: Table,
    epoch: u64,
) -> impl Iterator<Item = (u32, usize)> + '_ {
    let words = version_words(table).expect("a table of cells");
    (0..table.entries(&memory.capacities())).filter_map(move |number| {
        let first = number as usize * 2 * words;
        let epochs = [memory.load(table, first), memory.load(table, first + words)];
        cell::visible(epochs, epoch).map(|version| (number, first + version * words))
    })
}

fn run<'m>(memory: &'m MemoryTables, service: &Service) -> impl Iterator<Item = u32> + 'm {
    let slots = service.run_offset..service.run_offset + service.run_length;
    slots.map(|slot| {
        let pair = memory.load(Table::Endpoints, slot as usize / 2).to_ne_bytes();
        let (low, high) = pair.split_at(4);
        let half = if slot % 2 == 0 { low } else { high };
        u32::from_ne_bytes(half.try_into().expect("half a word"))
    })
}
