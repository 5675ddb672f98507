//! Which services a workload backs, in as little memory as most of them need.

use storage_schema::id::ResourceId;
use storage_schema::resource::PortOverride;

/// A workload's parts in services. Most workloads back one service, on its own ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backings {
    /// One service, without overrides.
    One(ResourceId),
    /// All others.
    Many(Box<[(ResourceId, Box<[PortOverride]>)]>),
}

impl Backings {
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ResourceId, &[PortOverride])> {
        let (one, many) = match self {
            Self::One(service) => (Some((*service, &[][..])), &[][..]),
            Self::Many(many) => (None, &**many),
        };
        one.into_iter().chain(many.iter().map(|(service, overrides)| (*service, &**overrides)))
    }
}

impl FromIterator<(ResourceId, Box<[PortOverride]>)> for Backings {
    fn from_iter<I: IntoIterator<Item = (ResourceId, Box<[PortOverride]>)>>(backings: I) -> Self {
        let mut backings = backings.into_iter();
        match (backings.next(), backings.next()) {
            (Some((service, overrides)), None) if overrides.is_empty() => Self::One(service),
            (first, second) => Self::Many(first.into_iter().chain(second).chain(backings).collect()),
        }
    }
}
