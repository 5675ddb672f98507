//! Workloads and services with a waypoint: clients come to it, it comes to them, and nobody goes round in circles. Workloads
//! without one are reached as they are dialled, also those of a service without an address.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use recovery_tests::bare::Bare;
use recovery_tests::echo::{EchoServer, backend_addresses};
use recovery_tests::elsewhere::{ELSEWHERE, Elsewhere};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::stamped::{Attempt, attempt, attempt_over, ends};
use recovery_tests::world;
use rustix::io::Errno;
use rustix::net::{SocketType, getpeername};
use storage_schema::id::ResourceId;
use storage_schema::map::Stamp;
use storage_schema::resource::{
    Backing, Kind, LoadBalancing, Policy, Resource, Service, ServicePort, Waypoint, Workload, WorkloadStatus,
};

const PORT: u16 = 8080;
const WAYPOINT_PORT: u16 = 15_008;

fn waypoint(address: IpAddr) -> Waypoint {
    Waypoint { address, port: WAYPOINT_PORT }
}

fn workload(number: u16, waypoint: Option<Waypoint>, services: Vec<Backing>) -> Resource {
    Resource::Workload(Workload { waypoint, ..world::workload(number, WorkloadStatus::Healthy, services) })
}

/// The stamp of a connection that went to a waypoint.
#[track_caller]
fn redirected(attempt: &Attempt, to: SocketAddr, waypoint: IpAddr, owner: ResourceId) {
    let waypoint = SocketAddr::new(waypoint, WAYPOINT_PORT);
    assert_eq!(attempt.arrived, Ok(waypoint), "dialled {to}");
    let stamp = attempt.stamp.expect("it is stamped");
    assert_eq!(ends(&stamp), (to, waypoint));
    assert_eq!((stamp.outcome, stamp.flags), (Stamp::FORWARDED, Stamp::WAYPOINT));
    assert_eq!((stamp.service, stamp.backend), (owner.0, owner.0), "a waypoint is what was dialled's own");
    let shown = SocketAddr::try_from(getpeername(&attempt.socket).expect("connected").expect("an address"));
    let shown = shown.expect("an IP address");
    assert_eq!(SocketAddr::new(shown.ip().to_canonical(), shown.port()), to);
}

/// A connection that goes as it was dialled.
#[track_caller]
fn direct(attempt: &Attempt, to: SocketAddr) {
    assert_eq!((attempt.arrived, attempt.stamp), (Ok(to), None));
}

#[test]
fn a_workload_with_a_waypoint_is_reached_through_it_on_every_port() {
    if !kernel_is_usable() {
        return;
    }
    let mut bare = Bare::start();
    let elsewhere = Elsewhere::new();
    let _waypoint = elsewhere.run(|| EchoServer::start(&[WAYPOINT_PORT, PORT])).expect("a free port");
    let _here = EchoServer::start(&[PORT]).expect("a free port");
    let owner = ResourceId::named(Kind::Workload, &world::workload_uid(0));
    let addresses = backend_addresses(0);
    let own = format!("{}/128", addresses[1]);
    bare.sandbox().add_addresses([own.as_str()]).expect("`ip` adds an address");
    for (turn, family) in [0, 1, 0].into_iter().enumerate() {
        bare.push(vec![workload(0, Some(waypoint(ELSEWHERE[family])), Vec::new())]);
        match turn {
            0 => {}
            1 => bare.restart(),
            _ => bare.renew(),
        }
        for port in [1, PORT, WAYPOINT_PORT, u16::MAX] {
            let to = SocketAddr::new(addresses[family], port);
            for mapped in [false, true] {
                redirected(&attempt(bare.datapath(), to, mapped), to, ELSEWHERE[family], owner);
            }
            // Not over the other family: that would go round the waypoint.
            let other = attempt(bare.datapath(), SocketAddr::new(addresses[1 - family], port), false);
            assert_eq!(other.arrived, Err(Errno::CONNREFUSED));
            assert_eq!(other.stamp.expect("it is stamped").outcome, Stamp::REFUSED);
        }
        // The waypoint itself goes to the workload, although it is a client like any other.
        let to = SocketAddr::new(addresses[family], PORT);
        for mapped in [false, true] {
            direct(&elsewhere.run(|| attempt(bare.datapath(), to, mapped)), to);
        }
        // A datagram could not say where it was sent.
        let listener = UdpSocket::bind(to).expect("a free port");
        direct(&attempt_over(SocketType::DGRAM, bare.datapath(), to, false, None), to);
        let client = UdpSocket::bind((if family == 0 { "127.0.0.1" } else { "::1" }, 0)).expect("a free port");
        client.send_to(b"datagram", to).expect("it is sent");
        let (_, from) = listener.recv_from(&mut [0; 16]).expect("it arrives");
        assert_eq!(from, client.local_addr().expect("bound"));
        // Others are as they were.
        let other = SocketAddr::new(backend_addresses(1)[family], PORT);
        direct(&attempt(bare.datapath(), other, false), other);
    }
    bare.push(vec![workload(0, None, Vec::new())]);
    for to in addresses.map(|address| SocketAddr::new(address, PORT)) {
        direct(&attempt(bare.datapath(), to, false), to);
    }
}

