//! What managed processes send to port 53 goes to the node's DNS proxy, over TCP and UDP, and its answers are shown as coming from
//! the resolver that was asked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use decision::Verdict;
use recovery_tests::bare::Bare;
use recovery_tests::echo::{DatagramServers, EchoServer, backend_addresses};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::stamped::{attempt_over, ends};
use recovery_tests::world;
use rustix::net::{SocketType, getpeername};
use storage_schema::map::{Stamp, key};
use storage_schema::resource::{Backing, Dns, Node, Protocol, Resource, Service, ServicePort, WorkloadStatus};

/// Where everybody listens: the proxies and the workloads.
const PORT: u16 = 8080;
const BACKENDS: u16 = 4;
/// Resolvers that nobody has ever seen.
const FAR_V4: &str = "192.0.2.53:53";
const FAR_V6: &str = "[2001:db8::53]:53";

/// A proxy, which is no workload; both families.
fn proxy(number: u16, v4: bool) -> SocketAddr {
    SocketAddr::new(backend_addresses(number)[usize::from(!v4)], PORT)
}

fn node(proxy: Option<SocketAddr>) -> Resource {
    let dns = proxy.map(|proxy| Dns { proxy: proxy.ip(), port: proxy.port() });
    Resource::Node(Node { name: "node".to_owned(), dns, ..Node::default() })
}

/// A cluster's resolver, a service over both protocols, and a workload behind it.
fn mesh() -> Vec<Resource> {
    let port = |protocol| ServicePort { port: 53, target_port: PORT, protocol, ..ServicePort::default() };
    let service = Service {
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        ..world::service(0, world::vips(0).to_vec(), &[])
    };
    let backing = vec![Backing { service: service.name.clone(), ports: Vec::new() }];
    vec![Resource::Workload(world::workload(0, WorkloadStatus::Healthy, backing)), Resource::Service(service)]
}

/// The cluster's resolver, which is a service, and one that is nobody's; each with whether an IPv6 socket asks it.
fn resolvers(v4: bool) -> Vec<(SocketAddr, bool)> {
    let service = SocketAddr::new(world::vips(0)[usize::from(!v4)], 53);
    let far = if v4 { FAR_V4 } else { FAR_V6 }.parse().expect("an address");
    let mapped: &[bool] = if v4 { &[false, true] } else { &[false] };
    [service, far].into_iter().flat_map(|to| mapped.iter().map(move |mapped| (to, *mapped))).collect()
}

struct Rig {
    bare: Bare,
    _datagrams: DatagramServers,
    _streams: EchoServer,
}

impl Rig {
    fn start() -> Option<Self> {
        if !kernel_is_usable() {
            return None;
        }
        let bare = Bare::start();
        let datagrams = DatagramServers::start(bare.sandbox(), BACKENDS, PORT).expect("free ports in a new namespace");
        let streams = EchoServer::start(&[PORT]).expect("a free port in a new namespace");
        bare.push(mesh());
        Some(Self { bare, _datagrams: datagrams, _streams: streams })
    }

    /// Asks a resolver by sockets of each kind: where the question arrives, which must be shown as the resolver.
    fn connected(&self, to: SocketAddr, mapped: bool, arrives: SocketAddr) {
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            let attempt = attempt_over(kind, self.bare.datapath(), to, mapped, None);
            assert_eq!(attempt.arrived, Ok(arrives), "{kind:?} to {to}");
            let stamp = attempt.stamp.expect("what was sent elsewhere is stamped");
            assert_eq!(ends(&stamp), (to, arrives));
            self.check_decision(&stamp);
            let shown = SocketAddr::try_from(getpeername(&attempt.socket).expect("connected").expect("an address"));
            let shown = shown.expect("an IP address");
            assert_eq!(SocketAddr::new(shown.ip().to_canonical(), shown.port()), to, "what getpeername shows");
        }
    }

    /// An unconnected socket asks: who has answered, which must be shown as the resolver.
    fn unconnected(&self, to: SocketAddr, mapped: bool) -> SocketAddr {
        let socket = unconnected(to, mapped);
        let (shown, answered) = ask(&socket, to, mapped);
        assert_eq!(shown, to, "answered by {answered}");
        let peers = self.bare.datapath().peers(&socket).expect("stamps can be read");
        let stamp = peers.iter().find(|stamp| ends(stamp) == (to, answered)).expect("what was sent is stamped");
        self.check_decision(stamp);
        answered
    }

    /// The host decides as the kernel did.
    fn check_decision(&self, stamp: &Stamp) {
        let Verdict::Forward { service, backend, address, port_be, entropy, flags } = self.bare.decide_again(stamp)
        else {
            panic!("the kernel forwarded: {stamp:?}")
        };
        assert_eq!(
            (service, backend, entropy, flags),
            (stamp.service, stamp.backend, stamp.entropy, stamp.flags),
            "{stamp:?}"
        );
        assert_eq!(SocketAddr::new(key::address_from_words(address), u16::from_be(port_be)), ends(stamp).1);
    }
}

