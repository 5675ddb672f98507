//! The simulated node: journal heads, kernel memory, an applier that comes and goes, and the checker.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use applier::entry::Changes;
use applier::tables::{MemoryTables, View};
use applier::{Applier, ApplyError, Identity, Model};
use journal::{Config, Durable, Head, Journal};
use storage_schema::id::{BootId, Epoch, Lsn, StoreId};
use storage_schema::map::{Backend, Cell, Frontend, FrontendKey, Node, Service};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Kind, ResourceKey};

use crate::domain::CAPACITIES;
use crate::oracle::State;
use crate::tables::{Fate, Killed, Mutant, SimulatedTables};

const IDENTITY: Identity = Identity { store_id: StoreId([7; 16]), programs_hash: [9; 32], boot_id: BootId([5; 16]) };

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
            let transaction = Transaction { origin: origin.clone(), deltas: deltas.clone() };
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

    fn at(&self, lsn: Lsn) -> Durable<Head> {
        self.0[usize::try_from(lsn.0).expect("a small number") - 1]
    }
}

/// What the checker knows. Shared with the scheduler, which runs inside the applier's calls.
struct Checker {
    /// The state at each LSN, the empty one included.
    states: BTreeMap<u64, State>,
    /// Epochs that were flipped to and that a program may still hold, with the index as it was during each.
    held: BTreeMap<u64, Vec<HashMap<FrontendKey, u32>>>,
    destinations: BTreeSet<FrontendKey>,
    steps: usize,
    readers_from: usize,
    kills: usize,
    kill_in: Option<usize>,
    refuse_in: Option<usize>,
}

/// The simulated node.
pub(crate) struct World<'h> {
    heads: &'h Heads,
    memory: Rc<MemoryTables>,
    checker: Rc<RefCell<Checker>>,
    applier: Option<Applier<SimulatedTables>>,
    model: Model,
    lsn: Lsn,
    queued: Changes,
    grace: Option<Epoch>,
    mutant: Option<Mutant>,
}

impl<'h> World<'h> {
    pub(crate) fn new(heads: &'h Heads) -> Self {
        Self::with_mutant(heads, None)
    }

    /// A node whose applier breaks a rule.
    pub(crate) fn with_mutant(heads: &'h Heads, mutant: Option<Mutant>) -> Self {
        let memory = Rc::new(MemoryTables::new(CAPACITIES));
        let model = Model::default();
        let checker = Rc::new(RefCell::new(Checker {
            states: BTreeMap::from([(0, State::of(&model))]),
            held: BTreeMap::from([(0, vec![HashMap::new()])]),
            destinations: BTreeSet::new(),
            steps: 0,
            readers_from: 0,
            kills: 0,
            kill_in: None,
            refuse_in: None,
        }));
        let mut world = Self {
            heads,
            memory,
            checker,
            applier: None,
            model,
            lsn: Lsn::ZERO,
            queued: Changes::default(),
            grace: None,
            mutant,
        };
        let applier = Applier::create(world.tables(), &IDENTITY);
        applier.complete();
        world.applier = Some(applier);
        world
    }

    /// Admits and journals a transaction, if it fits.
    pub(crate) fn push(&mut self, transaction: &Transaction) {
        let before = format!("{:?}", State::of(&self.model));
        match self.model.admit(transaction, &CAPACITIES) {
            Err(_) => assert_eq!(before, format!("{:?}", State::of(&self.model)), "a refused push changes nothing"),
            Ok(admitted) => {
                self.lsn = self.lsn.next();
                self.queued.merge(admitted.changes);
                let state = State::of(&self.model);
                let mut checker = self.checker.borrow_mut();
                checker.destinations.extend(state.destinations());
                checker.states.insert(self.lsn.0, state);
            }
        }
    }

