//! What an agent has left behind: its journal and its pinned tables, opened while no agent has them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use applier::tables::{KernelTables, Table, Tables, View};
use applier::{Applier, Identity, Model, plan};
use decision::Verdict;
use journal::Journal;
use loader::{Datapath, Generation, Options};
use storage_schema::id::{Epoch, Lsn};
use storage_schema::map::FrontendKey;
use storage_schema::resource::{Protocol, Resource};

use crate::oracle::{Entries, Expected, Oracle, State};
use crate::sandbox::Sandbox;
use crate::world;

/// The least common multiple of 1 to 10: so many evenly spread random words reach every endpoint of such a run.
const WORDS: u64 = 2520;

/// The epochs that connections may see: one for each complete generation, as while links are being switched either may
/// decide. Changes nothing; works while an agent runs.
///
/// # Panics
/// If the pins cannot be read.
pub fn visible_epochs(sandbox: &Sandbox) -> BTreeSet<Epoch> {
    if !sandbox.pin_root().join("links").exists() {
        return BTreeSet::new();
    }
    let generations = open(sandbox).complete_generations().expect("the pin root can be listed");
    let epoch = |generation: &Generation| {
        let control = generation.control().expect("the control map can be read").expect("it is of this build's ABI");
        Epoch(control.active_epoch)
    };
    generations.iter().map(epoch).collect()
}

/// Lets every backend's IPv4 address in the tables be another one, as a bug or another program would: for tests of the
/// tests.
///
/// # Panics
/// If the tables cannot be opened, or have no such address.
pub fn tamper(sandbox: &Sandbox) {
    let generations = open(sandbox).complete_generations().expect("the pin root can be listed");
    let capacities = generations[0].capacities().expect("the pinned maps can be read");
    let tables = KernelTables::open(&generations[0], capacities).expect("the tables can be opened");
    let mut tampered = 0;
    let words = Table::Backends.entries(&capacities) as usize * Table::Backends.entry_bytes() / size_of::<u64>();
    for word in 0..words {
        let mut bytes = tables.load(Table::Backends, word).to_ne_bytes();
        if let Some(place) = bytes.windows(3).position(|window| window == [127, 1, 0]).filter(|place| place + 3 < 8) {
            bytes[place + 3] ^= 0x40;
            tables.store(Table::Backends, word, u64::from_ne_bytes(bytes));
            tampered += 1;
        }
    }
    assert!(tampered > 0, "the mesh has backends");
}

/// Compares journal, store and pinned tables with the oracle, after an agent that had applied everything has ended.
///
/// # Panics
/// If anything differs.
pub fn check(sandbox: &Sandbox, oracle: &Oracle) {
    let journal = Journal::open(journal::Config::new(sandbox.state_dir())).expect("the journal opens");
    let report = journal.open_report();
    assert_eq!((report.cut_bytes, &report.store_rebuilt), (0, &None), "a recovered journal is whole: {report:?}");
    check_journal(&journal, oracle);
    check_tables(sandbox, &journal, oracle.latest());
}

fn check_journal(journal: &Journal, oracle: &Oracle) {
    let durable_lsn = journal.durable().head().lsn;
    assert_eq!(durable_lsn, Lsn(oracle.transactions().len() as u64), "the journal has each transaction once");
    let oldest_lsn = journal.open_report().oldest_lsn;
    for (lsn, pushed) in (1..).map(Lsn).zip(oracle.transactions()).filter(|(lsn, _)| *lsn >= oldest_lsn) {
        let record = journal.record(lsn).expect("a durable record can be read").into_inner();
        assert!(record.transaction == *pushed, "record {lsn} is {:?}, pushed was {pushed:?}", record.transaction);
    }
    journal.blocking_wait_stored(durable_lsn).expect("the store follows");
    let stored: Vec<Resource> =
        journal.resources(None).map(|resource| resource.expect("the store can be read").0).collect();
    let wanted: Vec<Resource> = oracle.latest().resources().cloned().collect();
    assert!(stored == wanted, "the store has {stored:#?}, the oracle {wanted:#?}");
}

