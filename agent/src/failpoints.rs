//! Places where a test can end the agent, or hold it up: only in builds with the `failpoints` feature.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use crate::exit::{Exit, Failure};

/// Names what to arm: `name[=hits to let pass]` or `name=pause:milliseconds`, separated by commas.
const VARIABLE: &str = "HOLDFAST_FAILPOINTS";

/// All places, by name.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    [journal::FAILPOINTS, applier::FAILPOINTS, loader::FAILPOINTS].into_iter().flatten().copied()
}

/// Arms what the environment names: the process ends there as if by `kill -9`, or whoever comes by there is held up.
pub(crate) fn arm() -> Result<(), Failure> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, skip) = entry.split_once('=').unwrap_or((entry, "0"));
        let (pauses, number) = skip.strip_prefix("pause:").map_or((false, skip), |pause| (true, pause));
        let what = if pauses { "milliseconds" } else { "hits" };
        let number: u64 =
            number.parse().map_err(|_| usage(format!("`{entry}`: `{number}` is not a number of {what}")))?;
        let name = all()
            .find(|known| *known == name)
            .ok_or_else(|| usage(format!("there is no failpoint `{name}`: `holdfast failpoints` lists them")))?;
        let hits = AtomicU64::new(0);
        let armed = fail::cfg_callback(name, move || {
            if pauses {
                thread::sleep(Duration::from_millis(number));
            } else if hits.fetch_add(1, Ordering::SeqCst) == number {
                kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
            }
        });
        armed.map_err(|error| Failure::new(Exit::Failure, format!("cannot arm {name}: {error}")))?;
    }
    Ok(())
}

fn usage(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, format!("{VARIABLE}: {message}"))
}
