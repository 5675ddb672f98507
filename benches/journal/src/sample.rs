//! The records that are measured: one workload each, about 400 bytes encoded, over 10,000 keys.

use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Locality, Resource, Workload, WorkloadStatus};

const KEYS: u64 = 10_000;

/// The transaction with this number.
pub(crate) fn transaction(source: &str, number: u64) -> Transaction {
    let key = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS;
    let [.., high, low] = key.to_be_bytes();
    let workload = Workload {
        uid: format!("cluster1//Pod/bookinfo/reviews-{key:05}"),
        name: format!("reviews-{key:05}"),
        namespace: "bookinfo".to_owned(),
        addresses: vec![[10, 1, high, low].into()],
        locality: Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: String::new() },
        node: "node-17".to_owned(),
        network: "network-1".to_owned(),
        cluster: "cluster1".to_owned(),
        service_account: "bookinfo-reviews".to_owned(),
        status: WorkloadStatus::Healthy,
        weight: 1,
        waypoint: None,
        services: vec![Backing { service: "bookinfo/reviews".to_owned(), ports: vec![] }],
    };
    let origin = Origin { source: source.to_owned(), incarnation: 1, version: Some(number + 1) };
    Transaction::push(origin, vec![Delta::Upsert(Resource::Workload(workload))])
}
