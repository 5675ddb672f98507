//! How long opening takes after a kill, and how much memory writing and opening hold.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use journal::{Config, Journal};

use crate::replay::fill;
use crate::{Options, past};

/// Set for a child: the directory, then `:open`, `:fill:<records>` or `:retain`.
pub(crate) const CHILD: &str = "HOLDFAST_BENCH_JOURNAL_CHILD";

pub(crate) fn run(options: &Options) {
    println!("opening after SIGKILL, in a fresh process, files in the page cache (best of {})", options.rounds);
    println!("  'open' accepts and reads; 'up to date' is when the store has taken in what it was behind as well");
    println!("    records |  open ms | up to date ms | behind | resident MB then | resident MB at most while writing");
    for records in [10_000, 200_000, 1_000_000].into_iter().filter(|records| *records <= options.records) {
        let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
        let state = dir.path().join("state");
        let written = spawn(&format!("{}:fill:{records}", state.display()));
        let mut best: Option<Vec<f64>> = None;
        for _ in 0..options.rounds {
            // Each round finds what the kill has left: an open store catches up.
            let copy = dir.path().join("copy");
            copy_dir(&state, &copy);
            let opened = spawn(&format!("{}:open", copy.display()));
            fs::remove_dir_all(&copy).expect("a copy can be removed");
            if best.as_ref().is_none_or(|best| opened[0] < best[0]) {
                best = Some(opened);
            }
        }
        let best = best.expect("there is a round");
        let [open_ms, current_ms, behind, resident_mb] = best[..] else { unreachable!("a child prints four numbers") };
        println!(
            "  {records:>9} | {open_ms:>8.1} | {current_ms:>13.1} | {behind:>6.0} | {resident_mb:>16.1} | {:>10.1}",
            written[0]
        );
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            fs::copy(path, &to).expect("a file can be copied");
            // As the writer leaves it: not for opening to write to the disk.
            File::open(to).and_then(|copy| copy.sync_all()).expect("a file can be synced");
        }
    }
}

fn spawn(order: &str) -> Vec<f64> {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).env(CHILD, order).stderr(Stdio::inherit()).output().expect("a child");
    // It kills itself, so its status says nothing; what it printed does.
    let text = String::from_utf8(output.stdout).expect("numbers");
    text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
}

/// Carries out an order and ends without closing anything, as a kill would.
pub(crate) fn child(order: &std::ffi::OsStr) {
    let order = order.to_string_lossy().into_owned();
    let (state, order) = order.split_once(':').expect("an order");
    if let Some(records) = order.strip_prefix("fill:") {
        let journal = fill(Path::new(state), records.parse().expect("a number"));
        println!("{}", status_mb("VmHWM:"));
        die(&journal);
    }
    if order == "retain" {
        return past::retain(Path::new(state));
    }
    let started = Instant::now();
    let journal = Journal::open(Config::new(state)).expect("a journal");
    let open_ms = started.elapsed().as_secs_f64() * 1000.0;
    journal.blocking_wait_stored(journal.durable().head().lsn).expect("the store follows");
    let current_ms = started.elapsed().as_secs_f64() * 1000.0;
    println!("{open_ms} {current_ms} {} {}", journal.open_report().folded, status_mb("VmRSS:"));
    die(&journal);
}

fn die(_: &Journal) -> ! {
    use std::io::Write;
    let _ = std::io::stdout().flush();
    // abort() runs no destructors: the journal is left as a SIGKILL leaves it.
    std::process::abort();
}

/// A field of /proc/self/status in megabytes.
pub(crate) fn status_mb(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    let kilobytes: f64 = line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default();
    kilobytes / 1024.0
}
