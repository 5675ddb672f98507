//! Resources and their keys.

use std::net::IpAddr;

use storage_schema::resource::{
    Backing, Dns, Kind, Locality, NoEndpoints, Node, PortOverride, Protocol, Resource, ResourceKey, Service,
    ServicePort, Waypoint, Workload, WorkloadStatus,
};

use super::Path;
use super::balancing::{
    decode_drain, decode_load_balancing, encode_affinity, encode_drain, encode_locality_preference, encode_policy,
};
use crate::proto;
use crate::rejection::Violations;

/// A kind as a message.
pub fn encode_kind(kind: Kind) -> proto::Kind {
    match kind {
        Kind::Service => proto::Kind::Service,
        Kind::Workload => proto::Kind::Workload,
        Kind::Node => proto::Kind::Node,
    }
}

/// A key as a message.
pub fn encode_key(key: &ResourceKey) -> proto::ResourceKey {
    proto::ResourceKey { kind: encode_kind(key.kind).into(), name: key.name.clone() }
}

/// A resource as a message.
pub fn encode_resource(resource: &Resource) -> proto::Resource {
    use proto::resource::Resource as Oneof;
    proto::Resource {
        resource: Some(match resource {
            Resource::Service(service) => Oneof::Service(encode_service(service)),
            Resource::Workload(workload) => Oneof::Workload(encode_workload(workload)),
            Resource::Node(node) => Oneof::Node(encode_node(node)),
        }),
    }
}

/// A message's kind.
pub fn decode_kind(path: &Path<'_>, kind: i32, found: &mut Violations) -> Option<Kind> {
    match known(path, kind, found)? {
        proto::Kind::Unspecified => found.note(path, "is required"),
        proto::Kind::Service => Some(Kind::Service),
        proto::Kind::Workload => Some(Kind::Workload),
        proto::Kind::Node => Some(Kind::Node),
    }
}

/// A message's key.
pub fn decode_key(path: &Path<'_>, key: proto::ResourceKey, found: &mut Violations) -> Option<ResourceKey> {
    let kind = decode_kind(&path.field("kind"), key.kind, found);
    let name = found.required_text(&path.field("name"), key.name);
    Some(ResourceKey { kind: kind?, name: name? })
}

/// A message's resource.
pub fn decode_resource(path: &Path<'_>, resource: proto::Resource, found: &mut Violations) -> Option<Resource> {
    use proto::resource::Resource as Oneof;
    match resource.resource {
        Some(Oneof::Service(message)) => decode_service(&path.field("service"), message, found).map(Resource::Service),
        Some(Oneof::Workload(message)) => {
            decode_workload(&path.field("workload"), message, found).map(Resource::Workload)
        }
        Some(Oneof::Node(message)) => decode_node(&path.field("node"), message, found).map(Resource::Node),
        None => found.note(path, "must hold a service, a workload or a node"),
    }
}

fn encode_service(service: &Service) -> proto::Service {
    let Service {
        name,
        hostname,
        vips,
        external_addresses,
        ports,
        all_ports,
        load_balancing,
        no_endpoints,
        drain,
        accelerate,
        waypoint,
    } = service;
    proto::Service {
        name: name.clone(),
        hostname: hostname.clone(),
        vips: vips.iter().map(IpAddr::to_string).collect(),
        ports: ports.iter().map(encode_service_port).collect(),
        load_balancing: encode_policy(load_balancing.policy).into(),
        waypoint: waypoint.as_ref().map(encode_waypoint),
        locality_preference: encode_locality_preference(&load_balancing.locality),
        affinity: load_balancing.affinity.map(encode_affinity),
        external_addresses: external_addresses.iter().map(IpAddr::to_string).collect(),
        all_ports: *all_ports,
        no_endpoints: no_endpoints.map_or(proto::NoEndpoints::Unspecified, encode_no_endpoints).into(),
        drain: encode_drain(*drain),
        accelerate: *accelerate,
    }
}

fn decode_service(path: &Path<'_>, message: proto::Service, found: &mut Violations) -> Option<Service> {
    let name = found.required_text(&path.field("name"), message.name);
    let hostname = found.text(&path.field("hostname"), message.hostname);
    let vips = found.list(&path.field("vips"), message.vips, decode_address);
    let ports = found.list(&path.field("ports"), message.ports, decode_service_port);
    let load_balancing =
        decode_load_balancing(path, message.load_balancing, message.locality_preference, message.affinity, found);
    let waypoint = decode_waypoint(&path.field("waypoint"), message.waypoint, found);
    let external_addresses = found.list(&path.field("external_addresses"), message.external_addresses, decode_address);
    let no_endpoints = known(&path.field("no_endpoints"), message.no_endpoints, found).map(decode_no_endpoints);
    let drain = decode_drain(&path.field("drain"), message.drain, found);
    Some(Service {
        name: name?,
        hostname: hostname?,
        vips: vips?,
        external_addresses: external_addresses?,
        ports: ports?,
        all_ports: message.all_ports,
        load_balancing: load_balancing?,
        no_endpoints: no_endpoints?,
        drain: drain?,
        accelerate: message.accelerate,
        waypoint: waypoint?,
    })
}

