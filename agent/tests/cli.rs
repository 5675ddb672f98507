//! The real binary: an agent with its tables in memory, and the commands that talk to it.

mod running;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use expect_test::{Expect, expect};
use running::{Place, Run, SERVICE, WORKLOAD, example};
use serde_json::Value;

/// Checks a command's whole outcome: code, standard output, standard error.
fn check(place: &Place, run: &Run, expected: &Expect) {
    expected.assert_eq(&format!("exit {}\n{}{}", run.code, place.normal(&run.stdout), place.normal(&run.stderr)));
}

#[test]
fn what_is_applied_can_be_got() {
    let place = Place::new();
    let _agent = place.start();
    let applied = place.run(&["apply", "-f", &example("bookinfo.yaml"), "--wait", "applied"]);
    check(&place, &applied, &expect![""]);
    check(&place, &place.run(&["get", "services"]), &expect![""]);
    check(&place, &place.run(&["get", "workload", "cluster1//Pod/bookinfo/details-v1"]), &expect![""]);
    check(&place, &place.run(&["get", "node"]), &expect![""]);
    check(&place, &place.run(&["get", "service", "bookinfo/reviews", "-o", "yaml"]), &expect![""]);
}

#[test]
fn what_is_got_can_be_applied_again_and_is_the_same() {
    let place = Place::new();
    let _agent = place.start();
    place.run(&["apply", "-f", &example("bookinfo.yaml"), "--wait", "applied"]).succeeded();
    for kind in ["services", "workloads", "node"] {
        let yaml = place.run(&["get", kind, "-o", "yaml"]).succeeded();
        place.run_with_stdin(&["apply", "-f", "-", "--wait", "applied"], &yaml.stdout).succeeded();
        assert_eq!(place.run(&["get", kind, "-o", "yaml"]).succeeded().stdout, yaml.stdout);
    }
    let one = place.run(&["get", "service", "bookinfo/reviews", "-o", "json"]).succeeded();
    place.run_with_stdin(&["apply", "-f", "-"], &one.stdout).succeeded();
    let list: Value = serde_json::from_str(&place.run(&["get", "services", "-o", "json"]).stdout).unwrap();
    assert_eq!(list.as_array().unwrap().len(), 4);
}

#[test]
fn several_files_are_one_transaction() {
    let place = Place::new();
    let _agent = place.start();
    let (service, workload) = (place.write("service.yaml", SERVICE), place.write("workload.yaml", WORKLOAD));
    // The workload alone would be refused: it needs the service.
    let run = place.run(&["apply", "-f", &workload, "-f", &service]);
    check(&place, &run, &expect![""]);
}

#[test]
fn a_version_that_is_pushed_again_changes_nothing() {
    let place = Place::new();
    let _agent = place.start();
    let service = place.write("service.yaml", SERVICE);
    let apply = |version| place.run(&["apply", "-f", &service, "--source", "ci", "--source-version", version]);
    apply("7").succeeded();
    check(&place, &apply("7"), &expect![""]);
    check(&place, &apply("6"), &expect![""]);
}

#[test]
fn a_receipt_for_programs_has_the_record() {
    let place = Place::new();
    let _agent = place.start();
    let service = place.write("service.yaml", SERVICE);
    let run = place.run(&["apply", "-f", &service, "--wait", "applied", "-o", "json"]).succeeded();
    let receipt: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&receipt["lsn"], &receipt["level"], &receipt["duplicate"]),
        (&1.into(), &"applied".into(), &false.into())
    );
    assert_eq!(receipt["recordHash"].as_str().unwrap().len(), 64);
}

