//! Clients that do not read, and clients that do not end: what they cost the real agent is bounded, and others are served.
//!
//! The agent's memory is read from `/proc`, and compared with what the same pushes cost without such clients.

use std::fs;
use std::time::Duration;

use api::Level;
use api::client::Client;
use api::push::stream::{PushSender, SendError};
use api::push::{Answer, Hello};
use api::watch::{RecordsWatch, StateWatch};
use recovery_tests::agent::{Agent, Settings};
use recovery_tests::sandbox::Sandbox;
use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Resource, Workload};

const MIB: u64 = 1 << 20;
/// Watches that are opened and never read, half of records and half of the state: as many as one client may have.
const WATCHES: u64 = 48;
/// What one of them may cost with records of 100 kB: a few messages, and what its thread's allocator keeps.
const WATCH_BYTES_MAX: u64 = 8 * MIB;
/// Of records, pushed while the watches are open: far more than they could hold.
const PUSHED_BYTES: u64 = 24 * MIB;
/// What a push stream may cost that sends and never reads an answer: HTTP/2's windows, and a window of answers.
const STREAM_BYTES_MAX: u64 = 16 * MIB;
/// What a sync without an end may cost, in messages of `record_bytes_max` and what they become: it is 64 MiB.
const SYNC_BYTES_MAX: u64 = 3 * 64 * MIB;
/// What a sync without an end sends: more than the agent takes.
const SYNC_SENT_BYTES: u64 = 80 * MIB;
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_mins(2);

fn settings() -> Settings {
    Settings { kernel: false, log: "warn", ..Settings::default() }
}

