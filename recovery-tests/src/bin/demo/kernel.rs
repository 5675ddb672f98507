//! The whole demo: real connections through the kernel.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use api::status::Status;
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::connection::{Greeting, Traffic};
use recovery_tests::sandbox::Sandbox;
use recovery_tests::worker::Worker;
use storage_schema::map::Capacities;
use storage_schema::resource::{Resource, Service, WorkloadStatus};

use crate::backend::Backend;
use crate::bookinfo::{Bookinfo, short, vips};
use crate::curl::{self, Requests};
use crate::page::Page;

/// Requests to each virtual address of a service, for each of its backends.
const REQUESTS_PER_BACKEND: u32 = 20;

/// Long-lived connections through each virtual address of `reviews`.
const LIVE_CONNECTIONS: u32 = 8;

/// The service that changes.
const CHANGED: &str = "reviews";

/// Shows it.
pub(crate) fn show(page: &mut Page, manifest: &Path) -> anyhow::Result<()> {
    ensure!(manifest.exists(), "{} is not there: run this from the top of the repository", manifest.display());
    let sandbox = Sandbox::enter();
    let settings = Settings { capacities: Capacities::default(), log: "warn", ..Settings::default() };
    page.heading("A real mesh: Istio's Bookinfo");
    page.note("in a network namespace, a cgroup and a state directory of its own; all of it is gone afterwards");
    let mut agent = Agent::spawn(&sandbox, &settings);
    let ready = wait_ready(&mut agent)?;
    page.command("holdfast agent");
    page.note(&format!("ready after {}", ms(ready.restart.time_to_ready_us)));
    let bookinfo = apply(page, &sandbox, manifest)?;
    let _backends = start_backends(page, &sandbox, &bookinfo)?;

    page.heading("Requests through the virtual addresses");
    balance(page, &sandbox, &bookinfo, "requests are balanced")?;
    let mut worker = open_live_connections(page, &sandbox, &bookinfo)?;

    page.heading("kill -9, and nobody notices");
    page.command(&format!("kill -9 {}", agent.pid()));
    agent.kill();
    let silent = run(with(&sandbox, &["status"]));
    page.command("holdfast status");
    page.note(String::from_utf8_lossy(&silent.stderr).trim());
    page.record("the agent is dead", silent.status.code() == Some(4), "nobody answers at its socket");
    let before = worker.traffic();
    worker.expect_progress();
    balance(page, &sandbox, &bookinfo, "new connections are balanced while it is dead")?;
    let after = worker.traffic();
    let figure = format!("{} more frames on {} connections", after.frames - before.frames, after.connections);
    page.record("old connections go on while it is dead", after.is_intact(), &figure);

    page.heading("Restart");
    let mut agent = Agent::spawn(&sandbox, &settings);
    let ready = wait_ready(&mut agent)?;
    page.command("holdfast agent");
    page.record(
        "a restart rewrites nothing",
        ready.restart.entries_rewritten == 0,
        &format!("{} map entries rewritten, epoch {}", ready.restart.entries_rewritten, ready.datapath.active_epoch),
    );
    page.record("it is ready again", true, &format!("after {}", ms(ready.restart.time_to_ready_us)));

    page.heading("A service changes under traffic");
    change_under_traffic(page, &sandbox, &bookinfo, manifest)?;

    page.heading("The long-lived connections");
    let traffic = worker.finish();
    record_traffic(page, &traffic);

    page.heading("Gone without a trace");
    let stopped = agent.terminate();
    let removed = run(with_places(&sandbox, &["uninstall", "--state", "--yes"]));
    page.command("holdfast uninstall --state --yes");
    let gone = !sandbox.pin_root().exists() && !sandbox.state_dir().exists();
    let figure = "no pins, no state directory";
    page.record("uninstall removes everything", stopped.success() && removed.status.success() && gone, figure);
    Ok(())
}

fn wait_ready(agent: &mut Agent) -> anyhow::Result<Status> {
    agent.wait_ready().map_err(|ended| anyhow::anyhow!("the agent ended with {}:\n{}", ended.status, ended.log))
}

