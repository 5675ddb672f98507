//! The switch to a new generation, in a kernel of its own: pinned generations, and links that each run one of them. The agent is
//! killed before and after every step, each store and index call in either generation, each link, each discarded
//! generation; the agent that comes after it is killed again at each of its steps.
//!
//! Invariants, by name, checked at every step:
//!
//! * `ATTACHED`: what a link runs is pinned: the next agent finds it.
//! * `COMPLETE`: what a link runs holds a whole state, and says so.
//! * `ONE_EPOCH`: all links show one epoch, so that any mixture of them is right.
//! * `FORWARD`: no link shows an earlier epoch than it has shown.
//! * `ONE_FLIP`, `ORDER`, `HEAD_IS_KNOWN`: as everywhere, for the readers of each generation that a link runs.
//!
//! The order of things is the applier's (`follower`, `resume`); catching up and the choice at start are its very code.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use applier::entry::Changes;
use applier::recovery::believable;
use applier::tables::{MemoryTables, Table, Tables as _};
use applier::{Applier, ApplyError, Model, plan};
use journal::{Durable, Head};
use storage_schema::id::{Epoch, Lsn};
use storage_schema::map::Control;
use zerocopy::FromBytes;

use crate::checker::{Checker, active_epoch};
use crate::domain::{self, CAPACITIES};
use crate::oracle::State;
use crate::tables::{Fate, Killed, SimulatedTables, Step};
use crate::world::{Heads, IDENTITY};

const LINKS: usize = 2;
const RECORDS: usize = 10;
const OLD: u32 = 1;
const NEW: u32 = 2;

/// A rule of the switch, broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// Links are switched to a generation that is behind.
    SwitchesBeforeCatchingUp,
    /// What is new is applied while some links still run the old generation.
    AppliesWhileLinksDiffer,
    /// Links are switched to a generation that does not say that it is complete.
    SwitchesBeforeComplete,
    /// The old generation goes before all links have left it.
    DiscardsFirst,
    /// A start goes on with the newest complete generation, whatever links run.
    StartTakesTheNewest,
    /// A start catches up before all links run what it has chosen.
    StartCatchesUpFirst,
}

impl Mutant {
    const ALL: [Self; 6] = [
        Self::SwitchesBeforeCatchingUp,
        Self::AppliesWhileLinksDiffer,
        Self::SwitchesBeforeComplete,
        Self::DiscardsFirst,
        Self::StartTakesTheNewest,
        Self::StartCatchesUpFirst,
    ];
}

/// A generation, and who reads it while a link runs it.
struct Pinned {
    memory: Rc<MemoryTables>,
    checker: Checker,
}

/// What outlives agents.
struct Kernel {
    pinned: BTreeMap<u32, Pinned>,
    /// The generation that each link runs.
    links: [u32; LINKS],
    /// The last epoch that each has shown.
    shown: [u64; LINKS],
    steps: usize,
    /// Where agents die: two points for each step, counted from the start and then from each death.
    crash_points: VecDeque<usize>,
}

impl Kernel {
    /// Before a step of an agent: what must hold, and what becomes of it. `store`: what is about to be done to which tables.
    fn step(&mut self, store: Option<(u32, &MemoryTables, Step)>) -> Fate {
        self.steps += 1;
        self.check();
        if let Some((number, memory, step)) = store.filter(|(number, ..)| self.links.contains(number)) {
            let pinned = self.pinned.get_mut(&number).expect("checked just now");
            assert!(matches!(pinned.checker.step(memory, step), Fate::Proceed), "only this kernel kills");
        }
        match self.crash_points.front_mut() {
            Some(left @ (0 | 1)) => {
                let after = *left == 1;
                self.crash_points.pop_front();
                if after { Fate::KillAfter } else { Fate::KillBefore }
            }
            Some(left) => {
                *left -= 2;
                Fate::Proceed
            }
            None => Fate::Proceed,
        }
    }

