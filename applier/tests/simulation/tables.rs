//! Tables that outlive the applier, count its steps, and let the scheduler act between any two of them.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use applier::tables::{MemoryTables, Table, TableError, Tables};
use storage_schema::map::{Capacities, FrontendKey};

/// What happens before a step.
pub(crate) enum Fate {
    /// It is made.
    Proceed,
    /// The applier dies.
    Kill,
    /// The call fails; only index calls can.
    Refuse,
}

/// How an applier's death unwinds.
pub(crate) struct Killed;

/// Asked before each step; `true` for index calls.
pub(crate) type Scheduler = Rc<RefCell<dyn FnMut(&MemoryTables, bool) -> Fate>>;

/// The kernel's memory, as one life of the applier sees it.
pub(crate) struct SimulatedTables {
    pub(crate) memory: Rc<MemoryTables>,
    pub(crate) scheduler: Scheduler,
}

impl SimulatedTables {
    fn step(&self, index_call: bool) -> Result<(), TableError> {
        match (self.scheduler.borrow_mut())(&self.memory, index_call) {
            Fate::Proceed => Ok(()),
            Fate::Kill => std::panic::resume_unwind(Box::new(Killed)),
            Fate::Refuse => Err(TableError {
                call: "a refused call",
                table: "frontend_index",
                source: io::Error::from(io::ErrorKind::OutOfMemory),
            }),
        }
    }
}

impl Tables for SimulatedTables {
    fn capacities(&self) -> Capacities {
        self.memory.capacities()
    }

    fn load(&self, table: Table, word: usize) -> u64 {
        self.memory.load(table, word)
    }

    fn store(&self, table: Table, word: usize, value: u64) {
        self.step(false).expect("only index calls are refused");
        self.memory.store(table, word, value);
    }

    fn pointer(&self, table: Table, word: usize) -> Option<*const u64> {
        self.memory.pointer(table, word)
    }

    fn index_get(&self, key: &FrontendKey) -> Result<Option<u32>, TableError> {
        self.memory.index_get(key)
    }

    fn index_insert(&self, key: &FrontendKey, cell: u32) -> Result<(), TableError> {
        self.step(true)?;
        assert_eq!(self.memory.index_get(key)?, None, "an index entry is never updated in place");
        self.memory.index_insert(key, cell)
    }

    fn index_remove(&self, key: &FrontendKey) -> Result<(), TableError> {
        self.step(true)?;
        self.memory.index_remove(key)
    }

    fn index_entries(&self) -> Result<Vec<(FrontendKey, u32)>, TableError> {
        self.memory.index_entries()
    }
}
