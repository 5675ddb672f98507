//! Going on with what is pinned: believed at once, proven before anything is written.
//!
//! | pins | what happens | writes |
//! |---|---|---|
//! | all attached generations (two, if a switch was interrupted) are of this store, boot, ABI and object, and show one record, which the journal has, hash and all | the newest is *believed*: connections go on with it, and the agent is ready; the rest of this table comes behind that | 0 |
//! | a complete generation, believed or not, large enough, at the durable LSN | scrubbed, compared cell by cell, gone on with | 0 |
//! | the same, behind the durable LSN | scrubbed, brought up to date with one flip | what changed |
//! | none, or one that does not fit (other store, boot, ABI or object; too small; damaged; not as the journal says; ahead of it) | a new one is built beside it, the links switch over, the old one goes | all |
//!
//! In every case the links run a complete generation before, during and after, so that the datapath never stands still.
//!
//! To believe is to leave connections what they have. The tables are what a former agent of this very journal has made visible
//! with its last flip, whole; so connections see a state that the node had, be it one that is behind the durable LSN. While
//! the journal's state is being loaded, nothing is staged, nothing flips, and pushes wait, as there is no model yet to admit
//! them against. Only the generation that connections run already is believed: another one, complete as it may be, could be
//! older than what they have seen.

use loader::{Generation, Grace};
use storage_schema::codec;
use storage_schema::id::{Epoch, Lsn};
use storage_schema::map::{Capacities, Control};

use journal::{Durable, Head, Journal};

use crate::apply::{Applied, Applier, ApplyError};
use crate::cancel::Cancel;
use crate::compare::{Comparison, Staged};
use crate::entry::Changes;
use crate::home::{Home as _, KernelHome};
use crate::load::Loader;
use crate::model::{Model, Usage};
use crate::plan;
use crate::recovery::{Identity, RecoveryError, believable};
use crate::sizing;
use crate::start::{Built, Prepared, StartError, StartReport, Started, build, load_model};
use crate::tables::{KernelTables, TableError};

/// A generation that connections go on with, unseen.
#[derive(Debug)]
pub(crate) struct Believed {
    pub(crate) generation: Generation,
    pub(crate) capacities: Capacities,
    pub(crate) epoch: Epoch,
}

/// The generation that may be believed, if there is one. Only reads, and only little.
pub(crate) fn believe(
    options: &loader::Options,
    identity: &Identity,
    journal: &Journal,
    limits: &Capacities,
) -> Option<Believed> {
    // What cannot be read here is not believed, and trouble with it is told by those who have to.
    let attached = loader::generations(&options.pin_root).ok()?.into_iter().filter(|(_, hooks)| !hooks.is_empty());
    let shown = |(generation, _): (Generation, _)| {
        if !loader::uses_flow(&generation, &options.pin_root) {
            return None;
        }
        let control = generation.control().ok()?.filter(|control| identity.matches(control))?;
        check_history(journal, &control, journal.durable().head()).ok()?;
        let capacities = generation.capacities().ok()?;
        Some(Believed { generation, capacities, epoch: Epoch(control.active_epoch) })
    };
    let mut attached: Vec<Option<Believed>> = attached.map(shown).collect();
    let chosen = believable(attached.iter().map(|believed| Some(believed.as_ref()?.epoch)))?;
    let believed = attached.swap_remove(chosen)?;
    let Believed { capacities, .. } = &believed;
    // Other limits than when it was made: whether the state fits them must be known before anything else.
    let exceeds = capacities.frontends > limits.frontends
        || capacities.services > limits.services
        || capacities.backends > limits.backends
        || capacities.endpoints > limits.endpoints;
    let is_small = sizing::growth(capacities, &Usage::default(), limits).is_some();
    (!exceeds && !is_small).then_some(believed)
}

/// Loads the journal's state, and has connections decided by tables that show it.
pub(crate) fn prepare(
    home: KernelHome,
    journal: &Journal,
    limits: &Capacities,
    shown: Option<Loader>,
    cancel: &Cancel,
) -> Result<Prepared<KernelHome>, StartError> {
    fail::fail_point!("applier.before_load");
    let (model, head) = load_model(journal, limits, shown, cancel)?;
    let grace = Grace::new()?;
    let started = start_kernel(home, &grace, limits, journal, cancel, &model, head)?;
    fail::fail_point!("applier.before_loaded");
    let wait_for_readers = Box::new(move || grace.wait().map_err(|error| error.to_string()));
    Ok(Prepared { started, model, wait_for_readers })
}