    fn check(&mut self) {
        for (link, number) in self.links.into_iter().enumerate() {
            let Some(pinned) = self.pinned.get_mut(&number) else {
                panic!("ATTACHED violated at step {}: link {link} runs generation {number}, which is gone", self.steps)
            };
            let (epoch, steps) = (active_epoch(&pinned.memory), self.steps);
            assert!(is_complete(&pinned.memory), "COMPLETE violated at step {steps}: link {link} runs {number}");
            let before = std::mem::replace(&mut self.shown[link], epoch);
            assert!(before <= epoch, "FORWARD violated at step {steps}: link {link} shows {epoch} after {before}");
            pinned.checker.check(&pinned.memory);
        }
        let shown = self.shown;
        assert!(shown.iter().all(|epoch| *epoch == shown[0]), "ONE_EPOCH violated at step {}: {shown:?}", self.steps);
    }
}

/// An agent's journal, and the kernel that it works on.
struct Node<'h> {
    heads: &'h Heads,
    kernel: Rc<RefCell<Kernel>>,
    model: Model,
    lsn: Lsn,
    states: Vec<(u64, State, [u8; 32])>,
    mutant: Option<Mutant>,
}

impl<'h> Node<'h> {
    /// A node that has shown some records in its first generation.
    fn new(heads: &'h Heads, mutant: Option<Mutant>) -> Self {
        let kernel = Kernel {
            pinned: BTreeMap::new(),
            links: [OLD; LINKS],
            shown: [0; LINKS],
            steps: 0,
            crash_points: VecDeque::new(),
        };
        let kernel = Rc::new(RefCell::new(kernel));
        let mut node = Self { heads, kernel, model: Model::default(), lsn: Lsn::ZERO, states: Vec::new(), mutant };
        node.pin(OLD);
        {
            // Not a step of anybody's: this is how it was.
            let memory = Rc::clone(&node.kernel.borrow().pinned[&OLD].memory);
            let scheduler = Rc::new(RefCell::new(|_: &MemoryTables, _| Fate::Proceed));
            let mut applier = Applier::create(SimulatedTables::new(memory, scheduler, None), &IDENTITY);
            applier.complete();
            for _ in 0..3 {
                let (changes, head) = node.push();
                if applier.apply(&changes, head).is_err() {
                    applier.quiesce(applier.active()).expect("memory does not fail");
                    applier.apply(&changes, head).expect("its readers have passed");
                }
            }
        }
        node
    }

    /// Journals the next record.
    fn push(&mut self) -> (Changes, Durable<Head>) {
        let round = u8::try_from(self.lsn.0).expect("a few records");
        let admitted = self.model.admit(&domain::churn(round), &CAPACITIES).expect("it fits");
        self.lsn = self.lsn.next();
        let head = self.heads.at(self.lsn);
        self.states.push((self.lsn.0, State::of(&self.model), head.hash.0));
        for pinned in self.kernel.borrow_mut().pinned.values_mut() {
            pinned.checker.journaled(self.lsn.0, State::of(&self.model), head.hash.0);
        }
        (admitted.changes, head)
    }

    /// Empty tables, pinned beside those that are there.
    fn pin(&self, number: u32) {
        let mut checker = Checker::new(State::of(&Model::default()), String::new());
        for (lsn, state, hash) in &self.states {
            checker.journaled(*lsn, state.clone(), *hash);
        }
        let pinned = Pinned { memory: Rc::new(MemoryTables::new(CAPACITIES)), checker };
        self.kernel.borrow_mut().pinned.insert(number, pinned);
    }

    fn tables(&self, number: u32) -> SimulatedTables {
        let kernel = Rc::clone(&self.kernel);
        let memory = Rc::clone(&kernel.borrow().pinned[&number].memory);
        let scheduler = move |memory: &MemoryTables, step| kernel.borrow_mut().step(Some((number, memory, step)));
        SimulatedTables::new(memory, Rc::new(RefCell::new(scheduler)), None)
    }

    /// A step that is not one of an applier.
    fn step(&self, make: impl FnOnce(&mut Kernel)) {
        let fate = self.kernel.borrow_mut().step(None);
        if !matches!(fate, Fate::KillBefore) {
            make(&mut self.kernel.borrow_mut());
        }
        if !matches!(fate, Fate::Proceed) {
            resume_unwind(Box::new(Killed));
        }
    }

