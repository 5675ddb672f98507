//! What a resource must look like by itself, whatever else there is.
//!
//! Each violation names the field by its path in the manifest. What depends on other resources is checked by the
//! [`model`](crate::model).

use std::collections::HashSet;
use std::net::IpAddr;

use storage_schema::resource::{
    Drain, DrainMode, LoadBalancing, LocalityMode, Node, Resource, ResourceKey, Service, ServicePort, Waypoint,
    Workload,
};

/// Bytes of a name: enough for every Kubernetes name and Istio uid, and little enough for an error message.
pub const NAME_BYTES_MAX: usize = 512;
/// Entries of one list in one resource. The message size bounds a transaction; this bounds what one resource costs.
pub const LIST_LENGTH_MAX: usize = 16_384;
/// The longest time that can be given: a day.
pub const TIMEOUT_SECONDS_MAX: u32 = 86_400;

/// A field that cannot be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Violation {
    /// The field's path, for example `ports[1].targetPort`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl Violation {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into() }
    }
}

/// Checks a resource.
pub fn resource(resource: &Resource) -> Result<(), Violation> {
    match resource {
        Resource::Service(service) => self::service(service),
        Resource::Workload(workload) => self::workload(workload),
        Resource::Node(node) => self::node(node),
    }
}

/// Checks a key.
pub fn key(key: &ResourceKey) -> Result<(), Violation> {
    name("name", &key.name)
}

fn service(service: &Service) -> Result<(), Violation> {
    name("name", &service.name)?;
    if service.name.split('/').filter(|part| !part.is_empty()).count() != 2 || service.name.matches('/').count() != 1 {
        return Err(Violation::new("name", format!("`{}` is not of the form namespace/name", service.name)));
    }
    text("hostname", &service.hostname)?;
    addresses("vips", &service.vips)?;
    addresses("externalAddresses", &service.external_addresses)?;
    for (index, address) in service.external_addresses.iter().enumerate() {
        if service.vips.contains(address) {
            return Err(Violation::new(format!("externalAddresses[{index}]"), format!("{address} is one of the vips")));
        }
    }
    ports(&service.ports)?;
    load_balancing(&service.load_balancing)?;
    drain(service.drain)?;
    waypoint(service.waypoint.as_ref())
}

fn ports(ports: &[ServicePort]) -> Result<(), Violation> {
    length("ports", ports.len())?;
    let (mut seen, mut node_ports) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        text(format!("ports[{index}].name"), &port.name)?;
        port_number(format!("ports[{index}].port"), port.port)?;
        port_number(format!("ports[{index}].targetPort"), port.target_port)?;
        let twice = |field: &str, number| {
            Violation::new(format!("ports[{index}].{field}"), format!("{number}/{} is there twice", port.protocol))
        };
        if !seen.insert((port.port, port.protocol)) {
            return Err(twice("port", port.port));
        }
        if port.node_port != 0 && !node_ports.insert((port.node_port, port.protocol)) {
            return Err(twice("nodePort", port.node_port));
        }
    }
    Ok(())
}

fn load_balancing(load_balancing: &LoadBalancing) -> Result<(), Violation> {
    let LoadBalancing { policy: _, locality, affinity } = load_balancing;
    let field = "loadBalancing.locality.routingPreference";
    match (locality.mode, locality.routing_preference.is_empty()) {
        (LocalityMode::None, false) => {
            return Err(Violation::new(field, "has no meaning with mode none: say strict or failover"));
        }
        (LocalityMode::Strict | LocalityMode::Failover, true) => {
            return Err(Violation::new(field, format!("is empty: say what mode {} compares", locality.mode)));
        }
        _ => {}
    }
    let mut seen = HashSet::new();
    for (index, scope) in locality.routing_preference.iter().enumerate() {
        if !seen.insert(scope) {
            return Err(Violation::new(format!("{field}[{index}]"), format!("{scope} is there twice")));
        }
    }
    match affinity {
        Some(affinity) => timeout("loadBalancing.affinity.timeoutSeconds", 1, affinity.timeout_seconds),
        None => Ok(()),
    }
}

fn drain(drain: Drain) -> Result<(), Violation> {
    let field = "drain.timeoutSeconds";
    match drain.mode {
        DrainMode::Keep if drain.timeout_seconds != 0 => {
            Err(Violation::new(field, "has no meaning with mode keep: say graceful, terminate or reselect"))
        }
        DrainMode::Graceful => timeout(field, 1, drain.timeout_seconds),
        DrainMode::Keep | DrainMode::Terminate | DrainMode::Reselect => timeout(field, 0, drain.timeout_seconds),
    }
}

