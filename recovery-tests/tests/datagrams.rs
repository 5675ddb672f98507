//! Unconnected UDP: what is sent to a frontend reaches one of its backends, what comes back is shown as coming from there, and
//! what was not translated is left alone. Real sockets of both families, and IPv4-mapped ones.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use decision::Verdict;
use recovery_tests::bare::Bare;
use recovery_tests::echo::{DatagramServers, backend_addresses};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::stamped::ends;
use recovery_tests::world;
use storage_schema::map::{Peers, Stamp, key};
use storage_schema::resource::{
    Affinity, Backing, LoadBalancing, Policy, Protocol, Resource, Service, ServicePort, WorkloadStatus,
};

const PORT: u16 = 8080;
const BACKENDS: u16 = 6;
/// More than a socket remembers.
const SERVICES: u16 = 10;

/// Whom an answer was shown to come from, and who has sent it.
type Answer = (SocketAddr, SocketAddr);

/// An unconnected socket, and how it writes addresses.
struct Client {
    socket: UdpSocket,
    mapped: bool,
}

impl Client {
    /// A socket that can send to `to`; an IPv6 one also for an IPv4 address if `mapped`.
    fn new(to: SocketAddr, mapped: bool) -> Self {
        let any: IpAddr =
            if to.is_ipv4() && !mapped { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).expect("a new namespace has free ports");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        Self { socket, mapped }
    }