fn ms(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

/// Applies the manifest and lists what the agent has.
fn apply(page: &mut Page, sandbox: &Sandbox, manifest: &Path) -> anyhow::Result<Bookinfo> {
    let path = manifest.to_str().context("the manifest's path is not text")?;
    page.command(&format!("holdfast apply -f {path} --wait applied"));
    let output = run(with(sandbox, &["apply", "-f", path, "--wait", "applied"]));
    let said = [output.stdout, output.stderr].concat();
    page.note(String::from_utf8_lossy(&said).trim());
    ensure!(output.status.success(), "the manifest is not applied");
    let mut resources = Vec::new();
    for kind in ["services", "workloads"] {
        let output = run(with(sandbox, &["get", kind, "-o", "json"]));
        let listed: Vec<Resource> = serde_json::from_slice(&output.stdout).context("`get -o json` is not readable")?;
        resources.extend(listed);
    }
    Ok(Bookinfo::new(resources))
}

fn start_backends(page: &Page, sandbox: &Sandbox, bookinfo: &Bookinfo) -> anyhow::Result<Vec<Backend>> {
    let addresses = bookinfo.addresses_to_add();
    sandbox.add_addresses(addresses.iter().map(String::as_str)).context("cannot add the workloads' addresses")?;
    let mut backends = Vec::new();
    for workload in bookinfo.workloads() {
        let role = bookinfo.role(workload)?;
        let listen: Vec<String> = role.listen.iter().map(ToString::to_string).collect();
        page.note(&format!("{:<16} listens on {}", role.workload, listen.join(" and ")));
        backends.push(Backend::start(sandbox, &role)?);
    }
    Ok(backends)
}

/// Sends requests to each service over both families: each backend must answer some, and none may fail.
fn balance(page: &mut Page, sandbox: &Sandbox, bookinfo: &Bookinfo, what: &str) -> anyhow::Result<()> {
    let (mut total, mut failed, mut missed) = (0, 0, Vec::new());
    for service in bookinfo.services() {
        let backends = bookinfo.backends(service);
        let count = REQUESTS_PER_BACKEND * u32::try_from(backends.len())?;
        for vip in vips(service)? {
            let requests = curl::get(sandbox, vip, count)?;
            page.command(&curl::command_line(vip, count));
            let called: Vec<String> = requests.called.values().map(curl::describe).collect();
            let through =
                if called.is_empty() { String::new() } else { format!("; they called {}", called.join(", ")) };
            page.note(&format!("{}: {}{through}", short(service), requests.describe()));
            total += count;
            failed += requests.failed;
            missed.extend(
                backends.iter().filter(|name| !requests.spread.contains_key(**name)).map(|n| format!("{n} via {vip}")),
            );
        }
    }
    let figure = format!("{total} requests over IPv4 and IPv6, {failed} failed, {} backends left out", missed.len());
    page.record(what, failed == 0 && missed.is_empty(), &figure);
    Ok(())
}

fn open_live_connections(page: &Page, sandbox: &Sandbox, bookinfo: &Bookinfo) -> anyhow::Result<Worker> {
    let mut worker = Worker::start(sandbox);
    let mut opened = 0;
    for vip in vips(bookinfo.service(CHANGED)?)? {
        opened += worker.open(vip, Greeting::HttpUpgrade, LIVE_CONNECTIONS, 1).len();
    }
    worker.expect_progress();
    page.note(&format!("{opened} long-lived connections to {CHANGED} exchange numbered, checked frames from now on"));
    Ok(worker)
}

/// `reviews` goes to v1 alone and back to all of its versions, while requests come without a pause.
fn change_under_traffic(
    page: &mut Page,
    sandbox: &Sandbox,
    bookinfo: &Bookinfo,
    manifest: &Path,
) -> anyhow::Result<()> {
    let service = bookinfo.service(CHANGED)?;
    let background = vips(service)?;
    let done = AtomicBool::new(false);
    let traffic = thread::scope(|scope| {
        let requests = scope.spawn(|| {
            let mut all = Requests::default();
            while !done.load(Ordering::Relaxed) {
                for vip in &background {
                    all.add(curl::get(sandbox, *vip, 25)?);
                }
            }
            anyhow::Ok(all)
        });
        let changed = change_and_back(page, sandbox, bookinfo, service, manifest);
        done.store(true, Ordering::Relaxed);
        let requests = requests.join().expect("sending requests does not panic");
        changed.and(requests)
    })?;
    let total: u32 = traffic.spread.values().sum();
    let figure = format!("{total} requests meanwhile, {} failed", traffic.failed);
    page.record("a change disturbs no request", traffic.failed == 0, &figure);
    Ok(())
}

fn change_and_back(
    page: &mut Page,
    sandbox: &Sandbox,
    bookinfo: &Bookinfo,
    service: &Service,
    manifest: &Path,
) -> anyhow::Result<()> {
    let backends = bookinfo.backends(service);
    let [stays, others @ ..] = &backends[..] else { anyhow::bail!("{} has no backend", service.name) };
    let without: Vec<Resource> = bookinfo
        .workloads()
        .filter(|workload| others.contains(&&*workload.name))
        .map(|w| {
            Resource::Workload(storage_schema::resource::Workload { status: WorkloadStatus::Unhealthy, ..w.clone() })
        })
        .collect();
    let changed = sandbox.directory().join("only-one.yaml");
    let documents: Vec<String> = without.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
    fs::write(&changed, documents.join("\n---\n")).context("cannot write a manifest")?;

    let begin = Instant::now();
    let output = run(with(sandbox, &["apply", "-f", changed.to_str().context("a path is text")?, "--wait", "applied"]));
    let took = begin.elapsed();
    ensure!(output.status.success(), "the change is not applied: {}", String::from_utf8_lossy(&output.stderr));
    page.command("holdfast apply -f only-one.yaml --wait applied");
    page.note(&format!("{} unhealthy, in one transaction, after {} ms", others.join(" and "), took.as_millis()));
    let only: Requests = both(sandbox, service, 30)?;
    page.record(
        &format!("{CHANGED} goes to one version alone"),
        only.failed == 0 && only.spread.keys().eq([*stays]),
        &only.describe(),
    );
    // So that there is traffic in either state.
    thread::sleep(Duration::from_millis(200));

    let path = manifest.to_str().context("the manifest's path is not text")?;
    let output = run(with(sandbox, &["apply", "-f", path, "--wait", "applied"]));
    ensure!(output.status.success(), "the manifest is not applied: {}", String::from_utf8_lossy(&output.stderr));
    page.command(&format!("holdfast apply -f {path} --wait applied"));
    let all: Requests = both(sandbox, service, REQUESTS_PER_BACKEND * u32::try_from(backends.len())?)?;
    let balanced = all.failed == 0 && backends.iter().all(|name| all.spread.contains_key(*name));
    page.record(&format!("{CHANGED} goes to all its versions again"), balanced, &all.describe());
    Ok(())
}

/// Requests over both families.
fn both(sandbox: &Sandbox, service: &Service, count: u32) -> anyhow::Result<Requests> {
    let mut all = Requests::default();
    for vip in vips(service)? {
        all.add(curl::get(sandbox, vip, count)?);
    }
    Ok(all)
}

fn record_traffic(page: &mut Page, traffic: &Traffic) {
    let Traffic { connections, frames, bytes, resets, lost_bytes, altered_bytes, .. } = traffic;
    let mib = bytes >> 20;
    let figure = format!(
        "{connections} connections, {frames} frames, {mib} MiB there and back: {resets} resets, {lost_bytes} bytes lost, \
         {altered_bytes} altered"
    );
    page.record("no live connection was harmed, from first to last", traffic.is_intact(), &figure);
    for problem in &traffic.problems {
        page.note(problem);
    }
}

/// The binary with some arguments.
fn with(sandbox: &Sandbox, arguments: &[&str]) -> std::process::Command {
    let mut command = holdfast(sandbox);
    command.args(arguments);
    command
}

/// The binary with some arguments, and the sandbox's places.
fn with_places(sandbox: &Sandbox, arguments: &[&str]) -> std::process::Command {
    let mut command = with(sandbox, arguments);
    command.arg("--state-dir").arg(sandbox.state_dir()).arg("--pin-root").arg(sandbox.pin_root());
    command
}
