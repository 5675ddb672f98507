//! Metrics for Prometheus: every one there is, and where its value comes from.
//!
//! `deploy/METRICS.md` is made of the descriptions here, by a test that fails when it is stale.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use api::layers::Observer;
use journal::{Histogram, Stats};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use super::backend::Node;
use super::drain;
use crate::exit::{Exit, Failure};
use crate::host::process::{self, Process};

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

/// What was done to connections whose backend is gone.
const DRAIN_COUNTERS: [(&str, &str); 3] = [
    ("holdfast_drain_closed_total", "Sockets that were closed because their backend was gone."),
    ("holdfast_drain_reselected_total", "Connected UDP sockets that were given another backend, likewise."),
    (
        "holdfast_drain_failures_total",
        "Sockets, sweeps and records that draining has failed at, with the first cause in the log; it is tried again.",
    ),
];
const DRAIN_WAITING: (&str, &str) =
    ("holdfast_drain_waiting", "Sockets whose backend is gone and whose time to end by themselves is not over.");

/// What the API counts, by label.
const API_REQUESTS: &str = "holdfast_api_requests_total";
const API_REFUSED: &str = "holdfast_api_connections_refused_total";
const API_CERTIFICATES: &str = "holdfast_api_certificates_read_total";
const API_COUNTERS: [(&str, &str); 3] = [
    (API_REQUESTS, "Calls that have ended, by method and gRPC code; streams included."),
    (API_REFUSED, "Connections that were closed before their first call, by reason."),
    (API_CERTIFICATES, "Times that certificate files had changed, by whether they could be used (yes, no)."),
];
const API_DURATION: &str = "holdfast_api_request_duration_seconds";
/// From a read of memory to a push that waits as long as it may.
const API_DURATION_BUCKETS: [f64; 12] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0, 60.0];
const API_STREAMS: &str = "holdfast_api_streams_open";

/// What goes up and down.
const GAUGES: [(&str, Unit, &str); 12] = [
    ("holdfast_journal_appended_lsn", Unit::Count, "The last record that was given a number."),
    ("holdfast_journal_durable_lsn", Unit::Count, "The last record that survives a power cut."),
    ("holdfast_journal_stored_lsn", Unit::Count, "The last record that the derived store has taken in."),
    ("holdfast_applier_applied_lsn", Unit::Count, "The last record that connections see: the active epoch."),
    (
        "holdfast_applier_blocked",
        Unit::Count,
        "1 while something is in the way of applying, with its cause in the status.",
    ),
    (
        "holdfast_applier_loading",
        Unit::Count,
        "1 while connections go on with pinned tables and the journal's state is being loaded: pushes wait.",
    ),
    ("holdfast_generation", Unit::Count, "Number of the generation of maps and programs that connections run."),
    ("holdfast_table_used", Unit::Count, "Entries of a table that the journaled state takes."),
    ("holdfast_table_room", Unit::Count, "Entries that a table has room for before it grows."),
    ("holdfast_table_capacity", Unit::Count, "Entries that are admitted to a table at most."),
    (API_STREAMS, Unit::Count, "Streams of the API that are open."),
    ("holdfast_drift_compared_timestamp", Unit::Seconds, "When the tables were last compared with the journal."),
];

/// What the journal's writer has done.
const JOURNAL_COUNTERS: [(&str, &str); 3] = [
    ("holdfast_journal_groups_total", "Groups of records that were written: one write and one fdatasync each."),
    ("holdfast_journal_records_total", "Records in these groups."),
    ("holdfast_journal_written_bytes_total", "Bytes of their frames."),
];
const JOURNAL_SYNC: &str = "holdfast_journal_sync_duration_seconds";
const JOURNAL_GAUGES: [(&str, Unit, &str); 5] = [
    ("holdfast_journal_queue_records", Unit::Count, "Records that have a number and are not durable yet."),
    ("holdfast_journal_oldest_lsn", Unit::Count, "The oldest record that is kept."),
    ("holdfast_journal_log_bytes", Unit::Bytes, "Bytes of log that are kept, preallocated space aside."),
    ("holdfast_journal_segments", Unit::Count, "Segment files."),
    ("holdfast_journal_checkpoints", Unit::Count, "Whole states that are kept."),
];