    /// An agent's life: a new generation is built, brought up to date and switched to, and the journal goes on.
    fn renew(&mut self) {
        let (mut old, _) = Applier::recover(self.tables(OLD)).expect("it is whole");
        let head = self.heads.at(self.lsn);
        self.pin(NEW);
        let mut new = Applier::create(self.tables(NEW), &IDENTITY);
        new.fill(&self.model, head).expect("empty tables have room");
        if self.mutant != Some(Mutant::SwitchesBeforeComplete) {
            new.complete();
        }
        // Meanwhile the old one goes on.
        let since: Vec<_> = (0..2).map(|_| self.push()).collect();
        for (changes, head) in &since {
            self.apply(OLD, &mut old, changes, *head);
        }
        if self.mutant != Some(Mutant::SwitchesBeforeCatchingUp) {
            new.catch_up(&since).expect("nobody reads it");
        }
        if self.mutant == Some(Mutant::DiscardsFirst) {
            self.discard_all_but(NEW);
        }
        // Pushes go on; what they change waits.
        let mut waiting = Vec::new();
        for link in 0..LINKS {
            self.step(|kernel| kernel.links[link] = NEW);
            waiting.push(self.push());
            if self.mutant == Some(Mutant::AppliesWhileLinksDiffer) {
                self.apply_all(NEW, &mut new, &mut waiting);
            }
        }
        new.complete();
        self.discard_all_but(NEW);
        self.apply_all(NEW, &mut new, &mut waiting);
    }

    /// The life of an agent that finds what another one has left.
    fn restart(&mut self) {
        let chosen = {
            let kernel = self.kernel.borrow();
            let shows = |pinned: &Pinned| is_complete(&pinned.memory).then(|| Epoch(active_epoch(&pinned.memory)));
            let attached: Vec<u32> = kernel.pinned.keys().copied().filter(|n| kernel.links.contains(n)).collect();
            let believed = believable(attached.iter().map(|number| shows(&kernel.pinned[number])));
            let newest = kernel.pinned.iter().rev().find(|(_, pinned)| is_complete(&pinned.memory)).map(|(n, _)| *n);
            match self.mutant {
                Some(Mutant::StartTakesTheNewest) => newest.expect("there is a complete one"),
                _ => attached[believed.expect("what links run is whole and of one epoch")],
            }
        };
        if self.mutant == Some(Mutant::StartCatchesUpFirst) {
            self.recover(chosen);
        }
        for link in 0..LINKS {
            if self.kernel.borrow().links[link] != chosen {
                self.step(|kernel| kernel.links[link] = chosen);
            }
        }
        self.discard_all_but(chosen);
        self.recover(chosen);
    }

    fn recover(&self, number: u32) {
        let (mut applier, _) = Applier::recover(self.tables(number)).expect("it is whole");
        let head = self.heads.at(self.lsn);
        let mut wanted = plan::everything(&self.model);
        if let Err(ApplyError::Blocked { .. }) = applier.reconcile(&mut wanted, head) {
            self.let_readers_pass(number, &mut applier);
            applier.reconcile(&mut wanted, head).expect("its readers have passed");
        }
    }

    fn apply_all(
        &self,
        number: u32,
        applier: &mut Applier<SimulatedTables>,
        waiting: &mut Vec<(Changes, Durable<Head>)>,
    ) {
        for (changes, head) in waiting.drain(..) {
            self.apply(number, applier, &changes, head);
        }
    }

    fn apply(&self, number: u32, applier: &mut Applier<SimulatedTables>, changes: &Changes, head: Durable<Head>) {
        if let Err(error) = applier.apply(changes, head) {
            assert!(matches!(error, ApplyError::Blocked { .. }), "{error}");
            self.let_readers_pass(number, applier);
            applier.apply(changes, head).expect("its readers have passed");
        }
    }

    fn let_readers_pass(&self, number: u32, applier: &mut Applier<SimulatedTables>) {
        let active = applier.active();
        let mut kernel = self.kernel.borrow_mut();
        kernel.pinned.get_mut(&number).expect("it is pinned").checker.readers_have_passed(active.0);
        drop(kernel);
        applier.quiesce(active).expect("nothing is refused");
    }

