//! Starts that believe what is pinned: connections go on with it at once, the journal's state is loaded and compared behind
//! that, and pushes wait meanwhile.

use std::thread;
use std::time::Duration;

use api::Level;
use api::client::Client;
use recovery_tests::agent::{Agent, Settings};
use recovery_tests::rig::Rig;
use recovery_tests::seed::Seed;
use recovery_tests::{crowd, pinned};
use storage_schema::id::Lsn;

const PUSH_TIME_MAX: Duration = Duration::from_mins(1);
/// What holds an agent up until it is killed.
const LONGER_THAN_ANY_TEST_MS: u64 = 3_600_000;

/// A rig with a mesh, live connections and some transactions behind it; its agent is still running.
fn rig(test: &str) -> Option<(Seed, Rig, Agent)> {
    let (seed, mut rig, agent) = Rig::started("believed", test, &Settings::default())?;
    assert!(rig.push_random(&agent, 20), "a running agent takes transactions");
    agent.wait_applied(rig.oracle().acknowledged());
    Some((seed, rig, agent))
}

/// Starts an agent whose loading is held up, for long enough that everything can be looked at meanwhile.
fn start_held_up(rig: &Rig, milliseconds: u64) -> Agent {
    let pause = Some(("applier.before_load", milliseconds));
    let mut agent = Agent::spawn(rig.sandbox(), &Settings { pause, ..Settings::default() });
    let serving = agent.wait_serving().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    assert!(serving.loading, "loading is held up: {serving:#?}");
    assert_eq!((serving.restart.entries_rewritten, serving.datapath.map_writes), (0, 0), "{serving:#?}");
    assert!(serving.tables.is_empty() && serving.resources.is_empty(), "nobody knows yet: {serving:#?}");
    agent
}

#[test]
fn while_the_state_is_loading_connections_and_reads_go_on_and_pushes_wait() {
    let test = "while_the_state_is_loading_connections_and_reads_go_on_and_pushes_wait";
    let Some((_seed, mut rig, agent)) = rig(test) else { return };
    agent.kill();
    let mut agent = start_held_up(&rig, 6_000);
    let applied_lsn = agent.status().applied_lsn;
    assert_eq!(applied_lsn, rig.oracle().acknowledged(), "what was visible is visible");
    let wanted: Vec<_> = rig.oracle().latest().resources().cloned().collect();
    assert!(agent.resources() == wanted, "reads go on");

    let socket = rig.sandbox().socket();
    let transaction = crowd::transaction(0..1, 1);
    let pushed = transaction.clone();
    let pushing = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let client = Client::connect(socket).await.expect("the agent listens");
            client.apply(&pushed, Level::Applied, PUSH_TIME_MAX).await.expect("it fits")
        })
    });
    let mut seen_loading = 0;
    let connections = rig.connect_while(|| {
        let is_pushed = pushing.is_finished();
        let status = agent.status();
        if status.loading {
            seen_loading += 1;
            assert!(!is_pushed, "a push waits for the model");
            assert_eq!((status.durable_lsn, status.applied_lsn), (applied_lsn, applied_lsn));
        }
        status.loading
    });
    assert!(seen_loading > 1 && connections > 0, "{connections} connections while loading: the test showed nothing");
    let receipt = pushing.join().expect("it is taken once the state is loaded");
    assert_eq!((receipt.level, receipt.lsn), (Level::Applied, applied_lsn.next()));
    rig.note_pushed(&transaction, receipt.lsn);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("it ended: {ended:?}"));
    assert_eq!(ready.restart.entries_rewritten, 0, "epochs were equal: {ready:#?}");
    assert!(ready.datapath.drift.entries_checked > 0 && !ready.tables.is_empty(), "{ready:#?}");
    println!("{connections} connections while the state was loading");
    rig.check_destinations();
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn drift_that_is_found_behind_the_start_is_put_right() {
    let test = "drift_that_is_found_behind_the_start_is_put_right";
    // What a rig begins with has backends, which what comes at random need not have.
    let Some((_seed, mut rig, agent)) = Rig::started("believed", test, &Settings::default()) else { return };
    let before = agent.status().datapath.generation;
    agent.kill();
    pinned::tamper(rig.sandbox());
    let mut agent = start_held_up(&rig, 6_000);
    let serving = agent.status();
    assert_eq!((serving.datapath.generation, serving.datapath.drift.entries_differing), (before.clone(), 0));
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("it ended: {ended:?}"));
    assert!(ready.datapath.drift.entries_differing > 0, "{ready:#?}");
    assert!(ready.restart.entries_rewritten > 0, "{ready:#?}");
    assert_eq!(ready.datapath.generations_built, 1, "{ready:#?}");
    assert_ne!(ready.datapath.generation, before);
    rig.check_recovered(&agent, &ready);
    assert!(rig.push_random(&agent, 5), "it goes on");
    agent.wait_applied(rig.oracle().acknowledged());
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn tables_that_are_behind_are_shown_until_the_state_is_loaded() {
    let Some((_seed, mut rig, agent)) = rig("tables_that_are_behind_are_shown_until_the_state_is_loaded") else {
        return;
    };
    agent.kill();
    // It dies between the journal and the tables.
    let armed = Settings { failpoint: Some(("applier.before_stage", 3)), ..Settings::default() };
    let mut agent = Agent::start(rig.sandbox(), &armed);
    while rig.push_random(&agent, 20) {}
    agent.wait_end().expect("it was killed");
    let epochs = pinned::visible_epochs(rig.sandbox());

    let agent = start_held_up(&rig, LONGER_THAN_ANY_TEST_MS);
    let serving = agent.status();
    assert!(serving.durable_lsn > serving.applied_lsn, "it died before it showed the last record: {serving:#?}");
    assert!(epochs.iter().map(|epoch| Lsn::from(*epoch)).eq([serving.applied_lsn]), "{epochs:?}: {serving:#?}");
    rig.check_abandoned();
    assert!(agent.status().loading, "that was while the state was loading");
    agent.kill();
    let mut agent = Agent::spawn(rig.sandbox(), &Settings::default());
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("it ended: {ended:?}"));
    assert_eq!(ready.applied_lsn, ready.durable_lsn, "what was not shown is shown now: {ready:#?}");
    rig.check_recovered(&agent, &ready);
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn an_agent_that_is_stopped_while_loading_leaves_everything_in_place() {
    let test = "an_agent_that_is_stopped_while_loading_leaves_everything_in_place";
    let Some((_seed, mut rig, agent)) = rig(test) else { return };
    agent.kill();
    let agent = start_held_up(&rig, 6_000);
    let status = agent.terminate();
    assert!(status.success(), "SIGTERM is how one stops it: {status}");
    rig.check_abandoned();
    let agent = Agent::start(rig.sandbox(), &Settings::default());
    let status = agent.status();
    assert_eq!((status.restart.entries_rewritten, status.datapath.generations_built), (0, 0), "{status:#?}");
    agent.kill();
    rig.check_pinned();
    rig.finish();
}
