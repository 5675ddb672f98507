//! What a journal holds, and what its writer has done since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use storage_schema::id::{Lsn, StoreId};

use crate::checkpoint::Checkpoint;
use crate::segment::write::Group;

/// What a journal holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    /// Which journal it is.
    pub store_id: StoreId,
    /// The oldest record; `durable_lsn + 1` when there is none.
    pub oldest_lsn: Lsn,
    /// The last record.
    pub durable_lsn: Lsn,
    /// Segment files.
    pub segments: usize,
    /// Bytes of frames and headers in them, preallocated zeros aside.
    pub bytes: u64,
    /// The checkpoints, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// What the writer has done; `None` if the journal is only read.
    pub writing: Option<WriteStats>,
}

impl Stats {
    /// How many records there are.
    pub fn records(&self) -> u64 {
        (self.durable_lsn.0 + 1).saturating_sub(self.oldest_lsn.0)
    }

    /// Bytes of log for each record; `None` without records.
    pub fn bytes_per_record(&self) -> Option<u64> {
        self.bytes.checked_div(self.records())
    }
}

/// What the writer has done since the journal was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteStats {
    /// Groups: each was one write and one fdatasync.
    pub groups: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// How long the fdatasyncs took.
    pub sync: Histogram,
}

/// Durations, counted by powers of two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// How many took less than 2^i microseconds and not less than half of that; the last one has no upper end.
    pub buckets: [u64; Self::BUCKETS],
}

impl Histogram {
    /// The last bucket begins at about four seconds.
    pub const BUCKETS: usize = 24;

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The end of a bucket; `None` for the last one, which has none.
    pub fn end_of(bucket: usize) -> Option<Duration> {
        (bucket + 1 < Self::BUCKETS).then(|| Duration::from_micros(1 << bucket))
    }

    /// The end of the bucket in which the given share of the durations is reached; `None` if there is none, or no end.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count"
        )]
        let wanted = ((count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        let reached = self.buckets.iter().position(|in_bucket| {
            seen += in_bucket;
            seen >= wanted
        });
        Self::end_of(reached?)
    }
}

fn bucket_of(duration: Duration) -> usize {
    let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let bits = u64::BITS - us.leading_zeros();
    usize::try_from(bits).map_or(Histogram::BUCKETS - 1, |bits| bits.min(Histogram::BUCKETS - 1))
}

/// [`WriteStats`] while they are counted.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    groups: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    sync: [AtomicU64; Histogram::BUCKETS],
}

impl Activity {
    pub(crate) fn note(&self, group: &Group, sync: Duration) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(group.records as u64, Ordering::Relaxed);
        self.bytes.fetch_add(group.frames.len() as u64, Ordering::Relaxed);
        self.sync[bucket_of(sync)].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> WriteStats {
        WriteStats {
            groups: self.groups.load(Ordering::Relaxed),
            records: self.records.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            sync: Histogram { buckets: std::array::from_fn(|bucket| self.sync[bucket].load(Ordering::Relaxed)) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_between_the_ends_of_their_buckets() {
        for us in [0, 1, 2, 3, 4, 1023, 1024, 1025, 4_000_000, u64::MAX] {
            let bucket = bucket_of(Duration::from_micros(us));
            assert!(Histogram::end_of(bucket).is_none_or(|end| Duration::from_micros(us) < end), "{us}");
            let before = bucket.checked_sub(1).and_then(Histogram::end_of);
            assert!(before.is_none_or(|start| start <= Duration::from_micros(us)), "{us}");
        }
    }

    #[test]
    fn quantiles_are_ends_of_buckets() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.buckets[bucket_of(Duration::from_micros(700))] = 99;
        histogram.buckets[bucket_of(Duration::from_millis(5))] = 1;
        assert_eq!(histogram.quantile(0.5), Some(Duration::from_micros(1024)));
        assert_eq!(histogram.quantile(0.99), Some(Duration::from_micros(1024)));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_micros(8192)));
    }
}
