//! JSON Lines: read, and made into a journal.
#![no_main]

use journal_fuzz::{Contents, config, sample, tempdir};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    contents: Contents<'a>,
    /// Whether lines get the hashes that fit them.
    sealed: bool,
}

fuzz_target!(|input: Input| {
    let mut lines = input.contents.of(&sample().export);
    if input.sealed {
        lines = sealed(&lines);
    }
    let read = journal::read_jsonl(&lines[..]).take_while(Result::is_ok).count();
    if read > 0 {
        let dir = tempdir();
        let state = dir.path().join("state");
        if let Ok(imported) = journal::import_jsonl(&config(&state), &lines[..]) {
            assert_eq!(imported, read as u64);
            let report = journal::verify(&state, |_| {}).expect("what was imported can be verified");
            assert_eq!((report.wrong, report.records), (vec![], imported));
        }
    }
});

/// Lines with the hashes that the reader says they have.
fn sealed(lines: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::new();
    for line in lines.split_inclusive(|byte| *byte == b'\n').take(16) {
        let mut line = line.to_vec();
        let refused = journal::read_jsonl(&line[..]).next().and_then(Result::err).map(|error| error.to_string());
        if let Some((_, hashes)) = refused.as_deref().and_then(|reason| reason.split_once("its hash is "))
            && let Some((is, claimed)) = hashes.split_once(", not ")
            && !claimed.is_empty()
            && let Some(at) = line.windows(claimed.len()).position(|window| window == claimed.as_bytes())
        {
            line.splice(at..at + claimed.len(), is.bytes());
        }
        sealed.extend_from_slice(&line);
    }
    sealed
}
