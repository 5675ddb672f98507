//! The BPF map ABI: what the agent writes and the kernel programs read.
//!
//! ```text
//!  connect(ip, port)                          one store makes a transaction visible: control.active_epoch := N
//!     │
//!     ▼ hash                 array of cells          array of cells           array of u32         array of cells
//!  frontend_index ──cell──▶ frontends ──service──▶ services ──run+random──▶ endpoints ──index──▶ backends ──▶ ip, port
//!                           (key checked)          (policy, run)            (immutable runs)
//! ```
//!
//! Every cell holds two versions of its payload, each with the epoch from which on it holds ([`cell`]). A reader loads
//! `control.active_epoch` once and takes from each cell the version with the highest epoch that is not above it, so
//! that it sees one state of all tables together. Endpoint runs are immutable while any reader can reach them.
//!
//! The unit of `services` is one *service port of one address family*, that of `backends` one *socket address* of a
//! workload: port overrides and dual-stack services need no special case, neither here nor in the programs.
//!
//! Everything is `#[repr(C)]`, free of padding and of pointers; [`FINGERPRINT`] covers each field's name, offset and
//! size. Integers are in host order unless a field says otherwise.
//!
//! Architecture invariant: `no_std`, no dependency, no `unsafe`.

pub mod affinity;
pub mod cell;
pub mod control;
pub mod dump;
pub mod enrolment;
pub mod fingerprint;
pub mod key;
pub mod payload;
pub mod stamp;

pub use affinity::{Affinity, AffinityKey};
pub use cell::{Cell, NEVER, Version};
pub use control::{Control, Head};
pub use dump::{KernelLayout, SocketHolder, StampedSocket, TcpLayout};
pub use enrolment::{EnrolledNamespace, Enrolment};
pub use key::FrontendKey;
pub use payload::{Backend, Frontend, Node, Service};
pub use stamp::{Peers, Stamp};

use fingerprint::Fingerprint;

/// Names of the maps as the programs declare them; also the names of their pins.
pub mod name {
    /// Array of one [`super::Control`].
    pub const CONTROL: &str = "control";
    /// Hash from [`super::FrontendKey`] to a cell number in [`FRONTENDS`].
    pub const FRONTEND_INDEX: &str = "frontend_index";
    /// Array of [`super::Cell`]s of [`super::Frontend`].
    pub const FRONTENDS: &str = "frontends";
    /// Array of [`super::Cell`]s of [`super::Service`].
    pub const SERVICES: &str = "services";
    /// Array of [`super::EndpointPair`]: runs of cell numbers in [`BACKENDS`].
    pub const ENDPOINTS: &str = "endpoints";
    /// Array of [`super::Cell`]s of [`super::Backend`].
    pub const BACKENDS: &str = "backends";
    /// Array of one [`super::Cell`] of [`super::Node`].
    pub const NODE: &str = "node";
    /// Socket storage of [`super::Stamp`]s. It outlives generations.
    pub const STAMPS: &str = "stamps";
    /// Socket storage of [`super::Peers`]. It outlives generations likewise.
    pub const PEERS: &str = "peers";
    /// Socket hash, by cookie: connections to waypoints that have not been told yet what the client dialled. It outlives
    /// generations likewise.
    pub const WAYPOINT_SOCKETS: &str = "waypoint_sockets";
    /// Hash from [`super::AffinityKey`] to [`super::Affinity`], of the clients that came last. It outlives generations likewise.
    pub const AFFINITIES: &str = "affinities";
    /// Array of one [`super::Enrolment`]. It outlives generations likewise.
    pub const ENROLMENT: &str = "enrolment";
    /// Hash from a cgroup's number to nothing: whoever is in it is not managed. It outlives generations likewise.
    pub const EXEMPT_CGROUPS: &str = "exempt_cgroups";
    /// Hash from a network namespace's cookie to [`super::EnrolledNamespace`]. It outlives generations likewise.
    pub const NAMESPACES: &str = "namespaces";
}

/// Identifies this ABI: maps with another fingerprint belong to another generation.
///
/// Bump the seed when the *meaning* of an unchanged layout changes.
pub const FINGERPRINT: u64 = Fingerprint::seeded(1)
    .abi::<Control>()
    .abi::<Head>()
    .abi::<FrontendKey>()
    .abi::<Frontend>()
    .abi::<Service>()
    .abi::<Backend>()
    .abi::<Node>()
    .finish();

/// Identifies the layout of flow state, which carries over from one generation to the next while it is unchanged.
pub const FLOW_FINGERPRINT: u64 = Fingerprint::seeded(1).abi::<Stamp>().abi::<Peers>().finish();

/// Two slots of `endpoints`. The kernel pads array entries to eight bytes, so slots come in pairs: slot `s` is word
/// `s % 2` of entry `s / 2`, and the slots lie one after the other in memory.
pub type EndpointPair = [u32; 2];

/// How many entries are admitted to each table of a generation.
///
/// The tables themselves are larger: an entry keeps its place until no program can read it any more, so that a
/// transaction that replaces every entry has all old and all new ones side by side for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Frontends: virtual address, port and protocol.
    pub frontends: u32,
    /// Service ports, counted once for each address family.
    pub services: u32,
    /// Socket addresses of workloads.
    pub backends: u32,
    /// Endpoints: the sum of the sizes of all service ports' backend sets.
    pub endpoints: u32,
}

impl Capacities {
    /// The most that can be configured of each: what the tables' sizes in bytes are bounded by.
    pub const MAX: u32 = 1 << 26;

    /// Entries of the map `frontends`, and of `frontend_index`.
    pub const fn frontend_cells(&self) -> u32 {
        self.frontends * 2
    }

    /// Entries of the map `services`.
    pub const fn service_cells(&self) -> u32 {
        self.services * 2
    }

    /// Entries of the map `backends`.
    pub const fn backend_cells(&self) -> u32 {
        self.backends * 2
    }

    /// Slots of the map `endpoints`: two halves, each of twice the admitted endpoints, as a run takes an even number of
    /// slots. The applier fills one half from its start and, when it is full, moves what is still used to the other one.
    pub const fn endpoint_slots(&self) -> u32 {
        self.endpoints * 4
    }
}

impl Default for Capacities {
    fn default() -> Self {
        Self { frontends: 65_536, services: 65_536, backends: 262_144, endpoints: 262_144 }
    }
}
