//! An agent in a process of its own, and what it takes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use api::client::Client;
use rustix::process::{Pid, Signal, kill_process};

/// Set in the environment of this program when it is to be the agent.
pub(crate) const CHILD: &str = "HOLDFAST_BENCH_AGENT";
/// Longer than a start or a stop takes.
const PATIENCE: Duration = Duration::from_mins(1);
/// Streams that read the journal, of all clients and of one: more than are asked for here.
const READERS: &str = "4096";

/// A running agent; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    process: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Starts one with an empty journal in `dir`, and waits until it answers.
    pub(crate) async fn start(dir: &Path) -> Self {
        let (socket, log) = (dir.join("holdfast.sock"), dir.join("log"));
        let errors = File::create(&log).expect("the directory can be written to");
        let process = Command::new(std::env::current_exe().expect("a process knows its binary"))
            .env(CHILD, "1")
            .env("HOLDFAST_LOG", "warn")
            .arg("--socket")
            .arg(&socket)
            .args(["agent", "--datapath", "memory", "--api-readers", READERS, "--api-readers-per-client", READERS])
            .arg("--state-dir")
            .arg(dir.join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .expect("this program can be started again");
        let mut node = Self { process, socket, log };
        let begun = Instant::now();
        while !node.is_ready().await {
            let ended = node.process.try_wait().expect("a child can be waited for");
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "the agent does not get ready: {}", node.said());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node
    }

    async fn is_ready(&self) -> bool {
        match Client::connect(&self.socket).await {
            Ok(client) => client.status().await.is_ok_and(|status| !status.loading),
            Err(_) => false,
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A connection to it.
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(&self.socket).await.expect("it is there")
    }

    /// The memory that it has resident for itself, and its threads.
    pub(crate) fn takes(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let field = |name: &str| -> u64 {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
            value.trim().trim_end_matches(" kB").parse().expect("a number")
        };
        (field("RssAnon:") << 10, field("Threads:"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended by itself, which has been told by then.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
    }
}
