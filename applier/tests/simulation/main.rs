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

use std::panic::{AssertUnwindSafe, catch_unwind};

use domain::Domain;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tables::Mutant;
use world::{Heads, World};

/// Random schedules: transactions, batches, grace periods, kills and refused calls in any order.
#[test]
fn random_schedules_keep_all_invariants() {
    let seeds = match std::env::var("HOLDFAST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HOLDFAST_SEED is a number")],
        Err(_) => (0..number("HOLDFAST_SIMULATION_SEEDS", 30)).map(|_| rand::random()).collect(),
    };
    let rounds = number("HOLDFAST_SIMULATION_ROUNDS", 400);
    let heads = Heads::journal(rounds);
    let mut steps = 0;
    for seed in seeds {
        println!("HOLDFAST_SEED={seed}");
        let mut world = World::new(&heads);
        random_schedule(&mut world, seed, rounds);
        steps += world.steps();
    }
    println!("{steps} steps, 0 violations");
}

/// The checker is worth something: with a rule of the protocol broken on purpose, it finds a violation.
#[test]
fn every_mutant_is_found() {
    const ROUNDS: usize = 400;
    const SEEDS: u64 = 40;
    let heads = Heads::journal(ROUNDS);
    let report = std::panic::take_hook();
    // Violations are what is looked for here: they are not worth a message each.
    std::panic::set_hook(Box::new(|_| {}));
    let survivors: Vec<Mutant> = Mutant::ALL
        .into_iter()
        .filter(|mutant| {
            !(0..SEEDS).any(|seed| {
                let mut world = World::with_mutant(&heads, Some(*mutant));
                catch_unwind(AssertUnwindSafe(|| random_schedule(&mut world, seed, ROUNDS))).is_err()
            })
        })
        .collect();
    std::panic::set_hook(report);
    assert_eq!(survivors, [], "broken rules that the checker does not notice in {SEEDS} schedules");
    println!("{} of {} mutants found", Mutant::ALL.len(), Mutant::ALL.len());
}

fn random_schedule(world: &mut World<'_>, seed: u64, rounds: usize) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut domain = Domain::new();
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

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable}: {value}")))
}
