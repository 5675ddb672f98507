//! Snapshots: put back, and the journal that comes of them.
#![no_main]

use journal_fuzz::{Contents, sample, seal, tempdir};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// The file's bytes, as they are or with a hash that fits.
    File { contents: Contents<'a>, sealed: bool },
    /// Sections, behind a valid beginning and before a valid end.
    Sections(Vec<(Name<'a>, Contents<'a>)>),
}

#[derive(Arbitrary, Debug)]
enum Name<'a> {
    StoreId,
    Segment(u64),
    Checkpoint(u64),
    Any(&'a str),
}

fuzz_target!(|input: Input| {
    let file = match input {
        Input::File { contents, sealed } => {
            let mut file = contents.of(&sample().snapshot);
            if sealed {
                seal(&mut file);
            }
            file
        }
        Input::Sections(sections) => {
            let mut file = sample().snapshot[..16].to_vec();
            for (name, contents) in sections.iter().take(8) {
                let (name, valid) = match name {
                    Name::StoreId => ("store-id".to_owned(), b"66757a7a66757a7a66757a7a66757a7a\n".to_vec()),
                    Name::Segment(lsn) => (format!("journal/{lsn:020}.seg"), vec![0; 64]),
                    Name::Checkpoint(lsn) => (format!("checkpoints/{lsn:020}.ckpt"), sample().checkpoint.clone()),
                    Name::Any(name) => ((*name).to_owned(), Vec::new()),
                };
                let contents = contents.of(&valid);
                file.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
                file.extend_from_slice(name.as_bytes());
                file.extend_from_slice(&(contents.len() as u64).to_le_bytes());
                file.extend_from_slice(&contents);
            }
            file.extend_from_slice(&[0; 34]);
            seal(&mut file);
            file
        }
    };
    let dir = tempdir();
    let state = dir.path().join("state");
    if journal::restore(&state, &mut &file[..]).is_ok() {
        let _ = journal::verify(&state, |_| {});
    } else {
        assert!(!state.join("store-id").exists() && !state.join("journal").exists(), "half a restore");
    }
    let mut outside = std::fs::read_dir(dir.path()).expect("a directory").map(|entry| entry.expect("an entry"));
    assert!(outside.all(|entry| entry.file_name() == "state"), "nothing is written elsewhere");
});
