//! Makes checkpoints and lets the past go, on a thread of its own, while appends and reads go on.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use storage_schema::id::Lsn;
use tokio::sync::watch;

use crate::checkpoint::Checkpoint;
use crate::clock::Clock;
use crate::error::ReadError;
use crate::follow::Stored;
use crate::gate::Gate;
use crate::index;
use crate::read::Library;
use crate::retention::{CheckpointPolicy, ClosedSegment, Retention, plan, unwanted};
use crate::segment::catalogue::Segment;
use crate::shelf::Shelf;

/// How often it looks: at rest, and while records come.
const INTERVAL: Duration = Duration::from_millis(500);
const BUSY_INTERVAL: Duration = Duration::from_millis(100);

/// What a compaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// Segments that were unlinked.
    pub segments_removed: usize,
    /// Checkpoints that were unlinked.
    pub checkpoints_removed: usize,
    /// Bytes that came back.
    pub bytes_freed: u64,
    /// The oldest record that is there now.
    pub oldest_lsn: Lsn,
}

/// Keeps the journal's past in order.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) library: Library,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) segments_dir: PathBuf,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) policy: CheckpointPolicy,
    pub(crate) retention: Retention,
    pub(crate) segment_bytes: u64,
    pub(crate) stored: watch::Receiver<Stored>,
    /// One checkpoint or compaction at a time.
    pub(crate) busy: Mutex<()>,
    pub(crate) closing: (Mutex<bool>, Condvar),
}

impl Keeper {
    /// Works until the journal is closed.
    pub(crate) fn run(&self) {
        let mut seen_lsn = Lsn::ZERO;
        loop {
            let stored_lsn = self.stored.borrow().lsn;
            let interval = if stored_lsn == seen_lsn { INTERVAL } else { BUSY_INTERVAL };
            seen_lsn = stored_lsn;
            let (closing, rung) = &self.closing;
            let guard = closing.lock().unwrap_or_else(PoisonError::into_inner);
            let wait = rung.wait_timeout_while(guard, interval, |closing| !*closing);
            if *wait.unwrap_or_else(PoisonError::into_inner).0 {
                return;
            }
            if let Err(error) = index::make_missing(&self.library, &|| self.gate.pass()) {
                tracing::debug!(%error, "an index cannot be made");
            }
            match self.due() {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot tell whether a checkpoint is due");
                    continue;
                }
            }
            let kept = self.checkpoint().and_then(|_| self.compact(&self.retention));
            if let Err(error) = kept {
                tracing::warn!(%error, "a checkpoint or compaction failed; trying again");
            }
        }
    }

    pub(crate) fn close(&self) {
        *self.closing.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.closing.1.notify_all();
    }

    /// Keeps checkpoints and compactions waiting while it is held.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a checkpoint of what the store shows.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, ReadError> {
        let _busy = self.hold();
        self.shelf.checkpoint()
    }

    /// Lets go what `retention` does not want kept.
    pub(crate) fn compact(&self, retention: &Retention) -> Result<Compacted, ReadError> {
        let _busy = self.hold();
        let segments = self.library.catalogue.all();
        let closed = closed_segments(&segments);
        // The one that is written to is as long as it will be, and so may its successor be already.
        let open_bytes = 2 * self.segment_bytes;
        let durable_lsn = self.library.durable_lsn();
        let unwanted = unwanted(retention, &closed, open_bytes, durable_lsn, self.clock.now().wall_ns);
        let checkpoints = self.shelf.checkpoints()?;
        let lsns: Vec<Lsn> = checkpoints.iter().map(|checkpoint| checkpoint.lsn).collect();
        let plan = plan(&closed, &lsns, unwanted);
        let mut done = Compacted::default();
        // Readers stop finding a segment before its file goes. The oldest file goes first: what a crash leaves has no gap.
        for segment in self.library.catalogue.remove_before(plan.segments_before) {
            fail::fail_point!("journal.retention.unlink.before");
            let removed = self.library.disk.remove(&segment.path);
            removed.map_err(|source| ReadError::Io { action: "unlink", path: segment.path.clone(), source })?;
            index::remove(&segment);
            done.segments_removed += 1;
            done.bytes_freed += segment.end();
        }
        for checkpoint in checkpoints.iter().filter(|checkpoint| checkpoint.lsn < plan.checkpoints_before) {
            let removed = fs::remove_file(&checkpoint.path);
            removed.map_err(|source| ReadError::Io { action: "unlink", path: checkpoint.path.clone(), source })?;
            done.checkpoints_removed += 1;
            done.bytes_freed += checkpoint.bytes;
        }
        if done.segments_removed > 0 {
            let synced = self.library.disk.sync_dir(&self.segments_dir);
            synced.map_err(|source| ReadError::Io { action: "fsync", path: self.segments_dir.clone(), source })?;
        }
        done.oldest_lsn = self.library.catalogue.oldest_lsn();
        Ok(done)
    }

    /// Whether so much has come since the last checkpoint that another one is worth its bytes.
    fn due(&self) -> Result<bool, ReadError> {
        let last = self.shelf.checkpoints()?.pop();
        let (last_lsn, last_bytes) = last.map_or((Lsn::ZERO, 0), |last| (last.lsn, last.bytes));
        let stored_lsn = self.stored.borrow().lsn;
        let records = stored_lsn.0.saturating_sub(last_lsn.0);
        let bytes = self.log_bytes_after(last_lsn);
        let asked = records >= self.policy.records || bytes >= self.policy.bytes;
        // Checkpoints never take more room than the log between them.
        Ok(records > 0 && asked && bytes >= last_bytes)
    }

    fn log_bytes_after(&self, lsn: Lsn) -> u64 {
        let segments = self.library.catalogue.all();
        let later = segments.iter().filter(|segment| segment.first_lsn > lsn).map(|segment| segment.end()).sum::<u64>();
        let within = self.library.catalogue.holding(lsn.next()).map_or(0, |segment| {
            if segment.first_lsn > lsn { 0 } else { segment.end().saturating_sub(segment.place_before(lsn).1) }
        });
        later + within
    }
}

/// All but the last one, with what the plan needs.
pub(crate) fn closed_segments(segments: &[Arc<Segment>]) -> Vec<ClosedSegment> {
    let pairs = segments.windows(2);
    let closed = pairs.map(|pair| ClosedSegment {
        first_lsn: pair[0].first_lsn,
        last_lsn: Lsn(pair[1].first_lsn.0 - 1),
        bytes: pair[0].end(),
        closed_wall_ns: pair[1].created_wall_ns,
    });
    closed.collect()
}
