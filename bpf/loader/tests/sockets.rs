//! Sockets are found by their stamps in every network namespace, and exactly those that are named are closed or moved: real
//! TCP and UDP sockets over IPv4, IPv6 and IPv4-mapped IPv6. The stamps are put there by the test, as the hooks do it.

// The stamps' type has to be known to aya.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Instant;

use aya::Pod;
use aya::maps::{Map, MapData, SkStorage};
use aya::programs::ProgramType;
use aya::sys::is_program_supported;
use loader::{Datapath, Options, Reselected, Sockets};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use storage_schema::map::{Capacities, FLOW_FINGERPRINT, Stamp, StampedSocket, key};

const BPF_FS: &str = "/sys/fs/bpf";
/// Sockets of each kind in each namespace, and to each of two backends.
const SOCKETS: u64 = 100;
const PORT: u16 = 9_000;
/// Where nothing is accepted any more.
const SILENT_PORT: u16 = 9_001;
const TCP: u8 = 6;
const UDP: u8 = 17;
// The backend that is gone, and the one that stays.
const GONE: u64 = 1;
const STAYS: u64 = 2;

#[repr(transparent)]
#[derive(Clone, Copy)]
struct StampEntry(Stamp);

// SAFETY: plain data without padding, which the ABI asserts.
unsafe impl Pod for StampEntry {}

type Stamps = SkStorage<MapData, StampEntry>;

/// A client's socket.
struct Client {
    socket: OwnedFd,
    stamp: Stamp,
    namespace: u32,
}

impl Client {
    fn cookie(&self) -> u64 {
        sockopt::socket_cookie(&self.socket).expect("every socket has one")
    }

    fn own_address(&self) -> SocketAddr {
        let own = net::getsockname(&self.socket).expect("a socket has an address");
        let own = SocketAddr::try_from(own).expect("an IP address");
        SocketAddr::new(own.ip().to_canonical(), own.port())
    }
}

#[test]
fn exactly_the_sockets_that_are_named_are_closed_or_moved() {
    let Some(pin_root) = private_bpffs() else { return };
    let sockets = open(&pin_root);
    let stamps_path = pin_root.join("flow").join(format!("stamps-{FLOW_FINGERPRINT:016x}"));
    // Two namespaces in which a thread lives, and one that nothing but sockets keeps, which only iterators find.
    let live = [true, true, sockets.without_iterators().is_some()];
    let over = &Barrier::new(1 + live.into_iter().filter(|stays| *stays).count());
    thread::scope(|scope| {
        let (connected, all_connected) = mpsc::channel();
        for stays in live {
            let (connected, stamps_path) = (connected.clone(), &stamps_path);
            scope.spawn(move || {
                connected.send(connect_in_new_namespace(stamps_path)).expect("somebody listens");
                if stays {
                    over.wait();
                }
            });
        }
        let connected: Vec<_> = all_connected.iter().take(3).collect();
        let clients: Vec<&Client> = connected.iter().flat_map(|(_, clients)| clients).collect();
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&sockets, &clients)));
        over.wait();
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    });
}

#[test]
fn a_generation_loads_from_the_object_that_has_the_iterators() {
    let Some(pin_root) = private_bpffs() else { return };
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
    let cgroup = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
    let cgroup = PathBuf::from(cgroup.expect("cgroup v2 is mounted"));
    let datapath = Datapath::open(Options { pin_root: pin_root.clone(), cgroup }).expect("a pin root");
    let capacities = Capacities { frontends: 8, services: 8, backends: 8, endpoints: 8 };
    let generation = datapath.create_generation(&capacities).expect("maps and programs load");
    assert_eq!(generation.capacities().expect("its maps are pinned"), capacities);
    assert!(list(&open(&pin_root)).is_empty());
}

/// What lists sockets. A kernel whose security policy lets nobody load a tracing program, not even one that does nothing, lists
/// them otherwise.
fn open(pin_root: &Path) -> Sockets {
    let sockets = Sockets::open(pin_root);
    match (sockets.without_iterators().map(ToString::to_string), is_program_supported(ProgramType::Tracing)) {
        (None, _) => {}
        (Some(refused), Ok(true)) => panic!("the iterators do not load: {refused}"),
        (Some(refused), _) => {
            assert!(refused.contains("hf_stamped_sockets") && refused.contains("security module"), "{refused}");
            println!("without iterators: {refused}");
        }
    }
    sockets
}

