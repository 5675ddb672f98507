//! The simulated node: journal heads, kernel memory, and an applier that comes and goes.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use applier::entry::Changes;
use applier::tables::{MemoryTables, Table, Tables as _};
use applier::{Applier, ApplyError, Identity, Model, plan};
use journal::{Config, Durable, Head, Journal};
use storage_schema::id::{BootId, Epoch, Lsn, StoreId};
use storage_schema::map::Control;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Kind, ResourceKey};
use zerocopy::FromBytes;

use crate::checker::{Checker, Happened, active_epoch};
use crate::domain::CAPACITIES;
use crate::mutants::Mutant;
use crate::oracle::State;
use crate::schedule::Event;
use crate::tables::{Killed, SimulatedTables, Step};

pub(crate) const IDENTITY: Identity =
    Identity { store_id: StoreId([7; 16]), programs_hash: [9; 32], boot_id: BootId([5; 16]) };

/// Grace periods after which everything is at rest.
const SETTLING_MAX: usize = 24;

/// Durable heads of a real journal: nothing else can be applied.
pub(crate) struct Heads(Vec<Durable<Head>>);

impl Heads {
    /// A journal of this many records, in a directory of its own, gone afterwards.
    pub(crate) fn journal(records: usize) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let journal = Journal::open(Config::new(directory.path().join("state"))).expect("an empty directory");
        let origin = Origin { source: "simulation".to_owned(), incarnation: 1, version: None };
        let deltas = vec![Delta::Remove(ResourceKey::new(Kind::Node, "none"))];
        let mut last = None;
        for _ in 0..records {
            let permit = journal.blocking_reserve().expect("an open journal");
            let transaction = Transaction::push(origin.clone(), deltas.clone());
            last = Some(permit.submit(transaction).expect("an open journal").ack);
        }
        last.expect("at least one record").blocking_wait().expect("a writable directory");
        let mut heads = vec![];
        for lsn in 1..=records as u64 {
            let record = journal.encoded_record(Lsn(lsn)).expect("a durable record");
            heads.push(record.head());
        }
        Self(heads)
    }

    pub(crate) fn at(&self, lsn: Lsn) -> Durable<Head> {
        self.0[usize::try_from(lsn.0).expect("a small number") - 1]
    }
}

/// The simulated node.
pub(crate) struct World<'h> {
    heads: &'h Heads,
    memory: Rc<MemoryTables>,
    pub(crate) checker: Rc<RefCell<Checker>>,
    applier: Option<Applier<SimulatedTables>>,
    model: Model,
    lsn: Lsn,
    queued: Changes,
    grace: Option<Epoch>,
    mutant: Option<Mutant>,
    compactions: usize,
    /// For each death, whether it was during a recovery.
    deaths: Vec<bool>,
}

impl<'h> World<'h> {
    /// A node with empty tables; `replay` is the command that runs the same again.
    pub(crate) fn new(heads: &'h Heads, replay: String) -> Self {
        Self::with_mutant(heads, replay, None)
    }

    /// A node whose applier breaks a rule.
    pub(crate) fn with_mutant(heads: &'h Heads, replay: String, mutant: Option<Mutant>) -> Self {
        let model = Model::default();
        let mut world = Self {
            heads,
            memory: Rc::new(MemoryTables::new(CAPACITIES)),
            checker: Rc::new(RefCell::new(Checker::new(State::of(&model), replay))),
            applier: None,
            model,
            lsn: Lsn::ZERO,
            queued: Changes::default(),
            grace: None,
            mutant,
            compactions: 0,
            deaths: Vec::new(),
        };
        let applier = Applier::create(world.tables(), &IDENTITY);
        applier.complete();
        world.applier = Some(applier);
        world
    }

    /// Lets something happen, and checks what must hold afterwards.
    pub(crate) fn happen(&mut self, event: Event) {
        self.checker.borrow_mut().recording.push(Happened::Event(event.clone()));
        match event {
            Event::Push(transaction) => self.push(&transaction),
            Event::Apply => self.apply(),
            Event::BeginGrace => self.begin_grace(),
            Event::EndGrace => self.end_grace(),
            Event::Kill(points) => self.checker.borrow_mut().kill_at(&points),
            Event::Refuse(refusal) => self.checker.borrow_mut().refuse(Some(refusal)),
        }
        self.checker.borrow_mut().check(&self.memory);
        self.check_cells();
    }

    /// Admits and journals a transaction, if it fits.
    fn push(&mut self, transaction: &Transaction) {
        let before = State::of(&self.model);
        match self.model.admit(transaction, &CAPACITIES) {
            Err(_) if before != State::of(&self.model) => {
                self.violated("ADMITTED_FITS", "a refused push changed something")
            }
            Err(_) => {}
            Ok(admitted) => {
                self.lsn = self.lsn.next();
                self.queued.merge(admitted.changes);
                let hash = self.heads.at(self.lsn).hash.0;
                self.checker.borrow_mut().journaled(self.lsn.0, State::of(&self.model), hash);
            }
        }
    }

