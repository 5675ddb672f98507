//! Connections whose backend was removed: exactly these are dealt with, as their service says, in every network namespace, whether
//! the agent was there when it went or not; and the journal tells. Real sockets, the real agent.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use api::Level;
use loader::{Datapath, Options, Sockets};
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::echo::{DatagramServers, backend_addresses};
use recovery_tests::elsewhere::{ELSEWHERE, Elsewhere};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::{Sandbox, enter_network};
use recovery_tests::stamped::{Attempt, Enrolled, attempt_over};
use recovery_tests::world;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, getsockname};
use rustix::net::{bind, connect, listen, recv, send, socket, socket_with};
use rustix::process::{Resource as Limit, Rlimit, getrlimit, setrlimit};
use storage_schema::id::{Lsn, ResourceId};
use storage_schema::map::Stamp;
use storage_schema::record::{Cause, Delta, Drained, Event, Origin, Record, Transaction};
use storage_schema::resource::{
    Backing, Drain, DrainMode, Kind, Protocol, Resource, ResourceKey, Service, ServicePort, Waypoint, WorkloadStatus,
};

const PORT: u16 = 8080;
const BACKENDS: u16 = 3;
/// Who tells what was done.
const TELLS: &str = "holdfast";
/// Only a hanging agent takes that long.
const TIMEOUT: Duration = Duration::from_mins(1);
/// How long connections are left alone, where that is tested.
const GRACE_SECONDS: u32 = 4;
const SECOND_NS: u64 = 1_000_000_000;

/// An agent, and this process among its clients.
struct Rig {
    agent: Option<Agent>,
    datapath: Datapath,
    /// Whether sockets are found also in namespaces that nothing but sockets keeps.
    finds_all: bool,
    servers: [OwnedFd; 2],
    _enrolled: Enrolled,
    sandbox: Sandbox,
}

/// A client's socket.
struct Client {
    socket: OwnedFd,
    stamp: Stamp,
    own: SocketAddr,
}

impl Client {
    fn leads(&self, service: u16, workload: u16) -> bool {
        (self.stamp.service, self.stamp.backend) == (service_id(service), workload_id(workload))
    }

    fn is_udp(&self) -> bool {
        self.stamp.protocol == Protocol::Udp.number()
    }

    /// Whether its owner was told that it is over.
    fn is_closed(&self) -> bool {
        match recv(&self.socket, &mut [0; 1][..], RecvFlags::DONTWAIT) {
            Err(Errno::CONNABORTED) => true,
            Err(Errno::AGAIN) => {
                assert_eq!(send(&self.socket, b"on", SendFlags::NOSIGNAL), Ok(2), "{:?}", self.stamp);
                false
            }
            other => panic!("{:?}: {other:?}", self.stamp),
        }
    }
}

