//! Settings: who wins, and what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent::cli::{AgentArgs, Cli, Command, Common, Datapath, LogFormat, Managed};
use agent::config::{Config, Journaling, Listen, Serving, server, socket};
use api::access::tls::Files;
use api::client::Server;
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
        managed: Managed::Cgroup,
        exempt_cgroups: Vec::new(),
        datapath: Datapath::Kernel,
        capacities: Capacities::default(),
        verify_interval: Duration::from_mins(5),
        metrics: None,
        api: Serving::default(),
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
    defaults.exempt_cgroups = vec!["/sys/fs/cgroup/system.slice/dns-proxy.service".into()];
    defaults.metrics = Some(([127, 0, 0, 1], 9464).into());
    let tls = |name: &str| Path::new("/etc/holdfast/tls").join(name);
    let tls = Files { certificate: tls("tls.crt"), key: tls("tls.key"), authorities: tls("ca.crt") };
    defaults.api.tcp = Some(Listen { address: ([0, 0, 0, 0], 9465).into(), tls: Some(tls) });
    defaults.api.socket_gid = Some(0);
    defaults.api.rules = ["socket read", "spiffe://example.org/ns/mesh/istiod push,read istiod"]
        .map(|rule| rule.parse().unwrap())
        .to_vec();
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
            "DIR/agent.toml:2: unknown field `sockets`, expected one of `state_dir`, `pin_root`, `cgroup`, `socket`, `datapath`, `managed`, `exempt_cgroups`, `verify_interval`, `metrics`, `capacities`, `api`, `journal`, `log`"
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
    let common = Common { config: Some("/nonexistent/agent.toml".into()), socket: None, ..Common::default() };
    expect!["cannot read the settings file /nonexistent/agent.toml: No such file or directory (os error 2)"]
        .assert_eq(&Config::for_agent(&common, &AgentArgs::default()).unwrap_err().to_string());
    expect!["cannot read the settings file /nonexistent/agent.toml: No such file or directory (os error 2)"]
        .assert_eq(&socket(&common).unwrap_err().to_string());
}

#[test]
fn a_client_that_is_told_the_socket_needs_no_file() {
    let common =
        Common { config: Some("/nonexistent/agent.toml".into()), socket: Some("/a.sock".into()), ..Common::default() };
    assert_eq!(socket(&common).unwrap(), PathBuf::from("/a.sock"));
}

#[test]
fn tcp_needs_tls_or_a_loopback_address_and_courage() {
    let listening = |api: &str| config(&format!("[api]\nlisten = \"0.0.0.0:9465\"\n{api}"), &[]);
    let needs_tls = expect![
        "api.listen: TCP needs TLS: tls_cert, tls_key and tls_client_ca (or, at a loopback address, insecure_loopback)"
    ];
    needs_tls.assert_eq(&listening("").unwrap_err());
    expect!["api.listen: 0.0.0.0:9465 is not a loopback address: it needs TLS"]
        .assert_eq(&listening("insecure_loopback = true\n").unwrap_err());
    expect!["api.listen: TLS needs all of tls_cert, tls_key and tls_client_ca"]
        .assert_eq(&listening("tls_cert = \"/c\"\n").unwrap_err());
    let files = "tls_cert = \"/c\"\ntls_key = \"/k\"\ntls_client_ca = \"/a\"\n";
    expect!["api.insecure_loopback: certificates are given: it is one or the other"]
        .assert_eq(&listening(&format!("{files}insecure_loopback = true\n")).unwrap_err());
    let tls = Files { certificate: "/c".into(), key: "/k".into(), authorities: "/a".into() };
    assert_eq!(listening(files).unwrap().api.tcp.unwrap().tls, Some(tls));
    refused("", &["--api-tls-key", "/k"], &expect!["api.listen: certificates are given, and no address to listen on"]);
    let loopback = config("", &["--api-listen", "[::1]:9465", "--insecure-loopback"]).unwrap();
    assert_eq!(loopback.api.tcp, Some(Listen { address: ([0, 0, 0, 0, 0, 0, 0, 1], 9465).into(), tls: None }));
}

#[test]
fn who_may_do_what_is_read_from_rules() {
    let rules =
        config("[api]\nclients = [\"uid:1 read\"]\n", &["--api-client", "gid:2 push a", "--api-client", "dns:b admin"]);
    let rules: Vec<String> = rules.unwrap().api.rules.iter().map(|rule| rule.who.to_string()).collect();
    assert_eq!(rules, ["gid:2", "dns:b"], "a flag stands for the file's");
    refused(
        "[api]\nclients = [\"uid:1 write\"]\n",
        &[],
        &expect!["api.clients: `write` is not a role: push, read or admin"],
    );
    refused(
        "",
        &["--api-socket-group", "no such"],
        &expect!["api.socket_group: there is no group `no such` in /etc/group"],
    );
    assert_eq!(config("", &["--api-socket-group", "root"]).unwrap().api.socket_gid, Some(0));
}

#[test]
fn one_client_s_limits_are_within_those_of_all() {
    refused(
        "[api]\nstreams = 10\n",
        &[],
        &expect!["api.streams_per_client: must be 1 to 10, what all clients may have, not 6144"],
    );
    refused(
        "",
        &["--api-request-bytes-per-client", "1000"],
        &expect![
            "api.request_bytes_per_client: must be 16777216, the largest message, to 268435456, what all clients may have, not 1000"
        ],
    );
    refused(
        "",
        &["--api-request-timeout", "1m"],
        &expect!["api.request_timeout: must be longer than 1m, what a push may wait, not 1m"],
    );
    refused("", &["--api-requests-per-second", "0"], &expect!["api.requests_per_second: must be at least 1"]);
}

#[test]
fn a_client_finds_its_agent() {
    let asked = |arguments: &[&str]| {
        let arguments = ["holdfast", "status"].into_iter().chain(arguments.iter().copied());
        let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
        server(&cli.common).map_err(|error| error.to_string())
    };
    assert_eq!(asked(&["--socket", "/a.sock"]), Ok(Server::Unix("/a.sock".into())));
    let url = "http://127.0.0.1:9465";
    assert_eq!(asked(&["--server", url]), Ok(Server::Loopback { url: url.to_owned() }));
    let tls = ["--tls-ca", "/a", "--tls-cert", "/c", "--tls-key", "/k"];
    let files = Files { certificate: "/c".into(), key: "/k".into(), authorities: "/a".into() };
    let url = "https://node-1.example.org:9465";
    let with_tls: Vec<&str> = ["--server", url].into_iter().chain(tls).collect();
    assert_eq!(asked(&with_tls), Ok(Server::Tls { url: url.to_owned(), files }));
    expect!["--server: https needs all of --tls-ca, --tls-cert and --tls-key"]
        .assert_eq(&asked(&["--server", url]).unwrap_err());
    expect![
        "--server: `http://10.0.0.1:9465` is neither https://host:port nor http:// and a loopback address with its port"
    ]
    .assert_eq(&asked(&["--server", "http://10.0.0.1:9465"]).unwrap_err());
    assert!(asked(&["--server", url, "--socket", "/a.sock"]).unwrap_err().contains("cannot be used with"));
}
