//! The way of a push: admitted, journaled, applied.
//!
//! One lock orders pushes: under it a transaction is checked against the model, gets its LSN from the journal, and its
//! table changes are queued under that LSN. One thread follows the journal's durable head and applies what is queued up
//! to it. Grace periods run on a thread of their own; while one must be waited for, further records join the batch.

mod admission;
mod draining;
mod thread;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use journal::{Ack, AppendError, Journal, OriginError, OriginState, Receipt, ResumeError, Watermarks};
use storage_schema::codec::encode_record;
use storage_schema::id::{BootId, Lsn, RecordHash};
use storage_schema::map::Capacities;
use storage_schema::precondition::Precondition;
use storage_schema::record::{Cause, Origin, Record, Transaction};
use storage_schema::resource::Kind;
use tokio::sync::{mpsc, oneshot, watch};

use self::admission::Admission;
use self::thread::{ApplierThread, Beginning};
use crate::apply::Pressure;
use crate::cancel::Cancel;
use crate::compare::Comparison;
use crate::entry::Changes;
use crate::follower::{Follower, Request};
use crate::home::{Home, KernelHome};
use crate::load::Loader;
use crate::model::{Model, Rejection, Usage};
use crate::recovery::Identity;
use crate::resume;
use crate::start::{self, Prepared, StartError, StartReport, Target};

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
    departures: watch::Receiver<Lsn>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A push that is on its way to the disk.
#[derive(Clone, Debug)]
pub struct Pending {
    ack: Ack,
    duplicate: bool,
    removed: u64,
}

impl Pending {
    /// Its LSN.
    pub fn lsn(&self) -> Lsn {
        self.ack.lsn()
    }

    /// Its record's hash.
    pub fn hash(&self) -> RecordHash {
        self.ack.hash()
    }

    /// Whether it was in the journal, or on its way there, before.
    pub const fn is_duplicate(&self) -> bool {
        self.duplicate
    }

    /// Of a sync or an expiry: how many resources it removes.
    pub const fn removed(&self) -> u64 {
        self.removed
    }

    /// Waits until it is durable, or known not to be.
    pub async fn durable(&self) -> Result<Receipt, AppendError> {
        self.ack.wait().await
    }
}

