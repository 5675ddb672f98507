//! What is not admitted: each refusal names what and where, and leaves the model as it was.

use applier::entry::Changes;
use applier::{Model, Rejection, plan};
use expect_test::{Expect, expect};
use storage_schema::map::Capacities;
use storage_schema::record::{Cause, Delta, Drained, Event, Origin, Transaction};
use storage_schema::resource::{
    Affinity, Backing, Dns, Drain, DrainMode, Kind, LocalityMode, LocalityScope, Node, PortOverride, Resource,
    ResourceKey, Service, ServicePort, Waypoint, Workload,
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
    Transaction::push(Origin { source: "test".to_owned(), incarnation: 1, version: None }, deltas)
}

fn service(name: &str, vip: &str) -> Delta {
    let port = ServicePort { port: 80, target_port: 8080, ..ServicePort::default() };
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

/// A workload that backs nothing and has a waypoint.
fn redirected(uid: &str, address: &str) -> Delta {
    Delta::Upsert(Resource::Workload(Workload {
        uid: uid.to_owned(),
        addresses: vec![address.parse().expect("an address")],
        waypoint: Some(Waypoint { address: "10.2.0.1".parse().expect("an address"), port: 15_008 }),
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
    let port = ServicePort { port: 80, target_port: 0, ..ServicePort::default() };
    twice.ports = vec![port];
    refused(
        vec![Delta::Upsert(Resource::Service(twice))],
        expect!["Service shop/db: ports[0].targetPort: 0 is not a port: use 1 to 65535"],
    );
}

/// Refuses a service of which one thing is wrong.
#[track_caller]
fn refused_service(spoil: impl FnOnce(&mut Service), expected: Expect) {
    let mut service = Service { name: "shop/db".to_owned(), ..Service::default() };
    spoil(&mut service);
    refused(vec![Delta::Upsert(Resource::Service(service))], expected);
}

#[test]
fn choices_that_have_no_meaning() {
    refused_service(
        |service| service.load_balancing.locality.mode = LocalityMode::Strict,
        expect!["Service shop/db: loadBalancing.locality.routingPreference: is empty: say what mode strict compares"],
    );
    refused_service(
        |service| service.load_balancing.locality.routing_preference = vec![LocalityScope::Zone],
        expect![
            "Service shop/db: loadBalancing.locality.routingPreference: has no meaning with mode none: say strict or failover"
        ],
    );
    refused_service(
        |service| {
            service.load_balancing.locality.mode = LocalityMode::Failover;
            service.load_balancing.locality.routing_preference = vec![LocalityScope::Zone; 2];
        },
        expect!["Service shop/db: loadBalancing.locality.routingPreference[1]: zone is there twice"],
    );
    refused_service(
        |service| service.load_balancing.affinity = Some(Affinity { timeout_seconds: 0 }),
        expect!["Service shop/db: loadBalancing.affinity.timeoutSeconds: must be 1 to 86400, not 0"],
    );
    refused_service(
        |service| service.drain = Drain { mode: DrainMode::Graceful, timeout_seconds: 0 },
        expect!["Service shop/db: drain.timeoutSeconds: must be 1 to 86400, not 0"],
    );
    refused_service(
        |service| service.drain = Drain { mode: DrainMode::Terminate, timeout_seconds: 86_401 },
        expect!["Service shop/db: drain.timeoutSeconds: must be 0 to 86400, not 86401"],
    );
    refused_service(
        |service| service.drain = Drain { mode: DrainMode::Keep, timeout_seconds: 1 },
        expect![
            "Service shop/db: drain.timeoutSeconds: has no meaning with mode keep: say graceful, terminate or reselect"
        ],
    );
    refused_service(
        |service| {
            let port = ServicePort { port: 80, target_port: 80, node_port: 30_080, ..ServicePort::default() };
            service.ports = vec![port.clone(), ServicePort { port: 81, ..port }];
        },
        expect!["Service shop/db: ports[1].nodePort: 30080/tcp is there twice"],
    );
    refused_service(
        |service| {
            service.vips = vec!["10.0.0.9".parse().expect("an address")];
            service.external_addresses = service.vips.clone();
        },
        expect!["Service shop/db: externalAddresses[0]: 10.0.0.9 is one of the vips"],
    );
    let dns = Some(Dns { proxy: "0.0.0.0".parse().expect("an address"), port: 53 });
    refused(
        vec![Delta::Upsert(Resource::Node(Node { name: "here".to_owned(), dns, ..Node::default() }))],
        expect!["Node here: dns.proxy: 0.0.0.0 is not the address of one host"],
    );
}

#[test]
fn an_event_changes_nothing_and_comes_alone() {
    let drained = || {
        Event::Drained(Drained {
            service: "shop/web".to_owned(),
            workload: "web-1".to_owned(),
            mode: DrainMode::Terminate,
            closed: 1,
            reselected: 0,
        })
    };
    let mut model = Model::default();
    model.admit(&transaction(shop()), &CAPACITIES).expect("the shop fits");
    let event = Transaction { cause: Cause::Agent, event: Some(drained()), ..transaction(vec![]) };
    let admitted = model.admit(&event, &CAPACITIES).expect("an event fits");
    assert_eq!(admitted.changes, Changes::default());
    let both = Transaction { event: Some(drained()), ..transaction(vec![node("here")]) };
    let rejection = model.admit(&both, &CAPACITIES).expect_err("it should be refused");
    expect!["the transaction tells of an event and has deltas as well: an event changes nothing"]
        .assert_eq(&rejection.to_string());
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
        vec![redirected("web-2", "10.1.0.2"), redirected("web-3", "10.1.0.2")],
        expect!["Workload web-2: 10.1.0.2 on every port belongs to Workload web-3"],
    );
    let Delta::Upsert(Resource::Service(any_port)) = service("shop/db", "10.1.0.2") else { unreachable!() };
    let any_port = Service { ports: Vec::new(), all_ports: true, ..any_port };
    refused(
        vec![redirected("web-2", "10.1.0.2"), Delta::Upsert(Resource::Service(any_port))],
        expect!["Workload web-2: 10.1.0.2 on every port belongs to Service shop/db"],
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

#[test]
fn addresses_of_workloads_change_hands_within_one_transaction() {
    let mut model = Model::default();
    model.admit(&transaction(vec![redirected("a", "10.1.0.1"), redirected("b", "10.1.0.2")]), &CAPACITIES).unwrap();
    assert_eq!((model.usage().frontends, model.usage().services, model.usage().backends), (2, 2, 2));
    let swap = vec![redirected("b", "10.1.0.1"), redirected("a", "10.1.0.2")];
    let changes = model.admit(&transaction(swap), &CAPACITIES).expect("each address has one owner").changes;
    assert_eq!(changes.frontends, plan::everything(&model).frontends);
    // A service's own ports come before every port of the workload.
    model.admit(&transaction(vec![service("shop/web", "10.1.0.1")]), &CAPACITIES).expect("another destination");
    assert_eq!(model.usage().frontends, 3);
    let gone = vec![remove(Kind::Workload, "a"), remove(Kind::Workload, "b"), remove(Kind::Service, "shop/web")];
    model.admit(&transaction(gone), &CAPACITIES).expect("nothing refers to them");
    assert_eq!(model.usage(), Model::default().usage());
}

fn by(source: &str, deltas: Vec<Delta>) -> Transaction {
    Transaction::push(Origin { source: source.to_owned(), incarnation: 1, version: None }, deltas)
}

#[test]
fn a_resource_belongs_to_the_source_that_changed_it_last() {
    let mut model = Model::default();
    model.admit(&by("a", shop()), &CAPACITIES).expect("the shop fits");
    let web = ResourceKey::new(Kind::Service, "shop/web");
    assert_eq!(model.owner(&web), Some("a"));
    let touching = by("b", vec![remove(Kind::Workload, "web-1"), remove(Kind::Service, "shop/none")]);
    let refused = model.admit(&touching, &CAPACITIES).expect_err("it is another's");
    let Rejection::Owned(foreign) = &refused else { panic!("{refused:?}") };
    assert_eq!(foreign.iter().map(|foreign| (foreign.index, &*foreign.owner)).collect::<Vec<_>>(), [(0, "a")]);
    assert_eq!(
        refused.to_string(),
        "Workload web-1 belongs to source `a`: take it over explicitly, or have it removed there"
    );
    let taking = Transaction { take_over: true, ..by("b", shop()) };
    let admitted = model.admit(&taking, &CAPACITIES).expect("it says that it takes over");
    assert_eq!((model.owner(&web), model.owned().keys().copied().collect::<Vec<_>>()), (Some("b"), vec!["b"]));
    model.revert(admitted);
    assert_eq!(model.owner(&web), Some("a"), "who takes back a transaction gives back what it took");
}

#[test]
fn a_sync_removes_what_its_source_owns_and_does_not_name() {
    let mut model = Model::default();
    model.admit(&by("a", shop()), &CAPACITIES).expect("the shop fits");
    let of_b = Service { name: "shop/of-b".to_owned(), ..Service::default() };
    model.admit(&by("b", vec![Delta::Upsert(Resource::Service(of_b))]), &CAPACITIES).expect("it fits");
    let kept = shop().into_iter().next().expect("the shop has something");
    let mut sync = Transaction { cause: Cause::Sync, ..by("a", vec![kept.clone()]) };
    model.complete_sync(&mut sync);
    assert_eq!(sync.deltas.len(), shop().len(), "what is named stays, all else goes");
    assert!(sync.deltas[1..].iter().all(|delta| matches!(delta, Delta::Remove(key) if *key != kept.key())));
    model.admit(&sync, &CAPACITIES).expect("it fits");
    assert_eq!(
        model.owned().into_iter().map(|(of, counts)| (of, counts.iter().sum::<usize>())).collect::<Vec<_>>(),
        [("a", 1), ("b", 1)]
    );
    // Nothing is a state as well.
    let mut nothing = Transaction { cause: Cause::Sync, ..by("a", Vec::new()) };
    model.complete_sync(&mut nothing);
    model.admit(&nothing, &CAPACITIES).expect("it fits");
    let mut nothing = Transaction { cause: Cause::Sync, ..by("a", Vec::new()) };
    model.complete_sync(&mut nothing);
    assert_eq!(nothing.deltas, []);
    model.admit(&nothing, &CAPACITIES).expect("it fits");
    assert!(matches!(model.admit(&by("a", Vec::new()), &CAPACITIES), Err(Rejection::Empty)));
}

#[test]
fn an_expiry_removes_what_its_source_owns_but_what_others_need() {
    let mut model = Model::default();
    model.admit(&by("a", shop()), &CAPACITIES).expect("the shop fits");
    let own = Service { name: "shop/own".to_owned(), ..Service::default() };
    model.admit(&by("a", vec![Delta::Upsert(Resource::Service(own))]), &CAPACITIES).expect("it fits");
    model.admit(&by("b", vec![workload("web-2", "shop/web")]), &CAPACITIES).expect("it fits");
    assert_eq!(model.expiry("nobody"), []);
    let everything = model.expiry("a");
    let web = ResourceKey::new(Kind::Service, "shop/web");
    assert!(!everything.contains(&Delta::Remove(web.clone())), "b's workload backs it: {everything:?}");
    let expiry = |deltas| Transaction { cause: Cause::Expiry, ..by("a", deltas) };
    model.admit(&expiry(everything), &CAPACITIES).expect("nothing is left without what it needs");
    assert_eq!(model.owned().remove("a").map(|counts| counts.iter().sum()), Some(1));
    assert_eq!(model.expiry("a"), []);
    model.admit(&by("b", vec![remove(Kind::Workload, "web-2")]), &CAPACITIES).expect("it is b's");
    assert_eq!(model.expiry("a"), [Delta::Remove(web)]);
}