    /// Applies what is journaled; waits for readers where the protocol asks for it.
    fn apply(&mut self) {
        if self.lsn == Lsn::ZERO {
            return;
        }
        let head = self.heads.at(self.lsn);
        let changes = self.queued.clone();
        match self.run(|applier| applier.apply(&changes, head)) {
            Some(Ok(applied)) => {
                self.queued = Changes::default();
                self.compactions += usize::from(applied.compacted);
                self.checker.borrow().check_state(&self.memory, "ONE_FLIP");
                self.check_applied_again();
            }
            Some(Err(ApplyError::Blocked { until })) => {
                let active = self.applier.as_ref().expect("alive").active();
                if until > active {
                    self.violated("STAGE", &format!("it waits for {until}, which is not visible"));
                }
            }
            // Killed, or refused: what is queued is applied another time.
            None | Some(Err(ApplyError::Table(_))) => {}
            Some(Err(error)) => self.violated("ADMITTED_FITS", &error.to_string()),
        }
    }

    fn begin_grace(&mut self) {
        let active = self.applier.as_ref().expect("alive").active();
        self.grace.get_or_insert(active);
    }

    /// The grace period that is under way ends: programs of epochs before its beginning are gone.
    fn end_grace(&mut self) {
        if let Some(epoch) = self.grace.take() {
            if self.mutant != Some(Mutant::NoGrace) {
                self.checker.borrow_mut().readers_have_passed(epoch.0);
            }
            let active = self.applier.as_ref().expect("alive").active();
            let epoch = if self.mutant == Some(Mutant::QuiesceTooMuch) { active } else { epoch };
            // A refused call is tried again at the next grace period.
            drop(self.run(|applier| applier.quiesce(epoch)));
        }
    }

    /// Brings everything to rest and checks that nothing is left over.
    pub(crate) fn settle(&mut self) {
        self.checker.borrow_mut().refuse(None);
        // Appliers that are killed meanwhile make it longer.
        for _ in 0..SETTLING_MAX {
            for event in [Event::EndGrace, Event::Apply, Event::BeginGrace] {
                self.happen(event);
            }
            if active_epoch(&self.memory) == self.lsn.0 && !self.applier.as_ref().expect("alive").has_retiring() {
                break;
            }
        }
        let active = active_epoch(&self.memory);
        if active != self.lsn.0 {
            self.violated("ADMITTED_FITS", &format!("what was journaled up to {} is never applied", self.lsn));
        }
        self.check_nothing_leaks();
        // What recovery finds is what was left.
        let before = self.dump();
        self.restart();
        if before != self.dump() {
            self.violated("NOTHING_TWICE", "a restart at rest writes something");
        }
        self.check_nothing_leaks();
    }

    /// An index entry is gone, which the applier has not deleted. Readers miss it until it is back.
    pub(crate) fn lose_an_index_entry_and_restart(&mut self) {
        let entries = self.memory.index_entries().expect("memory does not fail");
        let (key, _) = entries.first().expect("an index entry");
        self.memory.index_remove(key).expect("memory does not fail");
        self.checker.borrow_mut().check_readers_from(usize::MAX);
        self.restart();
        self.checker.borrow_mut().new_tables();
        self.checker.borrow_mut().check_readers_from(0);
        self.checker.borrow_mut().check(&self.memory);
    }

