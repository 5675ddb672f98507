//! SIGKILL at random moments and at every failpoint: the test runs itself as a child that appends, kills it, and compares
//! what it said was acknowledged with what is on the disk.
//!
//! `HOLDFAST_CRASH_SEED=<seed>` repeats a run; a failure prints the seed.

mod sample;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use journal::{CheckpointPolicy, Config, FAILPOINTS, Journal, OriginState, Retention};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sample::{origin, service, transaction, upsert};
use storage_schema::codec::encode_resource;
use storage_schema::id::Lsn;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, ResourceKey};

const DIR: &str = "HOLDFAST_CRASH_DIR";
const FAILPOINT: &str = "HOLDFAST_CRASH_FAILPOINT";
const HITS: &str = "HOLDFAST_CRASH_HITS";
const SEED: &str = "HOLDFAST_CRASH_SEED";
/// Set for a child that keeps little of the past.
const FORGETFUL: &str = "HOLDFAST_CRASH_FORGETFUL";
const PUSHERS: u64 = 4;

fn config(dir: &Path, forgetful: bool) -> Config {
    Config {
        segment_bytes: 64 << 10,
        receipts_per_source: 64,
        checkpoint: CheckpointPolicy { records: 50, bytes: 1 << 30 },
        retention: Retention { records: forgetful.then_some(200), ..Retention::default() },
        ..Config::new(dir)
    }
}

/// The child. Without its environment it is a test of nothing, and says so by doing nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    if let Ok(name) = std::env::var(FAILPOINT) {
        let hits = AtomicU32::new(std::env::var(HITS).unwrap().parse().unwrap());
        fail::cfg_callback(name, move || {
            if hits.fetch_sub(1, Ordering::SeqCst) == 1 {
                kill_myself();
            }
        })
        .unwrap();
    }
    let journal = Journal::open(config(Path::new(&dir), std::env::var_os(FORGETFUL).is_some())).unwrap();
    std::thread::scope(|scope| {
        for pusher in 0..PUSHERS {
            let journal = journal.clone();
            scope.spawn(move || push(&journal, pusher));
        }
    });
}

fn kill_myself() {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    std::thread::sleep(Duration::from_mins(1));
}

fn push(journal: &Journal, pusher: u64) {
    let source = format!("pusher-{pusher}");
    let first = journal.source(&source).and_then(|state| state.last_version).map_or(1, |last| last + 1);
    for version in first.. {
        let key = version % 40;
        let delta = if version % 7 == 0 {
            Delta::Remove(ResourceKey::new(Kind::Service, format!("p{pusher}/s{key}")))
        } else {
            let mut service = service(&format!("p{pusher}/s{key}"));
            service.hostname = "h".repeat(usize::try_from(version * 37 % 1500).unwrap());
            upsert(service)
        };
        let permit = journal.blocking_reserve().unwrap();
        let submitted = permit.submit(transaction(&source, Some(version), vec![delta])).unwrap();
        let receipt = submitted.ack.blocking_wait().unwrap();
        // One write, so that the parent sees the line whole or not at all.
        let line = format!("acked {pusher} {version} {} {}\n", receipt.lsn, receipt.hash);
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
}

struct Acked {
    pusher: u64,
    version: u64,
    lsn: Lsn,
    hash: String,
}

fn start(dir: &Path, failpoint: Option<(&str, u32)>, forgetful: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["child", "--exact", "--nocapture", "--test-threads=1"]).env(DIR, dir);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    if forgetful {
        command.env(FORGETFUL, "1");
    }
    if let Some((name, hits)) = failpoint {
        command.env(FAILPOINT, name).env(HITS, hits.to_string());
    }
    command.spawn().unwrap()
}

