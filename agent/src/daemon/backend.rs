//! What stands behind the API here: the applier's pipeline for pushes, the journal's store for reads.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::filter::{ListQuery, Page};
use api::journal::{EncodedRecord, JournalError, RecordsQuery};
use api::namespace::{Namespace, NamespaceError};
use api::plan::{Effect, Plan, PlannedChange};
use api::proto;
use api::push::{JournalFacts, Push, Recollection, SourceState, Submitted};
use api::rejection::{DeltaName, Rejection};
use api::replay::{Question, StateQuery};
use api::server::{Backend, DatapathError, Flow, Read, Unreadable};
use api::source::{Source, SourcesPage};
use api::status::{Datapath, DatapathKind, Drift, LogFilter, Restart, Status, TablePressure};
use api::watch::{RecordsStep, RecordsWatch, StateStep, StateWatch};
use api::{Level, Receipt, Stored};
use applier::{Pipeline, Planned, RequestError, Target, Verification};
use journal::{Journal, ReadError, Retention, StoredResource};
use storage_schema::id::{Epoch, Lsn};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::ResourceKey;
use tokio::sync::Semaphore;

use super::enrolment::Enrolment;
use super::logging::Logging;
use super::rejection::{not_durable, not_pushed};
use super::{drain, streams, watch};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::journal_view::{self, refused};

/// How often a journal that the disk has refused is tried again.
const RESUME_INTERVAL: Duration = Duration::from_secs(1);

/// This node: journal and applier.
pub(super) struct Node {
    pipeline: Pipeline,
    journal: Journal,
    kernel: Option<loader::Options>,
    /// Who is managed; `None` without a kernel.
    enrolment: Option<Enrolment>,
    logging: Logging,
    /// What a compaction keeps that does not say.
    retention: Retention,
    /// Whoever answers a question about the past holds a whole state in memory: one at a time.
    questions: Arc<Semaphore>,
    drained: drain::Counts,
    ready: Instant,
    ready_after: Duration,
}

impl Node {
    pub(super) fn new(
        journal: Journal,
        pipeline: Pipeline,
        target: &Target,
        enrolment: Option<Enrolment>,
        logging: Logging,
        retention: Retention,
        ready_after: Duration,
    ) -> Self {
        let kernel = match target {
            Target::Kernel(options) => Some(options.clone()),
            Target::Memory => None,
        };
        Self {
            pipeline,
            journal,
            kernel,
            enrolment,
            logging,
            retention,
            questions: Arc::new(Semaphore::new(1)),
            drained: drain::Counts::default(),
            ready: Instant::now(),
            ready_after,
        }
    }

    pub(super) const fn enrolment(&self) -> Option<&Enrolment> {
        self.enrolment.as_ref()
    }

    fn enrols(&self) -> Result<&Enrolment, NamespaceError> {
        self.enrolment.as_ref().ok_or(NamespaceError::NotByNamespace("the agent has no datapath in the kernel"))
    }

    /// Returns when the applier has stopped by itself.
    pub(super) async fn applier_stopped(&self) -> Failure {
        match self.pipeline.stopped().await {
            Some(cause) => Failure::from(&*cause),
            None => Failure::new(
                Exit::Failure,
                "the applier has stopped: start the agent again; what is pinned balances on",
            ),
        }
    }

    /// Has the journal go on once the disk takes writes again, for as long as the agent runs.
    pub(super) async fn resume_whenever_refused(self: Arc<Self>) {
        let mut reported = false;
        loop {
            tokio::time::sleep(RESUME_INTERVAL).await;
            let Some(failure) = self.journal.failure() else { continue };
            if !reported {
                tracing::error!(%failure, "the disk refuses writes: pushes are refused until it takes them again");
            }
            let node = Arc::clone(&self);
            let resumed = tokio::task::spawn_blocking(move || node.pipeline.resume()).await;
            reported = !matches!(resumed, Ok(Ok(())));
        }
    }

