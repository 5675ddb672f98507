//! Schema version 1.
//!
//! What this module describes is on people's disks. A change to it is a new version: copy the module, bump
//! [`crate::codec::SCHEMA_VERSION`], freeze this one and write the upcast. The golden file under `golden/v1/` fails the
//! tests when an encoded byte moves.

pub mod record;
pub mod resource;

/// The number that stands in front of an archive of this version.
pub const VERSION: u32 = 1;
