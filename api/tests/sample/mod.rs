//! A message of everything there is.

use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{
    Affinity, Backing, Dns, Drain, DrainMode, Kind, LoadBalancing, Locality, LocalityMode, LocalityPreference,
    LocalityScope, NoEndpoints, Node, Policy, PortOverride, Protocol, Resource, ResourceKey, Service, ServicePort,
    Waypoint, Workload, WorkloadStatus,
};

/// A transaction in which every field of the model has a value that is not its default.
pub(crate) fn everything() -> Transaction {
    let waypoint = Some(Waypoint { address: "fd00::7".parse().unwrap(), port: 15008 });
    let locality = Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: "rack7".to_owned() };
    let service = Service {
        name: "bookinfo/reviews".to_owned(),
        hostname: "reviews.bookinfo.svc.cluster.local".to_owned(),
        vips: vec!["10.96.0.20".parse().unwrap(), "fd00:96::20".parse().unwrap()],
        external_addresses: vec!["192.0.2.20".parse().unwrap()],
        ports: vec![ServicePort {
            name: "http".to_owned(),
            port: 9080,
            target_port: 9081,
            protocol: Protocol::Udp,
            node_port: 30_080,
        }],
        all_ports: true,
        load_balancing: LoadBalancing {
            policy: Policy::Maglev,
            locality: LocalityPreference {
                mode: LocalityMode::Failover,
                routing_preference: LocalityScope::ALL.to_vec(),
            },
            affinity: Some(Affinity { timeout_seconds: 10_800 }),
        },
        no_endpoints: Some(NoEndpoints::Pass),
        drain: Drain { mode: DrainMode::Graceful, timeout_seconds: 30 },
        accelerate: true,
        waypoint: waypoint.clone(),
    };
    let workload = Workload {
        uid: "cluster1//Pod/bookinfo/reviews-v1".to_owned(),
        name: "reviews-v1".to_owned(),
        namespace: "bookinfo".to_owned(),
        addresses: vec!["127.1.2.1".parse().unwrap()],
        locality: locality.clone(),
        node: "node1".to_owned(),
        network: "net1".to_owned(),
        cluster: "cluster1".to_owned(),
        service_account: "reviews".to_owned(),
        status: WorkloadStatus::Terminating,
        weight: 0,
        waypoint,
        services: vec![Backing {
            service: "bookinfo/reviews".to_owned(),
            ports: vec![PortOverride { service_port: 9080, target_port: 9999 }],
        }],
    };
    let node = Node {
        name: "node1".to_owned(),
        addresses: vec!["192.0.2.1".parse().unwrap()],
        network: "net1".to_owned(),
        cluster: "cluster1".to_owned(),
        locality,
        no_endpoints: NoEndpoints::Pass,
        dns: Some(Dns { proxy: "127.0.0.53".parse().unwrap(), port: 5353 }),
    };
    Transaction::push(
        Origin { source: "istiod".to_owned(), incarnation: 3, version: Some(0) },
        vec![
            Delta::Upsert(Resource::Service(service)),
            Delta::Upsert(Resource::Workload(workload)),
            Delta::Upsert(Resource::Node(node)),
            Delta::Remove(ResourceKey::new(Kind::Workload, "gone")),
        ],
    )
}
