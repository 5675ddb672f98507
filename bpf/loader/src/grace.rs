//! Waiting for readers: a grace period after which no program runs any more that began before it.
//!
//! An update of a map of maps returns only after the kernel has waited for all programs that may still use the entry's
//! old map (`synchronize_rcu` in kernel/bpf/syscall.c, `maybe_wait_bpf_programs`, since 4.20). Holdfast keeps a map of
//! maps that no program uses for nothing but this wait. `membarrier(2)` waits neither on a machine with one processor
//! nor, with its expedited commands, at all.

use std::os::fd::{AsFd, OwnedFd};

use crate::error::LoadError;
use crate::sys;

/// Something to wait with.
#[derive(Debug)]
pub struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    /// Creates the maps that the wait needs. They are not pinned and go with the process.
    pub fn new() -> Result<Self, LoadError> {
        let inner = sys::create_small_array().map_err(LoadError::bpf("BPF_MAP_CREATE", "the grace period's array"))?;
        let outer = sys::create_array_of_maps(inner.as_fd())
            .map_err(LoadError::bpf("BPF_MAP_CREATE", "the grace period's array of maps"))?;
        let grace = Self { outer, inner };
        grace.wait()?;
        Ok(grace)
    }

    /// Returns when no program runs any more that began before this call: some milliseconds.
    pub fn wait(&self) -> Result<(), LoadError> {
        sys::update_array_of_maps(self.outer.as_fd(), self.inner.as_fd())
            .map_err(LoadError::bpf("BPF_MAP_UPDATE_ELEM", "the grace period's array of maps"))
    }
}
