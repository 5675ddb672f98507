//! Where a generation's tables begin, and how an applier finds its way into tables that it did not write.
//!
//! Recovery believes the tables, not its memory: it reads the active epoch E, *scrubs* every version above E (an agent
//! that died before its flip staged them; a later flip would show them), and rebuilds the layout from what is visible at
//! E. Nothing visible is rewritten. Programs that began before E may still run, so nothing counts as quiesced.
//!
//! | found | meaning | done |
//! |---|---|---|
//! | version epoch > E | staged, never flipped | scrubbed |
//! | index entry, its cell absent | inserted and never flipped, or not yet retired | retired after a grace period |
//! | present cell without index entry | the index was tampered with | entry inserted |
//! | two cells of one key, run beyond its half, index entry of another key's cell | not written by this protocol | refused |

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;

use journal::{Durable, Head, Journal};
use storage_schema::id::{BootId, Epoch, ResourceId, StoreId};
use storage_schema::map::{Backend, Control, FINGERPRINT, Frontend, FrontendKey, Node, Service};
use zerocopy::IntoBytes;

use crate::apply::{Applied, Applier, ApplyError, Retiring, RetiringEntry};
use crate::both::both;
use crate::entry::{BackendKey, Changes, Family, ServiceKey};
use crate::layout::{Cells, Layout, Runs, padded};
use crate::tables::{CellTable, TableError, Tables, Typed};

/// What a generation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The journal that its state comes from.
    pub store_id: StoreId,
    /// The BPF object that reads it.
    pub programs_hash: [u8; 32],
    /// The boot in which it was made.
    pub boot_id: BootId,
}

impl Identity {
    /// That of a generation which this build makes for a journal now.
    pub fn of(journal: &Journal) -> Self {
        Self { store_id: journal.store_id(), programs_hash: loader::programs_hash(), boot_id: journal.boot_id() }
    }

    /// Whether a `control` entry says the same, in the ABI of this build.
    pub fn matches(&self, control: &Control) -> bool {
        control.magic == Control::MAGIC
            && control.fingerprint == FINGERPRINT
            && control.store_id == self.store_id.0
            && control.programs_hash == self.programs_hash
            && control.boot_id == self.boot_id.0
    }
}

/// Which of the generations that connections run may be believed before it is proven: the newest, if all show one and the same
/// epoch. Then any mixture of links is right, and the links that still run another can be switched. `epochs`: what each
/// shows, oldest generation first; `None` for one that is not this node's, or shows what its journal has not.
pub fn believable(epochs: impl IntoIterator<Item = Option<Epoch>>) -> Option<usize> {
    let epochs: Vec<Epoch> = epochs.into_iter().collect::<Option<_>>()?;
    let newest = epochs.len().checked_sub(1)?;
    epochs.iter().all(|epoch| *epoch == epochs[newest]).then_some(newest)
}

/// What recovery found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The epoch that is visible.
    pub epoch: Epoch,
    /// Versions that were staged and never became visible.
    pub scrubbed: usize,
    /// Index entries that were missing.
    pub reindexed: usize,
}

