//! Every crash point of fixed scripts: killed before and after each single step, recovered, carried on to the end; and
//! killed once more at each step of that recovery.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rustix::io::Errno;

use crate::checker::{Calls, CrashPoint, Refusal};
use crate::domain::{self, Domain, Style};
use crate::schedule::Event;
use crate::world::{Heads, World};

pub(crate) const RECORDS: usize = 100;

/// A fixed sequence of events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    /// Random transactions with grace periods among them.
    Mixed,
    /// Endpoints that change until their runs have moved to the other half, and back.
    Halves,
    /// Index calls are refused time and again.
    Refused,
    /// Services that come and go: most of its transactions change the index.
    Flapping,
    /// A few transactions, short enough for two kills at any two points.
    Short,
}

impl Script {
    fn by_name(name: &str) -> Self {
        let scripts = [Self::Mixed, Self::Halves, Self::Refused, Self::Flapping, Self::Short];
        scripts.into_iter().find(|script| format!("{script:?}") == name).expect("a script's name")
    }

    pub(crate) fn run(self, world: &mut World<'_>) {
        match self {
            Self::Mixed => random(world, Style::Any, 20, 24, None),
            Self::Halves => {
                for round in 0..16 {
                    world.happen(Event::Push(domain::churn(round)));
                    for event in [Event::EndGrace, Event::Apply, Event::BeginGrace] {
                        world.happen(event);
                    }
                }
                world.settle();
                assert!(world.compactions() >= 2 || world.checker.borrow().kills() > 0, "no run has moved");
            }
            Self::Refused => {
                let refusal = Refusal { calls: Calls::Any, skip: 1, times: 2, errno: Errno::NOMEM };
                random(world, Style::Any, 28, 20, Some(refusal));
                let checker = world.checker.borrow();
                assert!(checker.refused() >= 4 || checker.kills() > 0, "too little was refused");
            }
            Self::Flapping => random(world, Style::Flapping, 1, 80, None),
            Self::Short => random(world, Style::Any, 3, 7, None),
        }
    }
}

/// Random transactions, always the same; every third one finds index calls refused.
fn random(world: &mut World<'_>, style: Style, seed: u64, rounds: u64, refusal: Option<Refusal>) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut domain = Domain::new(style);
    for round in 0..rounds {
        world.happen(Event::Push(domain.transaction(&mut random)));
        if let Some(refusal) = refusal.filter(|_| round % 3 == 1) {
            world.happen(Event::Refuse(refusal));
        }
        if round % 3 != 0 {
            world.happen(Event::Apply);
        }
        match round % 5 {
            0 => world.happen(Event::BeginGrace),
            3 => world.happen(Event::EndGrace),
            _ => {}
        }
    }
    world.settle();
}

#[test]
fn every_crash_point_recovers() {
    if let Some((script, points)) = asked_for() {
        kill(script, &points, &Heads::journal(RECORDS));
        return;
    }
    let heads = Heads::journal(RECORDS);
    let (mut points, mut steps) = (0, 0);
    for script in [Script::Mixed, Script::Halves, Script::Refused, Script::Flapping] {
        let of_script = crash_points(script, &heads);
        for point in 0..of_script {
            let world = kill(script, &[CrashPoint(point)], &heads);
            assert_eq!(world.checker.borrow().kills(), 1, "crash point {point} of {script:?} was not reached");
            steps += world.steps();
        }
        println!("{script:?}: crash points covered: {of_script} of {of_script}");
        points += of_script;
    }
    println!("crash points covered: {points} of {points}, {steps} steps, 0 violations");
}

#[test]
fn every_crash_point_of_every_recovery_recovers() {
    let heads = Heads::journal(RECORDS);
    let (mut pairs, mut steps) = (0, 0);
    for first in 0..crash_points(Script::Short, &heads) {
        for second in 0.. {
            let world = kill(Script::Short, &[CrashPoint(first), CrashPoint(second)], &heads);
            steps += world.steps();
            if !world.first_recovery_was_killed() {
                // The recovery from the first kill has no such point.
                break;
            }
            pairs += 1;
        }
    }
    println!("crash points during recovery covered: {pairs} of {pairs}, {steps} steps, 0 violations");
}

/// A generation that is being filled is complete, and shows the journal's state, or is not taken for one.
#[test]
fn every_crash_point_of_a_new_generation_is_harmless() {
    let heads = Heads::journal(RECORDS);
    let mut points = 0;
    let replay = "cargo nextest run --locked -p applier --test simulation generation";
    for point in 0.. {
        let mut world = World::new(&heads, replay.to_owned());
        for round in 0..3 {
            world.happen(Event::Push(domain::churn(round)));
        }
        world.happen(Event::Apply);
        world.happen(Event::Kill(vec![CrashPoint(point)]));
        if !world.replace_generation() {
            break;
        }
        points += 1;
    }
    println!("crash points of a new generation covered: {points} of {points}");
}

/// How many crash points a script has.
pub(crate) fn crash_points(script: Script, heads: &Heads) -> usize {
    let mut world = World::new(heads, format!("HOLDFAST_CRASH={script:?} {COMMAND}"));
    let first = world.steps();
    script.run(&mut world);
    2 * (world.steps() - first)
}

const COMMAND: &str = "cargo nextest run --locked -p applier --test simulation every_crash_point_recovers --no-capture";

fn kill<'h>(script: Script, points: &[CrashPoint], heads: &'h Heads) -> World<'h> {
    let numbers: String = points.iter().flat_map(|CrashPoint(point)| ["/".to_owned(), point.to_string()]).collect();
    let mut world = World::new(heads, format!("HOLDFAST_CRASH={script:?}{numbers} {COMMAND}"));
    if let [CrashPoint(first), ..] = points {
        // Up to the first kill, this run is like all others, which have been checked.
        let steps = world.steps();
        let mut checker = world.checker.borrow_mut();
        checker.check_readers_from(steps + first / 2);
        checker.kill_at(points);
    }
    script.run(&mut world);
    world
}

/// The crash points that a violation has named: `HOLDFAST_CRASH=<script>/<point>/<point of the recovery>`.
fn asked_for() -> Option<(Script, Vec<CrashPoint>)> {
    let asked = std::env::var("HOLDFAST_CRASH").ok()?;
    let mut parts = asked.split('/');
    let script = Script::by_name(parts.next()?);
    let point = |part: &str| CrashPoint(part.parse().expect("a crash point is a number"));
    Some((script, parts.map(point).collect()))
}