#[test]
fn what_the_agent_refuses_is_named_by_file_line_and_field() {
    let place = Place::new();
    let _agent = place.start();
    let text = format!("{SERVICE}---\n{WORKLOAD}- service: shop/nowhere\n");
    let run = place.run(&["apply", "-f", &place.write("shop.yaml", &text)]);
    check(&place, &run, &expect![""]);
    let taken = SERVICE.replace("shop/cart", "shop/other");
    let run = place.run(&["apply", "-f", &place.write("taken.yaml", &format!("{SERVICE}---\n{taken}"))]);
    check(&place, &run, &expect![""]);
    let port = SERVICE.replace("targetPort: 8080", "targetPort: 0");
    let run = place.run(&["apply", "-f", &place.write("port.yaml", &port)]);
    check(&place, &run, &expect![""]);
    let status = place.status();
    assert_eq!((&status["durableLsn"], &status["resources"]["services"]), (&0.into(), &0.into()));
}

#[test]
fn more_than_the_tables_hold_is_refused() {
    let place = Place::new();
    let _agent = place.start_with(&["--capacity-frontends", "1"], &[]);
    let more = SERVICE.replace("vips: [10.96.0.1]", "vips: [10.96.0.1, 10.96.0.2]");
    let run = place.run(&["apply", "-f", &place.write("service.yaml", &more)]);
    check(&place, &run, &expect![""]);
}

#[test]
fn bad_manifests_are_refused_before_anything_is_sent() {
    let place = Place::new();
    let bad = place.write("bad.yaml", "kind: Service\nname: a/b\nvip: 10.0.0.1\n---\nkind: Pod\n");
    check(&place, &place.run(&["apply", "-f", &bad]), &expect![""]);
    let empty = place.write("empty.yaml", "# nothing\n");
    check(&place, &place.run(&["apply", "-f", &empty]), &expect![""]);
    let twice = place.write("twice.yaml", &format!("{SERVICE}---\n{SERVICE}"));
    check(&place, &place.run(&["apply", "-f", &twice]), &expect![""]);
    check(&place, &place.run(&["apply", "-f", "/nonexistent.yaml"]), &expect![""]);
    fs::write(place.path("latin1.yaml"), b"kind: Service\nname: \xe9\n").unwrap();
    check(&place, &place.run(&["apply", "-f", place.path("latin1.yaml").to_str().unwrap()]), &expect![""]);
}

#[test]
fn deletions_name_what_is_not_there() {
    let place = Place::new();
    let _agent = place.start();
    place.run(&["apply", "-f", &place.write("shop.yaml", &format!("{SERVICE}---\n{WORKLOAD}"))]).succeeded();
    check(&place, &place.run(&["delete", "service", "shop/cart"]), &expect![""]);
    check(&place, &place.run(&["delete", "workload", "cart-1", "cart-2"]), &expect![""]);
    check(&place, &place.run(&["delete", "workload", "cart-1", "cart-2", "--ignore-missing"]), &expect![""]);
    check(&place, &place.run(&["delete", "services", "shop/cart", "--wait", "applied"]), &expect![""]);
    check(&place, &place.run(&["get", "service", "shop/cart"]), &expect![""]);
    check(&place, &place.run(&["get", "services"]), &expect![""]);
}

#[test]
fn the_status_is_for_people_and_programs() {
    let place = Place::new();
    let _agent = place.start();
    place.run(&["apply", "-f", &example("bookinfo.yaml"), "--wait", "applied"]).succeeded();
    let status = place.status();
    for lsn in ["appendedLsn", "durableLsn", "appliedLsn"] {
        assert_eq!(status[lsn], 1, "{lsn}");
    }
    assert_eq!(status["datapath"]["kind"], "memory");
    assert_eq!(status["datapath"]["activeEpoch"], 1);
    assert_eq!(status["resources"]["services"], 4);
    assert_eq!(status["resources"]["workloads"], 6);
    assert_eq!(status["storeId"].as_str().unwrap().len(), 32);
    assert_eq!(status["blockedReason"], Value::Null);
    let text = place.run(&["status"]).succeeded().stdout;
    for part in ["LSN         appended 1, durable 1, applied 1", "datapath    memory, epoch 1", "TABLE", "frontends"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains('\u{1b}'), "no colours where there is no terminal");
}

