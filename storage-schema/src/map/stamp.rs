//! What a balanced socket carries: who decided what, when, from which state, with which random word.
//!
//! A socket that was connected has one [`Stamp`]; one that sends datagrams here and there has [`Peers`], a stamp for each.

use super::fingerprint::abi_struct;

abi_struct! {
    /// The decision that a connection stands on. Whoever has the journal can make it again: same state, same word, same
    /// choice.
    pub struct Stamp[80] {
        /// The epoch that the decision was made at.
        pub epoch: u64,
        /// The [`ResourceId`](crate::id::ResourceId) of the service, or of the workload that was dialled at its own address.
        pub service: u64,
        /// The [`ResourceId`](crate::id::ResourceId) of the workload; with [`Stamp::WAYPOINT`] that of the service or workload
        /// whose waypoint it went to.
        pub backend: u64,
        /// `CLOCK_MONOTONIC` at the decision, nanoseconds.
        pub monotonic_ns: u64,
        /// The destination that the client dialled, as in [`FrontendKey::address`](super::FrontendKey::address).
        pub original_address: [u32; 4],
        /// The address that it was replaced by, likewise; zeros if it was not.
        pub backend_address: [u32; 4],
        /// The word that chose the backend: a random one, or with Maglev the client's hash; 0 with [`Stamp::WAYPOINT`].
        pub entropy: u32,
        /// The port that the client dialled, in network order.
        pub original_port_be: u16,
        /// IANA protocol number.
        pub protocol: u8,
        /// [`Stamp::NONE`], [`Stamp::FORWARDED`] or [`Stamp::REFUSED`].
        pub outcome: u8,
        /// A set of `Stamp::…` flags.
        pub flags: u16,
        /// The port that the dialled one was replaced by, in network order.
        pub backend_port_be: u16,
        /// With [`Stamp::WAYPOINT`], over TCP: whether the waypoint is told what the client dialled; one of `Stamp::METADATA_…`.
        pub metadata: u8,
        /// Zeros.
        pub reserved: [u8; 3],
    }
}

impl Stamp {
    /// The socket's last connection was not balanced; an earlier one was.
    pub const NONE: u8 = 0;
    /// The connection went to `backend`.
    pub const FORWARDED: u8 = 1;
    /// The service had no usable backend and the connection was refused.
    pub const REFUSED: u8 = 2;

    /// There is nothing to be told, or nothing yet: the connection is not established.
    pub const METADATA_NONE: u8 = 0;
    /// It comes before the first byte that the client writes.
    pub const METADATA_DUE: u8 = 1;
    /// It was put there.
    pub const METADATA_SENT: u8 = 2;
    /// It could not come first, so it does not come: the client had written before (TCP Fast Open), too many connections were
    /// waiting for their first byte, or the kernel had no memory for it.
    pub const METADATA_MISSED: u8 = 3;
    /// How many connections to waypoints may wait for their first byte, and for its acknowledgement, at one time.
    pub const WAYPOINT_SOCKETS_MAX: u32 = 65_536;

    /// The connection went to a waypoint, which wants to know where the client dialled.
    pub const WAYPOINT: u16 = 1;
    /// The service lets bytes take the short way from socket to socket.
    pub const ACCELERATE: u16 = 1 << 1;
    /// The service's clients go where they went before, so the word may be that of an earlier connection.
    pub const AFFINITY: u16 = 1 << 2;
    /// The service's waypoint made the connection itself, so it went to a workload.
    pub const FROM_WAYPOINT: u16 = 1 << 3;
    /// The connection went to the node's DNS proxy, not to a service: `service`, `backend` and `entropy` are 0.
    pub const DNS: u16 = 1 << 4;
}

abi_struct! {
    /// Where an unconnected UDP socket has sent to, and how it got there: a stamp for each pair of a frontend and a backend,
    /// [`Peers::MAX`] of them, in no order. A further pair takes the place of the one that was sent to longest ago.
    pub struct Peers[640] {
        /// The stamps of the last datagram of each; [`Stamp::NONE`] where there is none.
        pub stamps: [Stamp; Peers::MAX],
    }
}

impl Peers {
    /// How many there are of one socket.
    pub const MAX: usize = 8;
}
