//! The writer thread: takes groups from the intake, makes them durable, tells everybody. The only one who writes records.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use storage_schema::id::Lsn;
use tokio::sync::watch;

use crate::append::Intake;
use crate::disk::Disk;
use crate::durable::{Durable, Head};
use crate::follow::{Bell, Stored};
use crate::gate::Gate;
use crate::segment::write::{Group, PIECE_BYTES, Prepared, SegmentWriter, prepare_segment_by_pieces};
use crate::stats::Activity;

/// The thread's work.
pub(crate) struct Writer {
    pub(crate) intake: Arc<Intake>,
    pub(crate) segments: SegmentWriter,
    pub(crate) durable: Arc<watch::Sender<Durable<Head>>>,
    pub(crate) stored: watch::Receiver<Stored>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) preparer: Preparer,
    pub(crate) activity: Arc<Activity>,
}

impl Writer {
    /// Writes until the intake ends.
    pub(crate) fn run(mut self) {
        while let Some(queued) = self.intake.next_group() {
            let group = &queued.group;
            let prepared = group.opens.as_ref().and_then(|new| self.preparer.take(new.bytes));
            let begun = Instant::now();
            self.gate.leave();
            let written = self.segments.write(group, prepared);
            self.gate.come_back(begun.elapsed());
            match written {
                Ok(sync) => self.activity.note(group, sync),
                Err(failure) => {
                    tracing::error!(%failure, "the journal accepts nothing any more");
                    self.intake.give_up(&queued, failure);
                    return;
                }
            }
            fail::fail_point!("journal.ack.before");
            // The head moves before the acks go out: who has an ack and asks for the head must find itself in it.
            self.durable.send_replace(Durable::vouch(Head { lsn: group.last_lsn, hash: group.last_hash }));
            self.intake.acknowledge(&queued);
            self.bell.durable(group.last_lsn, self.stored.borrow().lsn);
            self.preparer.written(group);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.gate.leave_open();
    }
}

/// Keeps the next segment's file ready, on a thread of its own: to fill one with zeros takes much longer than a group. It is
/// filled as the current segment is: in one go it would keep the disk busy for a good part of a second, and each ack waiting.
pub(crate) struct Preparer {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    /// How much of the next segment's file was asked for.
    asked: u64,
    demand: Arc<Demand>,
    thread: Option<JoinHandle<()>>,
}

/// What the preparer's thread is to do, and has done.
#[derive(Default)]
struct Demand {
    state: Mutex<DemandState>,
    changed: Condvar,
}

#[derive(Default)]
struct DemandState {
    /// The segment comes after this record.
    hint: Lsn,
    /// How many of its file's bytes are due.
    due: u64,
    ready: Option<Prepared>,
    /// It failed, and is not tried again for this segment.
    failed: bool,
    closing: bool,
}

impl Demand {
    fn state(&self) -> MutexGuard<'_, DemandState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut DemandState)) {
        change(&mut self.state());
        self.changed.notify_one();
    }

    /// Waits for work; `None` when there will be none.
    fn next(&self) -> Option<Lsn> {
        let idle =
            |state: &mut DemandState| !state.closing && (state.due == 0 || state.failed || state.ready.is_some());
        let state = self.changed.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
        (!state.closing).then_some(state.hint)
    }

    /// Waits until the bytes from `offset` on are due; whether they ever are.
    fn wait_due(&self, offset: u64) -> bool {
        let early = |state: &mut DemandState| !state.closing && state.due <= offset;
        let state = self.changed.wait_while(self.state(), early).unwrap_or_else(PoisonError::into_inner);
        !state.closing
    }
}

impl Preparer {
    /// A preparer of segments of `segment_bytes` in `dir`.
    pub(crate) fn start(disk: Arc<dyn Disk>, dir: PathBuf, segment_bytes: u64) -> std::io::Result<Self> {
        let demand = Arc::new(Demand::default());
        let thread = thread::Builder::new().name("journal-prepare".to_owned()).spawn({
            let (disk, demand) = (Arc::clone(&disk), Arc::clone(&demand));
            move || prepare_on_demand(&*disk, &dir, segment_bytes, &demand)
        })?;
        Ok(Self { disk, segment_bytes, asked: 0, demand, thread: Some(thread) })
    }

    /// Asks for a quarter more of the next segment than the current one holds.
    fn written(&mut self, group: &Group) {
        let end = group.offset + group.frames.len() as u64;
        let due = (end + end / 4).min(self.segment_bytes);
        if due / PIECE_BYTES as u64 > self.asked / PIECE_BYTES as u64 || due == self.segment_bytes && self.asked < due {
            self.asked = due;
            self.demand.change(|state| (state.hint, state.due) = (group.last_lsn, due));
        }
    }

    /// The file that is ready, if a segment of this length is needed. The one after it is begun with later.
    fn take(&mut self, bytes: u64) -> Option<Prepared> {
        self.asked = 0;
        let mut state = self.demand.state();
        (state.due, state.failed) = (0, false);
        state.ready.take_if(|_| bytes == self.segment_bytes)
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.demand.change(|state| state.closing = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(prepared) = self.take(self.segment_bytes) {
            prepared.discard(&*self.disk);
        }
    }
}

fn prepare_on_demand(disk: &dyn Disk, dir: &Path, segment_bytes: u64, demand: &Demand) {
    while let Some(hint) = demand.next() {
        let prepared = prepare_segment_by_pieces(disk, dir, hint, segment_bytes, |offset| demand.wait_due(offset));
        let mut state = demand.state();
        match prepared {
            Ok(prepared) => state.ready = Some(prepared),
            Err(error) => {
                state.failed = true;
                // The writer tries itself when it needs the segment, and that error counts.
                if !state.closing {
                    tracing::warn!(%error, "cannot prepare the next segment");
                }
            }
        }
    }
}
