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

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;

use journal::{Durable, Head, Journal};
use storage_schema::id::{BootId, Epoch, ResourceId, StoreId};
use storage_schema::map::{Backend, Control, FINGERPRINT, Frontend, FrontendKey, Node, Service};
use zerocopy::IntoBytes;

use crate::apply::{Applied, Applier, ApplyError, Retiring, RetiringEntry};
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
        let backends = scan::<Backend, _>(&tables, capacities.backend_cells(), epoch, &mut recovered)?;
        let services = scan::<Service, _>(&tables, capacities.service_cells(), epoch, &mut recovered)?;
        let frontends = scan::<Frontend, _>(&tables, capacities.frontend_cells(), epoch, &mut recovered)?;
        let runs = find_runs(&services, capacities.endpoint_slots(), epoch)?;

        let mut present: HashMap<FrontendKey, u32> = frontends.into_iter().map(|(cell, p)| (p.key, cell)).collect();
        let leftover = find_leftover_index_entries(&tables, &mut present, &mut recovered)?;
        let retiring = leftover.iter().map(|key| Retiring { epoch, entry: RetiringEntry::Frontend(*key) }).collect();

        let backends = backends.into_iter().map(|(cell, payload)| Ok((backend_key(cell, &payload)?, cell)));
        let services = services.into_iter().map(|(cell, payload)| Ok((service_key(cell, &payload)?, cell)));
        let layout = Layout {
            backends: taken(Backend::TABLE.name(), capacities.backend_cells(), backends)?,
            services: taken(Service::TABLE.name(), capacities.service_cells(), services)?,
            frontends: taken(Frontend::TABLE.name(), capacities.frontend_cells(), present.into_iter().map(Ok))?,
            runs,
        };
        Ok((Self { tables, layout, active: epoch, quiesced: Epoch(0), retiring }, recovered))
    }

    /// Makes the tables show exactly `wanted`, the whole state at `head`: what is there and not wanted goes.
    ///
    /// With a head that is visible already this is the check that tables and journal agree.
    pub fn reconcile(&mut self, wanted: &mut Changes, head: Durable<Head>) -> Result<Applied, ApplyError> {
        for (key, _) in self.layout.frontends.keys() {
            wanted.frontends.entry(*key).or_insert(None);
        }
        for (key, _) in self.layout.services.keys() {
            wanted.services.entry(*key).or_insert(None);
        }
        for (key, _) in self.layout.backends.keys() {
            wanted.backends.entry(*key).or_insert(None);
        }
        self.apply(wanted, head)
    }
}

/// The present entries of a table at `epoch`, with scrubbing on the way.
fn scan<P: CellTable, T: Tables>(
    tables: &T,
    entries: u32,
    epoch: Epoch,
    recovered: &mut Recovered,
) -> Result<Vec<(u32, P)>, RecoveryError> {
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
            present.push((cell, payload));
        }
    }
    Ok(present)
}

/// Which half the visible runs are in, and where they end.
fn find_runs(services: &[(u32, Service)], slots: u32, epoch: Epoch) -> Result<Runs, RecoveryError> {
    let half = slots / 2;
    let mut found: Option<(u32, u32)> = None;
    for (cell, service) in services.iter().filter(|(_, service)| service.run_length > 0) {
        let active = service.run_offset / half;
        let start = service.run_offset % half;
        let end = start.checked_add(padded(service.run_length)).filter(|end| active < 2 && *end <= half);
        match (end, found) {
            (Some(end), None) => found = Some((active, end)),
            (Some(end), Some((other, last))) if other == active => found = Some((active, last.max(end))),
            _ => return Err(damaged::<Service>(format!("the run of cell {cell} lies where no run can be"))),
        }
    }
    let (active, end) = found.unwrap_or((0, 0));
    Ok(Runs::recovered(slots, active, end, epoch))
}

/// Index entries whose cell shows nothing. They are added to `present`, as they keep their cells until they are retired;
/// entries that are missing are made.
fn find_leftover_index_entries<T: Tables>(
    tables: &T,
    present: &mut HashMap<FrontendKey, u32>,
    recovered: &mut Recovered,
) -> Result<Vec<FrontendKey>, RecoveryError> {
    let entries = tables.index_entries()?;
    let taken: HashSet<u32> = present.values().copied().collect();
    let mut missing: HashMap<FrontendKey, u32> = present.clone();
    let mut leftover = Vec::new();
    for (key, cell) in entries {
        match present.get(&key) {
            Some(own) if *own == cell => {
                missing.remove(&key);
            }
            None if !taken.contains(&cell) && cell < tables.capacities().frontend_cells() => leftover.push((key, cell)),
            _ => return Err(damaged::<Frontend>(format!("the index has cell {cell} for {}, wrongly", key.ip()))),
        }
    }
    for (key, cell) in missing {
        tables.index_insert(&key, cell)?;
        recovered.reindexed += 1;
    }
    present.extend(leftover.iter().copied());
    Ok(leftover.into_iter().map(|(key, _)| key).collect())
}

fn service_key(cell: u32, payload: &Service) -> Result<ServiceKey, RecoveryError> {
    let family = Family::from_number(payload.family)
        .ok_or_else(|| damaged::<Service>(format!("cell {cell} has no address family")))?;
    Ok(ServiceKey { service: ResourceId(payload.id), port: payload.port, protocol: payload.protocol, family })
}

fn backend_key(cell: u32, payload: &Backend) -> Result<BackendKey, RecoveryError> {
    let family = Family::from_number(payload.family)
        .ok_or_else(|| damaged::<Backend>(format!("cell {cell} has no address family")))?;
    Ok(BackendKey { workload: ResourceId(payload.id), port: u16::from_be(payload.port_be), family })
}

fn taken<K: Copy + Eq + Hash + std::fmt::Debug>(
    table: &'static str,
    capacity: u32,
    cells: impl Iterator<Item = Result<(K, u32), RecoveryError>>,
) -> Result<Cells<K>, RecoveryError> {
    let cells = cells.collect::<Result<Vec<_>, _>>()?;
    Cells::from_taken(capacity, cells)
        .map_err(|key| RecoveryError::Damaged { table, what: format!("two cells belong to {key:?}") })
}

fn damaged<P: CellTable>(what: String) -> RecoveryError {
    RecoveryError::Damaged { table: P::TABLE.name(), what }
}
