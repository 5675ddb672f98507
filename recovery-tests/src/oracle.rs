//! What must be true, worked out from what was pushed.
//!
//! The oracle folds transactions into resources and answers, for a destination, where connections may go. It is written
//! from the resources' documentation and shares no code with the applier, so that the two cannot be wrong together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Transaction};
use storage_schema::resource::{NoEndpoints, Resource, ResourceKey, Service, Workload, WorkloadStatus};

use crate::worker::Outcome;

/// The resources at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    resources: BTreeMap<ResourceKey, Resource>,
}

/// How connections to a destination may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// At one of these, each as likely as the other.
    OneOf(BTreeSet<SocketAddr>),
    /// `ECONNREFUSED`.
    Refused,
    /// Nowhere: the destination is not translated.
    Untranslated,
}

/// How many entries of each table a state takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Of `frontends`.
    pub frontends: u64,
    /// Of `services`.
    pub services: u64,
    /// Of `backends`.
    pub backends: u64,
}

impl State {
    /// Takes a change in.
    pub fn apply(&mut self, delta: &Delta) {
        match delta {
            Delta::Upsert(resource) => drop(self.resources.insert(resource.key(), resource.clone())),
            Delta::Remove(key) => drop(self.resources.remove(key)),
        }
    }

    /// All resources, in the order of kind and name.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// All services.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.resources().filter_map(|resource| match resource {
            Resource::Service(service) => Some(service),
            _ => None,
        })
    }

    /// All workloads.
    pub fn workloads(&self) -> impl Iterator<Item = &Workload> {
        self.resources().filter_map(|resource| match resource {
            Resource::Workload(workload) => Some(workload),
            _ => None,
        })
    }

    /// How connections to `destination` may end.
    pub fn expected(&self, destination: SocketAddr) -> Expected {
        let owns = |service: &&Service| {
            service.vips.contains(&destination.ip()) && service.ports.iter().any(|port| port.port == destination.port())
        };
        let Some(service) = self.services().find(owns) else { return Expected::Untranslated };
        for status in [WorkloadStatus::Healthy, WorkloadStatus::Terminating] {
            let members = self.workloads().filter(|workload| workload.status == status);
            let backends: BTreeSet<SocketAddr> =
                members.filter_map(|workload| backend(workload, service, destination)).collect();
            if !backends.is_empty() {
                return Expected::OneOf(backends);
            }
        }
        let passes = self
            .resources()
            .any(|resource| matches!(resource, Resource::Node(node) if node.no_endpoints == NoEndpoints::Pass));
        if passes { Expected::Untranslated } else { Expected::Refused }
    }

    /// How many table entries this takes.
    pub fn entries(&self) -> Entries {
        let mut entries = Entries::default();
        let mut backends = BTreeSet::new();
        for service in self.services() {
            entries.frontends += (service.vips.len() * service.ports.len()) as u64;
            let mut keys = BTreeSet::new();
            for vip in &service.vips {
                for port in &service.ports {
                    keys.insert((vip.is_ipv4(), port.port));
                    let destination = SocketAddr::new(*vip, port.port);
                    backends.extend(self.workloads().filter_map(|w| Some((&w.uid, backend(w, service, destination)?))));
                }
            }
            entries.services += keys.len() as u64;
        }
        entries.backends = backends.len() as u64;
        entries
    }
}

impl Expected {
    /// Whether an attempt may have ended like this.
    pub fn allows(&self, outcome: &Outcome) -> bool {
        match (self, outcome) {
            (Self::OneOf(backends), Outcome::Reached(address)) => backends.contains(address),
            (Self::Refused, Outcome::Refused) | (Self::Untranslated, Outcome::Unreachable) => true,
            _ => false,
        }
    }
}

/// Where a workload serves a destination of a service, if it does.
fn backend(workload: &Workload, service: &Service, destination: SocketAddr) -> Option<SocketAddr> {
    let backing = workload.services.iter().find(|backing| backing.service == service.name)?;
    let address = workload.addresses.iter().find(|address: &&IpAddr| address.is_ipv4() == destination.is_ipv4())?;
    let own = backing.ports.iter().find(|own| own.service_port == destination.port()).map(|own| own.target_port);
    let general = service.ports.iter().find(|port| port.port == destination.port()).map(|port| port.target_port);
    Some(SocketAddr::new(*address, own.or(general)?))
}

