//! What must be true, worked out from what was pushed.
//!
//! The oracle folds transactions into resources and answers, for a destination, where connections may go. It is written
//! from the resources' documentation and shares no code with the applier, so that the two cannot be wrong together.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Transaction};
use storage_schema::resource::{
    LocalityMode, LocalityScope, NoEndpoints, Node, Policy, Protocol, Resource, ResourceKey, Service, ServicePort,
    Workload, WorkloadStatus,
};

use crate::worker::Outcome;

/// The resources at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    resources: BTreeMap<ResourceKey, Resource>,
}

/// How connections to a destination may end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// At one of these.
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

    /// How TCP connections to `destination` may end, unless a waypoint makes them.
    pub fn expected(&self, destination: SocketAddr) -> Expected {
        match self.waypoint_at(destination) {
            None => self.expected_of_waypoint(destination),
            Some(waypoint) if waypoint.is_ipv4() == destination.is_ipv4() => Expected::OneOf([waypoint].into()),
            Some(_) => self.without_backend(self.service_at(destination).map(|(service, _)| service)),
        }
    }

    /// The same, for those that the destination's waypoint makes, where it has one of its address family.
    pub fn expected_of_waypoint(&self, destination: SocketAddr) -> Expected {
        let Some((service, port)) = self.service_at(destination) else { return Expected::Untranslated };
        let backends = self.backends(service, port, destination);
        if backends.is_empty() { self.without_backend(Some(service)) } else { Expected::OneOf(backends) }
    }

    fn without_backend(&self, service: Option<&Service>) -> Expected {
        let of_node = self.node().map(|node| node.no_endpoints).unwrap_or_default();
        match service.and_then(|service| service.no_endpoints).unwrap_or(of_node) {
            NoEndpoints::Refuse => Expected::Refused,
            NoEndpoints::Pass => Expected::Untranslated,
        }
    }

    /// The waypoint of what is reached at a destination over TCP: of a service, or else of the workload whose address it is.
    pub fn waypoint_at(&self, destination: SocketAddr) -> Option<SocketAddr> {
        let waypoint = match self.service_at(destination) {
            Some((service, _)) => service.waypoint.as_ref(),
            None => {
                let mut workloads = self.workloads().filter(|one| one.addresses.contains(&destination.ip()));
                workloads.find_map(|workload| workload.waypoint.as_ref())
            }
        };
        waypoint.map(|waypoint| SocketAddr::new(waypoint.address, waypoint.port))
    }

    /// The service that is reached at a destination over TCP, and the port of its that is; `None`: any port.
    pub fn service_at(&self, destination: SocketAddr) -> Option<(&Service, Option<&ServicePort>)> {
        let (ip, number) = (destination.ip(), destination.port());
        let has = |service: &Service| service.vips.contains(&ip) || service.external_addresses.contains(&ip);
        let is_node = self.node().is_some_and(|node| node.addresses.contains(&ip));
        let named = self.services().find_map(|service| {
            let mut ports = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            let port = ports.find(|port| has(service) && port.port == number || is_node && port.node_port == number)?;
            Some((service, Some(port)))
        });
        named.or_else(|| {
            self.services().find(|service| service.all_ports && has(service)).map(|service| (service, None))
        })
    }

    fn node(&self) -> Option<&Node> {
        self.resources().find_map(|resource| match resource {
            Resource::Node(node) => Some(node),
            _ => None,
        })
    }

    /// Where connections may go.
    fn backends(&self, service: &Service, port: Option<&ServicePort>, dialled: SocketAddr) -> BTreeSet<SocketAddr> {
        for status in [WorkloadStatus::Healthy, WorkloadStatus::Terminating] {
            let members = self.workloads().filter(|workload| workload.status == status);
            let members = members.filter_map(|workload| Some((workload, backend(workload, service, port, dialled)?)));
            let mut members = self.preferred(service, members.collect());
            let weighted = service.load_balancing.policy == Policy::Weighted;
            if weighted && members.iter().any(|(workload, _)| workload.weight > 0) {
                members.retain(|(workload, _)| workload.weight > 0);
            }
            if !members.is_empty() {
                return members.into_iter().map(|(_, address)| address).collect();
            }
        }
        BTreeSet::new()
    }

    fn preferred<'w>(
        &self,
        service: &Service,
        members: Vec<(&'w Workload, SocketAddr)>,
    ) -> Vec<(&'w Workload, SocketAddr)> {
        let nowhere = Node::default();
        let here = self.node().unwrap_or(&nowhere);
        let scopes = &service.load_balancing.locality.routing_preference;
        let matching = |workload: &Workload| {
            let differs = |scope: &&LocalityScope| !matches(**scope, workload, here);
            scopes.len() - scopes.iter().skip_while(|scope| !differs(scope)).count()
        };
        let wanted = match service.load_balancing.locality.mode {
            LocalityMode::None => 0,
            LocalityMode::Strict => scopes.len(),
            LocalityMode::Failover => members.iter().map(|(workload, _)| matching(workload)).max().unwrap_or(0),
        };
        members.into_iter().filter(|(workload, _)| matching(workload) >= wanted).collect()
    }

    /// How many table entries this takes, of services that say no more than [`crate::world::transaction`] has them say.
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
                    let of = |workload| backend(workload, service, Some(port), destination);
                    backends.extend(self.workloads().filter_map(|workload| Some((&workload.uid, of(workload)?))));
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

