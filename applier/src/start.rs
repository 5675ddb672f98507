//! The start: go on with the generation that is there, or build a new one from the journal.
//!
//! | pins | what happens | writes |
//! |---|---|---|
//! | a complete generation of this store, boot, ABI and object, large enough, at the durable LSN | verified, gone on with | 0 |
//! | the same, behind the durable LSN | scrubbed, brought up to date with one flip | what changed |
//! | none, or one that does not fit (other store, boot, ABI or object; too small; damaged; ahead of the journal) | a new one is built beside it, the links switch over, the old one goes | all |
//!
//! In every case the links run a complete generation before, during and after, so that the datapath never stands still.

use std::time::{Duration, Instant};

use journal::{Durable, Head, Journal, ReadError, Reader};
use loader::{Generation, Grace, LoadError};
use storage_schema::codec;
use storage_schema::id::{Epoch, Lsn};
use storage_schema::map::{Capacities, Control};

use crate::apply::{Applied, Applier, ApplyError};
use crate::entry::Changes;
use crate::home::{Home, KernelHome, MemoryHome};
use crate::load::{Loader, Undecodable};
use crate::model::{Model, Usage};
use crate::plan;
use crate::recovery::{Identity, RecoveryError};
use crate::sizing;
use crate::tables::{KernelTables, TableError};

/// Where the state is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// In the kernel: pinned maps and programs in a cgroup.
    Kernel(loader::Options),
    /// In this process' memory, seen by nobody else.
    Memory,
}

/// Why the applier did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state could not be read from the journal.
    #[error("the journal's state cannot be read: {0}")]
    Journal(#[from] ReadError),
    /// The kernel's side could not be set up.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tables could not be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A new generation could not be filled.
    #[error("the journal's state does not go into new tables: {0}")]
    Fill(#[source] ApplyError),
    /// The journal's state is larger than the configured tables.
    #[error("the journal's state needs {needed} entries of {table}, and capacities.{table} is {capacity}: raise it")]
    TooSmall {
        /// Which table.
        table: &'static str,
        /// Entries that the state takes.
        needed: u64,
        /// The configured capacity.
        capacity: u64,
    },
    /// A thread could not be created.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// How the start went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// From the open journal to attached programs that show its state.
    pub took: Duration,
    /// Table entries that were written.
    pub entries_written: u64,
    /// Versions that an earlier life had staged and not made visible.
    pub scrubbed: usize,
    /// Links that were made or changed.
    pub links_changed: usize,
    /// Why a new generation was built; `None`: the one that was there was gone on with.
    pub rebuilt: Option<String>,
}

/// An applier that shows the journal's state, and where its tables are.
#[derive(Debug)]
pub(crate) struct Started<H: Home> {
    pub(crate) home: H,
    pub(crate) applier: Applier<H::Tables>,
    pub(crate) generation: Option<Generation>,
    pub(crate) report: StartReport,
}

/// A generation that is complete and that nobody sees.
#[derive(Debug)]
pub(crate) struct Built<H: Home> {
    pub(crate) generation: Option<Generation>,
    pub(crate) applier: Applier<H::Tables>,
    /// Table entries that were written.
    pub(crate) entries: u64,
}

/// The journal's state, as the applier is to show it.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) head: Durable<Head>,
    pub(crate) everything: Changes,
    pub(crate) usage: Usage,
}

/// Reads the journal's state. Nothing may be pushed meanwhile.
pub(crate) fn load_model(journal: &Journal, limits: &Capacities) -> Result<(Model, Wanted), StartError> {
    let head = journal.durable().head();
    journal.blocking_wait_stored(head.lsn)?;
    let model = read_model(journal)?;
    model.check_capacities(limits).map_err(|over| match over {
        crate::Rejection::OverCapacity { table, needed, capacity } => StartError::TooSmall { table, needed, capacity },
        other => unreachable!("capacities are all that was checked, and the answer is {other}"),
    })?;
    let wanted = Wanted { head, everything: plan::everything(&model), usage: model.usage() };
    Ok((model, wanted))
}

/// The model of the state that the journal's store shows.
pub(crate) fn read_model(journal: &Journal) -> Result<Model, ReadError> {
    let mut loader = Loader::new(usize::try_from(journal.resources_count()?).unwrap_or_default());
    journal.for_each_encoded(|stored| loader.add(stored.kind, stored.name, stored.encoded))?;
    finish(loader)
}

/// What the tables must show at a record, from the journal alone.
pub(crate) fn read_wanted(journal: &Journal, head: Durable<Head>) -> Result<Wanted, ReadError> {
    let model = read_past(&journal.reader(), head.lsn)?;
    Ok(Wanted { head, everything: plan::everything(&model), usage: model.usage() })
}

/// The model of the state at a record.
pub fn read_past(reader: &Reader, lsn: Lsn) -> Result<Model, ReadError> {
    let state = reader.state_at(lsn)?;
    let mut loader = Loader::new(state.len());
    state.iter().for_each(|stored| loader.add(stored.kind, stored.name, stored.encoded));
    finish(loader)
}

fn finish(loader: Loader) -> Result<Model, ReadError> {
    loader.finish().map_err(|Undecodable { key, source }| ReadError::UndecodableResource { key, source })
}

/// Builds a new generation that shows `wanted`; it is complete, and nobody sees it yet.
pub(crate) fn build<H: Home>(home: &H, capacities: Capacities, wanted: &mut Wanted) -> Result<Built<H>, StartError> {
    let (generation, tables) = home.create(&capacities)?;
    let mut applier = Applier::create(tables, home.identity());
    let applied = applier.reconcile(&mut wanted.everything, wanted.head).map_err(StartError::Fill)?;
    fail::fail_point!("applier.before_complete");
    applier.complete();
    Ok(Built { generation, applier, entries: applied.entries })
}

