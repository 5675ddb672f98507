//! `holdfast status`: the agent's condition, and the wait for it to be a good one.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use api::client::{Client, ClientError};
use api::status::{Drift, Status};
use comfy_table::Cell;
use serde_json::{Value, json};

use super::{block_on, connect, push};
use crate::cli::{Common, Output, StatusArgs};
use crate::config;
use crate::exit::{Exit, Failure};
use crate::output;

const POLL: Duration = Duration::from_millis(50);

pub(super) fn run(common: &Common, args: &StatusArgs) -> Result<(), Failure> {
    let status = block_on(async {
        if args.wait { wait(common, args.timeout).await } else { Ok(connect(common).await?.status().await?) }
    })?;
    output::print(&match args.output {
        Output::Table => table(&status),
        Output::Json => output::json(&value(&status)),
        Output::Yaml => output::yaml(&value(&status)),
    })
}

/// Waits until the agent answers and has applied all that was durable when it first did.
async fn wait(common: &Common, timeout: Duration) -> Result<Status, Failure> {
    let server = config::server(common)?;
    let deadline = Instant::now() + timeout;
    let spinner = push::spinner("waiting for the agent");
    let mut wanted = None;
    let outcome = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let asked = tokio::time::timeout(left, async { Client::connect(server.clone()).await?.status().await }).await;
        let last = match asked {
            Ok(Ok(status)) if status.applied_lsn >= *wanted.get_or_insert(status.durable_lsn) => break Ok(status),
            Ok(Ok(status)) => {
                let Status { durable_lsn, applied_lsn, blocked_reason, .. } = status;
                let reason = blocked_reason.map(|reason| format!(": {reason}")).unwrap_or_default();
                let progress = format!("durable LSN {durable_lsn}, applied LSN {applied_lsn}{reason}");
                spinner.set_message(progress.clone());
                Failure::new(Exit::TimedOut, progress)
            }
            Ok(Err(error @ (ClientError::Unreachable { .. } | ClientError::TimedOut))) => error.into(),
            Ok(Err(error)) => break Err(error.into()),
            Err(_) => Failure::new(Exit::TimedOut, "the agent does not answer"),
        };
        if deadline <= Instant::now() {
            let timeout = humantime::format_duration(timeout);
            let messages =
                last.messages.iter().map(|message| format!("not ready after {timeout}: {message}")).collect();
            break Err(Failure { exit: Exit::TimedOut, messages });
        }
        tokio::time::sleep(POLL.min(deadline.saturating_duration_since(Instant::now()))).await;
    };
    spinner.finish_and_clear();
    outcome
}

fn table(status: &Status) -> String {
    let Status { datapath, restart, .. } = status;
    let uptime = humantime::format_duration(Duration::from_secs(status.uptime.as_secs()));
    let ready = humantime::format_duration(Duration::from_micros(restart.time_to_ready_us));
    let mut rows = vec![
        ("version", status.version.clone()),
        ("store", status.store_id.to_string()),
        ("uptime", uptime.to_string()),
        (
            "LSN",
            format!(
                "appended {}, durable {}, applied {}, stored {}",
                status.appended_lsn, status.durable_lsn, status.applied_lsn, status.stored_lsn
            ),
        ),
        ("datapath", format!("{}, epoch {}", datapath.kind.as_str(), datapath.active_epoch)),
    ];
    if !datapath.generation.is_empty() {
        rows.push(("generation", format!("{}, {} pins", datapath.generation, datapath.pins.len())));
        rows.push(("cgroup", datapath.cgroup.clone()));
    }
    rows.push(("map writes", datapath.map_writes.to_string()));
    rows.push(("drift", drift(&datapath.drift, datapath.generations_built)));
    rows.push(("restart", format!("ready in {ready}, {} map entries rewritten", restart.entries_rewritten)));
    rows.extend(status.resources.iter().map(|(kind, count)| match kind {
        storage_schema::resource::Kind::Service => ("services", count.to_string()),
        storage_schema::resource::Kind::Workload => ("workloads", count.to_string()),
        storage_schema::resource::Kind::Node => ("nodes", count.to_string()),
    }));
    if status.loading {
        rows.push(("loading", "the journal's state; connections go on, pushes wait".to_owned()));
    }
    if let Some(reason) = &status.blocked_reason {
        rows.push(("blocked", reason.clone()));
    }
    let mut text = String::new();
    for (name, value) in rows {
        writeln!(text, "{name:<12}{value}").expect("a string takes everything");
    }
    let pressure = status.tables.iter().map(|table| {
        let percent = table.used.saturating_mul(100).checked_div(table.capacity).unwrap_or(100);
        let (used, room, capacity) = (Cell::new(table.used), Cell::new(table.room), Cell::new(table.capacity));
        [Cell::new(&table.table), used, room, capacity, Cell::new(format!("{percent} %"))]
    });
    text + "\n" + &output::table(["TABLE", "USED", "ROOM", "CAPACITY", "FULL"], pressure)
}

fn drift(drift: &Drift, generations_built: u64) -> String {
    let compared = match drift.compared_at {
        Some(at) => format!("{} entries compared {}", drift.entries_checked, humantime::format_rfc3339_seconds(at)),
        None => "not compared yet".to_owned(),
    };
    let Drift { changes, entries_differing, .. } = drift;
    format!("{changes} links and pins, {entries_differing} entries; {compared}; {generations_built} generations built")
}

fn value(status: &Status) -> Value {
    let resources: serde_json::Map<String, Value> = status
        .resources
        .iter()
        .map(|(kind, count)| (format!("{}s", kind.as_str().to_ascii_lowercase()), json!(count)))
        .collect();
    let tables: Vec<Value> = status
        .tables
        .iter()
        .map(|table| json!({"table": table.table, "used": table.used, "room": table.room, "capacity": table.capacity}))
        .collect();
    json!({
        "version": status.version,
        "storeId": status.store_id.to_string(),
        "uptimeMs": u64::try_from(status.uptime.as_millis()).unwrap_or(u64::MAX),
        "appendedLsn": status.appended_lsn,
        "durableLsn": status.durable_lsn,
        "appliedLsn": status.applied_lsn,
        "storedLsn": status.stored_lsn,
        "datapath": {
            "kind": status.datapath.kind.as_str(),
            "activeEpoch": status.datapath.active_epoch.0,
            "generation": status.datapath.generation,
            "cgroup": status.datapath.cgroup,
            "pins": status.datapath.pins,
            "mapWrites": status.datapath.map_writes,
            "generationsBuilt": status.datapath.generations_built,
            "drift": {
                "changes": status.datapath.drift.changes,
                "comparedAt": status.datapath.drift.compared_at.map(|at| humantime::format_rfc3339_millis(at).to_string()),
                "entriesChecked": status.datapath.drift.entries_checked,
                "entriesDiffering": status.datapath.drift.entries_differing,
            },
        },
        "restart": {
            "timeToReadyUs": status.restart.time_to_ready_us,
            "entriesRewritten": status.restart.entries_rewritten,
        },
        "tables": tables,
        "resources": resources,
        "blockedReason": status.blocked_reason,
        "loading": status.loading,
    })
}
