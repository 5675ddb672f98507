//! Loads the BPF programs, pins what they consist of, attaches them and replaces them: the only crate that knows aya's
//! program types.
//!
//! ```text
//! <pin root>/
//!   gen-<n>/maps/…        one complete set of maps ...
//!   gen-<n>/programs/…    ... and the programs that read them: a generation
//!   flow/stamps-<abi>     socket storages: they outlive generations while their ABI is unchanged;
//!   flow/peers-<abi>      of sockets that were connected, and of those that send datagrams unconnected
//!   flow/waypoint_sockets-<abi>   connections to waypoints, with the program for what is written to them
//!   links/<hook>          one pinned cgroup link for each hook
//! ```
//!
//! Pins and links are the whole of Holdfast in the kernel. They stay when the agent stops, however it stops: the
//! programs go on with the maps as they are.
//!
//! A generation is *complete* once its `control` entry carries the magic number, which the applier writes after it has
//! filled the maps. An incomplete one was never attached and is removed at the next start. To replace a generation, the
//! new one is built beside it and each link's program is exchanged in one step (`BPF_LINK_UPDATE`): every `connect()`
//! runs either the old program or the new one, on maps that show the same epoch.
//!
//! [`Sockets`] finds balanced connections by their stamps, and closes or moves those that it is told to.
//!
//! Architecture invariants: nothing here writes a table's contents; a link that is in place is never detached in order
//! to be attached again.

// Talks to bpf(2) directly for what aya does not offer: see `sys`.
#![allow(unsafe_code)]

mod cgroup;
mod datapath;
mod enrolment;
mod error;
mod figures;
mod generation;
mod grace;
mod hook;
mod namespace;
mod sockets;
mod sys;

pub use datapath::{Change, Datapath, Options, generations, uninstall, uses_flow};
pub use enrolment::{Enrolled, Enrolment, EnrolmentError, Rules};
pub use error::LoadError;
pub use figures::{ProgramFigures, count_run_time};
pub use generation::Generation;
pub use grace::Grace;
pub use hook::{HOOKS, Hook};
pub use sockets::{Closer, Reselected, SocketError, Sockets};

/// The BPF programs, built from `bpf/programs` by this crate's build script.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("HOLDFAST_BPF_OBJECT"));

/// Hash of the BPF object: a generation made from another one is replaced at start.
pub fn programs_hash() -> [u8; 32] {
    *blake3::hash(OBJECT).as_bytes()
}

/// Places where a test can end the process.
pub const FAILPOINTS: &[&str] = &[
    "loader.before_create",
    "loader.before_pin_programs",
    "loader.after_create",
    "loader.before_link",
    "loader.after_link",
    "loader.before_discard",
    "loader.after_discard",
];
