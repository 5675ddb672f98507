//! What is not admitted: each refusal names what and where, and leaves the model as it was.

use applier::{Model, plan};
use expect_test::{Expect, expect};
use storage_schema::map::Capacities;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{
    Backing, Kind, Node, PortOverride, Protocol, Resource, ResourceKey, Service, ServicePort, Workload,
};

const CAPACITIES: Capacities = Capacities { frontends: 4, services: 4, backends: 4, endpoints: 4 };

/// Pushes `deltas` onto a service `shop/web` with one workload, and expects this refusal.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "that is how expectations are written")]
fn refused(deltas: Vec<Delta>, expected: Expect) {
    let mut model = Model::default();
    model.admit(&transaction(shop()), &CAPACITIES).expect("the shop fits");
    let before = (format!("{:?}", plan::everything(&model)), model.usage());
    let rejection = model.admit(&transaction(deltas), &CAPACITIES).expect_err("it should be refused");
    expected.assert_eq(&rejection.to_string());
    assert_eq!(before, (format!("{:?}", plan::everything(&model)), model.usage()), "a refusal changes nothing");
}

fn shop() -> Vec<Delta> {
    vec![service("shop/web", "10.0.0.1"), workload("web-1", "shop/web"), node("here")]
}

fn transaction(deltas: Vec<Delta>) -> Transaction {
    Transaction { origin: Origin { source: "test".to_owned(), incarnation: 1, version: None }, deltas }
}

fn service(name: &str, vip: &str) -> Delta {
    let port = ServicePort { name: String::new(), port: 80, target_port: 8080, protocol: Protocol::Tcp };
    let vips = vec![vip.parse().expect("an address")];
    Delta::Upsert(Resource::Service(Service { name: name.to_owned(), vips, ports: vec![port], ..Service::default() }))
}

fn workload(uid: &str, service: &str) -> Delta {
    Delta::Upsert(Resource::Workload(Workload {
        uid: uid.to_owned(),
        addresses: vec!["10.1.0.1".parse().expect("an address")],
        services: vec![Backing { service: service.to_owned(), ports: Vec::new() }],
        ..Workload::default()
    }))
}

fn node(name: &str) -> Delta {
    Delta::Upsert(Resource::Node(Node { name: name.to_owned(), ..Node::default() }))
}

fn remove(kind: Kind, name: &str) -> Delta {
    Delta::Remove(ResourceKey::new(kind, name))
}

#[test]
fn an_empty_transaction() {
    refused(vec![], expect!["the transaction is empty: give it at least one resource"]);
}

#[test]
fn fields_that_are_wrong_by_themselves() {
    refused(vec![service("web", "10.0.0.2")], expect!["Service web: name: `web` is not of the form namespace/name"]);
    refused(
        vec![service("shop/db", "::ffff:10.0.0.2")],
        expect!["Service shop/db: vips[0]: ::ffff:10.0.0.2 is an IPv4 address: write 10.0.0.2"],
    );
    refused(
        vec![service("shop/db", "0.0.0.0")],
        expect!["Service shop/db: vips[0]: 0.0.0.0 is not the address of one host"],
    );
    refused(
        vec![workload("a b", "shop/web")],
        expect!["Workload a b: uid: holds ' ': names have no spaces or control characters"],
    );
    let mut twice = Service { name: "shop/db".to_owned(), ..Service::default() };
    let port = ServicePort { name: String::new(), port: 80, target_port: 0, protocol: Protocol::Tcp };
    twice.ports = vec![port];
    refused(
        vec![Delta::Upsert(Resource::Service(twice))],
        expect!["Service shop/db: ports[0].targetPort: 0 is not a port: use 1 to 65535"],
    );
}

#[test]
fn references_that_lead_nowhere() {
    refused(
        vec![workload("db-1", "shop/db")],
        expect![
            "Workload db-1: services[0].service: there is no Service shop/db: push it before, or in the same transaction"
        ],
    );
    refused(
        vec![remove(Kind::Service, "shop/web")],
        expect![
            "Service shop/web: Workload web-1 backs it: remove or change that one before, or in the same transaction"
        ],
    );
    let ports = vec![PortOverride { service_port: 81, target_port: 8081 }];
    let services = vec![Backing { service: "shop/web".to_owned(), ports }];
    refused(
        vec![Delta::Upsert(Resource::Workload(Workload { uid: "web-2".to_owned(), services, ..Workload::default() }))],
        expect!["Workload web-2: services[0].ports[0].servicePort: Service shop/web has no port 81"],
    );
}

#[test]
fn what_belongs_to_another() {
    refused(
        vec![service("shop/db", "10.0.0.1")],
        expect!["Service shop/db: 10.0.0.1 port 80 belongs to Service shop/web"],
    );
    refused(
        vec![node("there")],
        expect!["Node there: this node is configured as here: remove that one before, or in the same transaction"],
    );
}

#[test]
fn more_than_there_is_room_for() {
    refused(
        (0..4).map(|number| workload(&format!("more-{number}"), "shop/web")).collect(),
        expect![
            "the transaction needs 5 entries of backends, whose capacity is 4: raise capacities.backends and restart the agent"
        ],
    );
}

#[test]
fn destinations_change_hands_within_one_transaction() {
    let mut model = Model::default();
    model.admit(&transaction(shop()), &CAPACITIES).expect("the shop fits");
    let swap = vec![service("shop/db", "10.0.0.1"), service("shop/web", "10.0.0.2")];
    model.admit(&transaction(swap), &CAPACITIES).expect("in the end each destination has one owner");
    model
        .admit(&transaction(vec![remove(Kind::Workload, "web-1"), remove(Kind::Service, "shop/web")]), &CAPACITIES)
        .expect("nothing is left that refers to the service");
    assert_eq!(model.usage().backends, 0);
}
