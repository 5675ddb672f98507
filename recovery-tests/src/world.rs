//! Random transactions that an agent must accept: services and workloads of a small mesh that come, go and change.
//!
//! The mesh is small so that everything happens often: destinations move between services, services lose their last
//! workload, cells and index entries are given up and taken again.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rand::seq::{IndexedRandom, IteratorRandom, SliceRandom};
use rand::{Rng, RngCore};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{
    Backing, Kind, Locality, LocalityMode, LocalityScope, NoEndpoints, Node, Policy, PortOverride, Resource,
    ResourceKey, Service, ServicePort, Waypoint, Workload, WorkloadStatus,
};

use crate::echo::backend_addresses;
use crate::oracle::State;

/// The ports that the backends of this mesh listen on: give them to [`crate::echo::EchoServer::start`].
pub const BACKEND_PORTS: [u16; 3] = [8080, 8443, 9080];

const SERVICES: u16 = 4;
const WORKLOADS: u16 = 8;
/// More than services, so that they change hands.
const VIPS: u16 = 6;
const PORTS: [(u16, u16); 2] = [(80, 8080), (443, 8443)];
const OVERRIDE_PORT: u16 = 9080;
/// Nobody listens here.
pub const SILENT_PORT: u16 = 15_008;

/// All destinations that a service of this mesh may have.
pub fn destinations() -> impl Iterator<Item = SocketAddr> {
    (0..VIPS)
        .flat_map(|vip| vips(vip).into_iter().flat_map(|address| PORTS.map(|(port, _)| SocketAddr::new(address, port))))
}

/// The transaction to begin with: all services and workloads, each service with every other workload.
pub fn foundation(source: &str) -> Transaction {
    let services = (0..SERVICES).map(|number| service(number, vips(number).to_vec(), &PORTS));
    let workloads = (0..WORKLOADS).map(|number| {
        let backings = (0..SERVICES).filter(|service| service % 2 == number % 2);
        let backings = backings.map(|service| Backing { service: service_name(service), ports: Vec::new() }).collect();
        workload(number, WorkloadStatus::Healthy, backings)
    });
    let resources = services.map(Resource::Service).chain(workloads.map(Resource::Workload));
    Transaction::push(origin(source, 1), resources.map(Delta::Upsert).collect())
}

/// A transaction that is valid in `state`, as the `version`-th of its source.
pub fn transaction(state: &State, random: &mut impl RngCore, source: &str, version: u64) -> Transaction {
    let mut after = state.clone();
    let mut deltas = Vec::new();
    for _ in 0..random.random_range(1..=4) {
        let more = match random.random_range(0..10) {
            0..5 => change_workload(&after, random),
            5 => remove_workload(random),
            6..8 => change_service(&after, random),
            8 => remove_service(&after, random),
            _ => vec![change_node(random)],
        };
        for delta in &more {
            after.apply(delta);
        }
        deltas.extend(more);
    }
    Transaction::push(origin(source, version), deltas)
}

/// Has services, workloads and the node say more than the mesh needs: policies, places, weights, waypoints, and further ways
/// to be reached. Valid wherever the transaction is, on tables that have room for Maglev tables.
pub fn enrich(transaction: &mut Transaction, random: &mut impl RngCore) {
    for delta in &mut transaction.deltas {
        match delta {
            Delta::Upsert(Resource::Service(service)) => enrich_service(service, random),
            Delta::Upsert(Resource::Workload(workload)) => {
                workload.weight = *[0, 1, 1, 5].choose(random).expect("there are some");
                workload.locality = locality(random);
                workload.node = String::from(if random.random() { "node" } else { "other" });
                workload.waypoint = random.random_ratio(1, 4).then(|| waypoint(random));
            }
            Delta::Upsert(Resource::Node(node)) => {
                node.locality = locality(random);
                node.addresses = NODE_ADDRESSES.into_iter().filter(|_| random.random_ratio(2, 3)).collect();
            }
            Delta::Remove(_) => {}
        }
    }
}