/// This process, by the names that are usual for it.
const PROCESS_CPU: (&str, &str) = ("process_cpu_seconds_total", "Processor time, whole seconds.");
const PROCESS_GAUGES: [(&str, Unit, &str); 6] = [
    ("process_resident_memory_bytes", Unit::Bytes, "Memory that is resident."),
    ("process_virtual_memory_bytes", Unit::Bytes, "Address space."),
    ("process_start_time_seconds", Unit::Seconds, "When the agent began, since 1970-01-01 UTC."),
    ("process_threads", Unit::Count, "Threads."),
    ("process_open_fds", Unit::Count, "Open file descriptors."),
    ("process_max_fds", Unit::Count, "Descriptors that may be open at most."),
];

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge(Unit),
    Histogram(Unit),
}

/// Every metric there is, with its description.
fn all() -> Vec<(&'static str, Kind, &'static str)> {
    let counters = COUNTERS.into_iter().chain(DRAIN_COUNTERS).chain(API_COUNTERS).chain(JOURNAL_COUNTERS);
    let counters = counters.chain([PROCESS_CPU]);
    let waiting = (DRAIN_WAITING.0, Unit::Count, DRAIN_WAITING.1);
    let gauges = GAUGES.into_iter().chain([waiting]).chain(JOURNAL_GAUGES).chain(PROCESS_GAUGES);
    let histograms = [
        (JOURNAL_SYNC, Unit::Seconds, "How long fdatasyncs took; the sum is made of the middles of the buckets."),
        (API_DURATION, Unit::Seconds, "How long calls took, by method; of streams, until they ended."),
    ];
    let counters = counters.map(|(name, description)| (name, Kind::Counter, description));
    let gauges = gauges.map(|(name, unit, description)| (name, Kind::Gauge(unit), description));
    let histograms = histograms.into_iter().map(|(name, unit, description)| (name, Kind::Histogram(unit), description));
    counters.chain(gauges).chain(histograms).collect()
}

/// The reference page, `deploy/METRICS.md`.
pub(super) fn reference() -> String {
    let mut page = "# Metrics\n\n\
        What `holdfast agent --metrics 127.0.0.1:9464` serves at `/metrics` for Prometheus. Values are at most a second old.\n\
        This page is made of the descriptions in `agent/src/daemon/metrics.rs`; a test fails when it is stale.\n\n\
        | metric | type | meaning |\n|---|---|---|\n"
        .to_owned();
    let mut metrics = all();
    metrics.sort_by_key(|(name, ..)| *name);
    for (name, kind, description) in metrics {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge(_) => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        for part in ["| `", name, "` | ", kind, " | ", description, " |\n"] {
            page += part;
        }
    }
    page
}

fn describe() {
    for (name, kind, description) in all() {
        match kind {
            Kind::Counter => describe_counter!(name, description),
            Kind::Gauge(unit) => describe_gauge!(name, unit, description),
            Kind::Histogram(unit) => describe_histogram!(name, unit, description),
        }
    }
}

/// Serves the metrics at `address`, and keeps them up to date for as long as the runtime lives.
pub(super) fn serve(address: SocketAddr, node: Arc<Node>) -> Result<(), Failure> {
    let failed = |error| Failure::new(Exit::Failure, format!("cannot serve metrics at {address}: {error}"));
    // Bound once before, as the exporter reports an address in use only to its task.
    drop(std::net::TcpListener::bind(address).map_err(|error| failed(error.to_string()))?);
    let built = PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets_for_metric(Matcher::Full(JOURNAL_SYNC.to_owned()), &sync_buckets())
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Full(API_DURATION.to_owned()), &API_DURATION_BUCKETS)
        })
        .and_then(PrometheusBuilder::build);
    let (recorder, exporter) = built.map_err(|error| failed(error.to_string()))?;
    let handle = recorder.handle();
    ::metrics::set_global_recorder(recorder).map_err(|error| failed(error.to_string()))?;
    describe();
    tokio::spawn(async move {
        if exporter.await.is_err() {
            tracing::error!(%address, "metrics are no longer served");
        }
    });
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(INTERVAL);
        let mut counted = Histogram::default();
        loop {
            interval.tick().await;
            record(&node.applier());
            record_drained(node.drained());
            let journal = node.journal();
            // Both look at files.
            let looked = tokio::task::spawn_blocking(move || (journal.stats(), process::look())).await;
            let Ok((stats, process)) = looked else { continue };
            if let Ok(stats) = stats {
                record_journal(&stats, &mut counted);
            }
            if let Some(process) = process {
                record_process(&process);
            }
            // Durations are kept one by one until they are counted.
            handle.run_upkeep();
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
    gauge!("holdfast_journal_queue_records")
        .set(status.watermarks.appended_lsn.0.saturating_sub(status.watermarks.durable_lsn.0) as f64);
    gauge!("holdfast_journal_stored_lsn").set(status.watermarks.store_lsn.0 as f64);
    gauge!("holdfast_applier_applied_lsn").set(status.applied_lsn.0 as f64);
    gauge!("holdfast_applier_blocked").set(f64::from(u8::from(status.trouble.is_some())));
    gauge!("holdfast_applier_loading").set(f64::from(u8::from(status.loading)));
    gauge!("holdfast_generation").set(status.generation.unwrap_or_default() as f64);
    for (table, room) in status.pressure.iter().zip(&status.room) {
        gauge!("holdfast_table_used", "table" => table.table).set(table.used as f64);
        gauge!("holdfast_table_room", "table" => table.table).set(*room as f64);
        gauge!("holdfast_table_capacity", "table" => table.table).set(table.capacity as f64);
    }
    if let Some(at) = status.drift.compared_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
        gauge!("holdfast_drift_compared_timestamp").set(at.as_secs_f64());
    }
}

