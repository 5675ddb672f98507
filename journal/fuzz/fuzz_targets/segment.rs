//! Frames and segment headers.
#![no_main]

use journal::segment::frame::{frame_bytes, parse_frame, push_frame};
use journal::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use journal_fuzz::STORE;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = SegmentHeader::decode(bytes);
    // With zeros behind it and its checksum right.
    let mut whole = [0; SEGMENT_HEADER_BYTES];
    let fields = bytes.len().min(96);
    whole[..fields].copy_from_slice(&bytes[..fields]);
    let crc = crc32c::crc32c(&whole[..96]);
    whole[96..100].copy_from_slice(&crc.to_le_bytes());
    if let Ok(header) = SegmentHeader::decode(&whole) {
        assert_eq!(header.encode(), whole);
    }

    let _ = parse_frame(bytes, STORE);
    let Some((header, body)) = bytes.split_first_chunk::<24>() else { return };
    let mut frame = header.to_vec();
    frame[..4].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c(&STORE.0);
    let crc = crc32c::crc32c_append(crc, &frame[..4]);
    let crc = crc32c::crc32c_append(crc, &frame[8..]);
    frame[4..8].copy_from_slice(&crc32c::crc32c_append(crc, body).to_le_bytes());
    frame.extend_from_slice(body);
    frame.resize(frame_bytes(body.len()), 0);
    if let Ok((header, parsed, total)) = parse_frame(&frame, STORE) {
        assert_eq!((parsed, total), (body, frame.len()));
        let mut again = Vec::new();
        push_frame(&mut again, STORE, header.lsn, header.group_first, body);
        assert_eq!(again, frame);
    }
});
