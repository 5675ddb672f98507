//! Clients and servers that people have: curl and Python against haproxy, dig against dnsmasq, through virtual addresses of both
//! families. Each knows its protocol and none knows Holdfast; dig, for one, takes no answer from anybody but whom it has asked.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use recovery_tests::agent::run;
use recovery_tests::bare::Bare;
use recovery_tests::echo::{DatagramServers, backend_addresses};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Process;
use recovery_tests::world;
use storage_schema::resource::{Backing, Dns, Node, Protocol, Resource, Service, ServicePort, WorkloadStatus};

const BACKENDS: u16 = 3;
/// Where haproxy, and servers of datagrams, listen.
const PORT: u16 = 8080;
/// Where dnsmasq does.
const DNS_PORT: u16 = 5353;
/// What dnsmasq says.
const ANSWERS: [&str; 2] = ["192.0.2.7", "2001:db8::7"];
/// Connections for each of the ways.
const CONNECTIONS: usize = 20;

/// Asks `who?` over TCP (as HTTP) and UDP, connected and not, and prints who has answered.
const PYTHON: &str = r#"
import http.client, socket, sys

address, port, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
for _ in range(times):
    connection = http.client.HTTPConnection(address, port, timeout=10)
    connection.request("GET", "/")
    print("tcp", connection.getresponse().read().decode())
    connection.close()
    with socket.socket(family, socket.SOCK_DGRAM) as connected:
        connected.settimeout(10)
        connected.connect((address, port))
        assert connected.getpeername()[:2] == (address, port), connected.getpeername()
        connected.send(b"who?")
        print("udp", connected.recv(64).decode())
    with socket.socket(family, socket.SOCK_DGRAM) as unconnected:
        unconnected.settimeout(10)
        unconnected.sendto(b"who?", (address, port))
        answer, source = unconnected.recvfrom(64)
        assert source[:2] == (address, port), source
        print("udp", answer.decode())
"#;

/// `web` on port 80 over both protocols, and `dns` on port 53.
fn mesh() -> Vec<Resource> {
    let port = |port, target_port, protocol| ServicePort { port, target_port, protocol, ..ServicePort::default() };
    let both = |number, own, target| Service {
        ports: [Protocol::Tcp, Protocol::Udp].map(|protocol| port(own, target, protocol)).to_vec(),
        ..world::service(number, world::vips(number).to_vec(), &[])
    };
    let services = [both(0, 80, PORT), both(1, 53, DNS_PORT)];
    let backing = |service: &Service| Backing { service: service.name.clone(), ports: Vec::new() };
    let workload = |number| world::workload(number, WorkloadStatus::Healthy, services.iter().map(backing).collect());
    let workloads: Vec<Resource> = (0..BACKENDS).map(|number| Resource::Workload(workload(number))).collect();
    workloads.into_iter().chain(services.iter().cloned().map(Resource::Service)).collect()
}

/// The backends of a family.
fn backends(v4: bool) -> BTreeSet<IpAddr> {
    (0..BACKENDS).map(|number| backend_addresses(number)[usize::from(!v4)]).collect()
}

struct Rig {
    bare: Bare,
    _servers: [Process; 2],
    _datagrams: DatagramServers,
}

impl Rig {
    fn start() -> Option<Self> {
        if !kernel_is_usable() {
            return None;
        }
        let bare = Bare::start();
        let datagrams = DatagramServers::start(bare.sandbox(), BACKENDS, PORT).expect("free ports in a new namespace");
        let servers = [haproxy(&bare), dnsmasq()];
        bare.push(mesh());
        Some(Self { bare, _servers: servers, _datagrams: datagrams })
    }
}

/// It answers every request with the address that it has come to.
fn haproxy(bare: &Bare) -> Process {
    let settings = bare.sandbox().directory().join("haproxy.cfg");
    let text = format!(
        "defaults\n  mode http\n  timeout connect 10s\n  timeout client 10s\n  timeout server 10s\n\
         frontend who\n  bind :::{PORT} v4v6\n  \
         http-request return status 200 content-type text/plain lf-string \"%[dst]\"\n"
    );
    fs::write(&settings, text).expect("the sandbox can be written to");
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(settings);
    server(command, PORT)
}

