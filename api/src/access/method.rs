//! Every method there is: what a caller needs for it, and what it costs. Anything that is not in this table is refused
//! before it reaches a service, so a method that was forgotten here cannot be called by anybody; a test holds the table
//! against the descriptor.

use super::rule::Role;

/// What a call looks like, as far as limits are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One request, one answer.
    Unary,
    /// A stream in either direction.
    Stream,
    /// A stream out of the journal, which a thread reads for it.
    Reader,
    /// A stream of pushes, with a window of transactions in flight.
    Push,
}

/// What a caller needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be one that the agent knows.
    Known,
    /// This role.
    Role(Role),
}

/// A method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// What a caller needs.
    pub need: Need,
    /// What it costs.
    pub shape: Shape,
}

const fn method(path: &'static str, need: Need, shape: Shape) -> Method {
    Method { path, need, shape }
}

const READ: Need = Need::Role(Role::Read);
const PUSH: Need = Need::Role(Role::Push);
const ADMIN: Need = Need::Role(Role::Admin);

/// The table.
pub const METHODS: &[Method] = &[
    method("/holdfast.v1.PushService/Apply", PUSH, Shape::Unary),
    method("/holdfast.v1.PushService/Push", PUSH, Shape::Push),
    method("/holdfast.v1.PushService/ListSources", READ, Shape::Unary),
    method("/holdfast.v1.ResourceService/GetResource", READ, Shape::Unary),
    method("/holdfast.v1.ResourceService/ListResources", READ, Shape::Unary),
    method("/holdfast.v1.ResourceService/WatchState", READ, Shape::Reader),
    method("/holdfast.v1.StatusService/GetStatus", READ, Shape::Unary),
    method("/holdfast.v1.StatusService/GetCapabilities", Need::Known, Shape::Unary),
    method("/holdfast.v1.StatusService/SetLogFilter", ADMIN, Shape::Unary),
    method("/holdfast.v1.JournalService/ReadRecords", READ, Shape::Reader),
    method("/holdfast.v1.JournalService/WatchRecords", READ, Shape::Reader),
    method("/holdfast.v1.JournalService/GetJournalStats", READ, Shape::Unary),
    method("/holdfast.v1.JournalService/VerifyJournal", ADMIN, Shape::Reader),
    method("/holdfast.v1.JournalService/CreateCheckpoint", ADMIN, Shape::Unary),
    method("/holdfast.v1.JournalService/CompactJournal", ADMIN, Shape::Unary),
    method("/holdfast.v1.JournalService/SaveSnapshot", ADMIN, Shape::Reader),
    method("/holdfast.v1.ReplayService/ReadState", READ, Shape::Reader),
    method("/holdfast.v1.ReplayService/Explain", READ, Shape::Reader),
    method("/holdfast.v1.DatapathService/VerifyTables", ADMIN, Shape::Unary),
    method("/holdfast.v1.DatapathService/RenewGeneration", ADMIN, Shape::Unary),
    method("/holdfast.v1.DatapathService/EnrolNamespace", ADMIN, Shape::Unary),
    method("/holdfast.v1.DatapathService/ReleaseNamespace", ADMIN, Shape::Unary),
    method("/holdfast.v1.DatapathService/ListNamespaces", READ, Shape::Unary),
    method("/grpc.health.v1.Health/Check", Need::Known, Shape::Unary),
    method("/grpc.health.v1.Health/Watch", Need::Known, Shape::Stream),
    method("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need::Known, Shape::Stream),
    method("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Need::Known, Shape::Stream),
];

/// The method at a request's path.
pub(crate) fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}
