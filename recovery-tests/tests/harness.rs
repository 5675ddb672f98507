//! The harness itself: what it is there to find, it finds. Each test does harm and expects the check to fail.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use recovery_tests::agent::{Agent, Settings};
use recovery_tests::pinned;
use recovery_tests::requirements::kernel_is_usable;
use recovery_tests::rig::Rig;
use recovery_tests::seed::Seed;
use storage_schema::id::Lsn;

fn rig(test: &str) -> Option<(Rig, Settings)> {
    if !kernel_is_usable() {
        return None;
    }
    let settings = Settings::default();
    let mut rig = Rig::new(&Seed::from_environment("harness", test));
    let agent = Agent::start(rig.sandbox(), &settings);
    rig.lay_foundation(&agent);
    rig.open_live_connections();
    agent.kill();
    Some((rig, settings))
}

fn expect_found(what: &str, check: impl FnOnce()) {
    let found = catch_unwind(AssertUnwindSafe(check)).expect_err("the check passes over the harm that was done");
    let message = found.downcast_ref::<String>().map_or("", String::as_str);
    assert!(message.contains(what), "`{message}` says `{what}`");
}

#[test]
fn altered_tables_are_found_in_the_maps_and_by_connections() {
    let Some((mut rig, _)) = rig("altered_tables_are_found_in_the_maps_and_by_connections") else { return };
    rig.check_pinned();
    rig.check_abandoned();
    pinned::tamper(rig.sandbox());
    expect_found("decisions for 10.96.0.1:80", || rig.check_pinned());
    expect_found("10.96.0.1:80 at epochs", || rig.check_abandoned());
    rig.finish();
}

#[test]
fn a_detached_program_is_found() {
    let Some((mut rig, _)) = rig("a_detached_program_is_found") else { return };
    fs::remove_file(rig.sandbox().pin_root().join("links/connect6")).expect("a pin can be removed");
    expect_found("Unreachable", || rig.check_abandoned());
    rig.finish();
}

#[test]
fn a_lost_record_is_found() {
    let Some((mut rig, settings)) = rig("a_lost_record_is_found") else { return };
    let agent = Agent::start(rig.sandbox(), &settings);
    assert!(rig.push_random(&agent, 1), "a running agent takes transactions");
    agent.wait_applied(Lsn(2));
    let complete = rig.oracle().clone();
    assert!(rig.push_random(&agent, 1), "a running agent takes transactions");
    let with_one_more = rig.oracle().clone();
    agent.kill();
    expect_found("record 3 was acknowledged", || with_one_more.check_durable(Lsn(2)));
    rig.restore(complete);
    expect_found("each transaction once", || rig.check_pinned());
    rig.finish();
}