    /// Applies what is journaled; waits for readers where the protocol asks for it.
    pub(crate) fn apply(&mut self) {
        if self.lsn == Lsn::ZERO {
            return;
        }
        let head = self.heads.at(self.lsn);
        let changes = self.queued.clone();
        match self.run(|applier| applier.apply(&changes, head)) {
            Some(Ok(_)) => {
                self.queued = Changes::default();
                self.check_applied();
            }
            Some(Err(ApplyError::Blocked { until })) => {
                let active = self.applier.as_ref().expect("alive").active();
                assert!(until <= active, "nothing waits for an epoch that is not visible");
            }
            // Killed, or refused: what is queued is applied another time.
            None | Some(Err(ApplyError::Table(_))) => {}
            Some(Err(error)) => panic!("{error}"),
        }
    }

    /// A grace period begins, unless one is under way.
    pub(crate) fn begin_grace(&mut self) {
        let active = self.applier.as_ref().expect("alive").active();
        self.grace.get_or_insert(active);
    }

    /// The grace period that is under way ends: programs of epochs before its beginning are gone.
    pub(crate) fn end_grace(&mut self) {
        if let Some(epoch) = self.grace.take() {
            if self.mutant != Some(Mutant::NoGrace) {
                self.checker.borrow_mut().held.retain(|held, _| *held >= epoch.0);
            }
            // A refused call is tried again at the next grace period.
            drop(self.run(|applier| applier.quiesce(epoch)));
        }
    }

    /// Kills the applier before its `steps`-th step from now.
    pub(crate) fn kill_in(&mut self, steps: usize) {
        self.checker.borrow_mut().kill_in = Some(steps);
    }

    /// Runs readers from this step on only.
    pub(crate) fn check_readers_from(&mut self, step: usize) {
        self.checker.borrow_mut().readers_from = step;
    }

    /// Refuses its `calls`-th index call from now.
    pub(crate) fn refuse_index_call_in(&mut self, calls: usize) {
        self.checker.borrow_mut().refuse_in = Some(calls);
    }

    /// Brings everything to rest and checks that nothing is left over.
    pub(crate) fn settle(&mut self) {
        {
            let mut checker = self.checker.borrow_mut();
            checker.refuse_in = None;
        }
        for _ in 0..6 {
            self.end_grace();
            self.apply();
            self.begin_grace();
        }
        let epoch = self.applier.as_ref().expect("alive").active();
        assert_eq!(Lsn::from(epoch), self.lsn, "everything journaled is applied");
        self.check_nothing_leaks();
        // What recovery finds is what was left.
        self.checker.borrow_mut().kill_in = None;
        let before = self.dump();
        self.restart();
        assert_eq!(before, self.dump(), "a restart at rest writes nothing");
    }

    pub(crate) fn steps(&self) -> usize {
        self.checker.borrow().steps
    }

