//! What this process takes of the machine, as `/proc` has it (`proc_pid_stat(5)`).

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

/// What this process takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Process {
    /// Processor time, in user and kernel, seconds.
    pub(crate) cpu_seconds: f64,
    /// When it began, seconds since 1970-01-01 UTC.
    pub(crate) start_seconds: f64,
    /// Memory that is resident.
    pub(crate) resident_bytes: u64,
    /// Address space.
    pub(crate) virtual_bytes: u64,
    /// Threads.
    pub(crate) threads: u64,
    /// Open file descriptors.
    pub(crate) open_fds: u64,
    /// The most that it may open.
    pub(crate) max_fds: Option<u64>,
}

/// Looks at this process; `None` without a `/proc`.
pub(crate) fn look() -> Option<Process> {
    let (stat, boot) = (fs::read_to_string("/proc/self/stat").ok()?, fs::read_to_string("/proc/stat").ok()?);
    let mut process = parse(&stat, &boot, clock_ticks_per_second(), page_size() as u64)?;
    process.open_fds = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    process.max_fds = getrlimit(Resource::Nofile).current;
    Some(process)
}

#[expect(clippy::cast_precision_loss, reason = "seconds for people and graphs")]
fn parse(stat: &str, boot: &str, ticks_per_second: u64, page_bytes: u64) -> Option<Process> {
    // The second field is the program's name, in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    // The first of these is the third field.
    let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
    let boot_seconds: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let seconds = |ticks: u64| ticks as f64 / ticks_per_second as f64;
    Some(Process {
        cpu_seconds: seconds(field(14)? + field(15)?),
        start_seconds: boot_seconds as f64 + seconds(field(22)?),
        threads: field(20)?,
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page_bytes,
        open_fds: 0,
        max_fds: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_is_called() {
        let stat =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 150 0 0 20 0 9 0 4200 8192000 300 18446744073709551615 1";
        let process = parse(stat, "cpu 1 2 3\nbtime 1700000000\nprocesses 9\n", 100, 4096).unwrap();
        let expected = Process {
            cpu_seconds: 4.0,
            start_seconds: 1_700_000_042.0,
            resident_bytes: 300 * 4096,
            virtual_bytes: 8_192_000,
            threads: 9,
            open_fds: 0,
            max_fds: None,
        };
        assert_eq!(process, expected);
        assert_eq!(parse("7 (a", "btime 1", 100, 4096), None);
    }

    #[test]
    fn this_process_is_there() {
        let process = look().unwrap();
        assert!(process.resident_bytes > 0 && process.threads > 0 && process.open_fds > 2, "{process:?}");
    }
}