fn check(sockets: &Sockets, clients: &[&Client]) {
    let by_cookie: HashMap<u64, &Client> = clients.iter().map(|client| (client.cookie(), *client)).collect();
    let begin = Instant::now();
    let listed = list(sockets);
    println!("{} sockets listed in {:?}", listed.len(), begin.elapsed());
    assert_eq!(listed.len(), clients.len(), "each socket is listed once");
    for socket in &listed {
        let client = by_cookie.get(&socket.cookie).unwrap_or_else(|| panic!("nobody made {socket:?}"));
        assert_eq!((socket.stamp, socket.namespace), (client.stamp, client.namespace));
        let own = SocketAddr::new(key::address_from_words(socket.local_address), socket.local_port);
        assert_eq!(own, client.own_address());
        assert_eq!(socket.protocol, client.stamp.protocol);
        let remote = key::address_from_words(socket.remote_address);
        assert!([GONE, STAYS].into_iter().any(|number| backends(number).contains(&remote)), "{socket:?}");
    }

    let (tcp, udp): (Vec<&StampedSocket>, Vec<_>) =
        listed.iter().filter(|socket| socket.stamp.backend == GONE).partition(|socket| socket.protocol == TCP);
    // Not by their cookies, which may nearly all be even or odd.
    let every_other = |first| udp.iter().skip(first).step_by(2).copied();
    let udp_moved: Vec<StampedSocket> = every_other(0).copied().collect();
    close(sockets, tcp.into_iter().chain(every_other(1)));
    move_to_the_other(sockets, &udp_moved, &by_cookie);
    for client in clients {
        let outcome = net::recv(&client.socket, &mut [0; 1][..], RecvFlags::DONTWAIT).map(|(_, length)| length);
        let moved = udp_moved.iter().any(|socket| socket.cookie == client.cookie());
        if client.stamp.backend == GONE && !moved {
            assert_eq!(outcome, Err(Errno::CONNABORTED), "{:?}", client.stamp);
        } else {
            assert_eq!(outcome, Err(Errno::AGAIN), "{:?}", client.stamp);
            assert_eq!(net::send(&client.socket, b"on", SendFlags::NOSIGNAL), Ok(2), "it goes on");
        }
    }
    let left = list(sockets);
    assert!(
        left.iter()
            .all(|socket| socket.stamp.backend == STAYS || udp_moved.iter().any(|moved| moved.cookie == socket.cookie))
    );
}

/// Closes them; a listing that is out of date in a single detail closes nothing.
fn close<'s>(sockets: &Sockets, doomed: impl Iterator<Item = &'s StampedSocket>) {
    let (begin, mut count, mut closer) = (Instant::now(), 0, sockets.closer());
    for (number, socket) in doomed.enumerate() {
        let out_of_date = [
            StampedSocket { cookie: socket.cookie + 1, ..*socket },
            StampedSocket { local_port: socket.local_port ^ 1, ..*socket },
            StampedSocket { remote_port_be: socket.remote_port_be ^ 1, ..*socket },
        ];
        if number % 16 == 0 {
            for other in &out_of_date {
                assert!(!closer.destroy(other).expect("asked properly"), "{other:?}");
            }
        }
        assert!(closer.destroy(socket).expect("closed"), "{socket:?}");
        assert!(!closer.destroy(socket).expect("asked properly"), "it is closed once");
        count += 1;
    }
    println!("{count} sockets closed in {:?}", begin.elapsed());
    assert!(count > 1_000, "{count}");
}

/// Without hooks, who dials the virtual address reaches it: here it is the other backend's.
fn move_to_the_other(sockets: &Sockets, to_move: &[StampedSocket], clients: &HashMap<u64, &Client>) {
    let before: HashMap<u64, SocketAddr> =
        to_move.iter().map(|socket| (socket.cookie, clients[&socket.cookie].own_address())).collect();
    // What was stamped anew since it was listed is another decision's.
    let stale: Vec<StampedSocket> = to_move
        .iter()
        .map(|socket| StampedSocket { stamp: Stamp { epoch: socket.stamp.epoch + 1, ..socket.stamp }, ..*socket })
        .collect();
    let gone = |_: &StampedSocket, outcome: Result<Reselected, _>| assert!(matches!(outcome, Ok(Reselected::Gone)));
    sockets.reselect(&stale, gone).expect("holders are listed");
    let begin = Instant::now();
    let mut moved = 0;
    sockets
        .reselect(to_move, |socket, outcome| {
            assert!(matches!(outcome, Ok(Reselected::Moved)), "{socket:?}: {outcome:?}");
            moved += 1;
        })
        .expect("holders are listed");
    println!("{moved} sockets moved in {:?}", begin.elapsed());
    assert!(moved == to_move.len() && moved > 100, "{moved}");
    for socket in to_move {
        let client = clients[&socket.cookie];
        assert_eq!(client.own_address(), before[&socket.cookie], "same source address and port");
        let peer = net::getpeername(&client.socket).expect("connected").expect("an address");
        let peer = SocketAddr::try_from(peer).expect("an IP address").ip().to_canonical();
        assert!(backends(STAYS).contains(&peer), "{peer}");
    }
}

fn list(sockets: &Sockets) -> Vec<StampedSocket> {
    let mut listed = Vec::new();
    sockets.for_each(|socket| listed.push(socket)).expect("sockets can be listed");
    listed
}

/// A backend's addresses: on every loopback device.
fn backends(number: u64) -> [IpAddr; 2] {
    let number = u8::try_from(number).expect("there are two");
    [Ipv4Addr::new(127, 1, 1, number).into(), Ipv6Addr::new(0xfd00, 0xa, 0, 0, 0, 0, 0, number.into()).into()]
}

