//! Which sockets lead to backends that are gone, and since when: random histories, over a real journal and tables in memory, against
//! what the resources say by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use applier::{Departed, Lead, Options, Pipeline, PushError, Target};
use journal::{Config, Journal, Retention};
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use storage_schema::id::{Epoch, Lsn, ResourceId};
use storage_schema::map::Capacities;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{
    Backing, Drain, DrainMode, Kind, PortOverride, Protocol, Resource, ResourceKey, Service, ServicePort, Waypoint,
    Workload, WorkloadStatus,
};
use tokio::runtime::Runtime;

const CAPACITIES: Capacities = Capacities { frontends: 64, services: 64, backends: 64, endpoints: 64 };
const SERVICES: u8 = 2;
const WORKLOADS: u8 = 3;
/// A port that no service names.
const OTHER_PORT: u16 = 9_999;
const STEPS: usize = 60;
/// Only a hanging applier takes that long.
const TIMEOUT: Duration = Duration::from_mins(1);

/// All resources, by key.
type State = BTreeMap<ResourceKey, Resource>;

/// Journal and applier, and what was so after each record.
struct World {
    runtime: Runtime,
    pipeline: Pipeline,
    journal: Journal,
    /// By LSN; the empty one is that before the first.
    states: Vec<State>,
    random: ChaCha8Rng,
}

impl World {
    fn new(directory: &Path, seed: u64) -> Self {
        let config = Config { segment_bytes: 64 << 10, ..Config::new(directory) };
        let journal = Journal::open(config).expect("an empty directory");
        let pipeline = Pipeline::start(journal.clone(), Options::new(Target::Memory, CAPACITIES));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let random = ChaCha8Rng::seed_from_u64(seed);
        Self { runtime, pipeline: pipeline.expect("memory"), journal, states: vec![State::new()], random }
    }

    fn head(&self) -> Lsn {
        Lsn(self.states.len() as u64 - 1)
    }

    /// Pushes something that is valid, and waits until it is visible.
    fn step(&mut self) {
        loop {
            let deltas: Vec<Delta> = (0..self.random.random_range(1..=3)).map(|_| delta(&mut self.random)).collect();
            let transaction = transaction(deltas.clone());
            let pushed = self.runtime.block_on(async {
                let pending = self.pipeline.push(transaction, None).await?;
                pending.durable().await?;
                self.pipeline.wait_applied(pending.lsn()).await?;
                Ok::<_, PushError>(pending.lsn())
            });
            let lsn = match pushed {
                Ok(lsn) => lsn,
                Err(PushError::Rejected(_)) => continue,
                Err(error) => panic!("{error}"),
            };
            let mut state = self.states.last().expect("there is one").clone();
            for delta in deltas {
                match delta {
                    Delta::Upsert(resource) => drop(state.insert(resource.key(), resource)),
                    Delta::Remove(key) => drop(state.remove(&key)),
                }
            }
            self.states.push(state);
            assert_eq!(lsn, self.head());
            return;
        }
    }

    /// Everywhere that sockets may lead that were ever balanced, with the last epoch at which each was a backend.
    fn leads(&self) -> BTreeMap<Lead, Epoch> {
        let epochs = self
            .states
            .iter()
            .zip(0..)
            .flat_map(|(state, lsn)| leads_of(state).into_iter().map(move |lead| (lead, Epoch(lsn))));
        epochs.collect()
    }

    /// How the service drains now, or did last.
    fn drain(&self, service: ResourceId) -> Drain {
        let found = self.states.iter().rev().find_map(|state| service_of(state, service));
        found.expect("a socket was balanced for it").drain
    }
}

fn service_of(state: &State, id: ResourceId) -> Option<&Service> {
    state.values().find_map(|resource| match resource {
        Resource::Service(service) if ResourceId::of(&resource.key()) == id => Some(service),
        _ => None,
    })
}

