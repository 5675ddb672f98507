//! Tables that outlive the applier, count its steps, and let the scheduler act before and after each.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use applier::tables::{MemoryTables, Table, TableError, Tables};
use rustix::io::Errno;
use storage_schema::map::{self, Backend, Capacities, Control, Frontend, FrontendKey, NEVER, Node, Service};

use crate::mutants::Mutant;

/// What the applier is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A store of a word. It cannot be refused.
    Store(Table, usize),
    /// A call on the index.
    Insert(FrontendKey),
    Remove(FrontendKey),
    List,
}

/// What becomes of a step.
pub(crate) enum Fate {
    /// It is made.
    Proceed,
    /// The applier dies before it.
    KillBefore,
    /// The applier dies after it.
    KillAfter,
    /// The call fails.
    Refuse(Errno),
}

/// How an applier's death unwinds.
pub(crate) struct Killed;

/// Asked before each step.
pub(crate) type Scheduler = Rc<RefCell<dyn FnMut(&MemoryTables, Step) -> Fate>>;

/// A write that a mutant makes later than the applier asked for.
#[derive(Clone, Copy, Debug)]
enum Late {
    Word(Table, usize, u64),
    Index(FrontendKey, u32),
}

/// A version whose epoch is not written yet.
struct Torn {
    table: Table,
    first_word: usize,
    payload: Vec<Late>,
}

/// The kernel's memory, as one life of the applier sees it.
pub(crate) struct SimulatedTables {
    memory: Rc<MemoryTables>,
    scheduler: Scheduler,
    mutant: Option<Mutant>,
    /// What some mutants hold back until the flip.
    late: RefCell<Vec<Late>>,
    /// The version that [`Mutant::EpochBeforePayload`] holds back.
    torn: RefCell<Option<Torn>>,
    /// Whether recovery is still scrubbing: it lists the index afterwards.
    scrubbing: Cell<bool>,
}

impl SimulatedTables {
    pub(crate) fn new(memory: Rc<MemoryTables>, scheduler: Scheduler, mutant: Option<Mutant>) -> Self {
        Self {
            memory,
            scheduler,
            mutant,
            late: RefCell::default(),
            torn: RefCell::default(),
            scrubbing: Cell::new(true),
        }
    }

    /// Whether a mutant keeps this store from being made now.
    fn is_held_back(&self, table: Table, word: usize, value: u64) -> bool {
        let Some(mutant) = self.mutant else { return false };
        if table == Table::Control {
            let late = mutant == Mutant::HeadAfterFlip && word >= std::mem::offset_of!(Control, heads) / 8;
            if late {
                self.late.borrow_mut().push(Late::Word(table, word, value));
            }
            return late;
        }
        // Scrubbing and unstaging replace an epoch that was never visible, staging one that was.
        let old = self.memory.load(table, word);
        let abandons = value == NEVER && old != NEVER && old > self.memory.load(Table::Control, 0);
        match mutant {
            Mutant::FlipBeforeStage => {
                self.late.borrow_mut().push(Late::Word(table, word, value));
                true
            }
            Mutant::NoScrub => abandons && self.scrubbing.get(),
            Mutant::NoUnstage => abandons && !self.scrubbing.get(),
            Mutant::NoNever => value == NEVER && !abandons,
            Mutant::EpochBeforePayload => self.tear(table, word, value, abandons),
            _ => false,
        }
    }

    /// Holds a version back until its epoch is written, and then writes the epoch first.
    fn tear(&self, table: Table, word: usize, value: u64, abandons: bool) -> bool {
        let mut torn = self.torn.borrow_mut();
        match torn.as_mut() {
            _ if abandons => false,
            None if value == NEVER && version_words(table).is_some() => {
                *torn = Some(Torn { table, first_word: word, payload: Vec::new() });
                false
            }
            Some(version) if (version.table, version.first_word) == (table, word) => {
                self.late.borrow_mut().append(&mut version.payload);
                *torn = None;
                false
            }
            Some(version) if version.table == table => {
                version.payload.push(Late::Word(table, word, value));
                true
            }
            _ => false,
        }
    }

    fn make_late_writes(&self) {
        let late: Vec<Late> = self.late.borrow_mut().drain(..).collect();
        for write in late {
            match write {
                Late::Word(table, word, value) => self
                    .step(Step::Store(table, word), || {
                        self.memory.store(table, word, value);
                        Ok(())
                    })
                    .expect("stores are not refused"),
                Late::Index(key, cell) => {
                    // Whether it is refused is of no interest any more.
                    drop(self.step(Step::Insert(key), || self.memory.index_insert(&key, cell)));
                }
            }
        }
    }

    fn step<R>(&self, step: Step, make: impl FnOnce() -> Result<R, TableError>) -> Result<R, TableError> {
        // The scheduler is free again before the applier dies.
        let fate = (self.scheduler.borrow_mut())(&self.memory, step);
        match fate {
            Fate::Proceed => make(),
            Fate::KillBefore => std::panic::resume_unwind(Box::new(Killed)),
            Fate::KillAfter => {
                drop(make());
                std::panic::resume_unwind(Box::new(Killed))
            }
            Fate::Refuse(errno) => {
                Err(TableError { call: "a refused call", table: map::name::FRONTEND_INDEX, source: errno.into() })
            }
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
        if self.is_held_back(table, word, value) {
            return;
        }
        let store = || {
            self.memory.store(table, word, value);
            Ok(())
        };
        self.step(Step::Store(table, word), store).expect("stores are not refused");
        let flips = table == Table::Control && word == 0;
        if flips || self.mutant == Some(Mutant::EpochBeforePayload) {
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
        if self.mutant == Some(Mutant::IndexAfterFlip) {
            self.late.borrow_mut().push(Late::Index(*key, cell));
            return Ok(());
        }
        self.step(Step::Insert(*key), || self.memory.index_insert(key, cell))
    }

    fn index_remove(&self, key: &FrontendKey) -> Result<(), TableError> {
        self.step(Step::Remove(*key), || match self.mutant {
            Some(Mutant::IndexEntryKept) => Ok(()),
            _ => self.memory.index_remove(key),
        })
    }

    fn index_entries(&self) -> Result<Vec<(FrontendKey, u32)>, TableError> {
        self.scrubbing.set(false);
        self.step(Step::List, || self.memory.index_entries())
    }
}

/// Words of a version in a table of cells, its epoch being the first.
pub(crate) const fn version_words(table: Table) -> Option<usize> {
    match table {
        Table::Control | Table::Endpoints => None,
        Table::Frontends => Some(1 + size_of::<Frontend>() / 8),
        Table::Services => Some(1 + size_of::<Service>() / 8),
        Table::Backends => Some(1 + size_of::<Backend>() / 8),
        Table::Node => Some(1 + size_of::<Node>() / 8),
    }
}
