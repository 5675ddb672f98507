//! What a transaction means for the tables: entries by key, without cell numbers.
//!
//! Keys are stable names for table entries, made of resource numbers, ports and address families; which cell an entry
//! lives in is the `layout`'s business. Changes say how an entry shall be, not what to do to it, so that
//! merging and applying them again is harmless.

use std::collections::BTreeMap;

use storage_schema::id::ResourceId;
use storage_schema::map::{self, FrontendKey};

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = map::payload::FAMILY_V4,
    /// IPv6.
    V6 = map::payload::FAMILY_V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: std::net::IpAddr) -> Self {
        match address {
            std::net::IpAddr::V4(_) => Self::V4,
            std::net::IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family that a map entry names.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            map::payload::FAMILY_V4 => Some(Self::V4),
            map::payload::FAMILY_V6 => Some(Self::V6),
            _ => None,
        }
    }
}

/// Names an entry of `services`: one port of a service, or a workload's own addresses, for one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The service, or the workload, which has a waypoint.
    pub service: ResourceId,
    /// The port that clients dial; 0: every one that has no entry of its own.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// The family of the addresses that clients dial, and of the backends'.
    pub family: Family,
}

/// Names an entry of `backends`: one socket address of a workload, or that of a waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendKey {
    /// The workload, or the service or workload whose waypoint it is.
    pub workload: ResourceId,
    /// The port it listens on; 0: whichever the client dialled.
    pub port: u16,
    /// The address's family.
    pub family: Family,
    /// Whether it is a waypoint.
    pub is_waypoint: bool,
}

/// How an entry of `services` shall be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// A policy of [`map::Service`].
    pub policy: u8,
    /// Flags of [`map::Service`].
    pub flags: u8,
    /// As [`map::Service::affinity`].
    pub affinity: u16,
    /// The waypoint that all connections go to but its own.
    pub waypoint: Option<BackendKey>,
    /// The backends that may be chosen, in the order of their keys; with a waypoint, for its own connections.
    pub endpoints: Vec<BackendKey>,
    /// With [`map::Service::WEIGHTED`]: the weight of each.
    pub weights: Vec<u32>,
    /// With [`map::Service::MAGLEV`]: how many slots the table has.
    pub table_slots: u32,
}

impl ServiceEntry {
    /// All backends that it names, in the order in which [`selection::run`](crate::selection::run) takes their cells.
    pub(crate) fn backends(&self) -> impl Iterator<Item = &BackendKey> {
        self.waypoint.iter().chain(&self.endpoints)
    }
}

/// How entries shall be; `None`: gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Which service port a destination leads to.
    pub frontends: BTreeMap<FrontendKey, Option<ServiceKey>>,
    /// Service ports.
    pub services: BTreeMap<ServiceKey, Option<ServiceEntry>>,
    /// Backends, by the address they have.
    pub backends: BTreeMap<BackendKey, Option<[u32; 4]>>,
    /// The node's entry, if it changes.
    pub node: Option<map::Node>,
}

impl Changes {
    /// Adds what a later transaction changes.
    pub fn merge(&mut self, later: Self) {
        self.frontends.extend(later.frontends);
        self.services.extend(later.services);
        self.backends.extend(later.backends);
        self.node = later.node.or(self.node);
    }
}