fn encode_service_port(port: &ServicePort) -> proto::ServicePort {
    let ServicePort { name, port, target_port, protocol, node_port } = port;
    proto::ServicePort {
        name: name.clone(),
        port: (*port).into(),
        target_port: (*target_port).into(),
        protocol: match protocol {
            Protocol::Tcp => proto::Protocol::Tcp,
            Protocol::Udp => proto::Protocol::Udp,
        }
        .into(),
        node_port: (*node_port).into(),
    }
}

fn decode_service_port(path: &Path<'_>, message: proto::ServicePort, found: &mut Violations) -> Option<ServicePort> {
    let proto::ServicePort { name, port, target_port, protocol, node_port } = message;
    let name = found.text(&path.field("name"), name);
    let port = found.port(&path.field("port"), port);
    let target_port = found.port(&path.field("target_port"), target_port);
    let protocol = known(&path.field("protocol"), protocol, found).map(|protocol| match protocol {
        proto::Protocol::Unspecified | proto::Protocol::Tcp => Protocol::Tcp,
        proto::Protocol::Udp => Protocol::Udp,
    });
    let node_port = match node_port {
        0 => Some(0),
        port => found.port(&path.field("node_port"), port),
    };
    Some(ServicePort {
        name: name?,
        port: port?,
        target_port: target_port?,
        protocol: protocol?,
        node_port: node_port?,
    })
}

fn encode_waypoint(waypoint: &Waypoint) -> proto::Waypoint {
    proto::Waypoint { address: waypoint.address.to_string(), port: waypoint.port.into() }
}

/// The outer `Option` is whether it could be decoded, the inner one whether there is a waypoint.
#[expect(clippy::option_option, reason = "two different questions, and each caller asks both at once")]
fn decode_waypoint(
    path: &Path<'_>,
    message: Option<proto::Waypoint>,
    found: &mut Violations,
) -> Option<Option<Waypoint>> {
    let Some(proto::Waypoint { address, port }) = message else { return Some(None) };
    let address = decode_address(&path.field("address"), address, found);
    let port = found.port(&path.field("port"), port);
    Some(Some(Waypoint { address: address?, port: port? }))
}

