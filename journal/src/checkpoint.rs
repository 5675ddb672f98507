//! Checkpoints: the whole state at one record, in one file, from which the log can be replayed.
//!
//! `<state dir>/checkpoints/<LSN, 20 digits>.ckpt`. It is written under another name, fsynced, read back and compared, renamed,
//! and the directory is fsynced: a file called `.ckpt` was whole once. Each use verifies it again.
//!
//! ```text
//! offset  bytes  field (integers little endian)
//!      0      8  magic "HFCKPT\r\n"
//!      8      4  format version, 2
//!     12      4  schema version of the resources
//!     16     16  store id
//!     32      8  LSN
//!     40     32  hash of that record
//!     72      8  number of resources
//!     80      8  length of the body, uncompressed
//!     88     32  BLAKE3 of the body, uncompressed
//!    120      4  CRC32C over bytes 0..120
//!    124      n  the body, one zstd frame
//! ```
//!
//! The body is a sequence of entries, each a tag and fields; strings and byte strings have a length (4) in front:
//!
//! | tag | fields |
//! |---|---|
//! | 1, a resource | kind (1), name, LSN of its last change (8), the encoded resource: format version 1, which names no owner |
//! | 4, a resource | kind (1), name, LSN of its last change (8), its owner, the encoded resource |
//! | 2, a source | name, what the store's `sources` tree holds for it |
//! | 3, receipts | the source's name, first version (8), what the store's `receipts` tree holds |
//!
//! Resources come in the order of kind and name. Those of an older schema version are made current when they are read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use storage_schema::codec::{RESOURCE_VERSION, SCHEMA_VERSION, upcast_resource};
use storage_schema::id::{Lsn, RecordHash, StoreId};
use storage_schema::resource::Kind;

use crate::durable::Head;

const MAGIC: [u8; 8] = *b"HFCKPT\r\n";
const FORMAT_VERSION: u32 = 2;
const HEADER_BYTES: usize = 124;
const CHECKED_BYTES: usize = 120;
const SUFFIX: &str = "ckpt";
/// zstd's own default: about 500 MB/s, and state compresses to a tenth.
const COMPRESSION_LEVEL: i32 = 3;
/// So many bytes are written, or a few times as many read back, between two looks at the gate: about 100 µs of work.
const STEP_BYTES: usize = 16 << 10;
/// No field is longer: a resource fits into a record.
const FIELD_BYTES_MAX: u32 = 1 << 28;

/// What a checkpoint says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// The journal it belongs to.
    pub store_id: StoreId,
    /// The record whose state it holds.
    pub head: Head,
    /// How many resources.
    pub resources: u64,
    body_bytes: u64,
    body_hash: [u8; 32],
}

/// A checkpoint that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The record whose state it holds.
    pub lsn: Lsn,
    /// Its file.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
}

/// Why a checkpoint cannot be used, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is damaged.
    #[error("checkpoint {path} is damaged: {what}", path = path.display())]
    Damaged {
        /// Its file.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
    },
    /// It belongs to another journal.
    #[error("checkpoint {path} belongs to store {found}, this is store {expected}", path = path.display())]
    Foreign {
        /// Its file.
        path: PathBuf,
        /// Its store.
        found: StoreId,
        /// This store.
        expected: StoreId,
    },
    /// A later version wrote it.
    #[error("checkpoint {path} is of format {format}, schema {schema}: use a newer holdfast", path = path.display())]
    Newer {
        /// Its file.
        path: PathBuf,
        /// Its format version.
        format: u32,
        /// Its schema version.
        schema: u32,
    },
    /// The file system said no.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The answer.
        #[source]
        source: io::Error,
    },
}

/// An entry of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// `owner` is the source that changed it last; empty if that is not known.
    Resource {
        kind: Kind,
        name: &'a str,
        changed_lsn: Lsn,
        owner: &'a str,
        encoded: &'a [u8],
    },
    Source {
        name: &'a str,
        value: &'a [u8],
    },
    Receipts {
        source: &'a str,
        first_version: u64,
        page: &'a [u8],
    },
}

