//! Where clients went, of services that let a client that comes again go there again.

use super::fingerprint::{Fingerprint, abi_struct};

abi_struct! {
    /// A client, and what it dials of a service.
    pub struct AffinityKey[16] {
        /// The service's [`ResourceId`](crate::id::ResourceId).
        pub service: u64,
        /// The client's word, as the decision has it.
        pub client: u32,
        /// The port that is dialled, in network order.
        pub port_be: u16,
        /// IANA protocol number.
        pub protocol: u8,
        /// The family of the address that is dialled, as in [`Service::family`](super::Service::family).
        pub family: u8,
    }
}

abi_struct! {
    /// Where its last connection went.
    pub struct Affinity[40] {
        /// The workload's [`ResourceId`](crate::id::ResourceId).
        pub backend: u64,
        /// `CLOCK_MONOTONIC` at that connection, nanoseconds.
        pub seen_ns: u64,
        /// The address, as in [`FrontendKey::address`](super::FrontendKey::address).
        pub address: [u32; 4],
        /// The word that chose it.
        pub entropy: u32,
        /// The port in network order.
        pub port_be: u16,
        /// Zeros.
        pub reserved: [u8; 2],
    }
}

impl Affinity {
    /// How many are remembered on a node; a further one takes the place of one that was not used for long.
    pub const MAX: u32 = 1 << 16;

    /// Identifies the layout, as [`FLOW_FINGERPRINT`](super::FLOW_FINGERPRINT) does that of what sockets carry.
    pub const FINGERPRINT: u64 = Fingerprint::seeded(1).abi::<AffinityKey>().abi::<Self>().finish();
}
