//! What the cells of each table hold.
//!
//! Each payload names what it belongs to, so that the applier finds its own entries again by scanning a table, and so
//! that a reader can tell a recycled cell from the one it looked for.

use super::cell::Payload;
use super::fingerprint::abi_struct;
use super::key::FrontendKey;

/// IPv4, as [`Service::family`] and [`Backend::family`] say it.
pub const FAMILY_V4: u8 = 4;
/// IPv6, likewise.
pub const FAMILY_V6: u8 = 6;

abi_struct! {
    /// An address, port and protocol that clients dial, and the service port it leads to.
    pub struct Frontend[32] {
        /// The destination; a reader compares it with its own.
        pub key: FrontendKey,
        /// [`Frontend::ABSENT`] or [`Frontend::SERVICE`].
        pub kind: u32,
        /// With [`Frontend::SERVICE`]: a cell of `services`.
        pub index: u32,
        /// Zero.
        pub reserved: u32,
    }
}

impl Frontend {
    /// Nothing is there.
    pub const ABSENT: u32 = 0;
    /// It leads to a service port.
    pub const SERVICE: u32 = 1;
}

impl Payload for Frontend {
    fn is_present(&self) -> bool {
        self.kind != Self::ABSENT
    }
}

abi_struct! {
    /// One port of a service, for one address family; or a workload's own addresses of a family, if it has a waypoint.
    pub struct Service[24] {
        /// The [`ResourceId`](crate::id::ResourceId) of the service, or of the workload.
        pub id: u64,
        /// First slot of its run in `endpoints`.
        pub run_offset: u32,
        /// Slots of its run; 0: no usable backend.
        pub run_length: u32,
        /// The port that clients dial; 0: every port that has no entry of its own.
        pub port: u16,
        /// [`FAMILY_V4`] or [`FAMILY_V6`].
        pub family: u8,
        /// IANA protocol number.
        pub protocol: u8,
        /// [`Service::ABSENT`] or how a backend is chosen.
        pub policy: u8,
        /// A set of `Service::…` flags.
        pub flags: u8,
        /// For how long after its last connection a client goes where that went, in units of two seconds; 0: it does not. With
        /// [`Service::MAGLEV`] a client's hash says where it goes, and this is 0.
        pub affinity: u16,
    }
}

impl Service {
    /// The unit of [`Service::affinity`].
    pub const AFFINITY_UNIT_NS: u64 = 2_000_000_000;

    /// Nothing is there.
    pub const ABSENT: u8 = 0;
    /// A backend drawn at random, all alike. The run has a slot for each.
    pub const RANDOM: u8 = 1;
    /// A backend drawn at random in proportion to its weight. The run is an alias table: for n backends, n thresholds (of the
    /// fraction below which entry i is taken itself, in 2^-32), the n backends, and the n backends that are taken otherwise.
    pub const WEIGHTED: u8 = 2;
    /// The backend that a client's hash falls on. The run is a Maglev table.
    pub const MAGLEV: u8 = 3;

    /// Without a usable backend connections pass unchanged, whatever the node says.
    pub const NO_ENDPOINTS_PASS: u8 = 1;
    /// Without a usable backend connections are refused, whatever the node says.
    pub const NO_ENDPOINTS_REFUSE: u8 = 1 << 1;
    /// The first slot of the run is a waypoint, which all connections go to but its own. Those go to what follows in the run,
    /// chosen as the policy says.
    pub const WAYPOINT: u8 = 1 << 2;
    /// Bytes may take the short way from socket to socket.
    pub const ACCELERATE: u8 = 1 << 3;
    /// It is a workload's own addresses: what its waypoint sends there passes unchanged.
    pub const WORKLOAD: u8 = 1 << 4;
}

impl Payload for Service {
    fn is_present(&self) -> bool {
        self.policy != Self::ABSENT
    }
}

abi_struct! {
    /// One socket address of a workload, or that of a waypoint.
    pub struct Backend[32] {
        /// The [`ResourceId`](crate::id::ResourceId) of the workload, or of the service or workload whose waypoint it is.
        pub id: u64,
        /// The address, as in [`FrontendKey::address`].
        pub address: [u32; 4],
        /// The port in network order; 0: the one that the client dialled.
        pub port_be: u16,
        /// [`FAMILY_V4`] or [`FAMILY_V6`]; 0: nothing is there.
        pub family: u8,
        /// A set of `Backend::…` flags.
        pub flags: u8,
        /// Zeros.
        pub reserved: [u8; 4],
    }
}

impl Backend {
    /// It is a waypoint.
    pub const WAYPOINT: u8 = 1;
}

impl Payload for Backend {
    fn is_present(&self) -> bool {
        self.family != 0
    }
}

abi_struct! {
    /// The node's configuration, as far as the programs need it. Absent means all defaults.
    pub struct Node[32] {
        /// A set of `Node::…` flags.
        pub flags: u64,
        /// With [`Node::DNS`]: the DNS proxy's address, as in [`FrontendKey::address`].
        pub dns_address: [u32; 4],
        /// With [`Node::DNS`]: its port in network order.
        pub dns_port_be: u16,
        /// Zeros.
        pub reserved: [u8; 6],
    }
}

impl Node {
    /// The node is configured.
    pub const PRESENT: u64 = 1;
    /// Connections to a service without a usable backend pass unchanged instead of being refused.
    pub const NO_ENDPOINTS_PASS: u64 = 1 << 1;
    /// What is sent to port 53 goes to the DNS proxy.
    pub const DNS: u64 = 1 << 2;
}

impl Payload for Node {
    fn is_present(&self) -> bool {
        self.flags & Self::PRESENT != 0
    }
}