fn timeout(field: &str, least: u32, seconds: u32) -> Result<(), Violation> {
    if (least..=TIMEOUT_SECONDS_MAX).contains(&seconds) {
        return Ok(());
    }
    Err(Violation::new(field, format!("must be {least} to {TIMEOUT_SECONDS_MAX}, not {seconds}")))
}

fn workload(workload: &Workload) -> Result<(), Violation> {
    name("uid", &workload.uid)?;
    for (field, value) in [
        ("name", &workload.name),
        ("namespace", &workload.namespace),
        ("locality.region", &workload.locality.region),
        ("locality.zone", &workload.locality.zone),
        ("locality.subzone", &workload.locality.subzone),
        ("node", &workload.node),
        ("network", &workload.network),
        ("cluster", &workload.cluster),
        ("serviceAccount", &workload.service_account),
    ] {
        text(field, value)?;
    }
    addresses("addresses", &workload.addresses)?;
    length("services", workload.services.len())?;
    let mut seen = HashSet::new();
    for (index, backing) in workload.services.iter().enumerate() {
        let field = format!("services[{index}]");
        name(format!("{field}.service"), &backing.service)?;
        if !seen.insert(&backing.service) {
            return Err(Violation::new(format!("{field}.service"), format!("`{}` is there twice", backing.service)));
        }
        length(format!("{field}.ports"), backing.ports.len())?;
        let mut ports = HashSet::new();
        for (index, port) in backing.ports.iter().enumerate() {
            port_number(format!("{field}.ports[{index}].servicePort"), port.service_port)?;
            port_number(format!("{field}.ports[{index}].targetPort"), port.target_port)?;
            if !ports.insert(port.service_port) {
                return Err(Violation::new(
                    format!("{field}.ports[{index}].servicePort"),
                    format!("{} is there twice", port.service_port),
                ));
            }
        }
    }
    waypoint(workload.waypoint.as_ref())
}

fn node(node: &Node) -> Result<(), Violation> {
    name("name", &node.name)?;
    for (field, value) in [
        ("network", &node.network),
        ("cluster", &node.cluster),
        ("locality.region", &node.locality.region),
        ("locality.zone", &node.locality.zone),
        ("locality.subzone", &node.locality.subzone),
    ] {
        text(field, value)?;
    }
    addresses("addresses", &node.addresses)?;
    let Some(dns) = &node.dns else { return Ok(()) };
    address("dns.proxy", dns.proxy)?;
    port_number("dns.port", dns.port)
}

fn waypoint(waypoint: Option<&Waypoint>) -> Result<(), Violation> {
    let Some(waypoint) = waypoint else { return Ok(()) };
    address("waypoint.address", waypoint.address)?;
    port_number("waypoint.port", waypoint.port)
}

fn name(field: impl Into<String>, value: &str) -> Result<(), Violation> {
    let field = field.into();
    if value.is_empty() {
        return Err(Violation::new(field, "is empty"));
    }
    if let Some(bad) = value.chars().find(|c| c.is_whitespace() || c.is_control()) {
        return Err(Violation::new(field, format!("holds {bad:?}: names have no spaces or control characters")));
    }
    text(field, value)
}

fn text(field: impl Into<String>, value: &str) -> Result<(), Violation> {
    if value.len() > NAME_BYTES_MAX {
        return Err(Violation::new(field, format!("has {} bytes, at most {NAME_BYTES_MAX} are allowed", value.len())));
    }
    if value.chars().any(char::is_control) {
        return Err(Violation::new(field, "holds a control character"));
    }
    Ok(())
}

fn length(field: impl Into<String>, length: usize) -> Result<(), Violation> {
    if length > LIST_LENGTH_MAX {
        return Err(Violation::new(field, format!("has {length} entries, at most {LIST_LENGTH_MAX} are allowed")));
    }
    Ok(())
}

fn port_number(field: impl Into<String>, port: u16) -> Result<(), Violation> {
    if port == 0 { Err(Violation::new(field, "0 is not a port: use 1 to 65535")) } else { Ok(()) }
}

fn addresses(field: &str, addresses: &[IpAddr]) -> Result<(), Violation> {
    length(field, addresses.len())?;
    let mut seen = HashSet::new();
    for (index, value) in addresses.iter().enumerate() {
        let field = format!("{field}[{index}]");
        address(&field, *value)?;
        if !seen.insert(value) {
            return Err(Violation::new(field, format!("{value} is there twice")));
        }
    }
    Ok(())
}

fn address(field: &str, address: IpAddr) -> Result<(), Violation> {
    if address.is_unspecified() || address.is_multicast() {
        return Err(Violation::new(field, format!("{address} is not the address of one host")));
    }
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return Err(Violation::new(field, format!("{address} is an IPv4 address: write {v4}")));
    }
    Ok(())
}
