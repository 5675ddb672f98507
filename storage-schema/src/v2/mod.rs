//! Schema version 2, frozen: a record says who pushed it, and since when it was on its way. Resources are version 1's.
//!
//! What this module describes is on people's disks. A change to it is a new version: see [`crate::codec`].

pub mod record;

pub use crate::v1::resource;

/// The number that stands in front of an archive of this version.
pub const VERSION: u32 = 2;
