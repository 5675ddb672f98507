//! Pushes over the socket, beside the same ones into the journal.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use api::Level;
use api::client::Client;
use api::push::{Answer, Hello};
use journal::{Config, Journal};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::Options;
use crate::figures::{Round, count};
use crate::node::Node;
use crate::sample::{changes, everything, source, transaction};

/// How transactions are pushed: how many of a client are under way, and how many deltas each has.
#[derive(Clone, Copy, Debug)]
struct Manner {
    under_way: usize,
    deltas: u64,
}

const MANNERS: [Manner; 3] =
    [Manner { under_way: 1, deltas: 1 }, Manner { under_way: 64, deltas: 1 }, Manner { under_way: 8, deltas: 100 }];

pub(crate) fn run(options: &Options) {
    let runtime = Runtime::new().expect("a runtime");
    println!("pushes over the socket ({} rounds of {:?}, medians; times in µs)", options.rounds, options.round);
    println!(
        "  clients  under way  deltas | journal/s     p50     p99 | durable/s  deltas/s     p50     p99 | applied/s     p50     p99 | ratio  p99 ratio"
    );
    for &clients in &options.clients {
        for manner in MANNERS {
            let (mut journal, mut durable, mut applied) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                journal.push(floor(options, clients, manner));
                durable.push(runtime.block_on(ours(options, clients, manner, Level::Durable)));
                applied.push(runtime.block_on(ours(options, clients, manner, Level::Applied)));
            }
            let [journal, durable, applied] = [journal, durable, applied].map(|rounds| Round::median(&rounds));
            println!(
                "  {clients:>7}  {:>9}  {:>6} | {:>9.0} {:>7.0} {:>7.0} | {:>9.0} {:>9.0} {:>7.0} {:>7.0} | {:>9.0} {:>7.0} {:>7.0} | {:>5.2}  {:>9.2}",
                manner.under_way,
                manner.deltas,
                journal.per_second,
                journal.p50_us,
                journal.p99_us,
                durable.per_second,
                durable.per_second * count(manner.deltas),
                durable.p50_us,
                durable.p99_us,
                applied.per_second,
                applied.p50_us,
                applied.p99_us,
                durable.per_second / journal.per_second,
                durable.p99_us / journal.p99_us,
            );
        }
    }
}

/// The journal in this process, a thread for each client.
fn floor(options: &Options, clients: u64, Manner { under_way, deltas }: Manner) -> Round {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let journal = Journal::open(Config::new(dir.path().join("state"))).expect("a journal");
    let push = |client, version, deltas| {
        let permit = journal.blocking_reserve().expect("the journal accepts");
        permit.submit(transaction(client, version, deltas)).expect("the journal accepts").ack
    };
    for client in 0..clients {
        push(client, 1, everything(client)).blocking_wait().expect("the disk works");
    }
    let (begun, stop) = (Instant::now(), AtomicBool::new(false));
    let times = thread::scope(|scope| {
        let pushing: Vec<_> = (0..clients)
            .map(|client| {
                let (push, stop) = (&push, &stop);
                scope.spawn(move || {
                    let (mut times, mut waiting, mut number) = (Vec::new(), VecDeque::new(), 0);
                    loop {
                        while waiting.len() < under_way && !stop.load(Ordering::Relaxed) {
                            let begun = Instant::now();
                            waiting.push_back((begun, push(client, number + 2, changes(client, number, deltas))));
                            number += 1;
                        }
                        let Some((begun, ack)) = waiting.pop_front() else { return times };
                        ack.blocking_wait().expect("the disk works");
                        times.push(begun.elapsed());
                    }
                })
            })
            .collect();
        thread::sleep(options.round);
        stop.store(true, Ordering::Relaxed);
        pushing.into_iter().flat_map(|pushing| pushing.join().expect("pushers do not panic")).collect()
    });
    Round::of(times, begun.elapsed())
}

/// An agent, a connection and a stream for each client.
async fn ours(options: &Options, clients: u64, manner: Manner, level: Level) -> Round {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let node = Node::start(dir.path()).await;
    let mut ready = Vec::new();
    for client in 0..clients {
        let connection = node.connect().await;
        let filling = transaction(client, 1, everything(client));
        connection.apply(&filling, Level::Applied, Duration::from_mins(1)).await.expect("it fits");
        ready.push(connection);
    }
    let begun = Instant::now();
    let until = begun + options.round;
    let mut pushing = JoinSet::new();
    for (client, connection) in (0..).zip(ready) {
        pushing.spawn(push_until(connection, client, manner, level, until));
    }
    let times = pushing.join_all().await.concat();
    Round::of(times, begun.elapsed())
}

/// Pushes until a moment; what each transaction took, from when it was sent to its ack.
async fn push_until(
    connection: Client,
    client: u64,
    Manner { under_way, deltas }: Manner,
    level: Level,
    until: Instant,
) -> Vec<Duration> {
    let hello =
        Hello { level, last_sent_version: Some(1), last_acked_version: Some(1), ..Hello::new(source(client), 1) };
    let (sender, mut answers) = connection.push(&hello).await.expect("there is a place").split();
    let (mut times, mut waiting, mut number) = (Vec::new(), VecDeque::new(), 0);
    loop {
        while waiting.len() < under_way && Instant::now() < until {
            let changes = changes(client, number, deltas);
            waiting.push_back(Instant::now());
            sender.send(number + 2, &changes, None).await.expect("the stream takes it");
            number += 1;
        }
        let Some(begun) = waiting.pop_front() else { return times };
        match answers.next().await {
            Ok(Some(Answer::Acked { receipt, .. })) if receipt.level >= level => times.push(begun.elapsed()),
            other => panic!("it is acked: {other:?}"),
        }
    }
}
