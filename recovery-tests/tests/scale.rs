//! A restart with 10,000 services and 160,000 endpoints writes no map entry.

use std::net::{IpAddr, Ipv4Addr};

use api::Level;
use recovery_tests::agent::{Agent, Settings};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use storage_schema::map::Capacities;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Protocol, Resource, Service, ServicePort, Workload};

const SERVICES: u32 = 10_000;
const ENDPOINTS_EACH: u32 = 16;
/// Services of one transaction, together with their workloads.
const SERVICES_EACH: u32 = 500;

#[test]
fn a_restart_at_scale_writes_nothing() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let entries = SERVICES * ENDPOINTS_EACH;
    let capacities = Capacities { frontends: SERVICES, services: SERVICES, backends: entries, endpoints: entries };
    let settings = Settings { capacities, ..Settings::default() };
    let agent = Agent::start(&sandbox, &settings);
    for first in (0..SERVICES).step_by(SERVICES_EACH as usize) {
        let deltas = (first..first + SERVICES_EACH).flat_map(resources).map(Delta::Upsert).collect();
        let origin = Origin { source: "scale".to_owned(), incarnation: 1, version: Some(u64::from(first) + 1) };
        agent.apply(&Transaction { origin, deltas }, Level::Applied).expect("it fits");
    }
    let before = agent.status();
    assert!(
        before.datapath.map_writes >= u64::from(entries + 3 * SERVICES),
        "{} entries were written",
        before.datapath.map_writes
    );
    agent.kill();

    let mut agent = Agent::spawn(&sandbox, &settings);
    let after = agent.wait_ready().expect("it gets ready");
    println!(
        "ready {} µs after the start, {} entries rewritten",
        after.restart.time_to_ready_us, after.restart.entries_rewritten
    );
    assert_eq!(after.restart.entries_rewritten, 0);
    assert_eq!(after.datapath.map_writes, 0);
    assert_eq!((after.applied_lsn, after.durable_lsn), (before.applied_lsn, before.durable_lsn));
    agent.kill();
}

/// A service and its workloads.
fn resources(number: u32) -> impl Iterator<Item = Resource> {
    let address = |base: u32, number: u32| IpAddr::V4(Ipv4Addr::from(base + number));
    let name = format!("scale/s{number}");
    let port = ServicePort { name: String::new(), port: 80, target_port: 8080, protocol: Protocol::Tcp };
    let vips = vec![address(0x0a60_0001, number)];
    let service = Service { name: name.clone(), vips, ports: vec![port], ..Service::default() };
    let workloads = (0..ENDPOINTS_EACH).map(move |member| {
        let number = number * ENDPOINTS_EACH + member;
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
