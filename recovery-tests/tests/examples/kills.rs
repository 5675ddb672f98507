//! The Python source pushes while the agent is killed again and again: the journal holds each version once, in order.

use std::io::Read as _;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use api::client::Client;
use rand::Rng as _;
use recovery_tests::agent::Agent;
use recovery_tests::sandbox::{Process, Sandbox};
use recovery_tests::seed::{Seed, count_from_environment};
use recovery_tests::versions;
use serde::Deserialize;
use storage_schema::record::Delta;
use storage_schema::resource::{Resource, Service};

use crate::{python, python_example, settings};

/// Kills; `HOLDFAST_KILLS` says otherwise.
const KILLS: u64 = 100;
/// The longest that an agent lives once it is pushed to.
const LIFE_MS_MAX: u64 = 30;
/// An agent that is not pushed to for so long will never be.
const PUSHED_WITHIN: Duration = Duration::from_mins(1);

/// What the source says at its end.
#[derive(Debug, Deserialize)]
struct Seen {
    acked: Vec<(u64, u64)>,
    streams: u64,
    recovered: u64,
    again: u64,
    last_sent: u64,
}

/// As in `pusher.py`.
fn deltas(version: u64) -> Vec<Delta> {
    let name = format!("mesh/s{}", version % 13);
    vec![Delta::Upsert(Resource::Service(Service { name, hostname: version.to_string(), ..Service::default() }))]
}

#[test]
fn each_version_of_the_python_source_is_journaled_once_and_in_order_whatever_is_killed() {
    let Some(python) = python() else { return };
    let seed = Seed::from_environment(
        "examples",
        "each_version_of_the_python_source_is_journaled_once_and_in_order_whatever_is_killed",
    );
    let mut random = seed.generator(0);
    let sandbox = Sandbox::plain();
    let mut command = python_example(&python, &sandbox, "pusher.py");
    let source = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python can be started");
    let mut source = Process(source);

    let kills = count_from_environment("HOLDFAST_KILLS", KILLS);
    for _ in 0..kills {
        let mut agent = Agent::spawn(&sandbox, &settings());
        let durable_lsn = agent.wait_serving().expect("it gets ready").durable_lsn;
        let deadline = Instant::now() + PUSHED_WITHIN;
        while agent.status().durable_lsn == durable_lsn {
            let ended = source.0.try_wait().expect("a child can be waited for");
            assert!(ended.is_none() && Instant::now() < deadline, "nobody pushes: {ended:?}");
        }
        thread::sleep(Duration::from_millis(random.random_range(0..=LIFE_MS_MAX)));
        agent.kill();
    }
    let agent = Agent::start(&sandbox, &settings());
    // The end of its input is the end of its pushing.
    drop(source.0.stdin.take());
    let mut said = String::new();
    source.0.stdout.take().expect("it is piped").read_to_string(&mut said).expect("it says what it has seen");
    assert!(source.0.wait().expect("a child can be waited for").success());
    let seen: Seen = serde_json::from_str(&said).expect("it is JSON");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    runtime.block_on(async {
        let client = Client::connect(sandbox.socket()).await.expect("this agent lives");
        versions::check(&client, "pusher", seen.last_sent, &seen.acked, deltas).await;
    });
    assert!(agent.terminate().success());

    let Seen { acked, streams, recovered, again, last_sent } = seen;
    let mut answered: Vec<u64> = acked.iter().map(|(version, _)| *version).collect();
    answered.sort_unstable();
    assert_eq!(answered, (1..=last_sent).collect::<Vec<u64>>(), "each was acked once, on a stream or by a welcome");
    eprintln!(
        "{kills} kills: {streams} streams, {last_sent} versions, {recovered} told by a welcome, {again} sent again"
    );
    assert!(streams > kills, "each agent was pushed to");
    assert!(kills < 50 || (recovered > 0 && again > 0), "kills came before acks and before records");
}
