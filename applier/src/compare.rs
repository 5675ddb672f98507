//! Drift: do the tables show what the journal says, cell by cell?
//!
//! Only reads. Whatever else writes to the maps (a person with bpftool, another program, a fault) is found here, and put
//! right by a new generation: a cell that is visible is never written over while programs may read it.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use storage_schema::id::Epoch;
use storage_schema::map::cell::Payload;
use storage_schema::map::{self, Backend, Control, FINGERPRINT, Frontend, FrontendKey, NEVER, Node, Service};

use crate::apply::{Applier, backend_payload, frontend_payload, service_payload};
use crate::dump;
use crate::entry::{BackendKey, Changes, ServiceKey};
use crate::layout::{Cells, Layout};
use crate::recovery::RecoveryError;
use crate::selection;
use crate::tables::{CellTable, ReadOnly, TableError, Tables, Typed};

/// How many differences are told one by one.
const TOLD_MAX: usize = 100;

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// The epoch whose state was compared.
    pub epoch: Epoch,
    /// Entries that were compared.
    pub checked: u64,
    /// Entries that differ.
    pub differing: u64,
    /// The first hundred of them.
    pub differences: Vec<Difference>,
}

/// Whether versions of a later epoch may be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// None: the applier is between two transactions.
    Nothing,
    /// What an applier that died has left; recovery makes it void.
    Leftover,
}

/// An entry that is not as the journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The table.
    pub table: &'static str,
    /// The entry: its key, or its cell where it has no key of this state.
    pub entry: String,
    /// What the journal's state asks for.
    pub expected: String,
    /// What is there.
    pub found: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {} instead of {}", self.table, self.entry, self.found, self.expected)
    }
}

impl Comparison {
    fn check<V: PartialEq>(
        &mut self,
        table: &'static str,
        entry: impl FnOnce() -> String,
        (expected, found): (&V, &V),
        tell: impl Fn(&V) -> String,
    ) {
        self.checked += 1;
        if expected != found {
            self.note(table, entry(), tell(expected), tell(found));
        }
    }

    fn note(&mut self, table: &'static str, entry: String, expected: String, found: String) {
        self.differing += 1;
        if self.differences.len() < TOLD_MAX {
            self.differences.push(Difference { table, entry, expected, found });
        }
    }
}

impl<T: Tables> Applier<ReadOnly<T>> {
    /// Finds the way into tables without changing anything, as [`Applier::recover`] does.
    pub fn look(tables: T) -> Result<Self, RecoveryError> {
        Self::recover(ReadOnly(tables)).map(|(applier, _)| applier)
    }
}

impl<T: Tables> Applier<T> {
    /// Compares the tables with `wanted`, the whole state at the active epoch.
    pub fn compare(&self, wanted: &Changes, staged: Staged) -> Result<Comparison, TableError> {
        let mut found = Comparison { epoch: self.active, ..Comparison::default() };
        let Control { active_epoch, magic, fingerprint, .. } = self.tables.control();
        let whole = [self.active.0, Control::MAGIC, FINGERPRINT];
        let tell = |[epoch, magic, abi]: &[u64; 3]| format!("active epoch {epoch}, magic {magic:x}, ABI {abi:016x}");
        let control = [active_epoch, magic, fingerprint];
        found.check(map::name::CONTROL, || "0".to_owned(), (&whole, &control), tell);
        if let Some(node) = wanted.node {
            let shown = self.shown::<Node>(0);
            found.check(
                map::name::NODE,
                || "0".to_owned(),
                (&Some(node), &shown),
                |node| told(node.as_ref(), |node| dump::node(*node)),
            );
        }
        for (key, address) in &wanted.backends {
            let expected = address.map(|address| backend_payload(*key, address));
            let shown = self.layout.backends.get(key).and_then(|cell| self.present::<Backend>(cell));
            let tell = |backend: &Option<Backend>| told(backend.as_ref(), dump::backend);
            found.check(map::name::BACKENDS, || name_backend(key), (&expected, &shown), tell);
        }
        self.compare_services(wanted, &mut found);
        self.compare_frontends(wanted, &mut found)?;
        let Layout { backends, services, frontends, .. } = &self.layout;
        self.find_strays::<Backend, _>(backends, |key| wanted.backends.contains_key(key), staged, &mut found);
        self.find_strays::<Service, _>(services, |key| wanted.services.contains_key(key), staged, &mut found);
        self.find_strays::<Frontend, _>(frontends, |key| wanted.frontends.contains_key(key), staged, &mut found);
        Ok(found)
    }