/// It has one name.
fn dnsmasq() -> Process {
    let mut command = Command::new("dnsmasq");
    command.args(["--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=", "--user=root"]);
    command.arg(format!("--port={DNS_PORT}")).arg("--bind-interfaces");
    // Over TCP it serves no address that it does not know to be its own.
    command.args((0..BACKENDS).flat_map(backend_addresses).map(|address| format!("--listen-address={address}")));
    command.args(ANSWERS.map(|answer| format!("--address=/answer.test/{answer}")));
    server(command, DNS_PORT)
}

/// Starts a server and waits until it listens.
fn server(mut command: Command, port: u16) -> Process {
    let child: Child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}, which `xtask/setup.sh test` installs: {error}"));
    let mut process = Process(child);
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect((backend_addresses(0)[0], port)).is_err() {
        let ended = process.0.try_wait().expect("a child can be waited for");
        assert!(ended.is_none() && Instant::now() < deadline, "{command:?} does not listen: {ended:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

/// What a program has printed, which must be content.
fn said(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = run(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// As it is written in a URL.
fn in_url(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// A virtual address as clients write it, and whether its backends are IPv4.
fn ways(service: u16) -> [(IpAddr, bool); 3] {
    let [v4, v6] = world::vips(service);
    let IpAddr::V4(plain) = v4 else { unreachable!("the first one is") };
    [(v4, true), (v6, false), (plain.to_ipv6_mapped().into(), true)]
}

#[test]
fn curl_reaches_haproxy_and_all_of_its_addresses() {
    let Some(_rig) = Rig::start() else { return };
    for (vip, v4) in ways(0) {
        let url = format!("http://{}/", in_url(vip));
        let reached: BTreeSet<IpAddr> = (0..CONNECTIONS)
            .map(|_| said("curl", &["--silent", "--show-error", "--fail", "--max-time", "10", "--noproxy", "*", &url]))
            .map(|answer| answer.parse::<IpAddr>().expect("haproxy tells its address").to_canonical())
            .collect();
        // Twenty connections miss one of three with a chance of 0.0009; what is reached is never anybody else.
        assert!(reached.is_subset(&backends(v4)) && reached.len() > 1, "{url}: {reached:?}");
    }
}

#[test]
fn python_reaches_backends_and_is_answered_by_whom_it_has_asked() {
    let Some(_rig) = Rig::start() else { return };
    for (vip, v4) in ways(0) {
        let answers = said("python3", &["-c", PYTHON, &vip.to_string(), "80", &CONNECTIONS.to_string()]);
        let mut reached = BTreeSet::new();
        for line in answers.lines() {
            let (protocol, answer) = line.split_once(' ').expect("two words");
            let address = match protocol {
                "tcp" => answer.parse::<IpAddr>().expect("haproxy tells its address"),
                _ => answer.parse::<SocketAddr>().expect("the server tells its address").ip(),
            };
            reached.insert((protocol, address.to_canonical()));
        }
        assert_eq!(answers.lines().count(), 3 * CONNECTIONS);
        let addresses: BTreeSet<IpAddr> = reached.iter().map(|(_, address)| *address).collect();
        assert!(addresses.is_subset(&backends(v4)), "{vip}: {reached:?}");
        assert!(["tcp", "udp"].iter().all(|protocol| reached.iter().filter(|(own, _)| own == protocol).count() > 1));
    }
}

#[test]
fn dig_is_answered_by_dnsmasq_through_a_service_and_through_the_dns_proxy() {
    let Some(rig) = Rig::start() else { return };
    let dig = |server: &str, transport: &str| {
        for (kind, answer) in ["A", "AAAA"].into_iter().zip(ANSWERS) {
            let at = format!("@{server}");
            let said = said("dig", &[&at, transport, "+short", "+time=5", "+tries=1", "answer.test", kind]);
            assert_eq!(said.trim(), answer, "{server} {transport} {kind}");
        }
    };
    let [v4, v6] = world::vips(1).map(|vip| vip.to_string());
    for transport in ["+notcp", "+tcp"] {
        dig(&v4, transport);
        dig(&v6, transport);
    }
    // Any resolver will do where there is a proxy: these are nobody's.
    for (family, far) in ["192.0.2.53", "2001:db8::53"].into_iter().enumerate() {
        let dns = Some(Dns { proxy: backend_addresses(0)[family], port: DNS_PORT });
        rig.bare.push(vec![Resource::Node(Node { name: "node".to_owned(), dns, ..Node::default() })]);
        for transport in ["+notcp", "+tcp"] {
            dig(far, transport);
        }
    }
}
