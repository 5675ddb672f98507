//! `holdfast bpf` and the metrics of an agent whose tables are in memory; recovery-tests has those of the kernel.

mod running;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use running::{Place, SERVICE, WORKLOAD};

#[test]
fn an_agents_tables_are_verified_and_renewed() {
    let place = Place::new();
    let _agent = place.start();
    place.run_with_stdin(&["apply", "-f", "-", "--wait", "applied"], &format!("{SERVICE}---\n{WORKLOAD}")).succeeded();
    let verified = place.run(&["bpf", "verify"]).succeeded();
    assert!(verified.stdout.starts_with("epoch 1: ") && verified.stdout.contains(" 0 differ"), "{verified:?}");
    let renewed = place.run(&["bpf", "renew"]).succeeded();
    assert_eq!(renewed.stdout, "connections are decided by new tables in memory\n");
    let again = place.run(&["bpf", "verify", "-o", "json"]).succeeded();
    let again: serde_json::Value = serde_json::from_str(&again.stdout).unwrap();
    assert_eq!((&again["epoch"], &again["entriesDiffering"]), (&1.into(), &0.into()), "{again:#}");
    let status = place.status();
    assert_eq!(status["datapath"]["generationsBuilt"], 1, "{status:#}");
    assert_eq!(status["datapath"]["drift"]["entriesDiffering"], 0, "{status:#}");
    assert!(status["datapath"]["drift"]["comparedAt"].is_string(), "{status:#}");
}

#[test]
fn tables_in_memory_grow_as_well() {
    let place = Place::new();
    let _agent = place.start();
    let room = |place: &Place| place.status()["tables"][1]["room"].as_u64().unwrap();
    let before = room(&place);
    let services = (0..before).map(|number| {
        let (high, low) = (number / 256, number % 256);
        format!("---\nkind: Service\nname: shop/{number}\nvips: [10.96.{high}.{low}]\nports:\n- {{port: 80, targetPort: 8080}}\n")
    });
    place.run_with_stdin(&["apply", "-f", "-", "--wait", "applied"], &services.collect::<String>()).succeeded();
    let begin = Instant::now();
    while room(&place) <= before {
        assert!(begin.elapsed() < Duration::from_mins(1), "{:#}", place.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(room(&place), 2 * before, "to twice its size");
}

#[test]
fn what_cannot_be_done_is_said() {
    let place = Place::new();
    let nobody = place.run(&["bpf", "verify"]);
    assert_eq!(nobody.code, 4, "{nobody:?}");
    let unknown = place.run(&["bpf", "dump", "tables"]);
    assert!(unknown.code == 2 && unknown.stderr.contains("frontend_index"), "{unknown:?}");
    let metrics = place.run_agent(&["--metrics", "0.0.0.0:9464"], &[]);
    assert!(metrics.code == 2 && metrics.stderr.contains("not a loopback address"), "{metrics:?}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = place.run_agent(&["--metrics", &taken.local_addr().unwrap().to_string()], &[]);
    assert!(in_use.code == 1 && in_use.stderr.contains("cannot serve metrics"), "{in_use:?}");
    let interval = place.run_agent(&["--verify-interval", "10ms"], &[]);
    assert!(interval.code == 2 && interval.stderr.contains("verify_interval"), "{interval:?}");
}

#[test]
fn metrics_are_served_and_say_what_the_status_says() {
    let place = Place::new();
    // Free a moment ago; nobody else on this machine has reason to take it.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let _agent = place.start_with(&["--metrics", &address], &[]);
    place.run_with_stdin(&["apply", "-f", "-", "--wait", "applied"], SERVICE).succeeded();
    let begin = Instant::now();
    let scraped = loop {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        if answer.contains("holdfast_applier_applied_lsn 1\n") {
            break answer;
        }
        assert!(begin.elapsed() < Duration::from_mins(1), "{answer}");
        std::thread::sleep(Duration::from_millis(50));
    };
    for line in [
        "# TYPE holdfast_applier_flips_total counter",
        "# HELP holdfast_table_used Entries of a table that the journaled state takes.",
        "holdfast_table_used{table=\"services\"} 1",
        "holdfast_applier_blocked 0",
    ] {
        assert!(scraped.contains(line), "{line}: {scraped}");
    }
}

#[test]
fn each_command_has_an_example() {
    let place = Place::new();
    for command in ["dump", "pressure", "verify", "generations", "renew"] {
        let help = place.run(&["bpf", command, "--help"]).succeeded().stdout;
        assert!(help.contains("Example") && help.contains(&format!("holdfast bpf {command}")), "{command}: {help}");
    }
}
