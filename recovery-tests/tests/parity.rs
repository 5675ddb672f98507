//! Parity: the program in the kernel and `decision` on the host make the same decision, given the same tables and the
//! same random word. Random tables, real `connect()`s, and three witnesses: the socket's stamp, where it arrived, and an
//! oracle that knows only the resources.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use applier::tables::{KernelTables, MemoryTables, Tables, View};
use applier::{Applier, ApplyError, Identity, Model, Pipeline, Target};
use decision::{Again, Verdict};
use journal::Journal;
use loader::{Datapath, Options};
use rand::Rng;
use rand::seq::IndexedRandom;
use recovery_tests::echo::EchoServer;
use recovery_tests::oracle::{Expected, State};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::seed::{Seed, count_from_environment};
use recovery_tests::stamped::{Attempt, Enrolled, attempt, ends};
use recovery_tests::world;
use rustix::io::Errno;
use storage_schema::id::Epoch;
use storage_schema::map::{Capacities, FrontendKey, Stamp, key};
use storage_schema::resource::{Policy, Protocol};

/// States of the tables; `HOLDFAST_TABLES` says otherwise.
const TABLES: u64 = 1_000;
/// With room for a Maglev table for each service port.
const CAPACITIES: Capacities = Capacities { frontends: 512, services: 256, backends: 512, endpoints: 200_000 };
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
    let settings = applier::Options::new(Target::Kernel(options.clone()), CAPACITIES);
    let pipeline = Pipeline::start(journal.clone(), settings).expect("a usable kernel");
    let datapath = Datapath::open(options).expect("a pin root");
    let identity = Identity::of(&journal);
    let mut memory = Applier::create(MemoryTables::new(CAPACITIES), &identity);
    let mut model = Model::default();
    // A service with any port leads to whichever port was dialled.
    let [first, second, third] = world::BACKEND_PORTS;
    let listening = [first, second, third, 80, 443];
    let _server = EchoServer::start(&listening).expect("free ports in a new namespace");
    let _enrolled = Enrolled::in_cgroup_of(&sandbox);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");

    let stranger: SocketAddr = STRANGER.parse().expect("an address");
    let destinations: Vec<SocketAddr> =
        world::destinations().chain(world::more_destinations()).chain([stranger]).collect();
    let mut state = State::default();
    let mut seen = Seen::default();
    let tables = count_from_environment("HOLDFAST_TABLES", TABLES);
    for version in 1..=tables {
        let mut transaction = match version {
            1 => world::foundation("parity"),
            _ => world::transaction(&state, &mut random, "parity", version),
        };
        world::enrich(&mut transaction, &mut random);
        transaction.deltas.iter().for_each(|delta| state.apply(delta));
        let changes = model.admit(&transaction, &CAPACITIES).expect("a valid transaction").changes;
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
        let kernel = shown(&datapath, Epoch(head.lsn.0));
        for _ in 0..CONNECTIONS {
            let to = *destinations.choose(&mut random).expect("there are destinations");
            let attempt = attempt(&datapath, to, random.random());
            let key = FrontendKey::new(to.ip(), to.port(), Protocol::Tcp.number());
            // Whoever dials where a waypoint listens is that waypoint.
            let waypoint = state.waypoint_at(to).filter(|waypoint| waypoint.is_ipv4() == to.is_ipv4());
            let from_waypoint = waypoint.is_some_and(|waypoint| listening.contains(&waypoint.port()));
            let verdict = check(&attempt, &key, Epoch(head.lsn.0), from_waypoint, &kernel);
            let entropy = attempt.stamp.map_or_else(|| random.random(), |stamp| stamp.entropy);
            let (epoch, words) = (head.lsn.0, Again { entropy, from_waypoint });
            assert_eq!(decision::decide_with(&View(memory.tables()), epoch, &key, &words), verdict, "memory tables");
            let expected = if from_waypoint { state.expected_of_waypoint(to) } else { state.expected(to) };
            let answers = world::is_backend(to.ip()) && listening.contains(&to.port());
            check_resources(&attempt, to, answers, &expected);
            seen.note(&state, to, &verdict);
        }
    }
    println!("{} connections on {tables} tables agree: {:?}", tables * CONNECTIONS, seen.outcomes);
    println!("of these, by policy and way in: {:?}", seen.ways);
    seen.check_complete();
}

/// Which cases there were.
#[derive(Debug, Default)]
struct Seen {
    /// By verdict, and whether it was over IPv4.
    outcomes: BTreeMap<(&'static str, bool), u64>,
    /// By policy and by what led to the service.
    ways: BTreeMap<(&'static str, &'static str), u64>,
    /// Words of clients of Maglev services.
    clients: BTreeSet<u32>,
}

impl Seen {
    fn note(&mut self, state: &State, to: SocketAddr, verdict: &Verdict) {
        *self.outcomes.entry((name(verdict), to.is_ipv4())).or_default() += 1;
        let Verdict::Forward { entropy, .. } = verdict else { return };
        let way = way(state, to, verdict);
        *self.ways.entry(way).or_default() += 1;
        if way.0 == "maglev" {
            self.clients.insert(*entropy);
        }
    }

