//! Commands that look into the past: each asks the agent, or answers itself from a stopped agent's directory.

mod diff;
mod history;
mod why;

use std::path::Path;

use api::Stored;
use api::journal::Position;
use api::replay::{Question, StateQuery};
use api::server::Read;
use journal::Reader;
use replay::{Cause, FieldChange, Past};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub(super) use diff::run as diff;
pub(super) use history::run as history;
pub(super) use why::run as why;

use super::block_on;
use super::journal::source::Place;
use crate::cli::{Common, Whose};
use crate::exit::{Exit, Failure};
use crate::past_view;
use crate::when::{When, format_wall_ns};

/// The answer to a question.
fn explain<A: DeserializeOwned>(common: &Common, whose: &Whose, question: Question) -> Result<A, Failure> {
    let document = match &whose.state_dir {
        None => block_on(async { Ok(place(common, whose).agent().await?.explain(&question).await?) })?,
        Some(state_dir) => past_view::answer(&past(state_dir)?, question)?,
    };
    serde_json::from_slice(&document).map_err(|error| {
        Failure::new(Exit::Failure, format!("the answer cannot be read: {error} (is the agent of another version?)"))
    })
}

/// Resources as they were.
pub(super) fn state(common: &Common, whose: &Whose, query: &StateQuery) -> Result<Read<Vec<Stored>>, Failure> {
    match &whose.state_dir {
        None => block_on(async { Ok(place(common, whose).agent().await?.state(query).await?) }),
        Some(state_dir) => Ok(past_view::state(&past(state_dir)?, query)?),
    }
}

/// The past of a stopped agent. What is before a damage is used; that there is one is told.
fn past(state_dir: &Path) -> Result<Past, Failure> {
    let (reader, damage) = Reader::open_undamaged(state_dir)?;
    if let Some(damage) = damage {
        eprintln!("holdfast: {damage}");
        eprintln!("holdfast: what follows is from the records up to {}", reader.durable_lsn());
    }
    Ok(Past::of(reader))
}

fn place<'a>(common: &'a Common, whose: &'a Whose) -> Place<'a> {
    Place { common, state_dir: whose.state_dir.as_deref() }
}

fn position(when: Option<When>) -> Option<Position> {
    when.map(|When(position)| position)
}

/// `LSN 812, 2026-11-22T14:03:22.123Z, istiod version 7 (uid=0 gid=0 pid=4711)`.
fn told(cause: &Cause) -> String {
    let mut parts = vec![format!("LSN {}", cause.lsn)];
    parts.extend(cause.wall_ns.map(format_wall_ns));
    parts.extend(cause.source.as_ref().map(|source| match cause.version {
        Some(version) => format!("{source} version {version}"),
        None => source.clone(),
    }));
    if cause.source.is_none() {
        parts.push("whose record is not kept".to_owned());
    }
    match &cause.client {
        Some(client) => format!("{} ({client})", parts.join(", ")),
        None => parts.join(", "),
    }
}

/// A line for each field.
fn field_lines(fields: &[FieldChange], indent: &str) -> String {
    let line = |change: &FieldChange| match (&change.before, &change.after) {
        (Some(before), Some(after)) => format!("{indent}{}: {} → {}\n", change.field, plain(before), plain(after)),
        (None, Some(after)) => format!("{indent}+ {}: {}\n", change.field, plain(after)),
        (Some(before), None) => format!("{indent}- {}: {}\n", change.field, plain(before)),
        (None, None) => String::new(),
    };
    fields.iter().map(line).collect()
}

/// A value as people write it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => format!("[{}]", values.iter().map(plain).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
