//! Schema version 1, frozen: version 2 has a record of its own, version 3 services and the node; the rest is from here.
//!
//! What this module describes is on people's disks. A change to it is a new version: see [`crate::codec`]. The golden files
//! under `golden/v1/` fail the tests when an encoded byte moves.

pub mod record;
pub mod resource;

/// The number that stands in front of an archive of this version.
pub const VERSION: u32 = 1;
