//! `holdfast history`: every change of one resource.

use api::replay::Question;
use replay::History;
use storage_schema::resource::ResourceKey;

use super::{explain, field_lines, position, told};
use crate::cli::{Common, HistoryArgs, Output};
use crate::exit::{Exit, Failure};
use crate::output;

pub(in crate::command) fn run(common: &Common, args: &HistoryArgs) -> Result<(), Failure> {
    let key = ResourceKey::new(args.kind, &*args.name);
    let question = Question::History {
        key: key.clone(),
        since: position(args.since),
        until: position(args.until),
        last: args.last,
    };
    let history: History = explain(common, &args.whose, question)?;
    if history.steps.is_empty() {
        let History { from_lsn, to_lsn, .. } = history;
        return Err(Failure::new(Exit::NotFound, format!("no record from LSN {from_lsn} to {to_lsn} mentions {key}")));
    }
    output::print(&match args.output {
        Output::Table => text(&history),
        Output::Json => output::json(&history),
        Output::Yaml => output::yaml(&history),
    })
}

fn text(history: &History) -> String {
    let step = |step: &replay::HistoryStep| {
        format!("{}: {}\n{}", told(&step.cause), step.change.as_str(), field_lines(&step.fields, "    "))
    };
    history.steps.iter().map(step).collect()
}
