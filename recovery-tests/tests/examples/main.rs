//! The examples in `api/examples` are run, against the real agent: grpcurl, Python and Rust.
//!
//! The Python packages are in `target/tools/python` (`xtask/setup.sh test`). Where they are not, the tests that need them are
//! skipped; in CI they fail. grpcurl is run where it is installed; elsewhere `grpcurl.py` beside this file takes its place.

mod kills;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use recovery_tests::agent::{self, Agent, Settings};
use recovery_tests::sandbox::Sandbox;

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Agents with tables in memory.
fn settings() -> Settings {
    Settings { kernel: false, log: "warn", ..Settings::default() }
}

/// Where the Python packages are; `None`, with a word, if they are nowhere.
fn python() -> Option<PathBuf> {
    let python = in_repository("target/tools/python/bin/python");
    if python.exists() {
        return Some(python);
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "in CI nothing is skipped: xtask/setup.sh test");
    eprintln!("skipped: there is no {}: xtask/setup.sh test", python.display());
    None
}

/// An example in Python, with the code that is generated from the proto in the sandbox.
fn python_example(python: &Path, sandbox: &Sandbox, name: &str) -> Command {
    let (generated, proto) = (sandbox.directory().join("generated"), in_repository("api/proto"));
    if !generated.exists() {
        fs::create_dir(&generated).expect("the sandbox can be written to");
        let mut protoc = Command::new(python);
        protoc.args(["-m", "grpc_tools.protoc"]).arg("-I").arg(&proto);
        for kind in ["--python_out", "--grpc_python_out"] {
            protoc.arg(kind).arg(&generated);
        }
        let files = fs::read_dir(proto.join("holdfast/v1")).expect("it is there");
        protoc.args(files.map(|file| file.expect("it can be listed").path()));
        succeeded(&agent::run(protoc));
    }
    let mut command = Command::new(python);
    command.env("PYTHONPATH", generated).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(in_repository("api/examples/python").join(name));
    command.arg(format!("unix:{}", sandbox.socket().display()));
    command
}

/// What it has printed.
fn succeeded(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    stdout
}

#[test]
fn the_python_walkthrough_is_walked_twice() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::plain();
    let agent = Agent::start(&sandbox, &settings());
    let walk = || succeeded(&agent::run(python_example(&python, &sandbox, "walkthrough.py")));
    let walked = "\
welcome: window 256, syncs
version 1: in the journal, 32 bytes of hash
version 2: in the journal, 32 bytes of hash
version 3: FAILED_PRECONDITION CONFLICT transaction.deltas[0].upsert.workload.services[0].service
watch: ['cart-1', 'shop/cart']
version 4: a sync, 1 removed, LEVEL_APPLIED
watch: ['shop/cart', 'shop/web'] as they are, ['cart-1'] gone
left nothing behind: [2] removed
";
    assert_eq!(walk(), walked);
    // It has no memory of the first time, and goes on above what the journal has.
    assert!(walk().contains("version 6: in the journal"));
    assert_eq!(agent.resources(), []);
}

#[test]
fn the_rust_example_does_what_the_python_one_does() {
    let sandbox = Sandbox::plain();
    let agent = Agent::start(&sandbox, &settings());
    let own = env::current_exe().expect("a process knows its binary");
    let example = own.ancestors().nth(2).expect("it is in a build's folder").join("examples/push");
    assert!(example.exists(), "no {}: cargo build --package api --example push", example.display());
    let mut command = Command::new(example);
    command.arg(sandbox.socket());
    let walked = "\
version 1: Applied, 0 removed
version 2: Applied, 0 removed
version 3: refused, Workload lost: transaction.deltas[0].upsert.workload.services[0].service: \
there is no Service shop/none: push it before, or in the same transaction
watch: cart-1, shop/cart
version 4: Durable, 1 removed
watch: shop/cart, shop/web as they are, cart-1 gone
version 5: Durable, 2 removed
";
    assert_eq!(succeeded(&agent::run(command)), walked);
    assert_eq!(agent.resources(), []);
}

#[test]
fn grpcurl_is_enough() {
    let Some(python) = python() else { return };
    let sandbox = Sandbox::plain();
    let agent = Agent::start(&sandbox, &settings());
    let mut command = Command::new(in_repository("api/examples/grpcurl.sh"));
    command.arg(sandbox.socket());
    if Command::new("grpcurl").arg("-version").output().is_err() {
        eprintln!("grpcurl is not installed: tests/examples/grpcurl.py takes its place");
        let stand_in = sandbox.directory().join("grpcurl");
        let script = in_repository("recovery-tests/tests/examples/grpcurl.py");
        fs::write(&stand_in, format!("#!/bin/sh\nexec '{}' '{}' \"$@\"\n", python.display(), script.display()))
            .expect("the sandbox can be written to");
        let mut mode = fs::metadata(&stand_in).expect("it was written").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        fs::set_permissions(&stand_in, mode).expect("it is ours");
        let path = [sandbox.directory().as_os_str().to_owned(), env::var_os("PATH").unwrap_or_default()];
        command.env("PATH", path.join(&OsString::from(":")));
    }
    let output = agent::run(command);
    let said = succeeded(&output);
    for expected in [
        // By reflection; the receipt of the first push, and the same again; a plan; the state; the sync; the journal.
        "rpc Apply ( .holdfast.v1.ApplyRequest )",
        "\"level\": \"LEVEL_APPLIED\"",
        "\"duplicate\": true",
        "\"effect\": \"EFFECT_REMOVED\"",
        "\"owner\": \"grpcurl\"",
        "\"removed\": \"2\"",
        "\"cause\": \"CAUSE_SYNC\"",
    ] {
        assert!(said.contains(expected), "{expected} is not in:\n{said}");
    }
    let refused = String::from_utf8_lossy(&output.stderr);
    assert_eq!(refused.matches("Code: A").count(), 1, "only the precondition is refused, as aborted: {refused}");
    assert_eq!(agent.resources(), []);
    assert_eq!(agent.status().durable_lsn.0, 4);
}
