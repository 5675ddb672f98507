//! From push to visible, through the whole pipeline on the kernel's tables.

use std::time::Instant;

use applier::{Pipeline, Target};
use storage_schema::resource::WorkloadStatus;

use crate::Options;
use crate::figures::{median, microseconds, quantile};
use crate::place::Place;
use crate::sample::{FILLER, Size, fill, transaction, workload};

/// Which workloads change.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// One after the other, of different services: no cell is staged again before its readers have passed.
    Distinct,
    /// The same one again and again: each change waits for the readers of the one before.
    Same,
}

/// Microseconds of each push.
#[derive(Debug, Default)]
struct Times {
    durable: Vec<f64>,
    behind: Vec<f64>,
    visible: Vec<f64>,
}

pub(crate) fn run(options: &Options, place: &Place) {
    // Enough services that none comes again within a grace period.
    let services = options.size.services.min(20_000);
    let size = Size { services, endpoints: options.size.endpoints.min(services * 10).max(services) };
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    place.clear();
    let journal = fill(&dir.path().join("state"), size);
    let filled = journal.watermarks().durable_lsn.0;
    let pipeline = Pipeline::start(journal, applier::Options::new(Target::Kernel(place.options()), size.capacities()))
        .expect("a pipeline");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    println!(
        "push to visible, µs, one pusher, {} services and {} endpoints ({} rounds of {} pushes, medians)",
        size.services, size.endpoints, options.rounds, options.pushes
    );
    println!(
        "  cells    | durable  p50     p99 | durable to visible  p50     p99 | all  p50     p99 | fsync's share | waits for readers"
    );
    // One that goes on where the state came from: resources belong to who pushed them.
    let mut version = filled;
    for (name, pattern, pushes) in
        [("distinct", Pattern::Distinct, options.pushes), ("the same", Pattern::Same, (options.pushes / 10).max(1))]
    {
        let mut rounds = Vec::new();
        let waits_before = pipeline.status().grace_waits;
        for _ in 0..options.rounds {
            rounds.push(runtime.block_on(round(&pipeline, size, pattern, pushes, &mut version)));
        }
        let waits = pipeline.status().grace_waits - waits_before;
        let of = |times: fn(&Times) -> &Vec<f64>, share| {
            median(rounds.iter().map(|round| quantile(times(round), share)).collect())
        };
        let (durable, visible) = (of(|times| &times.durable, 0.5), of(|times| &times.visible, 0.5));
        println!(
            "  {name} | {durable:>12.0} {:>7.0} | {:>23.0} {:>7.0} | {visible:>8.0} {:>7.0} | {:>12.0}% | {waits} in {} pushes",
            of(|times| &times.durable, 0.99),
            of(|times| &times.behind, 0.5),
            of(|times| &times.behind, 0.99),
            of(|times| &times.visible, 0.99),
            durable / visible * 100.0,
            options.rounds * pushes as usize,
        );
    }
    drop(pipeline);
    place.clear();
}

async fn round(pipeline: &Pipeline, size: Size, pattern: Pattern, pushes: u32, version: &mut u64) -> Times {
    let mut times = Times::default();
    for push in 0..pushes {
        *version += 1;
        let number = match pattern {
            Pattern::Distinct => u32::try_from(*version % u64::from(size.services)).expect("a service's number"),
            Pattern::Same => 0,
        };
        // The second time around it is healthy again, so that each push changes something.
        let turn = match pattern {
            Pattern::Distinct => *version / u64::from(size.services),
            Pattern::Same => u64::from(push),
        };
        let status = if turn % 2 == 0 { WorkloadStatus::Unhealthy } else { WorkloadStatus::Healthy };
        let transaction = transaction(FILLER, *version, [workload(number, number, status)]);
        let begun = Instant::now();
        let pending = pipeline.push(transaction, None).await.expect("it fits");
        pending.durable().await.expect("the disk works");
        let durable = begun.elapsed();
        pipeline.wait_applied(pending.lsn()).await.expect("the applier runs");
        let visible = begun.elapsed();
        times.durable.push(microseconds(durable));
        times.behind.push(microseconds(visible.saturating_sub(durable)));
        times.visible.push(microseconds(visible));
    }
    times
}