/// Runs a child until it is dead; returns what it acknowledged.
fn run_and_kill(dir: &Path, failpoint: Option<(&str, u32)>, patience: Duration, forgetful: bool) -> Vec<Acked> {
    let mut child = start(dir, failpoint, forgetful);
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let reader = std::thread::spawn(move || {
        let mut acked = Vec::new();
        for line in stdout.lines().map_while(Result::ok) {
            // The test harness prints its own words in front of the first one.
            let Some(words) = line.split("acked ").nth(1) else { continue };
            let words: Vec<&str> = words.split(' ').collect();
            let number = |at: usize| words[at].parse().unwrap();
            acked.push(Acked { pusher: number(0), version: number(1), lsn: Lsn(number(2)), hash: words[3].to_owned() });
        }
        acked
    });
    std::thread::sleep(patience);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// Opens the journal and compares it with everything that was ever acknowledged.
fn check(dir: &Path, acked: &[Acked]) {
    let journal = Journal::open(config(dir, false)).unwrap();
    assert_eq!(journal.open_report().store_rebuilt, None, "a kill does not cost the store");
    let mut hashes = vec![String::new()];
    let mut state = BTreeMap::new();
    let mut versions = BTreeMap::new();
    let mut records = journal.read_from(Lsn(1)).unwrap();
    while let Some(record) = records.next_encoded() {
        let encoded = record.unwrap().into_inner();
        let record = encoded.decode().unwrap();
        assert_eq!(record.lsn.0, hashes.len() as u64, "dense");
        hashes.push(encoded.hash().to_string());
        let origin = record.transaction.origin;
        let before = versions.insert(origin.source.clone(), origin.version.unwrap());
        assert_eq!(before.unwrap_or(0) + 1, origin.version.unwrap(), "each version once, in order: {}", origin.source);
        for delta in record.transaction.deltas {
            match delta {
                Delta::Upsert(resource) => state.insert(resource.key(), (record.lsn, encode_resource(&resource))),
                Delta::Remove(key) => state.remove(&key),
            };
        }
    }
    for ack in acked {
        let found = hashes.get(usize::try_from(ack.lsn.0).unwrap());
        assert_eq!(found, Some(&ack.hash), "acknowledged record {} is there and intact", ack.lsn);
    }
    if let Some(last) = acked.last() {
        let again = journal.origin(&origin(&format!("pusher-{}", last.pusher), 1, last.version)).unwrap();
        let OriginState::Duplicate(again) = again else { panic!("an acknowledged push is not known") };
        assert_eq!((again.lsn(), again.hash().to_string()), (last.lsn, last.hash.clone()));
    }
    let mut stored = BTreeMap::new();
    journal
        .for_each_encoded(|resource| {
            let key = ResourceKey::new(resource.kind, resource.name);
            stored.insert(key, (resource.changed_lsn, resource.encoded.to_vec()));
        })
        .unwrap();
    assert_eq!(stored, state, "the store equals the replay");
}

fn seeded(name: &str, run: impl FnOnce(ChaCha8Rng) + std::panic::UnwindSafe) {
    let seed = std::env::var(SEED).map_or_else(|_| rand::rng().random(), |seed| seed.parse().unwrap());
    if let Err(panic) = std::panic::catch_unwind(|| run(ChaCha8Rng::seed_from_u64(seed))) {
        eprintln!("repeat with: {SEED}={seed} cargo test -p journal --test crash {name}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn killed_at_random_moments() {
    seeded("killed_at_random_moments", |mut random| {
        let mut total = 0;
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let mut acked = Vec::new();
            for _ in 0..40 {
                let patience = Duration::from_micros(random.random_range(1_000..120_000));
                acked.extend(run_and_kill(dir.path(), None, patience, false));
                check(dir.path(), &acked);
            }
            total += acked.len();
        }
        assert!(total > 100, "only {total} acknowledgements were put to the test");
    });
}

#[test]
fn killed_at_every_failpoint() {
    seeded("killed_at_every_failpoint", |mut random| {
        for name in FAILPOINTS {
            let dir = tempfile::tempdir().unwrap();
            let mut acked = Vec::new();
            for round in 0..8 {
                let hits = if round == 0 { 1 } else { random.random_range(1..30) };
                acked.extend(run_and_kill(dir.path(), Some((name, hits)), Duration::from_millis(60), false));
                check(dir.path(), &acked);
            }
        }
    });
}

/// What is still kept, against what was acknowledged: the past may go, but nothing else.
fn check_forgetful(dir: &Path, acked: &[Acked]) {
    let config = Config { retention: Retention::default(), ..config(dir, true) };
    let journal = Journal::open(config).unwrap();
    let report = journal.open_report().clone();
    let mut next = report.oldest_lsn;
    let mut records = journal.read_from(next).unwrap();
    while let Some(record) = records.next_encoded() {
        let record = record.unwrap().into_inner();
        assert_eq!(record.lsn, next, "dense");
        if let Some(ack) = acked.iter().find(|ack| ack.lsn == record.lsn) {
            assert_eq!(record.hash().to_string(), ack.hash);
        }
        next = next.next();
    }
    assert_eq!(next, report.durable_lsn.next());
    assert!(acked.iter().all(|ack| ack.lsn <= report.durable_lsn));
    let state = journal.reader().state_at(report.durable_lsn).unwrap();
    let folded: Vec<_> = state.iter().map(|stored| (stored.name, stored.changed_lsn, stored.encoded)).collect();
    let mut stored = Vec::new();
    journal
        .for_each_encoded(|found| stored.push((found.name.to_owned(), found.changed_lsn, found.encoded.to_vec())))
        .unwrap();
    let stored: Vec<_> = stored.iter().map(|(name, lsn, encoded)| (&**name, *lsn, &**encoded)).collect();
    assert_eq!(stored, folded, "checkpoint and log give what the store has");
}

#[test]
fn killed_while_the_past_is_let_go() {
    seeded("killed_while_the_past_is_let_go", |mut random| {
        let names = FAILPOINTS.iter().filter(|name| name.contains("checkpoint") || name.contains("retention"));
        for name in names {
            let dir = tempfile::tempdir().unwrap();
            let mut acked = Vec::new();
            for _ in 0..4 {
                let hits = random.random_range(1..3);
                acked.extend(run_and_kill(dir.path(), Some((name, hits)), Duration::from_millis(1500), true));
                check_forgetful(dir.path(), &acked);
            }
        }
    });
}
