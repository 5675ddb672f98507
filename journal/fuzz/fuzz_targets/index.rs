//! Index files, under queries by time and by resource.
#![no_main]

use journal_fuzz::{Contents, sample, seal};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, ResourceKey};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    contents: Contents<'a>,
    sealed: bool,
    blocks: Option<u8>,
    wall_ns: u64,
    name: u8,
}

fuzz_target!(|input: Input| {
    let sample = sample();
    let mut file = input.contents.of(&sample.index);
    if let Some(blocks) = input.blocks
        && file.len() >= 120
    {
        // Counts that fit the length, so that something is read.
        let rest = file.len() - 120;
        let blocks = usize::from(blocks).min(rest / 24);
        let changes = (rest - blocks * 24) / 16;
        file.truncate(120 + blocks * 24 + changes * 16);
        file[72..80].copy_from_slice(&(blocks as u64).to_le_bytes());
        file[80..88].copy_from_slice(&(changes as u64).to_le_bytes());
    }
    if input.sealed {
        seal(&mut file);
    }
    std::fs::write(sample.state.join("journal/00000000000000000001.idx"), &file).expect("a file");
    for wall_ns in [input.wall_ns, 1_700_000_000_000_000_003] {
        let _ = sample.journal.reader().lsn_at(wall_ns);
    }
    let key = ResourceKey::new(Kind::Service, format!("shop/svc-{}", input.name % 4));
    if let Ok(found) = sample.journal.reader().history(&key, Lsn(1), Lsn(9)) {
        assert!(found.iter().all(|lsn| (1..=9).contains(&lsn.0)));
    }
});
