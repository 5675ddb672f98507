//! Bad input, bad places, damaged files: the real binary says in one line what is wrong, ends with the documented code,
//! and changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use api::Level;
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::requirements::{check_kernel, kernel_is_usable};
use recovery_tests::sandbox::Sandbox;
use recovery_tests::world;
use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Resource, Service};

/// Exit codes, as `holdfast --help` lists them.
const USAGE: i32 = 2;
const REFUSED: i32 = 3;
const UNREACHABLE: i32 = 4;
const UNSUPPORTED: i32 = 5;
const DAMAGED: i32 = 6;
const NOT_FOUND: i32 = 8;
const IN_USE: i32 = 9;

/// A user without any privilege: `nobody`.
const NOBODY: u32 = 65534;

const IN_MEMORY: fn() -> Settings = || Settings { kernel: false, ..Settings::default() };

/// A sandbox and an agent with the mesh, in the kernel where that is possible.
fn mesh() -> (Sandbox, Settings, Agent) {
    let kernel = check_kernel().is_ok();
    let sandbox = if kernel { Sandbox::enter() } else { Sandbox::plain() };
    let settings = Settings { kernel, ..Settings::default() };
    let agent = Agent::start(&sandbox, &settings);
    agent.apply(&world::foundation("test"), Level::Applied).expect("the mesh is valid");
    (sandbox, settings, agent)
}