/// Where sockets lead that are balanced in this state, whatever the health of who is there.
fn leads_of(state: &State) -> BTreeSet<Lead> {
    let mut leads = BTreeSet::new();
    for resource in state.values() {
        let id = ResourceId::of(&resource.key());
        match resource {
            Resource::Service(service) => leads.extend(service.waypoint.as_ref().map(|waypoint| Lead {
                service: id,
                backend: id,
                address: waypoint.address,
                port: waypoint.port,
                dialled_port: 80,
                protocol: Protocol::Tcp.number(),
            })),
            Resource::Workload(workload) => {
                for backing in &workload.services {
                    let key = ResourceKey::new(Kind::Service, &*backing.service);
                    let Some(Resource::Service(service)) = state.get(&key) else { panic!("it was admitted") };
                    for (dialled_port, protocol, port) in ports(service, backing) {
                        leads.extend(workload.addresses.iter().map(|address| Lead {
                            service: ResourceId::of(&key),
                            backend: id,
                            address: *address,
                            port,
                            dialled_port,
                            protocol: protocol.number(),
                        }));
                    }
                }
            }
            Resource::Node(_) => {}
        }
    }
    leads
}

/// Dialled ports, and the workload's own. Which of those that lead to one port was dialled makes no difference.
fn ports(service: &Service, backing: &Backing) -> Vec<(u16, Protocol, u16)> {
    let target = |port: &ServicePort| {
        let own = backing.ports.iter().find(|own| own.service_port == port.port);
        own.map_or(port.target_port, |own| own.target_port)
    };
    let mut ports: Vec<_> = service.ports.iter().map(|port| (80, port.protocol, target(port))).collect();
    if service.all_ports {
        ports.extend(Protocol::ALL.map(|protocol| (OTHER_PORT, protocol, OTHER_PORT)));
    }
    ports
}

fn transaction(deltas: Vec<Delta>) -> Transaction {
    Transaction::push(Origin { source: "test".to_owned(), incarnation: 1, version: None }, deltas)
}

fn service_name(number: u8) -> String {
    format!("mesh/s{number}")
}

fn delta(random: &mut ChaCha8Rng) -> Delta {
    let (service, workload) = (random.random_range(0..SERVICES), random.random_range(0..WORKLOADS));
    match random.random_range(0..10) {
        0 => Delta::Remove(ResourceKey::new(Kind::Service, service_name(service))),
        1 => Delta::Remove(ResourceKey::new(Kind::Workload, format!("w{workload}"))),
        2..=4 => Delta::Upsert(Resource::Service(random_service(service, random))),
        _ => Delta::Upsert(Resource::Workload(random_workload(workload, random))),
    }
}

fn random_service(number: u8, random: &mut ChaCha8Rng) -> Service {
    let mut port = |port, protocol| ServicePort {
        port,
        target_port: *[8_080, 8_081].choose(random).expect("there are some"),
        protocol,
        ..ServicePort::default()
    };
    let ports = [port(80, Protocol::Tcp), port(80, Protocol::Udp), port(443, Protocol::Tcp)];
    let mode = [DrainMode::Keep, DrainMode::Graceful, DrainMode::Terminate, DrainMode::Reselect];
    let mode = *mode.choose(random).expect("there are some");
    let timeout_seconds = if mode == DrainMode::Keep { 0 } else { random.random_range(1..=9) };
    let waypoint = Waypoint { address: address(random.random_range(100..102), true), port: 15_008 };
    Service {
        name: service_name(number),
        vips: vec![IpAddr::from([10, 0, 0, number])].into_iter().filter(|_| random.random_ratio(3, 4)).collect(),
        ports: ports.into_iter().filter(|_| random.random_ratio(2, 3)).collect(),
        all_ports: random.random_ratio(1, 4),
        drain: Drain { mode, timeout_seconds },
        waypoint: Some(waypoint).filter(|_| random.random_ratio(1, 4)),
        ..Service::default()
    }
}

fn random_workload(number: u8, random: &mut ChaCha8Rng) -> Workload {
    let services = (0..SERVICES).filter(|_| random.random_ratio(2, 3)).collect::<Vec<_>>();
    let mut overrides = || {
        let own = PortOverride { service_port: 80, target_port: *[8_080, 7_070].choose(random).expect("some") };
        Some(own).filter(|_| random.random_ratio(1, 4)).into_iter().collect()
    };
    let services = services.into_iter().map(|service| Backing { service: service_name(service), ports: overrides() });
    let services = services.collect();
    let statuses = [WorkloadStatus::Healthy, WorkloadStatus::Unhealthy, WorkloadStatus::Terminating];
    let host = number + 10 * random.random_range(0..2);
    Workload {
        uid: format!("w{number}"),
        addresses: [true, false]
            .map(|v4| address(host, v4))
            .into_iter()
            .filter(|_| random.random_ratio(3, 4))
            .collect(),
        status: *statuses.choose(random).expect("there are some"),
        services,
        ..Workload::default()
    }
}

