//! Other hands in the kernel: what they change is found, told and put right, and no connection notices.

// bpf(2) as bpftool calls it, for what no library of ours does: see `detach`.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use api::status::Status;
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::pinned;
use recovery_tests::rig::Rig;
use recovery_tests::seed::Seed;

/// How long it may take until a change is found and put right: the inspection's interval, and a new generation.
const REPAIR_TIME_MAX: Duration = Duration::from_secs(30);

fn rig(test: &str) -> Option<(Seed, Rig, Agent)> {
    Rig::started("drift", test, &Settings::default())
}

/// Waits for a condition, without connections.
fn wait_for(agent: &Agent, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
    let begin = Instant::now();
    loop {
        let status = agent.status();
        if is_so(&status) {
            return status;
        }
        assert!(begin.elapsed() < REPAIR_TIME_MAX, "{what}: {status:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Connects until a condition holds: every connection leads where it should.
fn connect_until(rig: &mut Rig, agent: &Agent, what: &str, is_so: impl Fn(&Status) -> bool) {
    let begin = Instant::now();
    let connections = rig.connect_while(|| {
        assert!(begin.elapsed() < REPAIR_TIME_MAX, "{what}: {:#?}", agent.status());
        !is_so(&agent.status())
    });
    println!("{what} after {:?}, {connections} connections", begin.elapsed());
}

/// The agent goes on, and what it leaves is right.
fn finish(mut rig: Rig, agent: Agent) {
    assert!(rig.push_random(&agent, 10), "it goes on");
    agent.wait_applied(rig.oracle().acknowledged());
    rig.check_destinations();
    agent.kill();
    rig.check_pinned();
    rig.finish();
}

#[test]
fn a_links_pin_that_is_removed_comes_back_and_the_link_never_goes() {
    let Some((_seed, mut rig, agent)) = rig("a_links_pin_that_is_removed_comes_back_and_the_link_never_goes") else {
        return;
    };
    let pin = rig.sandbox().pin_root().join("links/connect4");
    fs::remove_file(&pin).expect("a pin can be removed");
    connect_until(&mut rig, &agent, "pinned again", |status| status.datapath.drift.changes == 1);
    assert!(pin.exists());
    assert_eq!(agent.status().datapath.generations_built, 0, "a pin needs no new generation");
    finish(rig, agent);
}

#[test]
fn a_link_that_is_detached_is_attached_again() {
    let Some((_seed, rig, agent)) = rig("a_link_that_is_detached_is_attached_again") else { return };
    detach(&rig.sandbox().pin_root().join("links/connect6"));
    wait_for(&agent, "attached again", |status| status.datapath.drift.changes == 1);
    finish(rig, agent);
}

#[test]
fn pins_that_are_deleted_are_made_anew_and_connections_go_on() {
    let Some((_seed, mut rig, agent)) = rig("pins_that_are_deleted_are_made_anew_and_connections_go_on") else {
        return;
    };
    let flow = |rig: &Rig| {
        let pins = fs::read_dir(rig.sandbox().pin_root().join("flow")).expect("it is there");
        pins.map(|pin| pin.expect("it can be read").file_name()).collect::<BTreeSet<_>>()
    };
    let before = flow(&rig);
    fs::remove_dir_all(rig.sandbox().pin_root()).expect("pins can be removed");
    connect_until(&mut rig, &agent, "a new generation", |status| status.datapath.generations_built == 1);
    let status = agent.status();
    assert!(status.datapath.drift.changes > 0 && status.blocked_reason.is_none(), "{status:#?}");
    assert!(rig.sandbox().pin_root().join("links/connect4").exists(), "links are pinned again");
    assert_eq!(flow(&rig), before, "what outlives generations is pinned again");
    finish(rig, agent);
}

#[test]
fn cells_that_are_overwritten_are_named_and_replaced() {
    let Some((_seed, rig, agent)) = rig("cells_that_are_overwritten_are_named_and_replaced") else { return };
    let verify = |stopped: bool| {
        let mut command = holdfast(rig.sandbox());
        command.args(["bpf", "verify"]);
        if stopped {
            command.arg("--pin-root").arg(rig.sandbox().pin_root());
            command.arg("--state-dir").arg(rig.sandbox().state_dir());
        }
        let output = run(command);
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).expect("text"))
    };
    let (code, said) = verify(false);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(" 0 differ"), "{said}");

    pinned::tamper(rig.sandbox());
    let (code, said) = verify(false);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("backends") && said.contains("the agent is making a new generation"), "{said}");
    let status = wait_for(&agent, "a new generation", |status| status.datapath.generations_built == 1);
    assert!(status.datapath.drift.entries_differing > 0, "{status:#?}");
    let (code, said) = verify(false);
    assert_eq!(code, Some(0), "{said}");

    // The same without an agent: nothing is put right, until one is started.
    agent.kill();
    let (code, said) = verify(true);
    assert_eq!(code, Some(0), "{said}");
    pinned::tamper(rig.sandbox());
    let (code, said) = verify(true);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("an agent that is started makes a new generation"), "{said}");
    let agent = Agent::start(rig.sandbox(), &Settings::default());
    let status = agent.status();
    assert!(
        status.restart.entries_rewritten > 0 && status.datapath.drift.entries_differing > 0,
        "what differs is not kept: {status:#?}"
    );
    finish(rig, agent);
}

