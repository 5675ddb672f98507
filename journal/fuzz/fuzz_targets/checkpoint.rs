//! Checkpoints: verified, under a state, and under a store that is rebuilt from one.
#![no_main]

use std::io::Write;

use journal::Journal;
use journal_fuzz::{Contents, STORE, config, sample, tempdir};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use storage_schema::id::Lsn;

const HEADER_BYTES: usize = 124;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// The file's bytes.
    File(Contents<'a>),
    /// The body's bytes, uncompressed, behind a header that fits them.
    Body { body: Contents<'a>, rebuild: u8 },
}

fuzz_target!(|input: Input| {
    let sample = sample();
    let valid = &sample.checkpoint;
    let (file, rebuild) = match input {
        Input::File(contents) => (contents.of(valid), false),
        Input::Body { body, rebuild } => {
            let entries = zstd::stream::decode_all(&valid[HEADER_BYTES..]).expect("a valid body");
            // Now and then: it takes a store to be opened.
            (around(&body.of(&entries), valid), rebuild.is_multiple_of(64))
        }
    };
    let path = sample.state.join("checkpoints/00000000000000000009.ckpt");
    std::fs::write(&path, &file).expect("a file");
    let verified = journal::verify_checkpoint(&path, STORE).is_ok();
    if let Ok(state) = sample.journal.reader().state_at(Lsn(9)) {
        for resource in state.iter() {
            let _ = storage_schema::codec::decode_resource(resource.encoded);
        }
    }
    if rebuild && verified {
        let dir = tempdir();
        let mut log = journal_fuzz::Log::new(Lsn(1));
        (0..9).for_each(|_| log.record(0));
        log.write(dir.path());
        std::fs::create_dir(dir.path().join("checkpoints")).expect("a directory");
        std::fs::write(dir.path().join("checkpoints/00000000000000000009.ckpt"), &file).expect("a file");
        if let Ok(journal) = Journal::open(config(dir.path())) {
            let _ = journal.for_each_encoded(|resource| drop(resource.encoded.to_vec()));
            let _ = journal.sources();
            let origin = storage_schema::record::Origin { source: "cp".to_owned(), incarnation: 1, version: Some(2) };
            let _ = journal.origin(&origin);
            let submit = journal.blocking_reserve().expect("a place");
            let _ = submit.submit(storage_schema::record::Transaction::push(origin, vec![]));
        }
    }
});

fn around(body: &[u8], valid: &[u8]) -> Vec<u8> {
    let mut file = valid[..HEADER_BYTES].to_vec();
    file[80..88].copy_from_slice(&(body.len() as u64).to_le_bytes());
    file[88..120].copy_from_slice(blake3::hash(body).as_bytes());
    let crc = crc32c::crc32c(&file[..120]);
    file[120..124].copy_from_slice(&crc.to_le_bytes());
    let mut encoder = zstd::stream::write::Encoder::new(file, 1).expect("an encoder");
    encoder.write_all(body).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}
