//! What a balanced socket carries: who decided what, when, from which state, with which random word.

use super::fingerprint::abi_struct;

abi_struct! {
    /// The decision that a connection stands on. Whoever has the journal can make it again: same state, same word, same
    /// choice.
    pub struct Stamp[64] {
        /// The epoch that the decision was made at.
        pub epoch: u64,
        /// The service's [`ResourceId`](crate::id::ResourceId).
        pub service: u64,
        /// The workload's [`ResourceId`](crate::id::ResourceId).
        pub backend: u64,
        /// `CLOCK_MONOTONIC` at the decision, nanoseconds.
        pub monotonic_ns: u64,
        /// The destination that the client dialled, as in [`FrontendKey::address`](super::FrontendKey::address).
        pub original_address: [u32; 4],
        /// The random word that chose the backend.
        pub entropy: u32,
        /// The port that the client dialled, in network order.
        pub original_port_be: u16,
        /// IANA protocol number.
        pub protocol: u8,
        /// [`Stamp::NONE`], [`Stamp::FORWARDED`] or [`Stamp::REFUSED`].
        pub outcome: u8,
        /// Zero.
        pub reserved: u64,
    }
}

impl Stamp {
    /// The socket's last connection was not balanced; an earlier one was.
    pub const NONE: u8 = 0;
    /// The connection went to `backend`.
    pub const FORWARDED: u8 = 1;
    /// The service had no usable backend and the connection was refused.
    pub const REFUSED: u8 = 2;
}
