//! Golden files: the encoded bytes of this schema version. They are on people's disks, so a byte that moves is a new version.
//!
//! `HOLDFAST_BLESS=1 cargo test -p storage-schema --test golden` writes files that are missing; it never replaces one.

use std::path::PathBuf;

use storage_schema::codec::{
    SCHEMA_VERSION, decode_record, decode_resource, encode_record, encode_resource, hash_record,
};
use storage_schema::id::{BootId, Lsn, RecordHash};
use storage_schema::record::{Delta, Origin, Record, Transaction};
use storage_schema::resource::{
    Backing, Kind, LoadBalancing, Locality, NoEndpoints, Node, PortOverride, Protocol, Resource, ResourceKey, Service,
    ServicePort, Waypoint, Workload, WorkloadStatus,
};

fn golden(name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{SCHEMA_VERSION}/{name}.bin"));
    if std::env::var_os("HOLDFAST_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, encoded).expect("the golden directory is writable");
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn service() -> Resource {
    Resource::Service(Service {
        name: "bookinfo/reviews".to_owned(),
        hostname: "reviews.bookinfo.svc.cluster.local".to_owned(),
        vips: vec!["10.96.0.20".parse().unwrap(), "fd00::20".parse().unwrap()],
        ports: vec![
            ServicePort { name: "http".to_owned(), port: 80, target_port: 9080, protocol: Protocol::Tcp },
            ServicePort { name: String::new(), port: 443, target_port: 9443, protocol: Protocol::Tcp },
        ],
        load_balancing: LoadBalancing::Random,
        waypoint: Some(Waypoint { address: "10.1.2.3".parse().unwrap(), port: 15008 }),
    })
}

fn workload() -> Resource {
    Resource::Workload(Workload {
        uid: "cluster1//Pod/bookinfo/reviews-v1-abc".to_owned(),
        name: "reviews-v1-abc".to_owned(),
        namespace: "bookinfo".to_owned(),
        addresses: vec!["10.1.0.7".parse().unwrap()],
        locality: Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: "a".to_owned() },
        node: "node-1".to_owned(),
        network: "net".to_owned(),
        cluster: "cluster1".to_owned(),
        service_account: "reviews".to_owned(),
        status: WorkloadStatus::Terminating,
        weight: 3,
        waypoint: None,
        services: vec![Backing {
            service: "bookinfo/reviews".to_owned(),
            ports: vec![PortOverride { service_port: 80, target_port: 19080 }],
        }],
    })
}

fn node() -> Resource {
    Resource::Node(Node {
        name: "node-1".to_owned(),
        network: "net".to_owned(),
        cluster: "cluster1".to_owned(),
        locality: Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: String::new() },
        no_endpoints: NoEndpoints::Pass,
    })
}

#[test]
fn resources_are_encoded_as_ever() {
    for (name, resource) in [("service", service()), ("workload", workload()), ("node", node())] {
        let encoded = encode_resource(&resource);
        let golden = golden(name, &encoded);
        assert_eq!(encoded, golden, "{name}: an encoded byte has moved: this needs a new schema version");
        assert_eq!(decode_resource(&golden).unwrap(), resource);
    }
}

#[test]
fn records_are_encoded_as_ever() {
    let record = Record {
        lsn: Lsn(812),
        transaction: Transaction {
            origin: Origin { source: "istiod".to_owned(), incarnation: 7, version: Some(4711) },
            deltas: vec![
                Delta::Upsert(service()),
                Delta::Upsert(workload()),
                Delta::Upsert(node()),
                Delta::Remove(ResourceKey::new(Kind::Workload, "cluster1//Pod/bookinfo/reviews-v0-xyz")),
            ],
        },
        wall_ns: 1_700_000_000_123_456_789,
        monotonic_ns: 123_456_789_012,
        boot_id: BootId(*b"0123456789abcdef"),
        previous_hash: RecordHash([0xab; 32]),
    };
    let encoded = encode_record(&record);
    let golden = golden("record", &encoded);
    assert_eq!(encoded, golden, "an encoded byte has moved: this needs a new schema version");
    assert_eq!(decode_record(&golden).unwrap(), record);
    assert_eq!(
        hash_record(&golden).to_string(),
        blake3::hash(&golden).to_hex().to_string(),
        "the chain is plain BLAKE3 over the encoded record"
    );
}