/// Why tables cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// They hold what the protocol does not write.
    #[error("{table}: {what}")]
    Damaged {
        /// Which table.
        table: &'static str,
        /// What was found.
        what: String,
    },
    /// The kernel refused a call.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl<T: Tables> Applier<T> {
    /// Begins with empty tables: says whose they are. They are not complete until [`Applier::complete`].
    pub fn create(tables: T, identity: &Identity) -> Self {
        let control = Control {
            fingerprint: FINGERPRINT,
            store_id: identity.store_id.0,
            programs_hash: identity.programs_hash,
            boot_id: identity.boot_id.0,
            ..Control::default()
        };
        tables.store_control(0, control.as_bytes());
        let layout = Layout::empty(&tables.capacities());
        Self { tables, layout, active: Epoch(0), quiesced: Epoch(0), retiring: VecDeque::new() }
    }

    /// Says that the tables hold a whole state: from here on they may be attached and recovered.
    pub fn complete(&self) {
        self.tables.store_control(std::mem::offset_of!(Control, magic), Control::MAGIC.as_bytes());
    }

    /// Finds the way into tables that hold a state.
    pub fn recover(tables: T) -> Result<(Self, Recovered), RecoveryError> {
        let capacities = tables.capacities();
        let epoch = Epoch(tables.control().active_epoch);
        let mut recovered = Recovered { epoch, ..Recovered::default() };

        recovered.scrubbed += tables.scrub::<Node>(0, epoch);
        let backends = scan(&tables, capacities.backend_cells(), epoch, &mut recovered, backend_key)?;
        let frontends = scan(&tables, capacities.frontend_cells(), epoch, &mut recovered, |_, f: &Frontend| Ok(f.key))?;
        let mut runs = FoundRuns::new(capacities.endpoint_slots());
        let services = scan(&tables, capacities.service_cells(), epoch, &mut recovered, |cell, service: &Service| {
            runs.add(cell, service)?;
            service_key(cell, service)
        })?;
        let (backends, others) = both(
            backends.len(),
            || taken::<Backend, _>(capacities.backend_cells(), &backends),
            || {
                let services = taken::<Service, _>(capacities.service_cells(), &services)?;
                let mut frontends = taken::<Frontend, _>(capacities.frontend_cells(), &frontends)?;
                let leftover = find_leftover_index_entries(&tables, &mut frontends, &mut recovered)?;
                Ok::<_, RecoveryError>((services, frontends, leftover))
            },
        );
        let (services, frontends, leftover) = others?;
        let layout = Layout { backends: backends?, services, frontends, runs: runs.recovered(epoch) };
        let retiring = leftover.iter().map(|key| Retiring { epoch, entry: RetiringEntry::Frontend(*key) }).collect();
        Ok((Self { tables, layout, active: epoch, quiesced: Epoch(0), retiring }, recovered))
    }

    /// Brings tables that nobody sees up to what was applied to others meanwhile. No reader need be waited for.
    pub fn catch_up(&mut self, since: &[(Changes, Durable<Head>)]) -> Result<(), ApplyError> {
        self.quiesce(self.active)?;
        for (changes, head) in since {
            if let Err(error) = self.apply(changes, *head) {
                let ApplyError::Blocked { .. } = error else { return Err(error) };
                self.quiesce(self.active)?;
                self.apply(changes, *head)?;
            }
            self.quiesce(self.active)?;
        }
        Ok(())
    }

    /// Makes the tables show exactly `wanted`, the whole state at `head`: what is there and not wanted goes.
    ///
    /// With a head that is visible already this is the check that tables and journal agree.
    pub fn reconcile(&mut self, wanted: &mut Changes, head: Durable<Head>) -> Result<Applied, ApplyError> {
        let Changes { frontends, services, backends, node: _ } = wanted;
        let Layout { frontends: frontend_cells, services: service_cells, backends: backend_cells, runs: _ } =
            &self.layout;
        both(
            backend_cells.used(),
            || add_unwanted(backend_cells, backends),
            || {
                add_unwanted(frontend_cells, frontends);
                add_unwanted(service_cells, services);
            },
        );
        self.apply(wanted, head)
    }
}

/// Adds that what has a cell and is not wanted shall be gone.
fn add_unwanted<K: Copy + Ord + Hash, V>(cells: &Cells<K>, wanted: &mut BTreeMap<K, Option<V>>) {
    if cells.used() == 0 {
        return;
    }
    // Mostly there is nothing to add, and that is found out without looking for each cell's key among the wanted ones.
    let found = wanted.keys().filter(|key| cells.get(key).is_some()).count();
    if found < cells.used() {
        for (key, _) in cells.keys() {
            wanted.entry(*key).or_insert(None);
        }
    }
}

/// The present entries of a table at `epoch`, in the order of their cells, with scrubbing on the way.
fn scan<P: CellTable, K, T: Tables>(
    tables: &T,
    entries: u32,
    epoch: Epoch,
    recovered: &mut Recovered,
    mut key: impl FnMut(u32, &P) -> Result<K, RecoveryError>,
) -> Result<Vec<(K, u32)>, RecoveryError> {
    let mut present = Vec::new();
    for cell in 0..entries {
        if tables.epochs::<P>(cell) == [0, 0] {
            continue;
        }
        let Some((_, payload)) = tables.visible::<P>(cell, epoch) else {
            return Err(damaged::<P>(format!("cell {cell} has no version that is visible at epoch {epoch}")));
        };
        recovered.scrubbed += tables.scrub::<P>(cell, epoch);
        if payload.is_present() {
            present.push((key(cell, &payload)?, cell));
        }
    }
    Ok(present)
}

