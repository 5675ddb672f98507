//! `holdfast journal checkpoint`, `compact` and `stats`: what is kept.

use std::fmt::Write as _;
use std::time::Duration;

use api::proto;
use comfy_table::Cell;
use serde_json::{Value, json};

use super::source::Place;
use crate::cli::{CompactArgs, Output, PrintArgs};
use crate::command::block_on;
use crate::exit::Failure;
use crate::journal_view;
use crate::output;

pub(super) fn checkpoint(place: &Place<'_>, args: &PrintArgs) -> Result<(), Failure> {
    let made = match place.state_dir {
        None => block_on(async { Ok(place.agent().await?.create_checkpoint().await?) })?,
        Some(_) => journal_view::checkpoint(&place.open()?.checkpoint()?),
    };
    print(args.output, &checkpoint_value(&made), || {
        format!("a checkpoint of the state at record {}, {} bytes\n", made.lsn, made.bytes)
    })
}

pub(super) fn compact(place: &Place<'_>, args: &CompactArgs) -> Result<(), Failure> {
    let CompactArgs { keep_records, keep_bytes, keep_age, output } = args.clone();
    let keep_age = keep_age.and_then(|age| age.try_into().ok());
    let request = proto::CompactJournalRequest { keep_records, keep_bytes, keep_age };
    let done = match place.state_dir {
        None => block_on(async { Ok(place.agent().await?.compact_journal(request).await?) })?,
        Some(_) => {
            let retention = journal_view::retention(&request, place.config()?.journal().retention)?;
            journal_view::compacted(&place.open()?.compact(&retention)?)
        }
    };
    let value = json!({
        "segmentsRemoved": done.segments_removed,
        "checkpointsRemoved": done.checkpoints_removed,
        "bytesFreed": done.bytes_freed,
        "oldestLsn": done.oldest_lsn,
    });
    print(output, &value, || {
        format!(
            "{} segments and {} checkpoints removed, {} bytes freed; the oldest record is {}\n",
            done.segments_removed, done.checkpoints_removed, done.bytes_freed, done.oldest_lsn
        )
    })
}

pub(super) fn stats(place: &Place<'_>, args: &PrintArgs) -> Result<(), Failure> {
    let stats = place.stats()?;
    print(args.output, &stats_value(&stats), || stats_text(&stats))
}

fn print(output: Output, value: &Value, text: impl FnOnce() -> String) -> Result<(), Failure> {
    output::print(&match output {
        Output::Table => text(),
        Output::Json => output::json(value),
        Output::Yaml => output::yaml(value),
    })
}

fn records(stats: &proto::GetJournalStatsResponse) -> u64 {
    (stats.durable_lsn + 1).saturating_sub(stats.oldest_lsn)
}

fn stats_text(stats: &proto::GetJournalStatsResponse) -> String {
    let records = records(stats);
    let mut text = String::new();
    let mut line = |name: &str, value: String| writeln!(text, "{name:<18}{value}").expect("a string takes everything");
    line("records", format!("{records}, LSN {} to {}", stats.oldest_lsn, stats.durable_lsn));
    line("bytes", format!("{} in {} segments", stats.bytes, stats.segments));
    line(
        "bytes per record",
        stats.bytes.checked_div(records).map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()),
    );
    line(
        "checkpoints",
        match stats.checkpoints.as_slice() {
            [] => "none".to_owned(),
            all @ [.., last] => format!("{}, the last one at LSN {}, {} bytes", all.len(), last.lsn, last.bytes),
        },
    );
    if stats.groups == 0 {
        return text;
    }
    line(
        "groups",
        format!(
            "{} since the agent started, {:.1} records and {} bytes each",
            stats.groups,
            ratio(stats.group_records, stats.groups),
            stats.group_bytes / stats.groups
        ),
    );
    let last = stats.syncs.iter().rposition(|bucket| bucket.count > 0).map_or(0, |last| last + 1);
    let first = stats.syncs.iter().position(|bucket| bucket.count > 0).unwrap_or_default();
    let most = stats.syncs.iter().map(|bucket| bucket.count).max().unwrap_or_default().max(1);
    let rows = stats.syncs[first..last].iter().map(|bucket| {
        const WIDTH: u64 = 40;
        let bar = "█".repeat(usize::try_from((bucket.count * WIDTH).div_ceil(most)).unwrap_or_default());
        let end =
            end_of(bucket).map_or_else(|| "longer".to_owned(), |end| format!("< {}", humantime::format_duration(end)));
        [Cell::new(end), Cell::new(bucket.count), Cell::new(bar)]
    });
    text + "\n" + &output::table(["FDATASYNC", "COUNT", ""], rows)
}

#[expect(clippy::cast_precision_loss, reason = "a mean that is printed with one digit")]
fn ratio(count: u64, of: u64) -> f64 {
    count as f64 / of as f64
}

fn end_of(bucket: &proto::DurationBucket) -> Option<Duration> {
    Duration::try_from(bucket.end?).ok()
}

fn checkpoint_value(checkpoint: &proto::Checkpoint) -> Value {
    json!({ "lsn": checkpoint.lsn, "bytes": checkpoint.bytes })
}

fn stats_value(stats: &proto::GetJournalStatsResponse) -> Value {
    let sync = |bucket: &proto::DurationBucket| json!({ "belowUs": end_of(bucket).map(|end| end.as_micros()), "count": bucket.count });
    let records = records(stats);
    json!({
        "records": records,
        "oldestLsn": stats.oldest_lsn,
        "durableLsn": stats.durable_lsn,
        "segments": stats.segments,
        "bytes": stats.bytes,
        "bytesPerRecord": stats.bytes.checked_div(records),
        "checkpoints": stats.checkpoints.iter().map(checkpoint_value).collect::<Vec<_>>(),
        "groups": stats.groups,
        "groupRecords": stats.group_records,
        "groupBytes": stats.group_bytes,
        "syncs": stats.syncs.iter().map(sync).collect::<Vec<_>>(),
    })
}
