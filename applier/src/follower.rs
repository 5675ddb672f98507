//! The applier thread: follows the journal's durable head, keeps the generation fit, and notices when something else has
//! touched it.
//!
//! | seen | done |
//! |---|---|
//! | records became durable | applied, several at once while a grace period must be waited for |
//! | the kernel refuses a table call | tried again, less and less often; after some refusals in a new generation |
//! | a table is about to be full | a new generation with tables of twice the size |
//! | a link was unpinned, detached or replaced | put right at once |
//! | a pinned map or program is gone, a cell is not as the journal says | a new generation |
//!
//! A new generation is built beside the one in use, on a thread of its own ([`job`](crate::job)), and brought up to the
//! same epoch before links are switched. While a switch is not complete nothing is applied, so that old and new show one
//! and the same state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use journal::{Durable, DurableWatch, Head};
use loader::Generation;
use storage_schema::id::{Epoch, Lsn};
use storage_schema::map::Capacities;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::apply::{Applier, ApplyError};
use crate::compare::{Comparison, Staged};
use crate::entry::Changes;
use crate::grace::GracePeriods;
use crate::home::Home;
use crate::job::{Job, Outcome, Purpose};
use crate::pipeline::{Shared, Verification};
use crate::sizing;
use crate::start::{Built, Started};
use crate::tables::Tables as _;

/// How long to wait before what was refused is tried again: doubled each time, up to the maximum.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(20);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
/// After each so many refusals in a row the fault is looked for in the maps, and a new generation is made.
const REFUSALS_MAX: u32 = 6;
/// When a comparison that came too early is made again.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);
/// How often links and pins are looked at.
const INSPECT_INTERVAL: Duration = Duration::from_secs(5);

/// What the applier thread is asked for.
#[derive(Debug)]
pub(crate) enum Request {
    /// A comparison of the tables with the journal.
    Verify(oneshot::Sender<Result<Verification, String>>),
    /// A new generation.
    Renew(oneshot::Sender<Result<Option<u64>, String>>),
}

/// Who is told what has become visible.
#[derive(Debug)]
pub(crate) struct Told {
    /// The record whose state is.
    pub(crate) applied: watch::Sender<Lsn>,
    /// As [`Pipeline::departures`](crate::Pipeline::departures).
    pub(crate) departed: watch::Sender<Lsn>,
}

/// The applier thread.
pub(crate) struct Follower<H: Home> {
    shared: Arc<Shared>,
    home: Arc<Mutex<H>>,
    applier: Applier<H::Tables>,
    generation: Option<Generation>,
    told: Told,
    durable: DurableWatch,
    grace: GracePeriods,
    requests: mpsc::UnboundedReceiver<Request>,
    /// How often the tables are compared with the journal.
    verify_interval: Duration,
    /// Changes that are to become visible, with the head that they lead to.
    batch: Option<(Changes, Durable<Head>)>,
    /// Whether a record that departs was taken and is not known to be visible.
    departs: bool,
    waiting: Waiting,
    retry_delay: Duration,
    refusals: u32,
    job: Option<Job<H>>,
    /// A new generation that is needed, once no other job runs: why.
    build_next: Option<String>,
    compare_next: bool,
    /// A generation that links are being switched to.
    switching: Option<Box<Built<H>>>,
    verifying: Vec<oneshot::Sender<Result<Verification, String>>>,
    renewing: Vec<oneshot::Sender<Result<Option<u64>, String>>>,
    inspect_at: Instant,
    verify_at: Instant,
}

/// What a batch waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// There is none.
    Idle,
    /// Readers must pass its cells' epochs.
    Readers,
    /// Something was refused; it is tried again at this time.
    Retry(Instant),
}