#[test]
fn without_an_agent_commands_say_how_to_get_one() {
    let place = Place::new();
    check(&place, &place.run(&["status"]), &expect![""]);
    check(&place, &place.run(&["get", "services"]), &expect![""]);
    check(&place, &place.run(&["status", "--wait", "--timeout", "100ms"]), &expect![""]);
}

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
    let _agent = place.start();
    check(&place, &place.run_agent(&[], &[]), &expect![""]);
    let other_socket = place.path("other.sock");
    check(&place, &place.run_agent(&["--socket", other_socket.to_str().unwrap()], &[]), &expect![""]);
}

#[test]
fn a_directory_of_other_files_is_no_state_directory() {
    let place = Place::new();
    fs::create_dir(place.path("state")).unwrap();
    fs::write(place.path("state/thesis.tex"), "x").unwrap();
    check(&place, &place.run_agent(&[], &[]), &expect![""]);
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
    assert_eq!((capacity("services"), capacity("backends"), capacity("frontends")), (11, 22, 33));
}

#[test]
fn bad_settings_are_refused_before_anything_is_opened() {
    let place = Place::new();
    let file = place.write("agent.toml", "sockets = \"/x\"\n");
    check(&place, &place.run_agent(&["--config", &file], &[]), &expect![""]);
    check(&place, &place.run_agent(&["--capacity-services", "0"], &[]), &expect![""]);
    check(&place, &place.run_agent(&[], &[("HOLDFAST_LOG", "agent=loud")]), &expect![""]);
    assert!(!place.path("state").exists());
}

#[test]
fn uninstall_asks_refuses_while_an_agent_runs_and_removes_the_state() {
    let place = Place::new();
    let uninstall = |more: &[&str]| {
        let state = place.path("state");
        let places = ["uninstall", "--datapath", "memory", "--state-dir", state.to_str().unwrap()];
        place.run(&[&places, more].concat())
    };
    check(&place, &uninstall(&["--state", "--yes"]), &expect![""]);
    let mut agent = place.start();
    check(&place, &uninstall(&["--state", "--yes"]), &expect![""]);
    agent.kill();
    check(&place, &uninstall(&["--state"]), &expect![""]);
    assert!(place.path("state").exists());
    check(&place, &uninstall(&["--state", "--yes"]), &expect![""]);
    assert!(!place.path("state").exists() && !place.socket().exists());
}

#[test]
fn doctor_says_what_is_there_and_what_is_missing() {
    let place = Place::new();
    let run = place.run(&["doctor", "--datapath", "memory", "--state-dir", "/proc/version/state", "-o", "json"]);
    assert_eq!(run.code, 5);
    let checks: Value = serde_json::from_str(&run.stdout).unwrap();
    let outcomes: Vec<(&str, &str)> = checks
        .as_array()
        .unwrap()
        .iter()
        .map(|check| (check["name"].as_str().unwrap(), check["outcome"].as_str().unwrap()))
        .collect();
    assert_eq!(outcomes, [("state directory", "missing"), ("socket directory", "ok"), ("agent", "ok")]);
    assert!(checks[0]["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()));
    assert_eq!(place.normal(&run.stderr), "holdfast: the agent cannot run here: state directory\n");
}

#[test]
fn help_has_an_example_for_each_command_and_the_exit_codes() {
    let place = Place::new();
    let help = place.run(&["--help"]).succeeded().stdout;
    assert!(help.contains("Exit codes:\n  0  it did what was asked\n"), "{help}");
    for command in ["agent", "apply", "delete", "get", "status", "doctor", "uninstall"] {
        assert!(help.contains(&format!("  {command} ")), "{command}");
        let help = place.run(&[command, "--help"]).succeeded().stdout;
        assert!(help.contains("holdfast ") && help.contains("Example"), "{command}: {help}");
    }
    check(&place, &place.run(&["get", "pods"]), &expect![""]);
}
