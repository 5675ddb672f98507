//! What did this node believe at a moment, and why does a connection go where it goes? Answered from the journal alone.
//!
//! ```text
//!  journal::Reader ──▶ state at any record ──▶ resources, diff, history      (what was believed, and who said so)
//!                            │
//!                            ▼ applier::plan, applier::tables::MemoryTables
//!                      the tables of that moment ──▶ diff of entries
//!                            │
//!                            ▼ decision
//!                          why                          (where a connection goes, and the record behind each step)
//! ```
//!
//! A [`Past`] is made of a [`Reader`]: of a running agent's journal, of a stopped agent's directory, or of a copy of one. It
//! only reads. Answers name the record behind each fact ([`Cause`]), are plain data, and are the same as JSON.
//!
//! Architecture invariant: nothing is decided here. What a state means for the tables is said by `applier::plan`, and where a
//! connection goes by `decision`, the code that the kernel runs: an explanation cannot differ from what is explained.

#![forbid(unsafe_code)]

mod asked;
mod blame;
mod cause;
mod diff;
mod entries;
mod error;
mod field;
mod history;
mod slice;
mod tables;
mod why;

use journal::{OwnedResource, Reader, State};
use serde::{Deserialize, Serialize};
use storage_schema::codec::decode_resource;
use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, Resource, ResourceKey};

pub use cause::Cause;
pub use diff::{Diff, EntryDiff, ResourceDiff};
pub use error::ReplayError;
pub use field::FieldChange;
pub use history::{History, HistoryStep};
pub use why::{Candidate, Choice, Connection, Excluded, Outcome, Step, Unseen, Why};

/// A moment of the journal: the state after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// After this record; [`Lsn::ZERO`]: before the first.
    Lsn(Lsn),
    /// At this time of the node's wall clock, nanoseconds since 1970-01-01 UTC: after the last record that was there.
    Time(u64),
    /// After the last record there is.
    Now,
}

/// How something differs from what it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// It was not there.
    Added,
    /// It was otherwise.
    Changed,
    /// It is gone.
    Removed,
    /// It was pushed, and was so already.
    Unchanged,
    /// It was pushed; what it was before is not kept any more.
    Set,
}

impl Change {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
            Self::Unchanged => "pushed again",
            Self::Set => "pushed",
        }
    }
}

/// Which resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Which {
    /// Only those of this kind.
    pub kind: Option<Kind>,
    /// Only those of this name.
    pub name: Option<String>,
}

impl Which {
    fn includes(&self, kind: Kind, name: &str) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind) && self.name.as_deref().is_none_or(|wanted| wanted == name)
    }
}

/// A journal's past.
#[derive(Clone, Debug)]
pub struct Past {
    reader: Reader,
}

impl Past {
    /// That of a journal.
    pub fn of(reader: Reader) -> Self {
        Self { reader }
    }

    /// The record after which the state at a moment was so.
    pub fn lsn_of(&self, moment: Moment) -> Result<Lsn, ReplayError> {
        let oldest_lsn = self.reader.oldest_lsn();
        match moment {
            Moment::Now => Ok(self.reader.durable_lsn()),
            Moment::Lsn(lsn) => Ok(lsn),
            Moment::Time(wall_ns) => match self.reader.lsn_at(wall_ns)? {
                // What was before the oldest record is known, but not since when it was so.
                lsn if lsn < oldest_lsn && oldest_lsn > Lsn::FIRST => Err(ReplayError::BeforeOldest { oldest_lsn }),
                lsn => Ok(lsn),
            },
        }
    }

    /// The resources at a moment in the order of kind and name, and the moment's record.
    pub fn resources(&self, moment: Moment, which: &Which) -> Result<(Lsn, Vec<OwnedResource>), ReplayError> {
        let lsn = self.lsn_of(moment)?;
        let state = self.state(lsn)?;
        let chosen = state.iter().filter(|stored| which.includes(stored.kind, stored.name));
        let decoded = chosen.map(|stored| {
            let resource = decode(ResourceKey::new(stored.kind, stored.name), stored.encoded)?;
            Ok(OwnedResource { resource, changed_lsn: stored.changed_lsn, owner: stored.owner.to_owned() })
        });
        Ok((lsn, decoded.collect::<Result<_, ReplayError>>()?))
    }

    fn state(&self, lsn: Lsn) -> Result<State, ReplayError> {
        Ok(self.reader.state_at(lsn)?)
    }
}

fn decode(key: ResourceKey, encoded: &[u8]) -> Result<Resource, ReplayError> {
    decode_resource(encoded).map_err(|source| journal::ReadError::UndecodableResource { key, source }.into())
}
