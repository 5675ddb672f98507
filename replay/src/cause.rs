//! Who said so, and when: the record behind a fact.

use std::collections::HashMap;

use journal::{ReadError, Reader};
use serde::{Deserialize, Serialize};
use storage_schema::id::Lsn;
use storage_schema::record::Record;

use crate::ReplayError;

/// The record that made something so. All but its number is missing if the record itself is no longer kept: its effect is
/// known from a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cause {
    /// The record.
    pub lsn: Lsn,
    /// When it was appended, nanoseconds since 1970-01-01 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ns: Option<u64>,
    /// When it had arrived, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_wall_ns: Option<u64>,
    /// Who pushed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Which life of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// The source's own version of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why it was written: `push`, `sync`, `expiry`, `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who pushed it, as the transport knew it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
}

impl Cause {
    pub(crate) fn of(record: &Record) -> Self {
        let origin = &record.transaction.origin;
        Self {
            lsn: record.lsn,
            wall_ns: Some(record.wall_ns),
            received_wall_ns: record.received_wall_ns,
            source: Some(origin.source.clone()),
            incarnation: Some(origin.incarnation),
            version: origin.version,
            reason: Some(record.transaction.cause.as_str().to_owned()),
            client: record.client.clone(),
        }
    }
}

/// Looks causes up, each once.
#[derive(Debug)]
pub(crate) struct Causes<'r> {
    reader: &'r Reader,
    known: HashMap<Lsn, Cause>,
}

impl<'r> Causes<'r> {
    pub(crate) fn new(reader: &'r Reader) -> Self {
        Self { reader, known: HashMap::new() }
    }

    /// What is known about a record. One that is gone, or damaged, is not in the way of what it has led to.
    pub(crate) fn get(&mut self, lsn: Lsn) -> Result<Cause, ReplayError> {
        if let Some(cause) = self.known.get(&lsn) {
            return Ok(cause.clone());
        }
        let cause = match decoded(self.reader, lsn) {
            Ok(record) => Cause::of(&record),
            Err(
                ReadError::Compacted { .. }
                | ReadError::NotThere { .. }
                | ReadError::Damaged { .. }
                | ReadError::Undecodable { .. },
            ) => Cause { lsn, ..Cause::default() },
            Err(error) => return Err(error.into()),
        };
        self.known.insert(lsn, cause.clone());
        Ok(cause)
    }
}

/// A record of the journal.
pub(crate) fn decoded(reader: &Reader, lsn: Lsn) -> Result<Record, ReadError> {
    reader.record(lsn)?.decode().map_err(|source| ReadError::Undecodable { lsn, source })
}
