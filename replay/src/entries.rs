//! The table entries that a state stands for, by names that people know.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use applier::entry::{BackendKey, Changes, Family, ServiceEntry, ServiceKey};
use applier::{Loader, Model, dump, plan};
use journal::{ReadError, State};
use serde_json::Value;
use storage_schema::id::ResourceId;
use storage_schema::map::key::address_from_words;
use storage_schema::map::name;
use storage_schema::resource::{Kind, ResourceKey};

use crate::diff::{EntryDiff, change};
use crate::field;
use crate::{ReplayError, Which};

/// Everything that the tables show of a state.
#[derive(Debug, Default)]
pub(crate) struct TableEntries {
    entries: BTreeMap<(&'static str, String), Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// The resource that it follows from.
    owner: Option<ResourceKey>,
    fields: BTreeMap<String, Value>,
}

/// The resources behind numbers.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<ResourceId, (Kind, String)>);

impl Names {
    pub(crate) fn add(&mut self, kind: Kind, name: &str) {
        self.0.insert(ResourceId::named(kind, name), (kind, name.to_owned()));
    }

    pub(crate) fn get(&self, id: ResourceId) -> String {
        self.0.get(&id).map_or_else(|| id.to_string(), |(_, name)| name.clone())
    }

    pub(crate) fn key(&self, id: ResourceId) -> Option<ResourceKey> {
        self.0.get(&id).map(|(kind, name)| ResourceKey::new(*kind, name.clone()))
    }
}

/// The model of a state.
pub(crate) fn model_of(state: &State) -> Result<Model, ReplayError> {
    let mut loader = Loader::new(state.len());
    state.iter().for_each(|stored| loader.add(&stored));
    finish(loader)
}

pub(crate) fn finish(loader: Loader) -> Result<Model, ReplayError> {
    loader.finish().map_err(|error| {
        let applier::Undecodable { key, source } = error;
        ReadError::UndecodableResource { key, source }.into()
    })
}

impl TableEntries {
    pub(crate) fn of(state: &State) -> Result<Self, ReplayError> {
        let mut names = Names::default();
        state.iter().for_each(|stored| names.add(stored.kind, stored.name));
        Ok(Self::named(&plan::everything(&model_of(state)?), &names))
    }

    fn named(changes: &Changes, names: &Names) -> Self {
        let Changes { frontends, services, backends, node } = changes;
        let mut all = Self::default();
        for (key, service) in frontends {
            let Some(service) = service else { continue };
            let mut entry = Entry::of(service.service, names);
            entry.set("service", service_name(service, names));
            all.entries.insert((name::FRONTENDS, dump::destination(key)), entry);
        }
        for (key, service) in services {
            let Some(service) = service else { continue };
            let ServiceEntry { policy, flags, affinity, waypoint, endpoints, weights, table_slots } = service;
            let mut entry = Entry::of(key.service, names);
            entry.set("policy", dump::policy(*policy));
            if *flags != 0 {
                entry.set("flags", dump::service_flags(*flags));
            }
            if *affinity != 0 {
                entry.set("affinity", dump::affinity(*affinity));
            }
            if *table_slots > 0 {
                entry.set("table_slots", table_slots.to_string());
            }
            let address = |endpoint: &BackendKey| {
                let address = backends.get(endpoint).copied().flatten();
                address.map_or_else(|| "-".to_owned(), |words| socket_address(words, endpoint.port))
            };
            if let Some(waypoint) = waypoint {
                entry.set("waypoint", address(waypoint));
            }
            for (number, endpoint) in endpoints.iter().enumerate() {
                let address = address(endpoint);
                let weight = weights.get(number).map(|weight| format!(", weight {weight}")).unwrap_or_default();
                entry.set(&format!("endpoints[{}]", backend_name(endpoint, names)), format!("{address}{weight}"));
            }
            all.entries.insert((name::SERVICES, service_name(key, names)), entry);
        }
        for (key, address) in backends {
            let Some(address) = address else { continue };
            let mut entry = Entry::of(key.workload, names);
            entry.set("address", socket_address(*address, key.port));
            all.entries.insert((name::BACKENDS, backend_name(key, names)), entry);
        }
        if let Some(node) = node {
            let mut entry = Entry::default();
            for (field, value) in dump::node(*node) {
                entry.set(field, value);
            }
            all.entries.insert((name::NODE, name::NODE.to_owned()), entry);
        }
        all
    }

    /// The entries that differ, in the order of tables and keys.
    pub(crate) fn compare(&self, later: &Self, which: &Which) -> Vec<EntryDiff> {
        let mut keys: Vec<_> = self.entries.keys().chain(later.entries.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let none = Entry::default();
        let differs = |key: &(&'static str, String)| {
            let (old, new) = (self.entries.get(key), later.entries.get(key));
            let owner = new.or(old)?.owner.as_ref();
            let chosen = match owner {
                Some(owner) => which.includes(owner.kind, &owner.name),
                None => which.name.is_none() && which.kind.is_none_or(|kind| kind == Kind::Node),
            };
            let fields = field::compare(&old.unwrap_or(&none).fields, &new.unwrap_or(&none).fields);
            (chosen && !fields.is_empty()).then(|| EntryDiff {
                table: key.0.to_owned(),
                entry: key.1.clone(),
                change: change(old.is_some(), new.is_some()),
                fields,
            })
        };
        keys.into_iter().filter_map(differs).collect()
    }
}

impl Entry {
    fn of(id: ResourceId, names: &Names) -> Self {
        Self { owner: names.key(id), fields: BTreeMap::new() }
    }

    fn set(&mut self, field: &str, value: String) {
        self.fields.insert(field.to_owned(), Value::String(value));
    }
}

/// `shop/cart 80/TCP IPv4`.
fn service_name(key: &ServiceKey, names: &Names) -> String {
    let ServiceKey { service, port, protocol, family } = *key;
    format!("{} {port}/{} {}", names.get(service), dump::protocol(protocol), family_name(family))
}

/// `cart-1:8080 IPv4`.
fn backend_name(key: &BackendKey, names: &Names) -> String {
    let BackendKey { workload, port, family, is_waypoint } = *key;
    let kind = if is_waypoint { "waypoint of " } else { "" };
    format!("{kind}{}:{port} {}", names.get(workload), family_name(family))
}

const fn family_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

fn socket_address(words: [u32; 4], port: u16) -> String {
    SocketAddr::new(address_from_words(words), port).to_string()
}