    /// Fills a new generation's tables with the journal's state. Killed meanwhile, it is gone on with if it says that it
    /// is complete. Returns whether there was a kill.
    pub(crate) fn replace_generation(&mut self) -> bool {
        self.memory = Rc::new(MemoryTables::new(CAPACITIES));
        self.checker.borrow_mut().new_tables();
        let head = self.heads.at(self.lsn);
        let compared = Applier::create(MemoryTables::new(CAPACITIES), &IDENTITY)
            .reconcile(&mut plan::everything(&self.model), head)
            .expect("empty tables have room");
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let mut applier = Applier::create(self.tables(), &IDENTITY);
            let entries = applier.fill(&self.model, head).expect("empty tables have room");
            assert_eq!(entries, compared.entries, "both ways lead to the same tables");
            applier.complete();
        }));
        if let Err(cause) = lived {
            if !cause.is::<Killed>() {
                self.panicked(cause);
            }
            let words =
                (0..size_of::<Control>() / 8).flat_map(|word| self.memory.load(Table::Control, word).to_ne_bytes());
            let control = Control::read_from_bytes(&words.collect::<Vec<_>>()).expect("as many bytes");
            if IDENTITY.matches(&control) {
                self.restart();
                if active_epoch(&self.memory) != self.lsn.0 {
                    self.violated("RECOVERED_IS_FOLD", "a complete generation shows less than the journal has");
                }
            }
            return true;
        }
        self.restart();
        self.settle();
        false
    }

    pub(crate) fn steps(&self) -> usize {
        self.checker.borrow().steps()
    }

    /// How often all runs moved to the other half.
    pub(crate) const fn compactions(&self) -> usize {
        self.compactions
    }

    /// Whether the applier that came after the first death died before it had caught up with the journal.
    pub(crate) fn first_recovery_was_killed(&self) -> bool {
        self.deaths.get(1) == Some(&true)
    }

    /// Runs a piece of the applier's life. `None`: it was killed meanwhile, and another one has recovered.
    fn run<R>(&mut self, life: impl FnOnce(&mut Applier<SimulatedTables>) -> R) -> Option<R> {
        let mut applier = self.applier.take().expect("alive");
        match catch_unwind(AssertUnwindSafe(|| life(&mut applier))) {
            Ok(result) => {
                self.applier = Some(applier);
                Some(result)
            }
            Err(cause) if cause.is::<Killed>() => {
                self.deaths.push(false);
                self.restart();
                None
            }
            Err(cause) => self.panicked(cause),
        }
    }

    /// A new life: recovery from the tables as they are, then the whole state at the journal's end. Killed on the way,
    /// or refused a call that recovery cannot do without, it begins once more.
    fn restart(&mut self) {
        self.grace = None;
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.recover())) {
                Ok(Some(applier)) => {
                    self.applier = Some(applier);
                    return;
                }
                Ok(None) => {}
                Err(cause) if cause.is::<Killed>() => self.deaths.push(true),
                Err(cause) => self.panicked(cause),
            }
        }
    }

    fn recover(&mut self) -> Option<Applier<SimulatedTables>> {
        let mut applier = match Applier::recover(self.tables()) {
            Ok((applier, _)) => applier,
            Err(applier::recovery::RecoveryError::Table(_)) => return None,
            Err(error) => self.violated("RECOVERED_IS_FOLD", &error.to_string()),
        };
        self.checker.borrow().check_state(&self.memory, "RECOVERED_IS_FOLD");
        if self.mutant == Some(Mutant::RestartQuiesces) {
            drop(applier.quiesce(applier.active()));
        }
        if self.lsn > Lsn::ZERO {
            let head = self.heads.at(self.lsn);
            let mut wanted = plan::everything(&self.model);
            match applier.reconcile(&mut wanted, head) {
                Ok(_) => {
                    self.queued = Changes::default();
                    self.checker.borrow().check_state(&self.memory, "RECOVERED_IS_FOLD");
                }
                Err(ApplyError::Blocked { .. } | ApplyError::Table(_)) => self.queued = wanted,
                Err(error) => self.violated("RECOVERED_IS_FOLD", &error.to_string()),
            }
        }
        Some(applier)
    }

    fn tables(&self) -> SimulatedTables {
        let checker = Rc::clone(&self.checker);
        let scheduler = move |memory: &MemoryTables, step: Step| checker.borrow_mut().step(memory, step);
        SimulatedTables::new(Rc::clone(&self.memory), Rc::new(RefCell::new(scheduler)), self.mutant)
    }

    /// `NOTHING_TWICE`: what was applied is not applied again.
    fn check_applied_again(&mut self) {
        let steps = self.steps();
        let head = self.heads.at(self.lsn);
        let mut wanted = plan::everything(&self.model);
        let again = self.run(|applier| applier.reconcile(&mut wanted, head));
        if !matches!(again, Some(Ok(applied)) if applied.entries == 0) || steps != self.steps() {
            self.violated("NOTHING_TWICE", &format!("the second application changed something: {again:?}"));
        }
    }

    /// `NOTHING_LEAKS`, at any time: each index entry belongs to a cell that is taken, and without anything to retire, no
    /// cell is taken but for the state's entries.
    fn check_cells(&self) {
        let applier = self.applier.as_ref().expect("alive");
        let [frontends, services, backends, _] = applier.pressure().map(|pressure| pressure.used);
        let index = self.memory.index_entries().expect("memory does not fail").len() as u64;
        if frontends != index {
            self.violated("NOTHING_LEAKS", &format!("{frontends} frontends have {index} index entries"));
        }
        let used = [frontends, services, backends];
        let needed = self.checker.borrow().state(active_epoch(&self.memory)).sizes();
        if !applier.has_retiring() && used != needed {
            self.violated("NOTHING_LEAKS", &format!("cells {used:?} are taken for entries {needed:?}"));
        }
    }

    /// `NOTHING_LEAKS`, at rest.
    fn check_nothing_leaks(&self) {
        let applier = self.applier.as_ref().expect("alive");
        let [.., endpoints] = applier.pressure();
        if applier.has_retiring() || endpoints.used > endpoints.capacity {
            self.violated("NOTHING_LEAKS", "something waits to be retired for ever");
        }
        self.check_cells();
    }

    fn panicked(&self, cause: Box<dyn Any + Send>) -> ! {
        self.checker.borrow().print_replay();
        resume_unwind(cause)
    }

    fn violated(&self, invariant: &str, what: &str) -> ! {
        self.checker.borrow().violated(invariant, &self.memory, format_args!("{what}"))
    }

    fn dump(&self) -> Vec<u64> {
        let words = |table: Table| table.entries(&CAPACITIES) as usize * table.entry_bytes() / 8;
        Table::ALL
            .into_iter()
            .flat_map(|t| (0..words(t)).map(move |w| (t, w)))
            .map(|(t, w)| self.memory.load(t, w))
            .collect()
    }
}
