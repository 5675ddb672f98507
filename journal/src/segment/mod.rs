//! Segment files: the truth on disk.
//!
//! `<state dir>/journal/<first LSN, 20 digits>.seg` is a [`header`] of 4096 bytes, then [`frame`]s without gaps, then zeros
//! up to the preallocated length. Only the last segment is written to; one that has a successor never changes again.
//!
//! * [`frame`]: one record. Pure.
//! * [`header`]: the head of a file. Pure.
//! * [`scan`]: reads frames from a file.
//! * [`recovery`]: what the end of a log means. Pure.
//! * [`catalogue`]: which segments there are, shared by the writer and readers.
//! * [`open`]: from the files on a disk to a log that can be appended to.
//! * [`mod@write`]: creates segments and writes groups; knows no threads.

pub mod catalogue;
pub mod frame;
pub mod header;
pub mod open;
pub mod recovery;
pub mod scan;
pub mod write;

/// The smallest segment: its header and some records.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;