impl<H: Home> Follower<H> {
    pub(crate) fn new(
        shared: Arc<Shared>,
        started: Started<H>,
        told: Told,
        durable: DurableWatch,
        grace: GracePeriods,
        requests: mpsc::UnboundedReceiver<Request>,
        verify_interval: Duration,
    ) -> Self {
        let Started { home, applier, generation, .. } = started;
        let now = Instant::now();
        Self {
            shared,
            home: Arc::new(Mutex::new(home)),
            applier,
            generation,
            told,
            durable,
            grace,
            requests,
            verify_interval,
            batch: None,
            departs: false,
            waiting: Waiting::Idle,
            retry_delay: RETRY_DELAY_MIN,
            refusals: 0,
            job: None,
            build_next: None,
            compare_next: false,
            switching: None,
            verifying: Vec::new(),
            renewing: Vec::new(),
            inspect_at: now + INSPECT_INTERVAL,
            verify_at: now + verify_interval,
        }
    }

    pub(crate) async fn follow(mut self, mut stop: oneshot::Receiver<()>) {
        loop {
            let seen = self.batch.as_ref().map_or(Lsn::from(self.applier.active()), |(_, head)| head.lsn);
            let tick = self.inspect_at.min(self.verify_at);
            let wake_at = if let Waiting::Retry(at) = self.waiting { at.min(tick) } else { tick };
            tokio::select! {
                // The sender is dropped to stop, or stops by being dropped: either way it is over.
                _ = &mut stop => break,
                head = self.durable.past(seen) => {
                    let Some(head) = head else { break };
                    self.take(head);
                    if self.waiting == Waiting::Idle {
                        self.waiting = self.apply();
                    }
                }
                quiesced = self.grace.finished() => {
                    self.readers_passed(quiesced);
                    if self.waiting == Waiting::Readers {
                        self.waiting = self.apply();
                    }
                }
                outcome = finished(&mut self.job) => self.job_finished(outcome),
                Some(request) = self.requests.recv() => self.take_request(request),
                () = sleep_until(wake_at) => self.woken(),
            }
            self.begin_next_job();
        }
    }

    fn woken(&mut self) {
        let now = Instant::now();
        if matches!(self.waiting, Waiting::Retry(at) if at <= now) {
            self.waiting = self.apply();
        }
        if self.inspect_at <= now {
            self.inspect();
            self.inspect_at = Instant::now() + INSPECT_INTERVAL;
        }
        if self.verify_at <= now {
            self.compare_next = true;
            self.verify_at = now + self.verify_interval;
        }
    }

    fn take_request(&mut self, request: Request) {
        match request {
            Request::Verify(reply) => {
                self.verifying.push(reply);
                self.compare_next = true;
            }
            Request::Renew(reply) => {
                self.renewing.push(reply);
                self.build_next.get_or_insert_with(|| "an operator asked for it".to_owned());
            }
        }
    }

    /// Adds the records up to `head` to the batch.
    fn take(&mut self, head: Durable<Head>) {
        let (later, departs) = self.shared.take_changes(head.lsn);
        self.departs |= departs;
        let (changes, batch_head) = self.batch.get_or_insert_with(|| (Changes::default(), head));
        changes.merge(later);
        *batch_head = head;
    }

    /// Goes on with what is to be done: a switch that was begun, or else the batch.
    fn apply(&mut self) -> Waiting {
        if let Some(built) = self.switching.take() {
            return self.switch(built);
        }
        let Some((changes, head)) = &self.batch else { return Waiting::Idle };
        let head = *head;
        match self.applier.apply(changes, head) {
            Ok(applied) => {
                let mut progress = self.shared.progress();
                progress.entries_written += applied.entries;
                progress.flips += 1;
                progress.trouble = None;
                drop(progress);
                tracing::debug!(lsn = %head.lsn, entries = applied.entries, "transactions up to this one are visible");
                self.tell(head.lsn);
                if let (Some(job), Some(batch)) = (&mut self.job, self.batch.take()) {
                    job.since.push(batch);
                }
                self.batch = None;
                self.fared_well();
                // So that the cells are free again by the time somebody wants them.
                self.grace.request(self.applier.active());
                self.grow_if_tight();
                Waiting::Idle
            }
            Err(ApplyError::Blocked { .. }) => {
                self.shared.progress().grace_waits += 1;
                self.grace.request(self.applier.active());
                Waiting::Readers
            }
            Err(error) => {
                self.refusals += 1;
                let hopeless = matches!(error, ApplyError::Damaged { .. } | ApplyError::Differs { .. });
                if matches!(error, ApplyError::Full { .. }) {
                    self.grow_if_tight();
                } else if hopeless || self.refusals.is_multiple_of(REFUSALS_MAX) {
                    self.build_next.get_or_insert_with(|| error.to_string());
                }
                self.refused(&format!("record {} is not applied", head.lsn), &error.to_string())
            }
        }
    }

