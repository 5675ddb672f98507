//! What a pusher wants to be so before a transaction is accepted: compare-and-set, resource by resource.
//!
//! It is said to the agent and not kept: a record that is in the journal has met its preconditions.

use std::fmt;

use crate::id::Lsn;
use crate::resource::ResourceKey;

/// The record that must have changed a resource last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precondition {
    /// The resource, whether or not the transaction changes it.
    pub resource: ResourceKey,
    /// The record; [`Lsn::ZERO`]: the resource must not exist.
    pub changed_lsn: Lsn,
}

/// A precondition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmet {
    /// The resource.
    pub resource: ResourceKey,
    /// The record that was to have changed it last; zero: it was not to exist.
    pub expected_lsn: Lsn,
    /// The record that did; zero: it does not exist.
    pub actual_lsn: Lsn,
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.resource)?;
        match (self.expected_lsn, self.actual_lsn) {
            (Lsn::ZERO, actual) => write!(f, "exists, changed by record {actual}: it must not"),
            (expected, Lsn::ZERO) => write!(f, "does not exist: record {expected} must have changed it last"),
            (expected, actual) => write!(f, "record {actual} changed it last: it must be record {expected}"),
        }
    }
}
