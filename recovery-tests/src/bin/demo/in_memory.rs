//! What can be shown without the kernel: that what was pushed is there again after a kill, and that bad input changes
//! nothing.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, ensure};
use recovery_tests::agent::{Agent, Settings, holdfast, run};
use recovery_tests::sandbox::Sandbox;
use storage_schema::map::Capacities;

use crate::page::Page;

/// Shows it.
pub(crate) fn show(page: &mut Page, manifest: &Path) -> anyhow::Result<()> {
    ensure!(manifest.exists(), "{} is not there: run this from the top of the repository", manifest.display());
    let path = manifest.to_str().context("the manifest's path is not text")?;
    let sandbox = Sandbox::plain();
    let settings = Settings { kernel: false, capacities: Capacities::default(), log: "warn", ..Settings::default() };
    page.heading("A mesh in the agent's memory: Istio's Bookinfo");
    let agent = start(&sandbox, &settings)?;
    page.command("holdfast agent --datapath memory");
    let applied = say(page, &sandbox, &["apply", "-f", path, "--wait", "applied"]);
    page.record("the manifest is applied", applied.status.success(), text(&applied.stdout).trim());
    for kind in ["services", "workloads"] {
        say(page, &sandbox, &["get", kind]);
    }
    let before = agent.resources();

    page.heading("kill -9, restart");
    page.command(&format!("kill -9 {}", agent.pid()));
    agent.kill();
    let agent = start(&sandbox, &settings)?;
    page.command("holdfast agent --datapath memory");
    let status = agent.status();
    let figure = format!(
        "{} resources at LSN {}, ready after {} ms",
        before.len(),
        status.durable_lsn,
        status.restart.time_to_ready_us / 1000
    );
    page.record("what was acknowledged is there", agent.resources() == before, &figure);

    page.heading("Bad input changes nothing");
    let removed = say(page, &sandbox, &["delete", "service", "bookinfo/reviews"]);
    let unchanged = agent.status().durable_lsn == status.durable_lsn && agent.resources() == before;
    let refused = removed.status.code() == Some(3) && unchanged;
    let figure = format!("exit code {}, LSN {}", removed.status.code().unwrap_or(-1), agent.status().durable_lsn);
    page.record("what would leave workloads without their service is refused", refused, &figure);
    ensure!(agent.terminate().success(), "the agent does not stop");
    Ok(())
}

fn start(sandbox: &Sandbox, settings: &Settings) -> anyhow::Result<Agent> {
    let mut agent = Agent::spawn(sandbox, settings);
    match agent.wait_ready() {
        Ok(_) => Ok(agent),
        Err(ended) => anyhow::bail!("the agent ended with {}:\n{}", ended.status, ended.log),
    }
}

/// Runs a command and prints what it prints.
fn say(page: &Page, sandbox: &Sandbox, arguments: &[&str]) -> Output {
    page.command(&format!("holdfast {}", arguments.join(" ")));
    let mut command: Command = holdfast(sandbox);
    command.args(arguments);
    let output = run(command);
    for line in (text(&output.stdout) + &text(&output.stderr)).lines() {
        page.note(line);
    }
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
