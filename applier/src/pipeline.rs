//! The way of a push: admitted, journaled, applied.
//!
//! One lock orders pushes: under it a transaction is checked against the model, gets its LSN from the journal, and its
//! table changes are queued under that LSN. One thread follows the journal's durable head and applies what is queued up
//! to it. Grace periods run on a thread of their own; while one must be waited for, further records join the batch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use journal::{Ack, AppendError, Journal, OriginError, OriginState, Receipt, ResumeError, Watermarks};
use loader::Generation;
use storage_schema::id::Lsn;
use storage_schema::map::Capacities;
use storage_schema::record::Transaction;
use storage_schema::resource::Kind;
use tokio::sync::{mpsc, oneshot, watch};

use crate::apply::Pressure;
use crate::compare::Comparison;
use crate::entry::Changes;
use crate::follower::{Follower, Request};
use crate::grace::GracePeriods;
use crate::home::Home;
use crate::model::{Model, Rejection, Usage};
use crate::recovery::Identity;
use crate::start::{self, StartError, StartReport, Started, Target};
use crate::tables::Tables as _;

/// What a pipeline needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the state is shown.
    pub target: Target,
    /// The most entries that are admitted to each table. Tables begin smaller and grow up to these.
    pub limits: Capacities,
    /// How often the tables are compared with the journal, cell by cell.
    pub verify_interval: Duration,
}

impl Options {
    /// Compares every five minutes.
    pub const VERIFY_INTERVAL: Duration = Duration::from_mins(5);

    /// Options with defaults.
    pub const fn new(target: Target, limits: Capacities) -> Self {
        Self { target, limits, verify_interval: Self::VERIFY_INTERVAL }
    }
}

/// A running applier, and the way in for pushes.
#[derive(Debug)]
pub struct Pipeline {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
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

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The tables beside the journal.
    pub comparison: Comparison,
    /// Whether a new generation is being made because of it.
    pub repairing: bool,
}

/// Why something that was asked for was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The applier is gone.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// What other hands did to the tables, maps, programs and links, as far as it was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Drift {
    /// Links, pinned maps and pinned programs that were changed, since the start.
    pub changes: u64,
    /// When the tables were last compared with the journal.
    pub compared_at: Option<SystemTime>,
    /// Entries that the last comparison looked at.
    pub entries_checked: u64,
    /// Entries that were not as the journal says, since the start.
    pub entries_differing: u64,
}

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
    /// Times that the kernel refused something; it was tried again.
    pub refusals: u64,
    /// How much of the configured limits is used, by what is journaled.
    pub pressure: [Pressure; 4],
    /// How many entries the present tables have room for, in the order of `pressure`; a new generation has more.
    pub room: [u64; 4],
    /// Generations that were built since the start.
    pub generations_built: u64,
    /// What other hands have changed.
    pub drift: Drift,
    /// How many resources there are of each kind, journaled ones that are not applied yet included.
    pub resources: [(Kind, usize); 3],
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) journal: Journal,
    pub(crate) limits: Capacities,
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
pub(crate) struct Progress {
    pub(crate) trouble: Option<String>,
    /// What is in the way of looking after links and pins.
    pub(crate) inspection_trouble: Option<String>,
    pub(crate) generation: Option<u64>,
    pub(crate) generations_built: u64,
    pub(crate) capacities: Capacities,
    pub(crate) entries_written: u64,
    pub(crate) flips: u64,
    pub(crate) grace_waits: u64,
    pub(crate) refusals: u64,
    pub(crate) drift: Drift,
    start: StartReport,
}

impl Pipeline {
    /// Makes the target show the journal's state and begins to follow it. Blocks until the former is done.
    pub fn start(journal: Journal, options: Options) -> Result<Self, StartError> {
        let Options { target, limits, verify_interval } = options;
        let identity = Identity::of(&journal);
        let (model, wanted) = start::load_model(&journal, &limits)?;
        match target {
            Target::Memory => {
                let started = start::start_memory(identity, &limits, wanted)?;
                Self::run(journal, limits, model, started, verify_interval, || Ok(()))
            }
            Target::Kernel(options) => {
                let (started, grace) = start::start_kernel(options, identity, &limits, &journal, wanted)?;
                let wait = move || grace.wait().map_err(|error| error.to_string());
                Self::run(journal, limits, model, started, verify_interval, wait)
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
        let admitted = admission.model.admit(&transaction, &self.shared.limits)?;
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

    /// Compares the tables with the journal, cell by cell. What differs is put right by a new generation.
    pub async fn verify(&self) -> Result<Verification, RequestError> {
        self.ask(Request::Verify).await
    }

    /// Makes a new generation from the journal and switches to it; its number, for tables in the kernel.
    pub async fn renew(&self) -> Result<Option<u64>, RequestError> {
        self.ask(Request::Renew).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Request,
    ) -> Result<T, RequestError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| Stopped)?;
        answer.await.map_err(|_| Stopped)?.map_err(RequestError::Failed)
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
            trouble: progress
                .trouble
                .or(progress.inspection_trouble)
                .or_else(|| self.shared.journal.failure().map(|failure| failure.to_string())),
            generation: progress.generation,
            start: progress.start,
            entries_written: progress.entries_written,
            flips: progress.flips,
            grace_waits: progress.grace_waits,
            refusals: progress.refusals,
            pressure: usage.pressure(&self.shared.limits),
            room: usage.pressure(&progress.capacities).map(|table| table.capacity),
            generations_built: progress.generations_built,
            drift: progress.drift,
            resources,
        }
    }

    fn run<H: Home>(
        journal: Journal,
        limits: Capacities,
        model: Model,
        started: Started<H>,
        verify_interval: Duration,
        wait_for_readers: impl Fn() -> Result<(), String> + Send + 'static,
    ) -> Result<Self, StartError> {
        let Started { applier, generation, report, .. } = &started;
        let (applied_sender, applied) = watch::channel(Lsn::from(applier.active()));
        let progress = Progress {
            trouble: None,
            inspection_trouble: None,
            generation: generation.as_ref().map(Generation::number),
            generations_built: 0,
            capacities: applier.tables().capacities(),
            entries_written: report.entries_written,
            flips: 0,
            grace_waits: 0,
            refusals: 0,
            drift: Drift::default(),
            start: report.clone(),
        };
        let durable = journal.durable();
        let shared = Arc::new(Shared {
            journal,
            limits,
            admission: Mutex::new(Admission { model, queue: VecDeque::new(), applied }),
            progress: Mutex::new(progress),
        });
        let (grace, grace_thread) = GracePeriods::start(wait_for_readers)?;
        let (requests, requested) = mpsc::unbounded_channel();
        let follower =
            Follower::new(Arc::clone(&shared), started, applied_sender, durable, grace, requested, verify_interval);
        let (stop, stopped) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(StartError::Thread)?;
        let applier_thread = spawn("applier", move || runtime.block_on(follower.follow(stopped)))?;
        Ok(Self { shared, requests, stop: Some(stop), threads: vec![applier_thread, grace_thread] })
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

    pub(crate) fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the journaled state takes of the tables.
    pub(crate) fn usage(&self) -> Usage {
        self.admission().model.usage()
    }

    /// The changes of all records up to `lsn`, as one.
    pub(crate) fn take_changes(&self, lsn: Lsn) -> Changes {
        let mut admission = self.admission();
        let mut changes = Changes::default();
        while let Some((_, next)) = admission.queue.pop_front_if(|(queued, _)| *queued <= lsn) {
            changes.merge(next);
        }
        changes
    }
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StartError::Thread)
}
