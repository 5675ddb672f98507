//! From journal records to transactions on BPF maps: atomic, idempotent, and safe to kill at every step.
//!
//! ```text
//!   push ──▶ admission ──────────────▶ journal ──durable──▶ applier thread ──▶ tables (pinned maps)
//!            model: does it fit?        (LSN, fsync, ack)    merge, stage, flip, retire
//!            plan: which entries change? ─────changes, by LSN─────▲
//! ```
//!
//! * [`validate`], [`model`], [`plan`], [`entry`]: pure. What a transaction means: refused with a reason, or admitted with
//!   the table entries it changes. [`Loader`] makes the model of a stored state.
//! * [`apply`]: the protocol that makes changes visible with one store; [`recovery`]: the way back in after a crash.
//! * [`tables`]: where the writes go, kernel maps or plain memory. [`sizing`]: how large they are.
//! * [`start`], `resume`, [`pipeline`]: choosing a generation at start, believing it until it is proven, and the thread that
//!   follows the journal (`follower`), which also makes new generations (`job`, `home`).
//! * [`drain`]: which connections lead to backends that are gone, since when, and what is to be done to them.
//! * [`compare`], [`dump`]: what tables hold, beside what the journal says, or decoded for people.
//!
//! Invariants, by name, tested by name:
//!
//! * `ADMITTED_FITS`: what is journaled can be applied; it was validated against the state it applies to.
//! * `ONE_FLIP`: a reader sees the state of exactly one epoch, in all tables together.
//! * `DURABLE_FIRST`: no state is shown that the journal has not behind an fsync ([`journal::Durable`]).
//! * `RECOVERED_IS_FOLD`: recovered tables show the journal's state at their epoch, whole, and nothing else.
//! * `HEAD_IS_KNOWN`: at any time the tables say which record the visible epoch stands for.
//! * `NOTHING_TWICE`: applying again what is visible writes nothing.
//! * `NOTHING_LEAKS`: after a grace period the tables use exactly what the state needs.

#![deny(unsafe_code)]

pub mod apply;
mod backings;
mod both;
mod cancel;
pub mod compare;
mod destinations;
mod direct;
pub mod drain;
pub mod dump;
pub mod entry;
mod fill;
mod follower;
mod grace;
mod hash;
mod home;
mod job;
mod layout;
mod load;
pub mod model;
#[doc(hidden)]
pub mod mutants;
mod owner;
pub mod pipeline;
mod place;
pub mod plan;
mod precondition;
mod projection;
pub mod recovery;
mod rejection;
mod resume;
mod selection;
pub mod sizing;
pub mod start;
pub mod tables;
pub mod validate;

pub use apply::{Applied, Applier, ApplyError, Pressure};
pub use compare::{Comparison, Difference};
pub use drain::{Departed, Gone, Lead};
pub use load::{Loader, Undecodable};
pub use model::{Model, Rejection};
pub use owner::Foreign;
pub use pipeline::{Drift, Options, Pending, Pipeline, Planned, PushError, RequestError, Status, Verification};
pub use recovery::{Identity, Recovered};
pub use rejection::port_of;
pub use start::{StartError, Target};

/// Places where a test can end the process.
pub const FAILPOINTS: &[&str] = &[
    "applier.before_stage",
    "applier.after_backends",
    "applier.after_services",
    "applier.before_flip",
    "applier.after_flip",
    "applier.before_retire",
    "applier.after_retire",
    "applier.before_load",
    "applier.before_recover",
    "applier.before_compare",
    "applier.before_loaded",
    "applier.before_complete",
    "applier.before_activate",
    "applier.after_activate",
    "applier.before_switch",
    "applier.after_switch",
];