    fn compare_services(&self, wanted: &Changes, found: &mut Comparison) {
        for (key, entry) in &wanted.services {
            let shown = self.layout.services.get(key).and_then(|cell| self.present::<Service>(cell));
            let expected = entry.as_ref().map(|entry| service_payload(*key, entry));
            let but_run = shown.map(|service| Service { run_offset: 0, run_length: 0, ..service });
            let tell = |service: &Option<Service>| told(service.as_ref(), dump::service);
            found.check(map::name::SERVICES, || name_service(key), (&expected, &but_run), tell);
            let Some(entry) = entry else { continue };
            let cells: Option<Vec<u32>> = entry.backends().map(|key| self.layout.backends.get(key)).collect();
            let expected = cells.map(|cells| selection::run(entry, &cells));
            let run = shown.and_then(|service| self.readable_run(&service));
            let tell = |run: &Option<Vec<u32>>| run.as_ref().map_or("nothing".to_owned(), |run| format!("{run:?}"));
            found.check(map::name::ENDPOINTS, || name_service(key), (&expected, &run), tell);
        }
    }

    fn compare_frontends(&self, wanted: &Changes, found: &mut Comparison) -> Result<(), TableError> {
        let mut index: HashMap<FrontendKey, u32> = self.tables.index_entries()?.into_iter().collect();
        let tell_cell = |cell: &Option<u32>| cell.map_or("nothing".to_owned(), |cell| format!("cell {cell}"));
        for (key, service) in &wanted.frontends {
            let index_of = |service| self.layout.services.get(&service).unwrap_or(u32::MAX);
            let expected = service.map(|service| frontend_payload(*key, index_of(service)));
            let cell = self.layout.frontends.get(key);
            let shown = cell.and_then(|cell| self.present::<Frontend>(cell));
            let tell = |frontend: &Option<Frontend>| told(frontend.as_ref(), dump::frontend);
            found.check(map::name::FRONTENDS, || dump::destination(key), (&expected, &shown), tell);
            let entry = || dump::destination(key);
            found.check(map::name::FRONTEND_INDEX, entry, (&cell, &index.remove(key)), tell_cell);
        }
        // What is left waits to be retired, or is nobody's.
        for (key, cell) in index {
            let known = self.layout.frontends.get(&key);
            found.check(map::name::FRONTEND_INDEX, || dump::destination(&key), (&known, &Some(cell)), tell_cell);
        }
        Ok(())
    }

    /// Cells that show something that nobody asked for, now or, with an epoch still to come, later.
    fn find_strays<P: CellTable, K: Copy + Eq + Hash>(
        &self,
        cells: &Cells<K>,
        is_wanted: impl Fn(&K) -> bool,
        staged: Staged,
        found: &mut Comparison,
    ) {
        let table = P::TABLE.name();
        let unwanted = cells.keys().filter(|(key, _)| !is_wanted(key)).map(|(_, cell)| cell);
        for cell in unwanted.chain(cells.unused()) {
            if let Some(payload) = self.present::<P>(cell) {
                found.note(table, format!("cell {cell}"), "nothing".to_owned(), format!("{payload:?}"));
            }
        }
        if staged == Staged::Leftover {
            return;
        }
        for cell in 0..cells.capacity() {
            let epochs = self.tables.epochs::<P>(cell);
            if let Some(epoch) = epochs.iter().find(|epoch| **epoch > self.active.0 && **epoch != NEVER) {
                let expected = "no version of a later epoch".to_owned();
                found.note(table, format!("cell {cell}"), expected, format!("a version of epoch {epoch}"));
            }
        }
    }

    /// What a cell shows.
    fn shown<P: CellTable>(&self, cell: u32) -> Option<P> {
        self.tables.visible::<P>(cell, self.active).map(|(_, payload)| payload)
    }

    /// What a cell shows, if that is anything.
    fn present<P: CellTable>(&self, cell: u32) -> Option<P> {
        self.shown(cell).filter(P::is_present)
    }

    fn readable_run(&self, service: &Service) -> Option<Vec<u32>> {
        let Service { run_offset, run_length, .. } = *service;
        let end = run_offset.checked_add(run_length)?;
        (end <= self.tables.capacities().endpoint_slots()).then(|| self.tables.run(run_offset, run_length).collect())
    }
}

fn told<P: Payload>(payload: Option<&P>, fields: impl Fn(&P) -> Vec<(&'static str, String)>) -> String {
    let fields = payload.filter(|payload| payload.is_present()).map(fields).unwrap_or_default();
    let fields: Vec<String> = fields.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    if fields.is_empty() { "nothing".to_owned() } else { fields.join(" ") }
}

fn name_service(key: &ServiceKey) -> String {
    let ServiceKey { service, port, protocol, family } = key;
    format!("service {service} port {port} protocol {protocol} {family:?}")
}

fn name_backend(key: &BackendKey) -> String {
    let BackendKey { workload, port, family, is_waypoint } = key;
    let kind = if *is_waypoint { "waypoint of" } else { "workload" };
    format!("{kind} {workload} port {port} {family:?}")
}
