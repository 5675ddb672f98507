//! The writer thread: takes groups from the intake, makes them durable, tells everybody. The only one who writes records.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use storage_schema::id::Lsn;
use tokio::sync::watch;

use crate::append::Intake;
use crate::disk::Disk;
use crate::durable::{Durable, Head};
use crate::follow::{Bell, Stored};
use crate::gate::Gate;
use crate::segment::write::{Group, Prepared, SegmentWriter, prepare_segment};
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

/// Keeps the next segment's file ready, on a thread of its own: zero-filling one takes much longer than a group.
pub(crate) struct Preparer {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    /// Whether the segment after the current one was wished for.
    wished: bool,
    ready: Arc<Mutex<Option<Prepared>>>,
    wish: Option<SyncSender<Lsn>>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// A preparer of segments of `segment_bytes` in `dir`.
    pub(crate) fn start(disk: Arc<dyn Disk>, dir: PathBuf, segment_bytes: u64) -> std::io::Result<Self> {
        let ready = Arc::new(Mutex::new(None));
        let (wish, wishes) = mpsc::sync_channel(1);
        let place = Arc::clone(&ready);
        let preparing_disk = Arc::clone(&disk);
        let thread = thread::Builder::new()
            .name("journal-prepare".to_owned())
            .spawn(move || prepare_on_demand(&*preparing_disk, &dir, segment_bytes, &place, &wishes))?;
        Ok(Self { disk, segment_bytes, wished: false, ready, wish: Some(wish), thread: Some(thread) })
    }

    /// Wishes for the next segment once the current one is half full.
    fn written(&mut self, group: &Group) {
        self.wished &= group.opens.is_none();
        let end = group.offset + group.frames.len() as u64;
        if !self.wished && end > self.segment_bytes / 2 {
            self.wished = self.wish.as_ref().is_some_and(|wish| wish.try_send(group.last_lsn).is_ok());
        }
    }

    /// The file that is ready, if a segment of this length is needed.
    fn take(&self, bytes: u64) -> Option<Prepared> {
        (bytes == self.segment_bytes)
            .then(|| self.ready.lock().unwrap_or_else(PoisonError::into_inner).take())
            .flatten()
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.wish = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(prepared) = self.take(self.segment_bytes) {
            prepared.discard(&*self.disk);
        }
    }
}

fn prepare_on_demand(
    disk: &dyn Disk,
    dir: &std::path::Path,
    segment_bytes: u64,
    ready: &Mutex<Option<Prepared>>,
    wishes: &Receiver<Lsn>,
) {
    while let Ok(hint) = wishes.recv() {
        if ready.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            continue;
        }
        match prepare_segment(disk, dir, hint, segment_bytes) {
            Ok(prepared) => *ready.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared),
            // The writer tries itself when it needs the segment, and that error counts.
            Err(error) => tracing::warn!(%error, "cannot prepare the next segment"),
        }
    }
}
