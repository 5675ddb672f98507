//! The process in the cgroup: whatever it connects to goes through the hooks.
//!
//! Hooks act on the cgroup of the process that connects, and a test cannot put one of its own threads into another
//! cgroup than the agent's. So clients are a process of their own: the `demo` binary, started with [`WORKER`] set. It
//! takes requests as lines of JSON and answers each with one line.

use std::collections::BTreeMap;
use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::connection::{CheckedConnection, Greeting, Traffic};
use crate::echo::read_identity;
use crate::sandbox::{Process, Sandbox};

/// Set in the environment of a worker.
pub const WORKER: &str = "HOLDFAST_TEST_WORKER";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause between two frames of a checked connection.
const PAUSE: Duration = Duration::from_millis(10);

/// How long each checked connection may take for its next frames.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Open { to: SocketAddr, greeting: Greeting, count: u32, seed: u64 },
    Probe { to: SocketAddr, count: u32 },
    Progress,
    Report,
    Finish,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Opened(Result<Vec<SocketAddr>, String>),
    Probed(BTreeMap<Outcome, u32>),
    Progress(Result<(), String>),
    Traffic(Traffic),
}

/// How a connection attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Outcome {
    /// At this server.
    Reached(SocketAddr),
    /// `ECONNREFUSED`.
    Refused,
    /// There is no way there: it was not translated, as virtual addresses exist nowhere in a sandbox.
    Unreachable,
    /// Otherwise.
    Failed(String),
}

impl From<Outcome> for String {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Reached(address) => address.to_string(),
            Outcome::Refused => "refused".to_owned(),
            Outcome::Unreachable => "unreachable".to_owned(),
            Outcome::Failed(error) => format!("failed: {error}"),
        }
    }
}

impl From<String> for Outcome {
    fn from(text: String) -> Self {
        match text.as_str() {
            "refused" => Self::Refused,
            "unreachable" => Self::Unreachable,
            _ => match text.parse() {
                Ok(address) => Self::Reached(address),
                Err(_) => Self::Failed(text.trim_start_matches("failed: ").to_owned()),
            },
        }
    }
}

/// A worker, as the test sees it. It is killed on drop.
#[derive(Debug)]
pub struct Worker {
    // Before the process, so that the worker sees the end of its input first.
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    _process: Process,
}

impl Worker {
    /// Starts one in the sandbox's cgroup.
    ///
    /// # Panics
    /// If it cannot be started; these are the test's own means.
    pub fn start(sandbox: &Sandbox) -> Self {
        Self::spawn(sandbox.command_in_cgroup(worker_binary()))
    }

    /// Starts one outside: nothing that it connects to is balanced.
    pub fn start_outside() -> Self {
        Self::spawn(Command::new(worker_binary()))
    }

