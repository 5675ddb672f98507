//! Stopped, killed, rebooted, reconfigured: what each restart writes, and that no connection notices.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use recovery_tests::agent::{Agent, SMALL, Settings, holdfast, run};
use recovery_tests::rig::Rig;
use recovery_tests::seed::Seed;
use storage_schema::map::Capacities;

/// A rig with a mesh, live connections and some transactions behind it; its agent is still running.
fn rig(test: &str, settings: &Settings) -> Option<(Seed, Rig, Agent)> {
    let (seed, mut rig, agent) = Rig::started("restart", test, settings)?;
    assert!(rig.push_random(&agent, 20), "a running agent takes transactions");
    agent.wait_applied(rig.oracle().acknowledged());
    Some((seed, rig, agent))
}

/// Everything below the pin root, by path and inode number: what is made anew gets another one.
fn pins(root: &Path) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the pin root can be listed") {
            let path = entry.expect("the pin root can be listed").path();
            let metadata = fs::symlink_metadata(&path).expect("a pin is a file");
            all.push((path.display().to_string(), metadata.ino()));
            if metadata.is_dir() {
                folders.push(path);
            }
        }
    }
    all.sort();
    all
}

/// Restarts, and checks that nothing was written and every pin is the one that it was.
fn expect_nothing_written(rig: &mut Rig, settings: &Settings, pinned: &[(String, u64)]) -> Agent {
    let mut agent = Agent::spawn(rig.sandbox(), settings);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    assert_eq!(ready.restart.entries_rewritten, 0, "epochs are equal: {ready:#?}");
    assert_eq!(ready.datapath.map_writes, 0, "epochs are equal: {ready:#?}");
    assert_eq!(pins(&rig.sandbox().pin_root()), pinned, "pins outlive the agent");
    rig.check_recovered(&agent, &ready);
    agent
}

