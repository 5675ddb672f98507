//! The transaction protocol: stage, flip, retire.
//!
//! ```text
//!             diff against what is visible
//!  changes ──────────────────────────────▶ writes ──stage──▶ versions with epoch N > E: nobody sees them
//!                                                              │
//!                                                            flip: active_epoch := N, one store: everybody sees them
//!                                                              │
//!                                           a grace period later: retire what no reader can reach any more
//! ```
//!
//! One number decides what may be written: the *quiesced epoch* Q. Every program that runs now began at or after the flip
//! to Q, because a grace period has passed since. From that follows, by name:
//!
//! * `STAGE`: a cell may be staged only if its visible version's epoch is ≤ Q: then no reader selects the other one.
//! * `REUSE`: slots of `endpoints` may be written again only if the flip that left them is ≤ Q.
//! * `RETIRE`: an index entry is deleted, and a cell is given to another key, only if its tombstone's epoch is ≤ Q.
//! * `ORDER`: index entries before their cells are visible; payload before its epoch; everything before the flip.
//!
//! A transaction that would break `STAGE` or `REUSE`, or that finds all free cells waiting for `RETIRE`, is not applied:
//! [`ApplyError::Blocked`] says which epoch must be quiesced first. While one waits, further records join the batch.
//! Tables have room for twice what is admitted, so that after the wait there is room for any transaction.

use std::collections::{HashSet, VecDeque};

use journal::{Durable, Head};
use storage_schema::id::Epoch;
use storage_schema::map::{self, Backend, Frontend, FrontendKey, Node, Service};

use crate::entry::{BackendKey, Changes, ServiceEntry, ServiceKey};
use crate::layout::{Layout, padded};
use crate::mutants::{self, Rule};
use crate::selection;
use crate::tables::{CellTable, PartlyInserted, TableError, Tables, Typed};

/// The one writer of a generation's tables.
#[derive(Debug)]
pub struct Applier<T> {
    pub(crate) tables: T,
    pub(crate) layout: Layout,
    pub(crate) active: Epoch,
    pub(crate) quiesced: Epoch,
    pub(crate) retiring: VecDeque<Retiring>,
}

/// An entry that is no longer visible and keeps its cell until no reader can reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Retiring {
    /// The flip that took it away.
    pub(crate) epoch: Epoch,
    pub(crate) entry: RetiringEntry,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetiringEntry {
    Frontend(FrontendKey),
    Service(ServiceKey),
    Backend(BackendKey),
}

/// What a flip did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Table entries written: cells, runs and index entries.
    pub entries: u64,
    /// Whether runs were moved to the other half.
    pub compacted: bool,
}

/// Why changes were not applied. Nothing became visible.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Readers of an older epoch may still use what would be written.
    #[error("readers must pass epoch {until} first")]
    Blocked {
        /// The epoch that must be quiesced.
        until: Epoch,
    },
    /// A table has no room, although admission has seen to it: the tables are smaller than the limits.
    #[error("{table} is full: {capacity} entries")]
    Full {
        /// Which.
        table: &'static str,
        /// Its entries.
        capacity: u32,
    },
    /// The kernel refused a call.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A cell that the applier has written shows nothing at the active epoch: somebody else has written to it.
    #[error("cell {cell} of {table} has no version that is visible at epoch {epoch}: something else has written to it")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// Which cell.
        cell: u32,
        /// The active epoch.
        epoch: Epoch,
    },
    /// Applying again what is visible already would change something: the tables are not what the journal says.
    #[error("the tables differ from the journal's state at their own epoch {epoch}: {entries} entries")]
    Differs {
        /// The active epoch.
        epoch: Epoch,
        /// How many entries differ.
        entries: u64,
    },
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// The table's name.
    pub table: &'static str,
    /// Entries in use, those that wait to be retired included.
    pub used: u64,
    /// Entries there are.
    pub capacity: u64,
}

