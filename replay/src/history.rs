//! Every change of one resource, and who made it.

use serde::{Deserialize, Serialize};
use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Record};
use storage_schema::resource::{Kind, Resource, ResourceKey};

use crate::cause::{Cause, decoded};
use crate::field::{self, FieldChange};
use crate::{Change, Moment, Past, ReplayError};

/// The changes of one resource, oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct History {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The oldest record that was looked at.
    pub from_lsn: Lsn,
    /// The last one.
    pub to_lsn: Lsn,
    /// Its changes.
    pub steps: Vec<HistoryStep>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HistoryStep {
    /// The record that made it.
    pub cause: Cause,
    /// What it was.
    pub change: Change,
    /// The fields that it changed.
    pub fields: Vec<FieldChange>,
}

/// What a resource was before a record.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and nearly always known")]
enum Before {
    /// This, or not there.
    Known(Option<Resource>),
    /// It was let go.
    Unknown,
}

impl Past {
    /// The changes of a resource after the moment `since` and up to the moment `until`; only the last `last` of them, if that is
    /// given. A resource that never was has none.
    pub fn history(
        &self,
        key: &ResourceKey,
        since: Option<Moment>,
        until: Moment,
        last: Option<usize>,
    ) -> Result<History, ReplayError> {
        let oldest_lsn = self.reader.oldest_lsn();
        let to_lsn = self.lsn_of(until)?.min(self.reader.durable_lsn());
        let from_lsn = match since {
            None => oldest_lsn,
            Some(Moment::Lsn(lsn)) => lsn.max(oldest_lsn),
            Some(moment) => self.lsn_of(moment)?.next(),
        };
        let all = self.reader.history(key, oldest_lsn, to_lsn)?;
        let first = all.partition_point(|lsn| *lsn < from_lsn);
        let first = last.map_or(first, |last| first.max(all.len().saturating_sub(last)));
        let (earlier, asked) = all.split_at(first);
        let mut before = if asked.is_empty() { Before::Unknown } else { self.before(key, earlier)? };
        let mut steps = Vec::with_capacity(asked.len());
        for lsn in asked {
            let record = decoded(&self.reader, *lsn)?;
            // Two names can have one number, and indexes know numbers.
            let Some(after) = value_after(&record, key) else { continue };
            let (change, fields) = match &before {
                Before::Unknown => {
                    (if after.is_some() { Change::Set } else { Change::Removed }, field::between(None, after.as_ref()))
                }
                Before::Known(old) => {
                    (step(old.as_ref(), after.as_ref()), field::between(old.as_ref(), after.as_ref()))
                }
            };
            steps.push(HistoryStep { cause: Cause::of(&record), change, fields });
            before = Before::Known(after);
        }
        Ok(History { kind: key.kind, name: key.name.clone(), from_lsn, to_lsn, steps })
    }

    /// What a resource was after the last of these records, or before the oldest record there is.
    fn before(&self, key: &ResourceKey, earlier: &[Lsn]) -> Result<Before, ReplayError> {
        for lsn in earlier.iter().rev() {
            if let Some(value) = value_after(&decoded(&self.reader, *lsn)?, key) {
                return Ok(Before::Known(value));
            }
        }
        let oldest_lsn = self.reader.oldest_lsn();
        if oldest_lsn == Lsn::FIRST {
            return Ok(Before::Known(None));
        }
        match self.reader.state_at(Lsn(oldest_lsn.0 - 1)) {
            Ok(state) => Ok(Before::Known(state.get(key)?.map(|(resource, _)| resource))),
            Err(_) => Ok(Before::Unknown),
        }
    }
}

/// What a record makes of a resource; `None`: it does not mention it.
#[expect(clippy::option_option, reason = "a record sets it, removes it, or does not mention it")]
pub(crate) fn value_after(record: &Record, key: &ResourceKey) -> Option<Option<Resource>> {
    let last = record.transaction.deltas.iter().rev().find(|delta| delta.key() == *key)?;
    Some(match last {
        Delta::Upsert(resource) => Some(resource.clone()),
        Delta::Remove(_) => None,
    })
}

fn step(before: Option<&Resource>, after: Option<&Resource>) -> Change {
    match (before, after) {
        (old, new) if old == new => Change::Unchanged,
        (old, new) => crate::diff::change(old.is_some(), new.is_some()),
    }
}
