//! Where connections go, and who is named for it.

mod world;

use std::net::SocketAddr;

use applier::recovery::Identity;
use applier::tables::{MemoryTables, View};
use applier::{Applier, plan};
use decision::Verdict;
use replay::{Change, Connection, Moment, Outcome, ReplayError, Why};
use storage_schema::id::{BootId, Lsn, ResourceId};
use storage_schema::map::{Capacities, FrontendKey};
use storage_schema::record::Delta;
use storage_schema::resource::{
    Dns, Kind, NoEndpoints, Node, Resource, ResourceKey, Service, Waypoint, Workload, WorkloadStatus,
};
use world::{World, service, upsert, workload};

const TCP: u8 = 6;
const HEALTHY: WorkloadStatus = WorkloadStatus::Healthy;

fn to(text: &str) -> Connection {
    Connection { from: None, to: text.parse().unwrap(), protocol: TCP, epoch: None, entropy: None }
}

fn why(world: &World, connection: &Connection) -> Why {
    world.past().why(connection, Moment::Now).unwrap()
}

fn named(why: &Why, step: &str) -> u64 {
    why.steps.iter().find(|found| found.step == step).and_then(|found| found.cause.as_ref()).unwrap().lsn.0
}

/// A workload with a field changed on which nothing depends.
fn renamed(mut resource: Resource, name: &str) -> Delta {
    let Resource::Workload(workload) = &mut resource else { unreachable!() };
    name.clone_into(&mut workload.name);
    upsert(resource)
}

#[test]
fn each_step_and_candidate_names_the_record_behind_it() {
    let mut world = World::new();
    world.push("istiod", vec![upsert(service("shop/a", 1))]);
    world.push("istiod", vec![upsert(workload("w-1", 1, HEALTHY, &["shop/a"]))]);
    world.push("istiod", vec![upsert(workload("w-2", 2, HEALTHY, &["shop/a"]))]);
    world.push("istiod", vec![upsert(workload("w-3", 3, HEALTHY, &["shop/a"]))]);
    world.push("probe", vec![upsert(workload("w-3", 3, WorkloadStatus::Unhealthy, &["shop/a"]))]);
    // Later changes that are not what the connection stands on.
    world.push("labels", vec![renamed(workload("w-3", 3, WorkloadStatus::Unhealthy, &["shop/a"]), "x")]);
    world.push("labels", vec![renamed(workload("w-2", 2, HEALTHY, &["shop/a"]), "y")]);

    let found = why(&world, &Connection { from: Some("127.1.0.2".parse().unwrap()), ..to("10.96.0.1:80") });
    assert_eq!((found.lsn, found.outcome), (Lsn(7), Outcome::Forwarded));
    assert_eq!((named(&found, "client"), named(&found, "frontend"), named(&found, "policy")), (3, 1, 1));
    let candidates: Vec<(&str, &str, u64)> =
        found.candidates.iter().map(|c| (&*c.workload, &*c.address, c.cause.lsn.0)).collect();
    assert_eq!(candidates, [("w-1", "127.1.0.1:8080", 2), ("w-2", "127.1.0.2:8080", 3)]);
    assert!(found.candidates.iter().all(|candidate| (candidate.share - 0.5).abs() < 0.001), "{found:?}");
    let [excluded] = found.excluded.as_slice() else { panic!("{found:?}") };
    assert_eq!((&*excluded.workload, &*excluded.reason, excluded.cause.lsn), ("w-3", "it is unhealthy", Lsn(5)));
    assert_eq!(excluded.cause.source.as_deref(), Some("probe"));

    // The same question of an earlier moment has the earlier answer.
    let before = world.past().why(&to("10.96.0.1:80"), Moment::Lsn(Lsn(4))).unwrap();
    assert_eq!((before.candidates.len(), before.excluded.len()), (3, 0));
    let empty = world.past().why(&to("10.96.0.1:80"), Moment::Lsn(Lsn(0))).unwrap();
    assert_eq!((empty.outcome, empty.steps.len()), (Outcome::Passed, 1));
}

