//! Killed at every failpoint there is: what was acknowledged is there, tables equal the journal, and no connection
//! notices.
//!
//! There is one test for each name that `journal`, `applier` and `loader` list, so a failpoint that is added is tested
//! without a line here, if its crate's scenarios reach it; one that is never reached fails.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use rand::Rng;
use recovery_tests::agent::{Agent, SMALL, Settings, holdfast, run as run_command};
use recovery_tests::requirements::{check_kernel, kernel_is_usable};
use recovery_tests::rig::Rig;
use recovery_tests::seed::Seed;
use storage_schema::map::Capacities;

/// Other tables than [`SMALL`], so that a start has to build a new generation.
const LARGER: Capacities = Capacities { frontends: 512, ..SMALL };

/// For how long transactions are pushed; a failpoint must be reached by then.
const STREAM_TIME_MAX: Duration = Duration::from_secs(30);
/// Passages that are let through at most before the fatal one.
const PASSAGES_MAX: u64 = 30;
/// The same for the store, which follows a few times a second.
const FOLDS_MAX: u64 = 4;
/// Changes in one transaction, many more than the store folds in one step.
const CROWD: usize = 200;
/// What is left of a segment of the journal when the stream that fills it begins.
const SEGMENT_BYTES_FREE: usize = 32 << 10;

/// How long a segment is that is to be filled: short, so that few bytes do.
const SEGMENT_BYTES: u64 = 1 << 20;
/// The same, for the agent.
const SHORT_SEGMENTS: &[&str] = &["--journal-segment-bytes=1048576"];

/// A journal that keeps little of its past.
const FORGETFUL: &[&str] = &[
    "--journal-segment-bytes=65536",
    "--journal-checkpoint-records=20",
    "--journal-checkpoint-bytes=16384",
    "--journal-keep-records=30",
];

/// What goes on when the agent is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scenario {
    /// Its very first start, with nothing there.
    FirstStart,
    /// A start with pins and live connections, and other capacities: a new generation.
    NewGeneration,
    /// A running agent that switches to a new generation, with live connections.
    Renewal,
    /// A stream of transactions, with live connections.
    Stream,
    /// A start that finds what is pinned to be the journal's, with live connections.
    Restart,
    /// A stream of transactions, some of them with many changes, with live connections.
    Crowd,
    /// A stream of transactions that fills a segment, with live connections.
    Rotation,
    /// A stream of transactions, with live connections, while the journal makes checkpoints and lets its past go.
    Forgetting,
}

