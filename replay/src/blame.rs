//! Which record made a field what it is.

use std::collections::{BTreeMap, HashMap};

use journal::Reader;
use serde_json::Value;
use storage_schema::id::Lsn;
use storage_schema::resource::{Resource, ResourceKey};

use crate::cause::{Cause, Causes, decoded};
use crate::history::value_after;
use crate::{ReplayError, field};

/// Resources whose histories are looked at; of more than these only the last change is known.
pub(crate) const TRACED_MAX: usize = 256;
/// How many changes of one resource are looked at, the last ones first.
const CHANGES_MAX: usize = 4096;

/// Looks for records behind fields, up to a moment.
#[derive(Debug)]
pub(crate) struct Blame<'r> {
    reader: &'r Reader,
    causes: Causes<'r>,
    /// The records that changed each traced resource, ascending.
    histories: HashMap<ResourceKey, Vec<Lsn>>,
}

impl<'r> Blame<'r> {
    /// Looks the histories of these resources up, up to the record `lsn`, all in one pass.
    pub(crate) fn of(reader: &'r Reader, mut keys: Vec<ResourceKey>, lsn: Lsn) -> Result<Self, ReplayError> {
        keys.truncate(TRACED_MAX);
        let found = reader.histories(&keys, reader.oldest_lsn(), lsn)?;
        Ok(Self { reader, causes: Causes::new(reader), histories: keys.into_iter().zip(found).collect() })
    }

    /// The record that made these fields of a resource what they are: paths, or the beginnings of paths. `changed_lsn` is the
    /// record that changed the resource last, which is the answer where nothing better is known.
    pub(crate) fn of_fields(
        &mut self,
        key: &ResourceKey,
        fields: &[&str],
        changed_lsn: Lsn,
    ) -> Result<Cause, ReplayError> {
        let lsn = self.find(key, fields)?.unwrap_or(changed_lsn);
        self.causes.get(lsn)
    }

    fn find(&self, key: &ResourceKey, fields: &[&str]) -> Result<Option<Lsn>, ReplayError> {
        let Some(history) = self.histories.get(key) else { return Ok(None) };
        let mut newer: Option<(Lsn, Option<BTreeMap<String, Value>>)> = None;
        for lsn in history.iter().rev().take(CHANGES_MAX) {
            let Some(value) = value_after(&decoded(self.reader, *lsn)?, key) else { continue };
            let value = project(value.as_ref(), fields);
            match &newer {
                Some((since, known)) if *known != value => return Ok(Some(*since)),
                _ => newer = Some((*lsn, value)),
            }
        }
        // It has been so since the first change that is kept; whether before as well is only known of a whole journal.
        let whole = self.reader.oldest_lsn() == Lsn::FIRST && history.len() <= CHANGES_MAX;
        Ok(newer.filter(|_| whole).map(|(since, _)| since))
    }
}

fn project(resource: Option<&Resource>, wanted: &[&str]) -> Option<BTreeMap<String, Value>> {
    let begins = |path: &str, start: &&str| {
        path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let mut fields = field::fields(Some(resource?));
    fields.retain(|path, _| wanted.iter().any(|start| begins(path, start)));
    Some(fields)
}
