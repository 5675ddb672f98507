//! One record on disk: a frame.
//!
//! ```text
//! offset  bytes  field (integers little endian)
//!      0      4  body length, without padding; never 0
//!      4      4  CRC32C (Castagnoli, RFC 3720) over store id, bytes 0..4, bytes 8..24, body
//!      8      8  LSN
//!     16      8  group: LSN of the first record of the same write; everything before it was durable by then
//!     24      n  body: the encoded record
//!   24+n   0..7  zeros, up to a multiple of 8
//! ```
//!
//! The store id is not stored here, but the CRC covers it: a frame of another journal is no frame of this one. The group
//! is what lets recovery tell a torn group (its records were never acknowledged) from damage to acknowledged records.

use storage_schema::id::{Lsn, StoreId};

/// Bytes in front of a body.
pub const FRAME_HEADER_BYTES: usize = 24;
/// Frames begin at multiples of this.
pub const FRAME_ALIGN: usize = 8;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the body.
    pub body_bytes: u32,
    /// The checksum.
    pub crc: u32,
    /// The record's number.
    pub lsn: Lsn,
    /// The first record of the same write.
    pub group_first: Lsn,
}

/// Why there is no frame at some place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoFrame {
    /// The header is all zeros: nothing was written here.
    Zeros,
    /// The frame would need this many bytes, more than there are.
    Short {
        /// How many.
        needed: u64,
    },
    /// The checksum does not fit, or the padding is not zero.
    Bad,
}

/// How many bytes a frame takes on disk.
pub const fn frame_bytes(body_bytes: usize) -> usize {
    (FRAME_HEADER_BYTES + body_bytes).next_multiple_of(FRAME_ALIGN)
}

/// Appends a frame to `out`.
pub fn push_frame(out: &mut Vec<u8>, store_id: StoreId, lsn: Lsn, group_first: Lsn, body: &[u8]) {
    let body_bytes = u32::try_from(body.len()).expect("record_bytes_max is below 4 GiB");
    let mut header = [0; FRAME_HEADER_BYTES];
    header[..4].copy_from_slice(&body_bytes.to_le_bytes());
    header[8..16].copy_from_slice(&lsn.0.to_le_bytes());
    header[16..].copy_from_slice(&group_first.0.to_le_bytes());
    let crc = checksum(store_id, &header, body);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    let end = out.len() + frame_bytes(body.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
    out.resize(end, 0);
}

/// Reads the header at the start of `bytes`, believing nothing of it yet.
pub fn peek_header(bytes: &[u8]) -> Result<FrameHeader, NoFrame> {
    let header: &[u8; FRAME_HEADER_BYTES] =
        bytes.first_chunk().ok_or(NoFrame::Short { needed: FRAME_HEADER_BYTES as u64 })?;
    if header.iter().all(|byte| *byte == 0) {
        return Err(NoFrame::Zeros);
    }
    let u32_at = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let header =
        FrameHeader { body_bytes: u32_at(0), crc: u32_at(4), lsn: Lsn(u64_at(8)), group_first: Lsn(u64_at(16)) };
    // A frame that says so was never written, whatever its checksum: do not go looking for its end.
    let numbered = header.lsn.is_of_record() && header.group_first.is_of_record();
    if header.body_bytes == 0 || header.group_first > header.lsn || !numbered {
        return Err(NoFrame::Bad);
    }
    Ok(header)
}

/// Reads and checks the frame at the start of `bytes`: its header, its body, and how many bytes it takes.
pub fn parse_frame(bytes: &[u8], store_id: StoreId) -> Result<(FrameHeader, &[u8], usize), NoFrame> {
    let header = peek_header(bytes)?;
    let body_end = FRAME_HEADER_BYTES + header.body_bytes as usize;
    let total = body_end.next_multiple_of(FRAME_ALIGN);
    let frame = bytes.get(..total).ok_or(NoFrame::Short { needed: total as u64 })?;
    let (head, rest) = frame.split_first_chunk().expect("the header was there a moment ago");
    let (body, padding) = rest.split_at(header.body_bytes as usize);
    if checksum(store_id, head, body) != header.crc || padding.iter().any(|byte| *byte != 0) {
        return Err(NoFrame::Bad);
    }
    Ok((header, body, total))
}

fn checksum(store_id: StoreId, header: &[u8; FRAME_HEADER_BYTES], body: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&store_id.0);
    let crc = crc32c::crc32c_append(crc, &header[..4]);
    let crc = crc32c::crc32c_append(crc, &header[8..]);
    crc32c::crc32c_append(crc, body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STORE: StoreId = StoreId([7; 16]);

    #[test]
    fn a_frame_of_another_store_is_none() {
        let mut bytes = Vec::new();
        push_frame(&mut bytes, STORE, Lsn(5), Lsn(3), b"hello");
        assert!(parse_frame(&bytes, STORE).is_ok());
        assert_eq!(parse_frame(&bytes, StoreId([8; 16])), Err(NoFrame::Bad));
    }

    proptest! {
        #[test]
        fn every_single_bit_is_covered(body in proptest::collection::vec(any::<u8>(), 1..200), bit in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            push_frame(&mut bytes, STORE, Lsn(5), Lsn(3), &body);
            let (header, parsed, total) = parse_frame(&bytes, STORE).unwrap();
            prop_assert_eq!((header.lsn, header.group_first, parsed, total), (Lsn(5), Lsn(3), &body[..], bytes.len()));
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse_frame(&bytes, STORE).is_err());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = parse_frame(&bytes, STORE);
        }
    }
}
