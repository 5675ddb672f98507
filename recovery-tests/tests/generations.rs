//! New generations while connections are made and live: for growth, on request, for another ABI, out of a refusal.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use api::Level;
use api::client::Client;
use api::status::Status;
use applier::tables::{KernelTables, Table, Tables as _};
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::crowd;
use recovery_tests::rig::Rig;
use recovery_tests::sandbox::Sandbox;
use recovery_tests::seed::Seed;
use storage_schema::id::Lsn;
use storage_schema::map::{Capacities, Control, FrontendKey};
use storage_schema::record::Transaction;

/// Beyond where tables begin, so that they must grow.
const LIMITS: Capacities = Capacities { frontends: 8192, services: 8192, backends: 16_384, endpoints: 16_384 };

/// How long a refusal may last: some retries, and a new generation.
const RECOVERY_TIME_MAX: Duration = Duration::from_secs(30);

/// A rig with a mesh and live connections; its agent is still running.
fn rig(test: &str, settings: &Settings) -> Option<(Seed, Rig, Agent)> {
    Rig::started("generations", test, settings)
}

/// Kills the agent and compares everything with the oracle.
fn finish(rig: Rig, agent: Agent) {
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn tables_grow_under_traffic() {
    const SERVICES: u32 = 2000;
    const AT_ONCE: u32 = 200;
    let settings = Settings { capacities: LIMITS, ..Settings::default() };
    let Some((_seed, mut rig, agent)) = rig("tables_grow_under_traffic", &settings) else { return };
    let before = agent.status();
    let has_room = |status: &Status| status.tables.iter().all(|table| table.room * 3 >= table.used * 4);
    let mut connections = 0;
    // Each half is more than the tables had room for before it.
    for half in [0..SERVICES / 2, SERVICES / 2..SERVICES] {
        let transactions: Vec<_> =
            half.step_by(AT_ONCE as usize).map(|first| crowd::transaction(first..first + AT_ONCE, 4)).collect();
        let socket = rig.sandbox().socket();
        let pushing = thread::spawn(move || push(socket, transactions));
        connections += rig.connect_while(|| !pushing.is_finished());
        for (transaction, lsn) in pushing.join().expect("all of them fit") {
            rig.note_pushed(&transaction, lsn);
        }
        // Tables grow before they are full, and nothing waits for it.
        let begin = Instant::now();
        connections += rig.connect_while(|| {
            let status = agent.status();
            assert!(begin.elapsed() < RECOVERY_TIME_MAX, "{status:#?}");
            !has_room(&status)
        });
    }
    let after = agent.status();
    println!("{connections} connections while {} generations were built", after.datapath.generations_built);
    assert!(after.datapath.generations_built >= 2, "{before:#?} {after:#?}");
    for (small, large) in before.tables.iter().zip(&after.tables) {
        assert!(large.room > small.room && large.room * 3 >= large.used * 4, "{small:?}, then {large:?}");
    }
    rig.check_destinations();
    finish(rig, agent);
}

/// Pushes one after the other, each applied before the next, and returns them with their records.
#[tokio::main(flavor = "current_thread")]
async fn push(socket: PathBuf, transactions: Vec<Transaction>) -> Vec<(Transaction, Lsn)> {
    let client = Client::connect(socket).await.expect("the agent listens");
    let mut pushed = Vec::new();
    for transaction in transactions {
        let receipt = client.apply(&transaction, Level::Applied, RECOVERY_TIME_MAX).await.expect("it fits");
        assert_eq!(receipt.level, Level::Applied, "{}", receipt.blocked_reason);
        pushed.push((transaction, receipt.lsn));
    }
    pushed
}

#[test]
fn an_operator_renews_the_generation_under_traffic() {
    const TIMES: usize = 10;
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("an_operator_renews_the_generation_under_traffic", &settings) else {
        return;
    };
    let before = agent.status();
    let commands: Vec<_> = (0..TIMES).map(|_| renew(rig.sandbox())).collect();
    let renewing = thread::spawn(move || {
        commands.into_iter().map(|command| String::from_utf8(run(command).stdout).expect("text")).collect::<Vec<_>>()
    });
    let connections = rig.connect_while(|| !renewing.is_finished());
    let said = renewing.join().expect("the commands run");
    println!("{connections} connections while {TIMES} generations were built");
    assert_eq!(said.last().map(String::as_str), Some("connections are decided by gen-11\n"), "{said:?}");
    let after = agent.status();
    assert_eq!(after.datapath.generations_built, before.datapath.generations_built + TIMES as u64);
    assert_eq!(after.datapath.generation, "gen-11");
    assert!(rig.push_random(&agent, 20), "it goes on");
    agent.wait_applied(rig.oracle().acknowledged());
    rig.check_destinations();
    finish(rig, agent);
}

#[test]
fn a_stop_gives_up_a_generation_that_is_being_built() {
    let test = "a_stop_gives_up_a_generation_that_is_being_built";
    let settings = Settings { pause: Some(("loader.after_create", 1500)), ..Settings::default() };
    let Some((_seed, mut rig, agent)) = rig(test, &settings) else { return };
    let command = renew(rig.sandbox());
    let renewing = thread::spawn(move || run(command));
    let second = rig.sandbox().pin_root().join("gen-2");
    let begin = Instant::now();
    while !second.join("programs").exists() {
        assert!(begin.elapsed() < RECOVERY_TIME_MAX, "a generation is being made");
        thread::sleep(Duration::from_millis(1));
    }
    assert!(agent.terminate().success(), "SIGTERM is how one stops it");
    let said = renewing.join().expect("the command runs");
    assert!(!said.status.success(), "it was not made: {said:?}");
    assert!(!second.exists(), "of what was begun nothing is left");
    rig.check_abandoned();
    let agent = Agent::start(rig.sandbox(), &Settings::default());
    let status = agent.status();
    assert_eq!((status.restart.entries_rewritten, &*status.datapath.generation), (0, "gen-1"), "{status:#?}");
    finish(rig, agent);
}

fn renew(sandbox: &Sandbox) -> std::process::Command {
    let mut command = holdfast(sandbox);
    command.args(["bpf", "renew"]);
    command
}

#[test]
fn maps_of_another_abi_or_boot_are_replaced_under_traffic() {
    let settings = Settings::default();
    let test = "maps_of_another_abi_or_boot_are_replaced_under_traffic";
    let Some((_seed, mut rig, mut agent)) = rig(test, &settings) else { return };
    let fields = [std::mem::offset_of!(Control, fingerprint), std::mem::offset_of!(Control, boot_id)];
    for (field, expected) in fields.into_iter().zip(["gen-2", "gen-3"]) {
        agent.kill();
        {
            // As if a build of another ABI had made it, or the boot before.
            let tables = tables(&rig);
            let word = field / size_of::<u64>();
            tables.store(Table::Control, word, !tables.load(Table::Control, word));
        }
        agent = Agent::spawn(rig.sandbox(), &settings);
        let mut ready = None;
        let connections = rig.connect_while(|| {
            ready = agent.try_status().ok().filter(|status| status.applied_lsn == status.durable_lsn);
            ready.is_none()
        });
        let ready = ready.expect("it is ready");
        println!("{connections} connections while {expected} took over");
        assert_eq!(ready.datapath.generation, expected);
        Rig::check_rebuilt(&ready);
        rig.check_recovered(&agent, &ready);
    }
    finish(rig, agent);
}

#[test]
fn what_the_kernel_refuses_is_told_and_overcome() {
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("what_the_kernel_refuses_is_told_and_overcome", &settings) else { return };
    // Somebody fills the hash, so that no entry can be inserted any more.
    let tables = tables(&rig);
    let junk = (0..u32::MAX).map(|number| FrontendKey { address: [number, 0, 0, 7], ..FrontendKey::default() });
    let filled = junk.take_while(|key| tables.index_insert(key, 0).is_ok()).count();
    assert!(filled > 0, "there was room");
    drop(tables);

    let crowd = crowd::transaction(0..1, 1);
    let receipt = agent.apply(&crowd, Level::Durable).expect("what is valid is durable, whatever the kernel says");
    rig.note_pushed(&crowd, receipt.lsn);
    let begin = Instant::now();
    let mut told = None;
    let status = loop {
        let status = agent.status();
        if status.applied_lsn >= receipt.lsn {
            break status;
        }
        assert_eq!(status.durable_lsn, receipt.lsn);
        told = status.blocked_reason.or(told);
        assert!(begin.elapsed() < RECOVERY_TIME_MAX, "it is never applied: {told:?}");
        thread::sleep(Duration::from_millis(1));
    };
    let told = told.expect("a record that is durable and not applied has a reason");
    assert!(told.contains(&format!("record {} is not applied", receipt.lsn)), "{told}");
    assert!(told.contains("frontend_index"), "{told}");
    assert_eq!(status.blocked_reason, None);
    assert_eq!(status.datapath.generations_built, 1);
    rig.check_destinations();
    finish(rig, agent);
}

fn tables(rig: &Rig) -> KernelTables {
    let generations = loader::generations(&rig.sandbox().pin_root()).expect("the pins can be read");
    let (generation, hooks) = generations.last().expect("there is one");
    assert!(!hooks.is_empty(), "it is attached");
    KernelTables::open(generation, generation.capacities().expect("it can be read")).expect("it can be opened")
}
