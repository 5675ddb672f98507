//! What the kernel says of loaded programs: what the verifier saw, and, while that is counted, how long they run.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};

use crate::error::LoadError;
use crate::generation::Generation;
use crate::hook::{HOOKS, Hook};

/// A program's figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramFigures {
    /// The hook it is for.
    pub hook: &'static str,
    /// Instructions that the verifier went through, each as often as it did (kernels ≥ 5.16; else 0).
    pub verified_instructions: u32,
    /// Bytes of BPF code, after the verifier.
    pub translated_bytes: u32,
    /// Bytes of machine code; 0: it is interpreted.
    pub compiled_bytes: u32,
    /// Runs that were counted: see [`count_run_time`].
    pub runs: u64,
    /// Nanoseconds that these took.
    pub run_ns: u64,
}

impl Generation {
    /// The figures of its programs, in the order of [`HOOKS`].
    pub fn figures(&self) -> Result<Vec<ProgramFigures>, LoadError> {
        HOOKS.iter().map(|hook| self.figures_of(hook)).collect()
    }

    fn figures_of(&self, hook: &Hook) -> Result<ProgramFigures, LoadError> {
        let failed = || LoadError::program(hook.program);
        let info = ProgramInfo::from_pin(self.program(hook.program)).map_err(failed())?;
        let program = info.fd().map_err(failed())?;
        // aya has everything but the counters.
        let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
        let counters = fs::read_to_string(&path).map_err(LoadError::io("read", path))?;
        let counter = |name: &str| {
            let line = counters.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
        };
        Ok(ProgramFigures {
            hook: hook.name,
            verified_instructions: info.verified_instruction_count().unwrap_or_default(),
            translated_bytes: info.size_translated().unwrap_or_default(),
            compiled_bytes: info.size_jitted(),
            runs: counter("run_cnt"),
            run_ns: counter("run_time_ns"),
        })
    }
}

/// Has the kernel count every program's runs and their time until what is returned is dropped.
pub fn count_run_time() -> Result<OwnedFd, LoadError> {
    enable_stats(Stats::RunTime).map_err(|error| LoadError::bpf("BPF_ENABLE_STATS", "run_time")(error.io_error))
}
