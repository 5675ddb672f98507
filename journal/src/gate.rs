//! Keeps background work off the processor while the writer needs it.
//!
//! Folding records into the store and making indexes and checkpoints takes tens of milliseconds of processor time without a
//! pause. A kernel that does not preempt lets a writer that has just come back from the disk wait behind that until its next
//! tick (4 ms at 250 Hz), although another processor may be idle, and everybody who waits for an ack waits with it. Priorities
//! do not help: they decide who goes next, not when. So background work is done in steps of about 100 µs, and asks before each:
//!
//! ```text
//!  writer:  acks, next group │ write, fdatasync ........................ │ acks, next group │ write, fdatasync ...
//!  gate:    shut             │ open ................ │ shut .................................│ open ...
//!                             ◀ half of what it takes ▶
//! ```
//!
//! The writer itself can say that it leaves for the disk, but not that it is back: that is when it may be waiting for a
//! processor. So a trip to the disk opens the gate for half of the time that trips usually take, and whoever has worked as
//! long is asleep when the writer returns. A writer that has nothing to do leaves the gate open, and the pusher who wakes it
//! shuts it.
//!
//! # Invariants
//!
//! * `PROGRESS`: each trip to the disk lets everybody who waits here take at least one step, however short the trip was. So
//!   background work comes on under a writer that never rests.
//! * `NOBODY_WAITS`: while somebody waits for the outcome of background work ([`Gate::hurry`]), the gate is open.
//! * `CHEAP`: the writer makes no system call here unless somebody sleeps at the gate.

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Values of [`Gate::open_until_ns`] that are no times.
const SHUT: u64 = 0;
const OPEN: u64 = u64::MAX;

/// How long a trip to the disk is taken to last before there was one.
const TRIP: Duration = Duration::from_micros(200);

/// An idle writer wakes nobody, as its next group is mostly about to come: who waits looks for itself this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The gate.
#[derive(Debug)]
pub(crate) struct Gate {
    /// What times are counted from.
    origin: Instant,
    /// Until when it is open, or one of the values above.
    open_until_ns: AtomicU64,
    /// How often it was opened.
    openings: AtomicU64,
    /// What half of the trips to the disk take no longer than.
    trip_ns: AtomicU64,
    /// How many are in a hurry.
    hurried: AtomicUsize,
    /// Whether the store is so far behind that it counts as one of them.
    behind: AtomicBool,
    /// How many sleep here.
    sleeping: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

impl Default for Gate {
    /// A gate without a writer: open.
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            open_until_ns: AtomicU64::new(OPEN),
            openings: AtomicU64::new(0),
            trip_ns: AtomicU64::new(nanoseconds(TRIP)),
            hurried: AtomicUsize::new(0),
            behind: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        }
    }
}

/// Keeps the gate open for as long as it lives.
#[derive(Debug)]
pub(crate) struct Hurry(Arc<Gate>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, SeqCst);
    }
}

