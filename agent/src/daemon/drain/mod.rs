//! Deals with connections whose backend is gone, as their services say: when, and what is told of it.
//!
//! ```text
//!  flip that may have taken a backend, start, time that is over, something to try again
//!        │
//!        ▼                                    sweep
//!  grace period ──▶ stamps of all sockets ──▶ which lead nowhere, since when ──▶ close, or send elsewhere
//!  (who read the     (loader::Sockets)         (applier::drain, from the           │
//!   state before                                journal)                           ▼
//!   has stamped)                                                          record in the journal, metrics
//! ```
//!
//! A sweep begins with nothing: what has been done shows in the sockets that are there, and what is to be done in the journal.
//! So it does not matter whether the agent was there when a backend went. A socket that is stamped may be about to connect, and
//! is shown by no listing just then; therefore a sweep that a flip has asked for is made [again](AGAIN) a moment later.
//!
//! It runs on a thread of its own, and nobody waits for it. What the kernel refuses is told once, counted, and tried again.
//!
//! Invariant: a record of what was done is written after it was. An agent that is killed in between has done it, and tells
//! nobody.

mod sweep;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use applier::{Pending, PushError};
use journal::AppendError;
use storage_schema::record::{Cause, Drained, Event, Origin, Transaction};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use self::sweep::{Sweeper, Swept};
use super::backend::Node;

/// Who says what was done, in the journal.
const SOURCE: &str = "holdfast";
/// Departures that follow close on one another are swept together.
const INTERVAL_MIN: Duration = Duration::from_millis(20);
/// How long after a sweep that a flip has asked for the next ones are, for sockets that were just being connected. Time enough
/// for a system call that is held up; a socket that takes longer is found by the sweep after the next departure.
const AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];
/// When what has failed is tried again: doubled each time, up to the maximum.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(5);
/// A clock that stands still while the machine sleeps is not relied on for longer.
const SLEEP_MAX: Duration = Duration::from_mins(1);

/// What has been done since the start.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Sockets that were closed.
    pub(super) closed: AtomicU64,
    /// Sockets that were given another backend.
    pub(super) reselected: AtomicU64,
    /// Sweeps, sockets and records that could not be done; they are tried again.
    pub(super) failures: AtomicU64,
    /// Sockets that the last sweep has found and whose time is not over.
    pub(super) waiting: AtomicU64,
}

/// The thread. Dropping it stops it.
pub(super) struct Drainer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drainer {
    /// Begins, with the sockets that there are. The stamps are pinned under `pin_root`.
    pub(super) fn start(node: Arc<Node>, pin_root: PathBuf) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let body = move || {
            let mut draining =
                Draining { sweeper: Sweeper::new(Arc::clone(&node), pin_root), node, untold: Vec::new() };
            runtime.block_on(async {
                tokio::select! {
                    // The sender is dropped to stop, or stops by being dropped: either way it is over.
                    _ = stopped => {}
                    () = draining.run() => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("drain".to_owned()).spawn(body)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own message.
            drop(thread.join());
        }
    }
}

struct Draining {
    node: Arc<Node>,
    sweeper: Sweeper,
    /// What was done and is not in the journal yet.
    untold: Vec<Drained>,
}

impl Draining {
    /// Returns when the applier has stopped.
    async fn run(&mut self) {
        if self.node.pipeline().loaded().await.is_err() {
            return;
        }
        let mut departures = self.node.pipeline().departures();
        let mut again = AGAIN.iter();
        let mut retry = Retry::default();
        loop {
            departures.borrow_and_update();
            let swept = self.sweeper.sweep(&mut self.untold);
            let told = self.tell().await;
            let due_in = retry.note(&swept, told, &self.node);
            sleep(INTERVAL_MIN).await;
            let wake_in = [again.next().copied(), due_in].into_iter().flatten().min();
            let wake_at = Instant::now() + wake_in.unwrap_or(SLEEP_MAX);
            tokio::select! {
                changed = departures.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    again = AGAIN.iter();
                }
                () = sleep_until(wake_at), if wake_in.is_some() => {}
            }
        }
    }

    /// Writes down what was done; what the journal does not take now is kept for the next time.
    async fn tell(&mut self) -> Result<(), Untellable> {
        let mut told = Ok(());
        let mut pending = Vec::new();
        for drained in std::mem::take(&mut self.untold) {
            match self.submit(&drained).await {
                Ok(submitted) => pending.push((drained, submitted)),
                Err(error) => {
                    told = Err(error.into());
                    self.untold.push(drained);
                }
            }
        }
        for (drained, submitted) in pending {
            if let Err(error) = submitted.durable().await {
                told = Err(error.into());
                self.untold.push(drained);
            }
        }
        told
    }

    async fn submit(&self, drained: &Drained) -> Result<Pending, PushError> {
        // Whoever has pushed under this name, and as which life of it: what happened here is written down.
        let incarnation = self.node.journal().source(SOURCE).map_or(0, |source| source.incarnation);
        let transaction = Transaction {
            origin: Origin { source: SOURCE.to_owned(), incarnation, version: None },
            deltas: Vec::new(),
            cause: Cause::Agent,
            take_over: false,
            event: Some(Event::Drained(drained.clone())),
        };
        self.node.pipeline().push(transaction, None).await
    }
}

/// Why the journal does not have what was done.
#[derive(Debug, thiserror::Error)]
enum Untellable {
    #[error(transparent)]
    Pushed(#[from] PushError),
    #[error(transparent)]
    Appended(#[from] AppendError),
}

/// What failed last, and when it is tried again.
#[derive(Debug, Default)]
struct Retry {
    delay: Option<Duration>,
    trouble: Option<String>,
}

impl Retry {
    /// Takes note of how it went; when to sweep next, if no departure comes before that.
    fn note(&mut self, swept: &Swept, told: Result<(), Untellable>, node: &Node) -> Option<Duration> {
        let untold = told.err().map(|error| format!("what was done is not in the journal yet: {error}"));
        let counts = node.drained();
        counts.failures.fetch_add(swept.failures + u64::from(untold.is_some()), Ordering::Relaxed);
        counts.waiting.store(swept.waiting, Ordering::Relaxed);
        let trouble = swept.trouble.clone().or(untold);
        // The same again is counted, not told; and nobody wants to hear of it where nothing is to be drained.
        if let Some(error) = trouble.as_ref().filter(|_| trouble != self.trouble && node.pipeline().drains_any()) {
            let failures = swept.failures;
            tracing::warn!(error, failures, "connections to removed backends cannot all be dealt with; trying again");
            self.trouble.clone_from(&trouble);
        }
        if trouble.is_none() {
            self.trouble = None;
        }
        self.delay = trouble.is_some().then(|| self.delay.map_or(RETRY_MIN, |delay| (delay * 2).min(RETRY_MAX)));
        let due_in = swept.due_in.map(|due_in| due_in.min(SLEEP_MAX));
        [due_in, self.delay].into_iter().flatten().min()
    }
}
