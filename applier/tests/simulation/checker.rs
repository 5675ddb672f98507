//! What must hold at every step, by name, and the scheduler that decides what becomes of a step.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;

use applier::tables::{MemoryTables, Table, Tables, View};
use decision::{Again, Verdict};
use rustix::io::Errno;
use storage_schema::map::{Backend, Cell, Control, Frontend, FrontendKey, Head, NEVER, Node, Service};

use crate::oracle::{self, State};
use crate::schedule::Event;
use crate::tables::{Fate, Step, version_words};

const CLIENTS: [Again; 4] = [
    Again { entropy: 0, from_waypoint: false },
    Again { entropy: u32::MAX / 2, from_waypoint: false },
    Again { entropy: u32::MAX, from_waypoint: false },
    Again { entropy: u32::MAX, from_waypoint: true },
];
const HEADS: usize = std::mem::offset_of!(Control, heads) / 8;

/// Where an applier dies: after so many steps, before or after the next one. Written as one number, twice the steps, and
/// one more for "after".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CrashPoint(pub(crate) usize);

/// Calls on the index that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// Which.
    pub(crate) calls: Calls,
    /// How many are let pass first.
    pub(crate) skip: usize,
    /// How many fail in a row.
    pub(crate) times: usize,
    /// With what.
    pub(crate) errno: Errno,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    Any,
    Insertions,
    Removals,
}

impl Refusal {
    /// What the kernel answers when a hash is full, a bucket is locked, memory is short, and the map is frozen.
    pub(crate) const ERRORS: [Errno; 4] = [Errno::TOOBIG, Errno::BUSY, Errno::NOMEM, Errno::PERM];

    const fn concerns(&self, step: Step) -> bool {
        match step {
            Step::Store(..) => false,
            Step::Insert(_) => matches!(self.calls, Calls::Any | Calls::Insertions),
            Step::Remove(_) => matches!(self.calls, Calls::Any | Calls::Removals),
            Step::List => matches!(self.calls, Calls::Any),
        }
    }
}

/// What the index had for each destination for a while; programs that looked something up in it may still run.
struct Lookups {
    /// As many as there were destinations then.
    cells: Vec<Option<u32>>,
    /// The last epoch during which it was so.
    until: u64,
}

/// What happened: events, and what became of the applier's steps.
pub(crate) enum Happened {
    Event(Event),
    KilledBefore(Step),
    KilledAfter(Step),
    Refused(Step),
}

impl fmt::Display for Happened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => write!(f, "{event:?}"),
            Self::KilledBefore(step) => write!(f, "killed before {step:?}"),
            Self::KilledAfter(step) => write!(f, "killed after {step:?}"),
            Self::Refused(step) => write!(f, "refused {step:?}"),
        }
    }
}

/// What the checker knows. Shared with the simulated tables, which ask it before each step.
pub(crate) struct Checker {
    /// How to run this again.
    replay: String,
    /// What happened, in order.
    pub(crate) recording: Vec<Happened>,
    /// The state at each LSN, the empty one included, and the record's hash.
    states: BTreeMap<u64, (State, [u8; 32])>,
    /// Epochs that were flipped to and that a program may still hold, with the words that such a program may read.
    held: BTreeMap<u64, HashSet<(Table, usize)>>,
    lookups: Vec<Lookups>,
    /// Whether the index may not be as the newest of them says.
    index_changed: bool,
    destinations: Vec<FrontendKey>,
    /// What readers of an epoch must see for each of the destinations.
    expected: HashMap<u64, Vec<[Verdict; CLIENTS.len()]>>,
    steps: usize,
    readers_from: usize,
    kills: usize,
    crash_points: VecDeque<CrashPoint>,
    refusal: Option<Refusal>,
    refusal_at_death: Option<Refusal>,
    refused: usize,
}

impl Checker {
    pub(crate) fn new(empty: State, replay: String) -> Self {
        Self {
            replay,
            recording: Vec::new(),
            states: BTreeMap::from([(0, (empty, [0; 32]))]),
            held: BTreeMap::new(),
            lookups: Vec::new(),
            index_changed: true,
            destinations: Vec::new(),
            expected: HashMap::new(),
            steps: 0,
            readers_from: 0,
            kills: 0,
            crash_points: VecDeque::new(),
            refusal: None,
            refusal_at_death: None,
            refused: 0,
        }
    }

    pub(crate) const fn steps(&self) -> usize {
        self.steps
    }

    pub(crate) const fn kills(&self) -> usize {
        self.kills
    }

    /// Index calls that have failed.
    pub(crate) const fn refused(&self) -> usize {
        self.refused
    }

    pub(crate) fn state(&self, lsn: u64) -> &State {
        &self.states[&lsn].0
    }

    pub(crate) fn journaled(&mut self, lsn: u64, state: State, hash: [u8; 32]) {
        for destination in state.destinations() {
            if !self.destinations.contains(&destination) {
                self.destinations.push(destination);
            }
        }
        self.expected.clear();
        self.states.insert(lsn, (state, hash));
    }