    /// Starts one by a command that becomes the program in its last arguments.
    ///
    /// # Panics
    /// Likewise.
    pub fn start_by(mut command: Command) -> Self {
        command.arg(worker_binary());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let child = command.env(WORKER, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = Process(child.expect("the `demo` binary can be started"));
        let requests = process.0.stdin.take().expect("it is piped");
        let answers = BufReader::new(process.0.stdout.take().expect("it is piped"));
        Self { requests, answers, _process: process }
    }

    /// Opens checked connections: the addresses that they reached.
    pub fn open(&mut self, to: SocketAddr, greeting: Greeting, count: u32, seed: u64) -> Vec<SocketAddr> {
        match self.ask(&Request::Open { to, greeting, count, seed }) {
            Answer::Opened(Ok(reached)) => reached,
            Answer::Opened(Err(error)) => panic!("no connection to {to}: {error}"),
            other => panic!("a worker answers what it was asked, not {other:?}"),
        }
    }

    /// Connects again and again, one connection after the other, and counts how that ended.
    pub fn probe(&mut self, to: SocketAddr, count: u32) -> BTreeMap<Outcome, u32> {
        match self.ask(&Request::Probe { to, count }) {
            Answer::Probed(outcomes) => outcomes,
            other => panic!("a worker answers what it was asked, not {other:?}"),
        }
    }

    /// What has happened on the checked connections so far.
    pub fn traffic(&mut self) -> Traffic {
        match self.ask(&Request::Report) {
            Answer::Traffic(traffic) => traffic,
            other => panic!("a worker answers what it was asked, not {other:?}"),
        }
    }

    /// Waits until every checked connection has got further frames through: they are alive *now*.
    ///
    /// # Panics
    /// If one is reset, altered or stalled.
    pub fn expect_progress(&mut self) {
        match self.ask(&Request::Progress) {
            Answer::Progress(Ok(())) => {}
            Answer::Progress(Err(problem)) => panic!("live connections were harmed: {problem}"),
            other => panic!("a worker answers what it was asked, not {other:?}"),
        }
    }

    /// Ends the checked connections properly, and says what happened on them.
    pub fn finish(mut self) -> Traffic {
        match self.ask(&Request::Finish) {
            Answer::Traffic(traffic) => traffic,
            other => panic!("a worker answers what it was asked, not {other:?}"),
        }
    }

    fn ask(&mut self, request: &Request) -> Answer {
        let request = serde_json::to_string(request).expect("requests are plain data");
        writeln!(self.requests, "{request}").expect("the worker takes requests");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the worker answers in text");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("the worker answers `{answer}`: {error}"))
    }
}

/// Becomes a worker if this process was started as one. Call it first in `main`.
pub fn run_if_asked() {
    if env::var_os(WORKER).is_some() {
        match serve() {
            Ok(()) => std::process::exit(0),
            Err(error) => {
                eprintln!("worker: {error}");
                std::process::exit(1);
            }
        }
    }
}

fn serve() -> io::Result<()> {
    let mut connections: Vec<CheckedConnection> = Vec::new();
    for line in io::stdin().lines() {
        let answer = match serde_json::from_str(&line?)? {
            Request::Open { to, greeting, count, seed } => {
                let open = |number| CheckedConnection::open(to, greeting, seed.wrapping_add(number), PAUSE);
                let opened: io::Result<Vec<_>> = (0..u64::from(count)).map(open).collect();
                Answer::Opened(opened.map_err(|error| error.to_string()).map(|opened| {
                    let reached = opened.iter().map(CheckedConnection::peer).collect();
                    connections.extend(opened);
                    reached
                }))
            }
            Request::Probe { to, count } => {
                let mut outcomes = BTreeMap::new();
                for _ in 0..count {
                    *outcomes.entry(connect(to)).or_default() += 1;
                }
                Answer::Probed(outcomes)
            }
            Request::Progress => Answer::Progress(await_progress(&connections)),
            Request::Report => Answer::Traffic(Traffic::sum(connections.iter().map(CheckedConnection::traffic))),
            Request::Finish => Answer::Traffic(Traffic::sum(connections.drain(..).map(CheckedConnection::finish))),
        };
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &answer)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

/// Waits until each connection has got two more frames through: at least one of them was sent after the question.
fn await_progress(connections: &[CheckedConnection]) -> Result<(), String> {
    let deadline = Instant::now() + PROGRESS_TIMEOUT;
    for connection in connections {
        let before = connection.traffic();
        loop {
            let now = connection.traffic();
            if !now.is_intact() {
                return Err(format!("{now:?}"));
            }
            if now.frames >= before.frames + 2 {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("the connection to {} stands still at frame {}", connection.peer(), now.frames));
            }
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// One connection through the hooks, and who was at its end.
fn connect(to: SocketAddr) -> Outcome {
    let reached = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT).and_then(|mut stream| {
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        read_identity(&mut stream)
    });
    match reached {
        Ok(address) => Outcome::Reached(address),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Outcome::Refused,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => Outcome::Unreachable,
            _ => Outcome::Failed(error.to_string()),
        },
    }
}

/// The `demo` binary of the same build as this process.
fn worker_binary() -> PathBuf {
    let own = env::current_exe().expect("a process knows its binary");
    if own.file_stem().is_some_and(|stem| stem == "demo") {
        return own;
    }
    let directory = own.parent().expect("a binary is in a directory");
    let target = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    target.join("demo")
}