/// Whether a workload is where the node is, in one respect.
fn matches(scope: LocalityScope, workload: &Workload, node: &Node) -> bool {
    let (there, here) = (&workload.locality, &node.locality);
    match scope {
        LocalityScope::Network => workload.network == node.network,
        LocalityScope::Region => there.region == here.region,
        LocalityScope::Zone => (&there.region, &there.zone) == (&here.region, &here.zone),
        LocalityScope::Subzone => there == here,
        LocalityScope::Node => workload.node == node.name,
        LocalityScope::Cluster => workload.cluster == node.cluster,
    }
}

/// Where a workload serves what was dialled at a port of a service, if it does.
fn backend(
    workload: &Workload,
    service: &Service,
    port: Option<&ServicePort>,
    dialled: SocketAddr,
) -> Option<SocketAddr> {
    let backing = workload.services.iter().find(|backing| backing.service == service.name)?;
    let address = workload.addresses.iter().find(|address: &&IpAddr| address.is_ipv4() == dialled.is_ipv4())?;
    let Some(port) = port else { return Some(SocketAddr::new(*address, dialled.port())) };
    let own = backing.ports.iter().find(|own| own.service_port == port.port).map(|own| own.target_port);
    Some(SocketAddr::new(*address, own.unwrap_or(port.target_port)))
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
    use applier::entry::Changes;
    use applier::{Model, plan};

    use super::{Expected, Oracle, State};
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

    /// What a transaction is said to change, together with what was there, is what the state asks for as a whole.
    #[test]
    fn changes_add_up_to_the_whole_state() {
        let seed = Seed::from_environment("recovery-tests", "changes_add_up_to_the_whole_state");
        let mut random = seed.generator(0);
        let capacities = storage_schema::map::Capacities { endpoints: 1 << 20, ..Default::default() };
        let (mut model, mut state, mut tables) = (applier::Model::default(), State::default(), Changes::default());
        for version in 1..400 {
            let mut transaction = match version {
                1 => world::foundation("test"),
                _ => world::transaction(&state, &mut random, "test", version),
            };
            world::enrich(&mut transaction, &mut random);
            transaction.deltas.iter().for_each(|delta| state.apply(delta));
            tables.merge(model.admit(&transaction, &capacities).expect("it is valid").changes);
            tables.frontends.retain(|_, entry| entry.is_some());
            tables.services.retain(|_, entry| entry.is_some());
            tables.backends.retain(|_, entry| entry.is_some());
            let whole: Result<_, std::convert::Infallible> = Model::load(state.resources().cloned().map(Ok));
            let Ok(whole) = whole;
            let everything = plan::everything(&whole);
            assert_eq!(tables.frontends, everything.frontends);
            assert_eq!(tables.services, everything.services);
            assert_eq!(tables.backends, everything.backends);
            assert_eq!(tables.node.unwrap_or_default(), everything.node.unwrap_or_default());
            assert_eq!(model.usage(), whole.usage());
            // A transaction that is refused or taken back leaves nothing behind.
            let mut next = world::transaction(&state, &mut random, "test", version + 1);
            world::enrich(&mut next, &mut random);
            let admitted = model.admit(&next, &capacities).expect("it is valid");
            model.revert(admitted);
            assert_eq!((plan::everything(&model), model.usage()), (plan::everything(&whole), whole.usage()));
        }
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
