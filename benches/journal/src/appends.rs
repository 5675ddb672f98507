//! Durable appends a second and the time to an ack, with 1, 8 and 64 pushers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use journal::{Config, Journal};
use storage_schema::codec::encode_record;

use crate::Options;
use crate::floor::Floor;
use crate::sample::transaction;

/// One round's outcome.
#[derive(Clone, Copy, Debug)]
struct Round {
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    /// Processor time of the whole process for each append: what a busy machine makes of the rest.
    cpu_us: f64,
}

pub(crate) fn run(options: &Options) {
    println!("durable appends ({} rounds of {:?}, medians)", options.rounds, options.round);
    println!("  pushers |    floor/s  p50 µs  p99 µs  cpu µs |  journal/s  p50 µs  p99 µs  cpu µs | ratio  p99 ratio");
    for &pushers in &options.pushers {
        let (mut floors, mut journals) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            floors.push(floor(options, pushers));
            journals.push(ours(options, pushers));
        }
        let (floor, ours) = (median(floors), median(journals));
        println!(
            "  {pushers:>7} | {:>10.0} {:>7.0} {:>7.0} {:>7.1} | {:>10.0} {:>7.0} {:>7.0} {:>7.1} | {:>5.2}  {:>9.2}",
            floor.per_second,
            floor.p50_us,
            floor.p99_us,
            floor.cpu_us,
            ours.per_second,
            ours.p50_us,
            ours.p99_us,
            ours.cpu_us,
            ours.per_second / floor.per_second,
            ours.p99_us / floor.p99_us,
        );
    }
}

fn floor(options: &Options, pushers: u64) -> Round {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let floor = Floor::create(&dir.path().join("plain")).expect("a plain file");
    let record = sample_body();
    measure(options.round, pushers, |_| {
        let mut push = floor.pusher();
        let record = record.clone();
        move |_| push(&record)
    })
}

fn ours(options: &Options, pushers: u64) -> Round {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let journal = Journal::open(Config::new(dir.path().join("state"))).expect("a journal");
    measure(options.round, pushers, |pusher| {
        let journal = journal.clone();
        let source = format!("pusher-{pusher}");
        move |number| {
            let permit = journal.blocking_reserve().expect("the journal accepts");
            let submitted = permit.submit(transaction(&source, number)).expect("the journal accepts");
            submitted.ack.blocking_wait().expect("the disk works");
        }
    })
}

/// A body of the size that the journal writes.
pub(crate) fn sample_body() -> Vec<u8> {
    let record = storage_schema::record::Record {
        lsn: storage_schema::id::Lsn(1),
        transaction: transaction("pusher-0", 1),
        wall_ns: 0,
        monotonic_ns: 0,
        boot_id: storage_schema::id::BootId::default(),
        previous_hash: storage_schema::id::RecordHash::default(),
        received_wall_ns: Some(0),
        client: None,
    };
    encode_record(&record)
}

fn measure<P: FnMut(u64) + Send>(time: Duration, pushers: u64, pusher: impl Fn(u64) -> P) -> Round {
    let stop = AtomicBool::new(false);
    let (started, cpu) = (Instant::now(), processor_seconds());
    let mut latencies: Vec<u64> = thread::scope(|scope| {
        let running: Vec<_> = (0..pushers)
            .map(|number| {
                let mut push = pusher(number);
                let stop = &stop;
                scope.spawn(move || {
                    let mut latencies = Vec::new();
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let begun = Instant::now();
                        push(number);
                        latencies.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
                    }
                    latencies
                })
            })
            .collect();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        running.into_iter().flat_map(|pusher| pusher.join().expect("pushers do not panic")).collect()
    });
    let (elapsed, cpu) = (started.elapsed(), processor_seconds() - cpu);
    latencies.sort_unstable();
    let quantile = |share: f64| microseconds(latencies[index(latencies.len(), share)]);
    let appends = count(latencies.len());
    let cpu_us = cpu * 1e6 / appends;
    Round { per_second: appends / elapsed.as_secs_f64(), p50_us: quantile(0.5), p99_us: quantile(0.99), cpu_us }
}

/// Seconds of user and system time that this process has taken, by /proc/self/stat (fields 14 and 15, in hundredths).
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
    ticks / 100.0
}

fn median(mut rounds: Vec<Round>) -> Round {
    rounds.sort_unstable_by(|one, other| one.per_second.total_cmp(&other.per_second));
    let middle = rounds[rounds.len() / 2];
    let mut p99s: Vec<f64> = rounds.iter().map(|round| round.p99_us).collect();
    p99s.sort_unstable_by(f64::total_cmp);
    Round { p99_us: p99s[p99s.len() / 2], ..middle }
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for printing")]
fn index(length: usize, share: f64) -> usize {
    ((length as f64 * share) as usize).min(length - 1)
}

#[allow(clippy::cast_precision_loss, reason = "for printing")]
fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

/// A count for printing.
#[allow(clippy::cast_precision_loss, reason = "for printing")]
pub(crate) fn count(number: usize) -> f64 {
    number as f64
}
