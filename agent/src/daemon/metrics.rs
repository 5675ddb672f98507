//! Metrics for Prometheus: every one there is, and where its value comes from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use metrics::{Unit, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::PrometheusBuilder;

use super::backend::Node;
use crate::exit::{Exit, Failure};

/// How old a value may be when it is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// What only grows while the agent runs.
const COUNTERS: [(&str, &str); 7] = [
    ("holdfast_applier_flips_total", "Transactions or batches of them that became visible."),
    ("holdfast_applier_entries_written_total", "Map entries written, those of new generations included."),
    ("holdfast_applier_grace_waits_total", "Batches that had to wait until programs had passed an epoch."),
    ("holdfast_applier_refusals_total", "Times that the kernel refused something; it was tried again."),
    ("holdfast_generations_built_total", "Generations built while the agent ran: growth, drift, requests."),
    ("holdfast_drift_changes_total", "Links, pinned maps and programs that something else has changed."),
    ("holdfast_drift_entries_total", "Table entries that were found not to be as the journal says."),
];

/// What goes up and down.
const GAUGES: [(&str, Unit, &str); 10] = [
    ("holdfast_journal_appended_lsn", Unit::Count, "The last record that was given a number."),
    ("holdfast_journal_durable_lsn", Unit::Count, "The last record that survives a power cut."),
    ("holdfast_journal_stored_lsn", Unit::Count, "The last record that the derived store has taken in."),
    ("holdfast_applier_applied_lsn", Unit::Count, "The last record that connections see: the active epoch."),
    (
        "holdfast_applier_blocked",
        Unit::Count,
        "1 while something is in the way of applying, with its cause in the status.",
    ),
    ("holdfast_generation", Unit::Count, "Number of the generation of maps and programs that connections run."),
    ("holdfast_table_used", Unit::Count, "Entries of a table that the journaled state takes."),
    ("holdfast_table_room", Unit::Count, "Entries that a table has room for before it grows."),
    ("holdfast_table_capacity", Unit::Count, "Entries that are admitted to a table at most."),
    ("holdfast_drift_compared_timestamp", Unit::Seconds, "When the tables were last compared with the journal."),
];

/// Serves the metrics at `address`, and keeps them up to date for as long as the runtime lives.
pub(super) fn serve(address: SocketAddr, node: Arc<Node>) -> Result<(), Failure> {
    let failed = |error| Failure::new(Exit::Failure, format!("cannot serve metrics at {address}: {error}"));
    // Bound once before, as the exporter reports an address in use only to its task.
    drop(std::net::TcpListener::bind(address).map_err(|error| failed(error.to_string()))?);
    let built = PrometheusBuilder::new().with_http_listener(address).build();
    let (recorder, exporter) = built.map_err(|error| failed(error.to_string()))?;
    ::metrics::set_global_recorder(recorder).map_err(|error| failed(error.to_string()))?;
    for (name, description) in COUNTERS {
        describe_counter!(name, description);
    }
    for (name, unit, description) in GAUGES {
        describe_gauge!(name, unit, description);
    }
    tokio::spawn(async move {
        if exporter.await.is_err() {
            tracing::error!(%address, "metrics are no longer served");
        }
    });
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(INTERVAL);
        loop {
            interval.tick().await;
            record(&node.applier());
        }
    });
    tracing::info!(%address, "serving metrics");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "what Prometheus keeps is an f64")]
fn record(status: &applier::Status) {
    let counters = [
        status.flips,
        status.entries_written,
        status.grace_waits,
        status.refusals,
        status.generations_built,
        status.drift.changes,
        status.drift.entries_differing,
    ];
    for ((name, _), value) in COUNTERS.into_iter().zip(counters) {
        counter!(name).absolute(value);
    }
    gauge!("holdfast_journal_appended_lsn").set(status.watermarks.appended_lsn.0 as f64);
    gauge!("holdfast_journal_durable_lsn").set(status.watermarks.durable_lsn.0 as f64);
    gauge!("holdfast_journal_stored_lsn").set(status.watermarks.store_lsn.0 as f64);
    gauge!("holdfast_applier_applied_lsn").set(status.applied_lsn.0 as f64);
    gauge!("holdfast_applier_blocked").set(f64::from(u8::from(status.trouble.is_some())));
    gauge!("holdfast_generation").set(status.generation.unwrap_or_default() as f64);
    for (table, room) in status.pressure.iter().zip(status.room) {
        gauge!("holdfast_table_used", "table" => table.table).set(table.used as f64);
        gauge!("holdfast_table_room", "table" => table.table).set(room as f64);
        gauge!("holdfast_table_capacity", "table" => table.table).set(table.capacity as f64);
    }
    if let Some(at) = status.drift.compared_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
        gauge!("holdfast_drift_compared_timestamp").set(at.as_secs_f64());
    }
}
