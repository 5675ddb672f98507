//! What goes wrong on nodes, scripted: `why`, `history` and `diff` must each name the record that is to blame.

mod world;

use replay::{Change, Connection, History, HistoryStep, Moment, Outcome, Which, Why};
use storage_schema::id::Lsn;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, LoadBalancing, Policy, Resource, ResourceKey, WorkloadStatus};
use world::{World, service, upsert, workload};

const HEALTHY: WorkloadStatus = WorkloadStatus::Healthy;
const UNHEALTHY: WorkloadStatus = WorkloadStatus::Unhealthy;

/// A shop whose service has three workloads: records 1 to 4.
fn shop() -> World {
    let mut world = World::new();
    world.push("istiod", vec![upsert(service("shop/cart", 1))]);
    for number in 1..=3u8 {
        world.push("istiod", vec![upsert(workload(&format!("cart-{number}"), number, HEALTHY, &["shop/cart"]))]);
    }
    world
}

fn dial() -> Connection {
    Connection { from: None, to: "10.96.0.1:80".parse().unwrap(), protocol: 6, epoch: None, entropy: None }
}

fn why(world: &World, lsn: Lsn) -> Why {
    world.past().why(&dial(), Moment::Lsn(lsn)).unwrap()
}

fn history(world: &World, uid: &str) -> History {
    world.past().history(&ResourceKey::new(Kind::Workload, uid), None, Moment::Now, None).unwrap()
}

/// Record and source of what a diff says of its one resource.
fn blamed(world: &World, from: Lsn, to: Lsn) -> (Lsn, String) {
    let diff = world.past().diff(Moment::Lsn(from), Moment::Lsn(to), &Which::default(), false).unwrap();
    let [resource] = diff.resources.as_slice() else { panic!("{diff:?}") };
    let cause = resource.cause.clone().unwrap();
    (cause.lsn, cause.source.unwrap())
}

fn last(history: &History) -> &HistoryStep {
    history.steps.last().unwrap()
}

/// A backend is removed while clients connect: those that were decided just before went to it, and the record that came too late
/// for them is named; those after it did not.
#[test]
fn a_backend_is_removed_while_clients_connect() {
    let mut world = shop();
    // Which one this word chooses is the order of numbers, which are hashes.
    let word = Connection { entropy: Some(1 << 31), ..dial() };
    let chosen = world.past().why(&word, Moment::Now).unwrap().choice.unwrap().workload.unwrap();
    let removed = world.push("autoscaler", vec![Delta::Remove(ResourceKey::new(Kind::Workload, &*chosen))]);
    let made = |epoch: Lsn| world.past().why(&Connection { epoch: Some(epoch), ..word }, Moment::Now).unwrap();
    let before = made(Lsn(4));
    let choice = before.choice.unwrap();
    assert_eq!(choice.workload.as_deref(), Some(&*chosen));
    assert_eq!((choice.later[0].cause.lsn, choice.later[0].change), (removed, Change::Removed));
    assert_eq!(before.unseen.len(), 1);
    assert_eq!(before.unseen[0].step.cause.source.as_deref(), Some("autoscaler"));
    let after = made(removed);
    assert_ne!(after.choice.unwrap().workload.as_deref(), Some(&*chosen));
    assert!(after.unseen.is_empty());
    assert_eq!(last(&history(&world, &chosen)).cause.lsn, removed);
    assert_eq!(blamed(&world, Lsn(4), removed), (removed, "autoscaler".to_owned()));
}

/// Two records come in the wrong order: a workload has moved, and an older word puts it back.
#[test]
fn two_records_come_in_the_wrong_order() {
    let mut world = shop();
    let moved = world.push("shard-a", vec![upsert(workload("cart-1", 71, HEALTHY, &["shop/cart"]))]);
    let stale = world.push("shard-b", vec![upsert(workload("cart-1", 1, HEALTHY, &["shop/cart"]))]);
    // The source says it again and again, as sources do: that is not what made it so.
    world.push("shard-b", vec![upsert(workload("cart-1", 1, HEALTHY, &["shop/cart"]))]);
    let found = why(&world, Lsn(7));
    let candidate = found.candidates.iter().find(|candidate| candidate.workload == "cart-1").unwrap();
    assert_eq!((&*candidate.address, candidate.cause.lsn), ("127.1.0.1:8080", stale));
    assert_eq!(candidate.cause.source.as_deref(), Some("shard-b"));
    let changes: Vec<(Lsn, Change)> =
        history(&world, "cart-1").steps.iter().map(|step| (step.cause.lsn, step.change)).collect();
    assert_eq!(
        changes,
        [(Lsn(2), Change::Added), (moved, Change::Changed), (stale, Change::Changed), (Lsn(7), Change::Unchanged)]
    );
    assert_eq!(blamed(&world, moved, Lsn(7)), (stale, "shard-b".to_owned()));
}

