//! The API's figures over the unix socket, as ratios to the journal's own in the same run, round by round in turn.
//!
//! `cargo run --release -p bench-api -- [push] [watch] [--clients N] [--streams N] [--seconds S] [--rounds R] [--dir DIR]`
//!
//! * `push`: transactions and deltas a second, and the time to durable and to applied, of 1 and 64 clients with a push stream each.
//!   The floor is the journal in this process with as many pushers, the same transactions, and as many of them under way.
//! * `watch`: the memory that the agent takes for a watch of the state that has nothing to tell.
//!
//! The agent is this program, started again: the same code as `holdfast agent`, in a process of its own, with tables in memory.
//! Journals go to `--dir`: the disk that matters.

mod figures;
mod node;
mod push;
mod sample;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    parts: Vec<String>,
    /// How many push at once, one number after the other.
    pub(crate) clients: Vec<u64>,
    /// Watches that are open at once.
    pub(crate) streams: u64,
    /// How long one round takes.
    pub(crate) round: Duration,
    pub(crate) rounds: usize,
    /// Where the journals go.
    pub(crate) dir: PathBuf,
}

fn main() -> ExitCode {
    if std::env::var_os(node::CHILD).is_some() {
        return agent::main();
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("bench-api: {message}");
            return ExitCode::from(2);
        }
    };
    let asked = |part: &str| options.parts.is_empty() || options.parts.iter().any(|given| given == part);
    if asked("push") {
        push::run(&options);
    }
    if asked("watch") {
        watch::run(&options);
    }
    ExitCode::SUCCESS
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        parts: Vec::new(),
        clients: vec![1, 64],
        streams: watch::STREAMS_MAX,
        round: Duration::from_secs(3),
        rounds: 3,
        dir: std::env::temp_dir(),
    };
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "push" | "watch" => options.parts.push(argument),
            "--clients" => options.clients = vec![number(&value()?)?],
            "--streams" => options.streams = number(&value()?)?,
            "--seconds" => options.round = Duration::from_secs(number(&value()?)?),
            "--rounds" => options.rounds = usize::try_from(number(&value()?)?).map_err(|error| error.to_string())?,
            "--dir" => options.dir = PathBuf::from(value()?),
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    if options.rounds == 0 || options.clients.contains(&0) || options.round.is_zero() {
        return Err("there must be a client, a second and a round".to_owned());
    }
    if options.clients.iter().any(|clients| *clients > sample::CLIENTS_MAX) {
        return Err(format!("at most {} clients", sample::CLIENTS_MAX));
    }
    if !(1..=watch::STREAMS_MAX).contains(&options.streams) {
        return Err(format!("1 to {} streams: each watch has a thread of the agent", watch::STREAMS_MAX));
    }
    Ok(options)
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("`{text}` is no number"))
}