/// The writes that a set of changes comes down to.
#[derive(Debug, Default)]
struct Writes {
    backends: Vec<(u32, Backend)>,
    runs: Vec<(u32, Vec<u32>)>,
    services: Vec<(u32, Service)>,
    index: Vec<(FrontendKey, u32)>,
    frontends: Vec<(u32, Frontend)>,
    node: Option<Node>,
    retiring: Vec<RetiringEntry>,
    /// Services and backends that got a cell for this; they give it back if nothing comes of it.
    allocated: Vec<RetiringEntry>,
    /// How many of `index` have been made.
    indexed: usize,
    compacted: bool,
    /// The newest epoch that readers must have passed.
    until: Epoch,
}

impl Writes {
    fn entries(&self) -> u64 {
        let cells = self.backends.len() + self.services.len() + self.frontends.len() + usize::from(self.node.is_some());
        (cells + self.runs.len() + self.index.len()) as u64
    }

    /// `STAGE`, for a cell that shows what it shows since `since`.
    fn stage_after(&mut self, since: Epoch) {
        if mutants::holds(Rule::Stage) {
            self.until = self.until.max(since);
        }
    }

    /// `REUSE`, for slots that were left at `left`.
    fn reuse_after(&mut self, left: Epoch) {
        if mutants::holds(Rule::Reuse) {
            self.until = self.until.max(left);
        }
    }
}

impl<T: Tables> Applier<T> {
    /// The tables.
    pub const fn tables(&self) -> &T {
        &self.tables
    }

    /// The epoch that readers see.
    pub const fn active(&self) -> Epoch {
        self.active
    }

    /// Whether entries wait for [`Applier::quiesce`].
    pub fn has_retiring(&self) -> bool {
        !self.retiring.is_empty()
    }

    /// Makes the tables show the state of `head`: the state they show now, with these changes.
    ///
    /// Idempotent: what is as it should be is not written. A head older than what is visible changes nothing; for the
    /// head that is visible, changes that would change something are an error, as they show the tables to be wrong.
    pub fn apply(&mut self, changes: &Changes, head: Durable<Head>) -> Result<Applied, ApplyError> {
        let target = Epoch::from(head.lsn);
        if target < self.active {
            return Ok(Applied::default());
        }
        let runs = self.layout.runs.clone();
        let mut writes = Writes::default();
        let outcome = self.diff(changes, target, &mut writes).and_then(|()| {
            if target == self.active {
                return match writes.entries() {
                    0 => Ok(()),
                    entries => Err(ApplyError::Differs { epoch: self.active, entries }),
                };
            }
            if writes.until > self.quiesced {
                return Err(ApplyError::Blocked { until: writes.until });
            }
            self.commit(&mut writes, target, &head).inspect_err(|_| self.unstage(&writes))
        });
        match outcome {
            Ok(()) => {
                self.retiring.extend(writes.retiring.iter().map(|entry| Retiring { epoch: target, entry: *entry }));
                Ok(Applied { entries: writes.entries(), compacted: writes.compacted })
            }
            Err(error) => {
                self.layout.runs = runs;
                for entry in &writes.allocated {
                    self.give_back(entry);
                }
                let (indexed, not_indexed) = writes.index.split_at(writes.indexed);
                for (key, _) in not_indexed {
                    self.layout.frontends.release(key);
                }
                // As after a crash: what is in the index keeps its cell. It is used if the key comes back, and is retired
                // if not. To delete it here would be one more call that may be refused.
                let retiring = |key| Retiring { epoch: self.active, entry: RetiringEntry::Frontend(key) };
                self.retiring.extend(indexed.iter().map(|(key, _)| retiring(*key)));
                Err(error)
            }
        }
    }

    /// Takes note that no reader of an epoch before `epoch` is left, and retires what that allows.
    pub fn quiesce(&mut self, epoch: Epoch) -> Result<(), TableError> {
        self.quiesced = self.quiesced.max(epoch);
        while let Some(retiring) = self.retiring.front().filter(|retiring| retiring.epoch <= self.quiesced) {
            fail::fail_point!("applier.before_retire");
            let entry = retiring.entry;
            self.retire(&entry)?;
            self.retiring.pop_front();
            fail::fail_point!("applier.after_retire");
        }
        Ok(())
    }

