//! Deterministic simulation of the applier: real protocol, real decision, tables in memory, a seeded scheduler.
//!
//! Every store and every index call of the applier is a *step*. The applier can be killed before and after each step; a
//! new one recovers from the tables as they are, and can be killed as well. Index calls can be refused, with any error
//! and several in a row, in service and during recovery. The oracle is the model itself, folded to each LSN.
//!
//! Invariants, by name, checked at every step:
//!
//! * `ONE_FLIP`: readers run at the active epoch and at every older epoch that a program could still hold, with what the
//!   index had at any time since they began, and see exactly the state of their epoch. A word that such a reader may be
//!   about to read is not written.
//! * `ORDER`: a version that has an epoch is not written; an index entry is not updated in place.
//! * `HEAD_IS_KNOWN`: the tables say which record the active epoch stands for.
//!
//! And whenever the applier has done something:
//!
//! * `RECOVERED_IS_FOLD`: after a recovery, and after it has caught up, all entries that the tables show are those of the
//!   model at that LSN.
//! * `NOTHING_TWICE`: applying again what is visible makes no step.
//! * `NOTHING_LEAKS`: index entries and taken cells belong together; with nothing to retire they are the state's.
//!
//! Random schedules come from a seed. [`crash_points`] and [`refusals`] are exhaustive, over fixed scripts. [`mutants`]
//! are rules broken on purpose. [`switch`] is about several generations and the links that run them. A violation prints its seed, step and epoch, what happened before, and the command that
//! runs it again.

mod checker;
mod crash_points;
mod domain;
mod mutants;
mod oracle;
mod refusals;
mod schedule;
mod switch;
mod tables;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use mutants::Mutant;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use world::{Heads, World};

const ROUNDS: usize = 400;

/// Random schedules: transactions, batches, grace periods, kills and refused calls in any order.
#[test]
fn random_schedules_keep_all_invariants() {
    let count = number("HOLDFAST_SIMULATION_SEEDS", 200) as u64;
    let (first, count) = match std::env::var("HOLDFAST_SEED").as_deref() {
        Err(_) => (1, count),
        Ok("random") => (rand::random::<u32>().into(), count),
        Ok(seed) => (seed.parse().expect("HOLDFAST_SEED is a number or `random`"), 1),
    };
    println!("HOLDFAST_SEED={first}, {count} seeds from there");
    let rounds = number("HOLDFAST_SIMULATION_ROUNDS", ROUNDS);
    let heads = Heads::journal(rounds);
    let (mut steps, mut kills, mut refused) = (0, 0, 0);
    for seed in first..first + count {
        let mut world = World::new(&heads, replay(seed, rounds));
        random_schedule(&mut world, seed, rounds);
        let checker = world.checker.borrow();
        steps += checker.steps();
        kills += checker.kills();
        refused += checker.refused();
    }
    println!("{count} seeds, {steps} steps, {kills} kills, {refused} refused calls, 0 violations");
}

fn random_schedule(world: &mut World<'_>, seed: u64, rounds: usize) {
    schedule::run(world, &mut ChaCha8Rng::seed_from_u64(seed), rounds);
}

fn replay(seed: u64, rounds: usize) -> String {
    format!(
        "HOLDFAST_SEED={seed} HOLDFAST_SIMULATION_ROUNDS={rounds} cargo nextest run --locked -p applier --test simulation \
         random_schedules"
    )
}

/// The checker is worth something: with a rule of the protocol broken on purpose, it finds a violation.
#[test]
fn every_mutant_is_found() {
    const ROUNDS: usize = 100;
    const SEEDS: u64 = 2000;
    let heads = Heads::journal(ROUNDS);
    let report = std::panic::take_hook();
    // Violations are what is looked for here: they are not worth a message each.
    std::panic::set_hook(Box::new(|_| {}));
    let violation = |mutant: Mutant, seed: u64| {
        let mut world = World::with_mutant(&heads, String::new(), Some(mutant));
        let run = || catch_unwind(AssertUnwindSafe(|| random_schedule(&mut world, seed, ROUNDS)));
        let cause = mutant.during(run).err()?;
        let message = cause.downcast_ref::<String>().map_or("", String::as_str);
        Some((seed, message.lines().next().unwrap_or_default().to_owned()))
    };
    let found: Vec<_> =
        Mutant::ALL.iter().map(|mutant| (*mutant, (0..SEEDS).find_map(|seed| violation(*mutant, seed)))).collect();
    std::panic::set_hook(report);
    for (mutant, violation) in &found {
        let Some((seed, message)) = violation else { continue };
        println!("{mutant:?}: seed {seed}: {message}");
        // It is the mutant that was found, and nothing else.
        random_schedule(&mut World::new(&heads, replay(*seed, ROUNDS)), *seed, ROUNDS);
    }
    let survivors: Vec<_> = found.iter().filter(|(_, violation)| violation.is_none()).collect();
    assert!(survivors.is_empty(), "the checker does not notice in {SEEDS} schedules: {survivors:?}");
    println!("{} of {} mutants found", found.len(), found.len());
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable}: {value}")))
}