/// What was pushed, and how much of it was acknowledged.
///
/// One pusher is assumed, that waits for each answer: at most the last transaction is in doubt.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    transactions: Vec<Transaction>,
    acknowledged: Lsn,
    /// The state after each transaction; the first one is empty.
    states: Vec<State>,
}

impl Oracle {
    /// Nothing was pushed.
    pub fn new() -> Self {
        Self { states: vec![State::default()], ..Self::default() }
    }

    /// The state that the next transaction is pushed to: that after the last one, whether or not it was acknowledged.
    pub fn latest(&self) -> &State {
        self.states.last().expect("there is the empty state")
    }

    /// The transaction is about to be pushed.
    pub fn pushing(&mut self, transaction: &Transaction) {
        let mut state = self.latest().clone();
        for delta in &transaction.deltas {
            state.apply(delta);
        }
        self.transactions.push(transaction.clone());
        self.states.push(state);
    }

    /// The last transaction was acknowledged as this record.
    ///
    /// # Panics
    /// If the record's number is not the next one.
    pub fn acknowledge(&mut self, lsn: Lsn) {
        assert_eq!(lsn, Lsn(self.transactions.len() as u64), "LSNs are dense: one for each transaction");
        self.acknowledged = lsn;
    }

    /// The last record that was acknowledged.
    pub const fn acknowledged(&self) -> Lsn {
        self.acknowledged
    }

    /// The transaction that is in doubt: pushed and not acknowledged.
    pub fn in_doubt(&self) -> Option<&Transaction> {
        (self.transactions.len() as u64 > self.acknowledged.0).then(|| self.transactions.last()).flatten()
    }

    /// Forgets the transaction in doubt: the journal turned out not to have it.
    pub fn forget_in_doubt(&mut self) {
        let known = usize::try_from(self.acknowledged.0).expect("it counts transactions in memory");
        self.transactions.truncate(known);
        self.states.truncate(known + 1);
    }

    /// All transactions that were pushed.
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }

    /// The state after a record.
    ///
    /// # Panics
    /// If nothing was pushed that could be this record.
    pub fn at(&self, lsn: Lsn) -> &State {
        let index = usize::try_from(lsn.0).expect("it counts transactions in memory");
        self.states.get(index).unwrap_or_else(|| panic!("record {lsn} was never pushed"))
    }

    /// Checks the last record that a restarted agent has: everything acknowledged, and at most the one in doubt.
    pub fn check_durable(&self, durable_lsn: Lsn) {
        let Self { acknowledged, .. } = self;
        let pushed = Lsn(self.transactions.len() as u64);
        assert!(
            durable_lsn >= *acknowledged,
            "record {acknowledged} was acknowledged, the journal ends at {durable_lsn}"
        );
        assert!(durable_lsn <= pushed, "the journal ends at {durable_lsn}, and {pushed} transactions were pushed");
    }
}

#[cfg(test)]
mod tests {
    use super::{Expected, Oracle};
    use crate::seed::Seed;
    use crate::world;

    #[test]
    fn the_foundation_gives_each_destination_its_backends() {
        let mut oracle = Oracle::new();
        oracle.pushing(&world::foundation("test"));
        let destination = "10.96.0.1:443".parse().unwrap();
        let Expected::OneOf(backends) = oracle.latest().expected(destination) else { panic!("it has backends") };
        let wanted = [1, 3, 5, 7].map(|number| format!("127.1.0.{number}:8443").parse().unwrap());
        assert_eq!(backends, wanted.into());
        assert_eq!(oracle.latest().expected("10.96.0.1:81".parse().unwrap()), Expected::Untranslated);
        let entries = oracle.latest().entries();
        assert_eq!((entries.frontends, entries.services, entries.backends), (16, 16, 32));
    }

    #[test]
    fn random_transactions_fit_the_model_of_the_applier() {
        let seed = Seed::from_environment("recovery-tests", "random_transactions_fit_the_model_of_the_applier");
        let mut random = seed.generator(0);
        let mut model = applier::Model::default();
        let mut oracle = Oracle::new();
        oracle.pushing(&world::foundation("test"));
        for version in 2..500 {
            let transaction = oracle.transactions().last().expect("one was pushed");
            model.admit(transaction, &storage_schema::map::Capacities::default()).expect("it is valid");
            let usage = model.usage();
            let entries = oracle.latest().entries();
            let counted = (usage.frontends, usage.services, usage.backends);
            assert_eq!(counted, (entries.frontends, entries.services, entries.backends));
            let next = world::transaction(oracle.latest(), &mut random, "test", version);
            oracle.pushing(&next);
        }
    }
}
