//! What was, what differs, and who said so, against a fold of our own.

mod world;

use proptest::prelude::*;
use replay::{Change, Moment, ReplayError, Which};
use storage_schema::id::Lsn;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, Resource, ResourceKey, WorkloadStatus};
use world::{Folded, START_NS, World, service, upsert, workload};

const HEALTHY: WorkloadStatus = WorkloadStatus::Healthy;
const STATUSES: [WorkloadStatus; 3] = [HEALTHY, WorkloadStatus::Unhealthy, WorkloadStatus::Terminating];

fn everything() -> Which {
    Which::default()
}

/// A delta out of a small world, so that resources come, change, go and come again.
fn delta() -> impl Strategy<Value = Delta> {
    let name = |number: u8| format!("w-{number}");
    prop_oneof![
        3 => (0..6u8, 0..6u8, 0..3usize, any::<bool>()).prop_map(move |(number, address, status, backs)| {
            let services: &[&str] = if backs { &["shop/a"] } else { &[] };
            upsert(workload(&name(number), address, STATUSES[status], services))
        }),
        1 => (1..4u8).prop_map(|number| upsert(service(&format!("shop/{}", ["a", "b", "c"][usize::from(number) - 1]), number))),
        2 => (0..6u8).prop_map(move |number| Delta::Remove(ResourceKey::new(Kind::Workload, name(number)))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// The state at any record is the fold from the start; a diff says exactly what turns the one into the other; a history,
    /// applied from its first step on, ends in the state.
    #[test]
    fn the_past_is_the_fold_from_the_start(
        records in proptest::collection::vec(proptest::collection::vec(delta(), 1..4), 1..60),
        checkpoints in proptest::collection::btree_set(0..60usize, 0..3),
        pairs in proptest::collection::vec((0..60usize, 0..60usize), 4),
    ) {
        let mut world = World::new();
        for (number, deltas) in records.into_iter().enumerate() {
            let lsn = world.push("cp", deltas);
            if checkpoints.contains(&number) {
                world.journal.blocking_wait_stored(lsn).unwrap();
                world.journal.checkpoint().unwrap();
            }
        }
        let past = world.past();
        for (lsn, folded) in world.states.iter().enumerate() {
            let (found_lsn, found) = past.resources(Moment::Lsn(Lsn(lsn as u64)), &everything()).unwrap();
            let found: Vec<(Resource, Lsn)> = found.into_iter().map(|one| (one.resource, one.changed_lsn)).collect();
            prop_assert_eq!(found_lsn, Lsn(lsn as u64));
            let expected: Vec<(Resource, Lsn)> = folded.values().cloned().collect();
            prop_assert_eq!(found, expected, "at {}", lsn);
        }
        for (from, to) in pairs {
            check_diff(&world, from.min(world.states.len() - 1), to.min(world.states.len() - 1));
        }
        for key in world.states.iter().flat_map(Folded::keys).cloned().collect::<std::collections::BTreeSet<_>>() {
            check_history(&world, &key);
        }
    }
}

fn check_diff(world: &World, from: usize, to: usize) {
    let (before, after) = (&world.states[from], &world.states[to]);
    let at = |lsn: usize| Moment::Lsn(Lsn(lsn as u64));
    let diff = world.past().diff(at(from), at(to), &everything(), false).unwrap();
    let mut expected = Vec::new();
    for key in before.keys().chain(after.keys()).collect::<std::collections::BTreeSet<_>>() {
        let (old, new) = (before.get(key).map(|(r, _)| r), after.get(key).map(|(r, _)| r));
        match (old, new) {
            (old, new) if old == new => {}
            (None, _) => expected.push((key.clone(), Change::Added)),
            (_, None) => expected.push((key.clone(), Change::Removed)),
            _ => expected.push((key.clone(), Change::Changed)),
        }
    }
    let found: Vec<(ResourceKey, Change)> =
        diff.resources.iter().map(|r| (ResourceKey::new(r.kind, r.name.clone()), r.change)).collect();
    assert_eq!(found, expected, "{from} to {to}");
    for resource in &diff.resources {
        let key = ResourceKey::new(resource.kind, resource.name.clone());
        assert!(!resource.fields.is_empty());
        // Whoever is named has done it: with that record the resource became what it is at the end.
        if from < to {
            let lsn = resource.cause.as_ref().expect("forwards, everything has a cause").lsn;
            assert!(lsn.0 > from as u64 && lsn.0 <= to as u64, "{key}: {lsn}");
            let value = |state: &Folded| state.get(&key).map(|(resource, _)| resource.clone());
            let after_cause = &world.states[usize::try_from(lsn.0).unwrap()];
            assert_eq!(value(after_cause), value(after), "{key} at {lsn}");
        }
    }
}

fn check_history(world: &World, key: &ResourceKey) {
    let history = world.past().history(key, None, Moment::Now, None).unwrap();
    let mut steps = history.steps.iter();
    for (lsn, pair) in world.states.windows(2).enumerate() {
        let (old, new) = (pair[0].get(key), pair[1].get(key));
        let touched = old != new;
        if touched {
            let lsn = Lsn(lsn as u64 + 1);
            let step = steps.find(|step| step.cause.lsn == lsn).unwrap_or_else(|| panic!("{key} at {lsn}"));
            let (old, new) = (old.map(|(r, _)| r), new.map(|(r, _)| r));
            let expected = match (old, new) {
                (old, new) if old == new => Change::Unchanged,
                (None, _) => Change::Added,
                (_, None) => Change::Removed,
                _ => Change::Changed,
            };
            assert_eq!(step.change, expected, "{key} at {lsn}");
            assert_eq!(step.fields.is_empty(), old == new);
        }
    }
    let last = history.steps.last().expect("it was mentioned");
    let short = world.past().history(key, None, Moment::Now, Some(1)).unwrap();
    assert_eq!(short.steps, std::slice::from_ref(last), "the last step alone is the last step of all");
    let since = world.past().history(key, Some(Moment::Lsn(last.cause.lsn)), Moment::Now, None).unwrap();
    assert_eq!(since.steps, std::slice::from_ref(last));
}

#[test]
fn moments_are_found_by_time() {
    let mut world = World::new();
    let past = world.past();
    assert_eq!(past.lsn_of(Moment::Time(START_NS)).unwrap(), Lsn(0), "an empty journal has always been empty");
    world.push("cp", vec![upsert(service("shop/a", 1))]);
    let first = world.clock.wall_ns();
    world.push("cp", vec![upsert(service("shop/b", 2))]);
    assert_eq!(past.lsn_of(Moment::Time(first - 1)).unwrap(), Lsn(0));
    assert_eq!(past.lsn_of(Moment::Time(first)).unwrap(), Lsn(1));
    assert_eq!(past.lsn_of(Moment::Time(world.clock.wall_ns() - 1)).unwrap(), Lsn(1));
    assert_eq!(past.lsn_of(Moment::Time(u64::MAX)).unwrap(), Lsn(2));
    let error = past.resources(Moment::Lsn(Lsn(3)), &everything()).unwrap_err();
    assert!(error.to_string().contains('3'), "{error}");
}

#[test]
fn entries_follow_their_resources() {
    let mut world = World::new();
    world.push("cp", vec![upsert(service("shop/a", 1)), upsert(workload("w-1", 1, HEALTHY, &["shop/a"]))]);
    world.push("cp", vec![upsert(workload("w-2", 2, HEALTHY, &["shop/a"]))]);
    world.push("cp", vec![upsert(service("shop/b", 2))]);
    let diff = |from, to, which: &Which| {
        let diff = world.past().diff(Moment::Lsn(Lsn(from)), Moment::Lsn(Lsn(to)), which, true).unwrap();
        let entries = diff.entries.unwrap();
        entries
            .iter()
            .map(|entry| {
                let fields: Vec<&str> = entry.fields.iter().map(|change| &*change.field).collect();
                format!("{} {} {}: {}", entry.table, entry.entry, entry.change.as_str(), fields.join(","))
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        diff(1, 2, &everything()),
        ["backends w-2:8080 IPv4 added: address", "services shop/a 80/TCP IPv4 changed: endpoints[w-2:8080 IPv4]"]
    );
    assert_eq!(diff(2, 2, &everything()), [""; 0]);
    let of_b = Which { kind: None, name: Some("shop/b".into()) };
    assert_eq!(
        diff(0, 3, &of_b),
        ["frontends 10.96.0.2:80/TCP added: service", "services shop/b 80/TCP IPv4 added: policy"]
    );
}

/// What retention has let go is said to be gone, and what a checkpoint still knows is used.
#[test]
fn the_past_ends_where_retention_has_cut_it() {
    let mut world = World::new();
    world.push("istiod", vec![upsert(service("shop/old", 9))]);
    for number in 0..400u32 {
        let mut filler = service("shop/filler", 8);
        let Resource::Service(filled) = &mut filler else { unreachable!() };
        filled.hostname = format!("{number}-{}", "h".repeat(600));
        let lsn = world.push("cp", vec![upsert(filler)]);
        if number == 200 {
            world.journal.blocking_wait_stored(lsn).unwrap();
            world.journal.checkpoint().unwrap();
        }
    }
    world.push("istiod", vec![Delta::Remove(ResourceKey::new(Kind::Service, "shop/old"))]);
    let again = world.push("istiod", vec![upsert(service("shop/old", 7))]);
    world.journal.blocking_wait_stored(again).unwrap();
    let keep = journal::Retention { records: Some(2), ..journal::Retention::default() };
    let oldest_lsn = world.journal.compact(&keep).unwrap().oldest_lsn;
    assert!(oldest_lsn > Lsn(1), "something was let go");

    let past = world.past();
    assert!(matches!(past.lsn_of(Moment::Time(1)), Err(ReplayError::BeforeOldest { .. })));
    assert!(past.resources(Moment::Lsn(Lsn(1)), &everything()).is_err());
    let key = ResourceKey::new(Kind::Service, "shop/old");
    let history = past.history(&key, None, Moment::Now, None).unwrap();
    let changes: Vec<Change> = history.steps.iter().map(|step| step.change).collect();
    assert!(changes.ends_with(&[Change::Added]), "{changes:?}");
    let (_, found) = past.resources(Moment::Now, &everything()).unwrap();
    assert_eq!(found.len(), 2);
}
