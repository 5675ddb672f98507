//! The state at any record, and what stays bounded when the past is let go.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use journal::{Config, Journal, Reader, Retention};
use storage_schema::id::Lsn;

use crate::Options;
use crate::opening::{CHILD, status_mb};
use crate::replay::{directory_bytes, fill};
use crate::sample::transaction;

/// Records of the retention run, and the log it keeps.
const RECORDS: u64 = 2_000_000;
const KEPT_BYTES: u64 = 256 << 20;

/// How long the state at a record takes, over a journal with checkpoints at the default distance.
pub(crate) fn state(options: &Options) {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let path = dir.path().join("state");
    let journal = fill(&path, options.records);
    journal.blocking_wait_stored(Lsn(options.records)).expect("the store follows");
    drop(journal);
    let reader = Reader::open(&path).expect("a journal");
    let checkpoints = reader.checkpoints().expect("readable").len();
    let (mut times, mut resources) = (Vec::new(), 0);
    // Evenly spread, and the places that are farthest from a checkpoint.
    let spread = (1..=20).map(|step| options.records * step / 20);
    let before = reader.checkpoints().expect("readable").into_iter().map(|checkpoint| checkpoint.lsn.0 - 1);
    for lsn in spread.chain(before.collect::<Vec<_>>()) {
        let started = Instant::now();
        resources = reader.state_at(Lsn(lsn)).expect("computable").len();
        times.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "state at a record of {} with {checkpoints} checkpoints, {resources} resources: median {:.0} ms, at most {:.0} ms over {} places",
        options.records,
        times[times.len() / 2],
        times[times.len() - 1],
        times.len()
    );
}

/// What memory and disk come to while much more goes through than is kept; in a process of its own.
pub(crate) fn retention(options: &Options) {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let program = std::env::current_exe().expect("this program");
    let order = format!("{}:retain", dir.path().join("state").display());
    let status = Command::new(program).env(CHILD, order).stderr(Stdio::inherit()).status().expect("a child");
    assert!(status.success(), "{status}");
}

/// The child of [`retention`].
pub(crate) fn retain(state: &Path) {
    let retention = Retention { bytes: Some(KEPT_BYTES), ..Retention::default() };
    let journal = Journal::open(Config { retention, ..Config::new(state) }).expect("a journal");
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let bytes = directory_bytes(&state.join("journal"));
                most.fetch_max(bytes, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        });
        for number in 0..RECORDS {
            let permit = journal.blocking_reserve().expect("the journal accepts");
            permit.submit(transaction("filler", number)).expect("the journal accepts");
        }
        journal.durable().blocking_past(Lsn(RECORDS - 1), Duration::from_mins(10)).expect("the disk works");
        done.store(true, Ordering::Relaxed);
    });
    let elapsed = started.elapsed().as_secs_f64();
    journal.blocking_wait_stored(Lsn(RECORDS)).expect("the store follows");
    let compacted = journal.compact(&retention).expect("the disk works");
    #[allow(clippy::cast_precision_loss, reason = "for printing")]
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    #[allow(clippy::cast_precision_loss, reason = "for printing")]
    let per_second = RECORDS as f64 / elapsed;
    let segment = Config::new(state).segment_bytes;
    println!(
        "retention of {:.0} MB of log while {RECORDS} records go through ({per_second:.0}/s)",
        megabytes(KEPT_BYTES)
    );
    println!(
        "  resident at most {:.1} MB; log on disk at most {:.0} MB, kept and three segments are {:.0} MB; at the end {:.0} MB",
        status_mb("VmHWM:"),
        megabytes(most.load(Ordering::Relaxed)),
        megabytes(KEPT_BYTES + 3 * segment),
        megabytes(directory_bytes(&state.join("journal"))),
    );
    println!(
        "  checkpoints {:.1} MB, store {:.1} MB; oldest record {}",
        megabytes(directory_bytes(&state.join("checkpoints"))),
        megabytes(directory_bytes(&state.join("store"))),
        compacted.oldest_lsn
    );
}
