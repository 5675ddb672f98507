//! Records as JSON Lines, out and in: one record a line, made for tools and for eyes, and complete.
//!
//! ```json
//! {"lsn":7,"hash":"…","previousHash":"…","wallNs":1700000000000000000,"monotonicNs":12,"bootId":"…",
//!  "source":"istiod","incarnation":1,"version":42,
//!  "deltas":[{"upsert":{"kind":"Service","name":"shop/cart"}},{"remove":{"kind":"Workload","name":"c//Pod/x"}}]}
//! ```
//!
//! Hashes and ids are lower-case hexadecimal. Resources are written as manifests are (`holdfast apply`). A line that is read
//! back gives the same record: its hash is computed again and compared, so an export is also a proof.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use storage_schema::codec::{encode_record, hash_record};
use storage_schema::id::{BootId, Lsn, RecordHash};
use storage_schema::record::{Delta, Origin, Record, Transaction};
use storage_schema::resource::{Resource, ResourceKey};

use super::ExportError;
use crate::error::ReadError;
use crate::read::{EncodedRecord, Records};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    lsn: u64,
    hash: String,
    previous_hash: String,
    wall_ns: u64,
    monotonic_ns: u64,
    boot_id: String,
    source: String,
    incarnation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    deltas: Vec<LineDelta>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum LineDelta {
    Upsert(Box<Resource>),
    Remove(ResourceKey),
}

/// Writes records up to `last` as JSON Lines; returns how many.
pub fn export_jsonl(records: &mut Records, last: Lsn, out: &mut dyn Write) -> Result<u64, ExportError> {
    let mut written = 0;
    while records.next_lsn() <= last {
        let Some(record) = records.next_encoded() else { break };
        write_line(&*record?, out)?;
        written += 1;
    }
    out.flush()?;
    Ok(written)
}

/// Writes one record as a line.
pub fn write_line(encoded: &EncodedRecord, out: &mut dyn Write) -> Result<(), ExportError> {
    let record = encoded.decode().map_err(|source| ReadError::Undecodable { lsn: encoded.lsn, source })?;
    let Record { lsn, transaction: Transaction { origin, deltas }, wall_ns, monotonic_ns, boot_id, previous_hash } =
        record;
    let delta = |delta| match delta {
        Delta::Upsert(resource) => LineDelta::Upsert(Box::new(resource)),
        Delta::Remove(key) => LineDelta::Remove(key),
    };
    let line = Line {
        lsn: lsn.0,
        hash: encoded.hash().to_string(),
        previous_hash: previous_hash.to_string(),
        wall_ns,
        monotonic_ns,
        boot_id: boot_id.to_string(),
        source: origin.source,
        incarnation: origin.incarnation,
        version: origin.version,
        deltas: deltas.into_iter().map(delta).collect(),
    };
    serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// Reads an export: the records in order, each compared with its hash and chained to the one before.
pub fn read_jsonl(from: impl BufRead) -> impl Iterator<Item = Result<Record, ExportError>> {
    let mut previous: Option<(Lsn, RecordHash)> = None;
    from.lines().zip(1..).map(move |(text, line)| {
        let refuse = |reason: String| ExportError::Line { line, reason };
        let parsed: Line = serde_json::from_str(&text?).map_err(|error| refuse(error.to_string()))?;
        let claimed = parsed.hash.clone();
        let record =
            parsed.into_record().map_err(|field| refuse(format!("{field} is not hexadecimal of its length")))?;
        if !record.lsn.is_of_record() {
            return Err(refuse(format!("no record has the number {}", record.lsn)));
        }
        if record.lsn == Lsn::FIRST && record.previous_hash != RecordHash::default() {
            return Err(refuse("record 1 follows none: its previousHash is zeros".to_owned()));
        }
        let hash = hash_record(&encode_record(&record));
        if hash.to_string() != claimed {
            return Err(refuse(format!("record {} was altered: its hash is {hash}, not {claimed}", record.lsn)));
        }
        if let Some((lsn, hash)) = previous
            && (record.lsn != lsn.next() || record.previous_hash != hash)
        {
            return Err(refuse(format!("record {} does not continue record {lsn}", record.lsn)));
        }
        previous = Some((record.lsn, hash));
        Ok(record)
    })
}

impl Line {
    /// The record, or the field that cannot be read.
    fn into_record(self) -> Result<Record, &'static str> {
        let deltas = self.deltas.into_iter().map(|delta| match delta {
            LineDelta::Upsert(resource) => Delta::Upsert(*resource),
            LineDelta::Remove(key) => Delta::Remove(key),
        });
        let origin = Origin { source: self.source, incarnation: self.incarnation, version: self.version };
        Ok(Record {
            lsn: Lsn(self.lsn),
            transaction: Transaction { origin, deltas: deltas.collect() },
            wall_ns: self.wall_ns,
            monotonic_ns: self.monotonic_ns,
            boot_id: BootId(hexadecimal(&self.boot_id).ok_or("bootId")?),
            previous_hash: RecordHash(hexadecimal(&self.previous_hash).ok_or("previousHash")?),
        })
    }
}

fn hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
