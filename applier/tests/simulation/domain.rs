//! Random transactions over a domain that is small enough to recycle every cell many times.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rand::Rng;
use rand::seq::{IndexedRandom, IteratorRandom};
use rand_chacha::ChaCha8Rng;
use storage_schema::map::Capacities;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{
    Backing, Dns, Kind, NoEndpoints, Node, PortOverride, Resource, ResourceKey, Service, ServicePort, Waypoint,
    Workload, WorkloadStatus,
};

/// Room that is scarce: pushes that do not fit are part of the game, and runs change halves often.
pub(crate) const CAPACITIES: Capacities = Capacities { frontends: 24, services: 16, backends: 24, endpoints: 40 };

const SERVICES: u8 = 5;
const WORKLOADS: u8 = 8;
const STEADY_SERVICES: u8 = 16;

/// What the transactions of a schedule are like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Style {
    /// Anything.
    Any,
    /// Services that each have a workload to themselves when they are new, and workloads that fail and heal: runs go and
    /// others come, with hardly a cell written that was written before.
    Steady,
    /// Few services without workloads, which come and go: entries come back before they are retired.
    Flapping,
}

/// A source of transactions, most of which are valid.
pub(crate) struct Domain {
    style: Style,
    services: Vec<u8>,
    /// With [`Style::Steady`]: what each workload backs, and whether it is healthy.
    workloads: [(BTreeSet<u8>, bool); WORKLOADS as usize],
}

impl Domain {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, services: Vec::new(), workloads: std::array::from_fn(|_| (BTreeSet::new(), true)) }
    }

    /// The next transaction. It may be refused: dangling, duplicate or too large.
    pub(crate) fn transaction(&mut self, random: &mut ChaCha8Rng) -> Transaction {
        // Small ones touch few cells, so that several flips go by within one grace period.
        let length = if random.random_bool(0.7) { 1 } else { random.random_range(2..=6) };
        let deltas = match self.style {
            Style::Any => (0..length).map(|_| self.delta(random)).collect(),
            Style::Steady => self.steady_deltas(random),
            Style::Flapping => (0..length).map(|_| flapping_delta(random)).collect(),
        };
        transaction(deltas)
    }

    fn steady_deltas(&mut self, random: &mut ChaCha8Rng) -> Vec<Delta> {
        let number = random.random_range(0..WORKLOADS);
        let (services, healthy) = &mut self.workloads[usize::from(number)];
        let mut deltas = Vec::new();
        if random.random() {
            let service = random.random_range(0..STEADY_SERVICES);
            services.insert(service);
            deltas.push(Delta::Upsert(Resource::Service(plain_service(service, &[80]))));
        } else {
            *healthy = !*healthy;
        }
        let status = if *healthy { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy };
        deltas.push(Delta::Upsert(Resource::Workload(plain_workload(number, 0, status, services))));
        deltas
    }

    fn delta(&mut self, random: &mut ChaCha8Rng) -> Delta {
        match random.random_range(0..20) {
            0..=6 => {
                let number = random.random_range(0..SERVICES);
                self.services.push(number);
                Delta::Upsert(Resource::Service(service(number, random)))
            }
            7..=14 => Delta::Upsert(Resource::Workload(self.workload(random))),
            15 => Delta::Remove(ResourceKey::new(Kind::Service, service_name(random.random_range(0..SERVICES)))),
            16..=18 => Delta::Remove(ResourceKey::new(Kind::Workload, uid(random.random_range(0..WORKLOADS)))),
            _ => Delta::Upsert(Resource::Node(Node {
                name: "node".to_owned(),
                no_endpoints: if random.random() { NoEndpoints::Pass } else { NoEndpoints::Refuse },
                dns: random
                    .random::<bool>()
                    .then(|| Dns { proxy: IpAddr::V4(Ipv4Addr::new(10, 1, 3, random.random())), port: 53 }),
                ..Node::default()
            })),
        }
    }

    fn workload(&self, random: &mut ChaCha8Rng) -> Workload {
        let number = random.random_range(0..WORKLOADS);
        let mut addresses = Vec::new();
        if random.random_bool(0.9) {
            addresses.push(IpAddr::V4(Ipv4Addr::new(10, 1, random.random_range(0..3), number + 1)));
        }
        if random.random_bool(0.5) {
            addresses.push(IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, u16::from(number) + 1)));
        }
        let backed = self.services.iter().copied().collect::<BTreeSet<_>>();
        let services: Vec<_> = backed
            .into_iter()
            .choose_multiple(random, 2)
            .into_iter()
            .map(|service| Backing {
                service: service_name(service),
                ports: if random.random_bool(0.2) {
                    vec![PortOverride { service_port: 80, target_port: 9000 + u16::from(number) }]
                } else {
                    Vec::new()
                },
            })
            .collect();
        Workload {
            uid: uid(number),
            addresses,
            status: *[
                WorkloadStatus::Healthy,
                WorkloadStatus::Healthy,
                WorkloadStatus::Unhealthy,
                WorkloadStatus::Terminating,
            ]
            .choose(random)
            .expect("there are statuses"),
            services,
            waypoint: waypoint(random, 0.25),
            ..Workload::default()
        }
    }
}

