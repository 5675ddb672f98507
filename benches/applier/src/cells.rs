//! Entries installed a second: the applier's transaction on mapped tables, and one call for each of the same entries.

use std::cell::Cell as Mutable;
use std::time::{Duration, Instant};

use applier::tables::{KernelTables, PartlyInserted, Table, TableError, Tables};
use applier::{Applier, Identity, Model, plan};
use journal::{Durable, Head};
use loader::Datapath;
use storage_schema::map::{Backend, Capacities, Cell, EndpointPair, Frontend, FrontendKey, Service};

use crate::Options;
use crate::bpf::{Kind, RawMap};
use crate::figures::{count, median, milliseconds};
use crate::place::Place;
use crate::sample::{Size, fill};

/// Seconds of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// The whole call: comparing with what is there, giving out cells, writing, the flip.
    apply: Duration,
    /// Of that, from the first store to the flip, without the index.
    stores: Duration,
    /// Of that, the index.
    index: Duration,
    /// The same cells and runs by one call for each.
    calls: Duration,
    /// The same index entries by one call for each.
    index_calls: Duration,
}

pub(crate) fn run(options: &Options, place: &Place) {
    let Size { services, endpoints } = options.size;
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    place.clear();
    let journal = fill(&dir.path().join("state"), options.size);
    let head = journal.durable().head();
    let model = Model::load(journal.resources(None).map(|resource| resource.map(|(resource, _)| resource)));
    let changes = plan::everything(&model.expect("readable"));
    let identity = Identity::of(&journal);
    let rounds: Vec<_> = (0..options.rounds).map(|_| round(place, &identity, options.size, &changes, head)).collect();
    place.clear();

    // Backends, services and frontends, and the slots of `endpoints` in pairs.
    let stored = u64::from(endpoints) + 2 * u64::from(services) + pairs(options.size);
    let entries = stored + u64::from(services);
    let of = |time: fn(&Round) -> Duration| median(rounds.iter().map(|round| milliseconds(time(round))).collect());
    let ratio = |one: fn(&Round) -> Duration, other: fn(&Round) -> Duration| {
        median(rounds.iter().map(|round| one(round).as_secs_f64() / other(round).as_secs_f64()).collect())
    };
    println!(
        "installing {services} services and {endpoints} endpoints ({} rounds, medians of times and of ratios)",
        options.rounds
    );
    println!(
        "                                         |   entries |       ms |  million/s | one call each, ms | ratio"
    );
    let row = |name: &str, entries: u64, ms: f64, calls: f64, ratio: f64| {
        let rate = count(entries) / ms / 1e3;
        println!("  {name:<38} | {entries:>9} | {ms:>8.1} | {rate:>10.2} | {calls:>17.1} | {ratio:>5.1}");
    };
    row(
        "cells and runs, stores and flip",
        stored,
        of(|round| round.stores),
        of(|round| round.calls),
        ratio(|round| round.calls, |round| round.stores),
    );
    row(
        "entries of the index",
        u64::from(services),
        of(|round| round.index),
        of(|round| round.index_calls),
        ratio(|round| round.index_calls, |round| round.index),
    );
    row(
        "all, with finding out what to write",
        entries,
        of(|round| round.apply),
        of(|round| round.calls + round.index_calls),
        ratio(|round| round.calls + round.index_calls, |round| round.apply),
    );
}

fn pairs(size: Size) -> u64 {
    let Size { services, endpoints } = size;
    let of = |service: u32| u64::from((endpoints / services + u32::from(service < endpoints % services)).div_ceil(2));
    (0..services).map(of).sum()
}

fn round(
    place: &Place,
    identity: &Identity,
    size: Size,
    changes: &applier::entry::Changes,
    head: Durable<Head>,
) -> Round {
    place.clear();
    let datapath = Datapath::open(place.options()).expect("a pin root");
    let generation = datapath.create_generation(&size.capacities()).expect("a generation");
    let tables = Watched::new(KernelTables::open(&generation, size.capacities()).expect("its tables"));
    let mut applier = Applier::create(tables, identity);
    applier.tables().reset();
    let begun = Instant::now();
    applier.apply(changes, head).expect("it fits");
    let apply = begun.elapsed();
    let (written, index) = applier.tables().written();
    let (calls, index_calls) = one_by_one(size);
    Round { apply, stores: written.saturating_sub(index), index, calls, index_calls }
}

