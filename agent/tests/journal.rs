//! `holdfast journal` on the real binary: of a running agent, and of the directory of one that was killed.

mod running;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use running::{Agent, Place, Run, SERVICE, WORKLOAD};
use serde_json::Value;

fn json(run: Run) -> Value {
    serde_json::from_str(&run.succeeded().stdout).unwrap()
}

fn lines(run: Run) -> Vec<Value> {
    run.succeeded().stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn lsns(records: &[Value]) -> Vec<u64> {
    records.iter().map(|record| record["lsn"].as_u64().unwrap()).collect()
}

/// Four records by two sources: a service, its workload, the service again, and the workload gone.
fn four_records(place: &Place) -> Agent {
    let agent = place.start();
    place.run_with_stdin(&["apply", "-f", "-", "--source", "istiod", "--source-version", "7"], SERVICE).succeeded();
    place.run_with_stdin(&["apply", "-f", "-"], WORKLOAD).succeeded();
    place.run_with_stdin(&["apply", "-f", "-", "--source", "istiod", "--source-version", "8"], SERVICE).succeeded();
    place.run(&["delete", "workload", "cart-1"]).succeeded();
    agent
}

/// Each check twice: asking the agent, and reading what it left behind when it was killed.
fn online_and_offline(check: impl Fn(&dyn Fn(&[&str]) -> Run)) {
    let place = Place::new();
    let mut agent = four_records(&place);
    check(&|arguments| place.run(&[&["journal"], arguments].concat()));
    agent.kill();
    let state = place.path("state").display().to_string();
    check(&|arguments| place.run(&[&["journal", "--state-dir", &state], arguments].concat()));
}

#[test]
fn the_log_is_filtered() {
    online_and_offline(|journal| {
        let chosen = |arguments: &[&str]| lsns(&lines(journal(&[&["log", "-o", "json"], arguments].concat())));
        assert_eq!(chosen(&[]), [1, 2, 3, 4]);
        assert_eq!(chosen(&["--source", "istiod"]), [1, 3]);
        assert_eq!(chosen(&["--kind", "workload"]), [2, 4]);
        assert_eq!(chosen(&["--name", "shop/cart"]), [1, 3]);
        assert_eq!(chosen(&["--kind", "workload", "--name", "shop/cart"]), [0; 0]);
        assert_eq!(chosen(&["-n", "2"]), [3, 4]);
        assert_eq!(chosen(&["-n", "1", "--source", "istiod"]), [3]);
        assert_eq!(chosen(&["--since", "2", "--until", "3"]), [2, 3]);
        assert_eq!(chosen(&["--since", "-1h"]), [1, 2, 3, 4]);
        assert_eq!(chosen(&["--until", "2020-01-01 00:00:00"]), [0; 0]);
        let time = lines(journal(&["log", "-n", "1", "-o", "json"]))[0]["wallNs"].as_u64().unwrap();
        assert!(time > 1_700_000_000_000_000_000);
    });
}

#[test]
fn records_are_shown_to_people_and_programs() {
    online_and_offline(|journal| {
        let table = journal(&["log"]).succeeded().stdout;
        let rows: Vec<&str> = table.lines().collect();
        assert!(rows[0].trim_start().starts_with("LSN  TIME"), "{table}");
        assert!(rows[1].contains("istiod") && rows[1].ends_with("+Service shop/cart"), "{table}");
        assert!(rows[4].contains("cli") && rows[4].ends_with("-Workload cart-1"), "{table}");
        assert_eq!(rows.len(), 5);

        let whole = journal(&["show", "2"]).succeeded().stdout;
        for part in
            ["LSN            2\n", "source         cli, incarnation 0\n", "# +Workload cart-1\n", "uid: cart-1\n"]
        {
            assert!(whole.contains(part), "{part} in {whole}");
        }
        let record = json(journal(&["show", "3", "-o", "json"]));
        assert_eq!((&record["version"], &record["source"]), (&8.into(), &"istiod".into()));
        let before = json(journal(&["show", "2", "-o", "json"]));
        assert_eq!(record["previousHash"], before["hash"], "records are chained");
        assert!(journal(&["show", "3", "-o", "yaml"]).succeeded().stdout.contains("name: shop/cart\n"));

        let missing = journal(&["show", "5"]);
        assert_eq!((missing.code, missing.stdout.as_str()), (8, ""));
        assert!(missing.stderr.contains("record 5 is not there: the last durable one is 4"), "{}", missing.stderr);
    });
}

#[test]
fn statistics_count_what_there_is() {
    let place = Place::new();
    let mut agent = four_records(&place);
    let stats = json(place.run(&["journal", "stats", "-o", "json"]));
    assert_eq!((&stats["records"], &stats["oldestLsn"], &stats["durableLsn"]), (&4.into(), &1.into(), &4.into()));
    assert_eq!((&stats["groups"], &stats["groupRecords"]), (&4.into(), &4.into()), "each was waited for");
    let synced: u64 = stats["syncs"].as_array().unwrap().iter().map(|bucket| bucket["count"].as_u64().unwrap()).sum();
    assert_eq!(synced, 4);
    assert!(place.run(&["journal", "stats"]).succeeded().stdout.contains("FDATASYNC"));
    agent.kill();
    let state = place.path("state").display().to_string();
    let offline = json(place.run(&["journal", "stats", "--state-dir", &state, "-o", "json"]));
    assert_eq!(offline["bytes"], stats["bytes"]);
    assert_eq!(offline["groups"], 0);
}

#[test]
fn a_checkpoint_lets_the_past_go() {
    online_and_offline(|journal| {
        assert_eq!(json(journal(&["checkpoint", "-o", "json"]))["lsn"], 4);
        // All of it is in the segment that is written to, which stays.
        let done = json(journal(&["compact", "--keep-records", "1", "-o", "json"]));
        assert_eq!((&done["segmentsRemoved"], &done["oldestLsn"]), (&0.into(), &1.into()));
        assert_eq!(json(journal(&["stats", "-o", "json"]))["checkpoints"][0]["lsn"], 4);
    });
}

#[test]
fn what_is_exported_is_imported_again() {
    let place = Place::new();
    let agent = four_records(&place);
    let (file, copy) = (place.path("export.jsonl"), place.path("copy"));
    let (file, copy) = (file.to_str().unwrap(), copy.to_str().unwrap());
    let piped = place.run(&["journal", "export"]).succeeded();
    let named = place.run(&["journal", "export", "-f", file]).succeeded();
    assert!(named.stderr.contains("4 records in "), "{}", named.stderr);
    assert_eq!(fs::read_to_string(file).unwrap(), piped.stdout);
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!fs::exists(format!("{file}.part")).unwrap());

    let imported = place.run(&["journal", "import", file, "--state-dir", copy]).succeeded();
    assert!(imported.stderr.contains("4 records imported"), "{}", imported.stderr);
    let again = place.run(&["journal", "export", "--state-dir", copy]).succeeded();
    assert_eq!(again.stdout, piped.stdout, "hash for hash");
    let occupied = place.run(&["journal", "import", file, "--state-dir", copy]);
    assert_eq!(occupied.code, 2, "{occupied:?}");
    assert!(occupied.stderr.contains("holds a journal already"), "{}", occupied.stderr);

    let table = place.path("export.parquet").display().to_string();
    place.run(&["journal", "export", "--format", "parquet", "-f", &table]).succeeded();
    let bytes = fs::read(&table).unwrap();
    assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"), "a whole Parquet file");

    // A part has no state to begin from, and an altered line is found.
    let part = place.run(&["journal", "export", "--since", "2"]).succeeded().stdout;
    let refused = place.run_with_stdin(&["journal", "import", "-", "--state-dir", &format!("{copy}-2")], &part);
    assert!(refused.code == 2 && refused.stderr.contains("begins at record 2"), "{refused:?}");
    let altered = piped.stdout.replacen("8080", "8081", 1);
    let refused = place.run_with_stdin(&["journal", "import", "-", "--state-dir", &format!("{copy}-3")], &altered);
    assert!(refused.code == 2 && refused.stderr.contains("line 1: record 1 was altered"), "{refused:?}");
    drop(agent);
}

