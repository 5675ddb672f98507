//! Creates segments and writes groups. It knows no threads and no queue: `group` in, durable group out.
//!
//! A new segment is made under a temporary name, zero-filled, given its header, fsynced, renamed, and the directory is
//! fsynced, all before the first group goes into it. So a file called `.seg` always had a durable header, whatever its state now.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use storage_schema::id::{Lsn, RecordHash};

use super::catalogue::{Catalogue, Segment, segment_of_path, segment_path};
use super::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::disk::{Disk, DiskFile};
use crate::error::WriteFailure;

/// Suffix of a segment that has not got its name yet. Recovery unlinks such files.
pub const UNNAMED_SUFFIX: &str = "new";

/// Zero-filling writes this much at a time, ...
const ZERO_FILL_BYTES: usize = 1 << 20;
/// ... and this much beside a writer: its own syncs wait behind each piece for less than a millisecond.
pub const PIECE_BYTES: usize = 256 << 10;

/// Records that go to the disk together.
#[derive(Debug)]
pub struct Group {
    /// Set if the group opens a segment.
    pub opens: Option<NewSegment>,
    /// The first record.
    pub first_lsn: Lsn,
    /// The last record.
    pub last_lsn: Lsn,
    /// The last record's hash.
    pub last_hash: RecordHash,
    /// How many records.
    pub records: usize,
    /// Where in the segment the group goes.
    pub offset: u64,
    /// The frames.
    pub frames: Vec<u8>,
}

/// A segment to be created.
#[derive(Clone, Copy, Debug)]
pub struct NewSegment {
    /// Its header.
    pub header: SegmentHeader,
    /// Its preallocated length.
    pub bytes: u64,
}

/// A zero-filled, synced file that waits to become a segment.
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

impl Prepared {
    /// Gives the file's space back.
    pub fn discard(self, disk: &dyn Disk) {
        // One that stays behind is unlinked when the journal is opened.
        if let Err(error) = disk.remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove a prepared segment");
        }
    }
}

/// The one who writes.
#[derive(Debug)]
pub struct SegmentWriter {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    catalogue: Arc<Catalogue>,
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
}

impl SegmentWriter {
    /// A writer that goes on in the catalogue's last segment.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, catalogue: Arc<Catalogue>, file: Arc<dyn DiskFile>) -> Self {
        let segment = catalogue.last();
        Self { disk, dir, catalogue, segment, file }
    }

    /// Writes a group and makes it durable; returns how long the sync took. Invariant: after `Ok` no power cut takes it back.
    /// After an error the writer must not be used again: what it wrote since the last good sync may be lost, whatever reads show.
    pub fn write(&mut self, group: &Group, prepared: Option<Prepared>) -> Result<Duration, WriteFailure> {
        if let Some(new) = &group.opens {
            self.open_segment(new, prepared)?;
        }
        assert_eq!(group.offset, self.segment.end(), "groups follow each other without gaps");
        let failure = |action| {
            let (lsn, path) = (group.first_lsn, self.segment.path.clone());
            move |source| WriteFailure { action, lsn, path, source }
        };
        write_frames(&*self.file, group).map_err(failure("write"))?;
        let written = Instant::now();
        sync_frames(&*self.file).map_err(failure("fdatasync"))?;
        let sync = written.elapsed();
        self.segment.remember(group.first_lsn, group.offset);
        self.segment.set_end(group.offset + group.frames.len() as u64);
        Ok(sync)
    }

    fn open_segment(&mut self, new: &NewSegment, prepared: Option<Prepared>) -> Result<(), WriteFailure> {
        let lsn = new.header.first_lsn;
        let path = segment_path(&self.dir, lsn);
        let failure = |source| WriteFailure { action: "create the segment", lsn, path: path.clone(), source };
        let prepared = match prepared.filter(|prepared| prepared.bytes == new.bytes) {
            Some(prepared) => prepared,
            None => prepare_segment(&*self.disk, &self.dir, lsn, new.bytes).map_err(failure)?,
        };
        let (segment, file) = name_segment(&*self.disk, &self.dir, &new.header, prepared).map_err(failure)?;
        // The successor's header is durable and says how long the old segment is, so its spare zeros may go at any time; if they
        // stay, opening trims them.
        let spare = self.file.set_len(self.segment.end());
        if let Err(error) = spare {
            tracing::warn!(path = %self.segment.path.display(), %error, "cannot give back a closed segment's spare bytes");
        }
        self.segment = Arc::new(segment);
        self.catalogue.push(Arc::clone(&self.segment));
        self.file = file;
        Ok(())
    }
}

/// Creates a file of `bytes` zeros that is ready to become the segment from `hint` on.
pub fn prepare_segment(disk: &dyn Disk, dir: &Path, hint: Lsn, bytes: u64) -> io::Result<Prepared> {
    prepare(disk, dir, hint, bytes, |file| zero_fill(file, 0, bytes))
}

