//! How the applier thread begins: with all that it needs, or with tables that are believed while the state is being loaded.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use loader::Generation;
use storage_schema::id::{Epoch, Lsn};
use tokio::sync::{mpsc, watch};

use super::{Drift, Progress, Shared};
use crate::cancel::Cancel;
use crate::follower::{Follower, Request, Told};
use crate::grace::GracePeriods;
use crate::home::Home;
use crate::resume::Believed;
use crate::start::{Prepared, StartError, StartReport, Started};
use crate::tables::Tables as _;

/// What the applier thread begins with.
pub(super) enum Beginning<H: Home> {
    /// All that it needs.
    Prepared(Box<Prepared<H>>),
    /// Tables that connections go on with, what was done for that, and how to get the rest.
    Believed(Believed, StartReport, Prepare<H>),
}

/// Gets what an applier thread needs, which takes long.
pub(super) type Prepare<H> = Box<dyn FnOnce(&Cancel) -> Result<Prepared<H>, StartError> + Send>;

impl<H: Home> Beginning<H> {
    pub(super) fn epoch(&self) -> Epoch {
        match self {
            Self::Prepared(prepared) => prepared.started.applier.active(),
            Self::Believed(believed, ..) => believed.epoch,
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let (generation, capacities, start) = match self {
            Self::Prepared(prepared) => {
                let started = &prepared.started;
                (started.generation.as_ref(), started.applier.tables().capacities(), &started.report)
            }
            Self::Believed(believed, report, _) => (Some(&believed.generation), believed.capacities, report),
        };
        Progress {
            trouble: None,
            inspection_trouble: None,
            generation: generation.map(Generation::number),
            generations_built: 0,
            capacities,
            entries_written: start.entries_written,
            flips: 0,
            grace_waits: 0,
            refusals: 0,
            drift: Drift::default(),
            start: start.clone(),
        }
    }
}

/// What the applier thread has before it has tables.
pub(super) struct ApplierThread {
    pub(super) shared: Arc<Shared>,
    pub(super) applied: watch::Sender<Lsn>,
    pub(super) departed: watch::Sender<Lsn>,
    pub(super) loaded: watch::Sender<bool>,
    pub(super) requested: mpsc::UnboundedReceiver<Request>,
    pub(super) verify_interval: Duration,
}

impl ApplierThread {
    /// Proves tables that were believed, or has others take their place. `None`: it is over.
    pub(super) fn load<H: Home>(
        self,
        prepare: impl FnOnce(&Cancel) -> Result<Prepared<H>, StartError>,
    ) -> Option<(Follower<H>, JoinHandle<()>)> {
        let begun = Instant::now();
        let shared = Arc::clone(&self.shared);
        let prepared = match prepare(&shared.cancel) {
            Ok(prepared) => prepared,
            Err(error) => {
                if !matches!(error, StartError::Cancelled) {
                    tracing::error!(%error, "the journal's state cannot be loaded; what is pinned balances on");
                }
                // Before `self` goes: whoever notices that asks why.
                drop(shared.failure.set(Arc::new(error)));
                return None;
            }
        };
        let report = &prepared.started.report;
        let (rebuilt, entries_written) = (report.rebuilt.as_deref(), report.entries_written);
        tracing::info!(took = ?begun.elapsed(), rebuilt, entries_written, "the journal's state is loaded");
        shared.progress().generations_built += u64::from(rebuilt.is_some());
        self.begin(prepared).inspect_err(|error| tracing::error!(%error, "the applier cannot begin")).ok()
    }

    /// Lets pushes in.
    pub(super) fn begin<H: Home>(self, prepared: Prepared<H>) -> Result<(Follower<H>, JoinHandle<()>), StartError> {
        let Self { shared, applied, departed, loaded, requested, verify_interval } = self;
        let Prepared { started, model, wait_for_readers } = prepared;
        let (grace, grace_thread) = GracePeriods::start(wait_for_readers)?;
        shared.progress().begin(&started);
        let lsn = Lsn::from(started.applier.active());
        applied.send_if_modified(|applied| std::mem::replace(applied, lsn) != lsn);
        shared.admission().model = Some(model);
        loaded.send_replace(true);
        let durable = shared.journal.durable();
        let told = Told { applied, departed };
        let follower = Follower::new(shared, started, told, durable, grace, requested, verify_interval);
        Ok((follower, grace_thread))
    }
}

impl Progress {
    /// What the start has led to, once it is known.
    fn begin<H: Home>(&mut self, started: &Started<H>) {
        let Started { applier, generation, report, compared, .. } = started;
        self.generation = generation.as_ref().map(Generation::number);
        self.capacities = applier.tables().capacities();
        self.entries_written = report.entries_written;
        let before = std::mem::replace(&mut self.start, report.clone());
        // To be ready took as long as it took; what came behind it did not count.
        self.start.took = before.took.max(report.took);
        self.start.links_changed = before.links_changed.max(report.links_changed);
        if let Some(comparison) = compared {
            self.drift.note(comparison);
        }
    }
}