#[test]
fn a_snapshot_is_the_same_journal_elsewhere() {
    let place = Place::new();
    let agent = four_records(&place);
    let (file, copy) = (place.path("node.holdfast").display().to_string(), place.path("copy").display().to_string());
    let saved = place.run(&["journal", "snapshot", "save", &file]).succeeded();
    assert!(saved.stderr.contains("a snapshot of"), "{}", saved.stderr);
    place.run(&["journal", "snapshot", "restore", &file, "--state-dir", &copy]).succeeded();
    let read = |state_dir: &[&str]| place.run(&[&["journal", "export"], state_dir].concat()).succeeded().stdout;
    assert_eq!(read(&["--state-dir", &copy]), read(&[]));

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let refused = place.run(&["journal", "snapshot", "restore", &file, "--state-dir", &format!("{copy}-2")]);
    assert!(refused.code == 6 && refused.stderr.contains("its hash does not fit"), "{refused:?}");
    drop(agent);
}

#[test]
fn a_follower_sees_each_record_once() {
    let place = Place::new();
    let agent = four_records(&place);
    let mut command = place.command(&[]);
    command.args(["journal", "log", "--since", "3", "--follow", "-o", "json"]).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap()["lsn"].as_u64();
    assert_eq!((next(), next()), (Some(3), Some(4)));
    for lsn in 5..15 {
        place.run_with_stdin(&["apply", "-f", "-", "--source", "istiod"], SERVICE).succeeded();
        assert_eq!(next(), Some(lsn));
    }
    drop(agent);
    let ended = child.wait().unwrap();
    assert!(!ended.success(), "the agent is gone: {ended:?}");
}

