//! Where the writes go: tables as words in memory, and the index that finds frontends.
//!
//! [`KernelTables`] are the pinned maps; [`MemoryTables`] are the same in plain memory, for replay, simulation and
//! `--datapath memory`. The applier does not know which it has.

mod batch;
mod kernel;
mod memory;
mod typed;

use std::fmt;
use std::io;

use storage_schema::map::{self, Backend, Capacities, Cell, Control, FrontendKey, Node, Service};

pub use kernel::KernelTables;
pub use memory::MemoryTables;
pub use typed::View;
pub(crate) use typed::{CellTable, Typed};

/// A table that is mapped into memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// One [`Control`].
    Control,
    /// Cells of [`map::Frontend`].
    Frontends,
    /// Cells of [`Service`].
    Services,
    /// Slots, two to a word.
    Endpoints,
    /// Cells of [`Backend`].
    Backends,
    /// One cell of [`Node`].
    Node,
}

impl Table {
    /// All tables.
    pub const ALL: [Self; 6] =
        [Self::Control, Self::Frontends, Self::Services, Self::Endpoints, Self::Backends, Self::Node];

    /// The map's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => map::name::CONTROL,
            Self::Frontends => map::name::FRONTENDS,
            Self::Services => map::name::SERVICES,
            Self::Endpoints => map::name::ENDPOINTS,
            Self::Backends => map::name::BACKENDS,
            Self::Node => map::name::NODE,
        }
    }

    /// Bytes of an entry.
    pub const fn entry_bytes(self) -> usize {
        match self {
            Self::Control => size_of::<Control>(),
            Self::Frontends => size_of::<Cell<map::Frontend>>(),
            Self::Services => size_of::<Cell<Service>>(),
            Self::Endpoints => size_of::<map::EndpointPair>(),
            Self::Backends => size_of::<Cell<Backend>>(),
            Self::Node => size_of::<Cell<Node>>(),
        }
    }

    /// Entries of the table in a generation of these capacities.
    pub const fn entries(self, capacities: &Capacities) -> u32 {
        match self {
            Self::Control | Self::Node => 1,
            Self::Frontends => capacities.frontend_cells(),
            Self::Services => capacities.service_cells(),
            Self::Endpoints => capacities.endpoint_slots() / 2,
            Self::Backends => capacities.backend_cells(),
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The tables of a generation.
///
/// Words are numbered from a table's start and lie in memory as the programs read them. A store is one machine word,
/// with release ordering: readers see stores in the order in which they were made.
pub trait Tables {
    /// How many entries are admitted.
    fn capacities(&self) -> Capacities;
    /// Reads a word.
    fn load(&self, table: Table, word: usize) -> u64;
    /// Writes a word.
    fn store(&self, table: Table, word: usize, value: u64);
    /// Where a word lies, for [`View`]. `None`: out of range.
    fn pointer(&self, table: Table, word: usize) -> Option<*const u64>;
    /// The cell that the index has for a destination.
    fn index_get(&self, key: &FrontendKey) -> Result<Option<u32>, TableError>;
    /// Adds an entry to the index.
    fn index_insert(&self, key: &FrontendKey, cell: u32) -> Result<(), TableError>;
    /// Adds entries to the index, one after the other; on an error the first of them are there.
    fn index_insert_all(&self, entries: &[(FrontendKey, u32)]) -> Result<(), PartlyInserted> {
        let insert = |(inserted, (key, cell)): (usize, &(FrontendKey, u32))| {
            self.index_insert(key, *cell).map_err(|error| PartlyInserted { inserted, error })
        };
        entries.iter().enumerate().try_for_each(insert)
    }
    /// Deletes an entry of the index; none being there is no error.
    fn index_remove(&self, key: &FrontendKey) -> Result<(), TableError>;
    /// All entries of the index.
    fn index_entries(&self) -> Result<Vec<(FrontendKey, u32)>, TableError>;
}

/// Entries that were not all inserted.
#[derive(Debug)]
pub struct PartlyInserted {
    /// How many were, from the first on.
    pub inserted: usize,
    /// Why not more.
    pub error: TableError,
}

/// Tables that nobody changes through this: stores and updates go nowhere.
#[derive(Debug)]
pub struct ReadOnly<T>(pub T);

impl<T: Tables> Tables for ReadOnly<T> {
    fn capacities(&self) -> Capacities {
        self.0.capacities()
    }

    fn load(&self, table: Table, word: usize) -> u64 {
        self.0.load(table, word)
    }

    fn store(&self, _: Table, _: usize, _: u64) {}

    fn pointer(&self, table: Table, word: usize) -> Option<*const u64> {
        self.0.pointer(table, word)
    }

    fn index_get(&self, key: &FrontendKey) -> Result<Option<u32>, TableError> {
        self.0.index_get(key)
    }

    fn index_insert(&self, _: &FrontendKey, _: u32) -> Result<(), TableError> {
        Ok(())
    }

    fn index_remove(&self, _: &FrontendKey) -> Result<(), TableError> {
        Ok(())
    }

    fn index_entries(&self) -> Result<Vec<(FrontendKey, u32)>, TableError> {
        self.0.index_entries()
    }
}

/// A table call that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{call} of {table} failed: {source}")]
pub struct TableError {
    /// What was tried.
    pub call: &'static str,
    /// On which map.
    pub table: &'static str,
    /// The answer.
    #[source]
    pub source: io::Error,
}
