//! Which source a resource belongs to: the one whose record changed it last.
//!
//! Another source may change or remove it only by taking it over, which its record says. Resources of which the owner is not
//! known (a checkpoint of an old version had them, and the record is no longer kept) belong to whoever changes them next.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use storage_schema::id::ResourceId;
use storage_schema::record::{Delta, Transaction};
use storage_schema::resource::{Kind, ResourceKey};

use crate::model::{Model, Rejection};

/// So many resources of other sources are named at most.
const FOREIGN_MAX: usize = 64;

/// A source's number, in this process. Four bytes beside each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Owner(u32);

impl Owner {
    /// Nobody that is known.
    pub(crate) const UNKNOWN: Self = Self(0);
}

/// The names behind the numbers.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    /// The name of number `n` is at `n - 1`.
    names: Vec<Box<str>>,
    numbers: HashMap<Box<str>, Owner>,
}

impl Owners {
    /// The number of a source, a new one if it has none. An empty name is nobody's.
    pub(crate) fn number(&mut self, source: &str) -> Owner {
        if source.is_empty() {
            return Owner::UNKNOWN;
        }
        if let Some(owner) = self.numbers.get(source) {
            return *owner;
        }
        self.names.push(source.into());
        let owner = Owner(u32::try_from(self.names.len()).expect("there are fewer than 2^32 sources"));
        self.numbers.insert(source.into(), owner);
        owner
    }

    /// The number of a source, if it has one.
    pub(crate) fn find(&self, source: &str) -> Option<Owner> {
        self.numbers.get(source).copied()
    }

    /// The name of a source; `None` for nobody's number.
    pub(crate) fn name(&self, owner: Owner) -> Option<&str> {
        self.names.get((owner.0 as usize).checked_sub(1)?).map(|name| &**name)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// Forgets what came after the first `len`: they own nothing.
    pub(crate) fn truncate(&mut self, len: usize) {
        for name in self.names.drain(len..) {
            self.numbers.remove(&name);
        }
    }
}

/// A resource that belongs to another source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{resource} belongs to source `{owner}`: take it over explicitly, or have it removed there")]
pub struct Foreign {
    /// Position of the delta in the transaction.
    pub index: usize,
    /// The resource.
    pub resource: ResourceKey,
    /// Whose it is.
    pub owner: String,
}

impl Model {
    /// Adds to a sync what its source owns and did not send, as removals.
    pub fn complete_sync(&self, sync: &mut Transaction) {
        let Some(owner) = self.owners.find(&sync.origin.source) else { return };
        let sent: BTreeSet<ResourceId> = sync.deltas.iter().map(|delta| ResourceId::of(&delta.key())).collect();
        let gone = self.owned_by(owner).into_iter().filter(|key| !sent.contains(&ResourceId::of(key)));
        sync.deltas.extend(gone.map(Delta::Remove));
    }

    /// Removals of what a source owns. A service that workloads of others back stays: they may have nothing else.
    pub fn expiry(&self, source: &str) -> Vec<Delta> {
        let Some(owner) = self.owners.find(source) else { return Vec::new() };
        let is_needed = |key: &ResourceKey| {
            key.kind == Kind::Service && self.members(ResourceId::of(key)).any(|(_, workload)| workload.owner != owner)
        };
        self.owned_by(owner).into_iter().filter(|key| !is_needed(key)).map(Delta::Remove).collect()
    }

    /// What a source owns, in order.
    fn owned_by(&self, owner: Owner) -> Vec<ResourceKey> {
        let services = self.services.values().filter(|service| service.owner == owner);
        let workloads = self.workloads.values().filter(|workload| workload.owner == owner);
        let node = self.node.iter().filter(|node| node.owner == owner);
        let mut owned: Vec<ResourceKey> = services
            .map(|service| ResourceKey::new(Kind::Service, &*service.name))
            .chain(workloads.map(|workload| ResourceKey::new(Kind::Workload, &*workload.uid)))
            .chain(node.map(|node| ResourceKey::new(Kind::Node, &*node.name)))
            .collect();
        owned.sort_unstable();
        owned
    }

    /// Which source a resource belongs to; `None` if it is not there, or nobody knows.
    pub fn owner(&self, key: &ResourceKey) -> Option<&str> {
        let id = ResourceId::of(key);
        let owner = match key.kind {
            Kind::Service => self.services.get(&id)?.owner,
            Kind::Workload => self.workloads.get(&id)?.owner,
            Kind::Node => self.node.as_ref().filter(|node| *node.name == *key.name)?.owner,
        };
        self.owners.name(owner)
    }

    /// How many resources of each kind each source has, in the order of [`Kind::ALL`].
    pub fn owned(&self) -> BTreeMap<&str, [usize; 3]> {
        let mut owned = BTreeMap::new();
        let mut count = |owner: Owner, at: usize| {
            let counts: &mut [usize; 3] = owned.entry(owner).or_default();
            counts[at] += 1;
        };
        self.services.values().for_each(|service| count(service.owner, 0));
        self.workloads.values().for_each(|workload| count(workload.owner, 1));
        self.node.iter().for_each(|node| count(node.owner, 2));
        owned.into_iter().filter_map(|(owner, counts)| Some((self.owners.name(owner)?, counts))).collect()
    }

    /// Refuses a transaction that changes what belongs to others without taking it over.
    pub(crate) fn check_owners(&self, transaction: &Transaction) -> Result<(), Rejection> {
        if transaction.take_over {
            return Ok(());
        }
        let foreign = transaction.deltas.iter().enumerate().filter_map(|(index, delta)| {
            let resource = delta.key();
            let owner = self.owner(&resource).filter(|owner| *owner != transaction.origin.source)?.to_owned();
            Some(Foreign { index, resource, owner })
        });
        let foreign: Vec<Foreign> = foreign.take(FOREIGN_MAX).collect();
        if foreign.is_empty() { Ok(()) } else { Err(Rejection::Owned(foreign)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_names() {
        let mut owners = Owners::default();
        let (a, b) = (owners.number("a"), owners.number("b"));
        assert_ne!(a, b);
        assert_eq!((owners.number("a"), owners.find("b"), owners.name(b)), (a, Some(b), Some("b")));
        assert_eq!((owners.number(""), owners.name(Owner::UNKNOWN)), (Owner::UNKNOWN, None));
        owners.truncate(1);
        assert_eq!((owners.find("b"), owners.name(b), owners.len()), (None, None, 1));
    }
}