#[test]
fn damage_is_named_and_cut_off_and_kept() {
    let place = Place::new();
    let mut agent = four_records(&place);
    let verified = json(place.run(&["journal", "verify", "-o", "json"]));
    assert_eq!((&verified["records"], &verified["trustedLsn"]), (&4.into(), &4.into()));
    agent.kill();
    let state = place.path("state").display().to_string();
    let offline = |arguments: &[&str]| place.run(&[&["journal", "--state-dir", &state], arguments].concat());
    offline(&["verify"]).succeeded();

    let segment = place.path("state/journal/00000000000000000001.seg");
    let mut bytes = fs::read(&segment).unwrap();
    let at = bytes.windows(6).position(|window| window == b"cart-1").unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let damaged = offline(&["verify"]);
    assert_eq!(damaged.code, 6, "{damaged:?}");
    assert!(damaged.stdout.contains("everything up to record 1 is as it was written"), "{damaged:?}");
    assert!(damaged.stdout.contains("damaged record at LSN 2"), "{damaged:?}");
    assert_eq!(offline(&["log"]).code, 6);

    let asked = offline(&["repair"]);
    assert!(asked.code == 2 && asked.stderr.contains("--yes"), "{asked:?}");
    let repaired = offline(&["repair", "--yes"]).succeeded();
    assert!(repaired.stdout.contains("the journal ends at record 1 now"), "{repaired:?}");
    assert!(place.path("state/cut/00000000000000000002/00000000000000000001.seg").exists());
    assert_eq!(json(offline(&["verify", "-o", "json"]))["trustedLsn"], 1);
    let again = offline(&["repair", "--yes"]).succeeded();
    assert!(again.stdout.contains("nothing is wrong"), "{again:?}");
    let _agent = place.start();
    assert_eq!(lsns(&lines(place.run(&["journal", "log", "-o", "json"]))), [1]);
}

#[test]
fn what_cannot_be_done_is_said() {
    let place = Place::new();
    let nobody = place.run(&["journal", "log"]);
    assert!(nobody.code == 4 && nobody.stderr.contains("--state-dir"), "{nobody:?}");
    let nothing = place.run(&["journal", "log", "--state-dir", place.path("").to_str().unwrap()]);
    assert!(nothing.code == 6 && nothing.stderr.contains("holds no journal"), "{nothing:?}");
    let when = place.run(&["journal", "log", "--since", "yesterday"]);
    assert!(when.code == 2 && when.stderr.contains("neither an LSN"), "{when:?}");

    let agent = four_records(&place);
    let state = place.path("state").display().to_string();
    let running = place.run(&["journal", "log", "--state-dir", &state]);
    assert!(running.code == 9 && running.stderr.contains(&agent.pid()), "{running:?}");
    let repair = place.run(&["journal", "repair", "--yes"]);
    assert!(repair.code == 2 && repair.stderr.contains("--state-dir"), "{repair:?}");
    let follow = place.run(&["journal", "log", "--follow", "--until", "3"]);
    assert_eq!(follow.code, 2, "{follow:?}");
}

#[test]
fn settings_reach_the_journal() {
    let place = Place::new();
    let settings = ["--journal-segment-bytes", "65536", "--journal-keep-records", "5"];
    let agent = place.start_with(&settings, &[("HOLDFAST_JOURNAL_GROUP_WAIT", "1ms")]);
    let long = "h".repeat(500);
    let service = |number| format!("---\nkind: Service\nname: shop/{number}\nhostname: {long}\n");
    let services = (0..20).map(service).collect::<Vec<_>>().concat();
    for record in 1..=40 {
        place.run_with_stdin(&["apply", "-f", "-"], &services).succeeded();
        if record == 20 {
            // What lies before it can go without taking away the states behind it.
            place.run(&["journal", "checkpoint"]).succeeded();
        }
    }
    let done = json(place.run(&["journal", "compact", "-o", "json"]));
    assert!(done["oldestLsn"].as_u64().unwrap() > 1, "what the settings do not want is gone: {done}");
    let behind = place.run(&["journal", "log", "--since", "1"]);
    let oldest = format!("the oldest one is {}", done["oldestLsn"]);
    assert!(behind.code == 8 && behind.stderr.contains(&oldest), "{behind:?}");
    drop(agent);
    let refused = place.run_agent(&["--journal-group-wait", "2s"], &[]);
    assert!(refused.code == 2 && refused.stderr.contains("group_wait"), "{refused:?}");
}

#[test]
fn each_command_has_an_example() {
    let place = Place::new();
    for command in [
        "log",
        "show",
        "verify",
        "repair",
        "checkpoint",
        "compact",
        "export",
        "import",
        "snapshot",
        "snapshot save",
        "snapshot restore",
        "stats",
    ] {
        let arguments = ["journal"].into_iter().chain(command.split(' ')).chain(["--help"]);
        let help = place.run(&arguments.collect::<Vec<_>>()).succeeded().stdout;
        assert!(help.contains("Example") && help.contains(&format!("holdfast journal {command}")), "{command}: {help}");
    }
}