fn address(host: u8, v4: bool) -> IpAddr {
    if v4 { IpAddr::from([10, 1, 0, host]) } else { IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)]) }
}

/// Compares what is said of every socket that there may be. `exact`: all records are kept.
fn check(world: &World, departed: &mut Departed, asked: &mut BTreeSet<(Lead, Epoch)>, exact: bool) -> usize {
    let (head, now) = (world.head(), world.states.last().expect("there is one"));
    let living = leads_of(now);
    let all = world.leads();
    for lead in all.keys() {
        let service = service_of(now, lead.service);
        let may = !living.contains(lead) && service.is_none_or(|service| service.drain.mode != DrainMode::Keep);
        assert_eq!(world.pipeline.may_drain(lead), may, "{lead:?} at {head}");
    }
    // All of them, also those that nobody would ask about: what is a backend is not gone.
    asked.extend(all.iter().map(|(lead, epoch)| (*lead, *epoch)));
    let asked: Vec<(Lead, Epoch)> = asked.iter().filter(|(lead, _)| exact || !living.contains(lead)).copied().collect();
    let gone = departed.look(&world.pipeline, &asked, head).expect("a readable journal");
    for (lead, epoch) in &asked {
        let found = gone.get(&(*lead, *epoch));
        let context = format!("{lead:?} of {epoch} at {head}");
        if living.contains(lead) {
            assert_eq!(found, None, "{context}");
            continue;
        }
        let found = found.unwrap_or_else(|| panic!("{context}"));
        let since = Lsn(all[lead].0 + 1);
        if exact {
            assert_eq!((found.since, found.drain), (since, Some(world.drain(lead.service))), "{context}");
            let written = world.journal.record(since).expect("it is kept");
            assert_eq!((found.since_monotonic_ns, found.boot_id), (written.monotonic_ns, written.boot_id));
            assert!(found.service.starts_with("mesh/s"), "{found:?}");
            assert_eq!(found.workload.is_empty(), lead.service == lead.backend, "{found:?}");
            assert!(found.workload.is_empty() || found.workload.starts_with('w'), "{found:?}");
        } else {
            assert!((since..=head).contains(&found.since), "{context}: {found:?} is too early or late");
            let drain = world.drain(lead.service);
            assert!(found.drain.is_none_or(|found| found == drain), "{context}: {found:?}, not {drain:?}");
        }
    }
    asked.len()
}

#[test]
fn what_is_gone_is_known_from_the_journal_with_the_record_that_took_it() {
    let mut checked = 0;
    for seed in 0..6 {
        let directory = tempfile::tempdir().expect("a directory");
        let mut world = World::new(directory.path(), seed);
        let (mut departed, mut asked) = (Departed::default(), BTreeSet::new());
        for _ in 0..STEPS {
            let before = leads_of(world.states.last().expect("there is one"));
            world.step();
            let now = world.states.last().expect("there is one");
            let drains = |lead: &&Lead| world.drain(lead.service).mode != DrainMode::Keep;
            // Whoever loses a backend that is to be drained is told of.
            if before.difference(&leads_of(now)).any(|lead| drains(&lead)) {
                let mut departures = world.pipeline.departures();
                let told = async { departures.wait_for(|lsn| *lsn == world.head()).await.map(drop) };
                let told = world.runtime.block_on(async { tokio::time::timeout(TIMEOUT, told).await });
                told.expect("it is told at once").expect("the applier runs");
            }
            checked += check(&world, &mut departed, &mut asked, true);
        }
        // Without what was remembered it is the same.
        checked += check(&world, &mut Departed::default(), &mut asked, true);
    }
    assert!(checked > 5_000, "{checked}");
}

#[test]
fn what_retention_has_let_go_is_taken_to_have_happened_later_and_never_earlier() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut world = World::new(directory.path(), 7);
    let mut asked = BTreeSet::new();
    let mut let_go = 0;
    for step in 1..=8 * STEPS {
        world.step();
        if step % 60 == 0 {
            let kept = Retention { records: Some(1), ..Retention::default() };
            world.journal.compact(&kept).expect("a writable disk");
            let_go = world.journal.watermarks().oldest_lsn.0 - 1;
        }
        if step % 10 == 0 {
            check(&world, &mut Departed::default(), &mut asked, false);
        }
    }
    assert!(let_go > 0, "something was let go");
}