#[test]
fn a_killed_agent_finds_equal_epochs_and_writes_nothing() {
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("a_killed_agent_finds_equal_epochs_and_writes_nothing", &settings) else {
        return;
    };
    let pinned = pins(&rig.sandbox().pin_root());
    agent.kill();
    rig.check_abandoned();
    let agent = expect_nothing_written(&mut rig, &settings, &pinned);
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn a_stopped_agent_leaves_everything_in_place() {
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("a_stopped_agent_leaves_everything_in_place", &settings) else { return };
    let pinned = pins(&rig.sandbox().pin_root());
    let status = agent.terminate();
    assert!(status.success(), "SIGTERM is how one stops it: {status}");
    assert!(!rig.sandbox().socket().exists(), "a stopped agent takes its socket with it");
    rig.check_abandoned();
    let agent = expect_nothing_written(&mut rig, &settings, &pinned);
    assert!(agent.terminate().success());
    rig.check_pinned();
    rig.finish();
}

#[test]
fn after_a_reboot_the_journal_alone_rebuilds_the_tables() {
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("after_a_reboot_the_journal_alone_rebuilds_the_tables", &settings) else {
        return;
    };
    agent.kill();
    // What a reboot does to pins.
    fs::remove_dir_all(rig.sandbox().pin_root()).expect("pins can be removed");
    let mut agent = Agent::spawn(rig.sandbox(), &settings);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    Rig::check_rebuilt(&ready);
    rig.check_recovered(&agent, &ready);
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn other_capacities_make_a_new_generation() {
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("other_capacities_make_a_new_generation", &settings) else { return };
    let before = agent.status().datapath.generation;
    agent.kill();
    let links = pins(&rig.sandbox().pin_root().join("links"));
    let larger = Settings { capacities: Capacities { frontends: 512, endpoints: 1024, ..SMALL }, ..settings };
    let mut agent = Agent::spawn(rig.sandbox(), &larger);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    assert_ne!(ready.datapath.generation, before);
    Rig::check_rebuilt(&ready);
    assert_eq!(pins(&rig.sandbox().pin_root().join("links")), links, "links are switched, not made anew");
    rig.check_recovered(&agent, &ready);
    assert!(rig.push_random(&agent, 20), "it goes on");
    agent.wait_applied(rig.oracle().acknowledged());
    rig.check_destinations();
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

/// Programs that put something into maps that nobody finds any more are not believed.
#[test]
fn what_sockets_carry_that_was_unpinned_while_it_was_dead_is_made_anew() {
    let settings = Settings::default();
    let Some((_seed, mut rig, mut agent)) =
        rig("what_sockets_carry_that_was_unpinned_while_it_was_dead_is_made_anew", &settings)
    else {
        return;
    };
    let flow = rig.sandbox().pin_root().join("flow");
    let names = || pins(&flow).into_iter().map(|(path, _)| path).collect::<Vec<String>>();
    let all = names();
    for unpinned in ["waypoint_sockets", "stamps", ""] {
        let before = agent.status().datapath.generation;
        agent.kill();
        for (path, _) in pins(&flow).iter().filter(|(path, _)| path.contains(&format!("flow/{unpinned}"))) {
            fs::remove_file(path).expect("root may remove pins");
        }
        agent = Agent::spawn(rig.sandbox(), &settings);
        let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
        assert_ne!(ready.datapath.generation, before, "without {unpinned}*");
        Rig::check_rebuilt(&ready);
        assert_eq!(names(), all);
        rig.check_recovered(&agent, &ready);
    }
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn pins_of_another_journal_are_replaced() {
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("pins_of_another_journal_are_replaced", &settings) else { return };
    agent.kill();
    fs::remove_dir_all(rig.sandbox().state_dir()).expect("a state directory can be removed");
    rig.forget_everything();
    let mut agent = Agent::spawn(rig.sandbox(), &settings);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    assert_eq!(ready.durable_lsn.0, 0, "an empty journal knows nothing of the old pins");
    rig.check_recovered(&agent, &ready);
    rig.lay_foundation(&agent);
    rig.check_destinations();
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn a_journal_restored_from_a_backup_is_not_confused_with_newer_pins() {
    let settings = Settings::default();
    let test = "a_journal_restored_from_a_backup_is_not_confused_with_newer_pins";
    let Some((_seed, mut rig, agent)) = rig(test, &settings) else { return };
    assert!(agent.terminate().success());
    let backup = rig.sandbox().directory().join("backup");
    copy_directory(&rig.sandbox().state_dir(), &backup);
    let restored = rig.oracle().clone();

    let agent = Agent::start(rig.sandbox(), &settings);
    assert!(rig.push_random(&agent, 10), "a running agent takes transactions");
    agent.wait_applied(rig.oracle().acknowledged());
    agent.kill();
    fs::remove_dir_all(rig.sandbox().state_dir()).expect("a state directory can be removed");
    fs::rename(&backup, rig.sandbox().state_dir()).expect("a backup can be put back");
    rig.restore(restored);

    let mut agent = Agent::spawn(rig.sandbox(), &settings);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    rig.check_recovered(&agent, &ready);
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn uninstalled_nothing_is_left_and_connections_go_on() {
    let settings = Settings::default();
    let Some((_seed, mut rig, agent)) = rig("uninstalled_nothing_is_left_and_connections_go_on", &settings) else {
        return;
    };
    let uninstall = |rig: &Rig| {
        let mut command = holdfast(rig.sandbox());
        command.args(["uninstall", "--yes", "--state"]);
        command.arg("--state-dir").arg(rig.sandbox().state_dir()).arg("--pin-root").arg(rig.sandbox().pin_root());
        run(command)
    };
    let refused = uninstall(&rig);
    assert_eq!(refused.status.code(), Some(9), "an agent is running: {refused:?}");
    rig.check_destinations();
    agent.kill();
    let done = uninstall(&rig);
    assert!(done.status.success(), "{done:?}");
    assert!(!rig.sandbox().pin_root().exists() && !rig.sandbox().state_dir().exists());
    rig.worker().expect_progress();
    rig.forget_everything();
    rig.check_destinations();
    rig.finish();
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("it can be listed") {
        let entry = entry.expect("it can be listed");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("it has a type").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a file can be copied");
        }
    }
}