impl Rig {
    /// With an agent that begins with nothing; `None` where the kernel cannot be used.
    fn start() -> Option<Self> {
        if !kernel_is_usable() {
            return None;
        }
        let limit = getrlimit(Limit::Nofile);
        setrlimit(Limit::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("what is allowed");
        let sandbox = Sandbox::enter();
        let cgroup = sandbox.cgroup().expect("entered").to_owned();
        let agent = Agent::start(&sandbox, &Settings::default());
        let pin_root = sandbox.pin_root();
        // Without iterators only namespaces with a process are found.
        let finds_all = Sockets::open(&pin_root).without_iterators().is_none();
        let datapath = Datapath::open(Options { pin_root, cgroup }).expect("a pin root");
        let enrolled = Enrolled::in_cgroup_of(&sandbox);
        Some(Self { agent: Some(agent), datapath, finds_all, servers: serve(), _enrolled: enrolled, sandbox })
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("it runs")
    }

    fn kill(&mut self) {
        self.agent.take().expect("it runs").kill();
    }

    fn start_again(&mut self, settings: &Settings) {
        self.agent = Some(Agent::start(&self.sandbox, settings));
    }

    /// Pushes deltas in one transaction, and waits until they are visible.
    fn push(&self, deltas: Vec<Delta>) -> Lsn {
        let receipt = self.agent().apply(&transaction(deltas), Level::Applied);
        receipt.expect("a valid transaction").lsn
    }

    fn push_all(&self, resources: Vec<Resource>) -> Lsn {
        self.push(resources.into_iter().map(Delta::Upsert).collect())
    }

    /// Kills the agent at a failpoint, with these deltas in its journal.
    fn push_and_die(&mut self, deltas: Vec<Delta>, failpoint: &'static str) {
        self.kill();
        let settings = Settings { failpoint: Some((failpoint, 0)), ..Settings::default() };
        self.start_again(&settings);
        assert!(self.agent().apply(&transaction(deltas), Level::Applied).is_err(), "it dies before");
        let mut agent = self.agent.take().expect("it was started");
        agent.wait_end().expect("it has died");
    }

    /// Opens so many connections of a kind to the service, each way that there is.
    fn connect(&self, service: u16, kind: SocketType, count: usize) -> Vec<Client> {
        connect_each_way(&self.datapath, service, kind, count)
    }

    /// The records of what was done, once it comes to so many sockets closed and reselected.
    fn drained(&self, closed: usize, reselected: usize) -> Vec<(Record, Drained)> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let records: Vec<(Record, Drained)> = self.agent().records_of(TELLS).into_iter().map(drained).collect();
            let sum =
                |count: fn(&Drained) -> u32| records.iter().map(|(_, drained)| count(drained) as usize).sum::<usize>();
            let sums = (sum(|drained| drained.closed), sum(|drained| drained.reselected));
            if sums == (closed, reselected) {
                return records;
            }
            assert!(sums.0 <= closed && sums.1 <= reselected, "{sums:?} of {closed} and {reselected}: {records:#?}");
            assert!(Instant::now() < deadline, "{sums:?} of {closed} and {reselected}: {records:#?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn record(&self, source: &str, lsn: Lsn) -> Record {
        let records = self.agent().records_of(source);
        records.into_iter().find(|record| record.lsn == lsn).expect("what was acknowledged is there")
    }
}

const SOURCE: &str = "recovery-tests";

fn transaction(deltas: Vec<Delta>) -> Transaction {
    Transaction::push(Origin { source: SOURCE.to_owned(), incarnation: 1, version: None }, deltas)
}

fn drained(record: Record) -> (Record, Drained) {
    assert_eq!((record.transaction.cause, record.transaction.deltas.len()), (Cause::Agent, 0));
    let Some(Event::Drained(drained)) = record.transaction.event.clone() else { panic!("no event: {record:#?}") };
    (record, drained)
}

fn service_name(number: u16) -> String {
    format!("mesh/s{number}")
}

fn service_id(number: u16) -> u64 {
    ResourceId::named(Kind::Service, &service_name(number)).0
}

fn workload_id(number: u16) -> u64 {
    ResourceId::named(Kind::Workload, &world::workload_uid(number)).0
}

/// A service over both protocols.
fn service(number: u16, mode: DrainMode, timeout_seconds: u32) -> Service {
    let port = |protocol| ServicePort { port: 80, target_port: PORT, protocol, ..ServicePort::default() };
    Service {
        ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
        drain: Drain { mode, timeout_seconds },
        ..world::service(number, world::vips(number).to_vec(), &[])
    }
}

/// A workload that backs these services.
fn workload(number: u16, services: &[u16]) -> Resource {
    let backing = |service: &u16| Backing { service: service_name(*service), ports: Vec::new() };
    let status = WorkloadStatus::Healthy;
    Resource::Workload(world::workload(number, status, services.iter().map(backing).collect()))
}

/// These services, and workloads that back all of them.
fn mesh(services: Vec<Service>) -> Vec<Resource> {
    let numbers: Vec<u16> = (0..).take(services.len()).collect();
    let workloads: Vec<Resource> = (0..BACKENDS).map(|number| workload(number, &numbers)).collect();
    services.into_iter().map(Resource::Service).chain(workloads).collect()
}

/// Takes connections and datagrams at every address, and does nothing with them.
fn serve() -> [OwnedFd; 2] {
    [SocketType::STREAM, SocketType::DGRAM].map(|kind| {
        let server = socket(AddressFamily::INET6, kind, None).expect("a socket can be made");
        bind(&server, &SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT)).expect("a new namespace has free ports");
        if kind == SocketType::STREAM {
            listen(&server, 4_096).expect("a bound socket can listen");
        }
        server
    })
}

