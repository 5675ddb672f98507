//! What a waypoint is told: the original destination, once, before the client's first byte, however the client writes, and
//! whatever becomes of the agent. Everything behind it arrives as it was sent.

use std::fs::{self, File};
use std::io::{self, ErrorKind, IoSlice, Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use api::Level;
use loader::{Datapath, Options};
use rand::RngCore;
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::echo::backend_addresses;
use recovery_tests::elsewhere::{ELSEWHERE, Elsewhere};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::seed::Seed;
use recovery_tests::stamped::Enrolled;
use recovery_tests::world;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SendFlags, SocketType, sockopt};
use storage_schema::map::Stamp;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Resource, Service, ServicePort, Waypoint, Workload, WorkloadStatus};

const WAYPOINT_PORT: u16 = 15_008;
const PORT: u16 = 8080;
/// More than a socket's buffers hold.
const LARGE: usize = 16 << 20;
/// Of linux/socket.h.
const MSG_FASTOPEN: u32 = 0x2000_0000;
/// How often a reader may be told to come again: each time is one event on the socket.
const EARLY_MAX: u32 = 100;
/// What a server answers once it has everything.
const ANSWER: &[u8] = b"seen to its end";

/// An agent, its clients (this process), and a waypoint in a namespace of its own.
struct Rig {
    agent: Option<Agent>,
    datapath: Datapath,
    servers: Servers,
    _enrolled: Enrolled,
    sandbox: Sandbox,
}

/// What comes to the waypoint, and to those who have none.
struct Servers {
    gate: Sender<()>,
    received: Receiver<Vec<u8>>,
}

impl Rig {
    fn start() -> Self {
        let sandbox = Sandbox::enter();
        let elsewhere = Elsewhere::new();
        let agent = Agent::start(&sandbox, &Settings::default());
        let cgroup = sandbox.cgroup().expect("entered").to_owned();
        let datapath = Datapath::open(Options { pin_root: sandbox.pin_root(), cgroup }).expect("a pin root");
        let (gate, opened) = channel();
        let (deliver, received) = channel();
        let listeners: Vec<TcpListener> = elsewhere.run(|| {
            let at = ELSEWHERE.map(|address| SocketAddr::new(address, WAYPOINT_PORT));
            at.map(|at| TcpListener::bind(at).expect("a free port")).into_iter().collect()
        });
        let [v4, v6] = backend_addresses(1).map(|address| SocketAddr::new(address, PORT));
        sandbox.add_addresses([format!("{}/128 nodad", v6.ip()).as_str()]).expect("`ip` adds an address");
        let plain = [v4, v6].map(|at| TcpListener::bind(at).expect("a free port"));
        let opened = Arc::new(Mutex::new(opened));
        for listener in listeners.into_iter().chain(plain) {
            let (deliver, opened) = (deliver.clone(), Arc::clone(&opened));
            thread::spawn(move || serve(&listener, &opened, &deliver));
        }
        let servers = Servers { gate, received };
        let rig = Self { agent: Some(agent), datapath, servers, _enrolled: Enrolled::in_cgroup_of(&sandbox), sandbox };
        rig.push(0);
        rig
    }

    /// A service whose waypoint is of that family, one without a waypoint, and a workload with one.
    fn push(&self, family: usize) {
        let waypoint = Some(Waypoint { address: ELSEWHERE[family], port: WAYPOINT_PORT });
        let port = || ServicePort { port: 80, target_port: PORT, ..ServicePort::default() };
        let service = |number: u16, waypoint| {
            let ports = vec![port()];
            let name = format!("mesh/s{number}");
            Service { name, vips: world::vips(number).to_vec(), ports, waypoint, ..Service::default() }
        };
        let workload = |number: u16, waypoint, services: &[&str]| {
            let backing = |service: &&str| storage_schema::resource::Backing {
                service: (*service).to_owned(),
                ports: Vec::new(),
            };
            let services = services.iter().map(backing).collect();
            Workload { waypoint, ..world::workload(number, WorkloadStatus::Healthy, services) }
        };
        let resources = [
            Resource::Service(service(0, waypoint.clone())),
            Resource::Service(service(1, None)),
            Resource::Workload(workload(0, waypoint, &[])),
            Resource::Workload(workload(1, None, &["mesh/s1"])),
        ];
        let origin = Origin { source: "metadata".to_owned(), incarnation: 1, version: None };
        let transaction = Transaction::push(origin, resources.into_iter().map(Delta::Upsert).collect());
        let agent = self.agent.as_ref().expect("it runs");
        agent.apply(&transaction, Level::Applied).expect("a valid transaction");
    }

