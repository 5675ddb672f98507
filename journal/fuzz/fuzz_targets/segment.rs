//! Frames and segment headers.
#![no_main]

use journal::segment::frame::parse_frame;
use journal::segment::header::SegmentHeader;
use libfuzzer_sys::fuzz_target;
use storage_schema::id::StoreId;

fuzz_target!(|bytes: &[u8]| {
    let _ = SegmentHeader::decode(bytes);
    if let Ok((_, body, total)) = parse_frame(bytes, StoreId([0; 16])) {
        assert!(body.len() < total && total <= bytes.len());
    }
});
