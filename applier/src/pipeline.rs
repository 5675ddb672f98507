//! The way of a push: admitted, journaled, applied.
//!
//! One lock orders pushes: under it a transaction is checked against the model, gets its LSN from the journal, and its
//! table changes are queued under that LSN. One thread follows the journal's durable head and applies what is queued up
//! to it. Grace periods run on a thread of their own; while one must be waited for, further records join the batch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use journal::{
    Ack, AppendError, Durable, DurableWatch, Head, Journal, OriginError, OriginState, Receipt, ResumeError, Watermarks,
};
use storage_schema::id::{Epoch, Lsn};
use storage_schema::map::Capacities;
use storage_schema::record::Transaction;
use storage_schema::resource::Kind;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::apply::{Applier, ApplyError, Pressure};
use crate::entry::Changes;
use crate::model::{Model, Rejection};
use crate::recovery::Identity;
use crate::start::{self, StartError, StartReport, Started, Target};
use crate::tables::Tables;

/// How long to wait before a refused table call is tried again: doubled each time, up to the maximum.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(20);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);

/// A running applier, and the way in for pushes.
#[derive(Debug)]
pub struct Pipeline {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// A push that is on its way to the disk.
#[derive(Clone, Debug)]
pub struct Pending {
    ack: Ack,
    duplicate: bool,
}

impl Pending {
    /// Its LSN.
    pub fn lsn(&self) -> Lsn {
        self.ack.lsn()
    }

    /// Whether it was in the journal, or on its way there, before.
    pub const fn is_duplicate(&self) -> bool {
        self.duplicate
    }

    /// Waits until it is durable, or known not to be.
    pub async fn durable(&self) -> Result<Receipt, AppendError> {
        self.ack.wait().await
    }
}

/// Why a push was not taken. Nothing was journaled and nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It does not fit the state.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// Its source may not push it.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The journal does not take it.
    #[error(transparent)]
    Journal(#[from] AppendError),
}

/// The applier is gone: it was stopped, or it came upon a broken invariant and refused to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the applier has stopped")]
pub struct Stopped;

/// How the applier is.
#[derive(Clone, Debug)]
pub struct Status {
    /// How far the journal is.
    pub watermarks: Watermarks,
    /// The record whose state is visible: the active epoch.
    pub applied_lsn: Lsn,
    /// What the kernel or the disk refuses; it is tried again.
    pub trouble: Option<String>,
    /// Number of the pinned generation; `None` for tables in memory.
    pub generation: Option<u64>,
    /// How the start went.
    pub start: StartReport,
    /// Table entries written since the start, and by it.
    pub entries_written: u64,
    /// Flips since the start.
    pub flips: u64,
    /// Batches that had to wait for readers.
    pub grace_waits: u64,
    /// How much of the configured capacities is used, by what is journaled.
    pub pressure: [Pressure; 4],
    /// How many resources there are of each kind, journaled ones that are not applied yet included.
    pub resources: [(Kind, usize); 3],
}

#[derive(Debug)]
struct Shared {
    journal: Journal,
    capacities: Capacities,
    admission: Mutex<Admission>,
    progress: Mutex<Progress>,
}

/// What the lock that orders pushes protects.
#[derive(Debug)]
struct Admission {
    model: Model,
    /// Changes of submitted transactions that are not applied, in the order of their LSNs.
    queue: VecDeque<(Lsn, Changes)>,
    applied: watch::Receiver<Lsn>,
}

/// What the applier thread reports.
#[derive(Clone, Debug)]
struct Progress {
    trouble: Option<String>,
    generation: Option<u64>,
    start: StartReport,
    entries_written: u64,
    flips: u64,
    grace_waits: u64,
}

impl Pipeline {
    /// Makes the target show the journal's state and begins to follow it. Blocks until the former is done.
    pub fn start(journal: Journal, target: Target, capacities: Capacities) -> Result<Self, StartError> {
        let identity = Identity { store_id: journal.store_id(), programs_hash: loader::programs_hash() };
        let (model, wanted) = start::load_model(&journal, &capacities)?;
        match target {
            Target::Memory => {
                let started = start::start_memory(&identity, capacities, wanted)?;
                Self::run(journal, capacities, model, started, || Ok(()))
            }
            Target::Kernel(options) => {
                let (started, grace) = start::start_kernel(options, &identity, capacities, &journal, wanted)?;
                Self::run(journal, capacities, model, started, move || grace.wait().map_err(|error| error.to_string()))
            }
        }
    }