#[expect(clippy::cast_precision_loss, reason = "what Prometheus keeps is an f64")]
fn record_drained(counts: &drain::Counts) {
    let values = [&counts.closed, &counts.reselected, &counts.failures];
    for ((name, _), value) in DRAIN_COUNTERS.into_iter().zip(values) {
        counter!(name).absolute(value.load(Ordering::Relaxed));
    }
    gauge!(DRAIN_WAITING.0).set(counts.waiting.load(Ordering::Relaxed) as f64);
}

/// The journal's histogram counts durations by powers of two of a microsecond; here they are the ends of the buckets.
fn sync_buckets() -> Vec<f64> {
    (0..Histogram::BUCKETS).filter_map(Histogram::end_of).map(|end| end.as_secs_f64()).collect()
}

/// `counted` is what the histogram has had until now.
#[expect(clippy::cast_precision_loss, reason = "what Prometheus keeps is an f64")]
fn record_journal(stats: &Stats, counted: &mut Histogram) {
    gauge!("holdfast_journal_oldest_lsn").set(stats.oldest_lsn.0 as f64);
    gauge!("holdfast_journal_log_bytes").set(stats.bytes as f64);
    gauge!("holdfast_journal_segments").set(stats.segments as f64);
    gauge!("holdfast_journal_checkpoints").set(stats.checkpoints.len() as f64);
    let Some(writing) = &stats.writing else { return };
    for ((name, _), value) in JOURNAL_COUNTERS.into_iter().zip([writing.groups, writing.records, writing.bytes]) {
        counter!(name).absolute(value);
    }
    let sync = histogram!(JOURNAL_SYNC);
    for (bucket, (now, before)) in writing.sync.buckets.iter().zip(&counted.buckets).enumerate() {
        let end = Histogram::end_of(bucket).or_else(|| Some(Histogram::end_of(bucket - 1)? * 2));
        let middle = end.unwrap_or_default().as_secs_f64() * 0.75;
        sync.record_many(middle, usize::try_from(now - before).unwrap_or(usize::MAX));
    }
    *counted = writing.sync.clone();
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what Prometheus keeps is an f64, and processor time is not below zero"
)]
fn record_process(process: &Process) {
    let Process { cpu_seconds, start_seconds, resident_bytes, virtual_bytes, threads, open_fds, max_fds } = *process;
    counter!(PROCESS_CPU.0).absolute(cpu_seconds as u64);
    gauge!("process_start_time_seconds").set(start_seconds);
    gauge!("process_resident_memory_bytes").set(resident_bytes as f64);
    gauge!("process_virtual_memory_bytes").set(virtual_bytes as f64);
    gauge!("process_threads").set(threads as f64);
    gauge!("process_open_fds").set(open_fds as f64);
    gauge!("process_max_fds").set(max_fds.map_or(f64::INFINITY, |max| max as f64));
}

/// What the API tells, as metrics. Without a recorder all of it goes nowhere, quickly.
pub(super) struct OfCalls;

impl Observer for OfCalls {
    fn call_ended(&self, method: &'static str, code: &'static str, took: Duration) {
        let method = method.strip_prefix('/').unwrap_or(method);
        counter!(API_REQUESTS, "method" => method, "code" => code).increment(1);
        histogram!(API_DURATION, "method" => method).record(took);
    }

    #[expect(clippy::cast_precision_loss, reason = "what Prometheus keeps is an f64")]
    fn streams_open(&self, open: usize) {
        gauge!(API_STREAMS).set(open as f64);
    }

    fn connection_refused(&self, reason: &'static str) {
        counter!(API_REFUSED, "reason" => reason).increment(1);
    }

    fn certificates_read(&self, in_use: bool) {
        counter!(API_CERTIFICATES, "in_use" => if in_use { "yes" } else { "no" }).increment(1);
    }
}
