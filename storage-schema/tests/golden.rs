//! Golden files: the encoded bytes of each schema version. They are on people's disks, so a byte that moves is a new version.
//!
//! `HOLDFAST_BLESS=1 cargo test -p storage-schema --test golden` writes files that are missing; it never replaces one.

use std::path::PathBuf;

use storage_schema::codec::{
    DecodeError, EncodeError, Link, RESOURCE_VERSION, SCHEMA_VERSION, access_link, access_record, decode_record,
    decode_resource, encode_record, encode_record_in, encode_resource, hash_record, upcast_record, version_of,
};
use storage_schema::id::{BootId, Lsn, RecordHash};
use storage_schema::record::{Delta, Origin, Record, Transaction};
use storage_schema::resource::{
    Backing, Kind, LoadBalancing, Locality, NoEndpoints, Node, PortOverride, Protocol, Resource, ResourceKey, Service,
    ServicePort, Waypoint, Workload, WorkloadStatus,
};

fn golden(version: u32, name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{version}/{name}.bin"));
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
        let golden = golden(RESOURCE_VERSION, name, &encoded);
        assert_eq!(encoded, golden, "{name}: an encoded byte has moved: this needs a new schema version");
        assert_eq!(decode_resource(&golden).unwrap(), resource);
    }
}

/// A record that says no more than version 1 could.
fn bare_record() -> Record {
    Record {
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
        received_wall_ns: None,
        client: None,
    }
}

fn record() -> Record {
    Record {
        received_wall_ns: Some(1_700_000_000_123_400_000),
        client: Some("uid=0 gid=0 pid=4711".to_owned()),
        ..bare_record()
    }
}

#[test]
fn records_are_encoded_as_ever() {
    for (version, name, record) in
        [(1, "record", bare_record()), (2, "record-bare", bare_record()), (2, "record", record())]
    {
        let encoded = encode_record_in(version, record.clone()).unwrap();
        let golden = golden(version, name, &encoded);
        assert_eq!(encoded, golden, "v{version}/{name}: an encoded byte has moved: this needs a new schema version");
        assert_eq!(version_of(&golden).unwrap(), version);
        assert_eq!(decode_record(&golden).unwrap(), record);
        let link = Link { lsn: record.lsn, previous_hash: record.previous_hash };
        assert_eq!(access_link(&golden).unwrap(), link);
        assert_eq!(
            hash_record(&golden).to_string(),
            blake3::hash(&golden).to_hex().to_string(),
            "the chain is plain BLAKE3 over the encoded record"
        );
    }
    assert_eq!(encode_record(&record()), encode_record_in(SCHEMA_VERSION, record()).unwrap());
}

#[test]
fn a_record_of_version_1_is_upcast() {
    let old = encode_record_in(1, bare_record()).unwrap();
    assert!(matches!(access_record(&old), Err(DecodeError::NotCurrent { found: 1 })));
    let upcast = upcast_record(&old).unwrap().expect("it is old");
    assert_eq!(upcast, encode_record(&bare_record()));
    let archived = access_record(&upcast).unwrap();
    assert!(archived.received_wall_ns.is_none() && archived.client.is_none());
    assert_eq!(upcast_record(&upcast).unwrap(), None, "it is current");
}

#[test]
fn what_version_1_cannot_say_is_refused_and_not_left_out() {
    let refused = |record| match encode_record_in(1, record) {
        Err(EncodeError::NoSuchField { version: 1, field }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(record()), "received_wall_ns");
    assert_eq!(refused(Record { received_wall_ns: None, ..record() }), "client");
}

#[test]
fn a_newer_version_is_refused_by_its_number() {
    let newest = SCHEMA_VERSION + 1;
    let mut bytes = encode_record(&record());
    bytes[..4].copy_from_slice(&newest.to_le_bytes());
    let errors = [
        decode_record(&bytes).unwrap_err(),
        access_record(&bytes).err().unwrap(),
        access_link(&bytes).unwrap_err(),
        decode_resource(&bytes).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, DecodeError::UnknownVersion { found } if found == newest), "{error}");
        assert_eq!(error.to_string(), "schema version 3 is not known here (newest known: 2): use a newer holdfast");
    }
    assert_eq!(upcast_record(&bytes).unwrap(), None);
    assert_eq!(encode_record_in(newest, record()), Err(EncodeError::UnknownVersion { version: newest }));
    assert!(matches!(decode_record(&[2, 0, 0]), Err(DecodeError::TooShort { len: 3 })));
}

#[test]
fn a_resource_is_the_same_in_both_versions() {
    let mut bytes = encode_resource(&service());
    assert_eq!(version_of(&bytes).unwrap(), 1);
    bytes[..4].copy_from_slice(&2_u32.to_le_bytes());
    assert_eq!(decode_resource(&bytes).unwrap(), service());
}
