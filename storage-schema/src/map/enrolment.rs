//! Which processes are managed: what the agent says, and what the programs note themselves. It outlives generations.

use super::fingerprint::{Fingerprint, abi_struct};

abi_struct! {
    /// The one entry of `enrolment`.
    pub struct Enrolment[4] {
        /// A set of `Enrolment::…` flags; none: every process in the cgroup is managed.
        pub flags: u32,
    }
}

impl Enrolment {
    /// There are exempt cgroups.
    pub const EXEMPTIONS: u32 = 1;
    /// Only processes in network namespaces that are enrolled are managed.
    pub const BY_NAMESPACE: u32 = 1 << 1;
    /// Namespaces may be enrolled by a call as well: see [`Enrolment::CALL_ADDRESS`].
    pub const BY_CALL: u32 = 1 << 2;

    /// The last byte of the address that root connects to, within a namespace, to have it enrolled: `0.0.0.2` or `::2`.
    pub const CALL_ADDRESS: u8 = 2;
    /// The port that is connected to in order to enrol it.
    pub const CALL_ENROL: u16 = 929;
    /// The port that is connected to in order to end that.
    pub const CALL_LEAVE: u16 = 930;

    /// The most exempt cgroups.
    pub const EXEMPT_MAX: u32 = 256;
    /// The most enrolled namespaces.
    pub const NAMESPACES_MAX: u32 = 1 << 14;
    /// The deepest cgroup above a process that may be exempt; the root is at 0.
    pub const DEPTH_MAX: u32 = 15;

    /// Identifies the layout, as [`FLOW_FINGERPRINT`](super::FLOW_FINGERPRINT) does that of what sockets carry.
    pub const FINGERPRINT: u64 = Fingerprint::seeded(1).abi::<Self>().abi::<EnrolledNamespace>().finish();
}

abi_struct! {
    /// A network namespace whose processes are managed, by its cookie.
    pub struct EnrolledNamespace[16] {
        /// `CLOCK_BOOTTIME` when it was enrolled, nanoseconds.
        pub since_ns: u64,
        /// Its inode number; 0: it was enrolled by a call, which cannot know it.
        pub inode: u32,
        /// Zero.
        pub reserved: u32,
    }
}
