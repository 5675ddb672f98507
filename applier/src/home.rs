//! Where generations of tables live: in the kernel, or in this process' memory. The rest does not know which it has.

use std::fmt::Debug;

use loader::{Change, Datapath, Generation, LoadError};
use storage_schema::map::Capacities;

use crate::recovery::Identity;
use crate::start::StartError;
use crate::tables::{KernelTables, MemoryTables, Tables};

/// A place for generations.
pub(crate) trait Home: Debug + Send + 'static {
    /// The tables of a generation.
    type Tables: Tables + Debug + Send + 'static;

    /// What its generations belong to.
    fn identity(&self) -> &Identity;
    /// Empty tables, beside those that are in use. Nobody sees them.
    fn create(&self, capacities: &Capacities) -> Result<(Option<Generation>, Self::Tables), StartError>;
    /// Has connections decided by this generation, and discards all others. Returns how many links were changed.
    fn activate(&mut self, generation: Option<&Generation>) -> Result<usize, LoadError>;
    /// Looks whether everything is as the last activation left it, and puts links right that are not.
    fn inspect(&mut self, generation: Option<&Generation>) -> Result<Vec<Change>, LoadError>;
}

/// Pinned maps.
#[derive(Debug)]
pub(crate) struct KernelHome {
    identity: Identity,
    datapath: Datapath,
}

impl KernelHome {
    pub(crate) fn open(options: loader::Options, identity: Identity) -> Result<Self, LoadError> {
        Ok(Self { identity, datapath: Datapath::open(options)? })
    }

    pub(crate) const fn datapath(&self) -> &Datapath {
        &self.datapath
    }
}

impl Home for KernelHome {
    type Tables = KernelTables;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn create(&self, capacities: &Capacities) -> Result<(Option<Generation>, KernelTables), StartError> {
        let generation = self.datapath.create_generation(capacities)?;
        let tables = KernelTables::open(&generation, *capacities)?;
        Ok((Some(generation), tables))
    }

    fn activate(&mut self, generation: Option<&Generation>) -> Result<usize, LoadError> {
        generation.map_or(Ok(0), |generation| self.datapath.activate(generation))
    }

    fn inspect(&mut self, generation: Option<&Generation>) -> Result<Vec<Change>, LoadError> {
        generation.map_or(Ok(Vec::new()), |generation| self.datapath.inspect(generation))
    }
}

/// Plain memory, which nobody else can change.
#[derive(Debug)]
pub(crate) struct MemoryHome {
    identity: Identity,
}

impl MemoryHome {
    pub(crate) const fn new(identity: Identity) -> Self {
        Self { identity }
    }
}

impl Home for MemoryHome {
    type Tables = MemoryTables;

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn create(&self, capacities: &Capacities) -> Result<(Option<Generation>, MemoryTables), StartError> {
        Ok((None, MemoryTables::new(*capacities)))
    }

    fn activate(&mut self, _: Option<&Generation>) -> Result<usize, LoadError> {
        Ok(0)
    }

    fn inspect(&mut self, _: Option<&Generation>) -> Result<Vec<Change>, LoadError> {
        Ok(Vec::new())
    }
}