fn check_tables(sandbox: &Sandbox, journal: &Journal, state: &State) {
    let generations = open(sandbox).complete_generations().expect("the pin root can be listed");
    let [generation] = &generations[..] else { panic!("one generation is left after a start, not {generations:?}") };
    let control = generation.control().expect("the control map can be read").expect("it is of this build's ABI");
    let identity = Identity::of(journal);
    assert!(identity.matches(&control), "the tables are this journal's and this build's: {control:?}");
    let head = journal.durable().head();
    assert_eq!(Lsn(control.active_epoch), head.lsn, "the tables show the journal's last record");

    let capacities = generation.capacities().expect("the pinned maps can be read");
    let tables = KernelTables::open(generation, capacities).expect("the tables can be opened");
    check_decisions(&tables, Epoch(control.active_epoch), state);

    let (mut applier, recovered) = Applier::recover(tables).expect("the tables follow the protocol");
    assert_eq!((recovered.scrubbed, recovered.reindexed), (0, 0), "an idle agent leaves nothing staged");
    let model = Model::load(journal.resources(None).map(|stored| stored.map(|(resource, _)| resource)));
    let mut everything = plan::everything(&model.expect("the store can be read"));
    let applied = applier.reconcile(&mut everything, head).expect("the tables show the journal's state");
    assert_eq!(applied.entries, 0, "nothing is left to write");
    check_leaks(&applier, state);
}

/// The decision, made on these tables with words that reach every endpoint, against the oracle.
fn check_decisions(tables: &impl Tables, epoch: Epoch, state: &State) {
    for destination in world::destinations() {
        let key = FrontendKey::new(destination.ip(), destination.port(), Protocol::Tcp.number());
        let mut reached = BTreeSet::new();
        let mut other = BTreeSet::new();
        for word in 0..WORDS {
            let entropy = u32::try_from((word << 32) / WORDS).expect("it is below 2^32");
            match decision::decide(&View(tables), epoch.0, &key, entropy) {
                Verdict::Forward { address, port_be, .. } => {
                    let address = FrontendKey { address, ..key };
                    reached.insert(SocketAddr::new(address.ip(), u16::from_be(port_be)));
                }
                Verdict::Refuse { .. } => drop(other.insert("refused")),
                Verdict::Pass => drop(other.insert("untranslated")),
            }
        }
        let wanted = match state.expected(destination) {
            Expected::OneOf(backends) => (backends, None),
            Expected::Refused => (BTreeSet::new(), Some("refused")),
            Expected::Untranslated => (BTreeSet::new(), Some("untranslated")),
        };
        assert_eq!((reached, other.into_iter().next()), wanted, "decisions for {destination} at epoch {epoch}");
    }
}

/// Once readers have passed, the tables use exactly what the state needs.
fn check_leaks(applier: &Applier<KernelTables>, state: &State) {
    let [frontends, services, backends, _] = applier.pressure().map(|pressure| pressure.used);
    let Entries { frontends: wanted_frontends, services: wanted_services, backends: wanted_backends } = state.entries();
    // Index entries of the last flip may still wait for a grace period; they are found again as leftovers.
    let leftover = u64::from(applier.has_retiring());
    assert!(frontends >= wanted_frontends && (leftover > 0 || frontends == wanted_frontends), "frontends: {frontends}");
    assert_eq!((services, backends), (wanted_services, wanted_backends), "cells in use for services and backends");
}

fn open(sandbox: &Sandbox) -> Datapath {
    let cgroup = sandbox.cgroup().expect("pins are in a whole sandbox").to_owned();
    Datapath::open(Options { pin_root: sandbox.pin_root(), cgroup }).expect("the pin root can be opened")
}