#[test]
fn what_is_pinned_can_be_looked_at_without_an_agent() {
    let Some((_seed, rig, agent)) = rig("what_is_pinned_can_be_looked_at_without_an_agent") else { return };
    agent.kill();
    let bpf = |arguments: &[&str]| {
        let mut command = holdfast(rig.sandbox());
        command.arg("bpf").args(arguments).arg("--pin-root").arg(rig.sandbox().pin_root());
        let output = run(command);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&bpf(&[arguments, &["-o", "json"]].concat())).expect("JSON")
    };
    let dumped = json(&["dump", "frontends"]);
    let frontends = dumped["frontends"].as_array().expect("an array");
    let entries = rig.oracle().latest().entries();
    let visible = frontends.iter().filter(|entry| entry["version"] == "visible" && entry["destination"].is_string());
    assert_eq!(visible.count() as u64, entries.frontends, "{frontends:#?}");
    assert!(bpf(&["dump"]).contains("10.96.0.1:80/TCP"));
    let pressure = json(&["pressure"]);
    let used =
        pressure["tables"].as_array().and_then(|tables| tables.iter().find(|table| table["table"] == "services"));
    assert_eq!(used.and_then(|table| table["used"].as_u64()), Some(entries.services), "{pressure:#}");
    let generations = json(&["generations"]);
    assert_eq!(generations[0]["state"], "attached", "{generations:#}");
    let hooks: Vec<&str> = loader::HOOKS.iter().map(|hook| hook.name).collect();
    assert_eq!(generations[0]["hooks"], serde_json::json!(hooks), "{generations:#}");
    rig.finish();
}

/// What `bpftool link detach` does.
fn detach(pin: &Path) {
    const BPF_OBJ_GET: i64 = 7;
    const BPF_LINK_DETACH: i64 = 34;
    let path = CString::new(pin.as_os_str().as_bytes()).expect("a path has no zeros");
    let mut get = [path.as_ptr() as u64, 0];
    // SAFETY: the attribute is a pathname and two zero words, as BPF_OBJ_GET reads them; the path outlives the call.
    let link = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, get.as_mut_ptr(), size_of_val(&get)) };
    assert!(link >= 0, "the link can be opened: {}", std::io::Error::last_os_error());
    let mut detach = [u32::try_from(link).expect("a descriptor"), 0];
    // SAFETY: the attribute begins with the link's descriptor; the rest is zero.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, detach.as_mut_ptr(), size_of_val(&detach)) };
    assert_eq!(done, 0, "it can be detached: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is ours and is used no more.
    unsafe { libc::close(i32::try_from(link).expect("a descriptor")) };
}