    /// How full the tables are.
    pub fn pressure(&self) -> [Pressure; 4] {
        let Layout { frontends, services, backends, runs } = &self.layout;
        let cells = |table, used: usize, capacity| Pressure { table, used: used as u64, capacity: u64::from(capacity) };
        [
            cells(map::name::FRONTENDS, frontends.used(), frontends.capacity()),
            cells(map::name::SERVICES, services.used(), services.capacity()),
            cells(map::name::BACKENDS, backends.used(), backends.capacity()),
            cells(map::name::ENDPOINTS, runs.used() as usize, runs.half()),
        ]
    }

    /// Works out the writes. Cells and slots that they need are taken from the layout.
    fn diff(&mut self, changes: &Changes, target: Epoch, writes: &mut Writes) -> Result<(), ApplyError> {
        for (key, address) in &changes.backends {
            self.diff_backend(*key, *address, writes)?;
        }
        self.diff_services(changes, target, writes)?;
        for (key, service) in &changes.frontends {
            self.diff_frontend(*key, *service, writes)?;
        }
        if let Some(node) = changes.node {
            let (since, visible) = self.visible::<Node>(0)?;
            if visible != node {
                writes.stage_after(since);
                writes.node = Some(node);
            }
        }
        Ok(())
    }

    fn diff_backend(
        &mut self,
        key: BackendKey,
        address: Option<[u32; 4]>,
        writes: &mut Writes,
    ) -> Result<(), ApplyError> {
        let entry = RetiringEntry::Backend(key);
        let Some(address) = address else {
            if let Some(cell) = self.layout.backends.get(&key) {
                self.diff_cell(cell, Backend::default(), entry, writes, |writes| &mut writes.backends)?;
            }
            return Ok(());
        };
        let Some((cell, new)) = self.layout.backends.allocate(key) else {
            return Err(self.full(map::name::BACKENDS, self.layout.backends.capacity()));
        };
        if new {
            writes.allocated.push(entry);
        }
        self.diff_cell(cell, backend_payload(key, address), entry, writes, |writes| &mut writes.backends)
    }

    fn diff_services(&mut self, changes: &Changes, target: Epoch, writes: &mut Writes) -> Result<(), ApplyError> {
        let mut runs = Vec::new();
        for (key, entry) in &changes.services {
            match entry {
                Some(entry) => runs.extend(self.diff_service(*key, entry, writes)?),
                None => {
                    if let Some(cell) = self.layout.services.get(key) {
                        let entry = RetiringEntry::Service(*key);
                        self.diff_cell(cell, Service::default(), entry, writes, |writes| &mut writes.services)?;
                    }
                }
            }
        }
        if runs.is_empty() {
            return Ok(());
        }
        let slots = |runs: &[NewRun]| runs.iter().map(|run| padded(length(&run.endpoints))).sum::<u32>();
        if !self.layout.runs.fits(slots(&runs)) {
            self.move_other_runs(&mut runs, writes)?;
            self.layout.runs.switch(target);
            writes.compacted = true;
        }
        writes.reuse_after(self.layout.runs.free_from());
        for run in runs {
            let run_length = length(&run.endpoints);
            let full = ApplyError::Full { table: map::name::ENDPOINTS, capacity: self.layout.runs.half() };
            let run_offset = self.layout.runs.allocate(run_length).ok_or(full)?;
            writes.runs.push((run_offset, run.endpoints));
            writes.services.push((run.cell, Service { run_offset, run_length, ..run.payload }));
        }
        Ok(())
    }

    /// Adds what a service port needs, but for its run, which is returned if it needs a new one.
    fn diff_service(
        &mut self,
        key: ServiceKey,
        entry: &ServiceEntry,
        writes: &mut Writes,
    ) -> Result<Option<NewRun>, ApplyError> {
        let Some((cell, new)) = self.layout.services.allocate(key) else {
            return Err(self.full(map::name::SERVICES, self.layout.services.capacity()));
        };
        if new {
            writes.allocated.push(RetiringEntry::Service(key));
        }
        let backend = |key| self.layout.backends.get(key).expect("a plan has an entry for each backend it names");
        let cells: Vec<u32> = entry.backends().map(backend).collect();
        let endpoints = selection::run(entry, &cells);
        let payload = service_payload(key, entry);
        let (since, visible) = self.visible::<Service>(cell)?;
        let run = Service { run_offset: visible.run_offset, run_length: visible.run_length, ..payload };
        if visible == run
            && visible.run_length == length(&endpoints)
            && self.tables.run(visible.run_offset, visible.run_length).eq(endpoints.iter().copied())
        {
            return Ok(None);
        }
        writes.stage_after(since);
        if endpoints.is_empty() {
            if visible != payload {
                writes.services.push((cell, payload));
            }
            return Ok(None);
        }
        Ok(Some(NewRun { cell, payload, endpoints }))
    }

