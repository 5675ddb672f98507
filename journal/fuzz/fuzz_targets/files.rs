//! Whole files: checkpoints, snapshots, exports.
#![no_main]

use libfuzzer_sys::fuzz_target;
use storage_schema::id::StoreId;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("checkpoint");
    std::fs::write(&file, bytes).expect("a temporary file");
    let _ = journal::verify_checkpoint(&file, StoreId([0; 16]));
    let _ = journal::restore(&dir.path().join("state"), &mut &bytes[..]);
    for record in journal::read_jsonl(bytes) {
        if record.is_err() {
            break;
        }
    }
});