/// The destinations that [`enrich`] adds: external addresses, ports of the node, ports that no service names, and the workloads'
/// own addresses.
pub fn more_destinations() -> impl Iterator<Item = SocketAddr> {
    let external = (0..SERVICES).flat_map(|number| PORTS.map(|(port, _)| SocketAddr::new(external(number), port)));
    let ports = (0..SERVICES).map(node_port);
    let on_node = ports.flat_map(|port| NODE_ADDRESSES.map(|address| SocketAddr::new(address, port)));
    let unnamed = (0..VIPS).flat_map(|vip| vips(vip).map(|address| SocketAddr::new(address, BACKEND_PORTS[0])));
    let workloads = (0..WORKLOADS).flat_map(backend_addresses);
    let direct =
        workloads.flat_map(|address| [BACKEND_PORTS[0], SILENT_PORT].map(|port| SocketAddr::new(address, port)));
    external.chain(on_node).chain(unnamed).chain(direct)
}

/// A waypoint: one that listens, if the backends do, or one that does not.
fn waypoint(random: &mut impl RngCore) -> Waypoint {
    let [v4, v6] = backend_addresses(WORKLOADS - 1);
    let (is_v4, listens): (bool, bool) = (random.random(), random.random());
    let port = if listens { OVERRIDE_PORT } else { SILENT_PORT };
    Waypoint { address: if is_v4 { v4 } else { v6 }, port }
}

/// Whether an address is a workload's.
pub fn is_backend(address: IpAddr) -> bool {
    (0..WORKLOADS).flat_map(backend_addresses).any(|own| own == address)
}

const NODE_ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x51, 0, 0, 0, 0, 0, 1))];

fn external(number: u16) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, number).into()
}

const fn node_port(number: u16) -> u16 {
    30_000 + number
}

fn locality(random: &mut impl RngCore) -> Locality {
    let mut one_of = |names: [&str; 2]| (*names.choose(random).expect("there are some")).to_owned();
    Locality { region: one_of(["eu", "us"]), zone: one_of(["1", "2"]), subzone: String::new() }
}

fn enrich_service(service: &mut Service, random: &mut impl RngCore) {
    let number = (0..SERVICES).find(|number| service_name(*number) == service.name).expect("it is of this mesh");
    let policies = [Policy::Random, Policy::Weighted, Policy::Maglev];
    service.load_balancing.policy = *policies.choose(random).expect("there are some");
    let modes = [LocalityMode::None, LocalityMode::Strict, LocalityMode::Failover, LocalityMode::Failover];
    let locality = &mut service.load_balancing.locality;
    locality.mode = *modes.choose(random).expect("there are some");
    if locality.mode != LocalityMode::None {
        let scopes = [LocalityScope::Region, LocalityScope::Zone, LocalityScope::Node];
        let count = random.random_range(1..=3);
        locality.routing_preference = scopes.into_iter().choose_multiple(random, count);
    }
    service.no_endpoints =
        *[None, Some(NoEndpoints::Refuse), Some(NoEndpoints::Pass)].choose(random).expect("there are some");
    service.accelerate = random.random();
    service.all_ports = random.random();
    if random.random() {
        service.external_addresses = vec![external(number)];
    }
    if random.random() {
        service.ports[0].node_port = node_port(number);
    }
    if random.random_ratio(1, 4) {
        service.waypoint = Some(waypoint(random));
    }
}

/// A transaction of about `bytes` bytes that changes nothing: removals of what is not there, under names that are longer
/// than an agent would take, so that few of them fill a segment of the journal.
pub fn bulk(source: &str, version: u64, bytes: usize) -> Transaction {
    const NAME_BYTES: usize = 60_000;
    let removal =
        |number| Delta::Remove(ResourceKey::new(Kind::Workload, format!("bulk-{version}-{number:0>NAME_BYTES$}")));
    Transaction::push(origin(source, version), (0..bytes.div_ceil(NAME_BYTES)).map(removal).collect())
}

/// A transaction of many changes that change nothing: removals of `count` workloads that are not there.
pub fn crowd(source: &str, version: u64, count: usize) -> Transaction {
    let removal = |number| Delta::Remove(ResourceKey::new(Kind::Workload, format!("crowd-{version}-{number}")));
    Transaction::push(origin(source, version), (0..count).map(removal).collect())
}

fn origin(source: &str, version: u64) -> Origin {
    Origin { source: source.to_owned(), incarnation: 1, version: Some(version) }
}

