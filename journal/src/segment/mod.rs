//! Segment files (skeleton).

pub mod recovery;

/// The smallest segment: its header and some records.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