    fn metadata(&self, stream: &TcpStream) -> u8 {
        self.datapath.stamp(stream).expect("the stamp can be read").expect("it is stamped").metadata
    }

    /// Writes in a way, says that this is all, and returns what arrived.
    fn exchange(&self, mut stream: TcpStream, data: &[u8], write: Way) -> Vec<u8> {
        write(&stream, data, &self.servers.gate);
        self.end(&mut stream)
    }

    /// Half of the connection ends, and the other half still brings the answer.
    fn end(&self, stream: &mut TcpStream) -> Vec<u8> {
        stream.shutdown(Shutdown::Write).expect("connected");
        let mut answer = Vec::new();
        let mut early = 0;
        // A read that waits while the socket is in the map may be told to come again, blocking as it is: so the kernel has it.
        while let Err(error) = stream.read_to_end(&mut answer) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "an answer, and the end");
            early += 1;
            assert!(early < EARLY_MAX, "an answer, and the end");
        }
        assert_eq!(answer, ANSWER);
        self.servers.received.recv().expect("the servers run")
    }
}

/// Reads connections, one after the other and each to its end, and answers; each once the gate is opened for it.
fn serve(listener: &TcpListener, gate: &Mutex<Receiver<()>>, deliver: &Sender<Vec<u8>>) {
    for stream in listener.incoming() {
        let mut stream = stream.expect("a connection");
        let mut all = Vec::new();
        if gate.lock().expect("nobody panics with it").recv().is_err() {
            return;
        }
        stream.read_to_end(&mut all).expect("the client's end");
        stream.write_all(ANSWER).expect("the client still listens");
        if deliver.send(all).is_err() {
            return;
        }
    }
}

/// The header that a waypoint gets for an original destination.
fn header(original: SocketAddr) -> Vec<u8> {
    let address = match original.ip() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let length = u32::try_from(address.len() + 2).expect("short").to_be_bytes();
    [&[1], &length[..], &address, &original.port().to_be_bytes(), &[0xfe, 0, 0, 0, 0]].concat()
}

#[track_caller]
fn assert_arrived(received: &[u8], header: &[u8], sent: &[u8], what: &str) {
    let (first, rest) = received.split_at(header.len().min(received.len()));
    assert_eq!(first, header, "{what}: what comes first");
    // Not both in a message: they are large.
    assert_eq!(rest.len(), sent.len(), "{what}: how much comes after it");
    assert!(rest == sent, "{what}: what comes after it is not what was sent");
}

/// What becomes of the agent.
type Change = fn(&mut Rig);

/// How an application writes. Whoever waits for room opens the gate first.
type Way = fn(&TcpStream, &[u8], &Sender<()>);

const WAYS: [(&str, usize, Way); 9] = [
    ("one large write", LARGE, at_once),
    ("one byte first", LARGE, one_byte_first),
    ("many small writes", 100_000, in_small_pieces),
    ("writev", LARGE, vectored),
    ("MSG_MORE", LARGE, with_more_to_come),
    ("sendfile", LARGE, from_a_file),
    ("splice", LARGE, through_a_pipe),
    ("non-blocking", LARGE, without_blocking),
    ("nothing", 0, at_once),
];

fn open(gate: &Sender<()>) {
    gate.send(()).expect("the servers run");
}

fn at_once(mut stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    open(gate);
    stream.write_all(data).expect("connected");
}

fn one_byte_first(mut stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    stream.write_all(&[]).expect("connected");
    stream.write_all(&data[..1]).expect("connected");
    at_once(stream, &data[1..], gate);
}

fn in_small_pieces(mut stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    stream.set_nodelay(true).expect("connected");
    open(gate);
    let mut rest = data;
    for length in (1..=7).cycle() {
        let (piece, behind) = rest.split_at(rest.len().min(length));
        stream.write_all(piece).expect("connected");
        rest = behind;
        if rest.is_empty() {
            return;
        }
    }
}

fn vectored(mut stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    open(gate);
    let mut rest = data;
    while !rest.is_empty() {
        let pieces: Vec<IoSlice<'_>> = rest.chunks(9_973).take(64).map(IoSlice::new).collect();
        let written = stream.write_vectored(&pieces).expect("connected");
        rest = &rest[written..];
    }
}