fn unconnected(to: SocketAddr, mapped: bool) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() && !mapped { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).expect("a new namespace has free ports");
    socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    socket
}

/// Whom the answer is shown to come from, and who has sent it.
fn ask(socket: &UdpSocket, to: SocketAddr, mapped: bool) -> (SocketAddr, SocketAddr) {
    let dialled = match to.ip() {
        IpAddr::V4(v4) if mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        _ => to,
    };
    socket.send_to(b"who?", dialled).expect("it is sent");
    let mut answer = [0; 64];
    let (length, from) = socket.recv_from(&mut answer).expect("an answer");
    let answered = str::from_utf8(&answer[..length]).expect("text").parse().expect("an address");
    (SocketAddr::new(from.ip().to_canonical(), from.port()), answered)
}

#[test]
fn questions_go_to_the_proxy_and_answers_come_from_the_resolver() {
    let Some(rig) = Rig::start() else { return };
    for v4 in [true, false] {
        let proxy = proxy(1, v4);
        rig.bare.push(vec![node(Some(proxy))]);
        for (to, mapped) in resolvers(v4) {
            rig.connected(to, mapped, proxy);
            assert_eq!(rig.unconnected(to, mapped), proxy);
        }
        // The other family has no proxy: the cluster's resolver is a service like any other.
        let (service, _) = resolvers(!v4)[0];
        let workload = SocketAddr::new(backend_addresses(0)[usize::from(v4)], PORT);
        rig.connected(service, false, workload);
        assert_eq!(rig.unconnected(service, false), workload);
    }
}

#[test]
fn nothing_else_goes_there() {
    let Some(rig) = Rig::start() else { return };
    let local = |port| SocketAddr::new(backend_addresses(3)[0], port);
    let _resolver = EchoServer::start(&[53, 54]).expect("free ports in a new namespace");
    // Who is the proxy, asked at its own address, is nobody else.
    rig.bare.push(vec![node(Some(local(53)))]);
    for port in [53, 54] {
        let attempt = attempt_over(SocketType::STREAM, rig.bare.datapath(), local(port), false, None);
        assert_eq!((attempt.arrived, attempt.stamp), (Ok(local(port)), None));
    }
    // Without a proxy, and without a node, everything is as dialled.
    for without in [node(None), node(Some(proxy(2, false)))] {
        rig.bare.push(vec![without]);
        let attempt = attempt_over(SocketType::STREAM, rig.bare.datapath(), local(53), false, None);
        assert_eq!((attempt.arrived, attempt.stamp), (Ok(local(53)), None));
    }
}

#[test]
fn a_socket_that_is_kept_asks_the_proxy_of_the_day() {
    let Some(mut rig) = Rig::start() else { return };
    let (to, mapped) = (FAR_V4.parse().expect("an address"), false);
    let socket = unconnected(to, mapped);
    for number in [1, 2, 1] {
        rig.bare.push(vec![node(Some(proxy(number, true)))]);
        assert_eq!(ask(&socket, to, mapped), (to, proxy(number, true)));
        rig.bare.restart();
        rig.bare.renew();
        assert_eq!(ask(&socket, to, mapped), (to, proxy(number, true)), "after a restart, in a new generation");
    }
}
