//! Services to dial: each has an address of its own, and three workloads that nobody else has.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use storage_schema::map::Capacities;
use storage_schema::resource::{
    Affinity, Backing, LoadBalancing, Policy, Protocol, Resource, Service, ServicePort, Workload, WorkloadStatus,
};

/// How many services the policies are compared with.
pub(crate) const SMALL: u32 = 100;
/// Their workloads' addresses are those of `127.1.0.0` to `127.255.255.255`.
pub(crate) const SERVICES_MAX: u32 = 1_000_000;
/// Where workloads listen.
pub(crate) const PORT: u16 = 8080;
const WORKLOADS: u32 = 3;
/// How many go into one transaction.
pub(crate) const TOGETHER: u32 = 2_000;
/// Slots that each of a few Maglev services takes.
const MAGLEV_SLOTS: u32 = 4_093 * 2;

pub(crate) fn capacities(services: u32) -> Capacities {
    Capacities {
        frontends: 2 * services,
        services: 2 * services,
        backends: 2 * WORKLOADS * services,
        endpoints: 3 * WORKLOADS * services + SMALL * MAGLEV_SLOTS,
    }
}

/// Where a service is reached.
pub(crate) fn vip(number: u32) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number)), 80)
}

/// Where one of its workloads is.
pub(crate) fn backend(service: u32, number: u32) -> SocketAddr {
    let place = service * WORKLOADS + number;
    SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(127, 1, 0, 0).to_bits() + place)), PORT)
}

/// Services with these numbers.
pub(crate) fn services(numbers: std::ops::Range<u32>, policy: Policy, affinity: Option<Affinity>) -> Vec<Resource> {
    numbers.flat_map(|number| service(number, policy, affinity)).collect()
}

fn service(number: u32, policy: Policy, affinity: Option<Affinity>) -> Vec<Resource> {
    let port = |protocol| ServicePort { port: 80, target_port: PORT, protocol, ..ServicePort::default() };
    let service = Service {
        name: format!("bench/s{number}"),
        vips: vec![vip(number).ip()],
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        load_balancing: LoadBalancing { affinity, ..LoadBalancing::of(policy) },
        ..Service::default()
    };
    let workloads = (0..WORKLOADS).map(|which| Workload {
        uid: format!("bench//Pod/bench/w{number}-{which}"),
        name: format!("w{number}-{which}"),
        namespace: "bench".to_owned(),
        addresses: vec![backend(number, which).ip()],
        status: WorkloadStatus::Healthy,
        weight: 1 + which,
        services: vec![Backing { service: service.name.clone(), ports: Vec::new() }],
        ..Workload::default()
    });
    let workloads: Vec<Resource> = workloads.map(Resource::Workload).collect();
    [Resource::Service(service)].into_iter().chain(workloads).collect()
}
