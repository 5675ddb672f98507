//! Resources, as far as table entries depend on them: what the model keeps of each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use storage_schema::id::{Lsn, ResourceId};
use storage_schema::map;
use storage_schema::resource::{
    self, Drain, Kind, LocalityPreference, NoEndpoints, Policy, ServicePort, WorkloadStatus,
};

use crate::backings::Backings;
use crate::direct::Redirect;
use crate::owner::Owner;
use crate::place::{Place, Said};

/// A service, as far as table entries depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub(crate) owner: Owner,
    /// The record that changed it last; zero until that has its number.
    pub(crate) changed_lsn: Lsn,
    pub(crate) name: Box<str>,
    /// Virtual and external ones.
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) ports: Box<[ServicePort]>,
    pub(crate) all_ports: bool,
    pub(crate) policy: Policy,
    /// As [`map::Service::affinity`].
    pub(crate) affinity: u16,
    pub(crate) locality: LocalityPreference,
    pub(crate) no_endpoints: Option<NoEndpoints>,
    pub(crate) drain: Drain,
    pub(crate) accelerate: bool,
    pub(crate) waypoint: Option<(IpAddr, u16)>,
}

/// A workload, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub(crate) owner: Owner,
    /// The record that changed it last; zero until that has its number.
    pub(crate) changed_lsn: Lsn,
    pub(crate) uid: Box<str>,
    pub(crate) v4: Option<Ipv4Addr>,
    pub(crate) v6: Option<Ipv6Addr>,
    pub(crate) status: WorkloadStatus,
    pub(crate) weight: u32,
    pub(crate) place: Place,
    pub(crate) backings: Backings,
    /// If it has a waypoint. In a box: few have.
    pub(crate) redirect: Option<Box<Redirect>>,
}

/// The node, likewise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) owner: Owner,
    /// The record that changed it last; zero until that has its number.
    pub(crate) changed_lsn: Lsn,
    pub(crate) name: Box<str>,
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) place: Place,
    pub(crate) no_endpoints: NoEndpoints,
    /// The DNS proxy's address and port.
    pub(crate) dns: Option<(IpAddr, u16)>,
}

/// A timeout in the units of [`map::Service::affinity`], rounded up.
pub(crate) fn affinity_units(seconds: u32) -> u16 {
    let units = (u64::from(seconds) * 1_000_000_000).div_ceil(map::Service::AFFINITY_UNIT_NS);
    u16::try_from(units).unwrap_or(u16::MAX)
}

impl Service {
    pub(crate) fn project(service: &resource::Service, owner: Owner) -> Self {
        let ports = service.ports.iter().map(|port| ServicePort { name: String::new(), ..*port }).collect();
        Self {
            owner,
            changed_lsn: Lsn::ZERO,
            name: (*service.name).into(),
            addresses: service.vips.iter().chain(&service.external_addresses).copied().collect(),
            ports,
            all_ports: service.all_ports,
            policy: service.load_balancing.policy,
            affinity: affinity_units(service.load_balancing.affinity.map_or(0, |affinity| affinity.timeout_seconds)),
            locality: service.load_balancing.locality.clone(),
            no_endpoints: service.no_endpoints,
            drain: service.drain,
            accelerate: service.accelerate,
            waypoint: service.waypoint.as_ref().map(|waypoint| (waypoint.address, waypoint.port)),
        }
    }
}

impl Node {
    pub(crate) fn project(node: &resource::Node, owner: Owner) -> Self {
        Self {
            owner,
            changed_lsn: Lsn::ZERO,
            name: (*node.name).into(),
            addresses: node.addresses.clone().into(),
            place: Said {
                network: &node.network,
                region: &node.locality.region,
                zone: &node.locality.zone,
                subzone: &node.locality.subzone,
                node: &node.name,
                cluster: &node.cluster,
            }
            .into(),
            no_endpoints: node.no_endpoints,
            dns: node.dns.map(|dns| (dns.proxy, dns.port)),
        }
    }
}

impl Workload {
    pub(crate) fn project(workload: &resource::Workload, owner: Owner) -> Self {
        let backing = |backing: &resource::Backing| {
            (ResourceId::named(Kind::Service, &backing.service), backing.ports.clone().into())
        };
        Self {
            owner,
            changed_lsn: Lsn::ZERO,
            uid: (*workload.uid).into(),
            v4: workload.addresses.iter().find_map(|address| match address {
                IpAddr::V4(v4) => Some(*v4),
                IpAddr::V6(_) => None,
            }),
            v6: workload.addresses.iter().find_map(|address| match address {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            }),
            status: workload.status,
            weight: workload.weight,
            place: Said {
                network: &workload.network,
                region: &workload.locality.region,
                zone: &workload.locality.zone,
                subzone: &workload.locality.subzone,
                node: &workload.node,
                cluster: &workload.cluster,
            }
            .into(),
            backings: workload.services.iter().map(backing).collect(),
            redirect: workload.waypoint.as_ref().map(|waypoint| {
                let addresses = workload.addresses.clone().into();
                Box::new(Redirect { addresses, waypoint: (waypoint.address, waypoint.port) })
            }),
        }
    }
}