fn change_workload(state: &State, random: &mut impl RngCore) -> Vec<Delta> {
    let status = match random.random_range(0..10) {
        0..7 => WorkloadStatus::Healthy,
        7 | 8 => WorkloadStatus::Unhealthy,
        _ => WorkloadStatus::Terminating,
    };
    let count = random.random_range(0..=3);
    let services: Vec<&Service> = state.services().choose_multiple(random, count);
    let backings = services.into_iter().map(|service| {
        let own = service.ports.choose(random).filter(|_| random.random_ratio(1, 4));
        let ports = own.map(|port| PortOverride { service_port: port.port, target_port: OVERRIDE_PORT });
        Backing { service: service.name.clone(), ports: ports.into_iter().collect() }
    });
    let backings = backings.collect();
    vec![upsert_workload(workload(random.random_range(0..WORKLOADS), status, backings))]
}

fn remove_workload(random: &mut impl RngCore) -> Vec<Delta> {
    vec![Delta::Remove(ResourceKey::new(Kind::Workload, workload_uid(random.random_range(0..WORKLOADS))))]
}

fn change_service(state: &State, random: &mut impl RngCore) -> Vec<Delta> {
    let number = random.random_range(0..SERVICES);
    let name = service_name(number);
    let taken = |address: &IpAddr| state.services().any(|other| other.name != name && other.vips.contains(address));
    let mut free: Vec<IpAddr> = (0..VIPS).flat_map(vips).filter(|address| !taken(address)).collect();
    free.shuffle(random);
    free.truncate(random.random_range(0..=3));
    let mut ports = PORTS.to_vec();
    ports.shuffle(random);
    ports.truncate(random.random_range(1..=2));
    let mut deltas = vec![Delta::Upsert(Resource::Service(service(number, free, &ports)))];
    // An override for a port that the service no longer has would be refused when its workload is pushed again.
    for workload in state.workloads() {
        let mut changed = workload.clone();
        for backing in changed.services.iter_mut().filter(|backing| backing.service == name) {
            backing.ports.retain(|own| ports.iter().any(|(port, _)| *port == own.service_port));
        }
        if changed != *workload {
            deltas.push(upsert_workload(changed));
        }
    }
    deltas
}

fn remove_service(state: &State, random: &mut impl RngCore) -> Vec<Delta> {
    let name = service_name(random.random_range(0..SERVICES));
    let mut deltas = Vec::new();
    for workload in state.workloads().filter(|w| w.services.iter().any(|backing| backing.service == name)) {
        let mut without = workload.clone();
        without.services.retain(|backing| backing.service != name);
        deltas.push(upsert_workload(without));
    }
    deltas.push(Delta::Remove(ResourceKey::new(Kind::Service, name)));
    deltas
}

fn change_node(random: &mut impl RngCore) -> Delta {
    let no_endpoints = if random.random() { NoEndpoints::Refuse } else { NoEndpoints::Pass };
    let node = Node { name: "node".to_owned(), no_endpoints, ..Node::default() };
    if random.random_ratio(1, 4) {
        Delta::Remove(ResourceKey::new(Kind::Node, node.name))
    } else {
        Delta::Upsert(Resource::Node(node))
    }
}

fn upsert_workload(workload: Workload) -> Delta {
    Delta::Upsert(Resource::Workload(workload))
}

/// A service of this mesh.
pub fn service(number: u16, vips: Vec<IpAddr>, ports: &[(u16, u16)]) -> Service {
    let port = |(port, target_port): &(u16, u16)| ServicePort {
        port: *port,
        target_port: *target_port,
        ..ServicePort::default()
    };
    Service { name: service_name(number), vips, ports: ports.iter().map(port).collect(), ..Service::default() }
}

/// A workload of this mesh.
pub fn workload(number: u16, status: WorkloadStatus, services: Vec<Backing>) -> Workload {
    Workload {
        uid: workload_uid(number),
        name: format!("w{number}"),
        namespace: "mesh".to_owned(),
        addresses: backend_addresses(number).to_vec(),
        status,
        weight: 1,
        services,
        ..Workload::default()
    }
}

/// The virtual addresses of a number, one of each family.
pub fn vips(number: u16) -> [IpAddr; 2] {
    let [high, low] = (number + 1).to_be_bytes();
    [Ipv4Addr::new(10, 96, high, low).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number + 1).into()]
}

fn service_name(number: u16) -> String {
    format!("mesh/s{number}")
}

/// The name that a workload of that number has.
pub fn workload_uid(number: u16) -> String {
    format!("cluster//Pod/mesh/w{number}")
}

/// How often each kind of resource is there, for messages.
pub fn census(state: &State) -> BTreeMap<Kind, usize> {
    let mut counts = BTreeMap::new();
    for resource in state.resources() {
        *counts.entry(resource.kind()).or_default() += 1;
    }
    counts
}
