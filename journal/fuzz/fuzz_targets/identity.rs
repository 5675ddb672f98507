//! The files store-id and LOCK beside a valid log.
#![no_main]

use std::os::unix::fs::OpenOptionsExt;

use journal_fuzz::{Log, tempdir};
use libfuzzer_sys::fuzz_target;
use storage_schema::id::Lsn;

fuzz_target!(|input: (&[u8], &[u8], bool)| {
    let (identity, lock, held) = input;
    let dir = tempdir();
    let mut log = Log::new(Lsn(1));
    log.record(0);
    log.write(dir.path());
    std::fs::write(dir.path().join("store-id"), identity).expect("a file");
    let mut options = std::fs::OpenOptions::new();
    let lock_path = dir.path().join("LOCK");
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&lock_path).expect("a file");
    std::fs::write(&lock_path, lock).expect("a file");
    if held {
        file.lock().expect("nobody else has it");
    }
    let verified = journal::verify(dir.path(), |_| {});
    assert!(!held || verified.is_err(), "a lock is a lock, whatever its file says");
    if !held {
        // The number of the process that looked.
        let pid = std::fs::read_to_string(&lock_path).expect("a text");
        assert_eq!(pid.trim(), std::process::id().to_string());
    }
});
