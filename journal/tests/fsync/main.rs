//! No acknowledgement without a sync before it, seen from outside: a real process on a real disk under strace. What it asked of
//! the kernel, in which order, and with which answers, is compared with what it says was acknowledged.
//!
//! Where strace is missing or may not trace, the test is skipped and says so; in CI (`CI=true`) it fails instead.

#[path = "../sample/mod.rs"]
mod sample;
mod trace;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use journal::segment::header::SEGMENT_HEADER_BYTES;
use journal::segment::scan::{Scanner, Step};
use journal::{Config, Disk, Journal, RealDisk};
use sample::{service, transaction, upsert};
use trace::{Acked, Place};

const DIR: &str = "HOLDFAST_FSYNC_DIR";
const PUSHERS: u64 = 4;
const RECORDS_PER_PUSHER: u64 = 75;

/// The child. Without its environment it is a test of nothing, and says so by doing nothing.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let journal = Journal::open(Config { segment_bytes: 64 << 10, ..Config::new(dir.join("state")) }).unwrap();
    let acks = File::options().create_new(true).append(true).open(dir.join("acks")).unwrap();
    std::thread::scope(|scope| {
        for pusher in 0..PUSHERS {
            let (journal, mut acks) = (journal.clone(), &acks);
            scope.spawn(move || {
                for number in 0..RECORDS_PER_PUSHER {
                    let mut service = service(&format!("shop/svc-{pusher}-{number}"));
                    service.hostname = "h".repeat(1000);
                    let permit = journal.blocking_reserve().unwrap();
                    let submitted = permit.submit(transaction("cp", None, vec![upsert(service)])).unwrap();
                    let receipt = submitted.ack.blocking_wait().unwrap();
                    // One call of write(2).
                    acks.write_all(format!("{}\n", receipt.lsn.0).as_bytes()).unwrap();
                }
            });
        }
    });
}

#[test]
fn every_ack_comes_after_a_sync_that_came_after_the_write() {
    if !strace_is_usable() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("trace");
    let status = Command::new("strace")
        .args(["-f", "-y", "-s", "32", "-e"])
        .arg(format!("trace={}", trace::CALLS))
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture", "--test-threads=1"])
        .env(DIR, dir.path())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let calls = trace::read(&fs::read_to_string(&log).unwrap(), &dir.path().join("acks")).unwrap();
    let places = places(&dir.path().join("state"));
    let segments: std::collections::BTreeSet<_> = places.values().map(|place| &place.path).collect();
    assert!(segments.len() > 2, "segments are opened meanwhile");
    let expected = usize::try_from(PUSHERS * RECORDS_PER_PUSHER).unwrap();
    match trace::check(&calls, &places) {
        Ok(Acked { acks, syncs }) => {
            assert_eq!(acks, expected);
            assert!(syncs > 1, "they were not all in one group");
        }
        Err(wrong) => panic!("{wrong}"),
    }
}

/// Where each record is.
fn places(state: &Path) -> BTreeMap<u64, Place> {
    let store_id = journal::verify(state, |_| {}).unwrap().store_id;
    let mut places = BTreeMap::new();
    for path in fs::read_dir(state.join("journal")).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_none_or(|suffix| suffix != "seg") {
            continue;
        }
        let file = RealDisk.open_read(&path).unwrap();
        let end = file.len().unwrap();
        let mut scanner = Scanner::new(file.into(), store_id, SEGMENT_HEADER_BYTES as u64, end);
        while let Step::Frame(frame) = scanner.step().unwrap() {
            let bytes = frame.offset..scanner.offset();
            places.insert(frame.lsn.0, Place { path: path.clone(), bytes });
        }
    }
    places
}

fn strace_is_usable() -> bool {
    let probe = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    let missing = match probe {
        Ok(output) if output.status.success() => return true,
        Ok(output) => format!("strace cannot trace: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => format!("strace cannot be run: {error}; xtask/setup.sh installs it"),
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI nothing is skipped: {missing}");
    eprintln!("skipped: {missing}");
    false
}
