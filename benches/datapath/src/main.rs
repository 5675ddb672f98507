//! The kernel programs' figures.
//!
//! `cargo run --release -p bench-datapath -- [programs] [decision] [connects] [--services N] [--calls N] [--rounds R]`
//!
//! * `programs`: instructions that the verifier went through, and the size of each program, on the running kernel.
//! * `decision`: nanoseconds in `connect4`, by the kernel's own run-time statistics, by policy and by number of services.
//! * `connects`: TCP connections a second and the time of each through a virtual address, against dialling the same listener from
//!   outside the cgroup, where no program runs, in the same run.
//!
//! Needs root, cgroup v2 and a BPF file system; everything happens in namespaces and a cgroup of the bench's own.

mod connects;
mod decision;
mod mesh;
mod programs;

use loader::ProgramFigures;
use recovery_tests::bare::Bare;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    parts: Vec<String>,
    /// The largest number of services.
    pub(crate) services: u32,
    /// Connections in a round.
    pub(crate) calls: u32,
    pub(crate) rounds: usize,
}

fn main() {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("bench-datapath: {message}");
            std::process::exit(2);
        }
    };
    let asked = |part: &str| options.parts.is_empty() || options.parts.iter().any(|given| given == part);
    let bare = Bare::with(mesh::capacities(options.services));
    if asked("programs") {
        programs::run(&bare);
    }
    if asked("decision") {
        decision::run(&options, &bare);
    }
    if asked("connects") {
        connects::run(&options, &bare);
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { parts: Vec::new(), services: 60_000, calls: 20_000, rounds: 5 };
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "programs" | "decision" | "connects" => options.parts.push(argument),
            "--services" => options.services = number(&value()?)?,
            "--calls" => options.calls = number(&value()?)?,
            "--rounds" => options.rounds = number(&value()?)?.try_into().expect("a count"),
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    if options.services < mesh::SMALL || options.services > mesh::SERVICES_MAX {
        return Err(format!("there can be {} to {} services", mesh::SMALL, mesh::SERVICES_MAX));
    }
    if options.calls == 0 || options.rounds == 0 {
        return Err("there must be a connection and a round".to_owned());
    }
    Ok(options)
}

fn number(text: &str) -> Result<u32, String> {
    text.replace('_', "").parse().map_err(|_| format!("`{text}` is no number"))
}

/// The number of the generation that connections run, and its programs' figures.
pub(crate) fn figures(bare: &Bare) -> (u64, Vec<ProgramFigures>) {
    let generations = bare.datapath().complete_generations().expect("pins can be read");
    let newest = generations.first().expect("one is attached");
    (newest.number(), newest.figures().expect("the kernel tells"))
}

/// A count for printing.
#[allow(clippy::cast_precision_loss, reason = "for printing")]
pub(crate) fn count(number: u64) -> f64 {
    number as f64
}

/// The middle one.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