/// The most memory that the agent has had resident since it was asked last.
fn peak_bytes(agent: &Agent) -> u64 {
    let process = format!("/proc/{}", agent.pid());
    let status = fs::read_to_string(format!("{process}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel says it");
    // proc_pid_clear_refs(5): resets the peak.
    fs::write(format!("{process}/clear_refs"), "5").expect("it is ours");
    peak.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// The same workloads over and over, a kilobyte each: the state stays as large as it is.
fn workloads(count: usize, round: u64) -> Vec<Resource> {
    let (name, node) = ("x".repeat(480), "y".repeat(480));
    let workload = |number| Workload {
        uid: format!("w{number}"),
        name: name.clone(),
        node: node.clone(),
        service_account: round.to_string(),
        ..Workload::default()
    };
    (0..count).map(|number| Resource::Workload(workload(number))).collect()
}

/// Pushes so many bytes as an honest client, and has an ack for each.
async fn push(client: &Client, bytes: u64) {
    const TOGETHER: usize = 100;
    for round in 0..bytes / (TOGETHER as u64 * 1024) {
        let origin = Origin { source: "honest".to_owned(), incarnation: 1, version: None };
        let deltas = workloads(TOGETHER, round).into_iter().map(Delta::Upsert).collect();
        client.apply(&Transaction::push(origin, deltas), Level::Durable, PATIENCE).await.expect("it is served");
    }
}

/// The memory that the agent has resident for itself; the pages of its files, which the kernel takes back at will, not counted.
fn own_bytes(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel says it");
    own.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime can be made")
}

async fn connect(sandbox: &Sandbox) -> Client {
    Client::connect(sandbox.socket()).await.expect("the agent is there")
}

#[test]
fn watches_that_are_not_read_hold_a_few_messages_each() {
    let sandbox = Sandbox::plain();
    let agent = Agent::start(&sandbox, &settings());
    runtime().block_on(async {
        let honest = connect(&sandbox).await;
        push(&honest, PUSHED_BYTES).await;
        let alone = own_bytes(&agent);

        let mut records = Vec::new();
        let mut states = Vec::new();
        for _ in 0..WATCHES / 2 {
            // Each has a connection of its own, as flow control would else let one hold up the others.
            let watch = RecordsWatch { from_lsn: Some(Lsn(1)), ..RecordsWatch::default() };
            records.push(connect(&sandbox).await.watch_records(&watch).await.expect("there is a place"));
            states.push(connect(&sandbox).await.watch_state(&StateWatch::default()).await.expect("there is a place"));
        }
        push(&honest, PUSHED_BYTES).await;
        let beside = own_bytes(&agent);
        let cost = beside.saturating_sub(alone) / WATCHES;
        eprintln!("{} MiB alone, {} MiB beside {WATCHES} watches: {} KiB each", alone / MIB, beside / MIB, cost >> 10);
        assert!(cost < WATCH_BYTES_MAX, "{cost} bytes for each");

        // Who begins to read after all misses nothing.
        let mut late = Box::pin(records.pop().expect("there is one"));
        let durable_lsn = honest.status().await.expect("it answers").durable_lsn;
        let mut next = Lsn(1);
        while next <= durable_lsn {
            let step = tokio_stream::StreamExt::next(&mut late).await.expect("it has no end").expect("it is readable");
            if let api::watch::RecordsStep::Records(batch) = step {
                for record in batch {
                    assert_eq!(record.lsn, next);
                    next = next.next();
                }
            }
        }
        drop((records, states));
    });
    assert!(agent.terminate().success());
}

/// Sends transactions until the stream takes no more.
async fn push_without_end(sender: PushSender) -> SendError {
    let mut version = 0;
    loop {
        version += 1;
        let deltas: Vec<Delta> = workloads(20, version).into_iter().map(Delta::Upsert).collect();
        if let Err(ended) = sender.send(version, &deltas, None).await {
            return ended;
        }
    }
}

#[test]
fn a_push_stream_that_reads_no_answer_is_read_no_further() {
    let sandbox = Sandbox::plain();
    let agent = Agent::start(&sandbox, &settings());
    runtime().block_on(async {
        let honest = connect(&sandbox).await;
        push(&honest, PUSHED_BYTES).await;
        let alone = peak_bytes(&agent);

        let (sender, answers) = connect(&sandbox).await.push(&Hello::new("deaf", 1)).await.expect("a welcome").split();
        let pushing = tokio::spawn(push_without_end(sender));
        push(&honest, PUSHED_BYTES).await;
        let beside = peak_bytes(&agent);
        eprintln!("{} MiB alone, {} MiB beside the stream", alone / MIB, beside / MIB);
        assert!(beside.saturating_sub(alone) < STREAM_BYTES_MAX, "{alone} bytes, then {beside}");
        pushing.abort();
        drop(answers);
        push(&honest, MIB).await;
    });
    assert!(agent.terminate().success());
}

#[test]
fn a_sync_without_an_end_is_kept_up_to_its_limit_and_then_not_at_all() {
    let sandbox = Sandbox::plain();
    let agent = Agent::start(&sandbox, &settings());
    runtime().block_on(async {
        let honest = connect(&sandbox).await;
        push(&honest, MIB).await;
        let alone = peak_bytes(&agent);
        let (sender, mut answers) =
            connect(&sandbox).await.push(&Hello::new("endless", 1)).await.expect("a welcome").split();
        sender.begin_sync(1, None).await.expect("it is taken");
        let chunk = workloads(200, 0);
        let mut sent = 0;
        for number in 0..SYNC_SENT_BYTES / (200 * 1024) {
            let mut chunk = chunk.clone();
            for resource in &mut chunk {
                let Resource::Workload(workload) = resource else { unreachable!("they are workloads") };
                workload.uid = format!("{}-{number}", workload.uid);
            }
            sender.add_to_sync(&chunk).await.expect("it is read");
            sent += chunk.len() as u64;
        }
        let beside = peak_bytes(&agent);
        eprintln!("{} MiB alone, {} MiB beside the sync", alone / MIB, beside / MIB);
        assert!(beside.saturating_sub(alone) < SYNC_BYTES_MAX, "{alone} bytes, then {beside}");
        push(&honest, MIB).await;
        sender.end_sync(sent).await.expect("it is read");
        let Some(Answer::Nacked { rejection, .. }) = answers.next().await.expect("it is answered") else {
            panic!("it is too large")
        };
        assert!(rejection.to_string().contains("record_bytes_max = 67108864"), "{rejection}");
        let durable_lsn = honest.status().await.expect("it answers").durable_lsn;
        assert!(durable_lsn.0 > 0, "the honest client was served");
    });
    assert!(agent.terminate().success());
}
