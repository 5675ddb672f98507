//! Why a transaction does not fit the state.

use std::net::IpAddr;

use storage_schema::precondition::Unmet;
use storage_schema::resource::ResourceKey;

use crate::owner::Foreign;
use crate::validate::Violation;

/// Why a transaction is not admitted. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It has no deltas.
    #[error("the transaction is empty: give it at least one resource")]
    Empty,
    /// It tells of an event and changes something.
    #[error("the transaction tells of an event and has deltas as well: an event changes nothing")]
    EventWithDeltas,
    /// A field is wrong in itself.
    #[error("{resource}: {violation}")]
    Invalid {
        /// Whose field.
        resource: ResourceKey,
        /// Position of the delta in the transaction.
        index: usize,
        /// What is wrong.
        violation: Violation,
    },
    /// Resources belong to other sources, and the transaction takes nothing over.
    #[error("{}", .0.first().map(Foreign::to_string).unwrap_or_default())]
    Owned(Vec<Foreign>),
    /// Preconditions do not hold.
    #[error("{}", .0.first().map(Unmet::to_string).unwrap_or_default())]
    Unmet(Vec<Unmet>),
    /// A workload backs a service that is not there.
    #[error("Workload {workload}: {field}: there is no Service {service}: push it before, or in the same transaction")]
    DanglingService {
        /// The workload's uid.
        workload: String,
        /// The field that names the service.
        field: String,
        /// The service's name.
        service: String,
    },
    /// A workload names a port that its service does not have.
    #[error("Workload {workload}: {field}: Service {service} has no port {port}")]
    DanglingPort {
        /// The workload's uid.
        workload: String,
        /// The field that names the port.
        field: String,
        /// The service's name.
        service: String,
        /// The port.
        port: u16,
    },
    /// A service is removed while workloads back it.
    #[error(
        "Service {service}: Workload {workload} backs it: remove or change that one before, or in the same transaction"
    )]
    StillBacked {
        /// The service's name.
        service: String,
        /// One of the workloads.
        workload: String,
    },
    /// Two services, or workloads with a waypoint, want one destination.
    #[error("{resource}: {address} {} belongs to {owner}", port_of(*.port))]
    DuplicateFrontend {
        /// Who wants it.
        resource: ResourceKey,
        /// The field that has the address.
        field: &'static str,
        /// The address.
        address: IpAddr,
        /// The port; 0: every port.
        port: u16,
        /// Who has it.
        owner: ResourceKey,
    },
    /// A second node configuration.
    #[error("Node {name}: this node is configured as {configured}: remove that one before, or in the same transaction")]
    SecondNode {
        /// The name given.
        name: String,
        /// The name there is.
        configured: String,
    },
    /// Two names have one number. One pair in 2^64: rename one.
    #[error("{resource}: its number is that of {other}: choose another name")]
    NumberTaken {
        /// The resource that was pushed.
        resource: ResourceKey,
        /// The name of the one that is there.
        other: String,
    },
    /// The tables have no room.
    #[error(
        "the transaction needs {needed} entries of {table}, whose capacity is {capacity}: raise capacities.{table} and restart the agent"
    )]
    OverCapacity {
        /// Which table.
        table: &'static str,
        /// Entries after the transaction.
        needed: u64,
        /// Entries there are.
        capacity: u64,
    },
}

/// A destination's port, as a person calls it.
pub fn port_of(port: u16) -> String {
    if port == 0 { "on every port".to_owned() } else { format!("port {port}") }
}
