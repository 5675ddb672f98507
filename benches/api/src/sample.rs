//! The transactions that are measured: each client has workloads of its own, about 400 bytes encoded, ten of them behind a
//! service, and each transaction changes the health of some.

use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Locality, Resource, Service, ServicePort, Workload, WorkloadStatus};

/// Each has a /16 of addresses.
pub(crate) const CLIENTS_MAX: u64 = 128;
/// Workloads of a client.
const WORKLOADS: u64 = 1000;
const WORKLOADS_PER_SERVICE: u64 = 10;

/// A client's name as a source.
pub(crate) fn source(client: u64) -> String {
    format!("client-{client}")
}

/// What a client has before it is measured: all of its services and workloads.
pub(crate) fn everything(client: u64) -> Vec<Delta> {
    let services = (0..WORKLOADS / WORKLOADS_PER_SERVICE).map(|number| Resource::Service(service(client, number)));
    let workloads = (0..WORKLOADS).map(|number| Resource::Workload(workload(client, number, WorkloadStatus::Healthy)));
    services.chain(workloads).map(Delta::Upsert).collect()
}

/// The changes of a client's transaction with this number, from 0 on.
pub(crate) fn changes(client: u64, number: u64, deltas: u64) -> Vec<Delta> {
    let change = |delta: u64| {
        let turn = number * deltas + delta;
        // The second time around it is healthy again, so that each delta changes something.
        let status =
            if (turn / WORKLOADS).is_multiple_of(2) { WorkloadStatus::Unhealthy } else { WorkloadStatus::Healthy };
        // Neighbours are of different services.
        Delta::Upsert(Resource::Workload(workload(client, turn * 7 % WORKLOADS, status)))
    };
    (0..deltas).map(change).collect()
}

/// Changes as a transaction, for the journal.
pub(crate) fn transaction(client: u64, version: u64, deltas: Vec<Delta>) -> Transaction {
    let origin = Origin { source: source(client), incarnation: 1, version: Some(version) };
    Transaction::push(origin, deltas)
}

fn service_name(client: u64, number: u64) -> String {
    format!("bookinfo-{client:03}/reviews-{number:03}")
}

fn address(net: u8, client: u64, number: u64) -> std::net::IpAddr {
    let [.., client] = client.to_be_bytes();
    let [.., high, low] = number.to_be_bytes();
    [net, client, high, low].into()
}

fn service(client: u64, number: u64) -> Service {
    let port = ServicePort { name: "http".to_owned(), port: 9080, target_port: 9080, ..ServicePort::default() };
    let (name, vips) = (service_name(client, number), vec![address(11, client, number)]);
    Service { name, vips, ports: vec![port], ..Service::default() }
}

fn workload(client: u64, number: u64, status: WorkloadStatus) -> Workload {
    Workload {
        uid: format!("cluster1//Pod/bookinfo-{client:03}/reviews-{number:05}"),
        name: format!("reviews-{number:05}"),
        namespace: format!("bookinfo-{client:03}"),
        addresses: vec![address(10, client, number)],
        locality: Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: String::new() },
        node: "node-17".to_owned(),
        network: "network-1".to_owned(),
        cluster: "cluster1".to_owned(),
        service_account: "bookinfo-reviews".to_owned(),
        status,
        weight: 1,
        waypoint: None,
        services: vec![Backing { service: service_name(client, number / WORKLOADS_PER_SERVICE), ports: vec![] }],
    }
}
