//! The bytes of the store's keys and values, as the table in [`super`] says.

use storage_schema::id::{Lsn, RecordHash};

use crate::append::Receipt;
use crate::durable::Head;
use crate::sources::SourceState;

/// Longest piece of an encoded resource in one value.
pub(super) const PIECE_BYTES: usize = 4096;
pub(super) const RECEIPT_BYTES: usize = 56;
/// Ends a name inside a key: no byte of UTF-8.
const NAME_END: u8 = 0xff;

pub(super) fn overflow_key(key: &[u8], number: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(key.len() + 3);
    bytes.extend_from_slice(key);
    bytes.push(NAME_END);
    bytes.extend_from_slice(&number.to_be_bytes());
    bytes
}

pub(super) fn receipts_key(source: &str, version: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(source.len() + 9);
    bytes.extend_from_slice(source.as_bytes());
    bytes.push(NAME_END);
    bytes.extend_from_slice(&version.to_be_bytes());
    bytes
}

pub(super) fn split_receipts_key(key: &[u8]) -> Option<(&str, u64)> {
    let (rest, version) = key.split_last_chunk::<8>()?;
    let (end, source) = rest.split_last()?;
    (*end == NAME_END).then_some((std::str::from_utf8(source).ok()?, u64::from_be_bytes(*version)))
}

/// How many pieces follow the first one.
pub(super) fn pieces_behind(total: usize) -> u16 {
    let pieces = total.saturating_sub(PIECE_BYTES).div_ceil(PIECE_BYTES);
    u16::try_from(pieces).unwrap_or(u16::MAX)
}

pub(super) fn split_value(value: &[u8]) -> Option<(Lsn, usize, &[u8])> {
    let mut fields = Fields(value);
    let lsn = Lsn(fields.u64()?);
    let total = u32::from_le_bytes(fields.take()?) as usize;
    Some((lsn, total, fields.0))
}

pub(super) fn write_value(lsn: Lsn, total: usize, first: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(12 + first.len());
    value.extend_from_slice(&lsn.0.to_le_bytes());
    value.extend_from_slice(&u32::try_from(total).expect("a record is below 4 GiB").to_le_bytes());
    value.extend_from_slice(first);
    value
}

/// What is known of a source beyond its pushes, as bits.
const HAS_TTL: u8 = 1;
const HAS_EXPIRED: u8 = 2;
const EXPIRED: u8 = 4;

pub(super) fn encode_source(state: &SourceState, kept: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(38);
    bytes.extend_from_slice(&state.incarnation.to_le_bytes());
    bytes.push(u8::from(state.last_version.is_some()));
    bytes.extend_from_slice(&state.last_version.unwrap_or_default().to_le_bytes());
    bytes.extend_from_slice(&state.last_lsn.0.to_le_bytes());
    bytes.extend_from_slice(&kept.to_le_bytes());
    let has_ttl = if state.ttl_seconds.is_some() { HAS_TTL } else { 0 };
    let expired = match state.expired {
        None => 0,
        Some(false) => HAS_EXPIRED,
        Some(true) => HAS_EXPIRED | EXPIRED,
    };
    if has_ttl | expired != 0 {
        bytes.push(has_ttl | expired);
        bytes.extend_from_slice(&state.ttl_seconds.unwrap_or_default().to_le_bytes());
    }
    bytes
}

pub(super) fn decode_source(bytes: &[u8]) -> Option<(SourceState, u64)> {
    let mut fields = Fields(bytes);
    let incarnation = fields.u64()?;
    let [versioned] = fields.take()?;
    let version = fields.u64()?;
    let last_lsn = Lsn(fields.u64()?);
    let kept = fields.u64()?;
    let last_version = (versioned == 1).then_some(version);
    let (known, ttl_seconds) = match fields.0 {
        [] => (0, 0),
        _ => {
            let [known] = fields.take()?;
            (known, u32::from_le_bytes(fields.take()?))
        }
    };
    let ttl_seconds = (known & HAS_TTL != 0).then_some(ttl_seconds);
    let expired = (known & HAS_EXPIRED != 0).then_some(known & EXPIRED != 0);
    let state = SourceState { incarnation, last_version, last_lsn, ttl_seconds, expired };
    fields.0.is_empty().then_some((state, kept))
}

pub(super) fn encode_receipts(page: &[(u64, Receipt)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(page.len() * RECEIPT_BYTES);
    for (version, receipt) in page {
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&receipt.lsn.0.to_le_bytes());
        bytes.extend_from_slice(&receipt.hash.0);
        bytes.extend_from_slice(&receipt.durable_wall_ns.to_le_bytes());
    }
    bytes
}

pub(super) fn decode_receipts(bytes: &[u8]) -> Option<Vec<(u64, Receipt)>> {
    let (receipts, rest) = bytes.as_chunks::<RECEIPT_BYTES>();
    let decode = |bytes: &[u8; RECEIPT_BYTES]| {
        let mut fields = Fields(bytes);
        let version = fields.u64()?;
        let lsn = Lsn(fields.u64()?);
        let hash = RecordHash(fields.take()?);
        Some((version, Receipt { lsn, hash, durable_wall_ns: fields.u64()? }))
    };
    rest.is_empty().then(|| receipts.iter().map(decode).collect()).flatten()
}

/// Takes fixed fields off the front of bytes that may be too short.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl Fields<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(super) fn head(&mut self) -> Option<Head> {
        Some(Head { lsn: Lsn(self.u64()?), hash: RecordHash(self.take()?) })
    }
}
