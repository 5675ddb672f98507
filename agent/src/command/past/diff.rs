//! `holdfast diff`: what differs between two moments.

use std::fmt::Write as _;

use api::replay::Question;
use replay::Diff;

use super::{explain, field_lines, position, told};
use crate::cli::{Common, DiffArgs, Output};
use crate::exit::Failure;
use crate::output;

pub(in crate::command) fn run(common: &Common, args: &DiffArgs) -> Result<(), Failure> {
    let question = Question::Diff {
        from: position(Some(args.from)),
        to: position(args.to),
        kind: args.kind,
        name: args.name.clone(),
        maps: args.maps,
    };
    let diff: Diff = explain(common, &args.whose, question)?;
    output::print(&match args.output {
        Output::Table => text(&diff),
        Output::Json => output::json(&diff),
        Output::Yaml => output::yaml(&diff),
    })
}

fn text(diff: &Diff) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").expect("a string takes everything");
    line(format!("from LSN {} to LSN {}", diff.from_lsn, diff.to_lsn));
    if diff.resources.is_empty() && diff.entries.as_ref().is_none_or(Vec::is_empty) {
        line("nothing differs".to_owned());
    }
    for resource in &diff.resources {
        let cause = resource.cause.as_ref().map(|cause| format!("   {}", told(cause))).unwrap_or_default();
        line(format!("\n{} {} {}{cause}", resource.kind, resource.name, resource.change.as_str()));
        line(field_lines(&resource.fields, "    ").trim_end().to_owned());
    }
    for entry in diff.entries.iter().flatten() {
        line(format!("\n{} {} {}", entry.table, entry.entry, entry.change.as_str()));
        line(field_lines(&entry.fields, "    ").trim_end().to_owned());
    }
    text
}
