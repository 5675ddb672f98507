//! Which cell an entry lives in, and where the next one goes.
//!
//! The layout mirrors what the tables say: it is rebuilt by scanning them ([`recovery`](crate::recovery)) and holds no
//! knowledge of its own. Contents are not kept here; the tables are mapped into memory and are read where they lie.

use std::collections::BTreeSet;
use std::collections::hash_map::Entry;
use std::hash::Hash;

use storage_schema::id::Epoch;
use storage_schema::map::{Capacities, FrontendKey};

use crate::entry::{BackendKey, ServiceKey};
use crate::hash::HashMap;
use crate::model::Usage;

/// All tables' layouts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) frontends: Cells<FrontendKey>,
    pub(crate) services: Cells<ServiceKey>,
    pub(crate) backends: Cells<BackendKey>,
    pub(crate) runs: Runs,
}

impl Layout {
    pub(crate) fn empty(capacities: &Capacities) -> Self {
        Self {
            frontends: Cells::new(capacities.frontend_cells()),
            services: Cells::new(capacities.service_cells()),
            backends: Cells::new(capacities.backend_cells()),
            runs: Runs::new(capacities.endpoint_slots()),
        }
    }

    /// Makes room for a whole state.
    pub(crate) fn reserve(&mut self, usage: &Usage) {
        let entries = |entries| usize::try_from(entries).unwrap_or_default();
        self.frontends.reserve(entries(usage.frontends));
        self.services.reserve(entries(usage.services));
        self.backends.reserve(entries(usage.backends));
    }
}

/// Cells of one table, lowest free one first, so that tables stay compact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cells<K: Eq + Hash> {
    capacity: u32,
    of: HashMap<K, u32>,
    /// Free cells below `next`.
    free: BTreeSet<u32>,
    next: u32,
}

impl<K: Copy + Eq + Hash> Cells<K> {
    fn new(capacity: u32) -> Self {
        Self { capacity, of: HashMap::default(), free: BTreeSet::new(), next: 0 }
    }

    /// The layout of a table in which these cells are taken, in ascending order; `Err` with a key that is there twice.
    pub(crate) fn from_taken(capacity: u32, taken: &[(K, u32)]) -> Result<Self, K> {
        let mut cells = Self::new(capacity);
        cells.of.reserve(taken.len());
        for (key, cell) in taken {
            assert!(*cell >= cells.next, "cells are in ascending order");
            if cells.of.insert(*key, *cell).is_some() {
                return Err(*key);
            }
            cells.free.extend(cells.next..*cell);
            cells.next = cell + 1;
        }
        Ok(cells)
    }

    /// Makes room for this many keys in all.
    fn reserve(&mut self, keys: usize) {
        self.of.reserve(keys.saturating_sub(self.of.len()));
    }

    pub(crate) fn get(&self, key: &K) -> Option<u32> {
        self.of.get(key).copied()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = (&K, u32)> {
        self.of.iter().map(|(key, cell)| (key, *cell))
    }

    /// The cell of a key, and whether it was given to it just now; `None` when the table is full.
    pub(crate) fn allocate(&mut self, key: K) -> Option<(u32, bool)> {
        let vacant = match self.of.entry(key) {
            Entry::Occupied(occupied) => return Some((*occupied.get(), false)),
            Entry::Vacant(vacant) => vacant,
        };
        let cell = match self.free.pop_first() {
            Some(cell) => cell,
            None if self.next < self.capacity => {
                self.next += 1;
                self.next - 1
            }
            None => return None,
        };
        vacant.insert(cell);
        Some((cell, true))
    }

    /// Gives a key that has none this very cell; whether it was free.
    pub(crate) fn take(&mut self, key: K, cell: u32) -> bool {
        if cell >= self.next {
            self.free.extend(self.next..cell);
            self.next = cell + 1;
        } else if !self.free.remove(&cell) {
            return false;
        }
        self.of.insert(key, cell).is_none()
    }

    pub(crate) fn release(&mut self, key: &K) {
        let cell = self.of.remove(key).expect("only what has a cell gives it back");
        self.free.insert(cell);
    }

    /// Cells that belong to no key.
    pub(crate) fn unused(&self) -> impl Iterator<Item = u32> {
        self.free.iter().copied().chain(self.next..self.capacity)
    }

    pub(crate) fn used(&self) -> usize {
        self.of.len()
    }

    pub(crate) const fn capacity(&self) -> u32 {
        self.capacity
    }
}

/// Runs in `endpoints`.
///
/// The table is two halves, each with room for twice the endpoints that are ever admitted. Runs are written one after
/// the other into one half. When it is full, the runs that are still used move to the other half, in the same flip as
/// the change that found it full: there is always room, no run is ever written over while it is used, and nothing is
/// left to fragment. The move costs one slot store for each slot that was allocated since the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runs {
    half: u32,
    /// 0 or 1.
    active: u32,
    /// First free slot, counted within the active half. Even: a pair of slots belongs to one run.
    next: u32,
    /// Readers must have passed this epoch before the active half's free slots are written ...
    tail_free_from: Epoch,
    /// ... and this one before the other half is.
    other_free_from: Epoch,
}

impl Runs {
    fn new(slots: u32) -> Self {
        Self { half: slots / 2, active: 0, next: 0, tail_free_from: Epoch(0), other_free_from: Epoch(0) }
    }

    /// The layout in which the visible runs of `epoch` end at `end` of the half `active`. What lies behind them may still
    /// be read by programs that began before that epoch.
    pub(crate) fn recovered(slots: u32, active: u32, end: u32, epoch: Epoch) -> Self {
        Self { half: slots / 2, active, next: end.next_multiple_of(2), tail_free_from: epoch, other_free_from: epoch }
    }

    /// Whether runs with this many slots in all, each padded to pairs, fit behind what is there.
    pub(crate) const fn fits(&self, slots: u32) -> bool {
        slots <= self.half - self.next
    }

    /// The epoch that readers must have passed before [`Runs::allocate`]d slots are written.
    pub(crate) const fn free_from(&self) -> Epoch {
        self.tail_free_from
    }

    /// Begins with the other half; `leaving` is the epoch from which on no reader finds runs in this one.
    pub(crate) const fn switch(&mut self, leaving: Epoch) {
        self.active = 1 - self.active;
        self.next = 0;
        self.tail_free_from = self.other_free_from;
        self.other_free_from = leaving;
    }

    /// The first slot of a new run; `None` when the half is full.
    pub(crate) fn allocate(&mut self, length: u32) -> Option<u32> {
        if !self.fits(padded(length)) {
            return None;
        }
        let offset = self.active * self.half + self.next;
        self.next += padded(length);
        Some(offset)
    }

    /// Slots taken in the active half.
    pub(crate) const fn used(&self) -> u32 {
        self.next
    }

    pub(crate) const fn half(&self) -> u32 {
        self.half
    }
}

/// Slots that a run takes.
pub(crate) const fn padded(length: u32) -> u32 {
    length.next_multiple_of(2)
}