    /// Kills the applier at the first of these points, counted from here, the next applier at the next, counted from the
    /// death of the one before, and so on.
    pub(crate) fn kill_at(&mut self, points: &[CrashPoint]) {
        self.crash_points = points.iter().copied().collect();
    }

    pub(crate) const fn refuse(&mut self, refusal: Option<Refusal>) {
        self.refusal = refusal;
    }

    /// Refuses calls of the applier that comes after the next kill.
    pub(crate) const fn refuse_at_death(&mut self, refusal: Refusal) {
        self.refusal_at_death = Some(refusal);
    }

    /// Other tables take the place of those that readers use.
    pub(crate) fn new_tables(&mut self) {
        self.held.clear();
        self.lookups.clear();
        self.index_changed = true;
    }

    /// Runs readers from this step on only.
    pub(crate) const fn check_readers_from(&mut self, step: usize) {
        self.readers_from = step;
    }

    /// Programs of epochs before this one are gone.
    pub(crate) fn readers_have_passed(&mut self, epoch: u64) {
        self.held.retain(|held, _| *held >= epoch);
        self.lookups.retain(|lookups| lookups.until >= epoch);
    }

    /// Checks what must hold before a step, and says what becomes of it.
    pub(crate) fn step(&mut self, memory: &MemoryTables, step: Step) -> Fate {
        self.steps += 1;
        self.check(memory);
        match step {
            Step::Store(table, word) => self.check_store(memory, table, word),
            Step::Insert(key) if memory.index_get(&key).is_ok_and(|cell| cell.is_some()) => {
                self.violated("ORDER", memory, format_args!("an index entry is updated in place: {key:?}"));
            }
            Step::Insert(_) | Step::Remove(_) => self.index_changed = true,
            Step::List => {}
        }
        if let Some(CrashPoint(left)) = self.crash_points.front_mut() {
            match *left {
                0 | 1 => {
                    let after = *left == 1;
                    self.crash_points.pop_front();
                    self.kills += 1;
                    self.refusal = self.refusal_at_death.take().or(self.refusal);
                    self.recording.push(if after { Happened::KilledAfter(step) } else { Happened::KilledBefore(step) });
                    return if after { Fate::KillAfter } else { Fate::KillBefore };
                }
                _ => *left -= 2,
            }
        }
        self.refusal_of(step).map_or(Fate::Proceed, Fate::Refuse)
    }

    fn refusal_of(&mut self, step: Step) -> Option<Errno> {
        let refusal = self.refusal.as_mut().filter(|refusal| refusal.concerns(step))?;
        if refusal.skip > 0 {
            refusal.skip -= 1;
            return None;
        }
        let errno = refusal.errno;
        refusal.times -= 1;
        if refusal.times == 0 {
            self.refusal = None;
        }
        self.refused += 1;
        self.recording.push(Happened::Refused(step));
        Some(errno)
    }

    /// Checks what must hold between any two steps.
    pub(crate) fn check(&mut self, memory: &MemoryTables) {
        self.look(memory);
        self.check_head(memory);
        if self.steps >= self.readers_from {
            self.check_readers(memory);
        }
    }

    /// Programs may begin now: at the active epoch, with the index as it is.
    fn look(&mut self, memory: &MemoryTables) {
        let active = active_epoch(memory);
        self.held.entry(active).or_insert_with(|| reachable(memory, active));
        match self.lookups.last_mut() {
            Some(last) if !self.index_changed => last.until = active,
            _ => {
                let cell = |destination| memory.index_get(destination).expect("memory does not fail");
                let cells = self.destinations.iter().map(cell).collect();
                self.lookups.push(Lookups { cells, until: active });
                self.index_changed = false;
            }
        }
    }

    /// `ONE_FLIP`: each reader that can exist sees exactly the state of its epoch.
    fn check_readers(&mut self, memory: &MemoryTables) {
        for epoch in self.held.keys() {
            let state = &self.states[epoch].0;
            self.expected.entry(*epoch).or_insert_with(|| {
                let verdicts = |destination| CLIENTS.map(|client| state.decide(destination, client));
                self.destinations.iter().map(verdicts).collect()
            });
        }
        for epoch in self.held.keys() {
            let expected = &self.expected[epoch];
            // A program that loaded its epoch long ago may do its lookup at any time since.
            let lookups: Vec<_> = self.lookups.iter().filter(|lookups| lookups.until >= *epoch).collect();
            for (number, destination) in self.destinations.iter().enumerate() {
                let mut checked = None;
                for lookups in &lookups {
                    let cell = lookups.cells.get(number).copied().flatten();
                    if checked.replace(cell) == Some(cell) {
                        continue;
                    }
                    let reader = Reader { view: View(memory), cell };
                    for (client, verdict) in CLIENTS.into_iter().zip(&expected[number]) {
                        let seen = decision::decide_with(&reader, *epoch, destination, &client);
                        if seen != *verdict {
                            let what = format!("a reader of epoch {epoch} is sent to {seen:?}, not to {verdict:?}");
                            self.violated("ONE_FLIP", memory, format_args!("{destination:?}: {what}"));
                        }
                    }
                }
            }
        }
    }

