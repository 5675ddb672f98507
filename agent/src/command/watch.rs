//! `holdfast watch`: what happens, as it happens.

use std::fmt::Write as _;

use api::Stored;
use api::watch::{RecordsStep, RecordsWatch, StateStep, StateWatch};
use journal::{EncodedRecord, ReadError};
use serde_json::{Value, json};
use storage_schema::resource::ResourceKey;
use tokio_stream::StreamExt as _;

use super::journal::log;
use super::{block_on, connect};
use crate::cli::{Common, WatchArgs, WatchCommand, WatchFormat, WatchRecordsArgs, WatchStateArgs};
use crate::exit::Failure;
use crate::output;

pub(super) fn run(common: &Common, args: &WatchArgs) -> Result<(), Failure> {
    match &args.command {
        WatchCommand::Records(args) => records(common, args),
        WatchCommand::State(args) => state(common, args),
    }
}

fn records(common: &Common, args: &WatchRecordsArgs) -> Result<(), Failure> {
    let WatchRecordsArgs { from, source, kind, name, output } = args.clone();
    let watch = RecordsWatch { from_lsn: from, source, kind, name };
    let mut heading = log::row("LSN", "TIME", "SOURCE", "VERSION", "CHANGES");
    block_on(async {
        let steps = connect(common).await?.watch_records(&watch).await?;
        tokio::pin!(steps);
        while let Some(step) = steps.next().await {
            let mut text = String::new();
            match (step?, output) {
                (RecordsStep::Records(records), _) => {
                    for record in records {
                        let undecodable = |source| ReadError::Undecodable { lsn: record.lsn, source };
                        let record = EncodedRecord::new(record.lsn, record.encoded).map_err(undecodable)?;
                        text += &match output {
                            WatchFormat::Text => log::summary(&log::decoded(&record)?),
                            WatchFormat::Json => log::json_line(&record)?,
                        };
                    }
                }
                (RecordsStep::Progress(lsn), WatchFormat::Json) => text = line(&json!({ "progressLsn": lsn })),
                // The first one says that the watch has begun.
                (RecordsStep::Progress(_), WatchFormat::Text) => {}
            }
            if output == WatchFormat::Text {
                text.insert_str(0, &std::mem::take(&mut heading));
            }
            if !output::print_some(&text)? {
                break;
            }
        }
        Ok(())
    })
}

fn state(common: &Common, args: &WatchStateArgs) -> Result<(), Failure> {
    let WatchStateArgs { kind, prefix, owner, after, output } = args.clone();
    let watch = StateWatch { kind, name_prefix: prefix.unwrap_or_default(), owner, after_lsn: after };
    block_on(async {
        let steps = connect(common).await?.watch_state(&watch).await?;
        tokio::pin!(steps);
        while let Some(step) = steps.next().await {
            let text = match output {
                WatchFormat::Text => state_text(&step?),
                WatchFormat::Json => line(&state_value(&step?)),
            };
            if !output::print_some(&text)? {
                break;
            }
        }
        Ok(())
    })
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// `=` for what there is, `+` for what is so from then on, `-` for what is gone.
fn state_text(step: &StateStep) -> String {
    let mut text = String::new();
    let resource = |sign: char, stored: &Stored| {
        let Stored { resource, changed_lsn, owner } = stored;
        let owner = if owner.is_empty() { "-" } else { owner };
        format!("{:>9}  {owner:<16}  {sign}{}\n", changed_lsn.0, resource.key())
    };
    match step {
        StateStep::Initial(resources) => text.extend(resources.iter().map(|stored| resource('=', stored))),
        StateStep::Complete(lsn) => text = format!("{:>9}  that was the state\n", lsn.0),
        StateStep::Changes(changes) => {
            text.extend(changes.changed.iter().map(|stored| resource('+', stored)));
            for key in &changes.removed {
                writeln!(text, "{:>9}  {:<16}  -{key}", changes.lsn.0, "").expect("a string takes everything");
            }
        }
        StateStep::Progress(_) => {}
    }
    text
}

fn state_value(step: &StateStep) -> Value {
    let stored = |stored: &Stored| json!({ "resource": stored.resource, "changedLsn": stored.changed_lsn, "owner": stored.owner });
    let key = |key: &ResourceKey| json!({ "kind": key.kind.as_str(), "name": key.name });
    match step {
        StateStep::Initial(resources) => json!({ "initial": resources.iter().map(stored).collect::<Vec<_>>() }),
        StateStep::Complete(lsn) => json!({ "completeLsn": lsn }),
        StateStep::Changes(changes) => json!({
            "lsn": changes.lsn,
            "changed": changes.changed.iter().map(stored).collect::<Vec<_>>(),
            "removed": changes.removed.iter().map(key).collect::<Vec<_>>(),
        }),
        StateStep::Progress(lsn) => json!({ "progressLsn": lsn }),
    }
}
