//! A mesh that moves as a whole from one set of backends to another, and clients that see which: for tests of atomicity.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use applier::tables::{MemoryTables, View};
use applier::{Applier, Identity, Model, plan};
use decision::Verdict;
use journal::Journal;
use loader::Datapath;
use storage_schema::id::Lsn;
use storage_schema::map::{FrontendKey, Stamp, key};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Protocol, Resource, WorkloadStatus};

use crate::agent::SMALL;
use crate::stamped::attempt;
use crate::world;

const SERVICES: u16 = 4;
/// Backends of each of the two sets.
const SET: u16 = 4;

/// A connection: what its socket was stamped with, what it dialled and where it arrived.
pub type Connection = (Stamp, SocketAddr, SocketAddr);

/// Where the services are, in both families.
pub fn destinations() -> impl Iterator<Item = SocketAddr> {
    (0..SERVICES).flat_map(world::vips).map(|vip| SocketAddr::new(vip, 80))
}

/// Connects to one service after another, in both families; none of them is ever without backends.
///
/// # Panics
/// If a connection fails, is not balanced, or sees an earlier state than the one before it.
pub fn connect_until(stop: &AtomicBool, made: &AtomicUsize, datapath: &Datapath) -> Vec<Connection> {
    let mut connections = Vec::new();
    let mut last_epoch = 0;
    while !stop.load(Ordering::Relaxed) {
        for to in destinations() {
            let attempt = attempt(datapath, to, false);
            let peer = attempt.arrived.unwrap_or_else(|errno| panic!("{to}: {errno}"));
            let stamp = attempt.stamp.unwrap_or_else(|| panic!("{to} was not balanced"));
            assert!(stamp.epoch >= last_epoch, "a later connection of one thread saw an earlier state");
            last_epoch = stamp.epoch;
            connections.push((stamp, to, peer));
            made.fetch_add(1, Ordering::Relaxed);
        }
    }
    connections
}

/// Makes every decision again, from the journal alone. Returns how many epochs decided.
///
/// # Panics
/// If one of them leads elsewhere than the connection went.
pub fn check(journal: &Journal, connections: &[Connection]) -> usize {
    let mut by_epoch: BTreeMap<u64, Vec<&Connection>> = BTreeMap::new();
    for connection in connections {
        by_epoch.entry(connection.0.epoch).or_default().push(connection);
    }
    let identity = Identity::of(journal);
    let mut model = Model::default();
    for record in journal.read_from(Lsn::FIRST).expect("the journal is whole") {
        let record = record.expect("the record is whole");
        model.admit(&record.transaction, &SMALL).expect("what was journaled fits");
        let Some(decided) = by_epoch.get(&record.lsn.0) else { continue };
        let head = journal.encoded_record(record.lsn).expect("the record is whole").head();
        let mut applier = Applier::create(MemoryTables::new(SMALL), &identity);
        applier.reconcile(&mut plan::everything(&model), head).expect("memory does not fail");
        for (stamp, to, peer) in decided {
            let key = FrontendKey::new(to.ip(), to.port(), Protocol::Tcp.number());
            let verdict = decision::decide(&View(applier.tables()), stamp.epoch, &key, stamp.entropy);
            let Verdict::Forward { service, backend, address, port_be, .. } = verdict else {
                panic!("epoch {} has {verdict:?} for {to}, which went to {peer}", stamp.epoch)
            };
            assert_eq!((stamp.service, stamp.backend), (service, backend), "epoch {}", stamp.epoch);
            let chosen = SocketAddr::new(key::address_from_words(address), u16::from_be(port_be));
            assert_eq!(*peer, chosen, "epoch {}", stamp.epoch);
        }
    }
    by_epoch.len()
}

/// The services, which nobody serves yet.
pub fn foundation() -> Transaction {
    let services = (0..SERVICES).map(|number| world::service(number, world::vips(number).to_vec(), &[(80, 8080)]));
    transaction(None, services.map(Resource::Service).collect())
}

/// One transaction after which every service is served by one set of backends and by no other.
pub fn place_on(set: u16, version: u64) -> Transaction {
    let names: Vec<String> = (0..SERVICES).map(|number| world::service(number, Vec::new(), &[]).name).collect();
    let workloads = (0..2 * SET).map(|number| {
        let backs = number / SET == set;
        let backings = names.iter().filter(|_| backs);
        let backings = backings.map(|name| Backing { service: name.clone(), ports: Vec::new() }).collect();
        Resource::Workload(world::workload(number, WorkloadStatus::Healthy, backings))
    });
    transaction(Some(version), workloads.collect())
}

fn transaction(version: Option<u64>, resources: Vec<Resource>) -> Transaction {
    let version = version.map(|version| version + 1);
    let origin = Origin { source: "atomicity".to_owned(), incarnation: 1, version };
    Transaction::push(origin, resources.into_iter().map(Delta::Upsert).collect())
}
