//! The daemon itself: how it begins, stops, guards what is its own, and reads its settings.

mod running;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use expect_test::expect;
use running::{Place, SERVICE, check, example};

#[test]
fn everything_is_there_again_after_a_stop_and_after_a_kill() {
    let place = Place::new();
    let mut agent = place.start();
    place.run(&["apply", "-f", &example("bookinfo.yaml")]).succeeded();
    let before = place.run(&["get", "workloads"]).succeeded().stdout;
    assert_eq!(agent.terminate(), 0);
    assert!(!place.socket().exists(), "a stopped agent leaves no socket");
    let mut agent = place.start();
    assert_eq!(place.run(&["get", "workloads"]).succeeded().stdout, before);
    agent.kill();
    let _agent = place.start();
    assert_eq!(place.run(&["get", "workloads"]).succeeded().stdout, before);
    assert_eq!(place.status()["appliedLsn"], 1);
}

#[test]
fn an_interrupt_stops_it_as_well() {
    let place = Place::new();
    let mut agent = place.start();
    assert_eq!(agent.interrupt(), 0);
}

#[test]
fn the_socket_and_the_state_are_the_owners_alone() {
    let place = Place::new();
    let _agent = place.start();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&place.socket()), 0o600);
    assert_eq!(mode(&place.path("state")), 0o700);
}

