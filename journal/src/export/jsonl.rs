//! Records as JSON Lines, out and in: one record a line, made for tools and for eyes, and complete.
//!
//! ```json
//! {"schema":3,"lsn":7,"hash":"…","previousHash":"…","wallNs":1700000000000000000,"monotonicNs":12,"bootId":"…",
//!  "receivedWallNs":1699999999999990000,"client":"uid=0 gid=0 pid=4711","source":"istiod","incarnation":1,"version":42,
//!  "deltas":[{"upsert":{"kind":"Service","name":"shop/cart"}},{"remove":{"kind":"Workload","name":"c//Pod/x"}}]}
//! ```
//!
//! `cause` is there if it is not `push`, `takeOver` if it is true, and `event` where a record tells of one:
//!
//! ```json
//! "cause":"agent","deltas":[],"event":{"drained":{"service":"shop/cart","workload":"c//Pod/x","mode":"terminate",…}}
//! ```
//!
//! Hashes and ids are lower-case hexadecimal. Resources are written as manifests are (`holdfast apply`). A line that is read
//! back gives the same record: its hash is computed again and compared, so an export is also a proof. The hash is of the bytes
//! that were written, so a line says in which schema version that was (`schema`; 1 where it is absent).

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};
use storage_schema::codec::{encode_record_in, version_of};
use storage_schema::id::{BootId, Lsn, RecordHash};
use storage_schema::record::{Cause, Delta, Event, Origin, Record, Transaction};
use storage_schema::resource::{Resource, ResourceKey};

use super::ExportError;
use crate::durable::Head;
use crate::error::ReadError;
use crate::read::{EncodedRecord, Records};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Line {
    #[serde(default = "first_schema", skip_serializing_if = "is_first_schema")]
    schema: u32,
    lsn: u64,
    hash: String,
    previous_hash: String,
    wall_ns: u64,
    monotonic_ns: u64,
    boot_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    received_wall_ns: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    source: String,
    incarnation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
    #[serde(default, skip_serializing_if = "is_push")]
    cause: Cause,
    #[serde(default, skip_serializing_if = "is_false")]
    take_over: bool,
    deltas: Vec<LineDelta>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event: Option<Event>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_push(cause: &Cause) -> bool {
    matches!(cause, Cause::Push)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

/// Lines of version 1 were written before there was another one: they do not say so.
const fn first_schema() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
const fn is_first_schema(schema: &u32) -> bool {
    *schema == first_schema()
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
    let undecodable = |source| ReadError::Undecodable { lsn: encoded.lsn, source };
    let record = encoded.decode().map_err(undecodable)?;
    let Record { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns, client } = record;
    let Transaction { origin, deltas, cause, take_over, event } = transaction;
    let delta = |delta| match delta {
        Delta::Upsert(resource) => LineDelta::Upsert(Box::new(resource)),
        Delta::Remove(key) => LineDelta::Remove(key),
    };
    let line = Line {
        schema: version_of(&encoded.encoded).map_err(undecodable)?,
        lsn: lsn.0,
        hash: encoded.hash().to_string(),
        previous_hash: previous_hash.to_string(),
        wall_ns,
        monotonic_ns,
        boot_id: boot_id.to_string(),
        received_wall_ns,
        client,
        source: origin.source,
        incarnation: origin.incarnation,
        version: origin.version,
        cause,
        take_over,
        deltas: deltas.into_iter().map(delta).collect(),
        event,
    };
    serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    Ok(())
}

/// Reads an export: the records as they were written, in order, each compared with its hash and chained to the one before.
pub fn read_jsonl(from: impl BufRead) -> impl Iterator<Item = Result<EncodedRecord, ExportError>> {
    let mut previous = None;
    from.lines().zip(1..).map(move |(text, line)| {
        let refuse = |reason: String| ExportError::Line { line, reason };
        let parsed: Line = serde_json::from_str(&text?).map_err(|error| refuse(error.to_string()))?;
        let (schema, claimed) = (parsed.schema, parsed.hash.clone());
        let record =
            parsed.into_record().map_err(|field| refuse(format!("{field} is not hexadecimal of its length")))?;
        let (lsn, previous_hash) = (record.lsn, record.previous_hash);
        if !lsn.is_of_record() {
            return Err(refuse(format!("no record has the number {lsn}")));
        }
        let encoded = encode_record_in(schema, record).map_err(|error| refuse(error.to_string()))?;
        let encoded = EncodedRecord::new(lsn, encoded.into()).map_err(|error| refuse(error.to_string()))?;
        let hash = encoded.hash();
        if hash.to_string() != claimed {
            return Err(refuse(format!("record {lsn} was altered: its hash is {hash}, not {claimed}")));
        }
        if let Some(Head { lsn: before, hash }) = previous
            && (lsn != before.next() || previous_hash != hash)
        {
            return Err(refuse(format!("record {lsn} does not continue record {before}")));
        }
        if lsn == Lsn::FIRST && previous_hash != RecordHash::default() {
            return Err(refuse(format!("record {lsn} is the first one, but names the hash of one before it")));
        }
        previous = Some(Head { lsn, hash });
        Ok(encoded)
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
        let Self { cause, take_over, event, .. } = self;
        Ok(Record {
            lsn: Lsn(self.lsn),
            transaction: Transaction { origin, deltas: deltas.collect(), cause, take_over, event },
            wall_ns: self.wall_ns,
            monotonic_ns: self.monotonic_ns,
            boot_id: BootId(hexadecimal(&self.boot_id).ok_or("bootId")?),
            previous_hash: RecordHash(hexadecimal(&self.previous_hash).ok_or("previousHash")?),
            received_wall_ns: self.received_wall_ns,
            client: self.client,
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
