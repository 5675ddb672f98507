//! Files to begin with: valid ones, made by the journal's own code, and changes of their bytes.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use journal::segment::frame::push_frame;
use journal::segment::header::SegmentHeader;
use journal::{Config, Journal};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use storage_schema::codec::{encode_record, hash_record};
use storage_schema::id::{BootId, Lsn, RecordHash, StoreId};
use storage_schema::record::{Delta, Origin, Record, Transaction};
use storage_schema::resource::{Kind, Resource, ResourceKey, Service};

/// The journal that all files belong to.
pub const STORE: StoreId = StoreId(*b"fuzzfuzzfuzzfuzz");

/// A temporary directory.
pub fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in(temporary()).expect("a temporary directory")
}

/// Where temporary directories go: into memory where there is such a place, as journals fsync a lot.
fn temporary() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { std::env::temp_dir() }
}

/// A directory for the sample, which no process tidies up at its end: those of earlier ones go instead.
fn sample_dir() -> PathBuf {
    const PREFIX: &str = "journal-fuzz-sample-";
    for entry in std::fs::read_dir(temporary()).expect("a directory").flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            // Refused while a process has it open.
            let _ = Journal::remove(&entry.path());
        }
    }
    let made = tempfile::Builder::new().prefix(PREFIX).tempdir_in(temporary());
    made.expect("a temporary directory").keep()
}

/// The bytes of a file.
#[derive(Arbitrary, Debug)]
pub enum Contents<'a> {
    /// Nothing that we know.
    Raw(&'a [u8]),
    /// A valid file, some bytes of it changed, cut short or continued.
    Edited {
        /// Place (modulo the length) and byte.
        edits: Vec<(u16, u8)>,
        /// How many bytes are taken from the end.
        cut: u8,
        /// What follows.
        more: &'a [u8],
    },
}

impl Contents<'_> {
    /// The bytes, if `valid` is the valid file.
    pub fn of(&self, valid: &[u8]) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.to_vec(),
            Self::Edited { edits, cut, more } => {
                let mut bytes = valid[..valid.len() - usize::from(*cut).min(valid.len())].to_vec();
                bytes.extend_from_slice(more);
                edit(&mut bytes, edits);
                bytes
            }
        }
    }
}

/// Changes bytes: place (modulo the length) and byte.
pub fn edit(bytes: &mut [u8], edits: &[(u16, u8)]) {
    let length = bytes.len();
    for (at, byte) in edits.iter().filter(|_| length > 0) {
        bytes[usize::from(*at) % length] = *byte;
    }
}

/// Puts BLAKE3 over what is before its last 32 bytes there.
pub fn seal(bytes: &mut [u8]) {
    if let Some((body, hash)) = bytes.split_last_chunk_mut::<32>() {
        *hash = *blake3::hash(body).as_bytes();
    }
}

/// Record `lsn` behind one with `previous_hash`, encoded: an upsert, a removal or nothing, by its number.
pub fn record(lsn: Lsn, previous_hash: RecordHash) -> Vec<u8> {
    let name = format!("shop/svc-{}", lsn.0 % 4);
    let deltas = match lsn.0 % 3 {
        0 => vec![],
        1 => vec![Delta::Upsert(Resource::Service(Service { name, ..Service::default() }))],
        _ => vec![Delta::Remove(ResourceKey::new(Kind::Service, name))],
    };
    encode_record(&Record {
        lsn,
        transaction: Transaction::push(
            Origin { source: "cp".to_owned(), incarnation: 1, version: lsn.0.is_multiple_of(2).then_some(lsn.0) },
            deltas,
        ),
        wall_ns: 1_700_000_000_000_000_000_u64.wrapping_add(lsn.0),
        monotonic_ns: lsn.0,
        boot_id: BootId([5; 16]),
        previous_hash,
        received_wall_ns: Some(lsn.0),
        client: Some("uid=0 gid=0 pid=4711".to_owned()),
    })
}

