//! Records chosen by who pushed them and what they changed.

use std::collections::VecDeque;
use std::vec;

use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, ResourceKey};

use crate::durable::Durable;
use crate::error::ReadError;
use crate::fold::key_of;
use crate::read::{EncodedRecord, Records};
use crate::reader::Reader;

/// Which records. The default chooses all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only what this source pushed.
    pub source: Option<String>,
    /// Only what changed a resource of this kind.
    pub kind: Option<Kind>,
    /// Only what changed a resource of this name.
    pub name: Option<String>,
}

impl Filter {
    /// Whether it chooses a record.
    pub fn admits(&self, record: &EncodedRecord) -> Result<bool, ReadError> {
        if *self == Self::default() {
            return Ok(true);
        }
        let archived = record.access().map_err(|source| ReadError::Undecodable { lsn: record.lsn, source })?;
        let transaction = &archived.transaction;
        if self.source.as_deref().is_some_and(|source| transaction.origin.source != *source) {
            return Ok(false);
        }
        if self.kind.is_none() && self.name.is_none() {
            return Ok(true);
        }
        Ok(transaction.deltas.iter().map(key_of).any(|(kind, name)| {
            self.kind.is_none_or(|wanted| wanted == kind) && self.name.as_deref().is_none_or(|wanted| wanted == name)
        }))
    }
}

/// The chosen records of a range, in order.
#[derive(Debug)]
pub struct Selection {
    reader: Reader,
    filter: Filter,
    candidates: Candidates,
}

#[derive(Debug)]
enum Candidates {
    /// All up to a record.
    Upto(Records, Lsn),
    /// These.
    Listed(vec::IntoIter<Lsn>),
}

impl Selection {
    pub(crate) fn new(reader: &Reader, first: Lsn, last: Lsn, filter: Filter) -> Result<Self, ReadError> {
        // The indexes know names; a kind alone, or a source, is looked for in every record.
        let records = reader.library.read_from(first)?;
        let candidates = match &filter.name {
            None => Candidates::Upto(records, last),
            Some(name) => {
                let mut listed = Vec::new();
                for kind in Kind::ALL.into_iter().filter(|kind| filter.kind.is_none_or(|wanted| wanted == *kind)) {
                    listed.extend(reader.history(&ResourceKey::new(kind, &**name), first, last)?);
                }
                listed.sort_unstable();
                listed.dedup();
                Candidates::Listed(listed.into_iter())
            }
        };
        Ok(Self { reader: reader.clone(), filter, candidates })
    }

    /// Only the last `count` of them.
    pub fn last(mut self, count: usize) -> Result<Self, ReadError> {
        if let Candidates::Upto(records, last) = &self.candidates
            && self.filter == Filter::default()
        {
            let skipped = Lsn((last.0 + 1).saturating_sub(count as u64));
            let records = self.reader.library.read_from(records.next_lsn().max(skipped))?;
            self.candidates = Candidates::Upto(records, *last);
            return Ok(self);
        }
        let mut kept = VecDeque::with_capacity(count.min(1024));
        for record in &mut self {
            if kept.len() == count {
                kept.pop_front();
            }
            kept.push_back(record?.lsn);
        }
        kept.truncate(count);
        self.candidates = Candidates::Listed(Vec::from(kept).into_iter());
        Ok(self)
    }
}

impl Iterator for Selection {
    type Item = Result<EncodedRecord, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let record = match &mut self.candidates {
                Candidates::Upto(records, last) if records.next_lsn() > *last => return None,
                Candidates::Upto(records, _) => records.next_encoded()?.map(Durable::into_inner),
                Candidates::Listed(listed) => self.reader.record(listed.next()?),
            };
            let chosen = record.and_then(|record| Ok(self.filter.admits(&record)?.then_some(record)));
            if let Some(chosen) = chosen.transpose() {
                return Some(chosen);
            }
        }
    }
}