#[test]
fn who_has_nobody_is_refused_or_passed_as_the_node_says() {
    let mut world = World::new();
    world.push("istiod", vec![upsert(service("shop/a", 1))]);
    let refused = why(&world, &to("10.96.0.1:80"));
    assert_eq!((refused.outcome, refused.candidates.len()), (Outcome::Refused, 0));
    let node = Node { name: "n".into(), no_endpoints: NoEndpoints::Pass, ..Node::default() };
    world.push("me", vec![upsert(Resource::Node(node))]);
    let passed = why(&world, &to("10.96.0.1:80"));
    assert_eq!((passed.outcome, named(&passed, "no backend")), (Outcome::Passed, 2));

    world.push("istiod", vec![upsert(workload("w-1", 1, WorkloadStatus::Terminating, &["shop/a"]))]);
    let last = why(&world, &to("10.96.0.1:80"));
    assert_eq!(last.candidates[0].status, "terminating", "better than none");
    world.push("istiod", vec![upsert(workload("w-2", 2, HEALTHY, &["shop/a"]))]);
    assert_eq!(why(&world, &to("10.96.0.1:80")).excluded[0].reason, "it is terminating, and there are others");

    let other_port = why(&world, &to("10.96.0.1:81"));
    assert_eq!((other_port.outcome, named(&other_port, "frontend")), (Outcome::Passed, 1));
    assert!(other_port.steps[0].says.contains("no such port"), "{other_port:?}");
    assert!(why(&world, &to("10.96.0.9:80")).steps[0].says.contains("no service's"));
    assert_eq!(why(&world, &to("[::ffff:10.96.0.1]:80")).outcome, Outcome::Forwarded, "mapped is IPv4");
}

#[test]
fn what_looks_names_up_goes_to_the_nodes_proxy() {
    let mut world = World::new();
    let Resource::Service(mut resolver) = service("dns/core", 1) else { unreachable!() };
    resolver.ports[0].port = 53;
    world.push("istiod", vec![upsert(Resource::Service(resolver))]);
    world.push("istiod", vec![upsert(workload("w-1", 1, HEALTHY, &["dns/core"]))]);
    let node = |dns| Resource::Node(Node { name: "n".into(), dns, ..Node::default() });
    world.push("me", vec![upsert(node(None))]);
    assert_eq!(why(&world, &to("10.96.0.1:53")).candidates.len(), 1, "no proxy: a service as any");

    world.push("me", vec![upsert(node(Some(Dns { proxy: "10.0.0.53".parse().unwrap(), port: 5353 })))]);
    for dialled in ["10.96.0.1:53", "192.0.2.1:53"] {
        let found = why(&world, &Connection { entropy: Some(7), ..to(dialled) });
        assert_eq!((found.outcome, found.candidates.len(), named(&found, "dns")), (Outcome::Forwarded, 0, 4));
        let choice = found.choice.expect("a word was given");
        assert_eq!((choice.workload, &*choice.address), (None, "10.0.0.53:5353"));
    }
    for dialled in ["10.96.0.1:54", "[2001:db8::1]:53"] {
        assert_eq!(why(&world, &to(dialled)).outcome, Outcome::Passed, "{dialled}");
    }
}

/// The decision over the few resources that a connection depends on is that over the whole state, for every word.
#[test]
fn a_choice_is_made_again_as_the_whole_state_makes_it() {
    let mut world = World::new();
    for number in 1..=20u8 {
        let name = format!("shop/s{number}");
        let mut deltas = vec![upsert(service(&name, number))];
        for backend in 0..number % 6 {
            let status = if backend == 4 { WorkloadStatus::Unhealthy } else { HEALTHY };
            let both = [&*name, "shop/s1"];
            deltas.push(upsert(workload(&format!("w-{number}-{backend}"), number * 8 + backend, status, &both)));
        }
        world.push("istiod", deltas);
    }
    for lsn in [3, 11, 20] {
        let whole = whole(&world, Lsn(lsn));
        for number in 1..=20u8 {
            let connection = to(&format!("10.96.0.{number}:80"));
            let key = FrontendKey::new(connection.to.ip(), 80, TCP);
            for step in 0..5u32 {
                let entropy = step.wrapping_mul(0x9e37_79b1) ^ u32::from(number);
                let asked = Connection { epoch: Some(Lsn(lsn)), entropy: Some(entropy), ..connection };
                let choice = world.past().why(&asked, Moment::Now).unwrap().choice.unwrap();
                match decision::decide(&View(whole.tables()), lsn, &key, entropy) {
                    Verdict::Forward { backend, .. } => {
                        let uid = choice.workload.expect("a backend");
                        assert_eq!(ResourceId::named(Kind::Workload, &uid).0, backend);
                    }
                    Verdict::Refuse { .. } => assert_eq!(choice.address, "refused"),
                    Verdict::Pass => assert_eq!(choice.address.parse::<SocketAddr>().unwrap(), connection.to),
                }
            }
        }
    }
}

