//! Finding records by time and by resource: one index file for each closed segment, derived from it.
//!
//! `journal/<first LSN>.idx` is written when a segment has got its successor, and again whenever it is missing or does not fit.
//! The segment that is written to has none: it is read.
//!
//! ```text
//! offset  bytes  field (integers little endian)
//!      0      8  magic "HFINDX\r\n"
//!      8      8  format version, 1
//!     16     16  store id
//!     32      8  first LSN
//!     40     32  hash of the segment's last record
//!     72      8  number of blocks
//!     80      8  number of changes
//!     88   24 b  blocks, ascending: first LSN, lowest wall clock, highest wall clock of about 1000 records
//!      .   16 c  changes, ascending: resource id, LSN
//!      .     32  BLAKE3 of everything before
//! ```

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage_schema::id::{Lsn, RecordHash, ResourceId, StoreId};
use storage_schema::resource::ResourceKey;

use crate::error::ReadError;
use crate::fold::key_of;
use crate::read::{Library, Records};
use crate::segment::catalogue::Segment;

const MAGIC: [u8; 8] = *b"HFINDX\r\n";
const FORMAT_VERSION: u64 = 1;
const HEADER_BYTES: usize = 88;
const BLOCK_BYTES: usize = 24;
const CHANGE_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
const BLOCK_RECORDS: u64 = 1000;
/// How many records are read before background work asks whether it may go on.
const STEP_RECORDS: u64 = 64;
const SUFFIX: &str = "idx";

/// The index of one segment, in its file, or in memory if it is not on disk.
#[derive(Debug)]
struct Index {
    place: Place,
    blocks: u64,
    changes: u64,
}

