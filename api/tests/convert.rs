//! Messages and the model: what goes there comes back, and what has no meaning is refused field by field.

mod sample;

use api::convert::{decode_transaction, encode_transaction};
use api::proto;
use api::rejection::Rejection;
use expect_test::{Expect, expect};
use sample::everything;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{
    Drain, DrainMode, LoadBalancing, LocalityMode, LocalityPreference, LocalityScope, NoEndpoints, Policy, Protocol,
    Resource, Service, ServicePort,
};

#[test]
fn every_field_survives_the_round_trip() {
    let transaction = everything();
    assert_eq!(decode_transaction(Some(encode_transaction(&transaction))), Ok(transaction));
}

fn refused(message: Option<proto::Transaction>, expected: &Expect) {
    let Err(Rejection::Refused { reason, violations }) = decode_transaction(message) else { panic!("accepted") };
    let lines: Vec<String> = violations.iter().map(|violation| format!("{violation}\n")).collect();
    let more = if violations.more() > 0 { format!("and {} more\n", violations.more()) } else { String::new() };
    expected.assert_eq(&format!("{reason:?}\n{}{more}", lines.concat()));
}

/// Decodes a good transaction in which something was spoilt.
fn spoilt(spoil: impl FnOnce(&mut proto::Transaction), expected: &Expect) {
    let mut message = encode_transaction(&everything());
    spoil(&mut message);
    refused(Some(message), expected);
}

