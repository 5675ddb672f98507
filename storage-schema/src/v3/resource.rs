//! The resource model: what a control plane says about services, workloads and this node.
//!
//! Field names follow Istio's `Workload` and `Service`, which control planes already speak. The serde form (camelCase,
//! unknown fields refused) is the manifest that `holdfast apply` reads and `holdfast get -o yaml` prints.

use core::fmt;
use core::net::IpAddr;

use rkyv::{Archive, Deserialize, Serialize};
use serde::{Deserialize as SerdeDeserialize, Serialize as SerdeSerialize};

pub use super::balancing::{
    Affinity, ArchivedAffinity, ArchivedLoadBalancing, ArchivedLocalityMode, ArchivedLocalityPreference,
    ArchivedLocalityScope, ArchivedPolicy, LoadBalancing, LocalityMode, LocalityPreference, LocalityScope, Policy,
};
pub use crate::v1::resource::{
    ArchivedBacking, ArchivedKind, ArchivedLocality, ArchivedNoEndpoints, ArchivedPortOverride, ArchivedResourceKey,
    ArchivedWaypoint, ArchivedWorkload, ArchivedWorkloadStatus, Backing, Kind, Locality, NoEndpoints, PortOverride,
    ResourceKey, UnknownKind, Waypoint, Workload, WorkloadStatus,
};

/// One resource of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(tag = "kind")]
pub enum Resource {
    /// A service.
    Service(Service),
    /// A workload.
    Workload(Workload),
    /// This node's configuration.
    Node(Node),
}

impl Resource {
    /// The resource's kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Workload(_) => Kind::Workload,
            Self::Node(_) => Kind::Node,
        }
    }

    /// The resource's name within its kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Service(service) => &service.name,
            Self::Workload(workload) => &workload.uid,
            Self::Node(node) => &node.name,
        }
    }

    /// The resource's key.
    pub fn key(&self) -> ResourceKey {
        ResourceKey::new(self.kind(), self.name())
    }
}

/// A virtual address for a set of workloads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// `namespace/name`, unique among services.
    pub name: String,
    /// Host name that clients look up, if it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Virtual addresses, of both families. A service without one is headless: nothing is balanced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vips: Vec<IpAddr>,
    /// Addresses from outside the cluster at which it is reached on the same ports: those of load balancers, for example.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external_addresses: Vec<IpAddr>,
    /// The ports it is reached on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// Whether its addresses lead to the same port of a backend on every port that `ports` does not name, over every protocol.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all_ports: bool,
    /// How a backend is chosen.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// What a client gets when there is no usable backend; not given: what the node says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_endpoints: Option<NoEndpoints>,
    /// What becomes of connections to a backend that is one no longer.
    #[serde(default, skip_serializing_if = "Drain::is_default")]
    pub drain: Drain,
    /// Whether bytes between a client and a backend that are both on this node take the short way from socket to socket.
    #[serde(default, skip_serializing_if = "is_false")]
    pub accelerate: bool,
    /// Where connections go instead of to a backend, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Waypoint>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// One port of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// The port's name, if it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The port that clients dial, 1 to 65535.
    pub port: u16,
    /// The port that the workloads listen on, unless a workload says otherwise; 1 to 65535.
    pub target_port: u16,
    /// The transport protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// The port of the node's own addresses that leads here as well; 0: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub node_port: u16,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_zero(port: &u16) -> bool {
    *port == 0
}

/// A transport protocol. The numbers are stored: they never change.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Archive,
    Serialize,
    Deserialize,
    SerdeSerialize,
    SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp = 0,
    /// UDP.
    Udp = 1,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The protocol's number in an IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What becomes of connections to a backend that is one no longer: it was removed, or left the service.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize,
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// What is done to them.
    #[serde(default)]
    pub mode: DrainMode,
    /// How long they are left alone before; 0: at once.
    #[serde(default, skip_serializing_if = "is_no_time")]
    pub timeout_seconds: u32,
}

impl Drain {
    /// Whether nothing is done to them, and no time is given either.
    pub const fn is_default(&self) -> bool {
        matches!(self, Self { mode: DrainMode::Keep, timeout_seconds: 0 })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_no_time(seconds: &u32) -> bool {
    *seconds == 0
}

/// What is done to connections whose backend is gone. The numbers are stored: they never change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum DrainMode {
    /// Nothing: they live as long as their ends want.
    #[default]
    Keep = 0,
    /// They are closed, but only after a time in which they may end by themselves.
    Graceful = 1,
    /// They are closed.
    Terminate = 2,
    /// Connected UDP sockets are given a living backend without their owners' doing; TCP connections are closed.
    Reselect = 3,
}

impl fmt::Display for DrainMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Graceful => "graceful",
            Self::Terminate => "terminate",
            Self::Reselect => "reselect",
        })
    }
}

/// The node's own configuration; there is at most one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The node's name.
    pub name: String,
    /// Its own addresses, at which node ports are reached.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The network it is on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// The cluster it belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Locality::is_empty")]
    pub locality: Locality,
    /// What a client gets that dials a service without a usable backend.
    #[serde(default)]
    pub no_endpoints: NoEndpoints,
    /// How host names are looked up; not given: as if Holdfast were not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
}

/// How managed workloads look host names up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// The address of the proxy that gets what they send to port 53.
    pub proxy: IpAddr,
    /// The proxy's port, 1 to 65535.
    #[serde(default = "dns_port")]
    pub port: u16,
}

const fn dns_port() -> u16 {
    53
}
