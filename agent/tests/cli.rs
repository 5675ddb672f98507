//! The real binary: an agent with its tables in memory, and the commands that talk to it.

mod running;

use std::fs;

use expect_test::expect;
use running::{Place, SERVICE, WORKLOAD, check, example};
use serde_json::Value;

#[test]
fn what_is_applied_can_be_got() {
    let place = Place::new();
    let _agent = place.start();
    let applied = place.run(&["apply", "-f", &example("bookinfo.yaml"), "--wait", "applied"]);
    check(
        &place,
        &applied,
        &expect![[r"
        exit 0
        LSN 1: 4 services, 6 workloads, 1 node, applied
    "]],
    );
    check(
        &place,
        &place.run(&["get", "services"]),
        &expect![[r"
            exit 0
            NAME                   VIPS                     PORTS      POLICY   OWNER   LSN
            bookinfo/details       10.96.0.20,fd00:96::20   9080/tcp   random   cli     1
            bookinfo/productpage   10.96.0.10,fd00:96::10   9080/tcp   random   cli     1
            bookinfo/ratings       10.96.0.40,fd00:96::40   9080/tcp   random   cli     1
            bookinfo/reviews       10.96.0.30,fd00:96::30   9080/tcp   random   cli     1
        "]],
    );
    check(
        &place,
        &place.run(&["get", "workload", "cluster1//Pod/bookinfo/details-v1"]),
        &expect![[r"
            exit 0
            UID                                 ADDRESSES                STATUS    SERVICES           OWNER   LSN
            cluster1//Pod/bookinfo/details-v1   127.1.2.1,fd00:10::2:1   healthy   bookinfo/details   cli     1
        "]],
    );
    check(
        &place,
        &place.run(&["get", "node"]),
        &expect![[r"
            exit 0
            NAME    NETWORK    CLUSTER    LOCALITY   NO ENDPOINTS   OWNER   LSN
            node1   network1   cluster1   eu/eu-1    refuse         cli     1
        "]],
    );
    check(
        &place,
        &place.run(&["get", "service", "bookinfo/reviews", "-o", "yaml"]),
        &expect![[r#"
        exit 0
        ---
        kind: Service
        name: bookinfo/reviews
        hostname: reviews.bookinfo.svc.cluster.local
        vips:
        - "10.96.0.30"
        - fd00:96::30
        ports:
        - name: http
          port: 9080
          targetPort: 9080
          protocol: tcp
        loadBalancing: random
    "#]],
    );
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
    check(
        &place,
        &run,
        &expect![[r"
        exit 0
        LSN 1: 1 service, 1 workload, durable
    "]],
    );
}

#[test]
fn a_version_that_is_pushed_again_changes_nothing() {
    let place = Place::new();
    let _agent = place.start();
    let service = place.write("service.yaml", SERVICE);
    let apply = |version| place.run(&["apply", "-f", &service, "--source", "ci", "--source-version", version]);
    apply("7").succeeded();
    check(
        &place,
        &apply("7"),
        &expect![[r"
        exit 0
        LSN 1: durable; it had been pushed before
    "]],
    );
    check(
        &place,
        &apply("6"),
        &expect![[r"
            exit 3
            holdfast: source `ci`: version 6 is older than its last one, 7
            holdfast: the agent refused the transaction: nothing was changed
        "]],
    );
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
    check(
        &place,
        &run,
        &expect![[r"
        exit 3
        holdfast: DIR/shop.yaml:12: document 2: services[1].service: there is no Service shop/nowhere: push it before, or in the same transaction
        holdfast: the agent refused the transaction: nothing was changed
    "]],
    );
    let taken = WORKLOAD.replace("shop/cart", "shop/cart\n  ports: [{servicePort: 81, targetPort: 1}]");
    let run = place.run(&["apply", "-f", &place.write("taken.yaml", &format!("{SERVICE}---\n{taken}"))]);
    check(
        &place,
        &run,
        &expect![[r"
            exit 3
            holdfast: DIR/taken.yaml:12: document 2: services[0].ports[0].servicePort: Service shop/cart has no port 81
            holdfast: the agent refused the transaction: nothing was changed
        "]],
    );
    let port = SERVICE.replace("targetPort: 8080", "targetPort: 0");
    let run = place.run(&["apply", "-f", &place.write("port.yaml", &port)]);
    check(
        &place,
        &run,
        &expect![[r"
        exit 3
        holdfast: DIR/port.yaml:5: document 1: ports[0].targetPort: must be 1 to 65535, not 0
        holdfast: the agent refused the transaction: nothing was changed
    "]],
    );
    let status = place.status();
    assert_eq!((&status["durableLsn"], &status["resources"]["services"]), (&0.into(), &0.into()));
}

#[test]
fn an_address_that_is_taken_is_named_with_its_owner() {
    let place = Place::new();
    let _agent = place.start();
    place.run(&["apply", "-f", &place.write("cart.yaml", SERVICE)]).succeeded();
    let other = place.write("other.yaml", &SERVICE.replace("shop/cart", "shop/other"));
    check(
        &place,
        &place.run(&["apply", "-f", &other]),
        &expect![[r"
        exit 3
        holdfast: DIR/other.yaml:3: document 1: vips: 10.96.0.1 port 80 belongs to Service shop/cart
        holdfast: the agent refused the transaction: nothing was changed
    "]],
    );
}

#[test]
fn more_than_the_tables_hold_is_refused() {
    let place = Place::new();
    let _agent = place.start_with(&["--capacity-frontends", "1"], &[]);
    let more = SERVICE.replace("vips: [10.96.0.1]", "vips: [10.96.0.1, 10.96.0.2]");
    let run = place.run(&["apply", "-f", &place.write("service.yaml", &more)]);
    check(
        &place,
        &run,
        &expect![[r"
            exit 3
            holdfast: the transaction needs 2 entries of frontends, whose capacity is 1: raise capacities.frontends and restart the agent
            holdfast: the agent refused the transaction: nothing was changed
        "]],
    );
}

#[test]
fn bad_manifests_are_refused_before_anything_is_sent() {
    let place = Place::new();
    let bad = place.write("bad.yaml", "kind: Service\nname: a/b\nvip: 10.0.0.1\n---\nkind: Pod\n");
    check(
        &place,
        &place.run(&["apply", "-f", &bad]),
        &expect![[r"
        exit 2
        holdfast: DIR/bad.yaml:3: document 1: vip: unknown field `vip`, expected one of name, hostname, vips, externalAddresses, ports, allPorts, loadBalancing, noEndpoints, drain, accelerate, waypoint
        holdfast: DIR/bad.yaml:5: document 2: kind: must be Service, Workload or Node, not `Pod`
    "]],
    );
    let empty = place.write("empty.yaml", "# nothing\n");
    check(
        &place,
        &place.run(&["apply", "-f", &empty]),
        &expect![[r"
        exit 2
        holdfast: there is no resource in what was given
    "]],
    );
    let twice = place.write("twice.yaml", &format!("{SERVICE}---\n{SERVICE}"));
    check(
        &place,
        &place.run(&["apply", "-f", &twice]),
        &expect![[r"
        exit 2
        holdfast: DIR/twice.yaml:7: document 2: Service shop/cart is described twice, first at DIR/twice.yaml:1
    "]],
    );
    check(
        &place,
        &place.run(&["apply", "-f", "/nonexistent.yaml"]),
        &expect![[r"
        exit 2
        holdfast: cannot read /nonexistent.yaml: No such file or directory (os error 2)
    "]],
    );
    fs::write(place.path("latin1.yaml"), b"kind: Service\nname: \xe9\n").unwrap();
    check(
        &place,
        &place.run(&["apply", "-f", place.path("latin1.yaml").to_str().unwrap()]),
        &expect![[r"
        exit 2
        holdfast: DIR/latin1.yaml:2: is not UTF-8 text
    "]],
    );
}

#[test]
fn deletions_name_what_is_not_there() {
    let place = Place::new();
    let _agent = place.start();
    place.run(&["apply", "-f", &place.write("shop.yaml", &format!("{SERVICE}---\n{WORKLOAD}"))]).succeeded();
    check(
        &place,
        &place.run(&["delete", "service", "shop/cart"]),
        &expect![[r"
            exit 3
            holdfast: Service shop/cart: Workload cart-1 backs it: remove or change that one before, or in the same transaction
            holdfast: the agent refused the transaction: nothing was changed
        "]],
    );
    check(
        &place,
        &place.run(&["delete", "workload", "cart-1", "cart-2"]),
        &expect![[r"
        exit 8
        holdfast: Workload cart-2 does not exist: nothing was removed
    "]],
    );
    check(
        &place,
        &place.run(&["delete", "workload", "cart-1", "cart-2", "--ignore-missing"]),
        &expect![[r"
        exit 0
        LSN 2: 2 removed, durable
    "]],
    );
    check(
        &place,
        &place.run(&["delete", "services", "shop/cart", "--wait", "applied"]),
        &expect![[r"
        exit 0
        LSN 3: 1 removed, applied
    "]],
    );
    check(
        &place,
        &place.run(&["get", "service", "shop/cart"]),
        &expect![[r"
        exit 8
        holdfast: Service shop/cart does not exist
    "]],
    );
    check(
        &place,
        &place.run(&["get", "services"]),
        &expect![[r"
        exit 0
        there is no service
    "]],
    );
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
    check(
        &place,
        &place.run(&["status"]),
        &expect![[r"
        exit 4
        holdfast: cannot reach the agent at DIR/holdfast.sock: No such file or directory (os error 2): is `holdfast agent` running there?
    "]],
    );
    check(
        &place,
        &place.run(&["get", "services"]),
        &expect![[r"
        exit 4
        holdfast: cannot reach the agent at DIR/holdfast.sock: No such file or directory (os error 2): is `holdfast agent` running there?
    "]],
    );
    check(
        &place,
        &place.run(&["status", "--wait", "--timeout", "100ms"]),
        &expect![[r"
        exit 7
        holdfast: not ready after 100ms: cannot reach the agent at DIR/holdfast.sock: No such file or directory (os error 2): is `holdfast agent` running there?
    "]],
    );
}

#[test]
fn uninstall_asks_refuses_while_an_agent_runs_and_removes_the_state() {
    let place = Place::new();
    let uninstall = |more: &[&str]| {
        let state = place.path("state");
        let places = ["uninstall", "--datapath", "memory", "--state-dir", state.to_str().unwrap()];
        place.run(&[&places, more].concat())
    };
    check(
        &place,
        &uninstall(&["--state", "--yes"]),
        &expect![[r"
        exit 0
        there is nothing to remove
    "]],
    );
    let mut agent = place.start();
    check(
        &place,
        &uninstall(&["--state", "--yes"]),
        &expect![[r"
            exit 9
            holdfast: an agent is running on DIR/holdfast.sock: stop it first
        "]],
    );
    agent.kill();
    check(
        &place,
        &uninstall(&["--state"]),
        &expect![[r"
            exit 2
            holdfast: this asks before it goes on, and there is no terminal: use --yes
        "]],
    );
    assert!(place.path("state").exists());
    check(
        &place,
        &uninstall(&["--state", "--yes"]),
        &expect![[r"
        exit 0
        removed DIR/state
    "]],
    );
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
    for command in ["agent", "apply", "delete", "get", "status", "doctor", "journal", "uninstall"] {
        assert!(help.contains(&format!("  {command} ")), "{command}");
        let help = place.run(&[command, "--help"]).succeeded().stdout;
        assert!(help.contains("holdfast ") && help.contains("Example"), "{command}: {help}");
    }
    check(
        &place,
        &place.run(&["get", "pods"]),
        &expect![[r"
        exit 2
        error: invalid value 'pods' for '<KIND>': unknown kind `pods`: use service, workload or node

        For more information, try '--help'.
    "]],
    );
}

#[cfg(feature = "failpoints")]
#[test]
fn a_failpoint_ends_the_agent_where_it_is_armed() {
    let place = Place::new();
    let mut agent = place.start_with(&[], &[("HOLDFAST_FAILPOINTS", "journal.ack.before=1, loader.before_link")]);
    let service = place.write("service.yaml", SERVICE);
    place.run(&["apply", "-f", &service]).succeeded();
    let unanswered = place.run(&["apply", "-f", &service]);
    assert_eq!(unanswered.code, 4, "{unanswered:?}");
    assert_eq!(agent.wait(), -1, "it ended by a signal");
    let _agent = place.start();
    assert_eq!(place.status()["durableLsn"], 2, "written, though not acknowledged");

    check(
        &place,
        &place.run_agent(&[], &[("HOLDFAST_FAILPOINTS", "journal.nowhere")]),
        &expect![[r"
        exit 2
        holdfast: HOLDFAST_FAILPOINTS: there is no failpoint `journal.nowhere`: `holdfast failpoints` lists them
    "]],
    );
    check(
        &place,
        &place.run_agent(&[], &[("HOLDFAST_FAILPOINTS", "journal.ack.before=soon")]),
        &expect![[r"
        exit 2
        holdfast: HOLDFAST_FAILPOINTS: `journal.ack.before=soon`: `soon` is not a number of hits
    "]],
    );
    let listed = place.run(&["failpoints"]).succeeded().stdout;
    for name in ["journal.ack.before", "applier.before_flip", "loader.before_link"] {
        assert!(listed.lines().any(|line| line == name), "{name} is not in {listed}");
    }
}
