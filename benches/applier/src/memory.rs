//! What a service and an endpoint take: resident in the agent beside the store's cache, and in the kernel.

use std::fs;
use std::thread;
use std::time::Duration;

use applier::{Pipeline, Target};
use journal::Journal;
use loader::Datapath;
use storage_schema::map::name;

use crate::figures::{count, median};
use crate::place::Place;
use crate::restart::spawn;
use crate::sample::{Size, fill};
use crate::{Options, bpf};

/// Longer than the allocator keeps what was freed.
const SETTLING: Duration = Duration::from_secs(3);

/// The maps that grow with the state.
const MAPS: [&str; 5] = [name::FRONTEND_INDEX, name::FRONTENDS, name::SERVICES, name::ENDPOINTS, name::BACKENDS];

pub(crate) fn run(options: &Options, place: &Place) {
    let full = options.size;
    let bare = Size { endpoints: 0, ..full };
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let measure = |size: Size, name: &str| {
        let state = dir.path().join(name);
        drop(fill(&state, size));
        place.clear();
        // The first one fills the maps, and is not a restart.
        spawn("memory", size, place, &state);
        let rounds: Vec<_> = (0..options.rounds).map(|_| spawn("memory", size, place, &state)).collect();
        [0, 1, 2].map(|column| median(rounds.iter().map(|round| round[column]).collect()))
    };
    let [bare_bytes, _, _] = measure(bare, "bare");
    let [full_bytes, settled, most] = measure(full, "full");
    println!(
        "memory of an agent with {} services and {} endpoints, after a restart with pinned maps",
        full.services, full.endpoints
    );
    println!(
        "  model and layout: {:.0} bytes a service, {:.0} bytes an endpoint, {:.1} MB in all ({} rounds, medians)",
        bare_bytes / count(full.services.into()),
        (full_bytes - bare_bytes) / count(full.endpoints.max(1).into()),
        full_bytes / 1e6,
        options.rounds
    );
    println!(
        "  resident in all, the store's cache included: {:.1} MB once started, at most {:.1} MB meanwhile",
        settled / 1e6,
        most / 1e6
    );
    let datapath = Datapath::open(place.options()).expect("a pin root");
    let generation = datapath.complete_generations().expect("a pin root").pop().expect("a generation");
    let bytes = MAPS.map(|map| count(bpf::pinned_bytes(&generation.map(map)).expect("a map")));
    let capacities = full.capacities();
    let (services, endpoints) = (count(capacities.services.into()), count(capacities.endpoints.into()));
    println!(
        "  kernel: {:.0} bytes a service admitted (index {:.0}, frontends {:.0}, services {:.0}), {:.0} an endpoint (runs {:.0}, backends {:.0}), {:.1} MB in all",
        (bytes[0] + bytes[1] + bytes[2]) / services,
        bytes[0] / services,
        bytes[1] / services,
        bytes[2] / services,
        (bytes[3] + bytes[4]) / endpoints,
        bytes[3] / endpoints,
        bytes[4] / endpoints,
        bytes.iter().sum::<f64>() / 1e6
    );
    place.clear();
}

/// Prints what the start adds to what is resident, what is resident then, and the most that ever was.
pub(crate) fn child(journal: Journal, options: loader::Options, size: Size) {
    // Fills the store's cache, which is not the applier's.
    let read = journal.resources(None).flatten().count();
    assert_eq!(read, size.services as usize + size.endpoints as usize);
    let before = settled_bytes();
    let pipeline = Pipeline::start(journal, applier::Options::new(Target::Kernel(options), size.capacities()))
        .expect("a pipeline");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(pipeline.loaded()).expect("the state can be loaded");
    let after = settled_bytes();
    println!("{} {after} {}", after - before, status_bytes("VmHWM:"));
    std::mem::forget(pipeline);
}

/// What is resident once the allocator has given back what was freed: it does so by itself, a moment later.
fn settled_bytes() -> f64 {
    let mut bytes = status_bytes("RssAnon:");
    loop {
        thread::sleep(SETTLING);
        // It also does so when somebody frees something: so do threads that work.
        thread::spawn(|| drop(Vec::<u8>::with_capacity(1 << 20))).join().expect("it does not panic");
        let later = status_bytes("RssAnon:");
        if later >= bytes {
            return later;
        }
        bytes = later;
    }
}

/// A field of /proc/self/status in bytes.
fn status_bytes(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    let kilobytes: f64 = line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default();
    kilobytes * 1024.0
}
