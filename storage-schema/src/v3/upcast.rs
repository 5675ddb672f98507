//! From version 1's resources and version 2's records to this version's, and back: what the older one cannot say is the error.

use super::balancing::{LoadBalancing, Policy};
use super::record::{Cause, Delta, Record, Transaction};
use super::resource::{Drain, Node, Protocol, Resource, Service, ServicePort};
use crate::v1::record as old_record;
use crate::v1::resource as old;
use crate::v2;

impl From<old::Resource> for Resource {
    fn from(resource: old::Resource) -> Self {
        match resource {
            old::Resource::Service(service) => Self::Service(service.into()),
            old::Resource::Workload(workload) => Self::Workload(workload),
            old::Resource::Node(node) => Self::Node(node.into()),
        }
    }
}

impl TryFrom<Resource> for old::Resource {
    type Error = &'static str;

    fn try_from(resource: Resource) -> Result<Self, &'static str> {
        Ok(match resource {
            Resource::Service(service) => Self::Service(service.try_into()?),
            Resource::Workload(workload) => Self::Workload(workload),
            Resource::Node(node) => Self::Node(node.try_into()?),
        })
    }
}

impl From<old::Service> for Service {
    fn from(service: old::Service) -> Self {
        let old::Service { name, hostname, vips, ports, load_balancing, waypoint } = service;
        let policy = match load_balancing {
            old::LoadBalancing::Random => Policy::Random,
        };
        let ports = ports.into_iter().map(ServicePort::from).collect();
        Self { name, hostname, vips, ports, load_balancing: LoadBalancing::of(policy), waypoint, ..Self::default() }
    }
}

impl TryFrom<Service> for old::Service {
    type Error = &'static str;

    fn try_from(service: Service) -> Result<Self, &'static str> {
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
        for (said, field) in [
            (!external_addresses.is_empty(), "external_addresses"),
            (all_ports, "all_ports"),
            (load_balancing != LoadBalancing::default(), "load_balancing but random"),
            (no_endpoints.is_some(), "no_endpoints of a service"),
            (drain != Drain::default(), "drain"),
            (accelerate, "accelerate"),
        ] {
            if said {
                return Err(field);
            }
        }
        let ports = ports.into_iter().map(old::ServicePort::try_from).collect::<Result<_, _>>()?;
        Ok(Self { name, hostname, vips, ports, load_balancing: old::LoadBalancing::Random, waypoint })
    }
}

impl From<old::ServicePort> for ServicePort {
    fn from(port: old::ServicePort) -> Self {
        let old::ServicePort { name, port, target_port, protocol } = port;
        let protocol = match protocol {
            old::Protocol::Tcp => Protocol::Tcp,
        };
        Self { name, port, target_port, protocol, node_port: 0 }
    }
}

impl TryFrom<ServicePort> for old::ServicePort {
    type Error = &'static str;

    fn try_from(port: ServicePort) -> Result<Self, &'static str> {
        match port {
            ServicePort { name, port, target_port, protocol: Protocol::Tcp, node_port: 0 } => {
                Ok(Self { name, port, target_port, protocol: old::Protocol::Tcp })
            }
            ServicePort { protocol: Protocol::Udp, .. } => Err("protocol but tcp"),
            ServicePort { .. } => Err("node_port"),
        }
    }
}

impl From<old::Node> for Node {
    fn from(node: old::Node) -> Self {
        let old::Node { name, network, cluster, locality, no_endpoints } = node;
        Self { name, addresses: Vec::new(), network, cluster, locality, no_endpoints, dns: None }
    }
}

impl TryFrom<Node> for old::Node {
    type Error = &'static str;

    fn try_from(node: Node) -> Result<Self, &'static str> {
        let Node { name, addresses, network, cluster, locality, no_endpoints, dns } = node;
        if !addresses.is_empty() {
            return Err("addresses of the node");
        }
        if dns.is_some() {
            return Err("dns");
        }
        Ok(Self { name, network, cluster, locality, no_endpoints })
    }
}

impl From<old_record::Transaction> for Transaction {
    fn from(transaction: old_record::Transaction) -> Self {
        let old_record::Transaction { origin, deltas } = transaction;
        let deltas = deltas.into_iter().map(|delta| match delta {
            old_record::Delta::Upsert(resource) => Delta::Upsert(resource.into()),
            old_record::Delta::Remove(key) => Delta::Remove(key),
        });
        Self { origin, deltas: deltas.collect(), cause: Cause::Push, take_over: false, event: None }
    }
}

impl TryFrom<Transaction> for old_record::Transaction {
    type Error = &'static str;

    fn try_from(transaction: Transaction) -> Result<Self, &'static str> {
        let Transaction { origin, deltas, cause, take_over, event } = transaction;
        if cause != Cause::Push {
            return Err("cause");
        }
        if take_over {
            return Err("take_over");
        }
        if event.is_some() {
            return Err("event");
        }
        let deltas = deltas.into_iter().map(|delta| match delta {
            Delta::Upsert(resource) => resource.try_into().map(old_record::Delta::Upsert),
            Delta::Remove(key) => Ok(old_record::Delta::Remove(key)),
        });
        Ok(Self { origin, deltas: deltas.collect::<Result<_, _>>()? })
    }
}

impl From<v2::record::Record> for Record {
    fn from(record: v2::record::Record) -> Self {
        let v2::record::Record {
            lsn,
            transaction,
            wall_ns,
            monotonic_ns,
            boot_id,
            previous_hash,
            received_wall_ns,
            client,
        } = record;
        let transaction = transaction.into();
        Self { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns, client }
    }
}

impl TryFrom<Record> for v2::record::Record {
    type Error = &'static str;

    fn try_from(record: Record) -> Result<Self, &'static str> {
        let Record { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns, client } =
            record;
        let transaction = transaction.try_into()?;
        Ok(Self { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns, client })
    }
}
