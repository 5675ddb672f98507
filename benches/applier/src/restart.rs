//! From an open journal to attached programs, in fresh processes: with the maps pinned, and with nothing pinned.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use applier::tables::KernelTables;
use applier::{Applier, Loader, Model, Pipeline, Target, plan};
use journal::{Config, Journal};
use loader::Datapath;

use crate::figures::{median, milliseconds};
use crate::place::Place;
use crate::sample::{Size, fill};
use crate::{Options, memory};

/// Set for a child: `start`, `start-unshown`, `steps` or `memory`, then services, endpoints, pin root, cgroup and state directory.
pub(crate) const CHILD: &str = "HOLDFAST_BENCH_APPLIER_CHILD";

pub(crate) fn run(options: &Options, place: &Place) {
    let size = options.size;
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let state = dir.path().join("state");
    drop(fill(&state, size));
    println!(
        "restart with {} services and {} endpoints, fresh processes, files in the page cache ({} rounds, medians)",
        size.services, size.endpoints, options.rounds
    );
    println!(
        "                    | opening the journal, ms | ready, ms | loaded, ms | entries written | links changed"
    );
    let mut rebuilt = Vec::new();
    let mut pinned = Vec::new();
    let mut unshown = Vec::new();
    for _ in 0..options.rounds {
        place.clear();
        rebuilt.push(spawn("start", size, place, &state));
        pinned.push(spawn("start", size, place, &state));
        unshown.push(spawn("start-unshown", size, place, &state));
    }
    let all = [("nothing pinned", &rebuilt), ("pinned, unchanged", &pinned), ("  store read again", &unshown)];
    for (name, rounds) in all {
        let [open, ready, loaded, entries, links] = columns(rounds);
        println!("  {name:<17} | {open:>23.0} | {ready:>9.0} | {loaded:>10.0} | {entries:>15.0} | {links:>13.0}");
    }
    let rounds: Vec<_> = (0..options.rounds).map(|_| spawn("steps", size, place, &state)).collect();
    let [read, load, everything, recover, reconcile] = columns(&rounds);
    println!("  steps of the latter, one after the other, ms:");
    println!("  reading the store {read:.0}; the same, into a model {load:.0};");
    println!("  the plan {everything:.0}; the layout from the tables {recover:.0}; comparing {reconcile:.0}");
    place.clear();
}

fn columns<const N: usize>(rounds: &[Vec<f64>]) -> [f64; N] {
    std::array::from_fn(|column| median(rounds.iter().map(|round| round[column]).collect()))
}

/// What a child measured.
pub(crate) fn spawn(order: &str, size: Size, place: &Place, state: &Path) -> Vec<f64> {
    let program = std::env::current_exe().expect("this program");
    let loader::Options { pin_root, cgroup } = place.options();
    let Size { services, endpoints } = size;
    let order =
        format!("{order}:{services}:{endpoints}:{}:{}:{}", pin_root.display(), cgroup.display(), state.display());
    let output = Command::new(program).env(CHILD, order).stderr(Stdio::inherit()).output().expect("a child");
    assert!(output.status.success(), "{}", output.status);
    let text = String::from_utf8(output.stdout).expect("numbers");
    text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// Carries out an order and ends without closing anything, as a kill would.
pub(crate) fn child(order: &str) {
    let mut parts = order.splitn(6, ':');
    let mut part = || parts.next().expect("an order has six parts");
    let order = part();
    let size = Size { services: part().parse().expect("a count"), endpoints: part().parse().expect("a count") };
    let options = loader::Options { pin_root: part().into(), cgroup: part().into() };
    let state = Path::new(part());
    let mut shown = (order == "start").then(|| Loader::new(0));
    let begun = Instant::now();
    let journal = Journal::open_showing(Config::new(state), |stored| {
        if let Some(shown) = &mut shown {
            shown.add(&stored);
        }
    });
    let journal = journal.expect("a journal");
    let opened = begun.elapsed();
    match order {
        "start" | "start-unshown" => {
            let begun = Instant::now();
            let options = applier::Options::new(Target::Kernel(options), size.capacities());
            let pipeline = Pipeline::start_shown(journal, shown, options).expect("a pipeline");
            let ready = begun.elapsed();
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(pipeline.loaded()).expect("the state can be loaded");
            let loaded = begun.elapsed();
            let report = pipeline.status().start;
            println!(
                "{} {} {} {} {}",
                milliseconds(opened),
                milliseconds(ready),
                milliseconds(loaded),
                report.entries_written,
                report.links_changed
            );
            std::mem::forget(pipeline);
        }
        "steps" => steps(journal, options, size),
        "memory" => memory::child(journal, options, size),
        other => panic!("unknown order {other}"),
    }
    exit();
}

/// What a start with pinned maps is made of, one after the other.
fn steps(journal: Journal, options: loader::Options, size: Size) {
    let timed = |work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        milliseconds(begun.elapsed())
    };
    let head = journal.durable().head();
    let mut count = 0;
    let read = timed(&mut || assert!(journal.for_each_encoded(|_| count += 1).is_ok()));
    assert_eq!(count, size.services + size.endpoints);
    let mut model = Model::default();
    let load = timed(&mut || {
        let mut loader = Loader::new(count as usize);
        let loaded = journal.for_each_encoded(|stored| loader.add(&stored));
        loaded.expect("readable");
        model = loader.finish().expect("decodable");
    });
    let mut wanted = applier::entry::Changes::default();
    let everything = timed(&mut || wanted = plan::everything(&model));
    let generation = Datapath::open(options).and_then(|datapath| datapath.complete_generations());
    let generation = generation.expect("a pin root").pop().expect("a generation");
    let mut applier = None;
    let recover = timed(&mut || {
        let tables = KernelTables::open(&generation, size.capacities()).expect("its tables");
        applier = Some(Applier::recover(tables).expect("they are whole").0);
    });
    let mut applier = applier.expect("it was recovered");
    let reconcile = timed(&mut || {
        let applied = applier.reconcile(&mut wanted, head).expect("they are equal");
        assert_eq!(applied.entries, 0);
    });
    println!("{read} {load} {everything} {recover} {reconcile}");
    std::mem::forget(journal);
}

fn exit() -> ! {
    use std::io::Write;
    let _ = std::io::stdout().flush();
    // No destructor runs: the journal is left as a SIGKILL leaves it.
    std::process::exit(0);
}
