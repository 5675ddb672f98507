//! What a connection of a real client shows of a policy: clients of a Maglev service keep their backend, and connected UDP
//! sockets are balanced like TCP ones.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use decision::Verdict;
use recovery_tests::bare::Bare;
use recovery_tests::echo::{EchoServer, backend_addresses};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::stamped::{attempt, attempt_over};
use recovery_tests::world;
use rustix::io::Errno;
use rustix::net::SocketType;
use storage_schema::map::{Stamp, key};
use storage_schema::resource::{
    Affinity, Backing, LoadBalancing, Policy, Protocol, Resource, Service, ServicePort, Workload, WorkloadStatus,
};

const PORT: u16 = 8080;

/// A service with a virtual address of each family, and three workloads behind it.
fn service(protocol: Protocol, policy: Policy) -> Vec<Resource> {
    let port = ServicePort { port: 80, target_port: PORT, protocol, ..ServicePort::default() };
    let service = Service {
        name: "mesh/s0".to_owned(),
        vips: world::vips(0).to_vec(),
        ports: vec![port],
        load_balancing: LoadBalancing::of(policy),
        ..Service::default()
    };
    let backing = || vec![Backing { service: service.name.clone(), ports: Vec::new() }];
    let workloads = (0..3).map(|number| world::workload(number, WorkloadStatus::Healthy, backing()));
    let workloads: Vec<Resource> = workloads.map(Resource::Workload).collect();
    workloads.into_iter().chain([Resource::Service(service.clone())]).collect()
}

/// The same, with nobody behind it.
fn without_backends(resources: Vec<Resource>) -> Vec<Resource> {
    let without = |resource| match resource {
        Resource::Workload(workload) => Resource::Workload(Workload { services: Vec::new(), ..workload }),
        other => other,
    };
    resources.into_iter().map(without).collect()
}

#[test]
fn clients_of_a_maglev_service_keep_their_backend() {
    if !kernel_is_usable() {
        return;
    }
    let rig = Bare::start();
    let _server = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
    rig.push(service(Protocol::Tcp, Policy::Maglev));
    let [v4, v6] = world::vips(0).map(|vip| SocketAddr::new(vip, 80));
    for (to, mapped) in [(v4, false), (v4, true), (v6, false)] {
        let attempts: BTreeSet<_> = (0..20)
            .map(|_| {
                let attempt = attempt(rig.datapath(), to, mapped);
                (attempt.arrived.expect("a living backend"), attempt.stamp.expect("a stamp").entropy)
            })
            .collect();
        assert_eq!(attempts.len(), 1, "one client, one backend: {attempts:?}");
    }
    // A client that binds its socket is one of its own, whichever family its socket is of.
    let bound = |address: &str, mapped| {
        let bound = Some(SocketAddr::new(address.parse().expect("an address"), 0));
        let attempt = attempt_over(SocketType::STREAM, rig.datapath(), v4, mapped, bound);
        (attempt.arrived.expect("a living backend"), attempt.stamp.expect("a stamp").entropy)
    };
    let unbound = attempt(rig.datapath(), v4, false).stamp.expect("a stamp").entropy;
    let words: BTreeSet<u32> = (2..66).map(|last| bound(&format!("127.9.9.{last}"), false).1).collect();
    assert_eq!(words.len(), 64, "64 clients");
    assert!(!words.contains(&unbound));
    for last in 2..10 {
        let mapped = bound(&format!("::ffff:127.9.9.{last}"), true);
        assert_eq!(bound(&format!("127.9.9.{last}"), false), mapped);
    }
    let backends: BTreeSet<SocketAddr> = (2..66).map(|last| bound(&format!("127.9.9.{last}"), false).0).collect();
    assert_eq!(backends.len(), 3, "64 clients reach all of them: {backends:?}");
}

/// The service over TCP, whose clients go where they went before, and so many of its workloads healthy.
fn with_affinity(policy: Policy, timeout_seconds: u32, healthy: &[u16]) -> Vec<Resource> {
    let change = |resource| match resource {
        Resource::Service(service) => {
            let affinity = Some(Affinity { timeout_seconds });
            Resource::Service(Service {
                load_balancing: LoadBalancing { affinity, ..LoadBalancing::of(policy) },
                ..service
            })
        }
        Resource::Workload(workload) => {
            let healthy = healthy.iter().any(|number| world::workload_uid(*number) == workload.uid);
            let status = if healthy { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy };
            Resource::Workload(Workload { status, ..workload })
        }
        node @ Resource::Node(_) => node,
    };
    service(Protocol::Tcp, policy).into_iter().map(change).collect()
}

/// Where a client's connection arrives, which must be what the host decides for its stamp.
fn arrived(rig: &Bare, to: SocketAddr, mapped: bool, client: Option<u8>) -> SocketAddr {
    let bound = client.map(|last| if mapped { format!("::ffff:127.9.9.{last}") } else { format!("127.9.9.{last}") });
    let bound = bound.map(|address| SocketAddr::new(address.parse().expect("an address"), 0));
    let attempt = attempt_over(SocketType::STREAM, rig.datapath(), to, mapped, bound);
    let stamp = attempt.stamp.expect("a stamp");
    assert_ne!(stamp.flags & Stamp::AFFINITY, 0);
    let arrived = attempt.arrived.expect("a living backend");
    let Verdict::Forward { backend, address, port_be, entropy, flags, .. } = rig.decide_again(&stamp) else {
        panic!("the kernel forwarded: {stamp:?}")
    };
    assert_eq!((backend, entropy, flags), (stamp.backend, stamp.entropy, stamp.flags));
    assert_eq!(SocketAddr::new(key::address_from_words(address), u16::from_be(port_be)), arrived);
    arrived
}