#[test]
fn a_second_agent_is_refused() {
    let place = Place::new();
    let agent = place.start();
    check(
        &place,
        &place.run_agent(&[], &[]),
        &expect![[r"
        exit 9
        holdfast: another agent listens on DIR/holdfast.sock: stop it, or choose another --socket
    "]],
    );
    let other_socket = place.path("other.sock");
    let mut run = place.run_agent(&["--socket", other_socket.to_str().unwrap()], &[]);
    run.stderr = run.stderr.replace(&agent.pid(), "PID");
    check(
        &place,
        &run,
        &expect![[r"
        exit 9
        holdfast: DIR/state is in use by process PID: stop that one first
    "]],
    );
}

#[test]
fn a_directory_of_other_files_is_no_state_directory() {
    let place = Place::new();
    fs::create_dir(place.path("state")).unwrap();
    fs::write(place.path("state/thesis.tex"), "x").unwrap();
    check(
        &place,
        &place.run_agent(&[], &[]),
        &expect![[r"
        exit 6
        holdfast: DIR/state is not empty and holds no journal: choose another state directory
    "]],
    );
}

#[test]
fn the_record_of_a_push_says_who_pushed_it_and_since_when() {
    let place = Place::new();
    let mut agent = place.start();
    place.run(&["apply", "-f", &example("bookinfo.yaml")]).succeeded();
    agent.terminate();
    let journal = journal::Journal::open(journal::Config::new(place.path("state"))).unwrap();
    let record = journal.record(storage_schema::id::Lsn(1)).unwrap().into_inner();
    let (client, received_wall_ns) = (record.client.unwrap(), record.received_wall_ns.unwrap());
    let owner = fs::metadata(place.path("state")).unwrap();
    let (uid, gid) = (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
    let pid = client.strip_prefix(&format!("uid={uid} gid={gid} pid=")).unwrap_or_else(|| panic!("{client}"));
    assert!(pid.parse::<u32>().unwrap() > 0);
    assert!(received_wall_ns > 1_700_000_000_000_000_000 && received_wall_ns.abs_diff(record.wall_ns) < 60_000_000_000);
}

#[test]
fn a_damaged_journal_is_refused_with_the_record_named() {
    let place = Place::new();
    let mut agent = place.start();
    for _ in 0..3 {
        place.run(&["apply", "-f", &example("bookinfo.yaml")]).succeeded();
    }
    agent.terminate();
    let segment = fs::read_dir(place.path("state/journal")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&segment).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[last / 2] ^= 0x40;
    fs::write(&segment, bytes).unwrap();
    let run = place.run_agent(&[], &[]);
    assert_eq!(run.code, 6, "{}", run.stderr);
    assert!(run.stderr.contains("record") || run.stderr.contains("LSN"), "{}", run.stderr);
}

#[test]
fn the_environment_is_below_flags_and_above_the_file() {
    let place = Place::new();
    let file = place.write("agent.toml", "[capacities]\nservices = 11\nbackends = 12\nfrontends = 13\n");
    let environment = [
        ("HOLDFAST_CONFIG", file.as_str()),
        ("HOLDFAST_CAPACITY_BACKENDS", "22"),
        ("HOLDFAST_CAPACITY_FRONTENDS", "23"),
    ];
    let _agent = place.start_with(&["--capacity-frontends", "33"], &environment);
    let tables = place.status()["tables"].clone();
    let capacity = |name: &str| {
        tables.as_array().unwrap().iter().find(|table| table["table"] == name).unwrap()["capacity"].as_u64().unwrap()
    };
    // A table has a fixed number of entries for each one that is admitted.
    let spare = capacity("services") / 11;
    let capacities = [capacity("services"), capacity("backends"), capacity("frontends")];
    assert_eq!(capacities, [11 * spare, 22 * spare, 33 * spare]);
}

#[test]
fn bad_settings_are_refused_before_anything_is_opened() {
    let place = Place::new();
    let file = place.write("agent.toml", "sockets = \"/x\"\n");
    check(
        &place,
        &place.run_agent(&["--config", &file], &[]),
        &expect![[r"
            exit 2
            holdfast: DIR/agent.toml:1: unknown field `sockets`, expected one of `state_dir`, `pin_root`, `cgroup`, `socket`, `datapath`, `managed`, `exempt_cgroups`, `verify_interval`, `metrics`, `capacities`, `api`, `journal`, `log`
        "]],
    );
    check(
        &place,
        &place.run_agent(&["--capacity-services", "0"], &[]),
        &expect![[r"
        exit 2
        holdfast: capacities.services: must be 1 to 67108864, not 0
    "]],
    );
    check(
        &place,
        &place.run_agent(&[], &[("HOLDFAST_LOG", "agent=loud")]),
        &expect![[r#"
        exit 2
        holdfast: log.filter: `agent=loud` is not a log filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
    "#]],
    );
    assert!(!place.path("state").exists());
}

#[test]
fn what_is_logged_is_changed_while_it_runs() {
    let place = Place::new();
    let agent = place.start();
    let manifest = place.write("cart.yaml", SERVICE);
    let log = || fs::read_to_string(place.path("log")).unwrap();
    place.run(&["apply", "-f", &manifest]).succeeded();
    assert_eq!(log(), "", "errors only, and there are none");

    let said = place.run(&["log-level", "error,agent=debug,applier=debug"]).succeeded();
    assert_eq!(said.stdout, "the agent logs `error,agent=debug,applier=debug`, it logged `error` before\n");
    let pushed = place.run(&["apply", "-f", &manifest, "--source", "noisy", "--take-over", "--wait", "applied"]);
    pushed.succeeded();
    // The way of a transaction, by its number and its source.
    for said in
        ["a transaction is submitted lsn=2", "a transaction is durable lsn=2", "up to this one are visible lsn=2"]
    {
        assert!(log().contains(said), "{said}: {}", log());
    }
    assert!(log().contains(r#"source="noisy""#), "{}", log());

    check(
        &place,
        &place.run(&["log-level", "applier=loud"]),
        &expect![[r#"
        exit 3
        holdfast: filter: `applier=loud` is not a log filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5
    "#]],
    );
    let said = place.run(&["log-level"]).succeeded();
    assert_eq!(said.stdout, "the agent logs `error`, it logged `error,agent=debug,applier=debug` before\n");
    let before = log();
    place.run(&["apply", "-f", &manifest, "--take-over"]).succeeded();
    assert_eq!(log(), before, "as quiet as at first");
    drop(agent);
}