impl Gate {
    /// Waits until a step of background work is welcome.
    pub(crate) fn pass(&self) {
        if self.is_open() {
            return;
        }
        let opening = self.openings.load(SeqCst);
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleeping.fetch_add(1, SeqCst);
        // Even if it is shut again by now: a step for each opening is promised.
        while !self.is_open() && self.openings.load(SeqCst) == opening {
            bed = self.bell.wait_timeout(bed, LOOK_INTERVAL).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.sleeping.fetch_sub(1, SeqCst);
    }

    /// Opens it for whoever waits for what comes behind it, until the guard is dropped.
    pub(crate) fn hurry(self: &Arc<Self>) -> Hurry {
        self.add_hurried();
        Hurry(Arc::clone(self))
    }

    /// Whether the store is so far behind that it has to go on whatever the writer does.
    pub(crate) fn set_behind(&self, behind: bool) {
        if self.behind.load(Relaxed) == behind || self.behind.swap(behind, SeqCst) == behind {
            return;
        }
        if behind {
            self.add_hurried();
        } else {
            self.hurried.fetch_sub(1, SeqCst);
        }
    }

    /// The writer leaves for the disk.
    pub(crate) fn leave(&self) {
        self.open_for(Duration::from_nanos(self.trip_ns.load(Relaxed) / 2));
    }

    /// The writer is back from the disk, after so long.
    pub(crate) fn come_back(&self, after: Duration) {
        self.shut();
        // Small steps towards each trip lead to their median, and a stuck disk moves it no further than any other trip.
        let trip = self.trip_ns.load(Relaxed);
        let step = trip / 16 + 1;
        let longer = nanoseconds(after) > trip;
        self.trip_ns.store(if longer { trip + step } else { trip - step.min(trip) }, Relaxed);
    }

    /// The writer needs no processor for so long.
    pub(crate) fn open_for(&self, time: Duration) {
        self.open_until_ns.store(self.now_ns().saturating_add(nanoseconds(time)).min(OPEN - 1), SeqCst);
        self.openings.fetch_add(1, SeqCst);
        self.wake();
    }

    /// The writer has nothing to do, or is no more.
    pub(crate) fn leave_open(&self) {
        self.open_until_ns.store(OPEN, SeqCst);
    }

    /// The writer is needed.
    pub(crate) fn shut(&self) {
        self.open_until_ns.store(SHUT, SeqCst);
    }

    /// How many sleep here.
    #[cfg(test)]
    pub(crate) fn sleeping(&self) -> usize {
        self.sleeping.load(SeqCst)
    }

    fn is_open(&self) -> bool {
        let open = match self.open_until_ns.load(SeqCst) {
            SHUT => false,
            OPEN => true,
            until_ns => self.now_ns() < until_ns,
        };
        open || self.hurried.load(SeqCst) > 0
    }

    fn add_hurried(&self) {
        self.hurried.fetch_add(1, SeqCst);
        self.wake();
    }

    /// Who falls asleep counts itself before it looks for the last time: either it sees what has changed, or it is seen here.
    fn wake(&self) {
        if self.sleeping.load(SeqCst) > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }

    /// At least 1.
    fn now_ns(&self) -> u64 {
        nanoseconds(self.origin.elapsed()) + 1
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    /// A gate that is shut, and one thread that asks `times` times; the second value says how often it has passed.
    fn behind_a_shut_gate(times: usize) -> (Arc<Gate>, Arc<AtomicUsize>, thread::JoinHandle<()>) {
        let (gate, passed) = (Arc::new(Gate::default()), Arc::new(AtomicUsize::new(0)));
        gate.shut();
        let work = {
            let (gate, passed) = (Arc::clone(&gate), Arc::clone(&passed));
            thread::spawn(move || {
                for _ in 0..times {
                    gate.pass();
                    passed.fetch_add(1, SeqCst);
                }
            })
        };
        (gate, passed, work)
    }

    fn wait_for_a_sleeper(gate: &Gate) {
        while gate.sleeping() == 0 {
            thread::yield_now();
        }
    }

    #[test]
    fn it_is_open_without_a_writer_and_for_an_idle_one() {
        let gate = Gate::default();
        gate.pass();
        gate.shut();
        gate.leave_open();
        gate.pass();
    }

    #[test]
    fn a_trip_that_takes_no_time_lets_one_step_through() {
        let (gate, passed, work) = behind_a_shut_gate(3);
        for steps in 0..3 {
            wait_for_a_sleeper(&gate);
            assert_eq!(passed.load(SeqCst), steps);
            gate.open_for(Duration::ZERO);
            gate.shut();
            while passed.load(SeqCst) == steps {
                thread::yield_now();
            }
        }
        work.join().unwrap();
    }

    #[test]
    fn work_comes_on_under_a_writer_that_never_rests() {
        let (gate, passed, work) = behind_a_shut_gate(1000);
        while passed.load(SeqCst) < 1000 {
            gate.leave();
            gate.come_back(Duration::ZERO);
        }
        work.join().unwrap();
    }

    #[test]
    fn a_hurry_opens_it_and_its_end_shuts_it() {
        let (gate, _, work) = behind_a_shut_gate(2);
        wait_for_a_sleeper(&gate);
        let (one, other) = (gate.hurry(), gate.hurry());
        work.join().unwrap();
        drop(one);
        assert!(gate.is_open());
        drop(other);
        assert!(!gate.is_open());
    }

    #[test]
    fn a_store_that_is_behind_is_in_a_hurry_once() {
        let (gate, _, work) = behind_a_shut_gate(2);
        wait_for_a_sleeper(&gate);
        gate.set_behind(true);
        gate.set_behind(true);
        work.join().unwrap();
        gate.set_behind(false);
        assert!(!gate.is_open());
        gate.set_behind(false);
        assert_eq!(gate.hurried.load(SeqCst), 0);
    }

    #[test]
    fn trips_are_known_by_their_median() {
        let gate = Gate::default();
        for trip in 0..3000 {
            let us = if trip % 10 == 0 { 1_000_000 } else { 1000 + trip % 7 };
            gate.come_back(Duration::from_micros(us));
        }
        let trip = Duration::from_nanos(gate.trip_ns.load(SeqCst));
        assert!((Duration::from_micros(800)..Duration::from_micros(1200)).contains(&trip), "{trip:?}");
        for _ in 0..3000 {
            gate.come_back(Duration::ZERO);
        }
        assert!(gate.trip_ns.load(SeqCst) < 1000);
    }
}