/// A control plane flaps: at any moment the flap is named that made it so, and all of them are counted.
#[test]
fn a_control_plane_flaps() {
    let mut world = shop();
    for flap in 0..40u8 {
        let status = if flap % 2 == 0 { UNHEALTHY } else { HEALTHY };
        world.push("prober", vec![upsert(workload("cart-3", 3, status, &["shop/cart"]))]);
        world.push("noise", vec![upsert(service("shop/other", 9))]);
    }
    let down = Lsn(5 + 2 * 20);
    let found = why(&world, down.next());
    let [excluded] = found.excluded.as_slice() else { panic!("{found:?}") };
    assert_eq!((&*excluded.workload, excluded.cause.lsn), ("cart-3", down));
    assert_eq!(excluded.cause.source.as_deref(), Some("prober"));
    assert!(why(&world, Lsn(down.0 + 2)).excluded.is_empty());
    let history = history(&world, "cart-3");
    assert_eq!(history.steps.iter().filter(|step| step.change == Change::Changed).count(), 40);
    assert!(history.steps[1..].iter().all(|step| step.fields[0].field == "status"));
    assert_eq!(blamed(&world, Lsn(down.0 - 1), down), (down, "prober".to_owned()));
}

/// The agent is dead for a minute: what was so then is the state before, and how late the news was is told.
#[test]
fn the_agent_is_dead_for_a_minute() {
    let mut world = shop();
    world.clock.pass(30);
    let failed_ns = world.clock.wall_ns();
    world.clock.pass(30);
    let late = world.push("prober", vec![upsert(workload("cart-1", 1, UNHEALTHY, &["shop/cart"]))]);
    let then = world.past().why(&dial(), Moment::Time(failed_ns)).unwrap();
    assert_eq!((then.lsn, then.candidates.len()), (Lsn(4), 3), "the kernel went on with what it knew");
    let now = why(&world, late);
    assert_eq!((now.excluded[0].cause.lsn, now.candidates.len()), (late, 2));
    let told = last(&history(&world, "cart-1")).cause.clone();
    assert_eq!(told.lsn, late);
    assert!(told.wall_ns.unwrap() - failed_ns >= 30_000_000_000, "half a minute too late: {told:?}");
    let diff = world.past().diff(Moment::Time(failed_ns), Moment::Now, &Which::default(), false).unwrap();
    assert_eq!((diff.from_lsn, diff.to_lsn), (Lsn(4), late));
    assert_eq!(diff.resources[0].cause.as_ref().unwrap().lsn, late);
}

/// Somebody pushes a wrong policy; others push the service again later, and are not to blame.
#[test]
fn a_policy_is_wrong() {
    let mut world = shop();
    let with_policy = |hostname: &str| {
        let Resource::Service(mut service) = service("shop/cart", 1) else { unreachable!() };
        service.load_balancing = LoadBalancing::of(Policy::Weighted);
        service.hostname = hostname.to_owned();
        vec![upsert(Resource::Service(service))]
    };
    let wrong = world.push("intern", with_policy(""));
    world.push("istiod", with_policy("cart.shop"));
    world.push("istiod", with_policy("cart.shop.svc"));
    let found = why(&world, Lsn(7));
    assert_eq!(found.outcome, Outcome::Forwarded);
    let policy = found.steps.iter().find(|step| step.step == "policy").unwrap();
    assert!(policy.says.contains("weighted"), "{policy:?}");
    let cause = policy.cause.as_ref().unwrap();
    assert_eq!((cause.lsn, cause.source.as_deref()), (wrong, Some("intern")));
    let history = world.past().history(&ResourceKey::new(Kind::Service, "shop/cart"), None, Moment::Now, None).unwrap();
    let guilty = history.steps.iter().find(|step| step.fields.iter().any(|f| f.field.starts_with("loadBalancing")));
    assert_eq!(guilty.map(|step| step.cause.lsn), Some(Lsn(1)), "it was added with the default");
    let changed = history.steps[1..].iter().find(|s| s.fields.iter().any(|f| f.field.starts_with("loadBalancing")));
    assert_eq!(changed.map(|step| step.cause.lsn), Some(wrong));
    assert_eq!(blamed(&world, Lsn(4), wrong), (wrong, "intern".to_owned()));
}
