//! Cells: two versions of a payload, so that one of them can be replaced while readers use the other.
//!
//! * A version whose epoch is above the reader's does not exist for that reader.
//! * Of the others, the one with the highest epoch holds.
//! * Memory that was never written (all zeros) is a version of epoch 0 whose payload says "absent".
//!
//! A writer replaces the version that holds for no reader: epoch := [`NEVER`], payload, epoch := N. Neither the kernel
//! nor the processor reorders that for the reader: each step is a release store on a machine word.

/// The epoch of a version that does not exist for anybody: it is being written, or was staged and then abandoned.
pub const NEVER: u64 = u64::MAX;

/// Versions in a cell.
pub const VERSIONS: usize = 2;

/// A payload and the epoch from which on it holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Version<P> {
    /// From which epoch on it holds.
    pub epoch: u64,
    /// What holds.
    pub payload: P,
}

/// One entry of a table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell<P> {
    /// The versions, in no order.
    pub versions: [Version<P>; VERSIONS],
}

/// What a table's cells hold. All zeros means "absent".
pub trait Payload: Copy + Default + PartialEq + core::fmt::Debug {
    /// Whether there is anything.
    fn is_present(&self) -> bool;
}

/// Which of two versions with these epochs holds for a reader at `epoch`; `None` if neither does.
///
/// This one function is what "visible" means: for the kernel programs, for the applier and for replay.
#[inline(always)]
#[must_use]
pub const fn visible(epochs: [u64; VERSIONS], epoch: u64) -> Option<usize> {
    match (epochs[0] <= epoch, epochs[1] <= epoch) {
        (true, true) if epochs[0] < epochs[1] => Some(1),
        (true, _) => Some(0),
        (false, true) => Some(1),
        (false, false) => None,
    }
}
