//! The model of a stored state, made from resources where they lie, without decoding them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use journal::{Durable, ReadError, StoredResource};
use storage_schema::codec::{DecodeError, access_resource};
use storage_schema::id::{Lsn, ResourceId};
use storage_schema::record::Record;
use storage_schema::resource::{
    ArchivedBacking, ArchivedDrain, ArchivedDrainMode, ArchivedLocalityMode, ArchivedLocalityPreference,
    ArchivedLocalityScope, ArchivedNoEndpoints, ArchivedNode, ArchivedPolicy, ArchivedProtocol, ArchivedResource,
    ArchivedService, ArchivedWorkload, ArchivedWorkloadStatus, Drain, DrainMode, Kind, LocalityMode,
    LocalityPreference, LocalityScope, NoEndpoints, Policy, PortOverride, Protocol, ResourceKey, ServicePort,
    WorkloadStatus,
};

use crate::backings::Backings;
use crate::both::both;
use crate::direct::{self, Redirect};
use crate::entry::ServiceKey;
use crate::hash::HashMap;
use crate::model::{Model, Service, Usage, Workload};
use crate::owner::{Owner, Owners};
use crate::place::Said;
use crate::plan;
use crate::projection::{Node, affinity_units};

/// What a thread of the loader's gets at once; a state that is smaller needs no thread.
const BATCH_BYTES: usize = 512 << 10;
/// How many of these may wait.
const BATCHES_MAX: usize = 4;

/// Takes in resources that were admitted earlier, without checks: what a store holds. In any order, each once.
///
/// Reading a store takes as long as making a model of it, so the latter is done by a second thread.
#[derive(Debug)]
pub struct Loader {
    model: Model,
    owners: Owners,
    batch: Batch,
    worker: Option<Worker>,
}

/// Where the model is while a second thread works on it.
#[derive(Debug)]
struct Worker {
    batches: SyncSender<Batch>,
    thread: JoinHandle<Result<Model, Undecodable>>,
}

/// A resource that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be decoded: {source}")]
pub struct Undecodable {
    /// Which.
    pub key: ResourceKey,
    /// Why.
    #[source]
    pub source: DecodeError,
}

impl From<Undecodable> for ReadError {
    fn from(Undecodable { key, source }: Undecodable) -> Self {
        Self::UndecodableResource { key, source }
    }
}

/// Names and encoded resources, one after the other.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Each one's kind, who changed it, and where its name and it end.
    ends: Vec<(Kind, By, usize, usize)>,
}

/// Who changed a resource last.
#[derive(Clone, Copy, Debug)]
struct By {
    owner: Owner,
    changed_lsn: Lsn,
}

impl Loader {
    /// A loader that expects this many resources.
    pub fn new(resources: usize) -> Self {
        let mut model = Model::default();
        model.workloads.reserve(resources);
        Self { model, owners: Owners::default(), batch: Batch::default(), worker: None }
    }

    /// Takes in a resource as it is stored.
    pub fn add(&mut self, stored: &StoredResource<'_>) {
        let StoredResource { kind, name, changed_lsn, owner, encoded } = *stored;
        let owner = self.owners.number(owner);
        self.batch.bytes.extend_from_slice(name.as_bytes());
        let name_end = self.batch.bytes.len();
        self.batch.bytes.extend_from_slice(encoded);
        self.batch.ends.push((kind, By { owner, changed_lsn }, name_end, self.batch.bytes.len()));
        if self.batch.bytes.len() < BATCH_BYTES {
            return;
        }
        let worker = self.worker.get_or_insert_with(|| {
            let (batches, received) = sync_channel(BATCHES_MAX);
            let model = std::mem::take(&mut self.model);
            Worker { batches, thread: std::thread::spawn(move || work(model, &received)) }
        });
        // A worker that is gone has failed, and says why in the end.
        let _ = worker.batches.send(std::mem::take(&mut self.batch));
    }

    /// The model of all of them.
    pub fn finish(self) -> Result<Model, Undecodable> {
        self.collect().map(Model::loaded)
    }

    /// The model of what later records have made of them.
    pub fn finish_after(
        self,
        later: impl IntoIterator<Item = Result<Durable<Record>, ReadError>>,
    ) -> Result<Model, ReadError> {
        let mut model = self.collect()?;
        for record in later {
            let record = record?;
            model.replay(&record.transaction, record.lsn);
        }
        Ok(model.loaded())
    }

    fn collect(self) -> Result<Model, Undecodable> {
        let mut model = match self.worker {
            None => self.model,
            Some(Worker { batches, thread }) => {
                drop(batches);
                thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause))?
            }
        };
        self.batch.load(&mut model)?;
        model.owners = self.owners;
        Ok(model)
    }
}

