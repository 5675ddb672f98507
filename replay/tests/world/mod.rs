//! A journal whose every state is also known from a fold of its own.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use journal::{CheckpointPolicy, Clock, Config, Instant, Journal, Reader, Retention};
use replay::Past;
use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{
    Backing, Protocol, Resource, ResourceKey, Service, ServicePort, Workload, WorkloadStatus,
};
use tempfile::TempDir;

/// A journal in a directory of its own.
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) journal: Journal,
    /// The state after each record, from before the first on.
    pub(crate) states: Vec<Folded>,
    /// Its clock: a second passes with each record.
    pub(crate) clock: Arc<Ticking>,
    versions: BTreeMap<String, u64>,
}

/// When a world begins, nanoseconds since 1970-01-01 UTC.
pub(crate) const START_NS: u64 = 1_700_000_000_000_000_000;

/// A clock that goes when it is told to.
#[derive(Debug)]
pub(crate) struct Ticking(AtomicU64);

impl Ticking {
    /// Lets time pass.
    pub(crate) fn pass(&self, seconds: u64) {
        self.0.fetch_add(seconds * 1_000_000_000, Ordering::Relaxed);
    }

    pub(crate) fn wall_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clock for Ticking {
    fn now(&self) -> Instant {
        Instant { wall_ns: self.wall_ns(), monotonic_ns: self.wall_ns() }
    }
}

/// Resources, each with the record that changed it last.
pub(crate) type Folded = BTreeMap<ResourceKey, (Resource, Lsn)>;

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Retention::default())
    }

    pub(crate) fn with(retention: Retention) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = CheckpointPolicy { records: u64::MAX, bytes: u64::MAX };
        let clock = Arc::new(Ticking(AtomicU64::new(START_NS)));
        let config = Config { clock: clock.clone(), ..Config::new(dir.path()) };
        let journal = Journal::open(Config { segment_bytes: 64 << 10, checkpoint, retention, ..config }).unwrap();
        Self { dir, journal, states: vec![Folded::new()], clock, versions: BTreeMap::new() }
    }

    /// Appends a record, and folds it. A second passes.
    pub(crate) fn push(&mut self, source: &str, deltas: Vec<Delta>) -> Lsn {
        self.clock.pass(1);
        let version = self.versions.entry(source.to_owned()).or_default();
        *version += 1;
        let origin = Origin { source: source.to_owned(), incarnation: 1, version: Some(*version) };
        let permit = self.journal.blocking_reserve().unwrap();
        let submitted = permit.submit(Transaction::push(origin, deltas.clone())).unwrap();
        let lsn = submitted.ack.blocking_wait().unwrap().lsn;
        let mut state = self.states.last().unwrap().clone();
        for delta in deltas {
            match delta {
                Delta::Upsert(resource) => drop(state.insert(resource.key(), (resource, lsn))),
                Delta::Remove(key) => drop(state.remove(&key)),
            }
        }
        self.states.push(state);
        assert_eq!(self.states.len() as u64, lsn.0 + 1);
        lsn
    }

    pub(crate) fn past(&self) -> Past {
        Past::of(self.reader())
    }

    pub(crate) fn reader(&self) -> Reader {
        self.journal.reader()
    }
}

pub(crate) fn upsert(resource: Resource) -> Delta {
    Delta::Upsert(resource)
}

/// A service at 10.96.0.`number`:80.
pub(crate) fn service(name: &str, number: u8) -> Resource {
    let port = ServicePort { name: "http".into(), port: 80, target_port: 8080, protocol: Protocol::Tcp, node_port: 0 };
    Resource::Service(Service {
        name: name.to_owned(),
        vips: vec![IpAddr::V4(Ipv4Addr::new(10, 96, 0, number))],
        ports: vec![port],
        ..Service::default()
    })
}

/// A workload at 127.1.0.`number` that backs some services.
pub(crate) fn workload(uid: &str, number: u8, status: WorkloadStatus, services: &[&str]) -> Resource {
    let backing = |service: &&str| Backing { service: (*service).to_owned(), ports: Vec::new() };
    Resource::Workload(Workload {
        uid: uid.to_owned(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(127, 1, 0, number))],
        status,
        services: services.iter().map(backing).collect(),
        ..Workload::default()
    })
}