#[test]
fn the_waypoint_of_a_service_is_balanced_to_its_workloads() {
    if !kernel_is_usable() {
        return;
    }
    let bare = Bare::start();
    let elsewhere = Elsewhere::new();
    let waypoint_server = elsewhere.run(|| EchoServer::start(&[WAYPOINT_PORT, PORT])).expect("a free port");
    let port = ServicePort { port: 80, target_port: PORT, ..ServicePort::default() };
    for policy in [Policy::Random, Policy::Weighted, Policy::Maglev] {
        for (family, at) in ELSEWHERE.into_iter().enumerate() {
            let service = Service {
                name: "mesh/s0".to_owned(),
                vips: world::vips(0).to_vec(),
                ports: vec![port.clone()],
                load_balancing: LoadBalancing::of(policy),
                waypoint: Some(waypoint(at)),
                ..Service::default()
            };
            let owner = ResourceId::named(Kind::Service, &service.name);
            let backing = || vec![Backing { service: service.name.clone(), ports: Vec::new() }];
            // What a workload says of its own waypoint is for those who dial the workload.
            let workloads = (0..3).map(|number| workload(number, Some(waypoint(at)), backing()));
            bare.push(workloads.chain([Resource::Service(service.clone())]).collect());
            let [to, other] = [family, 1 - family].map(|family| SocketAddr::new(world::vips(0)[family], 80));
            redirected(&attempt(bare.datapath(), to, false), to, at, owner);
            assert_eq!(attempt(bare.datapath(), other, false).arrived, Err(Errno::CONNREFUSED));
            let from_waypoint = || -> BTreeSet<SocketAddr> {
                let connect = |number: u16| {
                    let attempt = attempt(bare.datapath(), to, number.is_multiple_of(2));
                    let stamp = attempt.stamp.expect("it is stamped");
                    assert_eq!(stamp.flags, Stamp::FROM_WAYPOINT);
                    assert_eq!(bare.decide_again(&stamp).stamp(stamp.epoch, &dialled(&stamp)), without_time(stamp));
                    attempt.arrived.expect("a living backend")
                };
                (0..40).map(connect).collect()
            };
            let reached = elsewhere.run(from_waypoint);
            let backends: BTreeSet<_> = (0..3).map(|n| SocketAddr::new(backend_addresses(n)[family], PORT)).collect();
            assert!(reached.is_subset(&backends), "{reached:?}");
            assert_eq!(reached.len(), if policy == Policy::Maglev { 1 } else { 3 }, "{policy:?}");
        }
    }
    // As soon as it listens no more, it is a client like any other.
    drop(waypoint_server);
    let to = SocketAddr::new(world::vips(0)[1], 80);
    let stamp = elsewhere.run(|| attempt(bare.datapath(), to, false)).stamp.expect("it is stamped");
    assert_eq!(stamp.flags, Stamp::WAYPOINT);
}

fn dialled(stamp: &Stamp) -> storage_schema::map::FrontendKey {
    let (original, _) = ends(stamp);
    storage_schema::map::FrontendKey::new(original.ip(), original.port(), stamp.protocol)
}

fn without_time(stamp: Stamp) -> Stamp {
    Stamp { monotonic_ns: 0, ..stamp }
}

#[test]
fn workloads_of_a_headless_service_are_reached_as_dialled() {
    if !kernel_is_usable() {
        return;
    }
    let bare = Bare::start();
    let _server = EchoServer::start(&[PORT, 80]).expect("a free port");
    let port = ServicePort { port: 80, target_port: PORT, ..ServicePort::default() };
    let headless = Service { name: "mesh/s0".to_owned(), ports: vec![port], ..Service::default() };
    let backing = || vec![Backing { service: headless.name.clone(), ports: Vec::new() }];
    // Who backs it is what refers to it; nobody has an address at which it could be reached.
    bare.push(vec![workload(0, None, backing()), workload(1, None, backing()), Resource::Service(headless.clone())]);
    let everywhere = (0..2).flat_map(backend_addresses).flat_map(|address| [80, PORT].map(|port| (address, port)));
    for to in everywhere.map(SocketAddr::from) {
        for mapped in [false, true] {
            direct(&attempt(bare.datapath(), to, mapped), to);
        }
    }
    // It is a service like any other once it has an address.
    let vips = world::vips(0).to_vec();
    bare.push(vec![Resource::Service(Service { vips, ..headless })]);
    for (family, vip) in world::vips(0).into_iter().enumerate() {
        let attempt = attempt(bare.datapath(), SocketAddr::new(vip, 80), false);
        let backends = [0, 1].map(|number| SocketAddr::new(backend_addresses(number)[family], PORT));
        assert!(backends.contains(&attempt.arrived.expect("a living backend")));
    }
}
