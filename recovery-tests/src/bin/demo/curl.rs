//! Requests with the real curl, from within the cgroup.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Output, Stdio};

use anyhow::{Context, ensure};
use recovery_tests::sandbox::Sandbox;

use crate::backend::Answer;

/// Who answered how often.
pub(crate) type Spread = BTreeMap<String, u32>;

/// What a number of requests came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Requests {
    /// The workloads that answered.
    pub(crate) spread: Spread,
    /// The workloads that the answering ones had called, by service.
    pub(crate) called: BTreeMap<String, Spread>,
    /// Requests that got no answer, or another one than 200.
    pub(crate) failed: u32,
}

impl Requests {
    /// `reviews-v1 21, reviews-v2 18`.
    pub(crate) fn describe(&self) -> String {
        let failed = if self.failed > 0 { format!(", FAILED {}", self.failed) } else { String::new() };
        describe(&self.spread) + &failed
    }

    /// Adds those of another run.
    pub(crate) fn add(&mut self, other: Self) {
        for (workload, count) in other.spread {
            *self.spread.entry(workload).or_default() += count;
        }
        for (service, spread) in other.called {
            let own = self.called.entry(service).or_default();
            for (workload, count) in spread {
                *own.entry(workload).or_default() += count;
            }
        }
        self.failed += other.failed;
    }
}

/// `reviews-v1 21, reviews-v2 18`.
pub(crate) fn describe(spread: &Spread) -> String {
    spread.iter().map(|(workload, count)| format!("{workload} {count}")).collect::<Vec<_>>().join(", ")
}

/// The command, as one would type it.
pub(crate) fn command_line(vip: SocketAddr, count: u32) -> String {
    format!("curl http://{vip}/?[1-{count}]")
}

/// Sends requests to a virtual address, each on a connection of its own, as the servers close theirs.
pub(crate) fn get(sandbox: &Sandbox, vip: SocketAddr, count: u32) -> anyhow::Result<Requests> {
    let url = format!("http://{vip}/?[1-{count}]");
    let mut curl = sandbox.command_in_cgroup("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", "--noproxy", "*", "--write-out", "%{http_code}\n"]);
    curl.arg(url).stdin(Stdio::null());
    let Output { stdout, stderr, .. } = curl.output().context("cannot start curl")?;
    let text = String::from_utf8(stdout).context("an answer is not text")?;
    let mut requests = Requests::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        match serde_json::from_str::<Answer>(line) {
            Ok(answer) if lines.next() == Some("200") => count_answer(&mut requests, answer),
            _ => {}
        }
    }
    let answered: u32 = requests.spread.values().sum();
    requests.failed = count.saturating_sub(answered);
    ensure!(answered > 0, "no answer from {vip}: {}", String::from_utf8_lossy(&stderr).trim());
    Ok(requests)
}

fn count_answer(requests: &mut Requests, answer: Answer) {
    *requests.spread.entry(answer.workload).or_default() += 1;
    for (service, called) in answer.calls {
        *requests.called.entry(service).or_default().entry(called.workload).or_default() += 1;
    }
}