#[derive(Debug)]
enum Place {
    File(File),
    Memory(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
struct Block {
    first_lsn: Lsn,
    wall_ns_min: u64,
    wall_ns_max: u64,
}

/// The last record at which the wall clock showed `wall_ns` or less; `oldest - 1` if there is none. The clock may have stepped
/// back: of several moments at which it showed the time, the last one counts.
pub(crate) fn lsn_at(library: &Library, wall_ns: u64) -> Result<Lsn, ReadError> {
    let segments = library.catalogue.all();
    let durable_lsn = library.durable_lsn();
    for (number, segment) in segments.iter().enumerate().rev() {
        let last_lsn = segments.get(number + 1).map_or(durable_lsn, |next| Lsn(next.first_lsn.0 - 1));
        if last_lsn < segment.first_lsn {
            continue;
        }
        let blocks = match segments.get(number + 1) {
            Some(next) => {
                let index = index_of(library, segment, next.previous_hash, &|| {})?;
                let blocks = index.blocks(segment.first_lsn, last_lsn);
                blocks.map_err(failed("read the index of", &segment.path))?
            }
            None => survey(library, segment.first_lsn, last_lsn, &|| {})?.0,
        };
        for (at, block) in blocks.iter().enumerate().rev() {
            if block.wall_ns_min > wall_ns {
                continue;
            }
            let end_lsn = blocks.get(at + 1).map_or(last_lsn, |next| Lsn(next.first_lsn.0 - 1));
            if block.wall_ns_max <= wall_ns {
                return Ok(end_lsn);
            }
            return last_within(library, block.first_lsn, end_lsn, wall_ns);
        }
    }
    Ok(Lsn(library.catalogue.oldest_lsn().0 - 1))
}

/// The records from `from` to `to` that changed each of some resources, ascending. The segment that is written to is read once
/// for all of them.
pub(crate) fn histories(
    library: &Library,
    resources: &[ResourceId],
    from: Lsn,
    to: Lsn,
) -> Result<Vec<Vec<Lsn>>, ReadError> {
    let mut found = vec![Vec::new(); resources.len()];
    let mut wanted: HashMap<ResourceId, Vec<usize>> = HashMap::new();
    for (number, id) in resources.iter().enumerate() {
        wanted.entry(*id).or_default().push(number);
    }
    if wanted.is_empty() {
        return Ok(found);
    }
    let to = to.min(library.durable_lsn());
    let segments = library.catalogue.all();
    for (number, segment) in segments.iter().enumerate() {
        let next = segments.get(number + 1);
        if segment.first_lsn > to || next.is_some_and(|next| next.first_lsn <= from) {
            continue;
        }
        let mut take = |id: ResourceId, lsn: Lsn| {
            let of = if (from..=to).contains(&lsn) { wanted.get(&id) } else { None };
            of.into_iter().flatten().for_each(|number| found[*number].push(lsn));
        };
        match next {
            Some(next) => {
                let index = index_of(library, segment, next.previous_hash, &|| {})?;
                for id in wanted.keys() {
                    let changes = index.changes_of(*id).map_err(failed("read the index of", &segment.path))?;
                    for lsn in changes {
                        take(*id, lsn);
                    }
                }
            }
            None => {
                let (_, changes) = survey(library, segment.first_lsn.max(from), to, &|| {})?;
                for (id, lsn) in changes {
                    take(id, lsn);
                }
            }
        }
    }
    found.iter_mut().for_each(Vec::dedup);
    Ok(found)
}

/// Makes the indexes of closed segments that have none; `pass` is called every few records.
pub(crate) fn make_missing(library: &Library, pass: &dyn Fn()) -> Result<(), ReadError> {
    for pair in library.catalogue.all().windows(2) {
        if !path_of(&pair[0]).exists() {
            index_of(library, &pair[0], pair[1].previous_hash, pass)?;
        }
    }
    Ok(())
}

/// Removes a segment's index.
pub(crate) fn remove(segment: &Segment) {
    // It is found to fit nothing if it stays.
    let _ = fs::remove_file(path_of(segment));
}

/// Finds the last record within a block whose wall clock is not above `wall_ns`: there is one.
fn last_within(library: &Library, first: Lsn, last: Lsn, wall_ns: u64) -> Result<Lsn, ReadError> {
    let mut found = first;
    let mut records = library.read_from(first)?;
    while records.next_lsn() <= last {
        let Some(record) = records.next_encoded() else { break };
        let record = record?;
        let archived = record.access().map_err(|source| ReadError::Undecodable { lsn: record.lsn, source })?;
        if archived.wall_ns <= wall_ns {
            found = record.lsn;
        }
    }
    Ok(found)
}

/// Blocks, and changes in order.
type Survey = (Vec<Block>, Vec<(ResourceId, Lsn)>);

/// Reads records and notes when they were written and what they changed.
fn survey(library: &Library, first: Lsn, last: Lsn, pass: &dyn Fn()) -> Result<Survey, ReadError> {
    let (mut blocks, mut changes) = (Vec::<Block>::new(), Vec::new());
    let mut records: Records = library.read_from(first)?;
    while records.next_lsn() <= last {
        if records.next_lsn().0.is_multiple_of(STEP_RECORDS) {
            pass();
        }
        let Some(record) = records.next_encoded() else { break };
        let record = record?;
        let archived = record.access().map_err(|source| ReadError::Undecodable { lsn: record.lsn, source })?;
        let wall_ns = archived.wall_ns.to_native();
        match blocks.last_mut() {
            Some(block) if record.lsn.0 - block.first_lsn.0 < BLOCK_RECORDS => {
                block.wall_ns_min = block.wall_ns_min.min(wall_ns);
                block.wall_ns_max = block.wall_ns_max.max(wall_ns);
            }
            _ => blocks.push(Block { first_lsn: record.lsn, wall_ns_min: wall_ns, wall_ns_max: wall_ns }),
        }
        for delta in archived.transaction.deltas.iter() {
            let (kind, name) = key_of(delta);
            changes.push((ResourceId::of(&ResourceKey::new(kind, name)), record.lsn));
        }
    }
    changes.sort_unstable();
    changes.dedup();
    Ok((blocks, changes))
}

/// The index of a closed segment: its file, if that fits, or a new one.
fn index_of(
    library: &Library,
    segment: &Arc<Segment>,
    last_hash: RecordHash,
    pass: &dyn Fn(),
) -> Result<Index, ReadError> {
    let path = path_of(segment);
    let head = header(library.store_id, segment.first_lsn, last_hash);
    let last_lsn = library.catalogue.after(segment.first_lsn).map_or(library.durable_lsn(), |next| Lsn(next.0 - 1));
    let trusted = segment.index_trusted();
    let found = load(&path, &head, trusted);
    if let Some(index) = found.filter(|index| trusted || index.blocks(segment.first_lsn, last_lsn).is_ok()) {
        segment.trust_index();
        return Ok(index);
    }
    let (blocks, changes) = survey(library, segment.first_lsn, last_lsn, pass)?;
    let bytes = encode(&head, &blocks, &changes);
    if let Err(error) = write(&path, &bytes) {
        tracing::debug!(path = %path.display(), %error, "an index stays in memory");
    }
    Ok(Index { place: Place::Memory(bytes), blocks: blocks.len() as u64, changes: changes.len() as u64 })
}

fn path_of(segment: &Segment) -> PathBuf {
    segment.path.with_extension(SUFFIX)
}

fn header(store_id: StoreId, first_lsn: Lsn, last_hash: RecordHash) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&store_id.0);
    bytes.extend_from_slice(&first_lsn.0.to_le_bytes());
    bytes.extend_from_slice(&last_hash.0);
    bytes
}