/// Starts with tables in memory.
pub(crate) fn start_memory(
    identity: Identity,
    limits: &Capacities,
    mut wanted: Wanted,
) -> Result<Started<MemoryHome>, StartError> {
    let begin = Instant::now();
    let home = MemoryHome::new(identity);
    let capacities = sizing::fitting(&wanted.usage, limits);
    let Built { generation, applier, entries } = build(&home, capacities, &mut wanted)?;
    let report = StartReport { took: begin.elapsed(), entries_written: entries, ..StartReport::default() };
    Ok(Started { home, applier, generation, report })
}

/// Starts with the kernel's tables.
pub(crate) fn start_kernel(
    options: loader::Options,
    identity: Identity,
    limits: &Capacities,
    journal: &Journal,
    mut wanted: Wanted,
) -> Result<(Started<KernelHome>, Grace), StartError> {
    let begin = Instant::now();
    let mut home = KernelHome::open(options, identity)?;
    let grace = Grace::new()?;
    let start = KernelStart { home: &home, grace: &grace, limits, journal };
    let (generation, applier, mut report) = start.resume_or_build(&mut wanted)?;
    fail::fail_point!("applier.before_activate");
    report.links_changed = home.activate(Some(&generation))?;
    fail::fail_point!("applier.after_activate");
    report.took = begin.elapsed();
    Ok((Started { home, applier, generation: Some(generation), report }, grace))
}

struct KernelStart<'s> {
    home: &'s KernelHome,
    grace: &'s Grace,
    limits: &'s Capacities,
    journal: &'s Journal,
}

/// Why a generation is not gone on with.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("it was made by another build, for another journal, before this boot, or was not finished")]
    Foreign,
    #[error("its tables are too small")]
    TooSmall,
    #[error("it shows LSN {epoch}, and the journal ends at {durable_lsn}")]
    Ahead { epoch: Epoch, durable_lsn: Lsn },
    #[error("the record it shows, {epoch}, is not the journal's")]
    OtherHistory { epoch: Epoch },
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl KernelStart<'_> {
    fn resume_or_build(
        &self,
        wanted: &mut Wanted,
    ) -> Result<(Generation, Applier<KernelTables>, StartReport), StartError> {
        let mut why_not = None;
        for generation in self.home.datapath().complete_generations()? {
            match self.resume(&generation, wanted) {
                Ok((applier, report)) => return Ok((generation, applier, report)),
                Err(unfit) => {
                    tracing::warn!(generation = generation.number(), reason = %unfit, "the pinned maps are replaced");
                    why_not.get_or_insert(unfit.to_string());
                }
            }
        }
        let capacities = sizing::fitting(&wanted.usage, self.limits);
        let Built { generation, applier, entries } = build(self.home, capacities, wanted)?;
        let generation = generation.expect("a generation of the kernel's is pinned");
        let rebuilt = Some(why_not.unwrap_or_else(|| "nothing was pinned".to_owned()));
        let report = StartReport { entries_written: entries, rebuilt, ..StartReport::default() };
        Ok((generation, applier, report))
    }

    fn resume(
        &self,
        generation: &Generation,
        wanted: &mut Wanted,
    ) -> Result<(Applier<KernelTables>, StartReport), Unfit> {
        let control = generation.control()?.filter(|c| self.home.identity().matches(c)).ok_or(Unfit::Foreign)?;
        let capacities = generation.capacities()?;
        if sizing::growth(&capacities, &wanted.usage, self.limits).is_some() {
            return Err(Unfit::TooSmall);
        }
        self.check_history(&control, wanted.head)?;
        let (mut applier, recovered) = Applier::recover(KernelTables::open(generation, capacities)?)?;
        let applied = self.catch_up(&mut applier, wanted)?;
        let report = StartReport {
            entries_written: applied.entries + recovered.reindexed as u64,
            scrubbed: recovered.scrubbed,
            ..StartReport::default()
        };
        Ok((applier, report))
    }

    /// Whether the state that is shown is one that this journal has had.
    fn check_history(&self, control: &Control, durable: Durable<Head>) -> Result<(), Unfit> {
        let epoch = Epoch(control.active_epoch);
        let lsn = Lsn::from(epoch);
        if lsn > durable.lsn {
            return Err(Unfit::Ahead { epoch, durable_lsn: durable.lsn });
        }
        if lsn == Lsn::ZERO {
            return Ok(());
        }
        let shown = control.heads.iter().find(|head| head.epoch == epoch.0).map(|head| head.record_hash);
        let journaled = if lsn == durable.lsn {
            Some(durable.hash.0)
        } else {
            self.journal.encoded_record(lsn).ok().map(|record| codec::hash_record(&record.encoded).0)
        };
        // A record that is no longer kept cannot be compared, so its state is not believed.
        if journaled.is_some() && shown == journaled { Ok(()) } else { Err(Unfit::OtherHistory { epoch }) }
    }

    fn catch_up(&self, applier: &mut Applier<KernelTables>, wanted: &mut Wanted) -> Result<Applied, Unfit> {
        match applier.reconcile(&mut wanted.everything, wanted.head) {
            Err(ApplyError::Blocked { .. }) => {
                let active = applier.active();
                self.grace.wait()?;
                applier.quiesce(active)?;
                Ok(applier.reconcile(&mut wanted.everything, wanted.head)?)
            }
            outcome => Ok(outcome?),
        }
    }
}