    fn check_complete(&self) {
        assert_eq!(self.clients.len(), 1, "all of them are one client: {:?}", self.clients);
        for policy in ["random", "weighted", "maglev", "waypoint", "from a waypoint"] {
            for way in ["address", "node port", "any port"] {
                assert!(self.ways.contains_key(&(policy, way)), "no {policy} by {way}: the test missed a case");
            }
        }
        assert!(self.ways.contains_key(&("waypoint", "workload")), "no workload's waypoint: the test missed a case");
        for outcome in ["forward", "refuse", "pass"] {
            for v4 in [true, false] {
                let seen = self.outcomes.contains_key(&(outcome, v4));
                assert!(seen, "no {outcome} with IPv4 {v4}: the test missed a case");
            }
        }
    }
}

/// The tables of a generation that shows an epoch. Tables grow, so there may be two of them, which decide alike.
fn shown(datapath: &Datapath, epoch: Epoch) -> KernelTables {
    let generations = datapath.complete_generations().expect("pins");
    let current = generations.iter().rev().find(|generation| {
        generation.control().is_ok_and(|control| control.is_some_and(|control| control.active_epoch == epoch.0))
    });
    let current = current.expect("one generation at least shows what was applied");
    let capacities = current.capacities().expect("the pinned maps can be read");
    KernelTables::open(current, capacities).expect("a generation")
}

/// What the host decides on the kernel's own tables, against what the kernel did.
fn check(attempt: &Attempt, key: &FrontendKey, epoch: Epoch, from_waypoint: bool, kernel: &impl Tables) -> Verdict {
    let Some(stamp) = attempt.stamp else {
        let verdict = decision::decide_with(&View(kernel), epoch.0, key, &Again { entropy: 0, from_waypoint });
        assert_eq!(verdict, Verdict::Pass, "no stamp, but the host has a decision: {attempt:?}");
        return verdict;
    };
    assert_eq!(Epoch(stamp.epoch), epoch, "the state stood still");
    assert_eq!((stamp.original_address, stamp.original_port_be), (key.address, key.port_be), "{attempt:?}");
    let verdict = decision::decide_again(&View(kernel), &stamp);
    match verdict {
        Verdict::Forward { service, backend, address, port_be, entropy, flags } => {
            assert_eq!((stamp.outcome, stamp.service, stamp.backend), (Stamp::FORWARDED, service, backend));
            assert_eq!((stamp.entropy, stamp.flags), (entropy, flags));
            assert_eq!(flags & Stamp::WAYPOINT != 0, backend == service, "a waypoint is what was dialled's own");
            let chosen = SocketAddr::new(key::address_from_words(address), u16::from_be(port_be));
            assert_eq!(ends(&stamp).1, chosen, "{stamp:?}");
            // A waypoint that listens here is not sent to from here.
            let arrived = if flags & Stamp::WAYPOINT == 0 { Ok(chosen) } else { Err(Errno::CONNREFUSED) };
            assert_eq!(attempt.arrived, arrived, "{stamp:?}");
        }
        Verdict::Refuse { service, flags } => {
            assert_eq!((stamp.outcome, stamp.service, stamp.backend), (Stamp::REFUSED, service, 0));
            assert_eq!(stamp.flags, flags);
            assert_eq!(attempt.arrived, Err(Errno::CONNREFUSED));
        }
        Verdict::Pass => panic!("stamped, but the host lets it pass: {attempt:?}"),
    }
    verdict
}

/// What the resources allow, worked out without tables.
fn check_resources(attempt: &Attempt, to: SocketAddr, answers: bool, expected: &Expected) {
    match (expected, &attempt.arrived, &attempt.stamp) {
        (Expected::OneOf(backends), _, Some(stamp)) if stamp.outcome == Stamp::FORWARDED => {
            let (_, peer) = ends(stamp);
            assert!(backends.contains(&peer), "{peer} of {backends:?}");
        }
        (Expected::Refused, Err(_), Some(stamp)) => assert_eq!(stamp.outcome, Stamp::REFUSED),
        (Expected::Untranslated, Ok(peer), None) if answers => assert_eq!(*peer, to),
        (Expected::Untranslated, Err(_), None) if !answers => {}
        (expected, ..) => panic!("{to} should be {expected:?}, and is {attempt:?}"),
    }
}

/// By which policy a service chooses, and how it was reached.
fn way(state: &State, to: SocketAddr, verdict: &Verdict) -> (&'static str, &'static str) {
    let Some((service, port)) = state.service_at(to) else { return ("waypoint", "workload") };
    let Verdict::Forward { flags, .. } = verdict else { unreachable!("only what is forwarded has a way") };
    let policy = match service.load_balancing.policy {
        _ if flags & Stamp::WAYPOINT != 0 => "waypoint",
        _ if flags & Stamp::FROM_WAYPOINT != 0 => "from a waypoint",
        Policy::Random => "random",
        Policy::Weighted => "weighted",
        Policy::Maglev => "maglev",
    };
    let way = match port {
        None => "any port",
        Some(port) if port.node_port == to.port() => "node port",
        Some(_) => "address",
    };
    (policy, way)
}

const fn name(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Forward { .. } => "forward",
        Verdict::Refuse { .. } => "refuse",
    }
}
