//! The journal's figures, as ratios to a floor that is measured in the same run, round by round in turn.
//!
//! `cargo run --release -p bench-journal -- [appends] [replay] [open] [state] [retention] [--pushers N] [--records N] [--seconds S] [--rounds R] [--dir DIR]`
//!
//! The floor is what any design must do: a plain file that grows, the same records framed by a length, the same queue and
//! grouping, one write and one fdatasync for each group. Run it on the disk that matters (`--dir`), not on tmpfs.

mod appends;
mod floor;
mod opening;
mod past;
mod replay;
mod sample;

use std::path::PathBuf;
use std::time::Duration;

/// What was asked for.
#[derive(Debug)]
pub(crate) struct Options {
    parts: Vec<String>,
    /// Records for `replay` and `state`, and the largest journal for `open`.
    pub(crate) records: u64,
    /// How long one round of appends takes.
    pub(crate) round: Duration,
    pub(crate) rounds: usize,
    /// How many push at once, in `appends`, one number after the other.
    pub(crate) pushers: Vec<u64>,
    /// Where the files go.
    pub(crate) dir: PathBuf,
}

fn main() {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("bench-journal: {message}");
            std::process::exit(2);
        }
    };
    // A child, with a process's memory to itself.
    if let Some(dir) = std::env::var_os(opening::CHILD) {
        return opening::child(dir.as_ref());
    }
    let asked = |part: &str| options.parts.is_empty() || options.parts.iter().any(|given| given == part);
    if asked("appends") {
        appends::run(&options);
    }
    if asked("replay") {
        replay::run(&options);
    }
    if asked("open") {
        opening::run(&options);
    }
    if asked("state") {
        past::state(&options);
    }
    if asked("retention") {
        past::retention(&options);
    }
}

fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        parts: Vec::new(),
        records: 1_000_000,
        round: Duration::from_secs(3),
        rounds: 3,
        pushers: vec![1, 8, 64],
        dir: std::env::temp_dir(),
    };
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "appends" | "open" | "replay" | "retention" | "state" => options.parts.push(argument),
            "--pushers" => options.pushers = vec![number(&value()?)?],
            "--records" => options.records = number(&value()?)?,
            "--seconds" => options.round = Duration::from_secs(number(&value()?)?),
            "--rounds" => options.rounds = usize::try_from(number(&value()?)?).map_err(|error| error.to_string())?,
            "--dir" => options.dir = PathBuf::from(value()?),
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    Ok(options)
}

fn number(text: &str) -> Result<u64, String> {
    text.replace('_', "").parse().map_err(|_| format!("`{text}` is no number"))
}
