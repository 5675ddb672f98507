//! Random schedules: which events happen, in which order.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use storage_schema::record::Transaction;

use crate::checker::{Calls, CrashPoint, Refusal};
use crate::domain::{Domain, Style};
use crate::world::World;

/// What can happen to the node.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A transaction is pushed.
    Push(Transaction),
    /// The applier applies what is journaled.
    Apply,
    /// A grace period begins, unless one is under way.
    BeginGrace,
    /// The grace period that is under way ends.
    EndGrace,
    /// The applier will be killed, and the next one perhaps as well.
    Kill(Vec<CrashPoint>),
    /// Calls on the index will fail.
    Refuse(Refusal),
}

/// How often things happen: schedules differ in it, as rare faults and many at a time find different things.
struct Weights {
    kills: u32,
    refusals: u32,
    graces: u32,
    /// Whether it is deletions that are refused, many in a row.
    stubborn: bool,
}

/// Runs the schedule of a seed.
pub(crate) fn run(world: &mut World<'_>, random: &mut ChaCha8Rng, rounds: usize) {
    let style = *[Style::Any, Style::Any, Style::Steady, Style::Flapping].choose(random).expect("not empty");
    let mut domain = Domain::new(style);
    let weights = Weights::of(style, random);
    for _ in 0..rounds {
        let event = weights.event(&mut domain, random);
        world.happen(event);
        if random.random_bool(0.7) {
            world.happen(Event::Apply);
        }
    }
    world.settle();
}

impl Weights {
    fn of(style: Style, random: &mut ChaCha8Rng) -> Self {
        let mut one_of = |weights: [u32; 4]| *weights.choose(random).expect("not empty");
        match style {
            Style::Any | Style::Steady => Self {
                kills: one_of([0, 1, 1, 4]),
                refusals: one_of([0, 1, 1, 6]),
                graces: one_of([2, 3, 3, 5]),
                stubborn: false,
            },
            // What is at stake is what waits to be retired: it has to wait for long.
            Style::Flapping => {
                Self { kills: one_of([0, 0, 0, 1]), refusals: 3, graces: one_of([4, 5, 6, 8]), stubborn: true }
            }
        }
    }

    fn event(&self, domain: &mut Domain, random: &mut ChaCha8Rng) -> Event {
        let Self { kills, refusals, graces, stubborn } = *self;
        let number = random.random_range(0..8 + 2 * graces + kills + refusals);
        if number < 8 {
            Event::Push(domain.transaction(random))
        } else if number < 8 + graces {
            Event::BeginGrace
        } else if number < 8 + 2 * graces {
            Event::EndGrace
        } else if number < 8 + 2 * graces + kills {
            let deaths = if random.random_bool(0.3) { random.random_range(2..=4) } else { 1 };
            let point = |death| if death == 0 { 400 } else { 60 };
            Event::Kill((0..deaths).map(|death| CrashPoint(random.random_range(0..point(death)))).collect())
        } else {
            let errno = *Refusal::ERRORS.choose(random).expect("not empty");
            if stubborn && random.random_bool(0.8) {
                return Event::Refuse(Refusal {
                    calls: Calls::Removals,
                    skip: 0,
                    times: random.random_range(2..=12),
                    errno,
                });
            }
            Event::Refuse(Refusal {
                calls: *[Calls::Any, Calls::Insertions, Calls::Removals].choose(random).expect("not empty"),
                skip: random.random_range(0..4),
                times: if random.random_bool(0.5) { 1 } else { random.random_range(2..=12) },
                errno,
            })
        }
    }
}