fn encode(head: &[u8], blocks: &[Block], changes: &[(ResourceId, Lsn)]) -> Vec<u8> {
    let total = HEADER_BYTES + blocks.len() * BLOCK_BYTES + changes.len() * CHANGE_BYTES + HASH_BYTES;
    let mut bytes = Vec::with_capacity(total);
    bytes.extend_from_slice(head);
    let mut put = |number: u64| bytes.extend_from_slice(&number.to_le_bytes());
    put(blocks.len() as u64);
    put(changes.len() as u64);
    for block in blocks {
        put(block.first_lsn.0);
        put(block.wall_ns_min);
        put(block.wall_ns_max);
    }
    for (id, lsn) in changes {
        put(id.0);
        put(lsn.0);
    }
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unnamed = path.with_extension("idx-new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unnamed)?;
    file.write_all(bytes)?;
    fs::rename(&unnamed, path)
}

/// Opens an index file that fits; unless it is trusted already, all of it is compared with its hash.
fn load(path: &Path, head: &[u8], trusted: bool) -> Option<Index> {
    let file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let place = Place::File(file);
    let found = place.read(0, HEADER_BYTES).ok()?;
    if found[..head.len()] != *head {
        return None;
    }
    let (blocks, changes) = (number(&found[72..80]), number(&found[80..88]));
    let expected = u64::try_from(HEADER_BYTES + HASH_BYTES)
        .ok()?
        .checked_add(blocks.checked_mul(BLOCK_BYTES as u64)?)?
        .checked_add(changes.checked_mul(CHANGE_BYTES as u64)?)?;
    if length != expected {
        return None;
    }
    if !trusted {
        let whole = place.read(0, usize::try_from(length).ok()?).ok()?;
        let (body, hash) = whole.split_last_chunk::<HASH_BYTES>()?;
        if blake3::hash(body) != *hash {
            return None;
        }
    }
    Some(Index { place, blocks, changes })
}

impl Place {
    fn read(&self, at: u64, bytes: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::File(file) => {
                let mut read = vec![0; bytes];
                file.read_exact_at(&mut read, at)?;
                Ok(read)
            }
            Self::Memory(all) => {
                let at = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let part = at.checked_add(bytes).and_then(|end| all.get(at..end));
                Ok(part.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec())
            }
        }
    }
}

impl Index {
    /// The blocks, if they are those of a segment with records from `first` to `last`.
    fn blocks(&self, first: Lsn, last: Lsn) -> io::Result<Vec<Block>> {
        let bytes = usize::try_from(self.blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK_BYTES);
        let bytes = self.place.read(HEADER_BYTES as u64, bytes)?;
        let block = |bytes: &[u8]| Block {
            first_lsn: Lsn(number(&bytes[..8])),
            wall_ns_min: number(&bytes[8..16]),
            wall_ns_max: number(&bytes[16..24]),
        };
        let blocks: Vec<Block> = bytes.chunks_exact(BLOCK_BYTES).map(block).collect();
        let ascend = blocks.is_sorted_by(|one, next| one.first_lsn < next.first_lsn);
        let within = blocks.first().is_some_and(|block| block.first_lsn == first)
            && blocks.last().is_some_and(|block| block.first_lsn <= last);
        if ascend && within { Ok(blocks) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn changes_of(&self, id: ResourceId) -> io::Result<Vec<Lsn>> {
        let start = HEADER_BYTES as u64 + self.blocks * BLOCK_BYTES as u64;
        let change = |at: u64| -> io::Result<(ResourceId, Lsn)> {
            let bytes = self.place.read(start + at * CHANGE_BYTES as u64, CHANGE_BYTES)?;
            Ok((ResourceId(number(&bytes[..8])), Lsn(number(&bytes[8..]))))
        };
        let (mut low, mut high) = (0, self.changes);
        while low < high {
            let middle = low + (high - low) / 2;
            if change(middle)?.0 < id { low = middle + 1 } else { high = middle }
        }
        let mut found = Vec::new();
        for at in low..self.changes {
            let (of, lsn) = change(at)?;
            if of != id {
                break;
            }
            found.push(lsn);
        }
        Ok(found)
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(*bytes.first_chunk().expect("callers give eight bytes"))
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ReadError + use<'a> {
    move |source| ReadError::Io { action, path: path.to_owned(), source }
}