    fn discard_all_but(&self, kept: u32) {
        let others: Vec<u32> = self.kernel.borrow().pinned.keys().copied().filter(|number| *number != kept).collect();
        for number in others {
            self.step(|kernel| drop(kernel.pinned.remove(&number)));
        }
    }

    /// Whether the agent lived to the end of `life`.
    fn survives(&mut self, life: impl FnOnce(&mut Self)) -> bool {
        match catch_unwind(AssertUnwindSafe(|| life(self))) {
            Ok(()) => true,
            Err(cause) if cause.is::<Killed>() => false,
            Err(cause) => resume_unwind(cause),
        }
    }

    /// One generation is left, links run it, and it shows all that was journaled.
    fn check_at_rest(&self) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.check();
        assert_eq!(kernel.pinned.len(), 1, "one generation is left");
        let pinned = kernel.pinned.values().next().expect("there is one");
        assert_eq!(active_epoch(&pinned.memory), self.lsn.0, "all that was journaled is shown");
        pinned.checker.check_state(&pinned.memory, "RECOVERED_IS_FOLD");
    }
}

fn is_complete(memory: &MemoryTables) -> bool {
    let words = (0..size_of::<Control>() / 8).flat_map(|word| memory.load(Table::Control, word).to_ne_bytes());
    let control = Control::read_from_bytes(&words.collect::<Vec<_>>()).expect("as many bytes");
    IDENTITY.matches(&control)
}

/// A switch in which agents die at these points; how many did, and the steps that were made.
fn run(heads: &Heads, points: &[usize], mutant: Option<Mutant>) -> (usize, usize) {
    let mut node = Node::new(heads, mutant);
    node.kernel.borrow_mut().crash_points = points.iter().copied().collect();
    let mut deaths = 0;
    let mut lived = node.survives(Node::renew);
    while !lived {
        deaths += 1;
        lived = node.survives(Node::restart);
    }
    node.check_at_rest();
    let steps = node.kernel.borrow().steps;
    (deaths, steps)
}

#[test]
fn every_crash_point_of_a_switch_leaves_one_whole_generation() {
    let heads = Heads::journal(RECORDS);
    let (mut points, mut pairs, mut all_steps) = (0, 0, 0);
    for first in 0.. {
        let (deaths, steps) = run(&heads, &[first], None);
        if deaths == 0 {
            break;
        }
        points += 1;
        all_steps += steps;
        for second in 0.. {
            let (deaths, steps) = run(&heads, &[first, second], None);
            if deaths < 2 {
                break;
            }
            pairs += 1;
            all_steps += steps;
        }
    }
    assert!(points > 500 && pairs > points, "{points} points, {pairs} pairs: the switch is longer than that");
    println!(
        "crash points of a switch covered: {points} of {points}, of the start after it {pairs}, {all_steps} steps"
    );
}

#[test]
fn every_mutant_of_the_switch_is_found() {
    let heads = Heads::journal(RECORDS);
    let report = std::panic::take_hook();
    // Violations are what is looked for here: they are not worth a message each.
    std::panic::set_hook(Box::new(|_| {}));
    let violation = |mutant: Mutant| {
        let points = (0..).map(|point| (point, catch_unwind(AssertUnwindSafe(|| run(&heads, &[point], Some(mutant))))));
        for (point, outcome) in points {
            match outcome {
                Ok((0, _)) => return None,
                Ok(_) => {}
                Err(cause) => {
                    let message = cause.downcast_ref::<String>().cloned().unwrap_or_default();
                    return Some((point, message.lines().next().unwrap_or_default().to_owned()));
                }
            }
        }
        None
    };
    let found: Vec<_> = Mutant::ALL.into_iter().map(|mutant| (mutant, violation(mutant))).collect();
    std::panic::set_hook(report);
    for (mutant, violation) in &found {
        println!("{mutant:?}: {violation:?}");
    }
    let survivors: Vec<_> = found.iter().filter(|(_, violation)| violation.is_none()).collect();
    assert!(survivors.is_empty(), "nobody notices {survivors:?}");
}
