//! The first 4096 bytes of a segment file, which no append ever shares a sector with.
//!
//! ```text
//! offset  bytes  field (integers little endian)
//!      0      8  magic "HFJRNL\r\n"
//!      8      4  format version, 1
//!     12      4  length of this header, 4096: where the first frame begins
//!     16     16  store id
//!     32      8  LSN of the segment's first record, also its file name
//!     40     32  hash of the record before it, zeros before record 1
//!     72      8  first LSN of the segment before, 0 if there was none
//!     80      8  length in use of the segment before, 0 if there was none
//!     88      8  wall clock at creation, nanoseconds since 1970-01-01 UTC
//!     96      4  CRC32C over bytes 0..96
//!    100   3996  zeros
//! ```

use storage_schema::id::{Lsn, RecordHash, StoreId};

/// Length of the header.
pub const SEGMENT_HEADER_BYTES: usize = 4096;
/// The format that this build reads and writes.
pub const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"HFJRNL\r\n";
const CHECKED_BYTES: usize = 96;
const HEADER_BYTES_FIELD: u32 = 4096;
const _: () = assert!(HEADER_BYTES_FIELD as usize == SEGMENT_HEADER_BYTES);

/// What a segment says about itself and the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The journal it belongs to.
    pub store_id: StoreId,
    /// Its first record.
    pub first_lsn: Lsn,
    /// The hash of the record before.
    pub previous_hash: RecordHash,
    /// The first record of the segment before.
    pub previous_first: Lsn,
    /// How many bytes of the segment before are in use.
    pub previous_end: u64,
    /// When it was created.
    pub created_wall_ns: u64,
}

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadHeader {
    /// Not a segment, or damaged.
    Damaged,
    /// Of a later format.
    Newer {
        /// Its format version.
        found: u32,
    },
}

impl SegmentHeader {
    /// The header as it is written.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&FORMAT_VERSION.to_le_bytes());
        put(&HEADER_BYTES_FIELD.to_le_bytes());
        put(&self.store_id.0);
        put(&self.first_lsn.0.to_le_bytes());
        put(&self.previous_hash.0);
        put(&self.previous_first.0.to_le_bytes());
        put(&self.previous_end.to_le_bytes());
        put(&self.created_wall_ns.to_le_bytes());
        assert_eq!(at, CHECKED_BYTES, "the fields fill the checked part");
        let crc = crc32c::crc32c(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..CHECKED_BYTES + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header. The format version is believed only if the magic fits, everything else only if the CRC does.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHeader> {
        let bytes: &[u8; SEGMENT_HEADER_BYTES] = bytes.first_chunk().ok_or(BadHeader::Damaged)?;
        let mut rest = &bytes[..];
        if take::<8>(&mut rest) != MAGIC {
            return Err(BadHeader::Damaged);
        }
        let format = u32::from_le_bytes(take(&mut rest));
        if format > FORMAT_VERSION {
            return Err(BadHeader::Newer { found: format });
        }
        let header_bytes = u32::from_le_bytes(take(&mut rest));
        let header = Self {
            store_id: StoreId(take(&mut rest)),
            first_lsn: Lsn(u64::from_le_bytes(take(&mut rest))),
            previous_hash: RecordHash(take(&mut rest)),
            previous_first: Lsn(u64::from_le_bytes(take(&mut rest))),
            previous_end: u64::from_le_bytes(take(&mut rest)),
            created_wall_ns: u64::from_le_bytes(take(&mut rest)),
        };
        let crc = u32::from_le_bytes(take(&mut rest));
        let whole = format == FORMAT_VERSION
            && header_bytes == HEADER_BYTES_FIELD
            && crc == crc32c::crc32c(&bytes[..CHECKED_BYTES])
            && rest.iter().all(|byte| *byte == 0)
            && header.first_lsn.is_of_record();
        if whole { Ok(header) } else { Err(BadHeader::Damaged) }
    }
}

/// Takes the next field. The callers' fields add up to less than the fixed header, so there is always one.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, tail) = rest.split_first_chunk::<N>().expect("fields fit into the fixed header");
    *rest = tail;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            store_id: StoreId([9; 16]),
            first_lsn: Lsn(77),
            previous_hash: RecordHash([3; 32]),
            previous_first: Lsn(1),
            previous_end: 123_456,
            created_wall_ns: 1_700_000_000_000_000_000,
        }
    }

    #[test]
    fn every_single_byte_is_covered() {
        let bytes = sample().encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(sample()));
        for at in 0..bytes.len() {
            let mut damaged = bytes;
            damaged[at] ^= 0x10;
            assert!(SegmentHeader::decode(&damaged).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut bytes = sample().encode();
        bytes[8] = 2;
        assert_eq!(SegmentHeader::decode(&bytes), Err(BadHeader::Newer { found: 2 }));
    }

    #[test]
    fn too_few_bytes_are_damage() {
        assert_eq!(SegmentHeader::decode(&sample().encode()[..4095]), Err(BadHeader::Damaged));
    }
}