fn whole(world: &World, lsn: Lsn) -> Applier<MemoryTables> {
    let model = applier::start::read_past(&world.reader(), lsn).unwrap();
    let mut everything = plan::everything(&model);
    let identity = Identity { store_id: world.journal.store_id(), programs_hash: [0; 32], boot_id: BootId::default() };
    let mut applier = Applier::create(MemoryTables::new(Capacities::default()), &identity);
    applier.reconcile(&mut everything, world.reader().state_at(lsn).unwrap().durable_head()).unwrap();
    applier
}

/// Connections go to a waypoint, and what that makes goes on from there.
#[test]
fn a_waypoint_and_the_record_that_set_it_are_named() {
    let mut world = World::new();
    world.push("istiod", vec![upsert(service("shop/a", 1)), upsert(workload("w-1", 1, HEALTHY, &["shop/a"]))]);
    let waypoint = Some(Waypoint { address: "10.2.0.1".parse().unwrap(), port: 15_008 });
    let Resource::Service(plain) = service("shop/a", 1) else { unreachable!() };
    world.push("istiod", vec![upsert(Resource::Service(Service { waypoint: waypoint.clone(), ..plain }))]);
    let Resource::Workload(plain) = workload("w-1", 1, HEALTHY, &["shop/a"]) else { unreachable!() };
    world.push("istiod", vec![upsert(Resource::Workload(Workload { waypoint, ..plain }))]);
    let steps = |why: &Why| why.steps.iter().map(|step| step.step.clone()).collect::<Vec<_>>();

    let redirected = why(&world, &Connection { entropy: Some(0), ..to("10.96.0.1:80") });
    assert_eq!(
        (redirected.outcome, steps(&redirected)),
        (Outcome::Forwarded, vec!["frontend".into(), "waypoint".into()])
    );
    assert_eq!((named(&redirected, "waypoint"), redirected.candidates.len(), redirected.excluded.len()), (2, 0, 0));
    assert!(redirected.steps[1].says.contains("10.2.0.1:15008"), "{redirected:?}");
    assert_eq!(redirected.choice.unwrap().address, "the waypoint 10.2.0.1:15008");
    let of_waypoint = why(&world, &Connection { from: Some("10.2.0.1".parse().unwrap()), ..to("10.96.0.1:80") });
    assert_eq!((&*of_waypoint.candidates[0].workload, of_waypoint.candidates[0].share), ("w-1", 1.0));
    assert!(of_waypoint.steps.iter().any(|step| step.says.contains("the client is its waypoint")), "{of_waypoint:?}");

    let direct = why(&world, &to("127.1.0.1:9"));
    assert_eq!((direct.outcome, named(&direct, "frontend"), named(&direct, "waypoint")), (Outcome::Forwarded, 3, 3));
    assert!(direct.steps[0].says.contains("is Workload w-1 itself"), "{direct:?}");
    let of_waypoint = why(&world, &Connection { from: Some("10.2.0.1".parse().unwrap()), ..to("127.1.0.1:9") });
    assert_eq!((of_waypoint.outcome, of_waypoint.steps.last().unwrap().step.as_str()), (Outcome::Passed, "waypoint"));
    let udp = why(&world, &Connection { protocol: 17, ..to("127.1.0.1:9") });
    assert_eq!(udp.outcome, Outcome::Passed);
}

/// A connection that was made with an epoch: what had been said by then and was not visible yet, and what came after.
#[test]
fn news_that_came_too_late_is_named() {
    let mut world = World::new();
    world.push("istiod", vec![upsert(service("shop/a", 1)), upsert(workload("w-1", 1, HEALTHY, &["shop/a"]))]);
    world.push("istiod", vec![upsert(service("shop/other", 9))]);
    world.push("istiod", vec![upsert(workload("w-1", 1, WorkloadStatus::Terminating, &["shop/a"]))]);
    world.push("istiod", vec![Delta::Remove(ResourceKey::new(Kind::Workload, "w-1"))]);
    let connection = Connection { epoch: Some(Lsn(2)), entropy: Some(7), ..to("10.96.0.1:80") };
    let found = world.past().why(&connection, Moment::Lsn(Lsn(3))).unwrap();
    let unseen: Vec<(u64, &str)> = found.unseen.iter().map(|u| (u.step.cause.lsn.0, &*u.name)).collect();
    assert_eq!(unseen, [(3, "w-1")], "the other service is none of its business");
    let later: Vec<(u64, Change)> =
        found.choice.unwrap().later.iter().map(|step| (step.cause.lsn.0, step.change)).collect();
    assert_eq!(later, [(3, Change::Changed), (4, Change::Removed)]);
    let ahead = world.past().why(&connection, Moment::Lsn(Lsn(1))).unwrap_err();
    assert!(matches!(ahead, ReplayError::EpochAhead { .. }), "{ahead}");
}