    /// Adds the runs of all other visible service ports, so that they are written to the other half.
    fn move_other_runs(&self, runs: &mut Vec<NewRun>, writes: &mut Writes) -> Result<(), ApplyError> {
        let written = runs.iter().map(|run| run.cell).chain(writes.services.iter().map(|(cell, _)| *cell));
        let written: HashSet<u32> = written.collect();
        for (_, cell) in self.layout.services.keys().filter(|(_, cell)| !written.contains(cell)) {
            let (since, payload) = self.visible::<Service>(cell)?;
            if payload.run_length > 0 {
                writes.stage_after(since);
                let endpoints = self.tables.run(payload.run_offset, payload.run_length).collect();
                runs.push(NewRun { cell, payload, endpoints });
            }
        }
        Ok(())
    }

    fn diff_frontend(
        &mut self,
        key: FrontendKey,
        service: Option<ServiceKey>,
        writes: &mut Writes,
    ) -> Result<(), ApplyError> {
        let entry = RetiringEntry::Frontend(key);
        let Some(service) = service else {
            if let Some(cell) = self.layout.frontends.get(&key) {
                self.diff_cell(cell, Frontend::default(), entry, writes, |writes| &mut writes.frontends)?;
            }
            return Ok(());
        };
        let Some((cell, new)) = self.layout.frontends.allocate(key) else {
            return Err(self.full(map::name::FRONTENDS, self.layout.frontends.capacity()));
        };
        if new {
            writes.index.push((key, cell));
        }
        let index = self.layout.services.get(&service).expect("a plan has an entry for each service port it names");
        self.diff_cell(cell, frontend_payload(key, index), entry, writes, |writes| &mut writes.frontends)
    }

    /// Adds a cell's write, unless it shows the payload already.
    fn diff_cell<P: CellTable>(
        &self,
        cell: u32,
        payload: P,
        entry: RetiringEntry,
        writes: &mut Writes,
        list: impl FnOnce(&mut Writes) -> &mut Vec<(u32, P)>,
    ) -> Result<(), ApplyError> {
        let (since, visible) = self.visible::<P>(cell)?;
        if visible == payload {
            return Ok(());
        }
        writes.stage_after(since);
        if !payload.is_present() {
            writes.retiring.push(entry);
        }
        list(writes).push((cell, payload));
        Ok(())
    }

    fn visible<P: CellTable>(&self, cell: u32) -> Result<(Epoch, P), ApplyError> {
        let damaged = ApplyError::Damaged { table: P::TABLE.name(), cell, epoch: self.active };
        self.tables.visible::<P>(cell, self.active).ok_or(damaged)
    }

    /// Stages the writes and flips. On an error nothing is visible, and `indexed` says which index entries were made.
    fn commit(&mut self, writes: &mut Writes, target: Epoch, head: &Head) -> Result<(), ApplyError> {
        fail::fail_point!("applier.before_stage");
        self.stage(&writes.backends, target);
        fail::fail_point!("applier.after_backends");
        for (offset, slots) in &writes.runs {
            self.tables.write_run(*offset, slots);
        }
        self.stage(&writes.services, target);
        fail::fail_point!("applier.after_services");
        if let Err(PartlyInserted { inserted, error }) = self.tables.index_insert_all(&writes.index) {
            writes.indexed = inserted;
            return Err(error.into());
        }
        self.stage(&writes.frontends, target);
        if let Some(node) = &writes.node {
            self.tables.stage(0, self.active, target, node);
        }
        self.flip(target, head);
        Ok(())
    }