    /// Tells that the state of a record is visible, which is the last that was taken.
    fn tell(&mut self, lsn: Lsn) {
        self.told.applied.send_if_modified(|applied| std::mem::replace(applied, lsn) != lsn);
        if std::mem::take(&mut self.departs) {
            self.told.departed.send_replace(lsn);
        }
    }

    fn fared_well(&mut self) {
        self.retry_delay = RETRY_DELAY_MIN;
        self.refusals = 0;
    }

    /// Says what is in the way, and when it is tried again.
    fn refused(&mut self, what: &str, error: &str) -> Waiting {
        tracing::error!(error, retry_in = ?self.retry_delay, "{what}");
        let mut progress = self.shared.progress();
        progress.trouble = Some(format!("{what}: {error}"));
        progress.refusals += 1;
        drop(progress);
        let delay = self.retry_delay;
        self.retry_delay = (delay * 2).min(RETRY_DELAY_MAX);
        Waiting::Retry(Instant::now() + delay)
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

    /// The journaled state may need larger tables than there are.
    fn grow_if_tight(&mut self) {
        if self.job.is_none() && self.build_next.is_none() && self.growth().is_some() {
            self.build_next = Some("a table is about to be full".to_owned());
        }
    }

    fn growth(&self) -> Option<Capacities> {
        sizing::growth(&self.applier.tables().capacities(), &self.shared.usage(), &self.shared.limits)
    }

    fn inspect(&mut self) {
        if self.switching.is_some() {
            return;
        }
        // A job that is making a generation has it for a while.
        let mut home = match self.home.try_lock() {
            Ok(home) => home,
            Err(TryLockError::Poisoned(home)) => home.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let inspected = home.inspect(self.generation.as_ref());
        drop(home);
        self.shared.progress().inspection_trouble = inspected.as_ref().err().map(ToString::to_string);
        match inspected {
            Ok(changes) => {
                self.shared.progress().drift.changes += changes.len() as u64;
                for change in changes {
                    let needs_generation = change.needs_generation();
                    tracing::warn!(%change, needs_generation, "something else has changed what this agent keeps in the kernel");
                    if needs_generation {
                        self.build_next.get_or_insert_with(|| change.to_string());
                    }
                }
            }
            Err(error) => tracing::error!(%error, "links and pins cannot be looked at, or put right; trying again"),
        }
    }

    /// Begins a job that is due, if none runs: a generation before a comparison.
    fn begin_next_job(&mut self) {
        if self.job.is_some() || self.switching.is_some() {
            return;
        }
        let purpose = match (self.build_next.take(), self.compare_next) {
            (Some(reason), _) => {
                let capacities = self.growth().unwrap_or_else(|| self.applier.tables().capacities());
                tracing::info!(reason, ?capacities, "building a new generation from the journal");
                Purpose::Build { reason, capacities }
            }
            (None, true) => {
                self.compare_next = false;
                Purpose::Compare
            }
            (None, false) => return,
        };
        // Not before what is visible: it may be older than what the journal keeps the state of.
        let head = self.durable.head();
        let cancel = self.shared.cancel.clone();
        match Job::begin(purpose, self.shared.journal.clone(), Arc::clone(&self.home), head, cancel) {
            Ok(job) => self.job = Some(job),
            Err(error) => tracing::error!(%error, "a comparison or a new generation must wait"),
        }
    }

    fn job_finished(&mut self, outcome: Result<Outcome<H>, String>) {
        let Some(mut job) = self.job.take() else { return };
        let since = std::mem::take(&mut job.since);
        match outcome {
            Ok(Outcome::State(mut everything, head)) => {
                if Epoch::from(head.lsn) > self.applier.active() {
                    // What it is the state of is not visible yet, and nobody knows when it will be.
                    self.verify_at = Instant::now() + COMPARE_AGAIN;
                    return;
                }
                since
                    .into_iter()
                    .filter(|(_, later)| later.lsn > head.lsn)
                    .for_each(|(later, _)| everything.merge(later));
                self.compare(&everything);
                self.grow_if_tight();
            }
            Ok(Outcome::Built(mut built)) => match built.applier.catch_up(&since) {
                Ok(()) => self.waiting = self.switch(built),
                Err(error) => self.build_failed(built.generation.as_ref(), &error.to_string()),
            },
            Err(error) if job.purpose == Purpose::Compare => {
                tracing::error!(error, "the tables were not compared with the journal");
                self.verifying.drain(..).for_each(|reply| drop(reply.send(Err(error.clone()))));
            }
            Err(error) => self.build_failed(None, &error),
        }
    }

    fn build_failed(&mut self, generation: Option<&Generation>, error: &str) {
        if let Some(Err(error)) = generation.map(Generation::discard) {
            tracing::error!(%error, "a generation that nobody uses stays behind until the next switch");
        }
        self.renewing.drain(..).for_each(|reply| drop(reply.send(Err(error.to_owned()))));
        tracing::error!(error, "no new generation was made");
        self.shared.progress().trouble = Some(format!("no new generation was made: {error}"));
    }

    fn compare(&mut self, everything: &Changes) {
        let compared = self.applier.compare(everything, Staged::Nothing);
        let outcome = compared.map_err(|error| error.to_string());
        if let Ok(comparison) = &outcome {
            self.note_comparison(comparison);
        }
        let repairing = outcome.as_ref().is_ok_and(|comparison| comparison.differing > 0);
        let told = outcome.map(|comparison| Verification { comparison, repairing });
        self.verifying.drain(..).for_each(|reply| drop(reply.send(told.clone())));
    }

    fn note_comparison(&mut self, comparison: &Comparison) {
        let Comparison { checked, differing, .. } = *comparison;
        self.shared.progress().drift.note(comparison);
        if let Some(first) = comparison.differences.first() {
            tracing::warn!(differing, checked, %first, "the tables are not as the journal says");
            self.build_next.get_or_insert_with(|| format!("{differing} table entries were not as the journal says"));
        }
    }

    /// Switches the links to a generation that shows the same epoch, or a later one if this one's was stuck.
    fn switch(&mut self, built: Box<Built<H>>) -> Waiting {
        fail::fail_point!("applier.before_switch");
        let activated = lock(&self.home).activate(built.generation.as_ref());
        if let Err(error) = activated {
            // Some links may have been switched: nothing may be applied until all are.
            self.switching = Some(built);
            return self.refused("links are not all switched to the new generation", &error.to_string());
        }
        fail::fail_point!("applier.after_switch");
        let Built { generation, applier, entries } = *built;
        self.applier = applier;
        self.generation = generation;
        let number = self.generation.as_ref().map(Generation::number);
        let lsn = Lsn::from(self.applier.active());
        self.batch.take_if(|(_, head)| head.lsn <= lsn);
        let mut progress = self.shared.progress();
        progress.generation = number;
        progress.generations_built += 1;
        progress.capacities = self.applier.tables().capacities();
        progress.entries_written += entries;
        progress.trouble = None;
        drop(progress);
        if self.batch.is_none() {
            self.tell(lsn);
        } else {
            self.told.applied.send_if_modified(|applied| std::mem::replace(applied, lsn) != lsn);
        }
        tracing::info!(generation = number, epoch = %self.applier.active(), entries, "connections are decided by a new generation");
        self.renewing.drain(..).for_each(|reply| drop(reply.send(Ok(number))));
        // What came while it was built may need more again, and perhaps no record follows that would ask.
        self.grow_if_tight();
        if self.batch.is_some() { self.apply() } else { Waiting::Idle }
    }
}

/// The end of the job, if there is one.
async fn finished<H: Home>(job: &mut Option<Job<H>>) -> Result<Outcome<H>, String> {
    match job {
        Some(job) => job.finished().await,
        None => std::future::pending().await,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
