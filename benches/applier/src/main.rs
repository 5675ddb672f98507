//! The applier's figures on the kernel's maps.
//!
//! `cargo run --release -p bench-applier -- [cells] [flip] [visible] [restart] [memory] [--services N] [--endpoints N] [--pushes N] [--rounds R] [--dir DIR]`
//!
//! * `cells`: entries installed a second, against one `bpf()` call for each of the same entries in the same run.
//! * `flip`: the store that makes a transaction visible, and the smallest transactions around it.
//! * `visible`: from push to visible, and the fdatasync's share of it.
//! * `restart`: from an open journal to attached programs, with the maps pinned and with nothing pinned, step by step.
//! * `memory`: what a service and an endpoint take, in the agent and in the kernel.
//!
//! An endpoint is a workload of its own that backs one service with one port. Needs root, cgroup v2 and a BPF file system;
//! everything happens in a mount namespace and a cgroup of the bench's own. Journals go to `--dir`: the disk that matters.

mod bpf;
mod cells;
mod figures;
mod flip;
mod memory;
mod place;
mod restart;
mod sample;
mod visible;

use std::path::PathBuf;

/// The agent's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    parts: Vec<String>,
    pub(crate) size: sample::Size,
    /// Pushes in one round of `visible`.
    pub(crate) pushes: u32,
    pub(crate) rounds: usize,
    /// Where the journals go.
    pub(crate) dir: PathBuf,
}

fn main() {
    // A child, with a process's memory to itself.
    if let Ok(order) = std::env::var(restart::CHILD) {
        return restart::child(&order);
    }
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("bench-applier: {message}");
            std::process::exit(2);
        }
    };
    let place = place::Place::enter().expect("root, cgroup v2 and a BPF file system");
    let asked = |part: &str| options.parts.is_empty() || options.parts.iter().any(|given| given == part);
    if asked("cells") {
        cells::run(&options, &place);
    }
    if asked("flip") {
        flip::run(&options, &place);
    }
    if asked("visible") {
        visible::run(&options, &place);
    }
    if asked("restart") {
        restart::run(&options, &place);
    }
    if asked("memory") {
        memory::run(&options, &place);
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        parts: Vec::new(),
        size: sample::Size { services: 100_000, endpoints: 1_000_000 },
        pushes: 2_000,
        rounds: 5,
        dir: std::env::temp_dir(),
    };
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "cells" | "flip" | "memory" | "restart" | "visible" => options.parts.push(argument),
            "--services" => options.size.services = number(&value()?)?,
            "--endpoints" => options.size.endpoints = number(&value()?)?,
            "--pushes" => options.pushes = number(&value()?)?,
            "--rounds" => options.rounds = number(&value()?)?.try_into().expect("a count"),
            "--dir" => options.dir = PathBuf::from(value()?),
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    if options.size.services == 0 || options.pushes == 0 || options.rounds == 0 {
        return Err("there must be a service, a push and a round".to_owned());
    }
    Ok(options)
}

fn number(text: &str) -> Result<u32, String> {
    text.replace('_', "").parse().map_err(|_| format!("`{text}` is no number"))
}
