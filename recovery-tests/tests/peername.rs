//! An application is shown the address that it dialled, whatever that led to; everything else is shown as it is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use recovery_tests::bare::Bare;
use recovery_tests::echo::{EchoServer, backend_addresses};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::stamped::{Attempt, attempt_over, ends};
use recovery_tests::world;
use rustix::net::{SocketType, connect, getpeername};
use storage_schema::resource::{Backing, Protocol, Resource, Service, ServicePort, WorkloadStatus};

const PORT: u16 = 8080;

/// A service over both protocols, and three workloads behind it.
fn mesh() -> Vec<Resource> {
    let port = |protocol| ServicePort { port: 80, target_port: PORT, protocol, ..ServicePort::default() };
    let service = Service {
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        ..world::service(0, world::vips(0).to_vec(), &[])
    };
    let backing = || vec![Backing { service: service.name.clone(), ports: Vec::new() }];
    let workloads = (0..3).map(|number| world::workload(number, WorkloadStatus::Healthy, backing()));
    let workloads: Vec<Resource> = workloads.map(Resource::Workload).collect();
    workloads.into_iter().chain([Resource::Service(service)]).collect()
}

/// What an application is shown.
fn shown(attempt: &Attempt) -> SocketAddr {
    SocketAddr::try_from(getpeername(&attempt.socket).expect("connected").expect("an address")).expect("an IP address")
}

fn as_written(address: SocketAddr, mapped: bool) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) if mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        _ => address,
    }
}

#[test]
fn a_connected_socket_shows_what_was_dialled() {
    if !kernel_is_usable() {
        return;
    }
    let mut bare = Bare::start();
    let _server = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
    bare.push(mesh());
    let [v4, v6] = world::vips(0).map(|vip| SocketAddr::new(vip, 80));
    let mut connected = Vec::new();
    for kind in [SocketType::STREAM, SocketType::DGRAM] {
        for (to, mapped) in [(v4, false), (v4, true), (v6, false)] {
            for _ in 0..10 {
                let attempt = attempt_over(kind, bare.datapath(), to, mapped, None);
                let arrived = attempt.arrived.expect("a living backend");
                assert_eq!(ends(&attempt.stamp.expect("a stamp")), (to, arrived));
                assert_eq!(shown(&attempt), as_written(to, mapped), "{kind:?} to {arrived}");
                connected.push((attempt, as_written(to, mapped)));
            }
            // Who dials a backend is shown that.
            let backend = SocketAddr::new(backend_addresses(1)[usize::from(to.is_ipv6())], PORT);
            let direct = attempt_over(kind, bare.datapath(), backend, mapped, None);
            assert_eq!((direct.arrived, shown(&direct)), (Ok(backend), as_written(backend, mapped)));
        }
    }
    // An agent that is away or new, and new programs, change nothing.
    for turn in 0..2 {
        if turn == 0 {
            bare.restart();
        } else {
            bare.renew();
        }
        for (attempt, dialled) in &connected {
            assert_eq!(shown(attempt), *dialled);
        }
    }
    // A datagram socket that is connected elsewhere is shown where.
    let (datagram, _) = connected.pop().expect("there are many");
    let elsewhere = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).expect("a free port").local_addr().expect("bound");
    connect(&datagram.socket, &elsewhere).expect("a datagram socket connects at once");
    assert_eq!(shown(&datagram), elsewhere);
}

#[test]
fn who_accepts_is_shown_his_client() {
    if !kernel_is_usable() {
        return;
    }
    let bare = Bare::start();
    bare.push(mesh());
    let listeners: Vec<TcpListener> =
        (0..3).map(|number| TcpListener::bind((backend_addresses(number)[0], PORT)).expect("a free port")).collect();
    let to = SocketAddr::new(world::vips(0)[0], 80);
    for _ in 0..10 {
        let client = TcpStream::connect(to).expect("a living backend");
        assert_eq!(client.peer_addr().expect("connected"), to);
        let attempt_at = |listener: &TcpListener| {
            listener.set_nonblocking(true).expect("a listener");
            listener.accept().ok()
        };
        let (accepted, from) = listeners.iter().find_map(attempt_at).expect("one of them has it");
        assert_eq!(from, client.local_addr().expect("connected"));
        assert_eq!(accepted.peer_addr().expect("connected"), from);
    }
}
