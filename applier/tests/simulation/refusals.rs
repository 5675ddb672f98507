//! Every index call refused: with each error, alone and several in a row, in service and during recovery.

use rustix::io::Errno;

use crate::checker::{Calls, CrashPoint, Refusal};
use crate::crash_points::{RECORDS, Script, crash_points};
use crate::domain;
use crate::schedule::Event;
use crate::world::{Heads, World};

const COMMAND: &str = "cargo nextest run --locked -p applier --test simulation refusals";

/// From this call of a script on, so many calls fail.
#[test]
fn every_call_can_be_refused() {
    let heads = Heads::journal(RECORDS);
    let (mut refused, mut runs) = (0, 0);
    for script in [Script::Mixed, Script::Flapping] {
        for (errno, times) in Refusal::ERRORS.into_iter().flat_map(|errno| [1, 2, 3, 7].map(|times| (errno, times))) {
            for skip in 0.. {
                let in_this_run = refuse(script, Refusal { calls: Calls::Any, skip, times, errno }, &heads);
                if in_this_run == 0 {
                    break;
                }
                refused += in_this_run;
                runs += 1;
            }
        }
    }
    assert!(runs >= 16 * 30, "a script with so few index calls shows little: {runs} runs");
    println!("{refused} calls refused in {runs} runs, 0 violations");
}

/// How many calls were refused.
fn refuse(script: Script, refusal: Refusal, heads: &Heads) -> usize {
    let mut world = World::new(heads, COMMAND.to_owned());
    world.happen(Event::Refuse(refusal));
    script.run(&mut world);
    let checker = world.checker.borrow();
    checker.refused()
}

/// The applier that comes after a kill is refused the listing of the index, or what it needs to catch up.
#[test]
fn every_recovery_can_be_refused() {
    let heads = Heads::journal(RECORDS);
    let (mut refused, mut runs) = (0, 0);
    for point in 0..crash_points(Script::Short, &heads) {
        for (skip, times) in [(0, 1), (0, 3), (1, 1), (1, 4), (2, 2)] {
            let mut world = World::new(&heads, COMMAND.to_owned());
            world.checker.borrow_mut().kill_at(&[CrashPoint(point)]);
            let errno = Refusal::ERRORS[(point + times) % Refusal::ERRORS.len()];
            world.checker.borrow_mut().refuse_at_death(Refusal { calls: Calls::Any, skip, times, errno });
            Script::Short.run(&mut world);
            refused += world.checker.borrow().refused();
            runs += 1;
        }
    }
    println!("{refused} calls refused after a kill in {runs} runs, 0 violations");
}

/// An entry that somebody has deleted from the index is made again, once it can be.
#[test]
fn a_refused_repair_of_the_index_is_made_later() {
    let heads = Heads::journal(RECORDS);
    let mut world = World::new(&heads, COMMAND.to_owned());
    world.happen(Event::Push(domain::churn(0)));
    world.happen(Event::Apply);
    let refusal = Refusal { calls: Calls::Insertions, skip: 0, times: 2, errno: Errno::BUSY };
    world.happen(Event::Refuse(refusal));
    world.lose_an_index_entry_and_restart();
    assert_eq!(world.checker.borrow().refused(), 2);
    world.settle();
}

/// The fault that the simulation found when it refused several calls in a row: an index entry stayed whose cell was given
/// back, another destination got the cell, and recovery refused the tables.
#[test]
fn an_index_entry_that_could_not_be_deleted_keeps_its_cell() {
    let heads = Heads::journal(RECORDS);
    let mut world = World::new(&heads, COMMAND.to_owned());
    world.happen(Event::Push(domain::churn(0)));
    world.happen(Event::Refuse(Refusal { calls: Calls::Any, skip: 1, times: 2, errno: Errno::NOMEM }));
    world.happen(Event::Apply);
    for transaction in domain::other_destinations() {
        world.happen(Event::Push(transaction));
    }
    for event in [Event::Apply, Event::Apply, Event::Kill(vec![CrashPoint(0)]), Event::BeginGrace, Event::EndGrace] {
        world.happen(event);
    }
    world.settle();
    assert!(world.checker.borrow().kills() == 1 && world.checker.borrow().refused() > 0, "a kill after a refusal");
}