impl Model {
    /// Adds what follows from the resources, once all are there.
    pub(crate) fn loaded(mut self) -> Self {
        let Self { services, workloads, .. } = &self;
        let addresses = self.node_addresses();
        let count_backends = || -> u64 {
            // Most workloads back one service at its own ports: what those come to is looked up where it is close together.
            let ports: HashMap<ResourceId, [u64; 2]> =
                services.iter().map(|(id, service)| (*id, plan::ports_of_members(*id, service))).collect();
            let count = |id: ResourceId, workload: &Workload| match &workload.backings {
                Backings::One(service) => {
                    let [v4, v6] = ports.get(service).copied().unwrap_or_default();
                    v4 * u64::from(workload.v4.is_some()) + v6 * u64::from(workload.v6.is_some())
                }
                Backings::Many(_) => plan::backend_keys(id, workload, |id| services.get(&id)).len() as u64,
            };
            let waypoints = services.iter().filter(|(id, service)| plan::waypoint_key(**id, service).is_some());
            let of_workloads = self.redirected().filter(|(id, workload)| direct::waypoint_key(*id, workload).is_some());
            let waypoints = waypoints.count() + of_workloads.count();
            workloads.iter().map(|(id, workload)| count(*id, workload)).sum::<u64>() + waypoints as u64
        };
        let claim_frontends = || {
            let mut frontends = HashMap::default();
            frontends.reserve(services.len());
            let of_services = services.iter().flat_map(|(id, service)| plan::frontends(*id, service, addresses));
            let of_workloads = self.redirected().flat_map(|(id, workload)| direct::frontends(id, workload));
            for (frontend, ServiceKey { service: id, .. }) in of_services.chain(of_workloads) {
                let owner = *frontends.entry(frontend).or_insert(id);
                assert_eq!(owner, id, "the journal admits no two owners of one destination");
            }
            frontends
        };
        let (backends, frontends) = both(workloads.len(), count_backends, claim_frontends);
        self.frontends = frontends;
        self.usage = Usage { frontends: self.frontends.len() as u64, backends, ..Usage::default() };
        for (id, service) in &self.services {
            self.usage.services += plan::service_keys(*id, service).count() as u64;
            self.usage.endpoints += plan::slots_max(*id, service, self.members.get(id).map_or(0, BTreeSet::len));
        }
        let of_workloads: usize =
            self.redirected().map(|(id, workload)| direct::service_keys(id, workload).count()).sum();
        self.usage.services += of_workloads as u64;
        self.usage.endpoints += of_workloads as u64;
        self
    }
}

fn work(mut model: Model, batches: &Receiver<Batch>) -> Result<Model, Undecodable> {
    batches.iter().try_for_each(|batch| batch.load(&mut model))?;
    Ok(model)
}

impl Batch {
    fn load(&self, model: &mut Model) -> Result<(), Undecodable> {
        let mut start = 0;
        for (kind, by, name_end, end) in &self.ends {
            load(model, *by, &self.bytes[*name_end..*end]).map_err(|source| {
                let name = String::from_utf8_lossy(&self.bytes[start..*name_end]);
                Undecodable { key: ResourceKey::new(*kind, name), source }
            })?;
            start = *end;
        }
        Ok(())
    }
}

fn load(model: &mut Model, by: By, encoded: &[u8]) -> Result<(), DecodeError> {
    match access_resource(encoded)? {
        ArchivedResource::Service(service) => {
            model.services.insert(ResourceId::named(Kind::Service, &service.name), project_service(service, by));
        }
        ArchivedResource::Workload(workload) => {
            let id = ResourceId::named(Kind::Workload, &workload.uid);
            let workload = project_workload(workload, by);
            for (service, _) in workload.backings.iter() {
                model.members.entry(service).or_default().insert(id);
            }
            if workload.redirect.is_some() {
                model.redirected.insert(id);
            }
            model.workloads.insert(id, Box::new(workload));
        }
        ArchivedResource::Node(node) => model.node = Some(project_node(node, by)),
    }
    Ok(())
}

#[allow(clippy::redundant_closure_for_method_calls, reason = "the type of archived addresses has no name here")]
fn project_service(service: &ArchivedService, By { owner, changed_lsn }: By) -> Service {
    let ports = service.ports.iter().map(|port| ServicePort {
        name: String::new(),
        port: port.port.to_native(),
        target_port: port.target_port.to_native(),
        protocol: match port.protocol {
            ArchivedProtocol::Tcp => Protocol::Tcp,
            ArchivedProtocol::Udp => Protocol::Udp,
        },
        node_port: port.node_port.to_native(),
    });
    Service {
        owner,
        changed_lsn,
        name: service.name.as_str().into(),
        addresses: service.vips.iter().chain(service.external_addresses.iter()).map(|one| one.as_ipaddr()).collect(),
        ports: ports.collect(),
        all_ports: service.all_ports,
        policy: match service.load_balancing.policy {
            ArchivedPolicy::Random => Policy::Random,
            ArchivedPolicy::Weighted => Policy::Weighted,
            ArchivedPolicy::Maglev => Policy::Maglev,
        },
        affinity: affinity_units(
            service.load_balancing.affinity.as_ref().map_or(0, |affinity| affinity.timeout_seconds.to_native()),
        ),
        locality: project_locality(&service.load_balancing.locality),
        no_endpoints: service.no_endpoints.as_ref().map(project_no_endpoints),
        drain: project_drain(&service.drain),
        accelerate: service.accelerate,
        waypoint: service.waypoint.as_ref().map(|waypoint| (waypoint.address.as_ipaddr(), waypoint.port.to_native())),
    }
}

