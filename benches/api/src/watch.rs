//! What an idle watch takes of the agent.

use std::time::Duration;

use api::Level;
use api::watch::{StateStep, StateWatch};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt as _;

use crate::Options;
use crate::figures::count;
use crate::node::Node;
use crate::sample::{everything, transaction};

/// Each has a thread of those that may block, of which the agent's runtime has 512.
pub(crate) const STREAMS_MAX: u64 = 400;

pub(crate) fn run(options: &Options) {
    Runtime::new().expect("a runtime").block_on(measure(options));
}

async fn measure(options: &Options) {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let node = Node::start(dir.path()).await;
    let client = node.connect().await;
    client.apply(&transaction(0, 1, everything(0)), Level::Applied, Duration::from_mins(1)).await.expect("it fits");
    let (bytes_before, threads_before) = node.takes();
    let mut open = Vec::new();
    for _ in 0..options.streams {
        let mut steps = Box::pin(client.watch_state(&StateWatch::default()).await.expect("there is a place"));
        // Idle is who has been told everything.
        loop {
            match steps.next().await {
                Some(Ok(StateStep::Complete(_))) => break,
                Some(Ok(_)) => {}
                other => panic!("the state is told: {other:?}"),
            }
        }
        open.push(steps);
    }
    let (bytes, threads) = node.takes();
    println!(
        "{} idle watches of the state on one connection: {:.1} KiB each, {} threads more",
        options.streams,
        count(bytes.saturating_sub(bytes_before)) / count(options.streams) / 1024.0,
        threads - threads_before,
    );
    drop(open);
}
