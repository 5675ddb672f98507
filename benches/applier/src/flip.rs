//! What it takes to make something visible, without journal, disk and threads: the store itself, and the smallest transactions.

use std::hint::black_box;
use std::time::Instant;

use applier::entry::Changes;
use applier::tables::{KernelTables, Table, Tables as _};
use applier::{Applier, Identity, Model, plan};
use journal::{Config, Durable, Head, Journal};
use loader::Datapath;
use storage_schema::id::Lsn;
use storage_schema::map::Control;
use storage_schema::record::Transaction;
use storage_schema::resource::WorkloadStatus;

use crate::Options;
use crate::figures::{count, median};
use crate::place::Place;
use crate::sample::{FILLER, Size, service, transaction, workload};

/// Stores of one round.
const STORES: u64 = 20_000_000;
/// Transactions of one round, each a record of the journal.
const FLIPS: u64 = 20_000;
const SIZE: Size = Size { services: 1, endpoints: 2 };

pub(crate) fn run(options: &Options, place: &Place) {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let mut model = Model::default();
    let resources = [service(0), workload(0, 0, WorkloadStatus::Healthy), workload(1, 0, WorkloadStatus::Healthy)];
    let foundation = transaction(FILLER, 1, resources);
    model.admit(&foundation, &SIZE.capacities()).expect("it fits");
    let everything = plan::everything(&model);
    // One backend's address becomes another one's, and back: one cell.
    let moved = [1, 0].map(|number| {
        let mut changes = Changes::default();
        let mut addresses = everything.backends.values();
        changes.backends.extend(
            everything
                .backends
                .keys()
                .next()
                .copied()
                .map(|key| (key, addresses.nth(number).copied().expect("there are two backends"))),
        );
        changes
    });
    let (journal, heads) = heads(&dir.path().join("state"), &foundation);
    let identity = Identity::of(&journal);
    let mut rounds = Vec::new();
    for _ in 0..options.rounds {
        place.clear();
        let datapath = Datapath::open(place.options()).expect("a pin root");
        let generation = datapath.create_generation(&SIZE.capacities()).expect("a generation");
        let tables = KernelTables::open(&generation, SIZE.capacities()).expect("its tables");
        let store = stores(&tables);
        let mut applier = Applier::create(tables, &identity);
        applier.apply(&everything, heads[0]).expect("it fits");
        let (nothing, one_cell) = heads[1..].split_at(heads.len() / 2);
        let empty = flips(&mut applier, nothing, |_| &NOTHING);
        let cell = flips(&mut applier, one_cell, |number| &moved[number % 2]);
        rounds.push([store, empty, cell]);
    }
    place.clear();
    let of = |column: usize| median(rounds.iter().map(|round| round[column]).collect());
    println!("becoming visible, without journal and threads, ns ({} rounds, medians)", options.rounds);
    println!("  the flip: one release store into mapped memory           {:>8.1}", of(0));
    println!("  a transaction that changes nothing: head, flip           {:>8.1}", of(1));
    println!("  a transaction of one cell: diff, stage, head, flip, retire {:>6.1}", of(2));
}

static NOTHING: Changes = Changes {
    frontends: std::collections::BTreeMap::new(),
    services: std::collections::BTreeMap::new(),
    backends: std::collections::BTreeMap::new(),
    node: None,
};

/// Nanoseconds of a store of the active epoch.
fn stores(tables: &KernelTables) -> f64 {
    let word = std::mem::offset_of!(Control, active_epoch) / size_of::<u64>();
    let begun = Instant::now();
    for epoch in 0..STORES {
        black_box(tables).store(Table::Control, word, epoch);
    }
    let took = begun.elapsed();
    tables.store(Table::Control, word, 0);
    took.as_secs_f64() * 1e9 / count(STORES)
}

/// Nanoseconds of a transaction, with what lets the next one go on at once: no reader is there to be waited for.
fn flips<'c>(
    applier: &mut Applier<KernelTables>,
    heads: &[Durable<Head>],
    changes: impl Fn(usize) -> &'c Changes,
) -> f64 {
    let begun = Instant::now();
    for (number, head) in heads.iter().enumerate() {
        applier.apply(changes(number), *head).expect("it fits");
        applier.quiesce(applier.active()).expect("nothing is refused");
    }
    begun.elapsed().as_secs_f64() * 1e9 / count(heads.len() as u64)
}

/// A journal and its durable heads.
fn heads(state: &std::path::Path, foundation: &Transaction) -> (Journal, Vec<Durable<Head>>) {
    let journal = Journal::open(Config::new(state)).expect("a journal");
    let mut last = None;
    for version in 0..=2 * FLIPS {
        let mut transaction = foundation.clone();
        transaction.origin.version = Some(version + 1);
        let permit = journal.blocking_reserve().expect("the journal accepts");
        last = Some(permit.submit(transaction).expect("the journal accepts").ack);
    }
    last.expect("there are some").blocking_wait().expect("the disk works");
    let head = |lsn| journal.encoded_record(Lsn(lsn)).expect("a durable record").head();
    let heads = (1..=2 * FLIPS + 1).map(head).collect();
    (journal, heads)
}
