//! Tables that outlive the applier, count its steps, and let the scheduler act between any two of them.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use applier::tables::{MemoryTables, Table, TableError, Tables};
use storage_schema::map::{Capacities, FrontendKey, NEVER};

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

/// A rule of the protocol that is broken on purpose: the checker must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The epoch is flipped before what it shows is staged.
    FlipBeforeStage,
    /// Index entries are made after the flip that shows their cells.
    IndexAfterFlip,
    /// A grace period is over at once: programs that began before it still run.
    NoGrace,
    /// What a dead applier had staged stays.
    NoScrub,
}

impl Mutant {
    pub(crate) const ALL: [Self; 4] = [Self::FlipBeforeStage, Self::IndexAfterFlip, Self::NoGrace, Self::NoScrub];
}

/// A write that a mutant makes later than the applier asked for.
#[derive(Clone, Copy, Debug)]
enum Late {
    Word(Table, usize, u64),
    Index(FrontendKey, u32),
}

/// Asked before each step; `true` for index calls.
pub(crate) type Scheduler = Rc<RefCell<dyn FnMut(&MemoryTables, bool) -> Fate>>;

/// The kernel's memory, as one life of the applier sees it.
pub(crate) struct SimulatedTables {
    pub(crate) memory: Rc<MemoryTables>,
    pub(crate) scheduler: Scheduler,
    pub(crate) mutant: Option<Mutant>,
    /// What [`Mutant::FlipBeforeStage`] and [`Mutant::IndexAfterFlip`] hold back until the flip.
    late: RefCell<Vec<Late>>,
}

impl SimulatedTables {
    pub(crate) fn new(memory: Rc<MemoryTables>, scheduler: Scheduler, mutant: Option<Mutant>) -> Self {
        Self { memory, scheduler, mutant, late: RefCell::default() }
    }

    /// Whether a mutant keeps this store from being made now.
    fn is_held_back(&self, table: Table, word: usize, value: u64) -> bool {
        match self.mutant {
            Some(Mutant::FlipBeforeStage) if table != Table::Control => {
                self.late.borrow_mut().push(Late::Word(table, word, value));
                true
            }
            // Both scrubbing and staging begin with this store; the latter does without it as well.
            Some(Mutant::NoScrub) => table != Table::Control && value == NEVER,
            _ => false,
        }
    }

    fn make_late_writes(&self) {
        let late: Vec<Late> = self.late.borrow_mut().drain(..).collect();
        for write in late {
            self.step(false).expect("only index calls are refused");
            match write {
                Late::Word(table, word, value) => self.memory.store(table, word, value),
                Late::Index(key, cell) => {
                    self.memory.index_insert(&key, cell).expect("there is room for twice as many");
                }
            }
        }
    }

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
        if self.is_held_back(table, word, value) {
            return;
        }
        self.memory.store(table, word, value);
        // The first word of the control entry is the active epoch.
        if table == Table::Control && word == 0 {
            self.make_late_writes();
        }
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
        if self.mutant == Some(Mutant::IndexAfterFlip) {
            self.late.borrow_mut().push(Late::Index(*key, cell));
            return Ok(());
        }
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