    pub(super) fn report_ready(&self, config: &Config) {
        let status = self.pipeline.status();
        if let Some(reason) = &status.start.rebuilt {
            tracing::info!(reason, "the tables were built from the journal");
        }
        tracing::info!(
            socket = %config.socket.display(),
            datapath = if self.kernel.is_some() { "kernel" } else { "memory" },
            applied_lsn = %status.applied_lsn,
            entries_rewritten = status.start.entries_written,
            loading = status.loading,
            ready_after_us = self.ready_after_us(),
            "ready"
        );
    }

    /// Gives up what takes long, as the agent stops.
    pub(super) fn give_up(&self) {
        self.pipeline.give_up();
    }

    /// How the applier is.
    pub(super) fn applier(&self) -> applier::Status {
        self.pipeline.status()
    }

    /// The way of a push, and what the applier knows.
    pub(super) const fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// What was done to connections whose backend is gone.
    pub(super) const fn drained(&self) -> &drain::Counts {
        &self.drained
    }

    /// The journal.
    pub(super) fn journal(&self) -> Journal {
        self.journal.clone()
    }

    fn ready_after_us(&self) -> u64 {
        u64::try_from(self.ready_after.as_micros()).unwrap_or(u64::MAX)
    }

    /// Runs a read of the store on a thread that may block, once the store shows everything that is durable by now: who
    /// has an acknowledgement reads what it acknowledged.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Journal) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<Read<T>, Unreadable> {
        let durable_lsn = self.journal.watermarks().durable_lsn;
        self.journal.wait_stored(durable_lsn).await.map_err(unreadable)?;
        let journal = self.journal.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let state_lsn = journal.watermarks().store_lsn;
            Ok(Read { value: read(&journal).map_err(unreadable)?, state_lsn })
        });
        match outcome.await {
            Ok(read) => read,
            Err(error) => Err(Unreadable { cause: error.to_string() }),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn unreadable(error: ReadError) -> Unreadable {
    Unreadable { cause: error.to_string() }
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn not_done(error: RequestError) -> DatapathError {
    DatapathError { cause: error.to_string() }
}

impl Backend for Node {
    async fn submit(&self, push: Push) -> Result<Submitted, Rejection> {
        let Push { transaction, preconditions, client } = push;
        let deltas: Vec<DeltaName> = transaction.deltas.iter().map(DeltaName::from).collect();
        let Origin { source, version, .. } = transaction.origin.clone();
        let pending = self.pipeline.push_if(transaction, &preconditions, client).await;
        let pending = pending.map_err(|error| not_pushed(error, &deltas))?;
        let (lsn, record_hash, duplicate) = (pending.lsn(), pending.hash(), pending.is_duplicate());
        let removed = pending.removed();
        tracing::debug!(%lsn, source, version, deltas = deltas.len(), removed, duplicate, "a transaction is submitted");
        let durable = async move {
            pending.durable().await.map_err(|error| not_durable(&error))?;
            tracing::debug!(%lsn, source, version, "a transaction is durable");
            Ok(())
        };
        Ok(Submitted { lsn, record_hash, duplicate, removed, durable: Box::pin(durable) })
    }

    async fn plan(&self, push: Push) -> Result<Plan, Rejection> {
        let Push { transaction, preconditions, client } = push;
        let deltas: Vec<DeltaName> = transaction.deltas.iter().map(DeltaName::from).collect();
        let planned = self.pipeline.plan(transaction, &preconditions, client).await;
        let planned = planned.map_err(|error| not_pushed(error, &deltas))?;
        let (transaction, state_lsn) = match planned {
            Planned::Duplicate(lsn) => return Ok(Plan::duplicate(lsn)),
            Planned::Fits { transaction, state_lsn } => (transaction, state_lsn),
        };
        let compared = self.read(move |journal| compare(journal, transaction)).await;
        let changes = compared.map_err(|unreadable| Rejection::Unavailable { cause: unreadable.to_string() })?.value;
        Ok(Plan::new(state_lsn, changes))
    }

    fn source(&self, name: &str) -> Option<SourceState> {
        self.journal.source(name).map(source_state)
    }

    fn leased(&self) -> Vec<(String, SourceState)> {
        let all = self.journal.sources().into_iter();
        all.map(|(name, state)| (name, source_state(state))).filter(|(_, state)| state.ttl.is_some()).collect()
    }

    async fn expire(&self, source: &str, incarnation: u64) -> Result<u64, Rejection> {
        let expired = self.pipeline.expire(source, incarnation).await.map_err(|error| not_pushed(error, &[]))?;
        let Some(pending) = expired else { return Ok(0) };
        pending.durable().await.map_err(|error| not_durable(&error))?;
        Ok(pending.removed())
    }

    async fn sources(&self, after: Option<String>, limit: usize) -> Result<SourcesPage, Unreadable> {
        let mut owned = self.pipeline.owned();
        let page = move |journal: &Journal| {
            let mut all =
                journal.sources().into_iter().filter(|(name, _)| after.as_ref().is_none_or(|after| name > after));
            let mut sources = Vec::new();
            for (name, state) in all.by_ref().take(limit) {
                let last_wall_ns = match journal.record(state.last_lsn) {
                    Ok(record) => Some(record.wall_ns),
                    Err(ReadError::Compacted { .. }) => None,
                    Err(error) => return Err(error),
                };
                let owned = owned.remove(&name).unwrap_or_default().map(|count| count as u64);
                sources.push(Source { name, state: source_state(state), last_wall_ns, owned });
            }
            let next = all.next().and_then(|_| sources.last()).map(|last| last.name.clone());
            Ok(SourcesPage { sources, next })
        };
        Ok(self.read(page).await?.value)
    }

    async fn recollect(&self, source: &str, version: u64) -> Result<Recollection, Unreadable> {
        let unreadable = |cause: &dyn std::error::Error| Unreadable { cause: cause.to_string() };
        let (journal, source) = (self.journal.clone(), source.to_owned());
        let looked_up = tokio::task::spawn_blocking(move || journal.recollect(&source, version)).await;
        match looked_up.map_err(|error| unreadable(&error))?.map_err(|error| unreadable(&error))? {
            journal::Recollection::Accepted(ack) => {
                let receipt = ack.wait().await.map_err(|error| unreadable(&error))?;
                Ok(Recollection::Accepted(Receipt {
                    lsn: receipt.lsn,
                    record_hash: receipt.hash,
                    duplicate: true,
                    level: Level::Durable,
                    blocked_reason: String::new(),
                    removed: 0,
                }))
            }
            journal::Recollection::NotThere => Ok(Recollection::NotThere),
            journal::Recollection::Forgotten => Ok(Recollection::Forgotten),
        }
    }

    fn facts(&self) -> JournalFacts {
        JournalFacts { store_id: self.journal.store_id(), record_bytes_max: self.journal.record_bytes_max() }
    }

    async fn applied(&self, lsn: Lsn) {
        if self.pipeline.wait_applied(lsn).await.is_err() {
            // It will never be applied by this process; the wait ends with the request's time.
            std::future::pending::<()>().await;
        }
    }

    async fn resource(&self, key: ResourceKey) -> Result<Read<Option<Stored>>, Unreadable> {
        self.read(move |journal| Ok(journal.owned_resource(&key)?.map(stored))).await
    }

    async fn resources(&self, query: ListQuery, limit: usize) -> Result<Read<Page>, Unreadable> {
        self.read(move |journal| page(journal, &query, limit)).await
    }

    async fn records(&self, query: RecordsQuery) -> Result<Flow<Vec<EncodedRecord>>, JournalError> {
        streams::records(self.journal.clone(), query).await
    }

    async fn watch_records(&self, watch: RecordsWatch) -> Result<Flow<RecordsStep>, JournalError> {
        watch::records(self.journal.clone(), watch).await
    }

    async fn watch_state(&self, watch: StateWatch) -> Result<Flow<StateStep>, JournalError> {
        watch::state(self.journal.clone(), watch).await
    }

    async fn journal_stats(&self) -> Result<proto::GetJournalStatsResponse, JournalError> {
        let journal = self.journal.clone();
        streams::blocking(move || Ok(journal_view::stats(journal.stats().map_err(refused)?))).await
    }

    async fn verify_journal(&self) -> Result<Flow<proto::verify_journal_response::Step>, JournalError> {
        Ok(streams::verify(self.journal.clone()))
    }

    async fn checkpoint(&self) -> Result<proto::Checkpoint, JournalError> {
        let journal = self.journal.clone();
        streams::blocking(move || Ok(journal_view::checkpoint(&journal.checkpoint().map_err(refused)?))).await
    }

    async fn compact(
        &self,
        request: proto::CompactJournalRequest,
    ) -> Result<proto::CompactJournalResponse, JournalError> {
        let (journal, retention) = (self.journal.clone(), journal_view::retention(&request, self.retention)?);
        streams::blocking(move || Ok(journal_view::compacted(&journal.compact(&retention).map_err(refused)?))).await
    }

    async fn snapshot(&self) -> Result<Flow<Vec<u8>>, JournalError> {
        Ok(streams::snapshot(self.journal.clone()))
    }

    async fn state(&self, query: StateQuery) -> Result<Flow<Read<Vec<Stored>>>, JournalError> {
        streams::state(self.journal.reader(), query, &self.questions).await
    }

    async fn explain(&self, question: Question) -> Result<Flow<Vec<u8>>, JournalError> {
        streams::explain(self.journal.reader(), question, &self.questions).await
    }

    async fn verify_tables(&self) -> Result<proto::VerifyTablesResponse, DatapathError> {
        let Verification { comparison, repairing } = self.pipeline.verify().await.map_err(not_done)?;
        let difference = |difference: applier::Difference| proto::TableDifference {
            table: difference.table.to_owned(),
            entry: difference.entry,
            expected: difference.expected,
            found: difference.found,
        };
        Ok(proto::VerifyTablesResponse {
            epoch: comparison.epoch.0,
            entries_checked: comparison.checked,
            entries_differing: comparison.differing,
            differences: comparison.differences.into_iter().map(difference).collect(),
            repairing,
        })
    }

    async fn renew_generation(&self) -> Result<String, DatapathError> {
        let number = self.pipeline.renew().await.map_err(not_done)?;
        Ok(number.map(|number| format!("gen-{number}")).unwrap_or_default())
    }

    async fn enrol_namespace(&self, namespace: Namespace) -> Result<(u64, bool), NamespaceError> {
        self.enrols()?.enrol(namespace).await
    }

    async fn release_namespace(&self, namespace: Namespace) -> Result<(u64, bool), NamespaceError> {
        self.enrols()?.release(namespace).await
    }

    async fn namespaces(&self) -> Result<Vec<proto::EnrolledNamespace>, NamespaceError> {
        self.enrols()?.namespaces().await
    }

    fn set_log_filter(&self, filter: Option<String>) -> Result<LogFilter, String> {
        self.logging.set(filter)
    }

    fn takes_transactions(&self) -> bool {
        self.journal.failure().is_none() && !self.pipeline.status().loading
    }

    async fn status(&self) -> Status {
        let status = self.pipeline.status();
        let (kind, cgroup, pins) = match &self.kernel {
            Some(options) => (DatapathKind::Kernel, options.cgroup.display().to_string(), pins(&options.pin_root)),
            None => (DatapathKind::Memory, String::new(), Vec::new()),
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_id: self.journal.store_id(),
            uptime: self.ready.elapsed(),
            appended_lsn: status.watermarks.appended_lsn,
            durable_lsn: status.watermarks.durable_lsn,
            applied_lsn: status.applied_lsn,
            stored_lsn: status.watermarks.store_lsn,
            datapath: Datapath {
                kind,
                active_epoch: Epoch::from(status.applied_lsn),
                generation: status.generation.map(|number| format!("gen-{number}")).unwrap_or_default(),
                cgroup,
                pins,
                map_writes: status.entries_written,
                generations_built: status.generations_built,
                drift: Drift {
                    changes: status.drift.changes,
                    compared_at: status.drift.compared_at,
                    entries_checked: status.drift.entries_checked,
                    entries_differing: status.drift.entries_differing,
                },
            },
            restart: Restart {
                time_to_ready_us: self.ready_after_us(),
                entries_rewritten: status.start.entries_written,
            },
            tables: status
                .pressure
                .into_iter()
                .zip(status.room)
                .map(|(pressure, room)| TablePressure {
                    table: pressure.table.to_owned(),
                    used: pressure.used,
                    capacity: pressure.capacity,
                    room,
                })
                .collect(),
            resources: status.resources.into_iter().map(|(kind, count)| (kind, count as u64)).collect(),
            blocked_reason: status.trouble,
            loading: status.loading,
        }
    }
}

/// A page of what the store has.
pub(super) fn page(journal: &Journal, query: &ListQuery, limit: usize) -> Result<Page, ReadError> {
    let ListQuery { kind, filter, after } = query;
    let admits = |stored: &StoredResource<'_>| filter.admits(stored.name, stored.owner, stored.changed_lsn);
    let page = journal.owned_resources_page(*kind, &filter.name_prefix, after.as_deref(), limit, admits)?;
    Ok(Page { resources: page.resources.into_iter().map(stored).collect(), next: page.next })
}

fn source_state(state: journal::SourceState) -> SourceState {
    let journal::SourceState { incarnation, last_version, last_lsn, .. } = state;
    let ttl = state.expires_after_seconds().map(|seconds| Duration::from_secs(seconds.into()));
    SourceState { incarnation, last_version, last_lsn, ttl, expired: state.has_expired() }
}

/// What becomes of each resource of a transaction, in the order of the deltas that hold.
fn compare(journal: &Journal, transaction: Transaction) -> Result<Vec<PlannedChange>, ReadError> {
    let mut seen = HashSet::new();
    let mut deltas: Vec<(ResourceKey, Delta)> = Vec::with_capacity(transaction.deltas.len());
    for delta in transaction.deltas.into_iter().rev() {
        let key = delta.key();
        if seen.insert(key.clone()) {
            deltas.push((key, delta));
        }
    }
    let change = |(key, delta): (ResourceKey, Delta)| {
        let before = journal.owned_resource(&key)?;
        let effect = match (&delta, &before) {
            (Delta::Upsert(_), None) => Effect::Created,
            (Delta::Upsert(resource), Some(before)) if *resource == before.resource => Effect::Unchanged,
            (Delta::Upsert(_), Some(_)) => Effect::Updated,
            (Delta::Remove(_), None) => Effect::Absent,
            (Delta::Remove(_), Some(_)) => Effect::Removed,
        };
        let (changed_lsn, owner) = before.map(|before| (before.changed_lsn, before.owner)).unwrap_or_default();
        Ok(PlannedChange { key, effect, changed_lsn, owner })
    };
    deltas.into_iter().rev().map(change).collect()
}

fn stored(journal::OwnedResource { resource, changed_lsn, owner }: journal::OwnedResource) -> Stored {
    Stored { resource, changed_lsn, owner }
}

/// Every pin under the pin root, in order. What cannot be read is left out: this is a report, not a check.
fn pins(pin_root: &Path) -> Vec<String> {
    let mut folders = vec![pin_root.to_owned()];
    let mut pins: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_folder = entry.file_type().is_ok_and(|file_type| file_type.is_dir());
            if is_folder { &mut folders } else { &mut pins }.push(entry.path());
        }
    }
    pins.sort();
    pins.into_iter().map(|pin| pin.display().to_string()).collect()
}
