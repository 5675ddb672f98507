//! Snapshots: a whole journal in one file, taken while it runs, put back anywhere.
//!
//! It holds the store id, the newest checkpoint (made for it), and every segment up to the durable head at the time. Restored,
//! it is the same journal: same store id, same records, same hashes.
//!
//! ```text
//! magic "HFSNAP\r\n" (8), format version 1 (8, little endian), then sections, then BLAKE3 of everything before (32)
//! section: name length (2, little endian; 0 ends the file), name, contents length (8), contents
//! ```
//!
//! Sections: `store-id` (the file's text), `checkpoints/<LSN>.ckpt`, `journal/<first LSN>.seg` (without spare zeros), in this
//! order, segments oldest first.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use storage_schema::id::{Lsn, StoreId};

use crate::disk::{Disk, RealDisk};
use crate::durable::Head;
use crate::error::{OpenError, ReadError};
use crate::keep::Keeper;
use crate::lock::{lock_state_dir, parse_identity, read_identity, write_identity};

const MAGIC: [u8; 8] = *b"HFSNAP\r\n";
const FORMAT_VERSION: u64 = 1;
const COPY_BYTES: usize = 256 << 10;
const RESTORING_DIR: &str = "restoring";

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The journal.
    pub store_id: StoreId,
    /// Its last record.
    pub head: Head,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Why a snapshot could not be taken or put back.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It is not one, or damaged.
    #[error("the snapshot cannot be used: {what}")]
    Damaged {
        /// What does not fit.
        what: &'static str,
    },
    /// There is a journal already.
    #[error("{path} holds a journal already: restore into an empty directory", path = path.display())]
    Occupied {
        /// The state directory.
        path: PathBuf,
    },
    /// The snapshot could not be written or read.
    #[error("the snapshot cannot be transferred: {0}")]
    Transfer(#[source] io::Error),
    /// The journal could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The state directory could not be prepared.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Writes a snapshot of a running journal to `out`. Appends go on; compaction waits.
pub(crate) fn save(keeper: &Keeper, out: &mut dyn Write) -> Result<Snapshot, SnapshotError> {
    let _busy = keeper.hold();
    let checkpoint = keeper.shelf.checkpoint()?;
    let library = &keeper.library;
    // The head first: segments only grow, so what is copied reaches at least up to it.
    let head = **library.durable.borrow();
    let segments = library.catalogue.all();
    let mut out = Hashing { inner: out, hasher: blake3::Hasher::new(), bytes: 0 };
    let transfer = SnapshotError::Transfer;
    out.write_all(&MAGIC).map_err(transfer)?;
    out.write_all(&FORMAT_VERSION.to_le_bytes()).map_err(transfer)?;
    let identity = format!("{}\n", library.store_id);
    begin_section(&mut out, "store-id", identity.len() as u64).map_err(transfer)?;
    out.write_all(identity.as_bytes()).map_err(transfer)?;
    let name = format!("checkpoints/{:020}.ckpt", checkpoint.lsn.0);
    begin_section(&mut out, &name, checkpoint.bytes).map_err(transfer)?;
    let file = File::open(&checkpoint.path).map_err(transfer)?;
    let copied = io::copy(&mut file.take(checkpoint.bytes), &mut out).map_err(transfer)?;
    if copied != checkpoint.bytes {
        return Err(SnapshotError::Transfer(io::ErrorKind::UnexpectedEof.into()));
    }
    for segment in segments {
        let end = segment.end();
        begin_section(&mut out, &format!("journal/{:020}.seg", segment.first_lsn.0), end).map_err(transfer)?;
        let file = library.disk.open_read(&segment.path).map_err(transfer)?;
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        while offset < end {
            let piece = usize::try_from(end - offset).unwrap_or(usize::MAX).min(COPY_BYTES);
            if file.read_at(&mut buffer[..piece], offset).map_err(transfer)? < piece {
                return Err(SnapshotError::Transfer(io::ErrorKind::UnexpectedEof.into()));
            }
            out.write_all(&buffer[..piece]).map_err(transfer)?;
            offset += piece as u64;
        }
    }
    out.write_all(&[0; 2]).map_err(transfer)?;
    let Hashing { inner, hasher, bytes } = out;
    inner.write_all(hasher.finalize().as_bytes()).and_then(|()| inner.flush()).map_err(transfer)?;
    Ok(Snapshot { store_id: library.store_id, head, bytes: bytes + 32 })
}

/// Puts a snapshot back into a state directory that has no journal. Nothing is in its place before all of it has been read and
/// its hash fits; an interrupted restore can be repeated.
pub fn restore(state_dir: &Path, from: &mut dyn Read) -> Result<StoreId, SnapshotError> {
    let _lock = lock_state_dir(state_dir)?;
    let journal = state_dir.join("journal");
    if read_identity(state_dir)?.is_some() || journal.exists() {
        return Err(SnapshotError::Occupied { path: state_dir.to_owned() });
    }
    let restoring = state_dir.join(RESTORING_DIR);
    match fs::remove_dir_all(&restoring) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(SnapshotError::Transfer(error)),
        _ => {}
    }
    let store_id = match unpack(&restoring, from) {
        Ok(store_id) => store_id,
        Err(error) => {
            // A full disk should not stay full because of half a snapshot.
            let _ = fs::remove_dir_all(&restoring);
            return Err(error);
        }
    };
    let place = || -> io::Result<()> {
        let checkpoints = state_dir.join("checkpoints");
        match fs::remove_dir_all(&checkpoints) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(restoring.join("checkpoints"), checkpoints)?;
        fs::rename(restoring.join("journal"), &journal)?;
        RealDisk.sync_dir(state_dir)?;
        fs::remove_dir_all(&restoring)
    };
    place().map_err(SnapshotError::Transfer)?;
    write_identity(state_dir, store_id)?;
    Ok(store_id)
}