fn flapping_delta(random: &mut ChaCha8Rng) -> Delta {
    let number = random.random_range(0..SERVICES);
    if random.random() {
        Delta::Upsert(Resource::Service(plain_service(number, &[80])))
    } else {
        Delta::Remove(ResourceKey::new(Kind::Service, service_name(number)))
    }
}

fn service(number: u8, random: &mut ChaCha8Rng) -> Service {
    let mut vips = Vec::new();
    if random.random_bool(0.8) {
        // Sometimes another service's address, so that destinations collide and move.
        let host = if random.random_bool(0.1) { random.random_range(0..SERVICES) } else { number };
        vips.push(IpAddr::V4(Ipv4Addr::new(10, 96, 0, host + 1)));
    }
    if random.random_bool(0.4) {
        vips.push(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number) + 1)));
    }
    let mut ports = vec![port(80, 8080)];
    if random.random_bool(0.4) {
        ports.push(port(443, 8443));
    }
    Service { name: service_name(number), vips, ports, waypoint: waypoint(random, 0.15), ..Service::default() }
}

/// Sometimes one, of either family, at a port at which workloads serve as well.
fn waypoint(random: &mut ChaCha8Rng, probability: f64) -> Option<Waypoint> {
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);
    random.random_bool(probability).then(|| {
        let address = if random.random() { IpAddr::V4(Ipv4Addr::new(10, 2, 0, 1)) } else { IpAddr::V6(v6) };
        Waypoint { address, port: 8080 }
    })
}

/// The transactions of which each gives both ports of one service other endpoints than the one before.
pub(crate) fn churn(round: u8) -> Transaction {
    let workload = |number: u8| {
        let healthy = number != round % 5;
        let status = if healthy { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy };
        Delta::Upsert(Resource::Workload(plain_workload(number, round % 2, status, &BTreeSet::from([0]))))
    };
    if round > 0 {
        // One becomes healthy again, the next one unhealthy.
        return transaction(vec![workload((round + 4) % 5), workload(round % 5)]);
    }
    let service = Delta::Upsert(Resource::Service(plain_service(0, &[80, 443])));
    transaction(std::iter::once(service).chain((0..6).map(workload)).collect())
}

/// Removes the service of [`churn`], and adds another one.
pub(crate) fn other_destinations() -> [Transaction; 2] {
    let removal = Delta::Remove(ResourceKey::new(Kind::Service, service_name(0)));
    let workloads = (0..6).map(|number| {
        Delta::Upsert(Resource::Workload(plain_workload(number, 0, WorkloadStatus::Healthy, &BTreeSet::new())))
    });
    let other = Delta::Upsert(Resource::Service(plain_service(1, &[80, 443])));
    [transaction(workloads.chain([removal]).collect()), transaction(vec![other])]
}

fn plain_service(number: u8, ports: &[u16]) -> Service {
    let vips = vec![IpAddr::V4(Ipv4Addr::new(10, 96, 0, number + 1))];
    let ports = ports.iter().map(|number| port(*number, 8000 + *number)).collect();
    Service { name: service_name(number), vips, ports, ..Service::default() }
}

fn plain_workload(number: u8, network: u8, status: WorkloadStatus, services: &BTreeSet<u8>) -> Workload {
    let backing = |service: &u8| Backing { service: service_name(*service), ports: Vec::new() };
    Workload {
        uid: uid(number),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(10, 1, network, number + 1))],
        status,
        services: services.iter().map(backing).collect(),
        ..Workload::default()
    }
}

fn port(port: u16, target_port: u16) -> ServicePort {
    ServicePort { port, target_port, ..ServicePort::default() }
}

fn transaction(deltas: Vec<Delta>) -> Transaction {
    Transaction::push(Origin { source: "simulation".to_owned(), incarnation: 1, version: None }, deltas)
}

fn service_name(number: u8) -> String {
    format!("sim/service-{number}")
}

fn uid(number: u8) -> String {
    format!("sim//Pod/workload-{number}")
}