/// Which half the visible runs are in, and where they end.
struct FoundRuns {
    slots: u32,
    found: Option<(u32, u32)>,
}

impl FoundRuns {
    const fn new(slots: u32) -> Self {
        Self { slots, found: None }
    }

    fn add(&mut self, cell: u32, service: &Service) -> Result<(), RecoveryError> {
        if service.run_length == 0 {
            return Ok(());
        }
        let half = self.slots / 2;
        let active = service.run_offset / half;
        let start = service.run_offset % half;
        let end = start.checked_add(padded(service.run_length)).filter(|end| active < 2 && *end <= half);
        self.found = match (end, self.found) {
            (Some(end), None) => Some((active, end)),
            (Some(end), Some((other, last))) if other == active => Some((active, last.max(end))),
            _ => return Err(damaged::<Service>(format!("the run of cell {cell} lies where no run can be"))),
        };
        Ok(())
    }

    fn recovered(self, epoch: Epoch) -> Runs {
        let (active, end) = self.found.unwrap_or((0, 0));
        Runs::recovered(self.slots, active, end, epoch)
    }
}

/// Index entries whose cell shows nothing. They are added to `present`, as they keep their cells until they are retired;
/// entries that are missing are made.
fn find_leftover_index_entries<T: Tables>(
    tables: &T,
    present: &mut Cells<FrontendKey>,
    recovered: &mut Recovered,
) -> Result<Vec<FrontendKey>, RecoveryError> {
    let mut leftover = Vec::new();
    let mut indexed = 0;
    for (key, cell) in tables.index_entries()? {
        match present.get(&key) {
            Some(own) if own == cell => indexed += 1,
            None if cell < tables.capacities().frontend_cells() => leftover.push((key, cell)),
            _ => return Err(wrongly_indexed(&key, cell)),
        }
    }
    if indexed < present.used() {
        for (key, cell) in present.keys() {
            if tables.index_get(key)?.is_none() {
                tables.index_insert(key, cell)?;
                recovered.reindexed += 1;
            }
        }
    }
    for (key, cell) in &leftover {
        if !present.take(*key, *cell) {
            return Err(wrongly_indexed(key, *cell));
        }
    }
    Ok(leftover.into_iter().map(|(key, _)| key).collect())
}

fn wrongly_indexed(key: &FrontendKey, cell: u32) -> RecoveryError {
    damaged::<Frontend>(format!("the index has cell {cell} for {}, wrongly", key.ip()))
}

fn service_key(cell: u32, payload: &Service) -> Result<ServiceKey, RecoveryError> {
    let family = Family::from_number(payload.family)
        .ok_or_else(|| damaged::<Service>(format!("cell {cell} has no address family")))?;
    Ok(ServiceKey { service: ResourceId(payload.id), port: payload.port, protocol: payload.protocol, family })
}

fn backend_key(cell: u32, payload: &Backend) -> Result<BackendKey, RecoveryError> {
    let family = Family::from_number(payload.family)
        .ok_or_else(|| damaged::<Backend>(format!("cell {cell} has no address family")))?;
    let is_waypoint = payload.flags & Backend::WAYPOINT != 0;
    Ok(BackendKey { workload: ResourceId(payload.id), port: u16::from_be(payload.port_be), family, is_waypoint })
}

fn taken<P: CellTable, K: Copy + Eq + Hash + std::fmt::Debug>(
    capacity: u32,
    cells: &[(K, u32)],
) -> Result<Cells<K>, RecoveryError> {
    Cells::from_taken(capacity, cells).map_err(|key| damaged::<P>(format!("two cells belong to {key:?}")))
}

fn damaged<P: CellTable>(what: String) -> RecoveryError {
    RecoveryError::Damaged { table: P::TABLE.name(), what }
}