/// Writes a snapshot's files below `dir`, synced, and checks its hash.
fn unpack(dir: &Path, from: &mut dyn Read) -> Result<StoreId, SnapshotError> {
    let damaged = |what| SnapshotError::Damaged { what };
    for dir in [dir.join("journal"), dir.join("checkpoints")] {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(SnapshotError::Transfer)?;
    }
    let mut from = Hashing { inner: from, hasher: blake3::Hasher::new(), bytes: 0 };
    if from.array::<8>()? != MAGIC {
        return Err(damaged("it does not begin as a snapshot does"));
    }
    if u64::from_le_bytes(from.array()?) != FORMAT_VERSION {
        return Err(damaged("its format is not known here; use a newer holdfast"));
    }
    let mut store_id = None;
    loop {
        let name_bytes = u16::from_le_bytes(from.array()?);
        if name_bytes == 0 {
            break;
        }
        let mut name = vec![0; usize::from(name_bytes)];
        from.read_exact(&mut name).map_err(cut_off)?;
        let name = String::from_utf8(name).map_err(|_| damaged("a section's name"))?;
        let length = u64::from_le_bytes(from.array()?);
        if name == "store-id" {
            let mut text = String::new();
            (&mut from).take(length.min(64)).read_to_string(&mut text).map_err(cut_off)?;
            store_id = parse_identity(text.trim());
            continue;
        }
        let file = section_file(dir, &name).ok_or_else(|| damaged("a section that is none of a journal's files"))?;
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(file).map_err(SnapshotError::Transfer)?;
        let copied = io::copy(&mut (&mut from).take(length), &mut file).map_err(SnapshotError::Transfer)?;
        if copied != length {
            return Err(damaged("it is cut off"));
        }
        file.sync_all().map_err(SnapshotError::Transfer)?;
    }
    let expected = *from.hasher.finalize().as_bytes();
    let mut hash = [0; 32];
    from.inner.read_exact(&mut hash).map_err(cut_off)?;
    if hash != expected {
        return Err(damaged("its hash does not fit its contents"));
    }
    for dir in [dir.join("journal"), dir.join("checkpoints"), dir.to_owned()] {
        RealDisk.sync_dir(&dir).map_err(SnapshotError::Transfer)?;
    }
    store_id.ok_or_else(|| damaged("it names no store"))
}

/// Where a section goes; `None` for names that no journal has, so that none leads anywhere else.
fn section_file(dir: &Path, name: &str) -> Option<PathBuf> {
    let (folder, file) = name.split_once('/')?;
    let (number, suffix) = file.split_once('.')?;
    let known = matches!((folder, suffix), ("journal", "seg") | ("checkpoints", "ckpt"));
    let digits = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
    let numbered = digits && number.parse().ok().map(Lsn).is_some();
    (known && numbered).then(|| dir.join(folder).join(file))
}

fn begin_section(out: &mut impl Write, name: &str, length: u64) -> io::Result<()> {
    let name_bytes = u16::try_from(name.len()).expect("names are short");
    out.write_all(&name_bytes.to_le_bytes())?;
    out.write_all(name.as_bytes())?;
    out.write_all(&length.to_le_bytes())
}

fn cut_off(error: io::Error) -> SnapshotError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Damaged { what: "it is cut off" },
        _ => SnapshotError::Transfer(error),
    }
}

/// Passes bytes on and hashes them.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

impl<R: Read> Hashing<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes).map_err(cut_off)?;
        Ok(bytes)
    }
}
