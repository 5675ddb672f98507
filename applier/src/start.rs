//! The start: the journal's state, and tables that show it.
//!
//! What is pinned is gone on with where it can be (`resume`); everything else begins with empty tables that are
//! filled from the journal before anybody sees them.

use std::time::Duration;

use journal::{Durable, Head, Journal, ReadError, Reader, State};
use loader::{Generation, LoadError};
use storage_schema::id::Lsn;
use storage_schema::map::Capacities;

use crate::apply::{Applier, ApplyError};
use crate::cancel::Cancel;
use crate::compare::Comparison;
use crate::fill;
use crate::home::{Home, MemoryHome};
use crate::load::Loader;
use crate::model::Model;
use crate::recovery::Identity;
use crate::sizing;
use crate::tables::TableError;

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
    /// It was told to stop.
    #[error("given up, as the agent stops")]
    Cancelled,
}

/// How the start went. Where pinned tables were believed, it is complete once the state is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartReport {
    /// From the open journal to attached programs that show a state of it.
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
    /// What was found when pinned tables were compared with the journal.
    pub(crate) compared: Option<Comparison>,
}

/// All that the applier thread needs.
pub(crate) struct Prepared<H: Home> {
    pub(crate) started: Started<H>,
    pub(crate) model: Model,
    pub(crate) wait_for_readers: Box<dyn Fn() -> Result<(), String> + Send>,
}

/// A generation that is complete and that nobody sees.
#[derive(Debug)]
pub(crate) struct Built<H: Home> {
    pub(crate) generation: Option<Generation>,
    pub(crate) applier: Applier<H::Tables>,
    /// Table entries that were written.
    pub(crate) entries: u64,
}

/// The journal's state: what opening it has shown and the records since, or else what the store has. Nothing may be pushed
/// meanwhile.
pub(crate) fn load_model(
    journal: &Journal,
    limits: &Capacities,
    shown: Option<Loader>,
    cancel: &Cancel,
) -> Result<(Model, Durable<Head>), StartError> {
    let head = journal.durable().head();
    let model = match shown.and_then(|shown| from_shown(journal, shown)) {
        Some(model) => model,
        None => {
            journal.blocking_wait_stored(head.lsn)?;
            cancel.check()?;
            read_model(journal)?
        }
    };
    cancel.check()?;
    model.check_capacities(limits).map_err(|over| match over {
        crate::Rejection::OverCapacity { table, needed, capacity } => StartError::TooSmall { table, needed, capacity },
        other => unreachable!("capacities are all that was checked, and the answer is {other}"),
    })?;
    Ok((model, head))
}

/// `None`: it cannot be used, and the store is read instead.
fn from_shown(journal: &Journal, shown: Loader) -> Option<Model> {
    let shown_lsn = journal.open_report().shown_lsn?;
    let model = journal.read_from(shown_lsn.next()).and_then(|later| shown.finish_after(later));
    model.inspect_err(|error| tracing::warn!(%error, "the store is read once more")).ok()
}

/// The model of the state that the journal's store shows.
pub(crate) fn read_model(journal: &Journal) -> Result<Model, ReadError> {
    let mut loader = Loader::new(usize::try_from(journal.resources_count()?).unwrap_or_default());
    journal.for_each_encoded(|stored| loader.add(&stored))?;
    Ok(loader.finish()?)
}

/// The model of the state at a record, from the journal alone.
pub(crate) fn read_model_at(journal: &Journal, head: Durable<Head>, cancel: &Cancel) -> Result<Model, StartError> {
    let state = journal.reader().state_at_while(head.lsn, || !cancel.is_cancelled());
    cancel.check()?;
    let model = model_of(&state?)?;
    cancel.check()?;
    Ok(model)
}

/// The model of the state at a record.
pub fn read_past(reader: &Reader, lsn: Lsn) -> Result<Model, ReadError> {
    model_of(&reader.state_at(lsn)?)
}

fn model_of(state: &State) -> Result<Model, ReadError> {
    let mut loader = Loader::new(state.len());
    state.iter().for_each(|stored| loader.add(&stored));
    Ok(loader.finish()?)
}

/// Builds a new generation that shows `model`, the state at `head`; it is complete, and nobody sees it yet. Of one that is given
/// up nothing stays.
pub(crate) fn build<H: Home>(
    home: &H,
    capacities: Capacities,
    model: &Model,
    head: Durable<Head>,
    cancel: &Cancel,
) -> Result<Built<H>, StartError> {
    cancel.check()?;
    // To make large tables takes the kernel as long as it takes to work out what goes into them.
    fill::ahead(model, |parts| {
        let (generation, tables) = home.create(&capacities)?;
        let mut applier = Applier::create(tables, home.identity());
        let filled = cancel.check().and_then(|()| {
            let entries = applier.fill_with(parts, model, head).map_err(StartError::Fill)?;
            cancel.check()?;
            Ok(entries)
        });
        match filled {
            Ok(entries) => {
                fail::fail_point!("applier.before_complete");
                applier.complete();
                Ok(Built { generation, applier, entries })
            }
            Err(error) => {
                if let Some(Err(error)) = generation.as_ref().map(Generation::discard) {
                    tracing::warn!(%error, "a generation that was not finished stays until the next switch");
                }
                Err(error)
            }
        }
    })
}

/// Starts with tables in memory.
pub(crate) fn start_memory(
    identity: Identity,
    limits: &Capacities,
    model: &Model,
    head: Durable<Head>,
    cancel: &Cancel,
) -> Result<Started<MemoryHome>, StartError> {
    let home = MemoryHome::new(identity);
    let capacities = sizing::fitting(&model.usage(), limits);
    let Built { generation, applier, entries } = build(&home, capacities, model, head, cancel)?;
    let report = StartReport { entries_written: entries, ..StartReport::default() };
    Ok(Started { home, applier, generation, report, compared: None })
}
