//! Places where a test can end the agent: only in builds with the `failpoints` feature.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use crate::exit::{Exit, Failure};

/// Names what to arm: `name[=hits to let pass]`, separated by commas.
const VARIABLE: &str = "HOLDFAST_FAILPOINTS";

/// All places, by name.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    [journal::FAILPOINTS, applier::FAILPOINTS, loader::FAILPOINTS].into_iter().flatten().copied()
}

/// Arms what the environment names: the process ends there as if by `kill -9`.
pub(crate) fn arm() -> Result<(), Failure> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, skip) = entry.split_once('=').unwrap_or((entry, "0"));
        let skip: u64 = skip.parse().map_err(|_| usage(format!("`{entry}`: `{skip}` is not a number of hits")))?;
        let name = all()
            .find(|known| *known == name)
            .ok_or_else(|| usage(format!("there is no failpoint `{name}`: `holdfast failpoints` lists them")))?;
        let hits = AtomicU64::new(0);
        let armed = fail::cfg_callback(name, move || {
            if hits.fetch_add(1, Ordering::SeqCst) == skip {
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
