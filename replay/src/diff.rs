//! What differs between two moments: resources, and the table entries behind them.

use std::cmp::Ordering;
use std::collections::HashMap;

use journal::{ReadError, State, StoredResource};
use serde::{Deserialize, Serialize};
use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, Resource, ResourceKey};

use crate::blame::TRACED_MAX;
use crate::cause::{Cause, Causes, decoded};
use crate::entries::TableEntries;
use crate::field::{self, FieldChange};
use crate::history::value_after;
use crate::{Change, Moment, Past, ReplayError, Which, decode};

/// What differs between two moments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diff {
    /// The record of the one moment.
    pub from_lsn: Lsn,
    /// The record of the other one.
    pub to_lsn: Lsn,
    /// Resources that differ, in the order of kind and name.
    pub resources: Vec<ResourceDiff>,
    /// Table entries that differ, if they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<EntryDiff>>,
}

/// A resource that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceDiff {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// How.
    pub change: Change,
    /// The record that made it what it is at the later moment. Not given if none did, as one goes back in time and it was not there
    /// yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The fields that differ.
    pub fields: Vec<FieldChange>,
}

/// A table entry that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryDiff {
    /// The table.
    pub table: String,
    /// The entry's key.
    pub entry: String,
    /// How.
    pub change: Change,
    /// The fields that differ.
    pub fields: Vec<FieldChange>,
}

impl Past {
    /// What differs between two moments, in any order; with `maps`, in the tables as well.
    pub fn diff(&self, from: Moment, to: Moment, which: &Which, maps: bool) -> Result<Diff, ReplayError> {
        let (from_lsn, to_lsn) = (self.lsn_of(from)?, self.lsn_of(to)?);
        let (before, after) = (self.state(from_lsn)?, self.state(to_lsn)?);
        let mut resources = Vec::new();
        let mut changed_lsns = Vec::new();
        for (old, new) in pairs(&before, &after) {
            let stored = new.or(old).expect("one of two is there");
            let changed = old.map(|stored| stored.encoded) != new.map(|stored| stored.encoded);
            if !changed || !which.includes(stored.kind, stored.name) {
                continue;
            }
            resources.push(compare(old, new)?);
            changed_lsns.push(new.map(|stored| stored.changed_lsn));
        }
        self.find_causes(&mut resources, &changed_lsns, from_lsn, to_lsn)?;
        let entries = if maps {
            let (before, after) = (TableEntries::of(&before)?, TableEntries::of(&after)?);
            Some(before.compare(&after, which))
        } else {
            None
        };
        Ok(Diff { from_lsn, to_lsn, resources, entries })
    }

    /// Who made each resource what it is at the later moment. Of many resources, who pushed it last, which may have changed
    /// nothing any more. A removal leaves no trace in the later state, and is looked for in the journal.
    fn find_causes(
        &self,
        resources: &mut [ResourceDiff],
        changed_lsns: &[Option<Lsn>],
        from_lsn: Lsn,
        to_lsn: Lsn,
    ) -> Result<(), ReplayError> {
        let mut causes = Causes::new(&self.reader);
        let key = |resource: &ResourceDiff| ResourceKey::new(resource.kind, resource.name.clone());
        let few = resources.len() <= TRACED_MAX;
        let looked_for = |resource: &&ResourceDiff| from_lsn < to_lsn && (few || resource.change == Change::Removed);
        let keys: Vec<ResourceKey> = resources.iter().filter(looked_for).map(key).collect();
        let mut found: HashMap<ResourceKey, Lsn> = HashMap::new();
        match self.reader.histories(&keys, from_lsn.next(), to_lsn) {
            Ok(histories) => {
                for (key, lsns) in keys.into_iter().zip(histories) {
                    let lsn = if few { self.since(&key, &lsns)? } else { lsns.last().copied() };
                    found.extend(lsn.map(|lsn| (key, lsn)));
                }
            }
            // Between two states that checkpoints hold, records may be gone.
            Err(ReadError::Damaged { .. } | ReadError::Undecodable { .. } | ReadError::Compacted { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        for (resource, changed_lsn) in resources.iter_mut().zip(changed_lsns) {
            let lsn = found.get(&key(resource)).copied().or(*changed_lsn);
            resource.cause = lsn.map(|lsn| causes.get(lsn)).transpose()?;
        }
        Ok(())
    }

    /// The first of the last records of a resource's that all say the same of it.
    fn since(&self, key: &ResourceKey, lsns: &[Lsn]) -> Result<Option<Lsn>, ReplayError> {
        let mut since: Option<(Lsn, Option<Resource>)> = None;
        for lsn in lsns.iter().rev() {
            let Some(value) = value_after(&decoded(&self.reader, *lsn)?, key) else { continue };
            match &since {
                Some((_, last)) if *last != value => break,
                _ => since = Some((*lsn, value)),
            }
        }
        Ok(since.map(|(lsn, _)| lsn))
    }
}

fn compare(old: Option<StoredResource<'_>>, new: Option<StoredResource<'_>>) -> Result<ResourceDiff, ReplayError> {
    let stored = new.or(old).expect("one of two is there");
    let (kind, name) = (stored.kind, stored.name.to_owned());
    let decoded = |stored: Option<StoredResource<'_>>| -> Result<Option<Resource>, ReplayError> {
        stored.map(|stored| decode(ResourceKey::new(kind, name.clone()), stored.encoded)).transpose()
    };
    let (old, new) = (decoded(old)?, decoded(new)?);
    let change = change(old.is_some(), new.is_some());
    let fields = field::between(old.as_ref(), new.as_ref());
    Ok(ResourceDiff { kind, name, change, cause: None, fields })
}

/// How something that differs does, by whether it was and is there.
pub(crate) const fn change(was: bool, is: bool) -> Change {
    match (was, is) {
        (false, _) => Change::Added,
        (true, false) => Change::Removed,
        (true, true) => Change::Changed,
    }
}

type Pair<'s> = (Option<StoredResource<'s>>, Option<StoredResource<'s>>);

/// Each resource of two states beside its counterpart, in order.
fn pairs<'s>(before: &'s State, after: &'s State) -> impl Iterator<Item = Pair<'s>> {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => (old.kind, old.name).cmp(&(new.kind, new.name)),
        };
        let old = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { after.next() } else { None };
        Some((old, new))
    })
}