fn connect_each_way(datapath: &Datapath, service: u16, kind: SocketType, count: usize) -> Vec<Client> {
    let [v4, v6] = world::vips(service).map(|vip| SocketAddr::new(vip, 80));
    let ways = [(v4, false), (v4, true), (v6, false)];
    let client = |(to, mapped)| {
        let Attempt { arrived, stamp, socket } = attempt_over(kind, datapath, to, mapped, None);
        arrived.unwrap_or_else(|error| panic!("{to}: {error}"));
        let own = getsockname(&socket).expect("a socket has an address");
        Client { own: own.try_into().expect("an IP address"), stamp: stamp.expect("it was balanced"), socket }
    };
    ways.into_iter().flat_map(|way| std::iter::repeat_n(way, count)).map(client).collect()
}

/// Exactly those that were to be closed are.
fn check_closed<'c>(clients: impl IntoIterator<Item = &'c Client>, is_doomed: impl Fn(&Client) -> bool) {
    for client in clients {
        assert_eq!(client.is_closed(), is_doomed(client), "{:?} from {}", client.stamp, client.own);
    }
}

fn count(clients: &[Client], which: impl Fn(&Client) -> bool) -> usize {
    clients.iter().filter(|client| which(client)).count()
}

#[test]
fn terminate_closes_exactly_what_leads_to_the_removed_backend() {
    let Some(rig) = Rig::start() else { return };
    rig.push_all(mesh(vec![service(0, DrainMode::Terminate, 0), service(1, DrainMode::Keep, 0)]));
    let connect_all = || {
        let kinds = [SocketType::STREAM, SocketType::DGRAM];
        let of = |(service, kind)| connect_each_way(&rig.datapath, service, kind, 60);
        [0, 1].into_iter().flat_map(|service| kinds.map(|kind| (service, kind))).flat_map(of).collect::<Vec<Client>>()
    };
    let mut clients = connect_all();
    let (connected, all_connected) = mpsc::channel();
    thread::scope(|scope| {
        // Beside the sandbox's own namespace, one that a thread lives in, and one that nothing but sockets keeps.
        let keepers = [true, !rig.finds_all].map(|stays| {
            let (keep, kept) = mpsc::channel::<()>();
            let connected = connected.clone();
            scope.spawn(move || {
                enter_network();
                connected.send((serve(), connect_all())).expect("somebody listens");
                if stays {
                    // Until the sender is gone.
                    kept.recv().expect_err("nothing is sent");
                }
            });
            keep
        });
        let mut servers = Vec::new();
        for (serving, more) in all_connected.iter().take(keepers.len()) {
            servers.push(serving);
            clients.extend(more);
        }
        terminate(&rig, clients);
    });
}

/// Takes backends from services that have their connections closed, and from one that has not.
fn terminate(rig: &Rig, mut clients: Vec<Client>) {
    let begin = Instant::now();
    // Both services lose it; one of them keeps its connections.
    rig.push_all(vec![workload(1, &[])]);
    let doomed = |client: &Client| client.leads(0, 1);
    let of_it = count(&clients, doomed);
    assert!(of_it > 200 && clients.len() > 2_000, "{of_it} of {}", clients.len());
    let told = rig.drained(of_it, 0);
    println!("{of_it} of {} sockets in 3 namespaces closed, and told, in {:?}", clients.len(), begin.elapsed());
    for (_, drained) in &told {
        let Drained { service, workload, mode, .. } = drained;
        assert_eq!((&**service, &**workload), (&*service_name(0), &*world::workload_uid(1)));
        assert_eq!(*mode, DrainMode::Terminate);
    }
    check_closed(&clients, doomed);
    // Who connects again is with a living backend.
    for client in rig.connect(0, SocketType::STREAM, 20) {
        assert!(!client.leads(0, 1) && !client.is_closed());
    }
    // A service that begins to drain means those that lead nowhere already.
    clients.retain(|client| !doomed(client));
    rig.push_all(vec![Resource::Service(service(1, DrainMode::Terminate, 0))]);
    let doomed = |client: &Client| client.leads(1, 1);
    let told = rig.drained(of_it + count(&clients, doomed), 0);
    assert_eq!(told.last().expect("it was told").1.service, service_name(1));
    check_closed(&clients, doomed);
    // Health, and what else says where new connections go, takes nobody's backend away.
    clients.retain(|client| !doomed(client));
    let unhealthy = world::workload(2, WorkloadStatus::Unhealthy, vec![]);
    let Resource::Workload(of_both) = workload(2, &[0, 1]) else { unreachable!("it is one") };
    rig.push_all(vec![Resource::Workload(storage_schema::resource::Workload {
        services: of_both.services,
        ..unhealthy
    })]);
    // Another port is another backend.
    let port = ServicePort { port: 80, target_port: PORT + 1, protocol: Protocol::Udp, ..ServicePort::default() };
    let mut moved = service(0, DrainMode::Terminate, 0);
    moved.ports[1] = port;
    rig.push_all(vec![Resource::Service(moved)]);
    let doomed = |client: &Client| client.is_udp() && client.stamp.service == service_id(0);
    let before: usize = told.iter().map(|(_, drained)| drained.closed as usize).sum();
    rig.drained(before + count(&clients, doomed), 0);
    check_closed(&clients, doomed);
    check_command_line(&rig.sandbox);
}

