//! Brings the store after the journal, on a thread of its own and without hurry.
//!
//! The first thing that it does is to fold what a store that was opened is behind: appends go on meanwhile, and only who reads
//! the store waits. From then on, records that are durable are folded in batches: when enough have gathered, when some time has
//! passed, or at once when somebody waits to read what they have written. While nobody does, the work goes through the
//! [gate](crate::gate). A store that fails while it runs is opened again, and rebuilt if it has to be; the journal goes on.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use storage_schema::id::Lsn;
use tokio::sync::watch;

use crate::error::ReadError;
use crate::read::Library;
use crate::shelf::Shelf;

/// How far the store is.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) lsn: Lsn,
    /// Bytes of records that it has taken in since the journal was opened.
    pub(crate) bytes: u64,
    /// Why it does not come any further, if it does not.
    pub(crate) stuck: Option<Arc<ReadError>>,
}

/// Nobody waiting, the store may be this far behind.
const LAG_RECORDS: u64 = 16_384;
const LAG: Duration = Duration::from_millis(500);
/// How often what sled buffers is handed to the operating system.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The follower's mailbox.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    state: Mutex<BellState>,
    rung: Condvar,
}

#[derive(Debug, Default)]
struct BellState {
    durable_lsn: Lsn,
    /// Somebody waits for the store to reach this.
    wanted_lsn: Lsn,
    closing: bool,
}

impl Bell {
    /// More records are durable.
    pub(crate) fn durable(&self, lsn: Lsn, stored_lsn: Lsn) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.durable_lsn = lsn;
        // Waking the follower for every group would cost the writer more than the follower gains.
        let due = state.wanted_lsn > stored_lsn || lsn.0.saturating_sub(stored_lsn.0) >= LAG_RECORDS;
        drop(state);
        if due {
            self.rung.notify_one();
        }
    }

    /// Somebody waits.
    pub(crate) fn want(&self, lsn: Lsn) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.wanted_lsn = state.wanted_lsn.max(lsn);
        drop(state);
        self.rung.notify_one();
    }

    pub(crate) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closing = true;
        self.rung.notify_one();
    }

    /// Waits until there is a reason to fold; returns whether the journal is being closed.
    fn wait(&self, stored_lsn: Lsn) -> bool {
        let deadline = Instant::now() + LAG;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let waited_for = state.wanted_lsn > stored_lsn && state.durable_lsn > stored_lsn;
            let far_behind = state.durable_lsn.0.saturating_sub(stored_lsn.0) >= LAG_RECORDS;
            if state.closing || waited_for || far_behind {
                return state.closing;
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            state = self.rung.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn pause(&self, time: Duration) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.rung.wait_timeout_while(state, time, |state| !state.closing);
        wait.unwrap_or_else(PoisonError::into_inner).0.closing
    }
}

/// The thread's work.
pub(crate) struct Follower {
    pub(crate) library: Library,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) bell: Arc<Bell>,
    pub(crate) stored: watch::Sender<Stored>,
}

impl Follower {
    /// Folds until the journal is closed, and then what is left. Calls `begun` when readers cannot see the store as it was opened.
    pub(crate) fn run(self, begun: impl FnOnce()) {
        let mut flushed = Instant::now();
        let mut unflushed = false;
        let progress = |lsn, folded| {
            let bytes = self.stored.borrow().bytes + folded;
            self.stored.send_replace(Stored { lsn, bytes, stuck: None });
        };
        let mut opened = Some(begun);
        loop {
            let stored_lsn = self.stored.borrow().lsn;
            let (caught_up, closing) = match opened.take() {
                Some(begun) => (self.shelf.bring_up(&self.library, begun, progress), false),
                None => {
                    let closing = self.bell.wait(stored_lsn);
                    (self.shelf.catch_up(&self.library, progress), closing)
                }
            };
            match caught_up {
                Ok(folded) => unflushed |= folded > 0,
                Err(error) => {
                    tracing::error!(%error, stored_lsn = stored_lsn.0, "the store cannot follow the journal; trying again");
                    let cause = Arc::new(error);
                    self.stored.send_modify(|stored| stored.stuck = Some(cause));
                    if closing || self.bell.pause(RETRY_INTERVAL) {
                        return;
                    }
                    self.recover();
                    continue;
                }
            }
            if unflushed && (closing || flushed.elapsed() >= FLUSH_INTERVAL) {
                if let Err(error) = self.shelf.flush() {
                    tracing::warn!(%error, "the store's buffers cannot be written");
                }
                flushed = Instant::now();
                unflushed = false;
            }
            if closing {
                return;
            }
        }
    }

    fn recover(&self) {
        let Stored { lsn: shown_lsn, bytes, .. } = self.stored.borrow().clone();
        match self.shelf.reopen(&self.library, shown_lsn) {
            Ok((lsn, folded)) => drop(self.stored.send_replace(Stored { lsn, bytes: bytes + folded, stuck: None })),
            Err(error) => tracing::warn!(%error, "the store cannot be opened again yet"),
        }
    }
}