fn start_kernel(
    mut home: KernelHome,
    grace: &Grace,
    limits: &Capacities,
    journal: &Journal,
    cancel: &Cancel,
    model: &Model,
    head: Durable<Head>,
) -> Result<Started<KernelHome>, StartError> {
    let start = KernelStart { home: &home, grace, limits, journal, cancel, model, head };
    let Standing { generation, applier, mut report, compared } = start.resume_or_build()?;
    fail::fail_point!("applier.before_activate");
    report.links_changed = home.activate(Some(&generation))?;
    fail::fail_point!("applier.after_activate");
    Ok(Started { home, applier, generation: Some(generation), report, compared })
}

struct KernelStart<'s> {
    home: &'s KernelHome,
    grace: &'s Grace,
    limits: &'s Capacities,
    journal: &'s Journal,
    cancel: &'s Cancel,
    model: &'s Model,
    head: Durable<Head>,
}

/// Tables that show the journal's state, attached or not.
struct Standing {
    generation: Generation,
    applier: Applier<KernelTables>,
    report: StartReport,
    compared: Option<Comparison>,
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
    #[error("{} of its entries are not as the journal says", .0.differing)]
    Drifted(Box<Comparison>),
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Load(#[from] loader::LoadError),
}

impl KernelStart<'_> {
    fn resume_or_build(&self) -> Result<Standing, StartError> {
        let (mut why_not, mut compared) = (None, None);
        // What the tables must hold, once there are some to compare with it.
        let mut wanted = None;
        for generation in self.home.datapath().complete_generations()? {
            self.cancel.check()?;
            match self.resume(&generation, &mut wanted) {
                Ok((applier, report, compared)) => return Ok(Standing { generation, applier, report, compared }),
                Err(unfit) => {
                    tracing::warn!(generation = generation.number(), reason = %unfit, "the pinned maps are replaced");
                    why_not.get_or_insert(unfit.to_string());
                    if let Unfit::Drifted(comparison) = unfit {
                        compared.get_or_insert(*comparison);
                    }
                }
            }
        }
        drop(wanted);
        let capacities = sizing::fitting(&self.model.usage(), self.limits);
        let Built { generation, applier, entries } = build(self.home, capacities, self.model, self.head, self.cancel)?;
        let generation = generation.expect("a generation of the kernel's is pinned");
        let rebuilt = Some(why_not.unwrap_or_else(|| "nothing was pinned".to_owned()));
        let report = StartReport { entries_written: entries, rebuilt, ..StartReport::default() };
        Ok(Standing { generation, applier, report, compared })
    }

    fn resume(
        &self,
        generation: &Generation,
        wanted: &mut Option<Changes>,
    ) -> Result<(Applier<KernelTables>, StartReport, Option<Comparison>), Unfit> {
        let control = generation.control()?.filter(|c| self.home.identity().matches(c)).ok_or(Unfit::Foreign)?;
        let capacities = generation.capacities()?;
        if sizing::growth(&capacities, &self.model.usage(), self.limits).is_some() {
            return Err(Unfit::TooSmall);
        }
        check_history(self.journal, &control, self.head)?;
        fail::fail_point!("applier.before_recover");
        let (mut applier, recovered) = Applier::recover(KernelTables::open(generation, capacities)?)?;
        fail::fail_point!("applier.before_compare");
        let wanted = wanted.get_or_insert_with(|| plan::everything(self.model));
        let (applied, compared) = if applier.active() == Epoch::from(self.head.lsn) {
            let comparison = applier.compare(wanted, Staged::Nothing)?;
            if comparison.differing > 0 {
                return Err(Unfit::Drifted(Box::new(comparison)));
            }
            (Applied::default(), Some(comparison))
        } else {
            (self.catch_up(&mut applier, wanted)?, None)
        };
        let report = StartReport {
            entries_written: applied.entries + recovered.reindexed as u64,
            scrubbed: recovered.scrubbed,
            ..StartReport::default()
        };
        Ok((applier, report, compared))
    }

    fn catch_up(&self, applier: &mut Applier<KernelTables>, wanted: &mut Changes) -> Result<Applied, Unfit> {
        match applier.reconcile(wanted, self.head) {
            Err(ApplyError::Blocked { .. }) => {
                let active = applier.active();
                self.grace.wait()?;
                applier.quiesce(active)?;
                Ok(applier.reconcile(wanted, self.head)?)
            }
            outcome => Ok(outcome?),
        }
    }
}

/// Whether the state that is shown is one that this journal has had.
fn check_history(journal: &Journal, control: &Control, durable: Durable<Head>) -> Result<(), Unfit> {
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
        journal.encoded_record(lsn).ok().map(|record| codec::hash_record(&record.encoded).0)
    };
    // A record that is no longer kept cannot be compared, so its state is not believed.
    if journaled.is_some() && shown == journaled { Ok(()) } else { Err(Unfit::OtherHistory { epoch }) }
}