/// The journal is whole, and the command line tells what was done.
fn check_command_line(sandbox: &Sandbox) {
    let ask = |arguments: &[&str]| {
        let mut command: Command = holdfast(sandbox);
        command.args(arguments);
        let output = run(command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let log = ask(&["journal", "log", "--source", TELLS]);
    let line = format!("drained Service mesh/s0 of Workload {} (terminate)", world::workload_uid(1));
    assert!(log.contains(&line), "{log}");
    ask(&["journal", "verify"]);
    let history = ask(&["history", "service", &service_name(0)]);
    assert!(!history.contains(TELLS), "an event changes no resource: {history}");
}

#[test]
fn graceful_waits_also_while_the_agent_is_away_and_means_nobody_who_came_back() {
    let Some(mut rig) = Rig::start() else { return };
    rig.push_all(mesh(vec![service(0, DrainMode::Graceful, GRACE_SECONDS)]));
    let clients: Vec<Client> =
        [SocketType::STREAM, SocketType::DGRAM].into_iter().flat_map(|kind| rig.connect(0, kind, 20)).collect();
    // It is away for a moment, so its connections are meant no longer.
    rig.push_all(vec![workload(2, &[])]);
    rig.push_all(vec![workload(2, &[0])]);
    // What changes of a workload that is gone does not make it gone since then.
    let removed = rig.push_all(vec![workload(1, &[])]);
    rig.push_all(vec![workload(1, &[])]);
    rig.kill();
    rig.start_again(&Settings::default());
    let doomed = |client: &Client| client.leads(0, 1);
    let told = rig.drained(count(&clients, doomed), 0);
    check_closed(&clients, doomed);
    let removed = rig.record(SOURCE, removed);
    for (record, drained) in &told {
        assert_eq!((&*drained.workload, drained.mode), (&*world::workload_uid(1), DrainMode::Graceful));
        let waited = record.monotonic_ns - removed.monotonic_ns;
        assert!(waited >= u64::from(GRACE_SECONDS) * SECOND_NS, "it was closed after {waited} ns");
    }
    // The other one's time would have been over before.
    assert!(count(&clients, |client| client.leads(0, 2)) > 0);
}

#[test]
fn what_went_while_the_agent_was_dead_is_found_when_it_begins() {
    let Some(mut rig) = Rig::start() else { return };
    // The second has a waypoint instead of backends, in another namespace, as it is told from its clients by that; the third is
    // to go altogether.
    let elsewhere = Elsewhere::new();
    let waypoint = Waypoint { address: ELSEWHERE[0], port: PORT + 1 };
    let listener = elsewhere.run(|| TcpListener::bind((waypoint.address, waypoint.port)));
    let _listener = listener.expect("a free port in a new namespace");
    let with_waypoint = Service { waypoint: Some(waypoint), ..service(1, DrainMode::Terminate, 0) };
    let services = vec![service(0, DrainMode::Terminate, 0), with_waypoint, service(2, DrainMode::Terminate, 0)];
    rig.push_all(mesh(services));
    let [v4, _] = world::vips(1);
    let waypoints: Vec<Client> = (0..20)
        .map(|_| {
            let to = SocketAddr::new(v4, 80);
            let attempt = attempt_over(SocketType::STREAM, &rig.datapath, to, false, None);
            let own = getsockname(&attempt.socket).expect("a socket has an address");
            let own = own.try_into().expect("an IP address");
            Client { own, stamp: attempt.stamp.expect("it was balanced"), socket: attempt.socket }
        })
        .collect();
    let mut clients = rig.connect(0, SocketType::STREAM, 20);
    clients.extend(rig.connect(2, SocketType::STREAM, 20));
    // Journaled and not visible; visible, and nobody was there to look.
    let mut doomed_so_far = 0;
    for (gone, failpoint) in [(1, "applier.before_flip"), (2, "applier.after_flip")] {
        rig.push_and_die(vec![Delta::Upsert(workload(gone, &[1, 2]))], failpoint);
        check_closed(&clients, |_| false);
        rig.start_again(&Settings::default());
        let doomed = |client: &Client| client.leads(0, gone);
        doomed_so_far += count(&clients, doomed);
        let told = rig.drained(doomed_so_far, 0);
        assert_eq!(told.last().expect("it was told").1.workload, world::workload_uid(gone));
        check_closed(&clients, doomed);
        clients.retain(|client| !doomed(client));
    }
    // A service that is gone has its connections drained as it said last; a waypoint is a backend.
    let mut deltas: Vec<Delta> = (0..BACKENDS).map(|number| Delta::Upsert(workload(number, &[0, 1]))).collect();
    deltas.push(Delta::Remove(ResourceKey::new(Kind::Service, service_name(2))));
    deltas.push(Delta::Upsert(Resource::Service(service(1, DrainMode::Terminate, 0))));
    rig.push_and_die(deltas, "applier.after_flip");
    rig.start_again(&Settings::default());
    let doomed = |client: &Client| client.stamp.service == service_id(2);
    let told = rig.drained(doomed_so_far + waypoints.len() + count(&clients, doomed), 0);
    check_closed(&clients, doomed);
    check_closed(&waypoints, |_| true);
    let mut by_name: BTreeMap<(String, String), usize> = BTreeMap::new();
    for (_, drained) in told {
        *by_name.entry((drained.service, drained.workload)).or_default() += drained.closed as usize;
    }
    assert_eq!(by_name[&(service_name(1), String::new())], waypoints.len());
    for number in 0..BACKENDS {
        let of_it = count(&clients, |client| client.leads(2, number));
        assert_eq!(by_name[&(service_name(2), world::workload_uid(number))], of_it);
    }
}

#[test]
fn reselect_moves_connected_datagram_sockets_and_closes_the_others() {
    let Some(mut rig) = Rig::start() else { return };
    rig.servers = serve_streams_only(rig.servers);
    let _answering = DatagramServers::start(&rig.sandbox, BACKENDS, PORT).expect("free ports in a new namespace");
    rig.push_all(mesh(vec![service(0, DrainMode::Reselect, 0)]));
    let datagrams = rig.connect(0, SocketType::DGRAM, 30);
    let streams = rig.connect(0, SocketType::STREAM, 30);
    let doomed = |client: &Client| client.leads(0, 1);
    rig.push_all(vec![workload(1, &[])]);
    let (moved, closed) = (count(&datagrams, doomed), count(&streams, doomed));
    assert!(moved > 0 && closed > 0);
    rig.drained(closed, moved);
    check_closed(&streams, doomed);
    for client in &datagrams {
        let own = SocketAddr::try_from(getsockname(&client.socket).expect("it has one")).expect("an IP address");
        assert_eq!(own, client.own, "its owner has noticed nothing");
        let backend = rig.datapath.stamp(&client.socket).expect("it can be read").expect("it is balanced").backend;
        assert_eq!(backend != client.stamp.backend, doomed(client), "{:?}", client.stamp);
        assert_ne!(backend, workload_id(1));
        assert_eq!(answering(client), backend, "the backend of its stamp");
    }
    // Without a living backend there is nothing to move to: its owner is told.
    let deltas = [0, 2].map(|number| Delta::Upsert(workload(number, &[])));
    let left = count(&streams, |client| !doomed(client));
    rig.push(deltas.into());
    rig.drained(closed + left + datagrams.len(), moved);
    for client in &datagrams {
        let outcome = recv(&client.socket, &mut [0; 1][..], RecvFlags::DONTWAIT).map(|(_, length)| length);
        assert_eq!(outcome, Err(Errno::CONNABORTED));
    }
}

/// Datagrams are answered by others in this test.
fn serve_streams_only([streams, datagrams]: [OwnedFd; 2]) -> [OwnedFd; 2] {
    drop(datagrams);
    let unused = socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket can be made");
    [streams, unused]
}

/// The workload that answers.
fn answering(client: &Client) -> u64 {
    let socket = UdpSocket::from(client.socket.try_clone().expect("a descriptor can be copied"));
    socket.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    socket.send(b"who?").expect("loopback");
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).expect("an answer");
    let backend: SocketAddr = str::from_utf8(&answer[..length]).expect("text").parse().expect("an address");
    let number = (0..BACKENDS).find(|number| backend_addresses(*number).contains(&backend.ip()));
    workload_id(number.expect("a backend of the mesh"))
}

#[test]
fn a_connection_that_nobody_answers_yet_is_dealt_with_as_well() {
    let Some(rig) = Rig::start() else { return };
    rig.push_all(mesh(vec![service(0, DrainMode::Terminate, 0)]));
    // A queue of one that two connections fill: who comes later waits for an answer to its SYN.
    let silent = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket can be made");
    let address = SocketAddr::new(backend_addresses(9)[0], PORT + 1);
    bind(&silent, &address).expect("a free port");
    listen(&silent, 0).expect("a bound socket can listen");
    let mut port = service(0, DrainMode::Terminate, 0);
    port.ports[0].target_port = PORT + 1;
    let mut alone = world::workload(9, WorkloadStatus::Healthy, Vec::new());
    alone.services = vec![Backing { service: service_name(0), ports: Vec::new() }];
    let others = (0..BACKENDS).map(|number| workload(number, &[]));
    rig.push_all(others.chain([Resource::Service(port), Resource::Workload(alone.clone())]).collect());
    let to = SocketAddr::new(world::vips(0)[0], 80);
    let waiting: Vec<OwnedFd> = (0..40)
        .map(|_| {
            let client = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None);
            let client = client.expect("a socket can be made");
            let connected = connect(&client, &to);
            assert!(matches!(connected, Ok(()) | Err(Errno::INPROGRESS)), "{connected:?}");
            client
        })
        .collect();
    alone.services.clear();
    rig.push_all(vec![Resource::Workload(alone)]);
    let told = rig.drained(waiting.len(), 0);
    assert!(told.iter().all(|(_, drained)| drained.workload == world::workload_uid(9)));
    for client in &waiting {
        assert_eq!(recv(client, &mut [0; 1][..], RecvFlags::DONTWAIT).map(drop), Err(Errno::CONNABORTED));
    }
}