    /// Admits a transaction and submits it to the journal. Waits only while the journal's queue is full. `client` is who pushed
    /// it, as the transport knows it, for the record.
    pub async fn push(&self, transaction: Transaction, client: Option<String>) -> Result<Pending, PushError> {
        let permit = self.shared.journal.reserve().await?.client(client);
        let mut admission = self.shared.admission();
        if let OriginState::Duplicate(ack) = self.shared.journal.origin(&transaction.origin)? {
            return Ok(Pending { ack, duplicate: true });
        }
        let admitted = admission.model.admit(&transaction, &self.shared.capacities)?;
        match permit.submit(transaction) {
            Ok(submitted) => {
                admission.queue.push_back((submitted.lsn, admitted.changes));
                Ok(Pending { ack: submitted.ack, duplicate: false })
            }
            Err(error) => {
                admission.model.revert(admitted);
                Err(error.into())
            }
        }
    }

    /// Waits until a record's state is visible. It must be durable.
    pub async fn wait_applied(&self, lsn: Lsn) -> Result<(), Stopped> {
        let mut applied = self.shared.admission().applied.clone();
        applied.wait_for(|applied| *applied >= lsn).await.map(drop).map_err(|_| Stopped)
    }

    /// Returns when the applier has stopped.
    pub async fn stopped(&self) -> Stopped {
        let mut applied = self.shared.admission().applied.clone();
        while applied.changed().await.is_ok() {}
        Stopped
    }

    /// Tries to take pushes again after the disk has refused a write. What was submitted and never acknowledged is
    /// forgotten, here as in the journal. Blocks; does nothing where nothing has failed.
    pub fn resume(&self) -> Result<(), ResumeError> {
        let Shared { journal, .. } = &*self.shared;
        if journal.failure().is_none() {
            return Ok(());
        }
        let mut admission = self.shared.admission();
        let head = journal.resume()?;
        admission.model = start::read_model(journal)?;
        admission.queue.retain(|(lsn, _)| *lsn <= head.lsn);
        Ok(())
    }

    /// How the applier is.
    pub fn status(&self) -> Status {
        let (applied_lsn, resources, usage) = {
            let admission = self.shared.admission();
            let resources = Kind::ALL.map(|kind| (kind, admission.model.count(kind)));
            (*admission.applied.borrow(), resources, admission.model.usage())
        };
        let progress = self.shared.progress().clone();
        Status {
            watermarks: self.shared.journal.watermarks(),
            applied_lsn,
            trouble: progress.trouble.or_else(|| self.shared.journal.failure().map(|failure| failure.to_string())),
            generation: progress.generation,
            start: progress.start,
            entries_written: progress.entries_written,
            flips: progress.flips,
            grace_waits: progress.grace_waits,
            pressure: usage.pressure(&self.shared.capacities),
            resources,
        }
    }

    fn run<T: Tables + Send + 'static>(
        journal: Journal,
        capacities: Capacities,
        model: Model,
        started: Started<T>,
        wait_for_readers: impl Fn() -> Result<(), String> + Send + 'static,
    ) -> Result<Self, StartError> {
        let Started { applier, report, generation } = started;
        let (applied_sender, applied) = watch::channel(Lsn::from(applier.active()));
        let progress = Progress {
            trouble: None,
            generation,
            entries_written: report.entries_written,
            start: report,
            flips: 0,
            grace_waits: 0,
        };
        let durable = journal.durable();
        let shared = Arc::new(Shared {
            journal,
            capacities,
            admission: Mutex::new(Admission { model, queue: VecDeque::new(), applied }),
            progress: Mutex::new(progress),
        });
        let (grace, grace_thread) = GracePeriods::start(wait_for_readers)?;
        let follower = Follower {
            shared: Arc::clone(&shared),
            applier,
            applied: applied_sender,
            durable,
            grace,
            batch: None,
            retry_delay: RETRY_DELAY_MIN,
        };
        let (stop, stopped) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(StartError::Thread)?;
        let applier_thread = spawn("applier", move || runtime.block_on(follower.follow(stopped)))?;
        Ok(Self { shared, stop: Some(stop), threads: vec![applier_thread, grace_thread] })
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.stop.take();
        for thread in self.threads.drain(..) {
            // A panic there has been reported by its own message.
            drop(thread.join());
        }
    }
}

impl Shared {
    fn admission(&self) -> MutexGuard<'_, Admission> {
        // A panic while admitting may have left the model half-changed: nothing may be admitted after it.
        self.admission.lock().expect("no push has panicked")
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The changes of all records up to `lsn`, as one.
    fn take_changes(&self, lsn: Lsn) -> Changes {
        let mut admission = self.admission();
        let mut changes = Changes::default();
        while let Some((_, next)) = admission.queue.pop_front_if(|(queued, _)| *queued <= lsn) {
            changes.merge(next);
        }
        changes
    }
}

