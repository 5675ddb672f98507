//! How a service chooses a backend: policy, locality, affinity.
//!
//! In a manifest the short form of a choice that is a policy and nothing else is the policy's name: `loadBalancing: weighted`.

use core::fmt;

use rkyv::{Archive, Deserialize, Serialize};
use serde::de::value::MapAccessDeserializer;
use serde::de::{IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize as SerdeDeserialize, Deserializer, Serialize as SerdeSerialize, Serializer};

/// How a service chooses a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct LoadBalancing {
    /// How one of those that may be chosen is.
    pub policy: Policy,
    /// Which ones may be chosen, by where they are.
    pub locality: LocalityPreference,
    /// Whether a client that comes again goes where it went before.
    pub affinity: Option<Affinity>,
}

/// How one of several backends is chosen. The numbers are stored: they never change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Policy {
    /// Each connection goes to a backend drawn at random, all alike.
    #[default]
    Random = 0,
    /// Each connection goes to a backend drawn at random, in proportion to the workloads' weights.
    Weighted = 1,
    /// Connections of one client go to one backend, and few clients move when a backend comes or goes.
    Maglev = 2,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Weighted => "weighted",
            Self::Maglev => "maglev",
        })
    }
}

/// Which backends may be chosen, by where they are as seen from the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalityPreference {
    /// What follows from a match.
    #[serde(default)]
    pub mode: LocalityMode,
    /// What is compared, in this order, until something differs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routing_preference: Vec<LocalityScope>,
}

impl LocalityPreference {
    /// Whether nothing is preferred.
    pub fn is_none(&self) -> bool {
        self.mode == LocalityMode::None && self.routing_preference.is_empty()
    }
}

/// What follows from how much of a backend's place matches the node's. The numbers are stored: they never change.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LocalityMode {
    /// Nothing.
    #[default]
    None = 0,
    /// Only backends that match in all of the routing preference may be chosen.
    Strict = 1,
    /// The longer the match, the better; only the best ones there are may be chosen.
    Failover = 2,
}

impl fmt::Display for LocalityMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Strict => "strict",
            Self::Failover => "failover",
        })
    }
}

/// A part of a place that is compared. The numbers are stored: they never change.
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
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum LocalityScope {
    /// The network.
    Network = 0,
    /// The region.
    Region = 1,
    /// The zone, which is one of a region.
    Zone = 2,
    /// The subzone, which is one of a zone.
    Subzone = 3,
    /// The node.
    Node = 4,
    /// The cluster.
    Cluster = 5,
}

impl LocalityScope {
    /// All scopes, in the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Network, Self::Region, Self::Zone, Self::Subzone, Self::Node, Self::Cluster];
}

impl fmt::Display for LocalityScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Network => "network",
            Self::Region => "region",
            Self::Zone => "zone",
            Self::Subzone => "subzone",
            Self::Node => "node",
            Self::Cluster => "cluster",
        })
    }
}

/// A client that comes again goes where it went before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize, SerdeSerialize, SerdeDeserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Affinity {
    /// For how long after its last connection.
    pub timeout_seconds: u32,
}

impl LoadBalancing {
    /// A policy, and nothing else.
    pub fn of(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }
}

/// `maglev`, `maglev, failover (network, region)`, `random, affinity 30 s`: for tables that people read.
impl fmt::Display for LoadBalancing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { policy, locality, affinity } = self;
        policy.fmt(f)?;
        if !locality.is_none() {
            write!(f, ", {} (", locality.mode)?;
            for (index, scope) in locality.routing_preference.iter().enumerate() {
                let separator = if index == 0 { "" } else { ", " };
                write!(f, "{separator}{scope}")?;
            }
            f.write_str(")")?;
        }
        match affinity {
            Some(Affinity { timeout_seconds }) => write!(f, ", affinity {timeout_seconds} s"),
            None => Ok(()),
        }
    }
}

/// The long form.
#[derive(SerdeSerialize, SerdeDeserialize)]
#[serde(rename = "LoadBalancing", rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    #[serde(default)]
    policy: Policy,
    #[serde(default, skip_serializing_if = "LocalityPreference::is_none")]
    locality: LocalityPreference,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    affinity: Option<Affinity>,
}

impl SerdeSerialize for LoadBalancing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { policy, locality, affinity } = self;
        if *self == Self::of(*policy) {
            return SerdeSerialize::serialize(policy, serializer);
        }
        let fields = Fields { policy: *policy, locality: locality.clone(), affinity: *affinity };
        SerdeSerialize::serialize(&fields, serializer)
    }
}

impl<'de> SerdeDeserialize<'de> for LoadBalancing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShortOrLong)
    }
}

struct ShortOrLong;

impl<'de> Visitor<'de> for ShortOrLong {
    type Value = LoadBalancing;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a policy (random, weighted or maglev), or a mapping of policy, locality and affinity")
    }

    fn visit_str<E: serde::de::Error>(self, policy: &str) -> Result<LoadBalancing, E> {
        SerdeDeserialize::deserialize(policy.into_deserializer()).map(LoadBalancing::of)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<LoadBalancing, A::Error> {
        let Fields { policy, locality, affinity } = SerdeDeserialize::deserialize(MapAccessDeserializer::new(entries))?;
        Ok(LoadBalancing { policy, locality, affinity })
    }
}
