//! What the owner of a journal may choose, with defaults that need no thought.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::disk::{Disk, RealDisk};
use crate::error::OpenError;
use crate::retention::{CheckpointPolicy, Retention};
use crate::segment::SEGMENT_BYTES_MIN;

/// No record may be larger: 256 MiB less some room, so that the store can keep a resource of that size.
const RECORD_BYTES_LIMIT: u64 = (256 << 20) - 4096;

/// Whoever waits longer than this for an ack has other troubles.
const GROUP_WAIT_MAX: Duration = Duration::from_secs(1);

/// How a journal is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state directory. It is created with mode 0700 if it is missing.
    pub state_dir: PathBuf,
    /// Size of a segment file, preallocated and zero-filled. A record that is larger gets a segment of its own.
    pub segment_bytes: u64,
    /// The largest encoded record that is accepted.
    pub record_bytes_max: u64,
    /// How many appends may wait for the writer; the next one waits in [`crate::Journal::reserve`].
    pub queue_records_max: usize,
    /// How many bytes of appends may wait. A permit that is already out may exceed it by its one record.
    pub queue_bytes_max: u64,
    /// How many bytes of records the store may be behind the log; the next append waits for it in [`crate::Journal::reserve`].
    /// It bounds what the next start has to fold, and how much retention lags. From half of it on folding goes first.
    pub store_lag_bytes_max: u64,
    /// The largest group that goes to the disk in one write and one fdatasync.
    pub group_bytes_max: usize,
    /// How long the writer, when it is free, lets a group gather before it takes it to the disk. 0: not at all; records gather
    /// while it is at the disk with the group before, which makes deep groups under load and costs no ack any time.
    pub group_wait: Duration,
    /// How much memory sled's page cache may take.
    pub store_cache_bytes: u64,
    /// How many receipts are kept for each source, so that an old push that comes again is recognised.
    pub receipts_per_source: usize,
    /// When checkpoints are made.
    pub checkpoint: CheckpointPolicy,
    /// How much of the past is kept.
    pub retention: Retention,
    /// The disk under the segment files.
    pub disk: Arc<dyn Disk>,
    /// The clock that stamps records.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// The defaults for a journal in `state_dir`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            segment_bytes: 64 << 20,
            record_bytes_max: 64 << 20,
            queue_records_max: 4096,
            queue_bytes_max: 32 << 20,
            store_lag_bytes_max: 24 << 20,
            group_bytes_max: 4 << 20,
            group_wait: Duration::ZERO,
            store_cache_bytes: 24 << 20,
            receipts_per_source: 4096,
            checkpoint: CheckpointPolicy { records: 100_000, bytes: 32 << 20 },
            retention: Retention { bytes: Some(4 << 30), ..Retention::default() },
            disk: Arc::new(RealDisk),
            clock: Arc::new(SystemClock),
        }
    }

    /// Refuses what cannot work, naming the field.
    pub(crate) fn validate(&self) -> Result<(), OpenError> {
        let refuse = |field, reason: String| Err(OpenError::BadConfig { field, reason });
        if self.segment_bytes < SEGMENT_BYTES_MIN || !self.segment_bytes.is_multiple_of(4096) {
            return refuse(
                "segment_bytes",
                format!("{} is not a multiple of 4096 of at least {SEGMENT_BYTES_MIN}", self.segment_bytes),
            );
        }
        if self.record_bytes_max == 0 || self.record_bytes_max > RECORD_BYTES_LIMIT {
            return refuse(
                "record_bytes_max",
                format!("{} is not within 1 and {RECORD_BYTES_LIMIT}", self.record_bytes_max),
            );
        }
        if self.queue_records_max == 0 || self.queue_records_max > 1 << 20 {
            return refuse("queue_records_max", format!("{} is not within 1 and 1048576", self.queue_records_max));
        }
        if self.queue_bytes_max == 0 {
            return refuse("queue_bytes_max", "0 lets nothing through".to_owned());
        }
        if self.store_lag_bytes_max == 0 {
            return refuse("store_lag_bytes_max", "0 lets nothing through".to_owned());
        }
        if self.group_bytes_max == 0 {
            return refuse("group_bytes_max", "0 lets nothing through".to_owned());
        }
        if self.group_wait > GROUP_WAIT_MAX {
            return refuse("group_wait", format!("{:?} is more than {GROUP_WAIT_MAX:?}", self.group_wait));
        }
        if self.checkpoint.records == 0 || self.checkpoint.bytes == 0 {
            return refuse("checkpoint", "0 would make checkpoints all the time".to_owned());
        }
        if self.receipts_per_source == 0 {
            return refuse("receipts_per_source", "0 would recognise no push that comes again".to_owned());
        }
        Ok(())
    }
}