fn service(message: &mut proto::Transaction) -> &mut proto::Service {
    match message.deltas[0].change.as_mut().unwrap() {
        proto::delta::Change::Upsert(proto::Resource {
            resource: Some(proto::resource::Resource::Service(service)),
        }) => service,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_missing_transaction_is_named() {
    refused(
        None,
        &expect![[r"
            Invalid
            transaction: is required
        "]],
    );
}

#[test]
fn an_empty_transaction_names_all_that_is_missing() {
    refused(
        Some(proto::Transaction::default()),
        &expect![[r"
            Invalid
            transaction.origin: is required
            transaction.deltas: must hold at least one delta
        "]],
    );
}

#[test]
fn every_bad_field_of_a_resource_is_named() {
    spoilt(
        |message| {
            let service = service(message);
            service.name = String::new();
            service.hostname = "a\0b".to_owned();
            service.vips[1] = "10.96.0.256".to_owned();
            service.ports[0].port = 0;
            service.ports[0].target_port = 65_536;
            service.ports[0].protocol = 99;
            service.load_balancing = -1;
            service.waypoint.as_mut().unwrap().address = "é".repeat(100);
            service.waypoint.as_mut().unwrap().port = u32::MAX;
            message.deltas[3].change = None;
        },
        &expect![[r#"
            Invalid
            transaction.deltas[0].upsert.service.name: is required
            transaction.deltas[0].upsert.service.hostname: must not contain control characters (found '\0')
            transaction.deltas[0].upsert.service.vips[1]: must be an IPv4 or IPv6 address, not "10.96.0.256"
            transaction.deltas[0].upsert.service.ports[0].port: must be 1 to 65535, not 0
            transaction.deltas[0].upsert.service.ports[0].target_port: must be 1 to 65535, not 65536
            transaction.deltas[0].upsert.service.ports[0].protocol: 99 is not a value that this agent knows
            transaction.deltas[0].upsert.service.load_balancing: -1 is not a value that this agent knows
            transaction.deltas[0].upsert.service.waypoint.address: must be an IPv4 or IPv6 address, not "éééééééééééééééééééééééééééééééé"
            and 2 more
        "#]],
    );
}

#[test]
fn text_is_bounded() {
    spoilt(
        |message| service(message).name = "x".repeat(1025),
        &expect![[r"
            Invalid
            transaction.deltas[0].upsert.service.name: 1025 bytes are too long: at most 1024
        "]],
    );
}

#[test]
fn the_number_of_deltas_is_bounded() {
    spoilt(
        |message| message.deltas = vec![proto::Delta::default(); 65_537],
        &expect![[r"
            Invalid
            transaction.deltas: 65537 deltas are too many: at most 65536
        "]],
    );
}

#[test]
fn a_removal_names_its_kind_and_name() {
    spoilt(
        |message| {
            message.deltas[3].change = Some(proto::delta::Change::Remove(proto::ResourceKey::default()));
            message.deltas[2].change = Some(proto::delta::Change::Upsert(proto::Resource::default()));
        },
        &expect![[r"
            Invalid
            transaction.deltas[2].upsert: must hold a service, a workload or a node
            transaction.deltas[3].remove.kind: is required
            transaction.deltas[3].remove.name: is required
        "]],
    );
}

#[test]
fn every_value_of_every_choice_survives_the_round_trip() {
    let mut services = vec![Service::default()];
    for policy in [Policy::Random, Policy::Weighted, Policy::Maglev] {
        for mode in [LocalityMode::None, LocalityMode::Strict, LocalityMode::Failover] {
            let locality = LocalityPreference { mode, routing_preference: vec![LocalityScope::Zone] };
            let load_balancing = LoadBalancing { policy, locality, affinity: None };
            services.push(Service { load_balancing, ..Service::default() });
        }
    }
    for mode in [DrainMode::Keep, DrainMode::Graceful, DrainMode::Terminate, DrainMode::Reselect] {
        services.push(Service { drain: Drain { mode, timeout_seconds: 0 }, ..Service::default() });
    }
    for no_endpoints in [None, Some(NoEndpoints::Refuse), Some(NoEndpoints::Pass)] {
        services.push(Service { no_endpoints, ..Service::default() });
    }
    for protocol in Protocol::ALL {
        let port = ServicePort { port: 53, target_port: 53, protocol, ..ServicePort::default() };
        services.push(Service { ports: vec![port], ..Service::default() });
    }
    let deltas = (0..).zip(services).map(|(number, service)| {
        Delta::Upsert(Resource::Service(Service { name: format!("shop/svc-{number}"), ..service }))
    });
    let origin = Origin { source: "istiod".to_owned(), incarnation: 3, version: None };
    let transaction = Transaction::push(origin, deltas.collect());
    assert_eq!(decode_transaction(Some(encode_transaction(&transaction))), Ok(transaction));
}

#[test]
fn every_bad_choice_is_named() {
    spoilt(
        |message| {
            let service = service(message);
            let locality = service.locality_preference.as_mut().unwrap();
            locality.mode = 9;
            locality.routing_preference = vec![1, 0, 99];
            service.ports[0].node_port = 65_536;
            service.external_addresses[0] = "everywhere".to_owned();
            service.no_endpoints = 3;
            service.drain.as_mut().unwrap().mode = 7;
            let Some(proto::delta::Change::Upsert(proto::Resource {
                resource: Some(proto::resource::Resource::Node(node)),
            })) = message.deltas[2].change.as_mut()
            else {
                panic!("the third delta is a node")
            };
            node.dns.as_mut().unwrap().port = Some(0);
        },
        &expect![[r#"
            Invalid
            transaction.deltas[0].upsert.service.ports[0].node_port: must be 1 to 65535, not 65536
            transaction.deltas[0].upsert.service.locality_preference.mode: 9 is not a value that this agent knows
            transaction.deltas[0].upsert.service.locality_preference.routing_preference[1]: is required
            transaction.deltas[0].upsert.service.locality_preference.routing_preference[2]: 99 is not a value that this agent knows
            transaction.deltas[0].upsert.service.external_addresses[0]: must be an IPv4 or IPv6 address, not "everywhere"
            transaction.deltas[0].upsert.service.no_endpoints: 3 is not a value that this agent knows
            transaction.deltas[0].upsert.service.drain.mode: 7 is not a value that this agent knows
            transaction.deltas[2].upsert.node.dns.port: must be 1 to 65535, not 0
        "#]],
    );
}
