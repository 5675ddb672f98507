//! Settings: who wins, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::cli::{AgentArgs, Cli, Command, Common, Datapath, LogFormat};
use agent::config::{Config, Journaling, socket};
use clap::Parser as _;
use expect_test::{Expect, expect};
use journal::{CheckpointPolicy, Retention};
use storage_schema::map::Capacities;
use tempfile::TempDir;

/// A settings file, and what the command line makes of it. The environment is the test process' own, so what it says is
/// tested through the real binary (see `cli.rs`).
fn config(file: &str, arguments: &[&str]) -> Result<Config, String> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("agent.toml");
    fs::write(&path, file).unwrap();
    let arguments =
        ["holdfast", "agent", "--config", path.to_str().unwrap()].into_iter().chain(arguments.iter().copied());
    let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
    let Command::Agent(args) = cli.command else { panic!("{:?}", cli.command) };
    Config::for_agent(&cli.common, &args)
        .map_err(|error| error.to_string().replace(directory.path().to_str().unwrap(), "DIR"))
}

fn refused(file: &str, arguments: &[&str], expected: &Expect) {
    expected.assert_eq(&config(file, arguments).expect_err("accepted"));
}

#[test]
fn nothing_said_means_the_defaults() {
    let expected = Config {
        state_dir: "/var/lib/holdfast".into(),
        pin_root: "/sys/fs/bpf/holdfast".into(),
        cgroup: None,
        socket: "/run/holdfast/holdfast.sock".into(),
        datapath: Datapath::Kernel,
        capacities: Capacities::default(),
        verify_interval: Duration::from_mins(5),
        metrics: None,
        journal: Journaling {
            segment_bytes: 64 << 20,
            group_bytes_max: 4 << 20,
            group_wait: Duration::ZERO,
            checkpoint: CheckpointPolicy { records: 100_000, bytes: 32 << 20 },
            retention: Retention { records: None, bytes: Some(4 << 30), age: None },
        },
        log_filter: "info".to_owned(),
        log_format: LogFormat::Text,
    };
    assert_eq!(config("", &[]), Ok(expected));
}

#[test]
fn the_file_that_is_delivered_says_the_defaults() {
    let delivered = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/agent.toml")).unwrap();
    assert_eq!(config(&delivered, &[]), config("", &[]));
    let uncommented: String = delivered
        .lines()
        .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned() + "\n")
        .collect();
    let mut defaults = config("", &[]).unwrap();
    // Where the default is nothing, an example stands.
    defaults.cgroup = Some("/sys/fs/cgroup/kubepods.slice".into());
    defaults.metrics = Some(([127, 0, 0, 1], 9464).into());
    defaults.journal.retention.records = Some(10_000_000);
    defaults.journal.retention.age = Some(Duration::from_hours(30 * 24));
    assert_eq!(config(&uncommented, &[]), Ok(defaults));
}

#[test]
fn a_flag_overrides_the_file() {
    let file = "state_dir = \"/a\"\nsocket = \"/a.sock\"\ndatapath = \"memory\"\n\
                [journal]\nkeep_age = \"2days\"\ngroup_wait = \"1ms\"\n[capacities]\nservices = 10\nbackends = 20\n[log]\nfilter = \"warn\"\nformat = \"json\"\n";
    let from_file = config(file, &[]).unwrap();
    assert_eq!(from_file.state_dir, PathBuf::from("/a"));
    assert_eq!((from_file.datapath, from_file.log_format), (Datapath::Memory, LogFormat::Json));
    assert_eq!((from_file.capacities.services, from_file.capacities.backends), (10, 20));

    assert_eq!(from_file.journal.retention.age, Some(Duration::from_hours(48)));

    let flags = [
        "--state-dir",
        "/b",
        "--socket",
        "/b.sock",
        "--datapath",
        "kernel",
        "--capacity-services",
        "11",
        "--journal-keep-age",
        "1h",
        "--journal-keep-records",
        "9",
    ];
    let with_flags = config(file, &flags).unwrap();
    let retention = with_flags.journal.retention;
    assert_eq!((retention.age, retention.records), (Some(Duration::from_hours(1)), Some(9)));
    assert_eq!(with_flags.journal.group_wait, Duration::from_millis(1));
    assert_eq!((with_flags.state_dir, with_flags.socket), ("/b".into(), "/b.sock".into()));
    assert_eq!((with_flags.datapath, with_flags.log_filter.as_str()), (Datapath::Kernel, "warn"));
    assert_eq!((with_flags.capacities.services, with_flags.capacities.backends), (11, 20));
}

#[test]
fn what_cannot_be_used_is_named() {
    refused(
        "state_dir = \"relative/path\"\n",
        &[],
        &expect!["state_dir: must be an absolute path, not `relative/path`"],
    );
    refused(
        "",
        &["--socket", ""],
        &expect![[r"
        error: a value is required for '--socket <PATH>' but none was supplied

        For more information, try '--help'.
    "]],
    );
    refused("[capacities]\nendpoints = 0\n", &[], &expect!["capacities.endpoints: must be 1 to 67108864, not 0"]);
    refused(
        "",
        &["--capacity-frontends", "4294967295"],
        &expect!["capacities.frontends: must be 1 to 67108864, not 4294967295"],
    );
    refused(
        "[log]\nfilter = \"agent=loud\"\n",
        &[],
        &expect![[
            r#"log.filter: `agent=loud` is not a log filter: error parsing level filter: expected one of "off", "error", "warn", "info", "debug", "trace", or a number 0-5"#
        ]],
    );
}

#[test]
fn what_is_wrong_in_the_file_is_named_with_its_line() {
    refused(
        "socket = \"/a.sock\"\nsockets = \"/b.sock\"\n",
        &[],
        &expect![
            "DIR/agent.toml:2: unknown field `sockets`, expected one of `state_dir`, `pin_root`, `cgroup`, `socket`, `datapath`, `verify_interval`, `metrics`, `capacities`, `journal`, `log`"
        ],
    );
    refused(
        "\n[capacities]\nservice = 1\n",
        &[],
        &expect![
            "DIR/agent.toml:3: unknown field `service`, expected one of `services`, `frontends`, `backends`, `endpoints`"
        ],
    );
    refused(
        "datapath = \"cloud\"\n",
        &[],
        &expect!["DIR/agent.toml:1: unknown variant `cloud`, expected `kernel` or `memory`"],
    );
    refused(
        "[capacities]\nservices = -1\n",
        &[],
        &expect!["DIR/agent.toml:2: invalid value: integer `-1`, expected u32"],
    );
    refused(
        "socket = /a.sock\n",
        &[],
        &expect!["DIR/agent.toml:1: string values must be quoted, expected literal string"],
    );
}

#[test]
fn a_file_that_is_named_must_be_there() {
    let common = Common { config: Some("/nonexistent/agent.toml".into()), socket: None };
    expect!["cannot read the settings file /nonexistent/agent.toml: No such file or directory (os error 2)"]
        .assert_eq(&Config::for_agent(&common, &AgentArgs::default()).unwrap_err().to_string());
    expect!["cannot read the settings file /nonexistent/agent.toml: No such file or directory (os error 2)"]
        .assert_eq(&socket(&common).unwrap_err().to_string());
}

#[test]
fn a_client_that_is_told_the_socket_needs_no_file() {
    let common = Common { config: Some("/nonexistent/agent.toml".into()), socket: Some("/a.sock".into()) };
    assert_eq!(socket(&common).unwrap(), PathBuf::from("/a.sock"));
}