/// As many entries of the same sizes, each by a call of its own.
fn one_by_one(size: Size) -> (Duration, Duration) {
    let Size { services, endpoints } = size;
    let capacities = size.capacities();
    let (mut stores, mut index) = (Duration::ZERO, Duration::ZERO);
    stores += array(endpoints, capacities.backend_cells(), &Cell::<Backend>::default());
    stores +=
        array(u32::try_from(pairs(size)).expect("a count"), capacities.endpoint_slots() / 2, &EndpointPair::default());
    stores += array(services, capacities.service_cells(), &Cell::<Service>::default());
    stores += array(services, capacities.frontend_cells(), &Cell::<Frontend>::default());
    let hash = RawMap::create(Kind::Hash, size_of::<FrontendKey>(), size_of::<u32>(), capacities.frontend_cells())
        .expect("a hash");
    let begun = Instant::now();
    for cell in 0..services {
        let key = FrontendKey { address: [0, 0, 0, cell], ..FrontendKey::default() };
        hash.update(&key, &cell).expect("it fits");
    }
    index += begun.elapsed();
    (stores, index)
}

fn array<V>(entries: u32, capacity: u32, value: &V) -> Duration {
    let map = RawMap::create(Kind::Array, size_of::<u32>(), size_of::<V>(), capacity).expect("an array");
    let begun = Instant::now();
    for entry in 0..entries {
        map.update(&entry, value).expect("it fits");
    }
    begun.elapsed()
}

/// Kernel tables that notice when writing begins, when the flip comes, and how long the index takes.
#[derive(Debug)]
struct Watched {
    tables: KernelTables,
    begun: Mutable<Option<Instant>>,
    flipped: Mutable<Option<Instant>>,
    index: Mutable<Duration>,
}

impl Watched {
    fn new(tables: KernelTables) -> Self {
        Self { tables, begun: Mutable::new(None), flipped: Mutable::new(None), index: Mutable::default() }
    }

    fn reset(&self) {
        self.begun.set(None);
    }

    /// From the first write to the last, and how much of that was the index.
    fn written(&self) -> (Duration, Duration) {
        let begun = self.begun.get().expect("something was written");
        (self.flipped.get().expect("it was flipped") - begun, self.index.get())
    }

    fn begin(&self) {
        if self.begun.get().is_none() {
            self.begun.set(Some(Instant::now()));
        }
    }
}

impl Tables for Watched {
    fn capacities(&self) -> Capacities {
        self.tables.capacities()
    }

    fn load(&self, table: Table, word: usize) -> u64 {
        self.tables.load(table, word)
    }

    fn store(&self, table: Table, word: usize, value: u64) {
        self.begin();
        self.tables.store(table, word, value);
        if table == Table::Control {
            self.flipped.set(Some(Instant::now()));
        }
    }

    fn pointer(&self, table: Table, word: usize) -> Option<*const u64> {
        self.tables.pointer(table, word)
    }

    fn index_get(&self, key: &FrontendKey) -> Result<Option<u32>, TableError> {
        self.tables.index_get(key)
    }

    fn index_insert(&self, key: &FrontendKey, cell: u32) -> Result<(), TableError> {
        self.index_insert_all(&[(*key, cell)]).map_err(|partly| partly.error)
    }

    fn index_insert_all(&self, entries: &[(FrontendKey, u32)]) -> Result<(), PartlyInserted> {
        self.begin();
        let begun = Instant::now();
        let inserted = self.tables.index_insert_all(entries);
        self.index.set(self.index.get() + begun.elapsed());
        inserted
    }

    fn index_remove(&self, key: &FrontendKey) -> Result<(), TableError> {
        self.tables.index_remove(key)
    }

    fn index_entries(&self) -> Result<Vec<(FrontendKey, u32)>, TableError> {
        self.tables.index_entries()
    }
}