/// The same, piece by piece: each is written when `due`, which is told its offset, returns, and is not when that says no.
pub fn prepare_segment_by_pieces(
    disk: &dyn Disk,
    dir: &Path,
    hint: Lsn,
    bytes: u64,
    mut due: impl FnMut(u64) -> bool,
) -> io::Result<Prepared> {
    prepare(disk, dir, hint, bytes, |file| {
        let zeros = vec![0; PIECE_BYTES];
        for offset in (0..bytes).step_by(PIECE_BYTES) {
            if !due(offset) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let piece = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(zeros.len());
            file.write_at(&zeros[..piece], offset)?;
            file.sync_data()?;
        }
        Ok(())
    })
}

fn prepare(
    disk: &dyn Disk,
    dir: &Path,
    hint: Lsn,
    bytes: u64,
    fill: impl FnOnce(&dyn DiskFile) -> io::Result<()>,
) -> io::Result<Prepared> {
    fail::fail_point!("journal.segment.prepare.before", |_| Err(rustix::io::Errno::NOSPC.into()));
    let path = segment_path(dir, hint).with_extension(UNNAMED_SUFFIX);
    // One that an earlier, failed attempt left behind is in the way.
    match disk.remove(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file: Arc<dyn DiskFile> = disk.create(&path)?.into();
    if let Err(error) = fill(&*file) {
        // Give the space back at once: a full disk should not stay full because of us.
        let _ = disk.remove(&path);
        return Err(error);
    }
    fail::fail_point!("journal.segment.prepare.after");
    Ok(Prepared { path, file, bytes })
}

/// Goes on after a write that failed, with what the disk really holds: everything behind the durable head is cut off, what
/// was begun and never used is removed, and a new segment is opened. Returns its writer and its preallocated length.
///
/// Invariant: nothing that was not durable when the write failed survives this, whatever of it reached the disk.
pub fn resume_log(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    catalogue: &Arc<Catalogue>,
    mut header: SegmentHeader,
    bytes: u64,
) -> io::Result<SegmentWriter> {
    let last = catalogue.last();
    for path in disk.list(dir)? {
        let unused = segment_of_path(&path).is_some_and(|first| first > last.first_lsn);
        if unused || path.extension().is_some_and(|suffix| suffix == UNNAMED_SUFFIX) {
            disk.remove(&path)?;
        }
    }
    disk.sync_dir(dir)?;
    let file: Arc<dyn DiskFile> = disk.open(&last.path)?.into();
    file.drop_cache()?;
    file.set_len(last.end())?;
    file.sync_data()?;
    if last.first_lsn == header.first_lsn {
        // It holds no record: it goes on as it is, with its zeros put back.
        zero_fill(&*file, last.end(), bytes)?;
        return Ok(SegmentWriter::new(Arc::clone(disk), dir.to_owned(), Arc::clone(catalogue), file));
    }
    header.previous_first = last.first_lsn;
    header.previous_end = last.end();
    let prepared = prepare_segment(&**disk, dir, header.first_lsn, bytes)?;
    let (segment, file) = name_segment(&**disk, dir, &header, prepared)?;
    catalogue.push(Arc::new(segment));
    Ok(SegmentWriter::new(Arc::clone(disk), dir.to_owned(), Arc::clone(catalogue), file))
}

/// Turns a prepared file into a segment: header, fsync, name, directory.
pub(super) fn name_segment(
    disk: &dyn Disk,
    dir: &Path,
    header: &SegmentHeader,
    prepared: Prepared,
) -> io::Result<(Segment, Arc<dyn DiskFile>)> {
    let path = segment_path(dir, header.first_lsn);
    prepared.file.write_at(&header.encode(), 0)?;
    fail::fail_point!("journal.segment.header.before");
    prepared.file.sync_data()?;
    fail::fail_point!("journal.segment.rename.before");
    disk.rename(&prepared.path, &path)?;
    fail::fail_point!("journal.segment.rename.after");
    disk.sync_dir(dir)?;
    fail::fail_point!("journal.segment.named.after");
    let end = SEGMENT_HEADER_BYTES as u64;
    let segment = Segment::new(path, header.first_lsn, header.previous_hash, header.created_wall_ns, end);
    Ok((segment, prepared.file))
}

/// Writes zeros rather than asking for unwritten extents: an fdatasync after a write into those has metadata to sync.
fn zero_fill(file: &dyn DiskFile, mut offset: u64, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; ZERO_FILL_BYTES];
    while offset < bytes {
        let piece = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(zeros.len());
        file.write_at(&zeros[..piece], offset)?;
        offset += piece as u64;
        // A sync for each few of them keeps the device's queue short. More would take long: each is a commit of the file system's,
        // as the file grows.
        if offset.is_multiple_of(4 * ZERO_FILL_BYTES as u64) {
            file.sync_data()?;
        }
    }
    file.sync_data()
}

fn write_frames(file: &dyn DiskFile, group: &Group) -> io::Result<()> {
    fail::fail_point!("journal.write.before", |_| Err(rustix::io::Errno::IO.into()));
    file.write_at(&group.frames, group.offset)?;
    fail::fail_point!("journal.write.after");
    Ok(())
}

fn sync_frames(file: &dyn DiskFile) -> io::Result<()> {
    fail::fail_point!("journal.fsync.before", |_| Err(rustix::io::Errno::IO.into()));
    file.sync_data()?;
    fail::fail_point!("journal.fsync.after");
    Ok(())
}
