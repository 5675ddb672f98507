//! Golden files: the encoded bytes of each schema version. They are on people's disks, so a byte that moves is a new version.
//!
//! `HOLDFAST_BLESS=1 cargo test -p storage-schema --test golden` writes files that are missing; it never replaces one.

use std::path::PathBuf;

use storage_schema::codec::{
    DecodeError, EncodeError, Link, RESOURCE_VERSION, SCHEMA_VERSION, access_link, access_record, access_resource,
    decode_record, decode_resource, encode_record, encode_record_in, encode_resource, hash_record, stamp_record,
    upcast_record, upcast_resource, version_of,
};
use storage_schema::id::{BootId, Lsn, RecordHash};
use storage_schema::record::{Cause, Delta, Drained, Event, Lease, Origin, Record, Transaction};
use storage_schema::resource::{
    Affinity, Backing, Dns, Drain, DrainMode, Kind, LoadBalancing, Locality, LocalityMode, LocalityPreference,
    LocalityScope, NoEndpoints, Node, Policy, PortOverride, Protocol, Resource, ResourceKey, Service, ServicePort,
    Waypoint, Workload, WorkloadStatus,
};

fn golden(version: u32, name: &str, encoded: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/v{version}/{name}.bin"));
    if std::env::var_os("HOLDFAST_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, encoded).expect("the golden directory is writable");
    }
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A service that says no more than version 1 could.
fn old_service() -> Service {
    let port = |name: &str, port, target_port| ServicePort {
        name: name.to_owned(),
        port,
        target_port,
        ..ServicePort::default()
    };
    Service {
        name: "bookinfo/reviews".to_owned(),
        hostname: "reviews.bookinfo.svc.cluster.local".to_owned(),
        vips: vec!["10.96.0.20".parse().unwrap(), "fd00::20".parse().unwrap()],
        ports: vec![port("http", 80, 9080), port("", 443, 9443)],
        waypoint: Some(Waypoint { address: "10.1.2.3".parse().unwrap(), port: 15008 }),
        ..Service::default()
    }
}

/// One in which every field has a value that is not its default.
fn service() -> Service {
    let mut service = old_service();
    service.ports[1].node_port = 30_443;
    service.ports[1].protocol = Protocol::Udp;
    Service {
        external_addresses: vec!["192.0.2.20".parse().unwrap()],
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
        drain: Drain { mode: DrainMode::Reselect, timeout_seconds: 30 },
        accelerate: true,
        ..service
    }
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

fn old_node() -> Node {
    Node {
        name: "node-1".to_owned(),
        network: "net".to_owned(),
        cluster: "cluster1".to_owned(),
        locality: Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: String::new() },
        no_endpoints: NoEndpoints::Pass,
        ..Node::default()
    }
}

fn node() -> Node {
    Node {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        dns: Some(Dns { proxy: "127.0.0.53".parse().unwrap(), port: 5353 }),
        ..old_node()
    }
}

fn old_resources() -> [(&'static str, Resource); 3] {
    let (service, node) = (Resource::Service(old_service()), Resource::Node(old_node()));
    [("service", service), ("workload", workload()), ("node", node)]
}

fn resources() -> [(&'static str, Resource); 3] {
    [("service", Resource::Service(service())), ("workload", workload()), ("node", Resource::Node(node()))]
}

#[test]
fn resources_are_encoded_as_ever() {
    for (name, resource) in resources() {
        let encoded = encode_resource(&resource);
        let golden = golden(RESOURCE_VERSION, name, &encoded);
        assert_eq!(encoded, golden, "{name}: an encoded byte has moved: this needs a new schema version");
        assert_eq!(decode_resource(&golden).unwrap(), resource);
        assert_eq!(upcast_resource(&golden).unwrap(), None, "it is current");
        assert!(access_resource(&golden).is_ok());
    }
}

#[test]
fn resources_of_older_versions_are_upcast() {
    for (name, resource) in old_resources() {
        let mut golden = golden(1, name, &[]);
        for version in [1, 2_u32] {
            golden[..4].copy_from_slice(&version.to_le_bytes());
            assert_eq!(decode_resource(&golden).unwrap(), resource, "{name}");
            assert!(matches!(access_resource(&golden), Err(DecodeError::NotCurrent { found }) if found == version));
            let upcast = upcast_resource(&golden).unwrap().expect("it is old");
            assert_eq!(upcast, encode_resource(&resource));
        }
    }
}

fn record_of(transaction: Transaction) -> Record {
    Record {
        lsn: Lsn(812),
        transaction,
        wall_ns: 1_700_000_000_123_456_789,
        monotonic_ns: 123_456_789_012,
        boot_id: BootId(*b"0123456789abcdef"),
        previous_hash: RecordHash([0xab; 32]),
        received_wall_ns: None,
        client: None,
    }
}

fn transaction(resources: [(&str, Resource); 3]) -> Transaction {
    let upserts = resources.into_iter().map(|(_, resource)| Delta::Upsert(resource));
    let removal = Delta::Remove(ResourceKey::new(Kind::Workload, "cluster1//Pod/bookinfo/reviews-v0-xyz"));
    let origin = Origin { source: "istiod".to_owned(), incarnation: 7, version: Some(4711) };
    Transaction::push(origin, upserts.chain([removal]).collect())
}

/// A record that says no more than version 1 could.
fn bare_record() -> Record {
    record_of(transaction(old_resources()))
}

/// One that says no more than version 2 could.
fn old_record() -> Record {
    Record {
        received_wall_ns: Some(1_700_000_000_123_400_000),
        client: Some("uid=0 gid=0 pid=4711".to_owned()),
        ..bare_record()
    }
}

fn record() -> Record {
    let transaction = Transaction { cause: Cause::Sync, take_over: true, ..transaction(resources()) };
    Record { transaction, ..old_record() }
}

fn event_record() -> Record {
    let event = Event::Drained(Drained {
        service: "bookinfo/reviews".to_owned(),
        workload: "cluster1//Pod/bookinfo/reviews-v1-abc".to_owned(),
        mode: DrainMode::Terminate,
        closed: 7,
        reselected: 2,
    });
    let origin = Origin { source: "holdfast".to_owned(), incarnation: 0, version: None };
    record_of(Transaction { cause: Cause::Agent, event: Some(event), ..Transaction::push(origin, Vec::new()) })
}

fn lease_record() -> Record {
    let event = Some(Event::Leased(Lease { ttl_seconds: 30 }));
    record_of(Transaction { event, ..Transaction::push(bare_record().transaction.origin, Vec::new()) })
}

#[test]
fn records_are_encoded_as_ever() {
    for (version, name, record) in [
        (1, "record", bare_record()),
        (2, "record-bare", bare_record()),
        (2, "record", old_record()),
        (3, "record-bare", bare_record()),
        (3, "record", record()),
        (3, "record-event", event_record()),
        (3, "record-lease", lease_record()),
    ] {
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
fn a_record_that_is_stamped_later_is_the_same() {
    for stamped in [record(), event_record(), bare_record()] {
        let unstamped =
            Record { lsn: Lsn(0), previous_hash: RecordHash([0; 32]), wall_ns: 0, monotonic_ns: 0, ..stamped.clone() };
        let mut bytes = encode_record(&unstamped);
        let Record { lsn, previous_hash, wall_ns, monotonic_ns, .. } = stamped;
        stamp_record(&mut bytes, Link { lsn, previous_hash }, wall_ns, monotonic_ns);
        assert_eq!(bytes, encode_record(&stamped));
    }
}

#[test]
fn records_of_older_versions_are_upcast() {
    for (version, record) in [(1, bare_record()), (2, bare_record()), (2, old_record())] {
        let old = encode_record_in(version, record.clone()).unwrap();
        assert!(matches!(access_record(&old), Err(DecodeError::NotCurrent { found }) if found == version));
        let upcast = upcast_record(&old).unwrap().expect("it is old");
        assert_eq!(upcast, encode_record(&record));
        let archived = access_record(&upcast).unwrap();
        assert_eq!(archived.client.is_none(), record.client.is_none());
        assert!(archived.transaction.event.is_none() && !archived.transaction.take_over);
        assert_eq!(upcast_record(&upcast).unwrap(), None, "it is current");
    }
}

fn refused(version: u32, record: Record) -> &'static str {
    match encode_record_in(version, record) {
        Err(EncodeError::NoSuchField { version: named, field }) if named == version => field,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_an_older_version_cannot_say_is_refused_and_not_left_out() {
    assert_eq!(refused(1, old_record()), "received_wall_ns");
    assert_eq!(refused(1, Record { received_wall_ns: None, ..old_record() }), "client");
    let with = |change: fn(&mut Transaction)| {
        let mut record = bare_record();
        change(&mut record.transaction);
        record
    };
    let of_service = |change: fn(&mut Service)| {
        let mut service = old_service();
        change(&mut service);
        record_of(Transaction::push(bare_record().transaction.origin, vec![Delta::Upsert(Resource::Service(service))]))
    };
    let of_node = |change: fn(&mut Node)| {
        let mut node = old_node();
        change(&mut node);
        record_of(Transaction::push(bare_record().transaction.origin, vec![Delta::Upsert(Resource::Node(node))]))
    };
    for (field, record) in [
        ("cause", with(|transaction| transaction.cause = Cause::Expiry)),
        ("take_over", with(|transaction| transaction.take_over = true)),
        ("event", with(|transaction| transaction.event = event_record().transaction.event)),
        ("external_addresses", of_service(|old| old.external_addresses = service().external_addresses)),
        ("all_ports", of_service(|old| old.all_ports = true)),
        ("load_balancing but random", of_service(|old| old.load_balancing = LoadBalancing::of(Policy::Weighted))),
        ("no_endpoints of a service", of_service(|old| old.no_endpoints = Some(NoEndpoints::Refuse))),
        ("drain", of_service(|old| old.drain.mode = DrainMode::Terminate)),
        ("accelerate", of_service(|old| old.accelerate = true)),
        ("protocol but tcp", of_service(|old| old.ports[0].protocol = Protocol::Udp)),
        ("node_port", of_service(|old| old.ports[1].node_port = 30_000)),
        ("addresses of the node", of_node(|old| old.addresses = node().addresses)),
        ("dns", of_node(|old| old.dns = node().dns)),
    ] {
        for version in [1, 2] {
            assert_eq!(refused(version, record.clone()), field);
        }
        assert_eq!(decode_record(&encode_record(&record)).unwrap(), record);
    }
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
        assert_eq!(error.to_string(), "schema version 4 is not known here (newest known: 3): use a newer holdfast");
    }
    assert_eq!(upcast_record(&bytes).unwrap(), None);
    assert_eq!(upcast_resource(&bytes).unwrap(), None);
    assert_eq!(encode_record_in(newest, record()), Err(EncodeError::UnknownVersion { version: newest }));
    assert!(matches!(decode_record(&[2, 0, 0]), Err(DecodeError::TooShort { len: 3 })));
}

/// The manifest's form: short where nothing else is said, as old exports have it; long where something is.
#[test]
fn a_choice_of_backends_has_a_short_and_a_long_form() {
    let json = |text: &str| serde_json::from_str::<LoadBalancing>(text);
    for (text, policy) in [("random", Policy::Random), ("weighted", Policy::Weighted), ("maglev", Policy::Maglev)] {
        let short = format!("\"{text}\"");
        assert_eq!(json(&short).unwrap(), LoadBalancing::of(policy));
        assert_eq!(serde_json::to_string(&LoadBalancing::of(policy)).unwrap(), short);
        assert_eq!(json(&format!("{{\"policy\":{short}}}")).unwrap(), LoadBalancing::of(policy));
    }
    let long = r#"{"policy":"maglev","locality":{"mode":"failover","routingPreference":["network","region","zone","subzone","node","cluster"]},"affinity":{"timeoutSeconds":10800}}"#;
    assert_eq!(json(long).unwrap(), service().load_balancing);
    assert_eq!(serde_json::to_string(&service().load_balancing).unwrap(), long);
    let said = "maglev, failover (network, region, zone, subzone, node, cluster), affinity 10800 s";
    assert_eq!(service().load_balancing.to_string(), said);
    for wrong in [r#""fair""#, "7", r#"{"police":"random"}"#, r#"{"policy":"fair"}"#] {
        assert!(json(wrong).is_err(), "{wrong}");
    }
    for (_, resource) in resources().into_iter().chain(old_resources()) {
        let text = serde_json::to_string(&resource).unwrap();
        assert_eq!(serde_json::from_str::<Resource>(&text).unwrap(), resource);
    }
}