fn with_more_to_come(stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    open(gate);
    let mut rest = data;
    while !rest.is_empty() {
        let piece = &rest[..rest.len().min(777)];
        let flags = if piece.len() == rest.len() { SendFlags::empty() } else { SendFlags::MORE };
        rest = &rest[net::send(stream, piece, flags).expect("connected")..];
    }
}

fn file_with(data: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(data).and_then(|()| file.rewind()).expect("a writable disk");
    file
}

fn from_a_file(stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    let file = file_with(data);
    open(gate);
    let mut sent = 0;
    while sent < data.len() {
        sent += rustix::fs::sendfile(stream, &file, None, data.len() - sent).expect("connected");
    }
}

/// What a process writes into a pipe is spliced into the socket by the standard library.
fn through_a_pipe(mut stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    let cat = Command::new("cat").stdin(file_with(data)).stdout(Stdio::piped()).spawn();
    let mut cat = cat.expect("every system has cat");
    open(gate);
    let copied = io::copy(&mut cat.stdout.take().expect("it is piped"), &mut stream).expect("connected");
    assert_eq!(copied, data.len() as u64);
    assert!(cat.wait().expect("it was started").success());
}

/// Until there is no room, and then again and again.
fn without_blocking(stream: &TcpStream, data: &[u8], gate: &Sender<()>) {
    sockopt::set_socket_send_buffer_size(stream, 64 << 10).expect("connected");
    stream.set_nonblocking(true).expect("connected");
    let (mut rest, mut full) = (data, 0_u64);
    while !rest.is_empty() {
        match net::send(stream, rest, SendFlags::empty()) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::AGAIN) => {
                if full == 0 {
                    open(gate);
                }
                full += 1;
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(full > 0, "more than there is room for");
    stream.set_nonblocking(false).expect("connected");
}

fn random_bytes(length: usize, test: &str) -> Vec<u8> {
    let mut data = vec![0; length];
    Seed::from_environment("metadata", test).generator(0).fill_bytes(&mut data);
    data
}

fn mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        IpAddr::V6(_) => to,
    }
}

#[test]
fn the_header_comes_first_and_once_however_a_client_writes() {
    if !kernel_is_usable() {
        return;
    }
    let rig = Rig::start();
    let data = random_bytes(LARGE, "the_header_comes_first_and_once_however_a_client_writes");
    for family in [0, 1] {
        rig.push(family);
        let vip = SocketAddr::new(world::vips(0)[family], 80);
        let workload = SocketAddr::new(backend_addresses(0)[family], 9);
        let without = SocketAddr::new(world::vips(1)[family], 80);
        for (name, length, way) in WAYS {
            let clients = [(vip, vip, true), (mapped(workload), workload, true), (without, without, false)];
            for (dial, original, has_waypoint) in clients {
                let what = format!("{name} to {dial}");
                let stream = TcpStream::connect(dial).expect("somebody listens");
                let kept = stream.try_clone().expect("a descriptor can be copied");
                let due = if has_waypoint { Stamp::METADATA_DUE } else { Stamp::METADATA_NONE };
                assert_eq!(rig.metadata(&kept), due, "{what}");
                let received = rig.exchange(stream, &data[..length], way);
                // Who writes nothing tells nothing.
                let told = has_waypoint && length > 0;
                let first = if told { header(original) } else { Vec::new() };
                assert_arrived(&received, &first, &data[..length], &what);
                assert_eq!(rig.metadata(&kept), if told { Stamp::METADATA_SENT } else { due }, "{what}");
            }
        }
    }
}