/// In which scenarios a failpoint must be reached. Who adds one that a stream does not reach adds a line here.
fn scenarios(failpoint: &str) -> &'static [Scenario] {
    use Scenario::{Crowd, FirstStart, Forgetting, NewGeneration, Renewal, Restart, Rotation, Stream};
    match failpoint {
        "loader.before_discard" | "loader.after_discard" => &[NewGeneration, Renewal],
        "applier.before_activate" | "applier.after_activate" | "applier.before_load" | "applier.before_loaded" => {
            &[FirstStart, NewGeneration, Restart]
        }
        "applier.before_recover" | "applier.before_compare" => &[Restart],
        "applier.before_complete" => &[FirstStart, NewGeneration, Renewal],
        "journal.store.step.after" => &[Crowd],
        "applier.before_switch" | "applier.after_switch" => &[Renewal],
        _ if failpoint.starts_with("loader.") => &[FirstStart, NewGeneration, Renewal],
        _ if failpoint.starts_with("journal.segment.") => &[FirstStart, Rotation],
        _ if failpoint.starts_with("journal.checkpoint.") || failpoint.starts_with("journal.retention.") => {
            &[Forgetting]
        }
        _ => &[Stream],
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let names = [journal::FAILPOINTS, applier::FAILPOINTS, loader::FAILPOINTS].concat();
    let trials = names.into_iter().flat_map(|name| {
        scenarios(name)
            .iter()
            .map(move |scenario| Trial::test(format!("{name}::{scenario:?}"), move || run(name, *scenario)))
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// On a thread of its own, which it takes into the sandbox.
fn run(failpoint: &'static str, scenario: Scenario) -> Result<(), Failed> {
    if check_kernel().is_err() && !kernel_is_usable() {
        return Ok(());
    }
    let test = std::thread::spawn(move || {
        let seed = Seed::from_environment("failpoints", format!("{failpoint}::{scenario:?}"));
        let mut rig = Rig::new(&seed);
        match scenario {
            Scenario::FirstStart => first_start(&mut rig, failpoint),
            Scenario::NewGeneration => new_generation(&mut rig, failpoint),
            Scenario::Renewal => renewal(&mut rig, failpoint),
            Scenario::Restart => restart(&mut rig, failpoint),
            Scenario::Stream => stream(&mut rig, failpoint),
            Scenario::Crowd => crowd(&mut rig, failpoint),
            Scenario::Rotation => rotation(&mut rig, failpoint),
            Scenario::Forgetting => forgetting(&mut rig, failpoint),
        }
        rig.finish();
    });
    test.join().map_err(|_| Failed::from("see above"))
}

fn first_start(rig: &mut Rig, failpoint: &'static str) {
    let settings = Settings::default();
    let links = if failpoint.ends_with("_link") { rig.random().random_range(0..=1) } else { 0 };
    let armed = Settings { failpoint: Some((failpoint, links)), ..settings.clone() };
    expect_death_at_start(rig, &armed);
    let mut agent = Agent::spawn(rig.sandbox(), &settings);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no start after that: {ended:?}"));
    rig.check_recovered(&agent, &ready);
    rig.lay_foundation(&agent);
    rig.open_live_connections();
    agent.kill();
    restart_and_check(rig, &settings);
}

fn new_generation(rig: &mut Rig, failpoint: &'static str) {
    let agent = Agent::start(rig.sandbox(), &Settings::default());
    rig.lay_foundation(&agent);
    rig.open_live_connections();
    assert!(rig.push_random(&agent, 20), "a running agent takes transactions");
    agent.kill();

    let settings = Settings { capacities: LARGER, ..Settings::default() };
    let links = if failpoint.ends_with("_link") { rig.random().random_range(0..=1) } else { 0 };
    expect_death_at_start(rig, &Settings { failpoint: Some((failpoint, links)), ..settings.clone() });
    rig.check_abandoned();
    restart_and_check(rig, &settings);
}

fn renewal(rig: &mut Rig, failpoint: &'static str) {
    let settings = lay_foundation(rig, Settings::default());
    let links = if failpoint.ends_with("_link") { rig.random().random_range(0..=1) } else { 0 };
    // Equal epochs: the start itself comes by none of these places.
    let mut agent = Agent::start(rig.sandbox(), &Settings { failpoint: Some((failpoint, links)), ..settings.clone() });
    let mut renew = holdfast(rig.sandbox());
    renew.args(["bpf", "renew"]);
    let answer = run_command(renew);
    assert!(!answer.status.success(), "{failpoint} was never reached: {answer:?}");
    let ended = agent.wait_end().expect("an agent that does not answer is dead or dying");
    assert!(ended.code().is_none(), "it was killed and did not give up: {ended}");
    rig.check_abandoned();
    restart_and_check(rig, &settings);
}

fn restart(rig: &mut Rig, failpoint: &'static str) {
    let settings = lay_foundation(rig, Settings::default());
    // The tables are behind the journal, or not: both are believed.
    if rig.random().random_bool(0.5) {
        push_until_death(rig, &Settings { failpoint: Some(("journal.ack.before", 5)), ..settings.clone() }, push_some);
    }
    expect_death_at_start(rig, &Settings { failpoint: Some((failpoint, 0)), ..settings.clone() });
    rig.check_abandoned();
    restart_and_check(rig, &settings);
}

fn stream(rig: &mut Rig, failpoint: &'static str) {
    let settings = lay_foundation(rig, Settings::default());
    let most = if failpoint.starts_with("journal.store.") { FOLDS_MAX } else { PASSAGES_MAX };
    let skip = rig.random().random_range(1..=most);
    push_until_death(rig, &Settings { failpoint: Some((failpoint, skip)), ..settings.clone() }, push_some);
    restart_and_check(rig, &settings);
}

fn crowd(rig: &mut Rig, failpoint: &'static str) {
    let settings = lay_foundation(rig, Settings::default());
    let skip = rig.random().random_range(1..=PASSAGES_MAX);
    let armed = Settings { failpoint: Some((failpoint, skip)), ..settings.clone() };
    push_until_death(rig, &armed, |rig, agent| rig.push_random(agent, 5) && rig.push_crowd(agent, CROWD));
    restart_and_check(rig, &settings);
}

fn rotation(rig: &mut Rig, failpoint: &'static str) {
    let settings = lay_foundation(rig, Settings { journal: SHORT_SEGMENTS, ..Settings::default() });
    rig.fill_segment(SEGMENT_BYTES, SEGMENT_BYTES_FREE);
    push_until_death(rig, &Settings { failpoint: Some((failpoint, 0)), ..settings.clone() }, push_some);
    restart_and_check(rig, &settings);
}

fn forgetting(rig: &mut Rig, failpoint: &'static str) {
    let settings = lay_foundation(rig, Settings { journal: FORGETFUL, ..Settings::default() });
    push_until_death(rig, &Settings { failpoint: Some((failpoint, 0)), ..settings.clone() }, push_some);
    restart_and_check(rig, &settings);
}

fn lay_foundation(rig: &mut Rig, settings: Settings) -> Settings {
    let agent = Agent::start(rig.sandbox(), &settings);
    rig.lay_foundation(&agent);
    rig.open_live_connections();
    agent.kill();
    settings
}

fn push_some(rig: &mut Rig, agent: &Agent) -> bool {
    rig.push_random(agent, 20)
}

/// Pushes with `push` until that is not acknowledged any more. What its start does may be enough to reach the place.
fn push_until_death(rig: &mut Rig, armed: &Settings, mut push: impl FnMut(&mut Rig, &Agent) -> bool) {
    let mut agent = Agent::spawn(rig.sandbox(), armed);
    if let Err(ended) = agent.wait_ready() {
        assert!(ended.was_killed(), "{:?}: {ended:?}", armed.failpoint);
        return rig.check_abandoned();
    }
    let begin = Instant::now();
    while push(rig, &agent) {
        assert!(begin.elapsed() < STREAM_TIME_MAX, "{:?} was never reached", armed.failpoint);
    }
    let ended = agent.wait_end().expect("an agent that does not answer is dead or dying");
    assert!(ended.code().is_none(), "it was killed and did not give up: {ended}");
    rig.check_abandoned();
}

fn expect_death_at_start(rig: &Rig, armed: &Settings) {
    let mut agent = Agent::spawn(rig.sandbox(), armed);
    match agent.wait_ready() {
        Ok(status) => panic!("{:?} was never reached: {status:#?}", armed.failpoint),
        Err(ended) => assert!(ended.was_killed(), "{:?}: {ended:?}", armed.failpoint),
    }
}

/// Restarts, checks everything, kills again, and looks into what was left.
fn restart_and_check(rig: &mut Rig, settings: &Settings) {
    let mut agent = Agent::spawn(rig.sandbox(), settings);
    let ready = agent.wait_ready().unwrap_or_else(|ended| panic!("no restart: {ended:?}"));
    rig.check_recovered(&agent, &ready);
    assert!(rig.push_random(&agent, 5), "it goes on");
    agent.wait_applied(rig.oracle().acknowledged());
    rig.check_destinations();
    agent.kill();
    rig.check_pinned();
    rig.check_abandoned();
}