/// Moves the calling thread into a namespace of its own, and connects there: the servers' sockets, and the clients'.
fn connect_in_new_namespace(stamps: &Path) -> (Vec<OwnedFd>, Vec<Client>) {
    unshare(UnshareFlags::NEWNET);
    ip(&["link", "set", "lo", "up"]);
    ip(&["route", "add", "local", "fd00:a::/64", "dev", "lo"]);
    let namespace = fs::metadata("/proc/thread-self/ns/net").expect("proc is mounted").ino();
    let namespace = u32::try_from(namespace).expect("a namespace's number has 32 bits");
    let data = MapData::from_pin(stamps).expect("the stamps are pinned");
    let mut stamps: Stamps = SkStorage::try_from(Map::SkStorage(data)).expect("socket storage");
    let mut kept = vec![serve(SocketType::STREAM, PORT, 4_096), serve(SocketType::DGRAM, PORT, 0)];
    let mut clients = Vec::new();
    let mut add = |socket: OwnedFd, protocol, backend, epoch, to: IpAddr| {
        let original = backends(STAYS)[usize::from(to.to_canonical().is_ipv6())];
        let stamp = Stamp {
            epoch,
            service: 7,
            backend,
            original_address: key::address_words(original),
            original_port_be: PORT.to_be(),
            protocol,
            outcome: Stamp::FORWARDED,
            ..Stamp::default()
        };
        sockopt::socket_cookie(&socket).expect("every socket has one");
        stamps.insert(&socket, StampEntry(stamp), 0).expect("a socket can be stamped");
        clients.push(Client { socket, stamp, namespace });
    };
    for backend in [GONE, STAYS] {
        let [v4, v6] = backends(backend);
        let IpAddr::V4(plain) = v4 else { unreachable!("the first is IPv4") };
        for to in [v4, v6, plain.to_ipv6_mapped().into()] {
            for epoch in 1..=SOCKETS {
                for (kind, protocol) in [(SocketType::STREAM, TCP), (SocketType::DGRAM, UDP)] {
                    let (socket, connected) = connect(kind, to, PORT, SocketFlags::empty());
                    connected.unwrap_or_else(|error| panic!("{to}: {error}"));
                    add(socket, protocol, backend, epoch, to);
                }
            }
        }
    }
    // Two connections fill a queue of one; nobody answers those that come later.
    kept.push(serve(SocketType::STREAM, SILENT_PORT, 0));
    let [silent, _] = backends(GONE);
    for epoch in 0..20 {
        let (socket, connected) = connect(SocketType::STREAM, silent, SILENT_PORT, SocketFlags::NONBLOCK);
        assert!(matches!(connected, Err(Errno::INPROGRESS)), "{connected:?}");
        match epoch {
            0..4 => kept.push(socket),
            _ => add(socket, TCP, GONE, epoch, silent),
        }
    }
    // A socket with a stamp that is connected no longer is nobody's business.
    let idle = net::socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket can be made");
    let stamp = StampEntry(Stamp { backend: GONE, outcome: Stamp::FORWARDED, ..Stamp::default() });
    stamps.insert(&idle, stamp, 0).expect("a socket can be stamped");
    kept.push(idle);
    (kept, clients)
}

fn connect(kind: SocketType, to: IpAddr, port: u16, flags: SocketFlags) -> (OwnedFd, Result<(), Errno>) {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, kind, flags, None).expect("a socket can be made");
    let connected = net::connect(&socket, &SocketAddr::new(to, port));
    (socket, connected)
}

fn serve(kind: SocketType, port: u16, queue: i32) -> OwnedFd {
    let socket = net::socket(AddressFamily::INET6, kind, None).expect("a socket can be made");
    net::bind(&socket, &SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))
        .expect("a new namespace has all ports free");
    if kind == SocketType::STREAM {
        net::listen(&socket, queue).expect("a bound socket can listen");
    }
    socket
}

/// A pin root on a BPF file system of the calling thread's own; `None` without the privileges, which fails in CI.
fn private_bpffs() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() || !Path::new(BPF_FS).exists() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "this test needs root and BPF, and in CI nothing is skipped"
        );
        eprintln!("skipped: this test needs root and BPF");
        return None;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).expect("a process may use what it may have");
    unshare(UnshareFlags::NEWNS);
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).expect("root may do that");
    mount("bpf", BPF_FS, "bpf", MountFlags::empty(), c"mode=700").expect("a BPF file system can be mounted");
    let pin_root = Path::new(BPF_FS).join("holdfast");
    fs::create_dir_all(pin_root.join("flow")).expect("a directory can be made");
    Some(pin_root)
}

fn unshare(what: UnshareFlags) {
    // SAFETY: neither the file descriptors nor the working directory are unshared.
    unsafe { unshare_unsafe(what) }.expect("root may make namespaces");
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("`ip` is installed");
    assert!(status.success(), "ip {arguments:?}");
}
