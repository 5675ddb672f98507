//! Atomic visibility: connections are made as fast as four threads can while one transaction after another moves all
//! services together from one set of backends to another and back. Each connection's stamp names the epoch that decided
//! it; the journal's state at that epoch, and the stamp's random word, lead to exactly where it went.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use applier::tables::{MemoryTables, View};
use applier::{Applier, Identity, Model, Pipeline, Target, plan};
use decision::Verdict;
use journal::Journal;
use loader::{Datapath, Options};
use recovery_tests::agent::SMALL;
use recovery_tests::echo::EchoServer;
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::seed::count_from_environment;
use recovery_tests::stamped::{Enrolled, attempt};
use recovery_tests::world;
use storage_schema::id::Lsn;
use storage_schema::map::{FrontendKey, Stamp, key};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Protocol, Resource, WorkloadStatus};

const SERVICES: u16 = 4;
/// Backends of each of the two sets.
const SET: u16 = 4;
const THREADS: usize = 4;
/// Moves from one set to the other; `HOLDFAST_MOVES` says otherwise.
const MOVES: u64 = 120;

/// A connection: what its socket was stamped with, what it dialled and where it arrived.
type Connection = (Stamp, SocketAddr, SocketAddr);

#[test]
fn no_connection_sees_half_a_transaction() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let options = Options { pin_root: sandbox.pin_root(), cgroup: sandbox.cgroup().expect("entered").to_owned() };
    let journal = Journal::open(journal::Config::new(sandbox.state_dir())).expect("an empty directory");
    let target = Target::Kernel(options.clone());
    let settings = applier::Options { target, limits: SMALL, verify_interval: Duration::from_mins(5) };
    let pipeline = Pipeline::start(journal.clone(), settings).expect("a usable kernel");
    let datapath = Datapath::open(options).expect("a pin root");
    let _server = EchoServer::start(&world::BACKEND_PORTS).expect("free ports in a new namespace");
    let _enrolled = Enrolled::in_cgroup_of(&sandbox);
    let moves = count_from_environment("HOLDFAST_MOVES", MOVES);

    push(&pipeline, foundation());
    push(&pipeline, place_on(0, 0));
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let connections: Vec<Connection> = thread::scope(|scope| {
        let connect = || connect_until(&stop, &made, &datapath);
        let clients: Vec<_> = (0..THREADS).map(|_| scope.spawn(connect)).collect();
        for number in 1..=moves {
            push(&pipeline, place_on(u16::try_from(number % 2).expect("0 or 1"), number));
            // Half of the states are left standing until a connection has come and gone; the others are pushed over.
            let seen = made.load(Ordering::Relaxed);
            while number % 2 == 0 && made.load(Ordering::Relaxed) < seen + 2 * THREADS && !clients[0].is_finished() {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("all connections succeed")).collect()
    });
    drop(pipeline);
    let epochs = check(&journal, &connections);
    println!("{} connections at {epochs} epochs, each of one state", connections.len());
    assert!(epochs as u64 >= moves / 2, "the clients saw {epochs} of {moves} states: the test showed nothing");
}

/// Connects to one service after another, in both families; none of them is ever without backends.
fn connect_until(stop: &AtomicBool, made: &AtomicUsize, datapath: &Datapath) -> Vec<Connection> {
    let mut connections = Vec::new();
    let mut last_epoch = 0;
    while !stop.load(Ordering::Relaxed) {
        for to in (0..SERVICES).flat_map(world::vips).map(|vip| SocketAddr::new(vip, 80)) {
            let attempt = attempt(datapath, to, false);
            let peer = attempt.arrived.unwrap_or_else(|errno| panic!("{to}: {errno}"));
            let stamp = attempt.stamp.unwrap_or_else(|| panic!("{to} was not balanced"));
            assert!(stamp.epoch >= last_epoch, "a later connection of one thread saw an earlier state");
            last_epoch = stamp.epoch;
            connections.push((stamp, to, peer));
            made.fetch_add(1, Ordering::Relaxed);
        }
    }
    connections
}

/// Makes every decision again, from the journal alone. Returns how many epochs decided.
fn check(journal: &Journal, connections: &[Connection]) -> usize {
    let mut by_epoch: BTreeMap<u64, Vec<&Connection>> = BTreeMap::new();
    for connection in connections {
        by_epoch.entry(connection.0.epoch).or_default().push(connection);
    }
    let identity = Identity::of(journal);
    let mut model = Model::default();
    for record in journal.read_from(Lsn::FIRST).expect("the journal is whole") {
        let record = record.expect("the record is whole");
        model.admit(&record.transaction, &SMALL).expect("what was journaled fits");
        let Some(decided) = by_epoch.get(&record.lsn.0) else { continue };
        let head = journal.encoded_record(record.lsn).expect("the record is whole").head();
        let mut applier = Applier::create(MemoryTables::new(SMALL), &identity);
        applier.reconcile(&mut plan::everything(&model), head).expect("memory does not fail");
        for (stamp, to, peer) in decided {
            let key = FrontendKey::new(to.ip(), to.port(), Protocol::Tcp.number());
            let verdict = decision::decide(&View(applier.tables()), stamp.epoch, &key, stamp.entropy);
            let Verdict::Forward { service, backend, address, port_be } = verdict else {
                panic!("epoch {} has {verdict:?} for {to}, which went to {peer}", stamp.epoch)
            };
            assert_eq!((stamp.service, stamp.backend), (service, backend), "epoch {}", stamp.epoch);
            let chosen = SocketAddr::new(key::address_from_words(address), u16::from_be(port_be));
            assert_eq!(*peer, chosen, "epoch {}", stamp.epoch);
        }
    }
    by_epoch.len()
}

fn foundation() -> Transaction {
    let services = (0..SERVICES).map(|number| world::service(number, world::vips(number).to_vec(), &[(80, 8080)]));
    transaction(None, services.map(Resource::Service).collect())
}

/// One transaction after which every service is served by one set of backends and by no other.
fn place_on(set: u16, version: u64) -> Transaction {
    let names: Vec<String> = (0..SERVICES).map(|number| world::service(number, Vec::new(), &[]).name).collect();
    let workloads = (0..2 * SET).map(|number| {
        let backs = number / SET == set;
        let backings = names.iter().filter(|_| backs);
        let backings = backings.map(|name| Backing { service: name.clone(), ports: Vec::new() }).collect();
        Resource::Workload(world::workload(number, WorkloadStatus::Healthy, backings))
    });
    transaction(Some(version), workloads.collect())
}

fn transaction(version: Option<u64>, resources: Vec<Resource>) -> Transaction {
    let version = version.map(|version| version + 1);
    let origin = Origin { source: "atomicity".to_owned(), incarnation: 1, version };
    Transaction { origin, deltas: resources.into_iter().map(Delta::Upsert).collect() }
}

fn push(pipeline: &Pipeline, transaction: Transaction) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let pending = pipeline.push(transaction, None).await.expect("a valid transaction");
        pending.durable().await.expect("a writable disk");
        pipeline.wait_applied(pending.lsn()).await.expect("a running applier");
    });
}
