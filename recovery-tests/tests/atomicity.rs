//! Atomic visibility: connections are made as fast as four threads can while one transaction after another moves all
//! services together from one set of backends to another and back. Each connection's stamp names the epoch that decided
//! it; the journal's state at that epoch, and the stamp's random word, lead to exactly where it went. Through all kills live
//! connections that were made before the first one have every byte checked.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api::Level;
use applier::{Pipeline, Target};
use journal::Journal;
use loader::{Datapath, Options};
use rand::Rng as _;
use recovery_tests::agent::{Agent, SMALL, Settings};
use recovery_tests::connection::Greeting;
use recovery_tests::echo::EchoServer;
use recovery_tests::moves::{Connection, check, connect_until, destinations, foundation, place_on};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::seed::{Seed, count_from_environment};
use recovery_tests::stamped::Enrolled;
use recovery_tests::worker::Worker;
use recovery_tests::world;
use storage_schema::record::Transaction;

const THREADS: usize = 4;
/// Moves from one set to the other; `HOLDFAST_MOVES` says otherwise.
const MOVES: u64 = 120;

#[test]
fn no_connection_sees_half_a_transaction() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let options = Options { pin_root: sandbox.pin_root(), cgroup: sandbox.cgroup().expect("entered").to_owned() };
    let journal = Journal::open(journal::Config::new(sandbox.state_dir())).expect("an empty directory");
    let settings = applier::Options::new(Target::Kernel(options.clone()), SMALL);
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

fn push(pipeline: &Pipeline, transaction: Transaction) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let pending = pipeline.push(transaction, None).await.expect("a valid transaction");
        pending.durable().await.expect("a writable disk");
        pipeline.wait_applied(pending.lsn()).await.expect("a running applier");
    });
}

/// Kills for each seed; `HOLDFAST_KILLS` says otherwise.
const KILLS: u64 = 20;
/// The longest that an agent lives, counted from its start, or twice what the first one needs to get ready if that is longer.
const LIFE_MS_MAX: u64 = 400;
/// Live connections to each destination.
const LIVE_CONNECTIONS: u32 = 2;
/// How often a slow machine may need more of them until the test has shown something.
const KILLS_FACTOR_MAX: u64 = 5;
/// After so many kills each live connection must have got further.
const KILLS_PER_LOOK: u64 = 10;

#[test]
fn nor_does_one_while_the_agent_is_killed_again_and_again() {
    if !kernel_is_usable() {
        return;
    }
    let seed = Seed::from_environment("atomicity", "nor_does_one_while_the_agent_is_killed_again_and_again");
    let mut random = seed.generator(0);
    let sandbox = Sandbox::enter();
    let settings = Settings { log: "warn", ..Settings::default() };
    let begun = Instant::now();
    let agent = Agent::start(&sandbox, &settings);
    let life_ms_max = u64::try_from(2 * begun.elapsed().as_millis()).expect("a short time").max(LIFE_MS_MAX);
    let options = Options { pin_root: sandbox.pin_root(), cgroup: sandbox.cgroup().expect("entered").to_owned() };
    let datapath = Datapath::open(options).expect("a pin root");
    let _server = EchoServer::start(&world::BACKEND_PORTS).expect("free ports in a new namespace");
    let _enrolled = Enrolled::in_cgroup_of(&sandbox);
    for transaction in [foundation(), place_on(0, 0)] {
        agent.apply(&transaction, Level::Applied).expect("a valid transaction");
    }
    agent.kill();
    let mut live = Worker::start(&sandbox);
    for destination in destinations() {
        live.open(destination, Greeting::None, LIVE_CONNECTIONS, random.random());
    }

    let wanted = count_from_environment("HOLDFAST_KILLS", KILLS) * count_from_environment("HOLDFAST_SEEDS", 1);
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (mut kills, mut moves, mut restarts) = (0, 0, 0);
    let connections: Vec<Connection> = thread::scope(|scope| {
        let clients: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| connect_until(&stop, &made, &datapath))).collect();
        let enough = |kills, moves, restarts| kills >= wanted && moves >= wanted / 2 && restarts >= wanted / 4;
        while !enough(kills, moves, restarts) && kills < KILLS_FACTOR_MAX * wanted {
            let life = Duration::from_millis(random.random_range(0..=life_ms_max));
            let mut agent = Agent::spawn(&sandbox, &settings);
            let killer = agent.kill_after(life);
            if agent.wait_ready().is_ok() {
                restarts += u64::from(tables_are_as_the_journal_says(&agent));
                // What was in doubt is pushed again, and is taken once.
                while agent.apply(&place_on(u16::from(moves % 2 == 0), moves + 1), Level::Durable).is_ok() {
                    moves += 1;
                }
            }
            killer.join().expect("the killer does not panic");
            agent.wait_end().expect("nobody survives SIGKILL");
            if kills % KILLS_PER_LOOK == 0 {
                live.expect_progress();
            }
            kills += 1;
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().flat_map(|client| client.join().expect("all connections succeed")).collect()
    });
    let agent = Agent::start(&sandbox, &settings);
    assert!(tables_are_as_the_journal_says(&agent), "it is not killed");
    agent.kill();
    live.expect_progress();
    let traffic = live.finish();
    assert!(traffic.is_intact(), "live connections were harmed: {traffic:#?}");
    let journal = Journal::open(journal::Config::new(sandbox.state_dir())).expect("the journal opens");
    let epochs = check(&journal, &connections);
    println!(
        "{kills} kills, {moves} moves, {restarts} restarts compared: {} connections at {epochs} epochs, each of one state; \
         {} live connections, {} frames, {} bytes, 0 resets, 0 bytes lost or altered",
        connections.len(),
        traffic.connections,
        traffic.frames,
        traffic.bytes
    );
    assert!(
        moves >= wanted / 2 && restarts >= wanted / 4,
        "{moves} moves, {restarts} restarts: the test showed nothing"
    );
}

/// Whether there was an answer; if there is one, nothing differs.
fn tables_are_as_the_journal_says(agent: &Agent) -> bool {
    let Ok(report) = agent.verify_tables() else { return false };
    assert_eq!(report.entries_differing, 0, "{report:#?}");
    report.entries_checked > 0
}