    fn send(&self, to: SocketAddr) -> io::Result<()> {
        let to = match to.ip() {
            IpAddr::V4(v4) if self.mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        self.socket.send_to(b"who?", to).map(drop)
    }

    fn receive(&self) -> Answer {
        let mut answer = [0; 64];
        let (length, from) = self.socket.recv_from(&mut answer).expect("an answer");
        assert_eq!(from.is_ipv6(), self.mapped || from.ip().to_canonical().is_ipv6(), "as the socket writes addresses");
        let identity = str::from_utf8(&answer[..length]).expect("text").parse().expect("an address");
        (SocketAddr::new(from.ip().to_canonical(), from.port()), identity)
    }

    fn ask(&self, to: SocketAddr) -> Answer {
        self.send(to).expect("a backend");
        self.receive()
    }

    /// Asks a frontend, which must be whom the answer comes from: the backend that it was.
    fn ask_frontend(&self, to: SocketAddr) -> SocketAddr {
        let (from, backend) = self.ask(to);
        assert_eq!(from, to, "answered by {backend}");
        backend
    }

    /// Where backends find it.
    fn address(&self, v4: bool) -> SocketAddr {
        let port = self.socket.local_addr().expect("bound").port();
        if v4 { (Ipv4Addr::LOCALHOST, port).into() } else { (Ipv6Addr::LOCALHOST, port).into() }
    }
}

/// The frontends of a service.
fn frontends(service: u16) -> [SocketAddr; 2] {
    world::vips(service).map(|vip| SocketAddr::new(vip, 80))
}

/// Frontends as sockets of each kind dial them.
fn ways() -> [(SocketAddr, bool); 3] {
    let [v4, v6] = frontends(0);
    [(v4, false), (v4, true), (v6, false)]
}

/// Services, and workloads that are behind all of them, healthy or not.
fn mesh(services: u16, policy: Policy, healthy: impl Fn(u16) -> bool) -> Vec<Resource> {
    let port = ServicePort { port: 80, target_port: PORT, protocol: Protocol::Udp, ..ServicePort::default() };
    let services: Vec<Service> = (0..services)
        .map(|number| Service {
            ports: vec![port.clone()],
            load_balancing: LoadBalancing::of(policy),
            ..world::service(number, world::vips(number).to_vec(), &[])
        })
        .collect();
    let backing = |service: &Service| Backing { service: service.name.clone(), ports: Vec::new() };
    let workloads = (0..BACKENDS).map(|number| {
        let status = if healthy(number) { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy };
        Resource::Workload(world::workload(number, status, services.iter().map(backing).collect()))
    });
    let workloads: Vec<Resource> = workloads.collect();
    services.iter().cloned().map(Resource::Service).chain(workloads).collect()
}

fn started(services: u16, policy: Policy) -> Option<(Bare, DatagramServers)> {
    if !kernel_is_usable() {
        return None;
    }
    let bare = Bare::start();
    let servers = DatagramServers::start(bare.sandbox(), BACKENDS, PORT).expect("free ports in a new namespace");
    bare.push(mesh(services, policy, |number| number < 3));
    Some((bare, servers))
}

/// The number of a backend.
fn number_of(backend: SocketAddr) -> u16 {
    let number = (0..BACKENDS).find(|number| backend_addresses(*number).contains(&backend.ip()));
    number.expect("a backend of the mesh")
}

/// The one stamp of a socket that has sent to one backend; the host must decide as the kernel did.
fn check_stamp(bare: &Bare, client: &Client, to: SocketAddr, backend: SocketAddr) {
    let peers = bare.datapath().peers(&client.socket).expect("stamps can be read");
    let stamp = peers.iter().find(|stamp| ends(stamp) == (to, backend)).expect("what was sent is stamped");
    assert_eq!((stamp.outcome, stamp.protocol), (Stamp::FORWARDED, Protocol::Udp.number()));
    let Verdict::Forward { service, backend: workload, address, port_be, entropy, flags } = bare.decide_again(stamp)
    else {
        panic!("the kernel forwarded: {stamp:?}")
    };
    assert_eq!((service, workload, entropy, flags), (stamp.service, stamp.backend, stamp.entropy, stamp.flags));
    assert_eq!(SocketAddr::new(key::address_from_words(address), u16::from_be(port_be)), backend);
}

#[test]
fn answers_come_from_where_it_was_sent_to() {
    let Some((bare, _servers)) = started(1, Policy::Random) else { return };
    for (to, mapped) in ways() {
        let mut reached = BTreeSet::new();
        for _ in 0..60 {
            let client = Client::new(to, mapped);
            let backend = client.ask_frontend(to);
            for _ in 0..3 {
                assert_eq!(client.ask_frontend(to), backend, "a socket stays");
            }
            check_stamp(&bare, &client, to, backend);
            assert!(bare.datapath().stamp(&client.socket).expect("readable").is_none(), "it was not connected");
            reached.insert(number_of(backend));
        }
        assert_eq!(reached, BTreeSet::from([0, 1, 2]), "{to}, mapped: {mapped}");
    }
}

#[test]
fn a_socket_keeps_its_backend_while_it_may_be_chosen() {
    let Some((bare, servers)) = started(1, Policy::Random) else { return };
    for policy in [Policy::Random, Policy::Weighted] {
        for (to, mapped) in ways() {
            let clients: Vec<Client> = (0..20).map(|_| Client::new(to, mapped)).collect();
            bare.push(mesh(1, policy, |number| number < 3));
            let backends: Vec<SocketAddr> = clients.iter().map(|client| client.ask_frontend(to)).collect();
            // All who join come before, or behind, whatever the order is in which they stand.
            for joined in [4, 5, 6, 4] {
                bare.push(mesh(1, policy, |number| number < joined));
                for (client, backend) in clients.iter().zip(&backends) {
                    assert_eq!(client.ask_frontend(to), *backend, "{policy:?} with {joined} backends");
                    check_stamp(&bare, client, to, *backend);
                }
            }
            let leaving = backends[0];
            bare.push(mesh(1, policy, |number| number < 4 && number != number_of(leaving)));
            for (client, backend) in clients.iter().zip(&backends) {
                let now = client.ask_frontend(to);
                assert_eq!(now == *backend, *backend != leaving, "who has left is not sent to, and nobody else moves");
                assert_eq!(client.ask_frontend(to), now);
                check_stamp(&bare, client, to, now);
            }
            // What the earlier backend still has to say was asked of the frontend.
            let late = servers.at(leaving);
            late.send_to(leaving.to_string().as_bytes(), clients[0].address(to.is_ipv4())).expect("loopback");
            assert_eq!(clients[0].receive(), (to, leaving));
        }
    }
}

#[test]
fn with_affinity_a_clients_next_socket_goes_where_the_last_one_went() {
    let Some((bare, _servers)) = started(1, Policy::Random) else { return };
    let with_affinity = |healthy: fn(u16) -> bool| {
        let mut resources = mesh(1, Policy::Random, healthy);
        for resource in &mut resources {
            if let Resource::Service(service) = resource {
                service.load_balancing.affinity = Some(Affinity { timeout_seconds: 86_400 });
            }
        }
        bare.push(resources);
    };
    for to in frontends(0) {
        with_affinity(|number| number < 3);
        let first = Client::new(to, false);
        let backend = first.ask_frontend(to);
        for _ in 0..20 {
            let next = Client::new(to, to.is_ipv4());
            assert_eq!(next.ask_frontend(to), backend);
            check_stamp(&bare, &next, to, backend);
        }
        // One that leaves takes the client's earlier sockets along, all to the same one.
        let third: fn(u16) -> bool = |number| (3..6).contains(&number);
        with_affinity(third);
        let next = Client::new(to, false).ask_frontend(to);
        assert_eq!(first.ask_frontend(to), next);
        with_affinity(|_| true);
        assert_eq!(first.ask_frontend(to), next);
    }
}

#[test]
fn what_was_not_translated_is_left_alone() {
    let Some((bare, servers)) = started(1, Policy::Random) else { return };
    for (to, mapped) in ways() {
        bare.push(mesh(1, Policy::Random, |number| number < 3));
        let client = Client::new(to, mapped);
        let backend = client.ask_frontend(to);
        // Somebody that this socket has not sent to, though others have.
        let stranger = backend_addresses(5)[usize::from(to.is_ipv6())];
        let stranger = SocketAddr::new(stranger, PORT);
        servers.at(stranger).send_to(stranger.to_string().as_bytes(), client.address(to.is_ipv4())).expect("loopback");
        assert_eq!(client.receive(), (stranger, stranger));
        // Another port of the backend is another sender.
        let other_port = UdpSocket::bind((backend.ip(), 0)).expect("a free port");
        other_port.send_to(backend.to_string().as_bytes(), client.address(to.is_ipv4())).expect("loopback");
        assert_eq!(client.receive().0, other_port.local_addr().expect("bound"));
        // Who is sent to directly answers as himself, until he is sent to by the frontend again.
        assert_eq!(client.ask(backend), (backend, backend));
        bare.push(mesh(1, Policy::Random, |number| number == number_of(backend)));
        assert_eq!(client.ask_frontend(to), backend);
        assert_eq!(client.ask(backend), (backend, backend));
        // A socket of nobody's service.
        let outsider = Client::new(to, mapped);
        assert_eq!(outsider.ask(backend), (backend, backend));
    }
}

#[test]
fn a_socket_remembers_so_many_and_no_more() {
    let Some((bare, _servers)) = started(SERVICES, Policy::Random) else { return };
    let client = Client::new(frontends(0)[0], false);
    // Services share their backends, and each answer is shown as that of whom was asked.
    for _ in 0..10 {
        for service in 0..SERVICES {
            client.ask_frontend(frontends(service)[0]);
        }
    }
    let peers = bare.datapath().peers(&client.socket).expect("stamps can be read");
    assert_eq!(peers.len(), Peers::MAX);
    let newest: BTreeSet<SocketAddr> = peers.iter().map(|stamp| ends(stamp).0).collect();
    let sent_last = (SERVICES - 8..SERVICES).map(|service| frontends(service)[0]);
    assert_eq!(newest, sent_last.collect(), "those that were sent to longest ago are forgotten");
}

#[test]
fn without_backends_sending_is_refused_at_once() {
    let Some((bare, _servers)) = started(1, Policy::Random) else { return };
    for (to, mapped) in ways() {
        let client = Client::new(to, mapped);
        bare.push(mesh(1, Policy::Random, |_| false));
        let refused = client.send(to).map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::ConnectionRefused));
        bare.push(mesh(1, Policy::Random, |number| number == 1));
        assert_eq!(number_of(client.ask_frontend(to)), 1);
    }
}