    /// `ORDER` and `ONE_FLIP`, for a store that is about to be made.
    fn check_store(&self, memory: &MemoryTables, table: Table, word: usize) {
        if let Some(words) = version_words(table) {
            let first = word - word % words;
            if word != first && memory.load(table, first) != NEVER {
                self.violated(
                    "ORDER",
                    memory,
                    format_args!("a version of {table} has an epoch and is written, word {word}"),
                );
            }
        }
        // Somebody who has found the way to this word already, and is about to read it.
        if let Some(epoch) = self.held.iter().find_map(|(epoch, words)| words.contains(&(table, word)).then_some(epoch))
        {
            let what = format_args!("a reader of epoch {epoch} may be reading word {word} of {table}");
            self.violated("ONE_FLIP", memory, what);
        }
    }

    /// `HEAD_IS_KNOWN`: which record the active epoch stands for can be read at any time.
    fn check_head(&self, memory: &MemoryTables) {
        let active = active_epoch(memory);
        let Some((_, hash)) = self.states.get(&active) else {
            self.violated("HEAD_IS_KNOWN", memory, format_args!("no record has this number"));
        };
        let word = |word: usize| memory.load(Table::Control, word);
        let known = [HEADS, HEADS + size_of::<Head>() / 8].into_iter().any(|head| {
            let shown = (1..=4).flat_map(|part| word(head + part).to_ne_bytes());
            word(head) == active && shown.eq(hash.iter().copied())
        });
        if !known {
            self.violated("HEAD_IS_KNOWN", memory, format_args!("no head says which record it is"));
        }
    }

    /// The tables show the state of their epoch, whole, and nothing else.
    pub(crate) fn check_state(&self, memory: &MemoryTables, invariant: &str) {
        let active = active_epoch(memory);
        match State::shown(memory, active) {
            Ok(shown) if shown == self.states[&active].0 => {}
            Ok(shown) => {
                let what = format!("{shown:#?}\nshould be\n{:#?}", self.states[&active].0);
                self.violated(invariant, memory, format_args!("{what}"));
            }
            Err(what) => self.violated(invariant, memory, format_args!("{what}")),
        }
    }

    /// After a panic that is not a violation: how to see it again.
    pub(crate) fn print_replay(&self) {
        if !self.replay.is_empty() {
            eprintln!("at step {}; run it again: {}", self.steps, self.replay);
        }
    }

    /// Ends the test, with all that is needed to see the same again.
    pub(crate) fn violated(&self, invariant: &str, memory: &MemoryTables, what: fmt::Arguments<'_>) -> ! {
        let mut recording = String::new();
        for happened in self.recording.iter().skip(self.recording.len().saturating_sub(12)) {
            recording.push_str("\n  ");
            recording.push_str(&happened.to_string());
        }
        let (steps, active) = (self.steps, active_epoch(memory));
        panic!(
            "{invariant} violated at step {steps}, active epoch {active}: {what}\nbefore it, newest last:\
             {recording}\nrun it again: {}",
            self.replay
        );
    }
}

/// The words that a reader of `epoch` selects: versions with their epochs, and slots of runs.
fn reachable(memory: &MemoryTables, epoch: u64) -> HashSet<(Table, usize)> {
    let mut words = HashSet::new();
    for table in Table::ALL {
        if let Some(length) = version_words(table) {
            let versions = oracle::visible_versions(memory, table, epoch);
            words.extend(versions.flat_map(|(_, first)| (first..first + length).map(move |word| (table, word))));
        }
    }
    for (_, service) in oracle::visible::<Service>(memory, Table::Services, epoch) {
        let slots = service.run_offset..service.run_offset + service.run_length;
        words.extend(slots.map(|slot| (Table::Endpoints, slot as usize / 2)));
    }
    words
}

pub(crate) fn active_epoch(memory: &MemoryTables) -> u64 {
    View(memory).active_epoch().0
}

/// A program that has looked up its destination in the index at some moment.
struct Reader<'t> {
    view: View<'t, MemoryTables>,
    cell: Option<u32>,
}

impl decision::Tables for Reader<'_> {
    fn frontend_index(&self, _: &FrontendKey) -> Option<u32> {
        self.cell
    }
    fn frontend(&self, cell: u32) -> Option<*const Cell<Frontend>> {
        self.view.frontend(cell)
    }
    fn service(&self, cell: u32) -> Option<*const Cell<Service>> {
        self.view.service(cell)
    }
    fn endpoint(&self, slot: u32) -> Option<*const u32> {
        self.view.endpoint(slot)
    }
    fn backend(&self, cell: u32) -> Option<*const Cell<Backend>> {
        self.view.backend(cell)
    }
    fn node(&self) -> Option<*const Cell<Node>> {
        self.view.node()
    }
}