    pub(crate) fn kills(&self) -> usize {
        self.checker.borrow().kills
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
                self.restart();
                None
            }
            Err(cause) => resume_unwind(cause),
        }
    }

    /// A new life: recovery from the tables as they are, then the whole state at the journal's end.
    fn restart(&mut self) {
        self.grace = None;
        loop {
            let lived = catch_unwind(AssertUnwindSafe(|| {
                let (mut applier, _) = Applier::recover(self.tables()).expect("the protocol leaves recoverable tables");
                if self.lsn > Lsn::ZERO {
                    let head = self.heads.at(self.lsn);
                    let mut wanted = applier::plan::everything(&self.model);
                    match applier.reconcile(&mut wanted, head) {
                        Ok(_) => self.queued = Changes::default(),
                        Err(ApplyError::Blocked { .. } | ApplyError::Table(_)) => self.queued = wanted,
                        Err(error) => panic!("{error}"),
                    }
                }
                applier
            }));
            match lived {
                Ok(applier) => {
                    self.applier = Some(applier);
                    return;
                }
                Err(cause) if cause.is::<Killed>() => {}
                Err(cause) => resume_unwind(cause),
            }
        }
    }

    fn tables(&self) -> SimulatedTables {
        let checker = Rc::clone(&self.checker);
        let scheduler = move |memory: &MemoryTables, index_call: bool| checker.borrow_mut().step(memory, index_call);
        SimulatedTables::new(Rc::clone(&self.memory), Rc::new(RefCell::new(scheduler)), self.mutant)
    }

    /// `NOTHING_TWICE`: what was applied is not applied again.
    fn check_applied(&mut self) {
        let steps = self.steps();
        let head = self.heads.at(self.lsn);
        let mut wanted = applier::plan::everything(&self.model);
        let again = self.run(|applier| applier.reconcile(&mut wanted, head));
        assert!(matches!(again, Some(Ok(applied)) if applied.entries == 0), "applied twice: {again:?}");
        assert_eq!(steps, self.steps(), "the second application made a store");
    }

    /// `NOTHING_LEAKS`: tables and index hold what the state needs, and nothing else keeps a cell.
    fn check_nothing_leaks(&self) {
        let applier = self.applier.as_ref().expect("alive");
        let sizes = self.checker.borrow().states[&self.lsn.0].sizes();
        let [frontends, services, backends, endpoints] = applier.pressure();
        assert_eq!([frontends.used, services.used, backends.used], sizes.map(|size| size as u64));
        assert_eq!(self.memory_index().len(), sizes[0], "index entries");
        assert!(!applier.has_retiring(), "something waits to be retired for ever");
        assert!(endpoints.used <= endpoints.capacity);
    }

    fn memory_index(&self) -> HashMap<FrontendKey, u32> {
        index_of(&self.memory)
    }

    fn dump(&self) -> Vec<u64> {
        use applier::tables::{Table, Tables as _};
        let words = |table: Table| table.entries(&CAPACITIES) as usize * table.entry_bytes() / 8;
        Table::ALL
            .into_iter()
            .flat_map(|t| (0..words(t)).map(move |w| (t, w)))
            .map(|(t, w)| self.memory.load(t, w))
            .collect()
    }
}

impl Checker {
    fn step(&mut self, memory: &MemoryTables, index_call: bool) -> Fate {
        self.steps += 1;
        self.check_readers(memory);
        if count_down(&mut self.kill_in) {
            self.kills += 1;
            return Fate::Kill;
        }
        if index_call && count_down(&mut self.refuse_in) {
            return Fate::Refuse;
        }
        Fate::Proceed
    }

    /// `ONE_FLIP`: each reader that can exist sees exactly the state of its epoch.
    fn check_readers(&mut self, memory: &MemoryTables) {
        let view = View(memory);
        let Epoch(active) = view.active_epoch();
        let index = index_of(memory);
        let looked_up = self.held.entry(active).or_default();
        if looked_up.last() != Some(&index) {
            looked_up.push(index);
        }
        if self.steps < self.readers_from {
            return;
        }
        // A program that loaded its epoch long ago may do its lookup at any time since.
        for epoch in self.held.keys() {
            let state = &self.states[epoch];
            for (_, indexes) in self.held.range(epoch..) {
                for index in indexes {
                    let reader = Reader { view: View(memory), index };
                    for destination in &self.destinations {
                        for entropy in [0, u32::MAX / 2, u32::MAX] {
                            let seen = decision::decide(&reader, *epoch, destination, entropy);
                            let expected = state.decide(destination, entropy);
                            assert_eq!(seen, expected, "step {}, epoch {epoch}, {destination:?}", self.steps);
                        }
                    }
                }
            }
        }
    }
}

/// A program that has looked up its destination in the index as it was at some moment.
struct Reader<'t> {
    view: View<'t, MemoryTables>,
    index: &'t HashMap<FrontendKey, u32>,
}

impl decision::Tables for Reader<'_> {
    fn frontend_index(&self, key: &FrontendKey) -> Option<u32> {
        self.index.get(key).copied()
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

fn index_of(memory: &MemoryTables) -> HashMap<FrontendKey, u32> {
    use applier::tables::Tables as _;
    memory.index_entries().expect("memory does not fail").into_iter().collect()
}

fn count_down(counter: &mut Option<usize>) -> bool {
    match counter {
        Some(1) => {
            *counter = None;
            true
        }
        Some(left) => {
            *left -= 1;
            false
        }
        None => false,
    }
}
