//! Deterministic simulation of the applier: real protocol, real decision, tables in memory, a seeded scheduler.
//!
//! Every store and every index call of the applier is a *step*. Between any two steps the checker runs readers: at the
//! active epoch, at every older epoch that a program could still hold, and with index entries that such a program looked
//! up earlier. At any step the applier can be killed; a new one recovers from the tables as they are. Index calls can
//! fail. The oracle is the model itself, folded to each LSN.
//!
//! A failure prints the seed; `HOLDFAST_SEED=<seed> cargo nextest run -p applier --test simulation` runs it again.

mod domain;
mod oracle;
mod tables;
mod world;

use domain::Domain;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use world::{Heads, World};

/// Random schedules: transactions, batches, grace periods, kills and refused calls in any order.
#[test]
fn random_schedules_keep_all_invariants() {
    let (seeds, rounds) = match std::env::var("HOLDFAST_SEED") {
        Ok(seed) => (vec![seed.parse().expect("HOLDFAST_SEED is a number")], rounds()),
        Err(_) => ((0..seed_count()).map(|_| rand::random()).collect(), rounds()),
    };
    let heads = Heads::journal(rounds);
    let mut steps = 0;
    for seed in seeds {
        println!("HOLDFAST_SEED={seed}");
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut domain = Domain::new();
        let mut world = World::new(&heads);
        for _ in 0..rounds {
            match random.random_range(0..16) {
                0..=7 => world.push(&domain.transaction(&mut random)),
                8..=10 => world.begin_grace(),
                11..=13 => world.end_grace(),
                14 => world.kill_in(random.random_range(1..200)),
                _ => world.refuse_index_call_in(random.random_range(1..4)),
            }
            if random.random_bool(0.7) {
                world.apply();
            }
        }
        world.settle();
        steps += world.steps();
    }
    println!("{steps} steps, 0 violations");
}

/// Every crash point of a fixed sequence: killed before each single step, recovered, carried on to the end.
#[test]
fn every_crash_point_recovers() {
    let heads = Heads::journal(40);
    let script = |world: &mut World<'_>| {
        let mut random = ChaCha8Rng::seed_from_u64(20);
        let mut domain = Domain::new();
        for round in 0..40 {
            world.push(&domain.transaction(&mut random));
            if round % 3 != 0 {
                world.apply();
            }
            match round % 5 {
                0 => world.begin_grace(),
                3 => world.end_grace(),
                _ => {}
            }
        }
        world.settle();
    };
    let mut whole = World::new(&heads);
    let first = whole.steps();
    script(&mut whole);
    let points = whole.steps() - first;
    for point in 0..points {
        let mut world = World::new(&heads);
        // Up to the kill, this run is like all others, which have been checked.
        world.check_readers_from(first + point);
        world.kill_in(point + 1);
        script(&mut world);
        assert_eq!(world.kills(), 1, "crash point {point} was not reached");
    }
    println!("crash points covered: {points} of {points}");
}

fn seed_count() -> usize {
    number("HOLDFAST_SIMULATION_SEEDS", 30)
}

fn rounds() -> usize {
    number("HOLDFAST_SIMULATION_ROUNDS", 400)
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable}: {value}")))
}