#[test]
fn with_affinity_a_client_goes_where_it_went_before() {
    if !kernel_is_usable() {
        return;
    }
    let mut rig = Bare::start();
    let _server = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
    let [v4, v6] = world::vips(0).map(|vip| SocketAddr::new(vip, 80));
    let clients = 2..42;
    for policy in [Policy::Random, Policy::Weighted] {
        // Clients of the policy before have a backend each; these begin anew, behind the only one there is.
        rig.push(with_affinity(policy, 86_400, &[0]));
        let only = arrived(&rig, v4, false, None);
        for client in clients.clone() {
            assert_eq!(arrived(&rig, v4, false, Some(client)), only);
        }
        let only_v6 = arrived(&rig, v6, false, None);
        // Whoever joins gets none of them, whatever the order is in which they stand.
        for healthy in [&[0, 1, 2][..], &[0, 2], &[0, 1, 2]] {
            rig.push(with_affinity(policy, 86_400, healthy));
            for client in clients.clone() {
                assert_eq!(arrived(&rig, v4, client % 2 == 0, Some(client)), only, "{policy:?}, {healthy:?}");
            }
            assert_eq!(arrived(&rig, v6, false, None), only_v6, "a family's backends are its own");
        }
        // Where it goes when that is gone, it stays when that is back; an agent that is away or new changes nothing.
        rig.push(with_affinity(policy, 86_400, &[1, 2]));
        let second: Vec<SocketAddr> = clients.clone().map(|client| arrived(&rig, v4, false, Some(client))).collect();
        assert_eq!(second.iter().collect::<BTreeSet<_>>().len(), 2, "40 clients reach both");
        rig.push(with_affinity(policy, 86_400, &[0, 1, 2]));
        for turn in 0..3 {
            match turn {
                0 => {}
                1 => rig.restart(),
                _ => rig.renew(),
            }
            let now: Vec<SocketAddr> = clients.clone().map(|client| arrived(&rig, v4, true, Some(client))).collect();
            assert_eq!(now, second, "{policy:?}, turn {turn}");
        }
    }
}

#[test]
fn affinity_ends_with_its_timeout() {
    if !kernel_is_usable() {
        return;
    }
    let rig = Bare::start();
    let _server = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
    let [v4, _] = world::vips(0).map(|vip| SocketAddr::new(vip, 80));
    rig.push(with_affinity(Policy::Random, 1, &[0]));
    for client in 2..42 {
        arrived(&rig, v4, false, Some(client));
    }
    thread::sleep(Duration::from_millis(2_100));
    rig.push(with_affinity(Policy::Random, 1, &[0, 1, 2]));
    let reached: BTreeSet<SocketAddr> = (2..42).map(|client| arrived(&rig, v4, false, Some(client))).collect();
    assert_eq!(reached.len(), 3, "40 clients are drawn for again");
}

#[test]
fn connected_udp_is_balanced() {
    if !kernel_is_usable() {
        return;
    }
    let rig = Bare::start();
    for number in 0..3 {
        let [v4, _] = backend_addresses(number);
        let echo = UdpSocket::bind((v4, PORT)).expect("a free port in a new namespace");
        thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((length, from)) = echo.recv_from(&mut datagram) {
                if echo.send_to(&datagram[..length], from).is_err() || &datagram[..length] == b"end" {
                    return;
                }
            }
        });
    }
    rig.push(service(Protocol::Udp, Policy::Random));
    let [v4, v6] = world::vips(0).map(|vip| SocketAddr::new(vip, 80));
    for (to, mapped) in [(v4, false), (v4, true), (v6, false)] {
        let mut reached = BTreeSet::new();
        for _ in 0..60 {
            let attempt = attempt_over(SocketType::DGRAM, rig.datapath(), to, mapped, None);
            let stamp = attempt.stamp.expect("a stamp");
            assert_eq!((stamp.outcome, stamp.protocol), (Stamp::FORWARDED, Protocol::Udp.number()));
            reached.insert(attempt.arrived.expect("a datagram socket connects at once"));
        }
        assert_eq!(reached.len(), 3, "{to}: {reached:?}");
    }
    let client = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    client.connect(v4).expect("a datagram socket connects at once");
    for word in [&b"one"[..], b"two", b"end"] {
        client.send(word).expect("loopback");
        let mut answer = [0; 64];
        let length = client.recv(&mut answer).expect("an answer from the backend");
        assert_eq!(&answer[..length], word);
    }
    // The TCP port of the same number is not the service's.
    assert!(attempt(rig.datapath(), v4, false).stamp.is_none());

    rig.push(without_backends(service(Protocol::Udp, Policy::Random)));
    let refused = attempt_over(SocketType::DGRAM, rig.datapath(), v4, false, None);
    assert_eq!(refused.arrived, Err(Errno::CONNREFUSED));
}
