//! What the API and the command line show of a journal: the same, whether an agent runs it or a directory is read.

use std::time::Duration;

use api::journal::{JournalError, Position, RecordsQuery};
use api::proto;
use journal::{
    Checkpoint, Compacted, Filter, Histogram, ReadError, Reader, Retention, Selection, Stats, VerifyProgress,
    VerifyReport,
};
use storage_schema::id::Lsn;

/// The records that a query chooses among those that are durable, and the record behind them.
pub(crate) fn select(reader: &Reader, query: &RecordsQuery) -> Result<(Selection, Lsn), ReadError> {
    let oldest_lsn = reader.oldest_lsn();
    let first = match query.from {
        None => oldest_lsn,
        Some(Position::Lsn(lsn)) => lsn,
        Some(Position::Time(wall_ns)) => reader.lsn_at(wall_ns.saturating_sub(1))?.next().max(oldest_lsn),
    };
    let last = match query.to {
        None => reader.durable_lsn(),
        Some(Position::Lsn(lsn)) => lsn.min(reader.durable_lsn()),
        Some(Position::Time(wall_ns)) => reader.lsn_at(wall_ns)?,
    };
    let selection = reader.select(first, last, filter(query))?;
    let selection = match query.last {
        Some(count) => selection.last(usize::try_from(count).unwrap_or(usize::MAX))?,
        None => selection,
    };
    Ok((selection, last.next().max(first)))
}

/// The part of a query that is not about places.
pub(crate) fn filter(query: &RecordsQuery) -> Filter {
    Filter { source: query.source.clone(), kind: query.kind, name: query.name.clone() }
}

/// What the API says when the journal cannot be read.
#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
pub(crate) fn refused(error: ReadError) -> JournalError {
    let message = error.to_string();
    match error {
        ReadError::Compacted { wanted, oldest_lsn } => JournalError::Compacted { wanted_lsn: wanted, oldest_lsn },
        ReadError::NotThere { .. } | ReadError::NoState { .. } => JournalError::OutOfRange(message),
        ReadError::Damaged { .. } | ReadError::Undecodable { .. } => JournalError::Damaged(message),
        _ => JournalError::Failed(message),
    }
}

pub(crate) fn stats(stats: Stats) -> proto::GetJournalStatsResponse {
    let Stats { store_id, oldest_lsn, durable_lsn, segments, bytes, checkpoints, writing } = stats;
    let writing = writing.unwrap_or_default();
    let bucket = |(bucket, count): (usize, &u64)| proto::DurationBucket {
        end: Histogram::end_of(bucket).and_then(|end| end.try_into().ok()),
        count: *count,
    };
    proto::GetJournalStatsResponse {
        store_id: store_id.0.to_vec(),
        oldest_lsn: oldest_lsn.0,
        durable_lsn: durable_lsn.0,
        segments: segments as u64,
        bytes,
        checkpoints: checkpoints.iter().map(checkpoint).collect(),
        groups: writing.groups,
        group_records: writing.records,
        group_bytes: writing.bytes,
        syncs: writing.sync.buckets.iter().enumerate().map(bucket).collect(),
    }
}

pub(crate) fn checkpoint(checkpoint: &Checkpoint) -> proto::Checkpoint {
    proto::Checkpoint { lsn: checkpoint.lsn.0, bytes: checkpoint.bytes }
}

pub(crate) fn compacted(done: &Compacted) -> proto::CompactJournalResponse {
    proto::CompactJournalResponse {
        segments_removed: done.segments_removed as u64,
        checkpoints_removed: done.checkpoints_removed as u64,
        bytes_freed: done.bytes_freed,
        oldest_lsn: done.oldest_lsn.0,
    }
}

pub(crate) fn progress(progress: VerifyProgress) -> proto::VerifyProgress {
    let VerifyProgress { bytes, bytes_total, lsn } = progress;
    proto::VerifyProgress { bytes, bytes_total, lsn: lsn.0 }
}

pub(crate) fn report(report: &VerifyReport) -> proto::VerifyReport {
    let damage = |wrong: &journal::Wrong| proto::Damage {
        path: wrong.path.display().to_string(),
        offset: wrong.offset,
        description: wrong.damage.to_string(),
    };
    proto::VerifyReport {
        oldest_lsn: report.oldest_lsn.0,
        trusted_lsn: report.trusted_lsn.0,
        records: report.records,
        bytes: report.bytes,
        damages: report.wrong.iter().map(damage).collect(),
    }
}

/// What a request wants kept; what it does not mention at all, as `settings` say.
pub(crate) fn retention(
    request: &proto::CompactJournalRequest,
    settings: Retention,
) -> Result<Retention, JournalError> {
    let age = match request.keep_age {
        None => None,
        Some(age) => {
            Some(Duration::try_from(age).map_err(|_| JournalError::Invalid("keep_age: is negative".to_owned()))?)
        }
    };
    let asked = Retention { records: request.keep_records, bytes: request.keep_bytes, age };
    Ok(if asked == Retention::default() { settings } else { asked })
}