fn encode_workload(workload: &Workload) -> proto::Workload {
    proto::Workload {
        uid: workload.uid.clone(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        addresses: workload.addresses.iter().map(IpAddr::to_string).collect(),
        locality: encode_locality(&workload.locality),
        node: workload.node.clone(),
        network: workload.network.clone(),
        cluster: workload.cluster.clone(),
        service_account: workload.service_account.clone(),
        status: match workload.status {
            WorkloadStatus::Healthy => proto::WorkloadStatus::Healthy,
            WorkloadStatus::Unhealthy => proto::WorkloadStatus::Unhealthy,
            WorkloadStatus::Terminating => proto::WorkloadStatus::Terminating,
        }
        .into(),
        weight: Some(workload.weight),
        waypoint: workload.waypoint.as_ref().map(encode_waypoint),
        services: workload.services.iter().map(encode_backing).collect(),
    }
}

fn decode_workload(path: &Path<'_>, message: proto::Workload, found: &mut Violations) -> Option<Workload> {
    let uid = found.required_text(&path.field("uid"), message.uid);
    let name = found.text(&path.field("name"), message.name);
    let namespace = found.text(&path.field("namespace"), message.namespace);
    let addresses = found.list(&path.field("addresses"), message.addresses, decode_address);
    let locality = decode_locality(&path.field("locality"), message.locality, found);
    let node = found.text(&path.field("node"), message.node);
    let network = found.text(&path.field("network"), message.network);
    let cluster = found.text(&path.field("cluster"), message.cluster);
    let service_account = found.text(&path.field("service_account"), message.service_account);
    let status = known(&path.field("status"), message.status, found).map(|status| match status {
        proto::WorkloadStatus::Unspecified | proto::WorkloadStatus::Healthy => WorkloadStatus::Healthy,
        proto::WorkloadStatus::Unhealthy => WorkloadStatus::Unhealthy,
        proto::WorkloadStatus::Terminating => WorkloadStatus::Terminating,
    });
    let waypoint = decode_waypoint(&path.field("waypoint"), message.waypoint, found);
    let services = found.list(&path.field("services"), message.services, decode_backing);
    Some(Workload {
        uid: uid?,
        name: name?,
        namespace: namespace?,
        addresses: addresses?,
        locality: locality?,
        node: node?,
        network: network?,
        cluster: cluster?,
        service_account: service_account?,
        status: status?,
        weight: message.weight.unwrap_or(1),
        waypoint: waypoint?,
        services: services?,
    })
}

fn encode_backing(backing: &Backing) -> proto::Backing {
    let encode_override = |port: &PortOverride| proto::PortOverride {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
    };
    proto::Backing { service: backing.service.clone(), ports: backing.ports.iter().map(encode_override).collect() }
}

fn decode_backing(path: &Path<'_>, message: proto::Backing, found: &mut Violations) -> Option<Backing> {
    let service = found.required_text(&path.field("service"), message.service);
    let ports = found.list(&path.field("ports"), message.ports, |path, message, found| {
        let service_port = found.port(&path.field("service_port"), message.service_port);
        let target_port = found.port(&path.field("target_port"), message.target_port);
        Some(PortOverride { service_port: service_port?, target_port: target_port? })
    });
    Some(Backing { service: service?, ports: ports? })
}

fn encode_node(node: &Node) -> proto::Node {
    let Node { name, addresses, network, cluster, locality, no_endpoints, dns } = node;
    proto::Node {
        name: name.clone(),
        network: network.clone(),
        cluster: cluster.clone(),
        locality: encode_locality(locality),
        no_endpoints: encode_no_endpoints(*no_endpoints).into(),
        addresses: addresses.iter().map(IpAddr::to_string).collect(),
        dns: dns.map(|dns| proto::Dns { proxy: dns.proxy.to_string(), port: Some(dns.port.into()) }),
    }
}

fn decode_node(path: &Path<'_>, message: proto::Node, found: &mut Violations) -> Option<Node> {
    let proto::Node { name, network, cluster, locality, no_endpoints, addresses, dns } = message;
    let name = found.required_text(&path.field("name"), name);
    let network = found.text(&path.field("network"), network);
    let cluster = found.text(&path.field("cluster"), cluster);
    let locality = decode_locality(&path.field("locality"), locality, found);
    let no_endpoints = known(&path.field("no_endpoints"), no_endpoints, found);
    let no_endpoints = no_endpoints.map(|choice| decode_no_endpoints(choice).unwrap_or_default());
    let addresses = found.list(&path.field("addresses"), addresses, decode_address);
    let dns = match dns {
        None => Some(None),
        Some(dns) => decode_dns(&path.field("dns"), dns, found).map(Some),
    };
    Some(Node {
        name: name?,
        addresses: addresses?,
        network: network?,
        cluster: cluster?,
        locality: locality?,
        no_endpoints: no_endpoints?,
        dns: dns?,
    })
}

fn decode_dns(path: &Path<'_>, message: proto::Dns, found: &mut Violations) -> Option<Dns> {
    let proxy = decode_address(&path.field("proxy"), message.proxy, found);
    let port = found.port(&path.field("port"), message.port.unwrap_or(53));
    Some(Dns { proxy: proxy?, port: port? })
}

fn encode_no_endpoints(no_endpoints: NoEndpoints) -> proto::NoEndpoints {
    match no_endpoints {
        NoEndpoints::Refuse => proto::NoEndpoints::Refuse,
        NoEndpoints::Pass => proto::NoEndpoints::Pass,
    }
}

fn decode_no_endpoints(choice: proto::NoEndpoints) -> Option<NoEndpoints> {
    match choice {
        proto::NoEndpoints::Unspecified => None,
        proto::NoEndpoints::Refuse => Some(NoEndpoints::Refuse),
        proto::NoEndpoints::Pass => Some(NoEndpoints::Pass),
    }
}

fn encode_locality(locality: &Locality) -> Option<proto::Locality> {
    let Locality { region, zone, subzone } = locality.clone();
    (!locality.is_empty()).then_some(proto::Locality { region, zone, subzone })
}

fn decode_locality(path: &Path<'_>, message: Option<proto::Locality>, found: &mut Violations) -> Option<Locality> {
    let proto::Locality { region, zone, subzone } = message.unwrap_or_default();
    let region = found.text(&path.field("region"), region);
    let zone = found.text(&path.field("zone"), zone);
    let subzone = found.text(&path.field("subzone"), subzone);
    Some(Locality { region: region?, zone: zone?, subzone: subzone? })
}

fn decode_address(path: &Path<'_>, mut text: String, found: &mut Violations) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    // What is quoted is bounded; the longest address has 45 characters.
    text.truncate(text.floor_char_boundary(64));
    found.note(path, format!("must be an IPv4 or IPv6 address, not {text:?}"))
}

pub(super) fn known<E: TryFrom<i32>>(path: &Path<'_>, number: i32, found: &mut Violations) -> Option<E> {
    match E::try_from(number) {
        Ok(value) => Some(value),
        Err(_) => found.note(path, format!("{number} is not a value that this agent knows")),
    }
}
