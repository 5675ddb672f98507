//! A source pushes versions over a stream while the agent is killed again and again: the journal holds each version once, in order.

use std::path::Path;
use std::time::{Duration, Instant};

use api::client::Client;
use api::push::outbox::Outbox;
use api::push::{Answer, Hello};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use recovery_tests::agent::{Agent, Settings};
use recovery_tests::sandbox::Sandbox;
use recovery_tests::seed::{Seed, count_from_environment};
use recovery_tests::versions;
use storage_schema::record::Delta;
use storage_schema::resource::{Resource, Service};

/// Kills; `HOLDFAST_KILLS` says otherwise.
const KILLS: u64 = 100;
/// The longest that an agent is pushed to before it is killed.
const LIFE_MS_MAX: u64 = 60;
/// Transactions that are under way at a time.
const UNDER_WAY_MAX: usize = 64;
/// A round that takes longer hangs.
const ROUND_MAX: Duration = Duration::from_mins(1);

/// What the source has seen, over all streams.
#[derive(Debug, Default)]
struct Seen {
    /// Versions with an ack, and the LSN in it.
    acked: Vec<(u64, u64)>,
    /// Versions of which a welcome said that they are in the journal.
    recovered: u64,
    /// Versions that had to be sent again.
    again: u64,
}

#[test]
fn each_version_is_journaled_once_and_in_order_whatever_is_killed() {
    let seed = Seed::from_environment("push_stream", "each_version_is_journaled_once_and_in_order_whatever_is_killed");
    let mut random = seed.generator(0);
    let sandbox = Sandbox::plain();
    let settings = Settings { kernel: false, log: "warn", ..Settings::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let mut outbox = Outbox::new(Hello::new("cp", 1));
    let mut seen = Seen::default();
    let kills = count_from_environment("HOLDFAST_KILLS", KILLS);
    for _ in 0..kills {
        let agent = Agent::spawn(&sandbox, &settings);
        let socket = sandbox.socket();
        runtime.block_on(async {
            let life = Duration::from_millis(random.random_range(0..=LIFE_MS_MAX));
            let client = connect(&socket).await;
            // The clock of its life starts with the hello, so that it dies while it is pushed to.
            let killer = agent.kill_after(life);
            push_until_it_is_gone(&client, &mut outbox, &mut seen, &mut random).await;
            killer.join().expect("the killer does not panic");
        });
        drop(agent);
    }
    let agent = Agent::start(&sandbox, &settings);
    runtime.block_on(async {
        let client = connect(&sandbox.socket()).await;
        let last = outbox.next_version() - 1;
        push_the_rest(&client, &mut outbox, &mut seen).await;
        versions::check(&client, "cp", last, &seen.acked, deltas).await;
    });
    assert!(agent.terminate().success());
    let Seen { acked, recovered, again } = &seen;
    eprintln!("{kills} kills: {} versions acked, {recovered} told by a welcome, {again} sent again", acked.len());
    assert!(kills < 50 || (*recovered > 0 && *again > 0), "kills came before acks and before records: {seen:?}");
}

async fn connect(socket: &Path) -> Client {
    let deadline = Instant::now() + ROUND_MAX;
    loop {
        match Client::connect(socket).await {
            Ok(client) if client.status().await.is_ok() => return client,
            _ => assert!(Instant::now() < deadline, "the agent is not there"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Says hello, sends again what is missing, and goes on with new versions until the stream breaks.
async fn push_until_it_is_gone(client: &Client, outbox: &mut Outbox, seen: &mut Seen, random: &mut ChaCha8Rng) {
    let Ok(stream) = client.push(&outbox.hello()).await else { return };
    let resumed = outbox.resume(stream.welcome());
    assert_eq!(stream.welcome().resync, None, "nothing acknowledged was lost, nothing is unknown");
    assert_eq!(resumed.refused, [0; 0], "all of them are valid");
    seen.recovered += resumed.accepted.len() as u64;
    seen.again += resumed.again.len() as u64;
    seen.acked.extend(resumed.accepted.iter().map(|(version, receipt)| (*version, receipt.lsn.0)));
    let (sender, mut answers) = stream.split();
    for again in resumed.again {
        if sender.send(again.version, &again.deltas, None).await.is_err() {
            return;
        }
    }
    let deadline = Instant::now() + ROUND_MAX;
    loop {
        assert!(Instant::now() < deadline, "the agent lives too long");
        while outbox.len() < random.random_range(1..=UNDER_WAY_MAX) {
            let next = outbox.add(deltas(outbox.next_version()));
            if sender.send(next.version, &next.deltas, None).await.is_err() {
                return;
            }
        }
        match answers.next().await {
            Ok(Some(answer)) => note(outbox, seen, &answer),
            Ok(None) | Err(_) => return,
        }
    }
}

async fn push_the_rest(client: &Client, outbox: &mut Outbox, seen: &mut Seen) {
    let stream = client.push(&outbox.hello()).await.expect("this agent lives");
    let resumed = outbox.resume(stream.welcome());
    seen.acked.extend(resumed.accepted.iter().map(|(version, receipt)| (*version, receipt.lsn.0)));
    let (sender, mut answers) = stream.split();
    for again in &resumed.again {
        sender.send(again.version, &again.deltas, None).await.expect("this agent lives");
    }
    drop(sender);
    while let Some(answer) = answers.next().await.expect("this agent lives") {
        note(outbox, seen, &answer);
    }
    assert!(outbox.is_empty());
}

fn note(outbox: &mut Outbox, seen: &mut Seen, answer: &Answer) {
    let Answer::Acked { version, receipt } = answer else { panic!("it is valid: {answer:?}") };
    seen.acked.push((*version, receipt.lsn.0));
    outbox.answered(answer);
}

fn deltas(version: u64) -> Vec<Delta> {
    let name = format!("mesh/s{}", version % 13);
    vec![Delta::Upsert(Resource::Service(Service { name, hostname: version.to_string(), ..Service::default() }))]
}