/// The checkpoints in `dir`, oldest first.
pub(crate) fn list_checkpoints(dir: &Path) -> Result<Vec<Checkpoint>, CheckpointError> {
    let failed = |source| CheckpointError::Io { action: "list", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if let Some(lsn) = lsn_of_path(&path) {
            found.push(Checkpoint { lsn, path, bytes: entry.metadata().map_err(failed)?.len() });
        }
    }
    found.sort_unstable_by_key(|checkpoint| checkpoint.lsn);
    Ok(found)
}

/// Unlinks what an interrupted checkpoint has left behind.
pub(crate) fn remove_unfinished(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "new") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Writes a checkpoint: `fill` puts the entries in, and `pass` is called between steps. It is durable, and has been read back, when this returns.
pub(crate) fn write_checkpoint<E: From<CheckpointError>>(
    dir: &Path,
    store_id: StoreId,
    head: Head,
    pass: &dyn Fn(),
    fill: impl FnOnce(&mut dyn FnMut(Entry<'_>) -> Result<(), CheckpointError>) -> Result<(), E>,
) -> Result<Checkpoint, E> {
    let path = path_of(dir, head.lsn);
    let unnamed = path.with_extension("new");
    let written = write_unnamed(&unnamed, store_id, head, pass, fill);
    if written.is_err() {
        // Half a checkpoint on a full disk keeps it full.
        let _ = fs::remove_file(&unnamed);
    }
    let bytes = written?;
    let failed = |source| CheckpointError::Io { action: "rename", path: unnamed.clone(), source };
    fs::rename(&unnamed, &path).map_err(failed)?;
    fail::fail_point!("journal.checkpoint.rename.after");
    let failed = |source| CheckpointError::Io { action: "fsync", path: dir.to_owned(), source };
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    Ok(Checkpoint { lsn: head.lsn, path, bytes })
}

fn write_unnamed<E: From<CheckpointError>>(
    path: &Path,
    store_id: StoreId,
    head: Head,
    pass: &dyn Fn(),
    fill: impl FnOnce(&mut dyn FnMut(Entry<'_>) -> Result<(), CheckpointError>) -> Result<(), E>,
) -> Result<u64, E> {
    let failed = |action| move |source| CheckpointError::Io { action, path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(failed("create"))?;
    fail::fail_point!("journal.checkpoint.write.before");
    let mut body = BodyWriter::new(&file).map_err(failed("write"))?;
    let mut passed_bytes = 0;
    fill(&mut |entry| {
        if body.bytes - passed_bytes >= STEP_BYTES as u64 {
            passed_bytes = body.bytes;
            pass();
        }
        body.push(&entry).map_err(failed("write"))
    })?;
    let header = body.finish(store_id, head).map_err(failed("write"))?;
    file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&header.encode())).map_err(failed("write"))?;
    file.sync_all().map_err(failed("fsync"))?;
    fail::fail_point!("journal.checkpoint.sync.after");
    verify_in_steps(path, store_id, pass)?;
    Ok(file.metadata().map_err(failed("measure"))?.len())
}

/// Reads a whole checkpoint and compares it with its header.
pub fn verify_checkpoint(path: &Path, store_id: StoreId) -> Result<CheckpointHeader, CheckpointError> {
    verify_in_steps(path, store_id, &|| {})
}

fn verify_in_steps(path: &Path, store_id: StoreId, pass: &dyn Fn()) -> Result<CheckpointHeader, CheckpointError> {
    let (header, body) = open_checkpoint(path, store_id)?;
    let damaged = |what| CheckpointError::Damaged { path: path.to_owned(), what };
    let mut body = body.take(header.body_bytes.saturating_add(1));
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 4 * STEP_BYTES];
    let mut bytes = 0;
    loop {
        pass();
        let read = body.read(&mut buffer).map_err(|_| damaged("it cannot be decompressed"))?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hasher.update(&buffer[..read]);
    }
    if bytes != header.body_bytes || hasher.finalize() != header.body_hash {
        return Err(damaged("its hash does not fit its contents"));
    }
    Ok(header)
}

/// Shows the entries of a checkpoint. Verify it first: this believes what it reads, but panics on nothing.
pub(crate) fn read_checkpoint<E: From<CheckpointError>>(
    path: &Path,
    store_id: StoreId,
    mut visit: impl FnMut(Entry<'_>) -> Result<(), E>,
) -> Result<Head, E> {
    let (header, body) = open_checkpoint(path, store_id)?;
    let damaged = |what| CheckpointError::Damaged { path: path.to_owned(), what };
    let mut body = BodyReader { body: BufReader::with_capacity(256 << 10, body), left: header.body_bytes };
    let (mut name, mut owner, mut value) = (Vec::new(), Vec::new(), Vec::new());
    while body.left > 0 {
        let cut = |_| damaged("an entry is cut off");
        let text = |name| std::str::from_utf8(name).map_err(|_| damaged("a name is not UTF-8"));
        match body.array::<1>().map_err(cut)? {
            [tag @ (1 | 4)] => {
                let [kind] = body.array().map_err(cut)?;
                let kind = Kind::ALL.into_iter().find(|known| *known as u8 == kind);
                let kind = kind.ok_or_else(|| damaged("an unknown kind"))?;
                body.field(&mut name).map_err(cut)?;
                let changed_lsn = Lsn(u64::from_le_bytes(body.array().map_err(cut)?));
                owner.clear();
                if tag == 4 {
                    body.field(&mut owner).map_err(cut)?;
                }
                body.field(&mut value).map_err(cut)?;
                let upcast = upcast_resource(&value).map_err(|_| damaged("a resource that cannot be decoded"))?;
                let encoded = upcast.as_deref().unwrap_or(&value);
                visit(Entry::Resource { kind, name: text(&name)?, changed_lsn, owner: text(&owner)?, encoded })?;
            }
            [2] => {
                body.field(&mut name).map_err(cut)?;
                body.field(&mut value).map_err(cut)?;
                visit(Entry::Source { name: text(&name)?, value: &value })?;
            }
            [3] => {
                body.field(&mut name).map_err(cut)?;
                let first_version = u64::from_le_bytes(body.array().map_err(cut)?);
                body.field(&mut value).map_err(cut)?;
                visit(Entry::Receipts { source: text(&name)?, first_version, page: &value })?;
            }
            _ => return Err(damaged("an unknown entry").into()),
        }
    }
    Ok(header.head)
}

type Body = zstd::stream::read::Decoder<'static, BufReader<File>>;

fn open_checkpoint(path: &Path, store_id: StoreId) -> Result<(CheckpointHeader, Body), CheckpointError> {
    let failed = |source| CheckpointError::Io { action: "read", path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact(&mut bytes)
        .map_err(|_| CheckpointError::Damaged { path: path.to_owned(), what: "it is too short" })?;
    let header = CheckpointHeader::decode(&bytes, path)?;
    if header.store_id != store_id {
        return Err(CheckpointError::Foreign { path: path.to_owned(), found: header.store_id, expected: store_id });
    }
    if lsn_of_path(path).is_some_and(|lsn| lsn != header.head.lsn) {
        return Err(CheckpointError::Damaged {
            path: path.to_owned(),
            what: "it is of another record than its name says",
        });
    }
    let body = zstd::stream::read::Decoder::new(file).map_err(failed)?;
    Ok((header, body))
}

impl CheckpointHeader {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&RESOURCE_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.store_id.0);
        bytes.extend_from_slice(&self.head.lsn.0.to_le_bytes());
        bytes.extend_from_slice(&self.head.hash.0);
        bytes.extend_from_slice(&self.resources.to_le_bytes());
        bytes.extend_from_slice(&self.body_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.body_hash);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.try_into().expect("the fields add up to the header")
    }

    fn decode(bytes: &[u8; HEADER_BYTES], path: &Path) -> Result<Self, CheckpointError> {
        let damaged = || CheckpointError::Damaged { path: path.to_owned(), what: "its header" };
        let mut rest = &bytes[..];
        if take::<8>(&mut rest) != MAGIC {
            return Err(damaged());
        }
        let format = u32::from_le_bytes(take(&mut rest));
        let schema = u32::from_le_bytes(take(&mut rest));
        if format > FORMAT_VERSION || schema > SCHEMA_VERSION {
            return Err(CheckpointError::Newer { path: path.to_owned(), format, schema });
        }
        let store_id = StoreId(take(&mut rest));
        let head = Head { lsn: Lsn(u64::from_le_bytes(take(&mut rest))), hash: RecordHash(take(&mut rest)) };
        let resources = u64::from_le_bytes(take(&mut rest));
        let body_bytes = u64::from_le_bytes(take(&mut rest));
        let body_hash = take(&mut rest);
        let checksum = u32::from_le_bytes(take(&mut rest));
        if checksum != crc32c::crc32c(&bytes[..CHECKED_BYTES]) || head.lsn > Lsn::LAST {
            return Err(damaged());
        }
        Ok(Self { store_id, head, resources, body_bytes, body_hash })
    }
}

/// Compresses entries behind a place that is left for the header.
struct BodyWriter<'a> {
    encoder: zstd::stream::write::Encoder<'static, BufWriter<&'a File>>,
    hasher: blake3::Hasher,
    bytes: u64,
    resources: u64,
    entry: Vec<u8>,
}

impl<'a> BodyWriter<'a> {
    fn new(file: &'a File) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(256 << 10, file);
        out.write_all(&[0; HEADER_BYTES])?;
        let encoder = zstd::stream::write::Encoder::new(out, COMPRESSION_LEVEL)?;
        Ok(Self { encoder, hasher: blake3::Hasher::new(), bytes: 0, resources: 0, entry: Vec::new() })
    }

    fn push(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let bytes = &mut self.entry;
        bytes.clear();
        match entry {
            Entry::Resource { kind, name, changed_lsn, owner, encoded } => {
                bytes.extend_from_slice(&[4, *kind as u8]);
                push_field(bytes, name.as_bytes());
                bytes.extend_from_slice(&changed_lsn.0.to_le_bytes());
                push_field(bytes, owner.as_bytes());
                push_field(bytes, encoded);
                self.resources += 1;
            }
            Entry::Source { name, value } => {
                bytes.push(2);
                push_field(bytes, name.as_bytes());
                push_field(bytes, value);
            }
            Entry::Receipts { source, first_version, page } => {
                bytes.push(3);
                push_field(bytes, source.as_bytes());
                bytes.extend_from_slice(&first_version.to_le_bytes());
                push_field(bytes, page);
            }
        }
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        self.encoder.write_all(bytes)
    }

    fn finish(self, store_id: StoreId, head: Head) -> io::Result<CheckpointHeader> {
        self.encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
        let body_hash = *self.hasher.finalize().as_bytes();
        Ok(CheckpointHeader { store_id, head, resources: self.resources, body_bytes: self.bytes, body_hash })
    }
}

struct BodyReader<R> {
    body: R,
    /// How much of the body is left, by the header.
    left: u64,
}

impl<R: Read> BodyReader<R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.left = self.left.checked_sub(N as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.body.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a field into `into`, growing it only as far as there are bytes.
    fn field(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        let bytes = u32::from_le_bytes(self.array()?);
        self.left = self.left.checked_sub(u64::from(bytes)).ok_or(io::ErrorKind::UnexpectedEof)?;
        if bytes > FIELD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        into.clear();
        let read = (&mut self.body).take(u64::from(bytes)).read_to_end(into)?;
        if read < bytes as usize { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

fn push_field(bytes: &mut Vec<u8>, field: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(field.len()).expect("fields are below 4 GiB").to_le_bytes());
    bytes.extend_from_slice(field);
}

fn path_of(dir: &Path, lsn: Lsn) -> PathBuf {
    dir.join(format!("{:020}.{SUFFIX}", lsn.0))
}

fn lsn_of_path(path: &Path) -> Option<Lsn> {
    if path.extension()? != SUFFIX {
        return None;
    }
    let stem = path.file_stem()?.to_str()?;
    let digits = stem.len() == 20 && stem.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| stem.parse().ok().map(Lsn)).flatten().filter(|lsn| *lsn <= Lsn::LAST)
}

/// Takes the next field of a header whose fields add up to its length.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (field, tail) = rest.split_first_chunk::<N>().expect("fields fit into the fixed header");
    *rest = tail;
    *field
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: StoreId = StoreId([3; 16]);

    fn sample(dir: &Path) -> Checkpoint {
        let head = Head { lsn: Lsn(77), hash: RecordHash([9; 32]) };
        write_checkpoint::<CheckpointError>(dir, STORE, head, &|| {}, |push| {
            for number in 0..200u64 {
                let name = format!("shop/svc-{number:03}");
                let encoded = vec![7; 300];
                push(Entry::Resource {
                    kind: Kind::Service,
                    name: &name,
                    changed_lsn: Lsn(number),
                    owner: "cp",
                    encoded: &encoded,
                })?;
            }
            push(Entry::Source { name: "cp", value: &[1; 33] })?;
            push(Entry::Receipts { source: "cp", first_version: 12, page: &[2; 56] })
        })
        .unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = sample(dir.path());
        assert_eq!(list_checkpoints(dir.path()).unwrap(), std::slice::from_ref(&checkpoint));
        let header = verify_checkpoint(&checkpoint.path, STORE).unwrap();
        assert_eq!((header.head.lsn, header.resources), (Lsn(77), 200));
        let mut seen = [0; 3];
        let head = read_checkpoint::<CheckpointError>(&checkpoint.path, STORE, |entry| {
            match entry {
                Entry::Resource { kind, name, changed_lsn, owner, encoded } => {
                    assert_eq!(owner, "cp");
                    assert_eq!((kind, name), (Kind::Service, &*format!("shop/svc-{:03}", changed_lsn.0)));
                    assert_eq!(encoded, [7; 300]);
                    seen[0] += 1;
                }
                Entry::Source { name, value } => {
                    assert_eq!((name, value), ("cp", &[1; 33][..]));
                    seen[1] += 1;
                }
                Entry::Receipts { source, first_version, page } => {
                    assert_eq!((source, first_version, page), ("cp", 12, &[2; 56][..]));
                    seen[2] += 1;
                }
            }
            Ok(())
        });
        assert_eq!((head.unwrap().lsn, seen), (Lsn(77), [200, 1, 1]));
    }

    #[test]
    fn any_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = sample(dir.path());
        let bytes = fs::read(&checkpoint.path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x20;
            fs::write(&checkpoint.path, damaged).unwrap();
            // zstd has a bit or two in its frame header that mean nothing: the contents are right all the same then.
            if verify_checkpoint(&checkpoint.path, STORE).is_ok() {
                let mut seen = 0;
                read_checkpoint::<CheckpointError>(&checkpoint.path, STORE, |_| {
                    seen += 1;
                    Ok(())
                })
                .unwrap();
                assert_eq!(seen, 202);
            }
        }
        for length in [0, 50, 124, bytes.len() - 1] {
            fs::write(&checkpoint.path, &bytes[..length]).unwrap();
            assert!(verify_checkpoint(&checkpoint.path, STORE).is_err(), "{length} bytes");
        }
        fs::write(&checkpoint.path, &bytes).unwrap();
        assert!(matches!(verify_checkpoint(&checkpoint.path, StoreId([4; 16])), Err(CheckpointError::Foreign { .. })));
    }
}
