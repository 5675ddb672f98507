//! `holdfast journal log` and `show`: records for eyes, and for programs.

use std::fmt::Write as _;
use std::ops::ControlFlow;

use api::journal::{Position, RecordsQuery};
use journal::EncodedRecord;
use storage_schema::record::{Delta, Event, Record, Transaction};

use super::source::{Place, query};
use crate::cli::{LogArgs, Output, ShowArgs};
use crate::exit::{Exit, Failure};
use crate::output::{self, few};
use crate::when::format_wall_ns;

pub(super) fn log(place: &Place<'_>, args: &LogArgs) -> Result<(), Failure> {
    let query = RecordsQuery { last: args.last, follow: args.follow, ..query(&args.which) };
    let mut heading = (args.output == Output::Table).then(|| row("LSN", "TIME", "SOURCE", "VERSION", "CHANGES"));
    place.for_each(&query, |record| {
        let text = match args.output {
            Output::Table => heading.take().unwrap_or_default() + &summary(&decoded(&record)?),
            Output::Json => json_line(&record)?,
            Output::Yaml => format!("---\n{}", output::yaml(&value(&record)?)),
        };
        Ok(if output::print_some(&text)? { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })
}

pub(super) fn show(place: &Place<'_>, args: &ShowArgs) -> Result<(), Failure> {
    let at = Some(Position::Lsn(args.lsn));
    let mut shown = None;
    place.for_each(&RecordsQuery { from: at, to: at, ..RecordsQuery::default() }, |record| {
        shown = Some(record);
        Ok(ControlFlow::Break(()))
    })?;
    let Some(record) = shown else {
        let last = place.stats()?.durable_lsn;
        return Err(Failure::new(
            Exit::NotFound,
            format!("record {} is not there: the last durable one is {last}", args.lsn),
        ));
    };
    output::print(&match args.output {
        Output::Table => whole(&record)?,
        Output::Json => output::json(&value(&record)?),
        Output::Yaml => output::yaml(&value(&record)?),
    })
}

pub(in crate::command) fn decoded(record: &EncodedRecord) -> Result<Record, Failure> {
    record.decode().map_err(|error| Failure::new(Exit::Damaged, format!("record {}: {error}", record.lsn)))
}

pub(in crate::command) fn json_line(record: &EncodedRecord) -> Result<String, Failure> {
    let mut line = Vec::new();
    journal::write_line(record, &mut line)?;
    Ok(String::from_utf8(line).expect("JSON is UTF-8"))
}

fn value(record: &EncodedRecord) -> Result<serde_json::Value, Failure> {
    Ok(serde_json::from_str(&json_line(record)?).expect("a line is JSON"))
}

pub(in crate::command) fn row(lsn: &str, time: &str, source: &str, version: &str, changes: &str) -> String {
    format!("{lsn:>9}  {time:<24}  {source:<16}  {version:>9}  {changes}\n")
}

pub(in crate::command) fn summary(record: &Record) -> String {
    let origin = &record.transaction.origin;
    let version = origin.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
    let time = format_wall_ns(record.wall_ns);
    let Transaction { deltas, event, .. } = &record.transaction;
    let changes = event.as_ref().map_or_else(|| few(deltas.iter().map(change)), Event::to_string);
    row(&record.lsn.to_string(), &time, &origin.source, &version, &changes)
}

/// `+Service shop/cart` or `-Workload x`.
fn change(delta: &Delta) -> String {
    let sign = match delta {
        Delta::Upsert(_) => '+',
        Delta::Remove(_) => '-',
    };
    format!("{sign}{}", delta.key())
}

fn whole(record: &EncodedRecord) -> Result<String, Failure> {
    let hash = record.hash();
    let Record { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns, client } =
        decoded(record)?;
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<15}{value}").expect("a string takes everything");
    line("LSN", lsn.to_string());
    line("time", format_wall_ns(wall_ns));
    line("received", received_wall_ns.map_or_else(|| "-".to_owned(), format_wall_ns));
    line("client", client.unwrap_or_else(|| "-".to_owned()));
    line("since boot", humantime::format_duration(std::time::Duration::from_nanos(monotonic_ns)).to_string());
    line("boot", boot_id.to_string());
    line("source", format!("{}, incarnation {}", transaction.origin.source, transaction.origin.incarnation));
    line("version", transaction.origin.version.map_or_else(|| "-".to_owned(), |version| version.to_string()));
    line("cause", transaction.cause.to_string());
    if transaction.take_over {
        line("take over", "yes: it took resources of another source over".to_owned());
    }
    line("hash", hash.to_string());
    line("previous hash", previous_hash.to_string());
    line("bytes", record.encoded.len().to_string());
    if let Some(event) = &transaction.event {
        writeln!(text, "\n# {event}\n{}", output::yaml(event).trim_end()).expect("a string takes everything");
    }
    for delta in &transaction.deltas {
        match delta {
            Delta::Upsert(resource) => {
                writeln!(text, "\n# {}\n{}", change(delta), output::yaml(resource).trim_end()).expect("as above");
            }
            Delta::Remove(_) => writeln!(text, "\n# {}", change(delta)).expect("as above"),
        }
    }
    Ok(text)
}