/// A log under construction: segment files by their first record.
#[derive(Debug, Default)]
pub struct Log {
    /// The segments, oldest first.
    pub segments: Vec<(Lsn, Vec<u8>)>,
    /// The record that comes next.
    pub next_lsn: Lsn,
    previous_hash: RecordHash,
}

impl Log {
    /// A log that begins with `first`.
    pub fn new(first: Lsn) -> Self {
        let mut log = Self { segments: Vec::new(), next_lsn: first, previous_hash: RecordHash::default() };
        log.roll(0);
        log
    }

    /// Begins a segment; what it says of the length of the one before is off by `error`.
    pub fn roll(&mut self, error: i8) {
        let (previous_first, end) = self.segments.last().map_or((Lsn::ZERO, 0), |last| (last.0, last.1.len() as u64));
        let header = SegmentHeader {
            store_id: STORE,
            first_lsn: self.next_lsn,
            previous_hash: self.previous_hash,
            previous_first,
            previous_end: end.wrapping_add_signed(error.into()),
            created_wall_ns: 1,
        };
        self.segments.push((self.next_lsn, header.encode().to_vec()));
    }

    /// Appends the record that comes next, in a group that begins `group` records before it.
    pub fn record(&mut self, group: u8) {
        let body = record(self.next_lsn, self.previous_hash);
        self.frame(self.next_lsn, group, &body);
        self.previous_hash = hash_record(&body);
        self.next_lsn = Lsn(self.next_lsn.0.wrapping_add(1));
    }

    /// Appends a frame whose checksum fits, around anything.
    pub fn frame(&mut self, lsn: Lsn, group: u8, body: &[u8]) {
        push_frame(self.last(), STORE, lsn, Lsn(lsn.0.saturating_sub(group.into())), body);
    }

    /// The bytes of the segment that is written to.
    pub fn last(&mut self) -> &mut Vec<u8> {
        &mut self.segments.last_mut().expect("a log has a segment").1
    }

    /// Writes it into a state directory.
    pub fn write(&self, state: &Path) {
        let dir = state.join("journal");
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(state.join("store-id"), format!("{STORE}\n")).expect("a file");
        for (first, bytes) in &self.segments {
            std::fs::write(dir.join(format!("{:020}.seg", first.0)), bytes).expect("a file");
        }
    }
}

/// A configuration with small files for a journal in `state`.
pub fn config(state: &Path) -> Config {
    Config { segment_bytes: 64 << 10, ..Config::new(state) }
}

/// A journal of three segments and nine records, open, and what it makes of itself.
#[derive(Debug)]
pub struct Sample {
    /// The journal.
    pub journal: Journal,
    /// Its state directory.
    pub state: PathBuf,
    /// A checkpoint of record 9.
    pub checkpoint: Vec<u8>,
    /// The index of the first segment.
    pub index: Vec<u8>,
    /// A snapshot; its segments are without spare zeros.
    pub snapshot: Vec<u8>,
    /// An export.
    pub export: Vec<u8>,
}

/// The sample of this process.
pub fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let state = sample_dir();
        let mut log = Log::new(Lsn(1));
        for number in 1..=9 {
            log.record(0);
            if number % 4 == 0 {
                log.roll(0);
            }
        }
        log.write(&state);
        let journal = Journal::open(config(&state)).expect("a valid journal");
        journal.reader().history(&ResourceKey::new(Kind::Service, "x"), Lsn(1), Lsn(9)).expect("makes the indexes");
        let (mut snapshot, mut export) = (Vec::new(), Vec::new());
        journal.snapshot(&mut snapshot).expect("a snapshot");
        let mut records = journal.read_from(Lsn(1)).expect("records");
        journal::export_jsonl(&mut records, Lsn(9), &mut export).expect("an export");
        let checkpoint =
            std::fs::read(&journal.reader().checkpoints().expect("checkpoints")[0].path).expect("a checkpoint");
        let index = std::fs::read(state.join("journal/00000000000000000001.idx")).expect("an index");
        Sample { journal, state, checkpoint, index, snapshot, export }
    })
}