#[test]
fn what_sockets_remember_outlives_agent_and_generation() {
    let Some((mut bare, servers)) = started(1, Policy::Random) else { return };
    for (to, mapped) in ways() {
        let clients: Vec<Client> = (0..10).map(|_| Client::new(to, mapped)).collect();
        let backends: Vec<SocketAddr> = clients.iter().map(|client| client.ask_frontend(to)).collect();
        for turn in 0..2 {
            if turn == 0 {
                bare.restart();
            } else {
                bare.renew();
            }
            for (client, backend) in clients.iter().zip(&backends) {
                // Asked before, answered after.
                let late = servers.at(*backend);
                late.send_to(backend.to_string().as_bytes(), client.address(to.is_ipv4())).expect("loopback");
                assert_eq!(client.receive(), (to, *backend));
                assert_eq!(client.ask_frontend(to), *backend);
                check_stamp(&bare, client, to, *backend);
            }
        }
    }
}

#[test]
fn a_connected_socket_is_shown_what_it_was_connected_to() {
    let Some((_bare, _servers)) = started(2, Policy::Random) else { return };
    for (to, mapped) in ways() {
        let client = Client::new(to, mapped);
        let dialled = match to.ip() {
            IpAddr::V4(v4) if mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        client.socket.connect(dialled).expect("a datagram socket connects at once");
        client.socket.send(b"who?").expect("loopback");
        let (from, backend) = client.receive();
        assert_eq!(from, to);
        // Connected to the backend itself, it is shown that.
        let direct = match backend.ip() {
            IpAddr::V4(v4) if mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), backend.port()),
            _ => backend,
        };
        client.socket.connect(direct).expect("a datagram socket connects at once");
        client.socket.send(b"who?").expect("loopback");
        assert_eq!(client.receive(), (backend, backend));
    }
}
