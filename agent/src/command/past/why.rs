//! `holdfast why`: where a connection goes, step by step.

use std::fmt::Write as _;
use std::time::Duration;

use api::replay::Question;
use comfy_table::Cell;
use replay::{Cause, Choice, HistoryStep, Outcome, Why};

use super::{explain, field_lines, position, told};
use crate::cli::{Common, Output, WhyArgs};
use crate::exit::Failure;
use crate::output;

pub(in crate::command) fn run(common: &Common, args: &WhyArgs) -> Result<(), Failure> {
    let question = Question::Why {
        to: args.to,
        protocol: args.protocol.number(),
        from: args.from,
        at: position(args.at),
        epoch: args.epoch,
        entropy: args.entropy,
    };
    let why: Why = explain(common, &args.whose, question)?;
    output::print(&match args.output {
        Output::Table => text(&why),
        Output::Json => output::json(&why),
        Output::Yaml => output::yaml(&why),
    })
}

fn text(why: &Why) -> String {
    let outcome = match why.outcome {
        Outcome::Forwarded => "goes to a backend",
        Outcome::Refused => "is refused",
        Outcome::Passed => "goes where the client dials",
    };
    let mut text = format!("a connection to {}/{} at LSN {} {outcome}\n\n", why.to, why.protocol, why.lsn);
    for step in &why.steps {
        let cause = step.cause.as_ref().map(|cause| format!("\n{:14}{}", "", because(cause))).unwrap_or_default();
        writeln!(text, "{:<14}{}{cause}", step.step, step.says).expect("a string takes everything");
    }
    if !why.candidates.is_empty() {
        let rows = why.candidates.iter().map(|candidate| {
            let locality = if candidate.locality.is_empty() { "-" } else { &candidate.locality };
            [
                Cell::new(&candidate.workload),
                Cell::new(&candidate.address),
                Cell::new(format!("{:.2} %", candidate.share * 100.0)),
                Cell::new(&candidate.status),
                Cell::new(candidate.weight),
                Cell::new(locality),
                Cell::new(told(&candidate.cause)),
            ]
        });
        text += "\n";
        text += &output::table(["CANDIDATE", "ADDRESS", "SHARE", "STATUS", "WEIGHT", "LOCALITY", "BECAUSE OF"], rows);
    }
    if !why.excluded.is_empty() {
        let rows = why.excluded.iter().map(|excluded| {
            [Cell::new(&excluded.workload), Cell::new(&excluded.reason), Cell::new(told(&excluded.cause))]
        });
        text += "\n";
        text += &output::table(["EXCLUDED", "REASON", "BECAUSE OF"], rows);
    }
    text += &why.choice.as_ref().map(choice).unwrap_or_default();
    if !why.unseen.is_empty() {
        text += "\ndurable by then, and not yet visible to this connection:\n";
        for unseen in &why.unseen {
            for part in ["  ", unseen.kind.as_str(), " ", &unseen.name, " ", &step(&unseen.step)] {
                text += part;
            }
        }
    }
    text
}

fn choice(choice: &Choice) -> String {
    let Choice { entropy, workload, address, later } = choice;
    let mut text = match workload {
        Some(workload) => format!("\nrandom word {entropy} chooses {workload} at {address}\n"),
        None => format!("\nrandom word {entropy} chooses no backend: {address}\n"),
    };
    if !later.is_empty() {
        text += "what became of it afterwards:\n";
        for later in later {
            text += "  ";
            text += &step(later);
        }
    }
    text
}

fn step(step: &HistoryStep) -> String {
    format!("{}: {}\n{}", step.change.as_str(), because(&step.cause), field_lines(&step.fields, "      "))
}

/// A cause, and how long the news lay in the queue before it was written.
fn because(cause: &Cause) -> String {
    let waited = cause.received_wall_ns.zip(cause.wall_ns).and_then(|(from, to)| to.checked_sub(from));
    match waited {
        Some(waited_ns) => {
            let waited = Duration::from_micros(waited_ns / 1000);
            format!("{}, after {} in the queue", told(cause), humantime::format_duration(waited))
        }
        None => told(cause),
    }
}
