//! The ground floor: every type that is stored on disk, kept in a BPF map or passed between our crates.
//!
//! * [`id`]: newtypes for the numbers and names that must not be mixed up.
//! * [`resource`]: what a control plane pushes (services, workloads, node configuration).
//! * [`record`]: what the journal holds (deltas, transactions, records).
//! * [`precondition`]: what must be so for a transaction to be accepted.
//! * [`codec`]: puts a schema version in front of every archive, and reads all versions that there have ever been.
//! * [`v1`], [`v2`], [`v3`]: the versions. Each defines what it changed and re-exports the rest from the one before.
//! * [`map`]: the BPF map ABI, `no_std` and free of dependencies, compiled into the kernel programs as well.
//!
//! Architecture invariant: this crate imports nothing of ours, does no I/O and gives the types no behaviour beyond
//! naming, encoding and decoding.

#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

pub mod map;

#[cfg(feature = "std")]
pub mod codec;
#[cfg(feature = "std")]
pub mod id;
#[cfg(feature = "std")]
pub mod precondition;
#[cfg(feature = "std")]
pub mod v1;
#[cfg(feature = "std")]
pub mod v2;
#[cfg(feature = "std")]
pub mod v3;

// The current version of everything stored. Older ones stay frozen in their modules and are upcast on read.
#[cfg(feature = "std")]
pub use v3::{record, resource};