/// The applier thread.
struct Follower<T> {
    shared: Arc<Shared>,
    applier: Applier<T>,
    applied: watch::Sender<Lsn>,
    durable: DurableWatch,
    grace: GracePeriods,
    /// Changes that are to become visible, with the head that they lead to.
    batch: Option<(Changes, Durable<Head>)>,
    retry_delay: Duration,
}

/// What a batch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// There is none.
    Idle,
    /// Readers must pass its cells' epochs.
    Readers,
    /// The kernel refused a call; it is tried again at this time.
    Retry(Instant),
}

impl<T: Tables> Follower<T> {
    async fn follow(mut self, mut stop: oneshot::Receiver<()>) {
        let mut waiting = Waiting::Idle;
        loop {
            let seen = self.batch.as_ref().map_or(Lsn::from(self.applier.active()), |(_, head)| head.lsn);
            let retry_at = match waiting {
                Waiting::Retry(at) => Some(at),
                _ => None,
            };
            tokio::select! {
                // The sender is dropped to stop, or stops by being dropped: either way it is over.
                _ = &mut stop => break,
                head = self.durable.past(seen) => {
                    let Some(head) = head else { break };
                    self.take(head);
                    if waiting != Waiting::Idle {
                        continue;
                    }
                }
                quiesced = self.grace.finished() => self.readers_passed(quiesced),
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
            }
            waiting = self.apply();
        }
    }

    /// Adds the records up to `head` to the batch.
    fn take(&mut self, head: Durable<Head>) {
        let later = self.shared.take_changes(head.lsn);
        let (changes, batch_head) = self.batch.get_or_insert_with(|| (Changes::default(), head));
        changes.merge(later);
        *batch_head = head;
    }

    fn apply(&mut self) -> Waiting {
        let Some((changes, head)) = &self.batch else { return Waiting::Idle };
        match self.applier.apply(changes, *head) {
            Ok(applied) => {
                let mut progress = self.shared.progress();
                progress.entries_written += applied.entries;
                progress.flips += 1;
                progress.trouble = None;
                drop(progress);
                self.applied.send_replace(head.lsn);
                self.batch = None;
                self.retry_delay = RETRY_DELAY_MIN;
                // So that the cells are free again by the time somebody wants them.
                self.grace.request(self.applier.active());
                Waiting::Idle
            }
            Err(ApplyError::Blocked { .. }) => {
                self.shared.progress().grace_waits += 1;
                self.grace.request(self.applier.active());
                Waiting::Readers
            }
            Err(error) => {
                tracing::error!(lsn = %head.lsn, %error, retry_in = ?self.retry_delay, "a record is not applied");
                self.shared.progress().trouble = Some(error.to_string());
                let delay = self.retry_delay;
                self.retry_delay = (delay * 2).min(RETRY_DELAY_MAX);
                Waiting::Retry(Instant::now() + delay)
            }
        }
    }

    fn readers_passed(&mut self, quiesced: Result<Epoch, String>) {
        let outcome = quiesced.and_then(|epoch| self.applier.quiesce(epoch).map_err(|error| error.to_string()));
        if let Err(error) = outcome {
            tracing::error!(%error, "what is no longer used was not retired; it is tried again after the next flip");
            self.shared.progress().trouble = Some(error);
        }
        if self.applier.active() > self.grace.last_requested() {
            self.grace.request(self.applier.active());
        }
    }
}

/// Grace periods, one at a time, on a thread of their own.
#[derive(Debug)]
struct GracePeriods {
    requests: std::sync::mpsc::Sender<Epoch>,
    results: mpsc::UnboundedReceiver<Result<Epoch, String>>,
    last_requested: Epoch,
    running: bool,
}

impl GracePeriods {
    fn start(
        wait_for_readers: impl Fn() -> Result<(), String> + Send + 'static,
    ) -> Result<(Self, JoinHandle<()>), StartError> {
        let (requests, requested) = std::sync::mpsc::channel::<Epoch>();
        let (finished, results) = mpsc::unbounded_channel();
        let thread = spawn("grace", move || {
            for epoch in requested {
                if finished.send(wait_for_readers().map(|()| epoch)).is_err() {
                    break;
                }
            }
        })?;
        Ok((Self { requests, results, last_requested: Epoch(0), running: false }, thread))
    }

    /// Begins to wait until no reader of an epoch before `epoch`, the active one, is left; one that runs is let finish.
    fn request(&mut self, epoch: Epoch) {
        if !self.running {
            self.running = true;
            self.last_requested = epoch;
            self.requests.send(epoch).expect("the grace thread lives as long as its requests' sender");
        }
    }

    async fn finished(&mut self) -> Result<Epoch, String> {
        let result = self.results.recv().await.expect("the grace thread lives as long as its requests' sender");
        self.running = false;
        result
    }

    const fn last_requested(&self) -> Epoch {
        self.last_requested
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StartError::Thread)
}
