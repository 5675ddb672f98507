//! Schema version 3: services say how their backends are chosen and what becomes of connections to those that are gone, the
//! node has addresses and a DNS proxy, and a record says why it was written. Kinds, keys and workloads are version 1's.
//!
//! What this module describes is on people's disks. A change to it is a new version: see [`crate::codec`].

pub mod balancing;
pub mod record;
pub mod resource;
mod upcast;

/// The number that stands in front of an archive of this version.
pub const VERSION: u32 = 3;
