//! Many services that nobody connects to: for tests of size. They have nothing in common with [`crate::world`].

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Resource, Service, ServicePort, Workload};

/// A transaction with the services of these numbers, each with so many workloads of its own. Its version follows from the
/// first number.
pub fn transaction(services: Range<u32>, endpoints_each: u32) -> Transaction {
    let version = Some(u64::from(services.start) + 1);
    let origin = Origin { source: "crowd".to_owned(), incarnation: 1, version };
    let deltas = services.flat_map(|number| resources(number, endpoints_each)).map(Delta::Upsert).collect();
    Transaction::push(origin, deltas)
}

/// A service and its workloads.
fn resources(number: u32, endpoints_each: u32) -> impl Iterator<Item = Resource> {
    let address = |base: u32, number: u32| IpAddr::V4(Ipv4Addr::from(base + number));
    let name = format!("scale/s{number}");
    let port = ServicePort { port: 80, target_port: 8080, ..ServicePort::default() };
    let vips = vec![address(0x0a70_0001, number)];
    let service = Service { name: name.clone(), vips, ports: vec![port], ..Service::default() };
    let workloads = (0..endpoints_each).map(move |member| {
        let number = number * endpoints_each + member;
        Resource::Workload(Workload {
            uid: format!("cluster//Pod/scale/w{number}"),
            addresses: vec![address(0x0b00_0001, number)],
            weight: 1,
            services: vec![Backing { service: name.clone(), ports: Vec::new() }],
            ..Workload::default()
        })
    });
    std::iter::once(Resource::Service(service)).chain(workloads)
}
