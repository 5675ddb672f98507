//! Drift: do the tables show what the journal says, cell by cell?
//!
//! Only reads. Whatever else writes to the maps (a person with bpftool, another program, a fault) is found here, and put
//! right by a new generation: a cell that is visible is never written over while programs may read it.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::hash::Hash;

use storage_schema::id::Epoch;
use storage_schema::map::{self, Backend, Control, FINGERPRINT, Frontend, FrontendKey, NEVER, Node, Service};

use crate::apply::{Applier, backend_payload, frontend_payload, service_payload};
use crate::entry::Changes;
use crate::layout::{Cells, Layout};
use crate::tables::{CellTable, TableError, Tables, Typed};

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
    fn check<V: PartialEq + Debug>(&mut self, table: &'static str, entry: &impl Debug, expected: &V, found: &V) {
        self.checked += 1;
        if expected != found {
            self.note(table, format!("{entry:?}"), format!("{expected:?}"), format!("{found:?}"));
        }
    }

    fn note(&mut self, table: &'static str, entry: String, expected: String, found: String) {
        self.differing += 1;
        if self.differences.len() < TOLD_MAX {
            self.differences.push(Difference { table, entry, expected, found });
        }
    }
}

impl<T: Tables> Applier<T> {
    /// Compares the tables with `wanted`, the whole state at the active epoch.
    pub fn compare(&self, wanted: &Changes) -> Result<Comparison, TableError> {
        let mut found = Comparison { epoch: self.active, ..Comparison::default() };
        let Control { active_epoch, magic, fingerprint, .. } = self.tables.control();
        found.check(map::name::CONTROL, &"active epoch", &self.active.0, &active_epoch);
        found.check(map::name::CONTROL, &"magic, fingerprint", &(Control::MAGIC, FINGERPRINT), &(magic, fingerprint));
        if let Some(node) = wanted.node {
            found.check(map::name::NODE, &0, &Some(node), &self.shown::<Node>(0));
        }
        for (key, address) in &wanted.backends {
            let expected = address.map(|address| backend_payload(*key, address));
            let shown = self.layout.backends.get(key).and_then(|cell| self.present::<Backend>(cell));
            found.check(map::name::BACKENDS, key, &expected, &shown);
        }
        self.compare_services(wanted, &mut found);
        self.compare_frontends(wanted, &mut found)?;
        let Layout { backends, services, frontends, .. } = &self.layout;
        self.find_strays::<Backend, _>(backends, |key| wanted.backends.contains_key(key), &mut found);
        self.find_strays::<Service, _>(services, |key| wanted.services.contains_key(key), &mut found);
        self.find_strays::<Frontend, _>(frontends, |key| wanted.frontends.contains_key(key), &mut found);
        Ok(found)
    }

    fn compare_services(&self, wanted: &Changes, found: &mut Comparison) {
        for (key, entry) in &wanted.services {
            let shown = self.layout.services.get(key).and_then(|cell| self.present::<Service>(cell));
            let expected = entry.as_ref().map(|entry| service_payload(*key, entry));
            let but_run = shown.map(|service| Service { run_offset: 0, run_length: 0, ..service });
            found.check(map::name::SERVICES, key, &expected, &but_run);
            let Some(entry) = entry else { continue };
            let expected: Option<Vec<u32>> = entry.endpoints.iter().map(|key| self.layout.backends.get(key)).collect();
            let run = shown.and_then(|service| self.readable_run(&service));
            found.check(map::name::ENDPOINTS, key, &expected, &run);
        }
    }

    fn compare_frontends(&self, wanted: &Changes, found: &mut Comparison) -> Result<(), TableError> {
        let mut index: HashMap<FrontendKey, u32> = self.tables.index_entries()?.into_iter().collect();
        for (key, service) in &wanted.frontends {
            let index_of = |service| self.layout.services.get(&service).unwrap_or(u32::MAX);
            let expected = service.map(|service| frontend_payload(*key, index_of(service)));
            let cell = self.layout.frontends.get(key);
            let shown = cell.and_then(|cell| self.present::<Frontend>(cell));
            found.check(map::name::FRONTENDS, key, &expected, &shown);
            found.check(map::name::FRONTEND_INDEX, key, &cell, &index.remove(key));
        }
        // What is left waits to be retired, or is nobody's.
        for (key, cell) in index {
            found.check(map::name::FRONTEND_INDEX, &key, &self.layout.frontends.get(&key), &Some(cell));
        }
        Ok(())
    }

    /// Cells that show something that nobody asked for, now or, with an epoch still to come, later.
    fn find_strays<P: CellTable, K: Copy + Eq + Hash + Debug>(
        &self,
        cells: &Cells<K>,
        is_wanted: impl Fn(&K) -> bool,
        found: &mut Comparison,
    ) {
        let table = P::TABLE.name();
        let unwanted = cells.keys().filter(|(key, _)| !is_wanted(key)).map(|(_, cell)| cell);
        for cell in unwanted.chain(cells.unused()) {
            if self.tables.epochs::<P>(cell) != [0, 0] {
                found.check(table, &format_args!("cell {cell}"), &None, &self.present::<P>(cell));
            }
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
