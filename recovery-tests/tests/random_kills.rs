//! Killed at random moments, again and again, in the middle of a stream of transactions.

use std::thread;
use std::time::Duration;

use rand::Rng;
use recovery_tests::agent::{Agent, Settings};
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::rig::Rig;
use recovery_tests::seed::{Seed, count_from_environment};

/// Kills for each seed; `HOLDFAST_KILLS` says otherwise.
const KILLS: u64 = 25;
/// The longest that an agent lives, counted from its start.
const LIFE_MS_MAX: u64 = 300;

#[test]
fn kill_9_at_random_moments() {
    if !kernel_is_usable() {
        return;
    }
    let first = Seed::from_environment("random_kills", "kill_9_at_random_moments");
    for number in 0..count_from_environment("HOLDFAST_SEEDS", 1) {
        // Each run moves its thread into a sandbox of its own.
        let seed = first.nth(number);
        thread::spawn(move || kill_again_and_again(&seed)).join().expect("see above");
    }
}

fn kill_again_and_again(seed: &Seed) {
    let settings = Settings::default();
    let mut rig = Rig::new(seed);
    let agent = Agent::start(rig.sandbox(), &settings);
    rig.lay_foundation(&agent);
    rig.open_live_connections();
    agent.kill();
    let (mut while_starting, mut equal_epochs) = (0, 0);
    for kill in 0..count_from_environment("HOLDFAST_KILLS", KILLS) {
        let life = Duration::from_millis(rig.random().random_range(0..=LIFE_MS_MAX));
        let mut agent = Agent::spawn(rig.sandbox(), &settings);
        let killer = agent.kill_after(life);
        let ready = agent.wait_ready();
        match &ready {
            Ok(status) => {
                rig.oracle().check_durable(status.durable_lsn);
                if rig.push_in_doubt(&agent).is_ok() {
                    rig.push_random(&agent, u64::MAX);
                }
            }
            Err(ended) => {
                assert!(ended.was_killed(), "it gave up: {ended:?}");
                while_starting += 1;
            }
        }
        killer.join().expect("the killer does not panic");
        agent.wait_end().expect("nobody survives SIGKILL");
        rig.check_abandoned();
        // Now and then it may live, so that everything is looked at.
        if kill % 5 == 4 {
            equal_epochs += u64::from(restart_and_check(&mut rig, &settings));
        }
    }
    eprintln!("{while_starting} kills during a start; {equal_epochs} restarts found equal epochs");
    restart_and_check(&mut rig, &settings);
    rig.finish();
}

/// Whether the restart found the tables at the journal's last record.
fn restart_and_check(rig: &mut Rig, settings: &Settings) -> bool {
    let mut agent = Agent::spawn(rig.sandbox(), settings);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    rig.check_recovered(&agent, &ready);
    agent.kill();
    rig.check_pinned();
    ready.restart.entries_rewritten == 0
}