#[test]
fn headers_come_without_an_agent_and_whatever_replaces_it() {
    if !kernel_is_usable() {
        return;
    }
    let mut rig = Rig::start();
    let data = random_bytes(1 << 20, "headers_come_without_an_agent_and_whatever_replaces_it");
    let to = SocketAddr::new(world::vips(0)[0], 80);
    let connect = || TcpStream::connect(to).expect("the waypoint listens");
    let first = header(to);
    // A connection that has written nothing before a change is told of after it, and one in the middle goes on.
    let changes: [(&str, Change); 4] = [
        ("killed", |rig| rig.agent.take().expect("it runs").kill()),
        ("restarted", |rig| rig.agent = Some(Agent::start(&rig.sandbox, &Settings::default()))),
        ("renewed", |rig| {
            let mut renew = holdfast(&rig.sandbox);
            renew.args(["bpf", "renew"]);
            let output = run(renew);
            assert!(output.status.success(), "{output:?}");
        }),
        ("restarted again", |rig| {
            assert!(rig.agent.take().expect("it runs").terminate().success());
            rig.agent = Some(Agent::start(&rig.sandbox, &Settings::default()));
        }),
    ];
    for (name, change) in changes {
        let (silent, mut speaking) = (connect(), connect());
        speaking.write_all(&data[..1_000]).expect("connected");
        change(&mut rig);
        // The servers take them in the order in which they were made.
        assert_arrived(&rig.exchange(silent, &data, at_once), &first, &data, &format!("{name}, silent before"));
        open(&rig.servers.gate);
        speaking.write_all(&data[1_000..]).expect("connected");
        assert_arrived(&rig.end(&mut speaking), &first, &data, &format!("{name}, speaking before"));
        assert_arrived(&rig.exchange(connect(), &data, at_once), &first, &data, &format!("{name}, new"));
    }
    // Nothing of it is left when it is removed, and connections that have begun go on.
    let mut speaking = connect();
    speaking.write_all(&data[..1_000]).expect("connected");
    assert!(rig.agent.take().expect("it runs").terminate().success());
    let mut uninstall = holdfast(&rig.sandbox);
    let cgroup = rig.sandbox.cgroup().expect("entered");
    uninstall.args(["uninstall", "--yes", "--state-dir"]).arg(rig.sandbox.state_dir());
    uninstall.arg("--pin-root").arg(rig.sandbox.pin_root()).arg("--cgroup").arg(cgroup);
    let output = run(uninstall);
    assert!(output.status.success(), "{output:?}");
    assert!(!fs::exists(rig.sandbox.pin_root()).expect("it can be looked for"));
    open(&rig.servers.gate);
    speaking.write_all(&data[1_000..]).expect("connected");
    assert_arrived(&rig.end(&mut speaking), &first, &data, "uninstalled");
}

#[test]
fn two_clients_at_once_are_told_apart() {
    if !kernel_is_usable() {
        return;
    }
    let rig = Rig::start();
    let data = random_bytes(1 << 20, "two_clients_at_once_are_told_apart");
    let service = SocketAddr::new(world::vips(0)[0], 80);
    let workload = SocketAddr::new(backend_addresses(0)[0], 4_242);
    let mut clients = [service, workload].map(|to| TcpStream::connect(to).expect("the waypoint listens"));
    // Turn by turn, in pieces that end anywhere. The server takes the first one to its end before it looks at the second.
    open(&rig.servers.gate);
    for piece in data[..20_000].chunks(997) {
        for client in &mut clients {
            client.write_all(piece).expect("connected");
        }
    }
    for (client, to) in clients.iter_mut().zip([service, workload]) {
        client.write_all(&data[20_000..30_000]).expect("connected");
        assert_arrived(&rig.end(client), &header(to), &data[..30_000], &to.to_string());
        open(&rig.servers.gate);
    }
}

/// TCP Fast Open writes before there is a connection that could be seen. Then nothing is put in the middle.
#[test]
fn what_was_written_before_the_connection_is_not_followed_by_a_header() {
    if !kernel_is_usable() {
        return;
    }
    let rig = Rig::start();
    let data = random_bytes(100_000, "what_was_written_before_the_connection_is_not_followed_by_a_header");
    for to in [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))] {
        let family = usize::from(to.is_ipv6());
        rig.push(family);
        let to = SocketAddr::new(world::vips(0)[family], 80);
        let socket = net::socket(
            if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 },
            SocketType::STREAM,
            None,
        );
        let socket = socket.expect("a socket can be made");
        let fast = SendFlags::from_bits_retain(MSG_FASTOPEN);
        let written = net::sendto(socket.as_fd(), &data[..1_000], fast, &to).expect("the waypoint listens");
        let mut stream = TcpStream::from(socket);
        open(&rig.servers.gate);
        stream.write_all(&data[written..]).expect("connected");
        let kept = stream.try_clone().expect("a descriptor can be copied");
        assert_arrived(&rig.end(&mut stream), &[], &data, "with TCP Fast Open");
        assert_eq!(rig.metadata(&kept), Stamp::METADATA_MISSED);
    }
}