    /// Makes what was staged visible.
    pub(crate) fn flip(&mut self, target: Epoch, head: &Head) {
        self.tables.store_head(self.active, &map::Head { epoch: target.0, record_hash: head.hash.0 });
        fail::fail_point!("applier.before_flip");
        self.tables.flip(target);
        self.active = target;
        fail::fail_point!("applier.after_flip");
    }

    fn stage<P: CellTable>(&self, cells: &[(u32, P)], target: Epoch) {
        for (cell, payload) in cells {
            self.tables.stage(*cell, self.active, target, payload);
        }
    }

    /// Makes what was staged invisible for good: a later flip, to an epoch above `target`, must not show it.
    fn unstage(&self, writes: &Writes) {
        for (cell, _) in &writes.backends {
            self.tables.scrub::<Backend>(*cell, self.active);
        }
        for (cell, _) in &writes.services {
            self.tables.scrub::<Service>(*cell, self.active);
        }
        for (cell, _) in &writes.frontends {
            self.tables.scrub::<Frontend>(*cell, self.active);
        }
        self.tables.scrub::<Node>(0, self.active);
    }

    fn retire(&mut self, entry: &RetiringEntry) -> Result<(), TableError> {
        // An entry that came back before it was retired keeps its cell.
        match entry {
            RetiringEntry::Frontend(key) => {
                if let Some(cell) = self.layout.frontends.get(key)
                    && self.is_absent::<Frontend>(cell)
                {
                    self.tables.index_remove(key)?;
                    self.layout.frontends.release(key);
                }
            }
            RetiringEntry::Service(key) => {
                if let Some(cell) = self.layout.services.get(key)
                    && self.is_absent::<Service>(cell)
                {
                    self.layout.services.release(key);
                }
            }
            RetiringEntry::Backend(key) => {
                if let Some(cell) = self.layout.backends.get(key)
                    && self.is_absent::<Backend>(cell)
                {
                    self.layout.backends.release(key);
                }
            }
        }
        Ok(())
    }

    /// Whether a cell shows nothing, and has done so for all readers there are.
    fn is_absent<P: CellTable>(&self, cell: u32) -> bool {
        let visible = self.tables.visible::<P>(cell, self.active);
        visible.is_some_and(|(since, payload)| {
            !payload.is_present() && (since <= self.quiesced || !mutants::holds(Rule::Retire))
        })
    }

    /// What it means that a table has no free cell: those that wait to be retired come first.
    fn full(&self, table: &'static str, capacity: u32) -> ApplyError {
        match self.retiring.back() {
            Some(newest) => ApplyError::Blocked { until: newest.epoch },
            None => ApplyError::Full { table, capacity },
        }
    }

    fn give_back(&mut self, entry: &RetiringEntry) {
        match entry {
            RetiringEntry::Frontend(key) => self.layout.frontends.release(key),
            RetiringEntry::Service(key) => self.layout.services.release(key),
            RetiringEntry::Backend(key) => self.layout.backends.release(key),
        }
    }
}

/// A service port that needs a new run.
#[derive(Debug)]
struct NewRun {
    cell: u32,
    /// But for the run.
    payload: Service,
    endpoints: Vec<u32>,
}

pub(crate) fn backend_payload(key: BackendKey, address: [u32; 4]) -> Backend {
    let (id, port_be, family) = (key.workload.0, key.port.to_be(), key.family as u8);
    let flags = if key.is_waypoint { Backend::WAYPOINT } else { 0 };
    Backend { id, address, port_be, family, flags, ..Backend::default() }
}

/// But for the run.
pub(crate) fn service_payload(key: ServiceKey, entry: &ServiceEntry) -> Service {
    let ServiceKey { service, port, protocol, family } = key;
    let ServiceEntry { policy, flags, affinity, .. } = *entry;
    Service { id: service.0, port, family: family as u8, protocol, policy, flags, affinity, ..Service::default() }
}

pub(crate) const fn frontend_payload(key: FrontendKey, index: u32) -> Frontend {
    Frontend { key, kind: Frontend::SERVICE, index, reserved: 0 }
}

pub(crate) fn length(endpoints: &[u32]) -> u32 {
    u32::try_from(endpoints.len()).expect("admission keeps endpoints within their capacity, which is a u32")
}