/// Checks that a command failed as it should: the code, one line on standard error that says `what`, nothing else.
fn expect_failure(output: &Output, code: i32, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let said: Vec<&str> = text.lines().filter(|line| line.starts_with("holdfast: ")).collect();
    let about: Vec<&str> = said.iter().filter(|line| line.contains(what)).copied().collect();
    assert_eq!(about.len(), 1, "one line says `{what}`: {text}");
    let rest: Vec<&&str> = said.iter().filter(|line| !line.contains(what)).collect();
    let verdict = "holdfast: the agent refused the transaction: nothing was changed";
    assert!(rest.iter().all(|line| **line == verdict), "one error has one line: {text}");
    assert!(!text.contains("panicked"), "{text}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn apply(sandbox: &Sandbox, manifest: impl AsRef<[u8]>) -> Output {
    let file = sandbox.directory().join("manifest.yaml");
    fs::write(&file, manifest).expect("a file can be written");
    let mut command = holdfast(sandbox);
    command.arg("apply").arg("-f").arg(file);
    run(command)
}

#[test]
fn a_bad_manifest_changes_nothing() {
    let (sandbox, _, agent) = mesh();
    let before = (agent.status(), agent.resources());
    let many: Vec<String> = (0..300).map(|number| format!("10.97.{}.{}", number / 200, number % 200 + 1)).collect();
    let over_capacity = format!(
        "kind: Service\nname: mesh/many\nports:\n- {{port: 80, targetPort: 80}}\nvips: [{}]\n",
        many.join(", ")
    );
    let workload = "kind: Workload\nuid: w\naddresses: [127.1.0.9]\n";
    let dangling_port =
        format!("{workload}services:\n- service: mesh/s0\n  ports: [{{servicePort: 81, targetPort: 1}}]\n");
    for (code, what, manifest) in [
        (USAGE, "manifest.yaml:2: document 1: ", "kind: Service\nname: [mesh/s9\n".to_owned()),
        (USAGE, "color", "kind: Service\nname: mesh/s9\ncolor: red\n".to_owned()),
        (USAGE, "kind", "name: mesh/s9\n".to_owned()),
        (USAGE, "must be Service, Workload or Node", "kind: Gateway\nname: g\n".to_owned()),
        (USAGE, "no resource", "# nothing\n".to_owned()),
        (USAGE, "ports[0].port", "kind: Service\nname: mesh/s9\nports:\n- {port: 65536, targetPort: 1}\n".to_owned()),
        (USAGE, "described twice", "kind: Node\nname: a\n---\nkind: Node\nname: a\n".to_owned()),
        (REFUSED, "there is no Service mesh/none", format!("{workload}services: [{{service: mesh/none}}]\n")),
        (REFUSED, "has no port 81", dangling_port),
        (
            REFUSED,
            "10.96.0.1 port 80 belongs to Service mesh/s0",
            "kind: Service\nname: mesh/s9\nvips: [10.96.0.1]\nports:\n- {port: 80, targetPort: 80}\n".to_owned(),
        ),
        (REFUSED, "frontends", over_capacity),
        (REFUSED, "ports[0].port", "kind: Service\nname: mesh/s9\nports:\n- {port: 0, targetPort: 1}\n".to_owned()),
        (REFUSED, "namespace/name", "kind: Service\nname: s9\n".to_owned()),
        // The first document is fine: half a transaction is none.
        (
            REFUSED,
            "manifest.yaml:6: document 2: vips[0]: ",
            "kind: Node\nname: node\n---\nkind: Service\nname: mesh/s9\nvips: [0.0.0.0]\n".to_owned(),
        ),
    ] {
        let output = apply(&sandbox, &manifest);
        eprintln!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        expect_failure(&output, code, what);
    }
    expect_failure(&apply(&sandbox, b"kind: Node\nname: \xff\n"), USAGE, "manifest.yaml:2: is not UTF-8 text");
    let mut missing = holdfast(&sandbox);
    missing.args(["apply", "-f", "/nonexistent.yaml"]);
    expect_failure(&run(missing), USAGE, "cannot read /nonexistent.yaml");

    let after = agent.status();
    assert_eq!((after.appended_lsn, after.durable_lsn, after.applied_lsn), (Lsn(1), Lsn(1), Lsn(1)));
    assert_eq!(after.datapath.map_writes, before.0.datapath.map_writes, "no table was written");
    assert_eq!(after.tables, before.0.tables);
    assert!(agent.resources() == before.1);
}

#[test]
fn deleting_what_is_used_or_absent_changes_nothing() {
    let (sandbox, _, agent) = mesh();
    let before = agent.resources();
    let delete = |kind: &str, name: &str, source: &str| {
        let mut command = holdfast(&sandbox);
        command.args(["delete", kind, name, "--source", source, "--source-incarnation", "1"]);
        run(command)
    };
    expect_failure(&delete("service", "mesh/s0", "test"), REFUSED, "backs it");
    expect_failure(&delete("service", "mesh/s0", "another"), REFUSED, "belongs to source `test`");
    expect_failure(&delete("service", "mesh/none", "test"), NOT_FOUND, "mesh/none");
    let mut get = holdfast(&sandbox);
    get.args(["get", "workload", "none"]);
    expect_failure(&run(get), NOT_FOUND, "Workload none does not exist");
    assert_eq!(agent.status().durable_lsn, Lsn(1));
    assert!(agent.resources() == before);
}

#[test]
fn bad_settings_are_refused_before_anything_is_opened() {
    let sandbox = Sandbox::plain();
    let file = sandbox.directory().join("agent.toml");
    fs::write(&file, "state_dirr = \"/x\"\n").expect("a file can be written");
    let mut command = Agent::command(&sandbox, &IN_MEMORY());
    command.arg("--config").arg(&file);
    expect_failure(&run(command), USAGE, "state_dirr");
    let settings = Settings {
        capacities: storage_schema::map::Capacities { frontends: 0, ..IN_MEMORY().capacities },
        ..IN_MEMORY()
    };
    expect_failure(&run(Agent::command(&sandbox, &settings)), USAGE, "frontends");
    assert!(!sandbox.state_dir().exists(), "nothing was opened");
}

#[test]
fn without_an_agent_clients_say_so() {
    let sandbox = Sandbox::plain();
    for arguments in [vec!["status"], vec!["get", "services"]] {
        let mut command = holdfast(&sandbox);
        command.args(arguments);
        expect_failure(&run(command), UNREACHABLE, "cannot reach the agent");
    }
    expect_failure(&apply(&sandbox, "kind: Node\nname: node\n"), UNREACHABLE, "cannot reach the agent");
}

#[test]
fn a_second_agent_is_refused() {
    let (sandbox, settings, agent) = mesh();
    expect_failure(&run(Agent::command(&sandbox, &settings)), IN_USE, "another agent listens");
    let mut elsewhere = holdfast_at(&sandbox, &sandbox.directory().join("other.sock"));
    elsewhere.args(["agent", "--datapath", "memory", "--state-dir"]).arg(sandbox.state_dir());
    expect_failure(&run(elsewhere), IN_USE, &format!("process {}", agent.pid()));
    assert_eq!(agent.status().durable_lsn, Lsn(1), "the first one is not disturbed");
}

/// The binary, with another socket than the sandbox's.
fn holdfast_at(sandbox: &Sandbox, socket: &Path) -> Command {
    let mut command = Command::new(holdfast(sandbox).get_program());
    command.arg("--socket").arg(socket);
    command
}

/// A flipped byte in a record that was acknowledged: refused with the record's number; put back, all is there.
#[test]
fn a_damaged_journal_is_refused_by_the_number_of_the_record() {
    let (sandbox, settings, agent) = mesh();
    let service = Service { name: "mesh/damaged".to_owned(), ..Service::default() };
    for (version, service) in (2..).zip([service, world::service(5, Vec::new(), &[(80, 80)])]) {
        let origin = Origin { source: "test".to_owned(), incarnation: 1, version: Some(version) };
        let transaction = Transaction::push(origin, vec![Delta::Upsert(Resource::Service(service))]);
        agent.apply(&transaction, Level::Applied).expect("it is valid");
    }
    let resources = agent.resources();
    let settings_after = settings.clone();
    agent.kill();

    let segment = only_segment(&sandbox);
    let mut bytes = fs::read(&segment).expect("the segment can be read");
    let name = b"mesh/damaged";
    let place = bytes.windows(name.len()).position(|window| window == name).expect("record 2 names the service");
    bytes[place] ^= 0x20;
    fs::write(&segment, &bytes).expect("the segment can be written");
    let refused = run(Agent::command(&sandbox, &settings));
    expect_failure(&refused, DAMAGED, "LSN 2");

    bytes[place] ^= 0x20;
    fs::write(&segment, &bytes).expect("the segment can be written");
    let agent = Agent::start(&sandbox, &settings_after);
    assert_eq!(agent.status().durable_lsn, Lsn(3));
    assert!(agent.resources() == resources);
}

/// What is done to a directory.
type Harm = fn(&Path);

/// The store is derived: whatever happens to it, it is rebuilt from the journal.
#[test]
fn a_damaged_or_missing_store_is_rebuilt() {
    let (sandbox, settings, agent) = mesh();
    let resources = agent.resources();
    assert!(agent.terminate().success());
    let store = sandbox.state_dir().join("store");
    let harms: [(&str, Harm); 3] = [
        ("removed", |store| fs::remove_dir_all(store).expect("a directory can be removed")),
        ("overwritten", |store| {
            for file in files_below(store) {
                let length = fs::metadata(&file).expect("it is there").len();
                fs::write(&file, vec![0xa5; usize::try_from(length).expect("the store is small")])
                    .expect("it is a file");
            }
        }),
        ("cut", |store| {
            for file in files_below(store) {
                let length = fs::metadata(&file).expect("it is there").len();
                let file = fs::File::options().write(true).open(file).expect("it can be written");
                file.set_len(length / 2).expect("it can be cut");
            }
        }),
    ];
    for (harm, inflict) in harms {
        inflict(&store);
        let agent = Agent::start(&sandbox, &settings);
        assert_eq!(agent.status().durable_lsn, Lsn(1), "{harm}");
        assert!(agent.resources() == resources, "{harm}");
        assert!(
            agent.status().restart.entries_rewritten == 0 || !settings.kernel,
            "{harm}: the tables were not touched"
        );
        assert!(agent.terminate().success(), "{harm}");
    }
}

#[test]
fn places_where_the_datapath_cannot_be_are_refused() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let directory = sandbox.directory().join("plain");
    fs::create_dir(&directory).expect("a directory can be made");
    let agent = |option: &str| {
        let mut command = holdfast(&sandbox);
        command.arg("agent").arg("--state-dir").arg(sandbox.state_dir());
        let cgroup = if option == "--cgroup" { &directory } else { sandbox.cgroup().expect("it has one") };
        let pins = if option == "--pin-root" { directory.join("pins") } else { sandbox.pin_root() };
        command.arg("--cgroup").arg(cgroup).arg("--pin-root").arg(pins);
        run(command)
    };
    expect_failure(&agent("--cgroup"), UNSUPPORTED, "is not a directory of a cgroup v2 file system");
    expect_failure(&agent("--pin-root"), UNSUPPORTED, "is not on a BPF file system");
    assert!(!sandbox.pin_root().join("links").exists(), "nothing was attached");
}