fn project_locality(locality: &ArchivedLocalityPreference) -> LocalityPreference {
    let scope = |scope: &ArchivedLocalityScope| match scope {
        ArchivedLocalityScope::Network => LocalityScope::Network,
        ArchivedLocalityScope::Region => LocalityScope::Region,
        ArchivedLocalityScope::Zone => LocalityScope::Zone,
        ArchivedLocalityScope::Subzone => LocalityScope::Subzone,
        ArchivedLocalityScope::Node => LocalityScope::Node,
        ArchivedLocalityScope::Cluster => LocalityScope::Cluster,
    };
    LocalityPreference {
        mode: match locality.mode {
            ArchivedLocalityMode::None => LocalityMode::None,
            ArchivedLocalityMode::Strict => LocalityMode::Strict,
            ArchivedLocalityMode::Failover => LocalityMode::Failover,
        },
        routing_preference: locality.routing_preference.iter().map(scope).collect(),
    }
}

fn project_drain(drain: &ArchivedDrain) -> Drain {
    let mode = match drain.mode {
        ArchivedDrainMode::Keep => DrainMode::Keep,
        ArchivedDrainMode::Graceful => DrainMode::Graceful,
        ArchivedDrainMode::Terminate => DrainMode::Terminate,
        ArchivedDrainMode::Reselect => DrainMode::Reselect,
    };
    Drain { mode, timeout_seconds: drain.timeout_seconds.to_native() }
}

fn project_no_endpoints(no_endpoints: &ArchivedNoEndpoints) -> NoEndpoints {
    match no_endpoints {
        ArchivedNoEndpoints::Refuse => NoEndpoints::Refuse,
        ArchivedNoEndpoints::Pass => NoEndpoints::Pass,
    }
}

#[allow(clippy::redundant_closure_for_method_calls, reason = "the type of archived addresses has no name here")]
fn project_workload(workload: &ArchivedWorkload, By { owner, changed_lsn }: By) -> Workload {
    let addresses = || workload.addresses.iter().map(|address| address.as_ipaddr());
    let overrides = |backing: &ArchivedBacking| {
        let ports = backing.ports.iter().map(|port| PortOverride {
            service_port: port.service_port.to_native(),
            target_port: port.target_port.to_native(),
        });
        ports.collect()
    };
    let backing = |backing: &ArchivedBacking| (ResourceId::named(Kind::Service, &backing.service), overrides(backing));
    Workload {
        owner,
        changed_lsn,
        uid: workload.uid.as_str().into(),
        v4: addresses().find_map(|address| match address {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }),
        v6: addresses().find_map(|address| match address {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        }),
        status: match workload.status {
            ArchivedWorkloadStatus::Healthy => WorkloadStatus::Healthy,
            ArchivedWorkloadStatus::Unhealthy => WorkloadStatus::Unhealthy,
            ArchivedWorkloadStatus::Terminating => WorkloadStatus::Terminating,
        },
        weight: workload.weight.to_native(),
        place: Said {
            network: &workload.network,
            region: &workload.locality.region,
            zone: &workload.locality.zone,
            subzone: &workload.locality.subzone,
            node: &workload.node,
            cluster: &workload.cluster,
        }
        .into(),
        backings: workload.services.iter().map(backing).collect(),
        redirect: workload.waypoint.as_ref().map(|waypoint| {
            let waypoint = (waypoint.address.as_ipaddr(), waypoint.port.to_native());
            Box::new(Redirect { addresses: addresses().collect(), waypoint })
        }),
    }
}

#[allow(clippy::redundant_closure_for_method_calls, reason = "the type of archived addresses has no name here")]
fn project_node(node: &ArchivedNode, By { owner, changed_lsn }: By) -> Node {
    Node {
        owner,
        changed_lsn,
        name: node.name.as_str().into(),
        addresses: node.addresses.iter().map(|address| address.as_ipaddr()).collect(),
        place: Said {
            network: &node.network,
            region: &node.locality.region,
            zone: &node.locality.zone,
            subzone: &node.locality.subzone,
            node: &node.name,
            cluster: &node.cluster,
        }
        .into(),
        no_endpoints: project_no_endpoints(&node.no_endpoints),
        dns: node.dns.as_ref().map(|dns| (dns.proxy.as_ipaddr(), dns.port.to_native())),
    }
}
