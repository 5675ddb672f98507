//! The resource model: what a control plane says about services, workloads and this node.
//!
//! Field names follow Istio's `Workload` and `Service`, which control planes already speak. The serde form (camelCase,
//! unknown fields refused) is the manifest that `holdfast apply` reads and `holdfast get -o yaml` prints.

use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;

use rkyv::{Archive, Deserialize, Serialize};
use serde::{Deserialize as SerdeDeserialize, Serialize as SerdeSerialize};

/// The kinds of resource. The numbers are stored: they never change.
#[derive(
    Clone,
    Copy,
    Debug,
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
#[rkyv(derive(Debug, Clone, Copy, PartialEq, Eq))]
#[repr(u8)]
pub enum Kind {
    /// A [`Service`].
    Service = 1,
    /// A [`Workload`].
    Workload = 2,
    /// The [`Node`] configuration, of which there is one.
    Node = 3,
}

impl Kind {
    /// All kinds, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Service, Self::Workload, Self::Node];

    /// The kind as it is written in manifests and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Workload => "Workload",
            Self::Node => "Node",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Kind {
    type Err = UnknownKind;

    /// Accepts singular and plural in any case, as people type them: `service`, `Services`, `workloads`, `node`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|kind| lower.strip_suffix('s').unwrap_or(&lower) == kind.as_str().to_ascii_lowercase())
            .ok_or_else(|| UnknownKind { kind: text.to_owned() })
    }
}

/// A kind that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind `{kind}`: use service, workload or node")]
pub struct UnknownKind {
    /// What was given.
    pub kind: String,
}

/// What a resource is called: its kind and its name.
#[derive(
    Clone,
    Debug,
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
#[rkyv(derive(Debug))]
pub struct ResourceKey {
    /// The kind.
    pub kind: Kind,
    /// A service's `namespace/name`, a workload's uid, the node's name.
    pub name: String,
}

impl ResourceKey {
    /// The key of a resource of this kind and name.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for ResourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

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
    /// The ports it is reached on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
    /// How a backend is chosen.
    #[serde(default)]
    pub load_balancing: LoadBalancing,
    /// Where connections go instead of to a backend, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Waypoint>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
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
}

impl Protocol {
    /// The protocol's number in an IP header (IANA protocol numbers).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
        }
    }
}

/// How a service chooses a backend. The numbers are stored: they never change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LoadBalancing {
    /// Each connection goes to a backend drawn at random, all alike.
    #[default]
    Random = 0,
}

impl fmt::Display for LoadBalancing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
        }
    }
}

/// A proxy that takes the connections of a service or workload. Stored and shown; the datapath does not use it yet.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Waypoint {
    /// The proxy's address.
    pub address: IpAddr,
    /// The proxy's port, 1 to 65535.
    pub port: u16,
}

/// One instance of an application: a pod, a virtual machine, a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Globally unique, for example `cluster1//Pod/bookinfo/reviews-v1-abc`.
    pub uid: String,
    /// The workload's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The namespace it runs in.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Addresses; connections are balanced to the first one of the family that the client dialled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Region, zone and subzone.
    #[serde(default, skip_serializing_if = "Locality::is_empty")]
    pub locality: Locality,
    /// The node it runs on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
    /// The network whose addresses it has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// The cluster it belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub cluster: String,
    /// The identity it runs under.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    /// Whether it may get new connections.
    #[serde(default)]
    pub status: WorkloadStatus,
    /// Its share where a policy weighs backends.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Where connections to it go instead, if set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<Waypoint>,
    /// The services it backs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Backing>,
}

const fn default_weight() -> u32 {
    1
}

/// A workload's part in one service.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backing {
    /// The service's name, `namespace/name`.
    pub service: String,
    /// Target ports that differ from the service's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortOverride>,
}

/// A workload that serves a service port on a port of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortOverride {
    /// The service's port.
    pub service_port: u16,
    /// The port this workload listens on for it.
    pub target_port: u16,
}

/// Whether a workload may get new connections. The numbers are stored: they never change.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Archive,
    Serialize,
    Deserialize,
    SerdeSerialize,
    SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum WorkloadStatus {
    /// It may.
    #[default]
    Healthy = 0,
    /// It may not.
    Unhealthy = 1,
    /// Only while its service has no healthy workload.
    Terminating = 2,
}

impl fmt::Display for WorkloadStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Terminating => "terminating",
        })
    }
}

/// Where something runs, from wide to narrow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Locality {
    /// The region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// The zone within the region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// The subzone within the zone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subzone: String,
}

impl Locality {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.region.is_empty() && self.zone.is_empty() && self.subzone.is_empty()
    }
}

/// The node's own configuration; there is at most one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// The node's name.
    pub name: String,
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
}

/// What happens to a connection to a service that has no usable backend. The numbers are stored: they never change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum NoEndpoints {
    /// It is refused at once (`ECONNREFUSED`).
    #[default]
    Refuse = 0,
    /// It goes to the virtual address unchanged, as if Holdfast were not there.
    Pass = 1,
}