#[test]
fn without_privilege_the_kernel_is_refused_and_memory_works() {
    if !kernel_is_usable() {
        return;
    }
    let sandbox = Sandbox::enter();
    let (program, home) = for_nobody(&sandbox);
    let command = |datapath: &str| {
        let mut command = Command::new(&program);
        command.uid(NOBODY).gid(NOBODY).arg("--socket").arg(home.join("holdfast.sock"));
        command.args(["agent", "--datapath", datapath, "--state-dir"]).arg(home.join("state"));
        command.arg("--cgroup").arg(sandbox.cgroup().expect("it has one")).arg("--pin-root").arg(sandbox.pin_root());
        command
    };
    expect_failure(&run(command("kernel")), UNSUPPORTED, "needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: run as root");
    assert!(!sandbox.pin_root().exists(), "nothing was pinned");

    let mut child = command("memory").spawn().expect("it can be started");
    let mut status = Command::new(&program);
    status.uid(NOBODY).gid(NOBODY).arg("--socket").arg(home.join("holdfast.sock"));
    status.args(["status", "--wait", "-o", "json"]);
    let output = run(status);
    child.kill().expect("a child may be killed");
    child.wait().expect("a child can be waited for");
    assert!(output.status.success(), "{output:?}");
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(status["datapath"]["kind"], "memory");
}

/// A copy of the binary that anybody can run, and a directory of nobody's own.
fn for_nobody(sandbox: &Sandbox) -> (PathBuf, PathBuf) {
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    mode(sandbox.directory(), 0o755);
    let program = sandbox.directory().join("holdfast");
    fs::copy(holdfast(sandbox).get_program(), &program).expect("a file can be copied");
    mode(&program, 0o755);
    let home = sandbox.directory().join("home");
    fs::create_dir(&home).expect("a directory can be made");
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).expect("root may give away");
    (program, home)
}

fn only_segment(sandbox: &Sandbox) -> PathBuf {
    let segments: Vec<PathBuf> = files_below(&sandbox.state_dir().join("journal"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    let [segment] = &segments[..] else { panic!("a small journal has one segment: {segments:?}") };
    segment.clone()
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).expect("it can be listed") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
