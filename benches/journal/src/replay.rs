//! Reading everything back: records a second, and bytes on disk for each.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use journal::{Config, Journal};
use storage_schema::id::Lsn;

use crate::Options;
use crate::appends::{count, sample_body};
use crate::sample::transaction;

pub(crate) fn run(options: &Options) {
    let dir = tempfile::tempdir_in(&options.dir).expect("a temporary directory");
    let state = dir.path().join("state");
    let journal = fill(&state, options.records);
    let records = usize::try_from(options.records).expect("a count");
    // The follower would compete for the processor.
    journal.blocking_wait_stored(Lsn(options.records)).expect("the store follows");
    let mut payload = 0;
    let mut best = f64::MAX;
    for _ in 0..options.rounds {
        let started = Instant::now();
        payload = replay(&journal, options.records);
        best = best.min(started.elapsed().as_secs_f64());
    }
    let plain = dir.path().join("plain");
    let floor = floor(&plain, options);
    println!("replay of {records} records, checksums and bytecheck on, in the page cache (best of {})", options.rounds);
    println!(
        "  floor {:.2} M/s, journal {:.2} M/s, ratio {:.2}",
        count(records) / floor / 1e6,
        count(records) / best / 1e6,
        floor / best
    );
    let last = fs::metadata(last_segment(&state)).expect("a segment").len();
    drop(journal);
    let bytes = directory_bytes(&state.join("journal")) - last + used_bytes(&last_segment(&state));
    println!(
        "bytes on disk for each record: {:.1}, payload {:.1}: payload × 1.1 + 64 = {:.1}; store: {:.1} MB",
        count(usize::try_from(bytes).expect("a size")) / count(records),
        count(payload) / count(records),
        count(payload) / count(records) * 1.1 + 64.0,
        count(usize::try_from(directory_bytes(&state.join("store"))).expect("a size")) / 1e6,
    );
}

/// A journal with so many records, written with deep groups.
pub(crate) fn fill(state: &Path, records: u64) -> Journal {
    let journal = Journal::open(Config::new(state)).expect("a journal");
    for number in 0..records {
        let permit = journal.blocking_reserve().expect("the journal accepts");
        permit.submit(transaction("filler", number)).expect("the journal accepts");
    }
    let mut durable = journal.durable();
    if records > 0 {
        durable.blocking_past(Lsn(records - 1), std::time::Duration::from_mins(10)).expect("the disk works");
    }
    journal
}

fn replay(journal: &Journal, records: u64) -> usize {
    let mut reader = journal.read_from(Lsn::FIRST).expect("readable");
    let (mut seen, mut payload) = (0, 0);
    while let Some(record) = reader.next_encoded() {
        let record = record.expect("readable");
        let archived = record.access().expect("decodable");
        assert_eq!(archived.transaction.deltas.len(), 1);
        seen += 1;
        payload += record.encoded.len();
    }
    assert_eq!(seen, records);
    payload
}

/// The same number of records from a plain file, by their lengths, with a checksum over each.
fn floor(path: &Path, options: &Options) -> f64 {
    let record = sample_body();
    let mut file = std::io::BufWriter::new(File::create(path).expect("a plain file"));
    for _ in 0..options.records {
        file.write_all(&u32::try_from(record.len()).expect("small").to_le_bytes()).expect("the disk works");
        file.write_all(&record).expect("the disk works");
    }
    file.flush().expect("the disk works");
    let mut best = f64::MAX;
    for _ in 0..options.rounds {
        let started = Instant::now();
        let mut reader = std::io::BufReader::with_capacity(256 << 10, File::open(path).expect("a plain file"));
        let mut buffer = Vec::new();
        let (mut seen, mut sum) = (0, 0);
        let mut length = [0; 4];
        while reader.read_exact(&mut length).is_ok() {
            buffer.resize(usize::try_from(u32::from_le_bytes(length)).expect("small"), 0);
            reader.read_exact(&mut buffer).expect("whole records");
            sum ^= crc32c::crc32c(&buffer);
            seen += 1;
        }
        std::hint::black_box(sum);
        assert_eq!(seen, options.records);
        best = best.min(started.elapsed().as_secs_f64());
    }
    best
}

/// Bytes of the files below a directory; what goes away meanwhile does not count.
pub(crate) fn directory_bytes(dir: &Path) -> u64 {
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
        metadata => metadata.map_or(0, |metadata| metadata.len()),
    };
    fs::read_dir(dir).map_or(0, |entries| entries.filter_map(Result::ok).map(bytes).sum())
}

fn last_segment(state: &Path) -> std::path::PathBuf {
    let mut segments: Vec<_> = fs::read_dir(state.join("journal"))
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    segments.retain(|path| path.extension().is_some_and(|suffix| suffix == "seg"));
    segments.sort();
    segments.pop().expect("a segment")
}

/// A live segment's preallocated zeros aside.
fn used_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).expect("a segment");
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}
