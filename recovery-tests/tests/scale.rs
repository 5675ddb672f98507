//! A restart with 10,000 services and 160,000 endpoints writes no map entry.

use std::thread;
use std::time::{Duration, Instant};

use api::Level;
use recovery_tests::agent::{Agent, Settings};
use recovery_tests::crowd;
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::sandbox::Sandbox;
use storage_schema::map::Capacities;

const SERVICES: u32 = 10_000;
const ENDPOINTS_EACH: u32 = 16;
/// Services of one transaction, together with their workloads.
const SERVICES_EACH: u32 = 500;
/// Only an agent that has given up takes so long to make a generation.
const GROWTH_TIME_MAX: Duration = Duration::from_mins(1);

#[test]
fn a_restart_at_scale_writes_nothing() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let entries = SERVICES * ENDPOINTS_EACH;
    let capacities = Capacities { frontends: SERVICES, services: SERVICES, backends: entries, endpoints: entries };
    let settings = Settings { capacities, ..Settings::default() };
    let agent = Agent::start(&sandbox, &settings);
    for first in (0..SERVICES).step_by(SERVICES_EACH as usize) {
        let transaction = crowd::transaction(first..first + SERVICES_EACH, ENDPOINTS_EACH);
        agent.apply(&transaction, Level::Applied).expect("it fits");
    }
    // A table that is still to grow is made larger by whoever starts next.
    let begun = Instant::now();
    let before = loop {
        let status = agent.status();
        if status.tables.iter().all(|table| table.room == table.capacity) {
            break status;
        }
        assert!(begun.elapsed() < GROWTH_TIME_MAX, "{status:#?}");
        thread::sleep(Duration::from_millis(50));
    };
    assert!(
        before.datapath.map_writes >= u64::from(entries + 3 * SERVICES),
        "{} entries were written",
        before.datapath.map_writes
    );
    agent.kill();

    let mut agent = Agent::spawn(&sandbox, &settings);
    let begun = Instant::now();
    let serving = agent.wait_serving().expect("it gets ready");
    assert_eq!((serving.applied_lsn, serving.restart.entries_rewritten), (before.applied_lsn, 0));
    let after = agent.wait_ready().expect("it loads its state");
    println!(
        "ready {} µs after the start (still loading: {}), loaded {} ms after it, {} entries rewritten",
        after.restart.time_to_ready_us,
        serving.loading,
        begun.elapsed().as_millis(),
        after.restart.entries_rewritten
    );
    assert!(after.datapath.drift.entries_checked >= u64::from(entries + 3 * SERVICES), "{after:#?}");
    assert_eq!(after.restart.entries_rewritten, 0);
    assert_eq!(after.datapath.map_writes, 0);
    assert_eq!((after.applied_lsn, after.durable_lsn), (before.applied_lsn, before.durable_lsn));
    agent.kill();
}
