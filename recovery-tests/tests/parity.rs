//! Parity: the program in the kernel and `decision` on the host make the same decision, given the same tables and the
//! same random word. Random tables, real `connect()`s, and three witnesses: the socket's stamp, where it arrived, and an
//! oracle that knows only the resources.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use applier::tables::{KernelTables, MemoryTables, Tables, View};
use applier::{Applier, ApplyError, Identity, Model, Pipeline, Target};
use decision::Verdict;
use journal::Journal;
use loader::{Datapath, Options};
use rand::Rng;
use rand::seq::IndexedRandom;
use recovery_tests::agent::SMALL;
use recovery_tests::echo::EchoServer;
use recovery_tests::oracle::{Expected, State};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::seed::{Seed, count_from_environment};
use recovery_tests::stamped::{Attempt, Enrolled, attempt};
use recovery_tests::world;
use rustix::io::Errno;
use storage_schema::id::Epoch;
use storage_schema::map::{FrontendKey, Stamp, key};
use storage_schema::resource::Protocol;

/// States of the tables; `HOLDFAST_TABLES` says otherwise.
const TABLES: u64 = 1_000;
/// Connections in each.
const CONNECTIONS: u64 = 10;
/// Nothing is known of this destination.
const STRANGER: &str = "10.96.200.1:80";

#[test]
fn kernel_and_host_decide_alike() {
    if !kernel_is_usable() {
        return;
    }
    let seed = Seed::from_environment("parity", "kernel_and_host_decide_alike");
    let mut random = seed.generator(0);
    let sandbox = Sandbox::enter();
    let options = Options { pin_root: sandbox.pin_root(), cgroup: sandbox.cgroup().expect("entered").to_owned() };
    let journal = Journal::open(journal::Config::new(sandbox.state_dir())).expect("an empty directory");
    let settings = applier::Options::new(Target::Kernel(options.clone()), SMALL);
    let pipeline = Pipeline::start(journal.clone(), settings).expect("a usable kernel");
    let datapath = Datapath::open(options).expect("a pin root");
    let generation = datapath.complete_generations().expect("pins").remove(0);
    let kernel = KernelTables::open(&generation, SMALL).expect("a generation");
    let identity = Identity::of(&journal);
    let mut memory = Applier::create(MemoryTables::new(SMALL), &identity);
    let mut model = Model::default();
    let _server = EchoServer::start(&world::BACKEND_PORTS).expect("free ports in a new namespace");
    let _enrolled = Enrolled::in_cgroup_of(&sandbox);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");

    let destinations: Vec<SocketAddr> = world::destinations().chain([STRANGER.parse().expect("an address")]).collect();
    let mut state = State::default();
    let mut outcomes = BTreeMap::new();
    let tables = count_from_environment("HOLDFAST_TABLES", TABLES);
    for version in 1..=tables {
        let transaction = match version {
            1 => world::foundation("parity"),
            _ => world::transaction(&state, &mut random, "parity", version),
        };
        transaction.deltas.iter().for_each(|delta| state.apply(delta));
        let changes = model.admit(&transaction, &SMALL).expect("a valid transaction").changes;
        runtime.block_on(async {
            let pending = pipeline.push(transaction, None).await.expect("a valid transaction");
            pending.durable().await.expect("a writable disk");
            pipeline.wait_applied(pending.lsn()).await.expect("a running applier");
        });
        let head = journal.durable().head();
        if let Err(ApplyError::Blocked { until }) = memory.apply(&changes, head) {
            memory.quiesce(until).expect("memory does not fail");
            memory.apply(&changes, head).expect("nothing else blocks");
        }
        for _ in 0..CONNECTIONS {
            let to = *destinations.choose(&mut random).expect("there are destinations");
            let attempt = attempt(&datapath, to, random.random());
            let key = FrontendKey::new(to.ip(), to.port(), Protocol::Tcp.number());
            let verdict = check(&attempt, &key, Epoch(head.lsn.0), &kernel);
            let entropy = attempt.stamp.map_or_else(|| random.random(), |stamp| stamp.entropy);
            let epoch = head.lsn.0;
            assert_eq!(decision::decide(&View(memory.tables()), epoch, &key, entropy), verdict, "memory tables");
            check_resources(&attempt, to, &state);
            *outcomes.entry((name(&verdict), to.is_ipv4())).or_insert(0) += 1;
        }
    }
    println!("{} connections on {tables} tables agree: {outcomes:?}", tables * CONNECTIONS);
    for outcome in ["forward", "refuse", "pass"] {
        for v4 in [true, false] {
            assert!(outcomes.contains_key(&(outcome, v4)), "no {outcome} with IPv4 {v4}: the test missed a case");
        }
    }
}

/// What the host decides on the kernel's own tables, against what the kernel did.
fn check(attempt: &Attempt, key: &FrontendKey, epoch: Epoch, kernel: &impl Tables) -> Verdict {
    let Some(stamp) = attempt.stamp else {
        let verdict = decision::decide(&View(kernel), epoch.0, key, 0);
        assert_eq!(verdict, Verdict::Pass, "no stamp, but the host has a decision: {attempt:?}");
        assert!(attempt.arrived.is_err(), "nobody listens on a virtual address: {attempt:?}");
        return verdict;
    };
    assert_eq!(Epoch(stamp.epoch), epoch, "the state stood still");
    assert_eq!((stamp.original_address, stamp.original_port_be), (key.address, key.port_be), "{attempt:?}");
    let verdict = decision::decide(&View(kernel), stamp.epoch, key, stamp.entropy);
    match verdict {
        Verdict::Forward { service, backend, address, port_be } => {
            assert_eq!((stamp.outcome, stamp.service, stamp.backend), (Stamp::FORWARDED, service, backend));
            let chosen = SocketAddr::new(key::address_from_words(address), u16::from_be(port_be));
            assert_eq!(attempt.arrived, Ok(chosen), "{stamp:?}");
        }
        Verdict::Refuse { service } => {
            assert_eq!((stamp.outcome, stamp.service, stamp.backend), (Stamp::REFUSED, service, 0));
            assert_eq!(attempt.arrived, Err(Errno::CONNREFUSED));
        }
        Verdict::Pass => panic!("stamped, but the host lets it pass: {attempt:?}"),
    }
    verdict
}

/// What the resources allow, worked out without tables.
fn check_resources(attempt: &Attempt, to: SocketAddr, state: &State) {
    match (state.expected(to), &attempt.arrived, &attempt.stamp) {
        (Expected::OneOf(backends), Ok(peer), Some(_)) => assert!(backends.contains(peer), "{peer} of {backends:?}"),
        (Expected::Refused, Err(_), Some(stamp)) => assert_eq!(stamp.outcome, Stamp::REFUSED),
        (Expected::Untranslated, Err(_), None) => {}
        (expected, ..) => panic!("{to} should be {expected:?}, and is {attempt:?}"),
    }
}

const fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Forward { .. } => "forward",
        Verdict::Refuse { .. } => "refuse",
    }
}