/// What a transaction would be, if it were pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// It fits the state.
    Fits {
        /// The transaction, a sync completed by its removals.
        transaction: Transaction,
        /// The last record that had a number.
        state_lsn: Lsn,
    },
    /// It was pushed before, as this record.
    Duplicate(Lsn),
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
    /// Nobody is there to apply it.
    #[error(transparent)]
    Stopped(#[from] Stopped),
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
    /// Whether pinned tables are believed and the journal's state is still being loaded: pushes wait.
    pub loading: bool,
    /// Table entries written since the start, and by it.
    pub entries_written: u64,
    /// Flips since the start.
    pub flips: u64,
    /// Batches that had to wait for readers.
    pub grace_waits: u64,
    /// Times that the kernel refused something; it was tried again.
    pub refusals: u64,
    /// How much of the configured limits is used, by what is journaled; not known while loading.
    pub pressure: Vec<Pressure>,
    /// How many entries the present tables have room for, in the order of `pressure`; a new generation has more.
    pub room: Vec<u64>,
    /// Generations that were built since the start.
    pub generations_built: u64,
    /// What other hands have changed.
    pub drift: Drift,
    /// How many resources there are of each kind, journaled ones that are not applied yet included; not known while loading.
    pub resources: Vec<(Kind, usize)>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) journal: Journal,
    pub(crate) limits: Capacities,
    /// Gives up what takes long, when the pipeline goes.
    pub(crate) cancel: Cancel,
    /// Whether there is a model.
    loaded: watch::Receiver<bool>,
    /// Why there will never be one.
    failure: OnceLock<Arc<StartError>>,
    admission: Mutex<Admission>,
    progress: Mutex<Progress>,
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
    /// Makes the target show the journal's state and begins to follow it. Blocks until the former is done, or pinned tables
    /// are believed: then the state is loaded behind that, and pushes wait for it.
    pub fn start(journal: Journal, options: Options) -> Result<Self, StartError> {
        Self::start_shown(journal, None, options)
    }

    /// [`Pipeline::start`], with what the journal has shown to `shown` when it was opened ([`Journal::open_showing`]).
    pub fn start_shown(journal: Journal, shown: Option<Loader>, options: Options) -> Result<Self, StartError> {
        let Options { target, limits, verify_interval } = options;
        let begun = Instant::now();
        let identity = Identity::of(&journal);
        let cancel = Cancel::default();
        match target {
            Target::Memory => {
                let (model, head) = start::load_model(&journal, &limits, shown, &cancel)?;
                let mut started = start::start_memory(identity, &limits, &model, head, &cancel)?;
                started.report.took = begun.elapsed();
                let prepared = Prepared { started, model, wait_for_readers: Box::new(|| Ok(())) };
                Self::run(journal, limits, cancel, Beginning::Prepared(Box::new(prepared)), verify_interval)
            }
            Target::Kernel(options) => {
                let believed = resume::believe(&options, &identity, &journal, &limits);
                let mut home = KernelHome::open(options, identity)?;
                let beginning = if let Some(believed) = believed {
                    let links_changed = home.activate(Some(&believed.generation))?;
                    let report = StartReport { took: begun.elapsed(), links_changed, ..StartReport::default() };
                    let journal = journal.clone();
                    let prepare = move |cancel: &Cancel| resume::prepare(home, &journal, &limits, shown, cancel);
                    Beginning::Believed(believed, report, Box::new(prepare))
                } else {
                    let mut prepared = resume::prepare(home, &journal, &limits, shown, &cancel)?;
                    prepared.started.report.took = begun.elapsed();
                    Beginning::Prepared(Box::new(prepared))
                };
                Self::run(journal, limits, cancel, beginning, verify_interval)
            }
        }
    }

    /// Admits a transaction and submits it to the journal. Waits only while the journal's queue is full, or its state is being
    /// loaded. `client` is who pushed it, as the transport knows it, for the record.
    ///
    /// A sync ([`Cause::Sync`]) is completed on the way: what its source owns and it does not name, it removes.
    pub async fn push(&self, transaction: Transaction, client: Option<String>) -> Result<Pending, PushError> {
        self.push_if(transaction, &[], client).await
    }

    /// [`Pipeline::push`], if the preconditions hold when the transaction has its turn: with everything that was submitted before
    /// it, and nothing else. One that was pushed before is not judged again.
    pub async fn push_if(
        &self,
        mut transaction: Transaction,
        preconditions: &[Precondition],
        client: Option<String>,
    ) -> Result<Pending, PushError> {
        self.loaded().await?;
        let permit = self.shared.journal.reserve().await?.client(client);
        let mut admission = self.shared.admission();
        if let OriginState::Duplicate(ack) = self.shared.journal.origin(&transaction.origin)? {
            return Ok(Pending { ack, duplicate: true, removed: 0 });
        }
        admission.loaded().check_preconditions(preconditions)?;
        let sent = transaction.deltas.len();
        if transaction.cause == Cause::Sync {
            admission.loaded().complete_sync(&mut transaction);
        }
        let removed = (transaction.deltas.len() - sent) as u64;
        let ack = admission.submit(permit, transaction, &self.shared.limits)?;
        Ok(Pending { ack, duplicate: false, removed })
    }

    /// Removes what a source owns ([`Model::expiry`]), as one record in its name with the cause [`Cause::Expiry`]. `None` if
    /// there is nothing to remove. It is refused if a newer `incarnation` has written.
    pub async fn expire(&self, source: &str, incarnation: u64) -> Result<Option<Pending>, PushError> {
        self.loaded().await?;
        let permit = self.shared.journal.reserve().await?;
        let mut admission = self.shared.admission();
        let origin = Origin { source: source.to_owned(), incarnation, version: None };
        self.shared.journal.origin(&origin)?;
        let deltas = admission.loaded().expiry(source);
        if deltas.is_empty() {
            return Ok(None);
        }
        let removed = deltas.len() as u64;
        let transaction = Transaction { cause: Cause::Expiry, ..Transaction::push(origin, deltas) };
        let ack = admission.submit(permit, transaction, &self.shared.limits)?;
        Ok(Some(Pending { ack, duplicate: false, removed }))
    }

    /// Checks a transaction as [`Pipeline::push_if`] does, and changes nothing.
    pub async fn plan(
        &self,
        mut transaction: Transaction,
        preconditions: &[Precondition],
        client: Option<String>,
    ) -> Result<Planned, PushError> {
        self.loaded().await?;
        let journal = &self.shared.journal;
        if let Some(failure) = journal.failure() {
            return Err(AppendError::Failed(failure).into());
        }
        let state_lsn = {
            let mut admission = self.shared.admission();
            if let OriginState::Duplicate(ack) = journal.origin(&transaction.origin)? {
                return Ok(Planned::Duplicate(ack.lsn()));
            }
            let model = admission.loaded();
            model.check_preconditions(preconditions)?;
            if transaction.cause == Cause::Sync {
                model.complete_sync(&mut transaction);
            }
            let admitted = model.admit(&transaction, &self.shared.limits)?;
            model.revert(admitted);
            journal.watermarks().appended_lsn
        };
        let record = Record {
            lsn: state_lsn.next(),
            transaction,
            wall_ns: 0,
            monotonic_ns: 0,
            boot_id: BootId::default(),
            previous_hash: RecordHash::default(),
            received_wall_ns: Some(0),
            client,
        };
        let (bytes, limit) = (encode_record(&record).len() as u64, journal.record_bytes_max());
        if bytes > limit {
            return Err(AppendError::TooLarge { bytes, limit }.into());
        }
        Ok(Planned::Fits { transaction: record.transaction, state_lsn })
    }

    /// Waits until a record's state is visible. It must be durable.
    pub async fn wait_applied(&self, lsn: Lsn) -> Result<(), Stopped> {
        let mut applied = self.shared.admission().applied.clone();
        applied.wait_for(|applied| *applied >= lsn).await.map(drop).map_err(|_| Stopped)
    }

    /// The record whose state is visible: the active epoch.
    pub fn applied_lsn(&self) -> Lsn {
        *self.shared.admission().applied.borrow()
    }

    /// Waits until the journal's state is loaded.
    pub async fn loaded(&self) -> Result<(), Stopped> {
        let mut loaded = self.shared.loaded.clone();
        loaded.wait_for(|loaded| *loaded).await.map(drop).map_err(|_| Stopped)
    }

    /// Returns when the applier has stopped, with the cause if that is that it could not begin.
    pub async fn stopped(&self) -> Option<Arc<StartError>> {
        let mut applied = self.shared.admission().applied.clone();
        while applied.changed().await.is_ok() {}
        self.shared.failure.get().cloned()
    }

    /// Gives up what takes long: a state that is being loaded, a generation that is being built. For whoever is about to stop,
    /// and does not want to wait for that, nor have requests wait.
    pub fn give_up(&self) {
        self.shared.cancel.cancel();
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
        if admission.model.is_none() {
            // Nothing was submitted yet. What is being loaded is what is durable, and is loaded before this is tried again.
            return Ok(());
        }
        let head = journal.resume()?;
        admission.model = Some(start::read_model(journal)?);
        admission.queue.retain(|queued| queued.lsn <= head.lsn);
        Ok(())
    }

    /// How many resources of each kind each source has, in the order of [`Kind::ALL`]. It looks at each resource, and no push
    /// is admitted meanwhile.
    pub fn owned(&self) -> BTreeMap<String, [usize; 3]> {
        let admission = self.shared.admission();
        admission.model.as_ref().map(owned).unwrap_or_default()
    }

    /// How the applier is.
    pub fn status(&self) -> Status {
        let (applied_lsn, resources, usage) = {
            let admission = self.shared.admission();
            let model = admission.model.as_ref();
            let resources = model.map(|model| Kind::ALL.map(|kind| (kind, model.count(kind))).to_vec());
            (*admission.applied.borrow(), resources.unwrap_or_default(), model.map(Model::usage))
        };
        let progress = self.shared.progress().clone();
        let pressure = |capacities| usage.map(|usage| usage.pressure(capacities).to_vec()).unwrap_or_default();
        Status {
            watermarks: self.shared.journal.watermarks(),
            applied_lsn,
            trouble: progress
                .trouble
                .or(progress.inspection_trouble)
                .or_else(|| self.shared.journal.failure().map(|failure| failure.to_string())),
            generation: progress.generation,
            start: progress.start,
            loading: usage.is_none(),
            entries_written: progress.entries_written,
            flips: progress.flips,
            grace_waits: progress.grace_waits,
            refusals: progress.refusals,
            pressure: pressure(&self.shared.limits),
            room: pressure(&progress.capacities).iter().map(|table| table.capacity).collect(),
            generations_built: progress.generations_built,
            drift: progress.drift,
            resources,
        }
    }

    fn run<H: Home>(
        journal: Journal,
        limits: Capacities,
        cancel: Cancel,
        beginning: Beginning<H>,
        verify_interval: Duration,
    ) -> Result<Self, StartError> {
        let (applied_sender, applied) = watch::channel(Lsn::from(beginning.epoch()));
        let (loaded_sender, loaded) = watch::channel(false);
        let shared = Arc::new(Shared {
            journal,
            limits,
            cancel,
            loaded,
            failure: OnceLock::new(),
            admission: Mutex::new(Admission { model: None, queue: VecDeque::new(), applied }),
            progress: Mutex::new(beginning.progress()),
        });
        let (departed, departures) = watch::channel(Lsn::ZERO);
        let (requests, requested) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(StartError::Thread)?;
        let thread = ApplierThread {
            shared: Arc::clone(&shared),
            applied: applied_sender,
            departed,
            loaded: loaded_sender,
            requested,
            verify_interval,
        };
        let follow = move |(follower, grace_thread): (Follower<H>, JoinHandle<()>)| {
            runtime.block_on(follower.follow(stopped));
            // A panic there has been reported by its own message.
            drop(grace_thread.join());
        };
        let thread = match beginning {
            Beginning::Prepared(prepared) => {
                let begun = thread.begin(*prepared)?;
                spawn("applier", move || follow(begun))?
            }
            Beginning::Believed(_, _, prepare) => spawn("applier", move || {
                if let Some(begun) = thread.load(prepare) {
                    follow(begun);
                }
            })?,
        };
        Ok(Self { shared, requests, departures, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drift {
    /// Takes note of a comparison.
    pub(crate) fn note(&mut self, comparison: &Comparison) {
        self.compared_at = Some(SystemTime::now());
        self.entries_checked = comparison.checked;
        self.entries_differing += comparison.differing;
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.shared.cancel.cancel();
        self.stop.take();
        if let Some(thread) = self.thread.take() {
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
        self.admission().loaded().usage()
    }

    /// The changes of all records up to `lsn`, as one, and whether one of them departs.
    pub(crate) fn take_changes(&self, lsn: Lsn) -> (Changes, bool) {
        let mut admission = self.admission();
        let (mut changes, mut departs) = (Changes::default(), false);
        while let Some(next) = admission.queue.pop_front_if(|queued| queued.lsn <= lsn) {
            changes.merge(next.changes);
            departs |= next.departs;
        }
        (changes, departs)
    }
}

fn owned(model: &Model) -> BTreeMap<String, [usize; 3]> {
    model.owned().into_iter().map(|(source, counts)| (source.to_owned(), counts)).collect()
}

pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body).map_err(StartError::Thread)
}
