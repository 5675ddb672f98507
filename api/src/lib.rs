//! The delta-push API: what a control plane programs against.
//!
//! * `proto/holdfast/v1`: the contract, commented for people who have nothing but it and grpcurl. [`proto`] is the code
//!   generated from it.
//! * [`convert`]: between messages and `storage-schema`, with the path of every field that is wrong.
//! * [`server`]: tonic over a unix socket ([`socket`]) and TCP with TLS, in front of anything that is a [`server::Backend`].
//! * [`access`]: who may call what; [`layers`]: what each call goes through, and what it may cost.
//! * [`push`]: the push protocol, both ends of it. [`source`]: who pushes. [`plan`]: what a transaction would change.
//! * [`filter`]: which resources are meant.
//! * [`watch`]: records and the state, told as they come.
//! * [`journal`]: reading the journal through it. [`replay`]: asking what was, and why.
//! * [`client`]: the other end, which speaks `storage-schema` types.
//!
//! Architecture invariant: `api` depends on neither journal nor maps. Whether a transaction fits the state is decided behind
//! [`server::Backend`]; here it is only decided whether a message says anything at all. Only this crate names tonic.

#![forbid(unsafe_code)]

pub mod access;
pub mod client;
pub mod convert;
pub mod filter;
pub mod journal;
pub mod layers;
pub mod namespace;
pub mod plan;
pub mod push;
pub mod rejection;
pub mod replay;
pub mod server;
mod services;
pub mod socket;
pub mod source;
pub mod status;
pub mod watch;

/// The generated messages, clients and servers of `holdfast.v1`.
pub mod proto {
    #![allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::large_enum_variant)]

    tonic::include_proto!("holdfast.v1");

    /// The compiled proto files (a serialized `google.protobuf.FileDescriptorSet`), comments included.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/holdfast.v1.binpb"));
}

use std::time::Duration;

use storage_schema::id::{Lsn, RecordHash};
use storage_schema::resource::Resource;

/// The most bytes that one message may have, in either direction.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// The most deltas that one transaction may have.
pub const DELTAS_MAX: usize = 65_536;

/// The most bytes that one text field (a name, a host name, a uid) may have.
pub const TEXT_BYTES_MAX: usize = 1024;

/// How long a push waits for more than durable when its sender does not say.
pub const WAIT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// The longest that a push may ask to wait.
pub const WAIT_TIMEOUT_MAX: Duration = Duration::from_mins(1);

/// How far a transaction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// On its way to the disk: no promise.
    Received,
    /// In the journal, after an fsync.
    #[default]
    Durable,
    /// In the tables: every connection that starts from now on sees it.
    Applied,
}

/// What the sender of an accepted transaction gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The transaction's number in the journal.
    pub lsn: Lsn,
    /// The record's hash, the link of the journal's chain.
    pub record_hash: RecordHash,
    /// Whether it had been pushed before; then the number and hash are the first one's.
    pub duplicate: bool,
    /// How far it had come when the receipt was written.
    pub level: Level,
    /// If that is not as far as was asked: what holds it up. Empty if unknown.
    pub blocked_reason: String,
    /// Of a sync: how many resources it removed.
    pub removed: u64,
}

/// A resource as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The resource.
    pub resource: Resource,
    /// The record that changed it last.
    pub changed_lsn: Lsn,
    /// The source it belongs to: the one that pushed that record. Empty if nobody knows any more.
    pub owner: String,
}