#[test]
fn what_may_not_be_done_is_told_once_and_done_when_it_may() {
    let Some(mut rig) = Rig::start() else { return };
    rig.push_all(mesh(vec![service(0, DrainMode::Terminate, 0)]));
    let clients = rig.connect(0, SocketType::STREAM, 20);
    rig.kill();
    rig.start_again(&Settings { lacks: Some("sys_admin"), ..Settings::default() });
    rig.push_all(vec![workload(1, &[])]);
    let told = |rig: &Rig| rig.agent().log().matches("cannot all be dealt with").count();
    let deadline = Instant::now() + TIMEOUT;
    while told(&rig) == 0 {
        assert!(Instant::now() < deadline, "it is told");
        thread::sleep(Duration::from_millis(5));
    }
    rig.push_all(vec![workload(2, &[])]);
    check_closed(&clients, |_| false);
    // It balances all the same.
    assert!(rig.connect(0, SocketType::STREAM, 5).iter().all(|client| client.leads(0, 0)));
    rig.kill();
    rig.start_again(&Settings::default());
    assert_eq!(told(&rig), 1);
    assert!(rig.agent().log().contains("cannot enter the network namespace"));
    let doomed = |client: &Client| !client.leads(0, 0);
    rig.drained(count(&clients, doomed), 0);
    check_closed(&clients, doomed);
}
