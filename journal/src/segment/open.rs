//! From the files on a disk to a log that can be appended to: checks headers, finds the end, cuts what was never acknowledged.
//!
//! Only the last segment is read whole, so opening takes as long with a million records as with ten. Closed segments are
//! checked by their successors' headers (length, chain of hashes and numbers); damage inside one shows when it is read.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage_schema::codec::{access_link, hash_record};
use storage_schema::id::{Lsn, StoreId};

use super::catalogue::{Catalogue, Segment, segment_of_path, segment_path};
use super::frame::{FRAME_HEADER_BYTES, NoFrame};
use super::header::{BadHeader, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::recovery::{Damage, Finding, Stop, Verdict, classify};
use super::scan::{Frame, Scanner, Step};
use super::write::{SegmentWriter, UNNAMED_SUFFIX, name_segment, prepare_segment};
use crate::clock::Clock;
use crate::disk::{Disk, DiskFile};
use crate::durable::Head;
use crate::error::OpenError;

/// What a log needs to be opened.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// The directory of the segment files.
    pub dir: PathBuf,
    /// Which journal it should be.
    pub store_id: StoreId,
    /// Size of the first segment, if there is none.
    pub segment_bytes: u64,
    /// The clock that stamps a new segment.
    pub clock: Arc<dyn Clock>,
}

/// An open log.
#[derive(Debug)]
pub struct OpenLog {
    /// Its segments.
    pub catalogue: Arc<Catalogue>,
    /// Its writer.
    pub writer: SegmentWriter,
    /// Its last record.
    pub head: Head,
    /// The header of its last segment.
    pub header: SegmentHeader,
    /// The last segment's preallocated length.
    pub segment_bytes: u64,
    /// Whether there was none before.
    pub created: bool,
    /// What its end looked like.
    pub finding: Finding,
    /// How many bytes were cut.
    pub cut_bytes: u64,
}

/// The store id of the newest segment in `dir`; `None` if there is no readable one.
pub fn store_id_of_segments(disk: &dyn Disk, dir: &Path) -> io::Result<Option<StoreId>> {
    let Some(newest) = list_segments(disk, dir)?.pop() else { return Ok(None) };
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    disk.open_read(&segment_path(dir, newest))?.read_at(&mut bytes, 0)?;
    Ok(SegmentHeader::decode(&bytes).ok().map(|header| header.store_id))
}

/// Opens the log, creating it if there is none.
pub fn open_log(config: &LogConfig) -> Result<OpenLog, OpenError> {
    let LogConfig { disk, dir, store_id, .. } = config;
    remove_unnamed(&**disk, dir).map_err(io_at("clean up", dir))?;
    let Some(Found { segments, header, spare }) = find_segments(&**disk, dir, *store_id)? else {
        return create_log(config);
    };
    for segment in spare {
        let path = &segment.path;
        let file = disk.open(path).map_err(io_at("open", path))?;
        file.set_len(segment.end()).map_err(io_at("trim", path))?;
    }
    let segment = segments.last().expect("there is a last segment");
    let path = &segment.path;
    let file: Arc<dyn DiskFile> = disk.open(path).map_err(io_at("open", path))?.into();
    let mut tail = find_tail(&file, segment, &header).map_err(|error| error.at(path))?;
    if let Some(damage) = tail.damage.take() {
        return Err(TailError::Damage(damage).at(path));
    }
    let cut_bytes = settle(&*file, &tail).map_err(io_at("recover", path))?;
    segment.set_end(tail.end);
    let segment_bytes = file.len().map_err(io_at("measure", path))?;

    let catalogue = Arc::new(Catalogue::new(segments));
    let writer = SegmentWriter::new(Arc::clone(disk), dir.clone(), Arc::clone(&catalogue), file);
    let Tail { head, finding, .. } = tail;
    Ok(OpenLog { catalogue, writer, head, header, segment_bytes, created: false, finding, cut_bytes })
}

/// Opens the log for reading alone: it changes nothing on the disk. The records of the last group count as durable, though the
/// process that wrote them may have ended before its sync. Damage in the last segment is told, and is the end of what is read.
/// `None` if there is no log.
pub fn read_log(disk: &dyn Disk, dir: &Path, store_id: StoreId) -> Result<Option<ReadLog>, OpenError> {
    let Some(Found { segments, header, .. }) = find_segments(disk, dir, store_id)? else { return Ok(None) };
    let segment = segments.last().expect("there is a last segment");
    let path = &segment.path;
    let file: Arc<dyn DiskFile> = disk.open_read(path).map_err(io_at("open", path))?.into();
    let tail = find_tail(&file, segment, &header).map_err(|error| error.at(path))?;
    segment.set_end(tail.end);
    let damage = tail.damage.map(|damage| OpenError::Damaged { path: path.clone(), damage });
    Ok(Some(ReadLog { catalogue: Arc::new(Catalogue::new(segments)), head: tail.head, damage }))
}

/// A log that is only read.
#[derive(Debug)]
pub struct ReadLog {
    /// Its segments.
    pub catalogue: Arc<Catalogue>,
    /// Its last record, or the last one before the damage.
    pub head: Head,
    /// What is wrong behind it.
    pub damage: Option<OpenError>,
}

/// The segments of a log, their headers checked against each other.
struct Found {
    /// Oldest first, at least one; all but the last know where they end.
    segments: Vec<Arc<Segment>>,
    /// The header of the last.
    header: SegmentHeader,
    /// Those that are longer than they need to be.
    spare: Vec<Arc<Segment>>,
}

fn find_segments(disk: &dyn Disk, dir: &Path, store_id: StoreId) -> Result<Option<Found>, OpenError> {
    let (mut segments, mut spare): (Vec<Arc<Segment>>, _) = (Vec::new(), Vec::new());
    let mut header = None;
    for first_lsn in list_segments(disk, dir).map_err(io_at("list", dir))? {
        let path = segment_path(dir, first_lsn);
        let next = read_header(disk, &path, first_lsn, store_id)?;
        if let Some(before) = segments.last()
            && check_closed(disk, before, &next)?
        {
            spare.push(Arc::clone(before));
        }
        let end = SEGMENT_HEADER_BYTES as u64;
        segments.push(Arc::new(Segment::new(path, first_lsn, next.previous_hash, next.created_wall_ns, end)));
        header = Some(next);
    }
    Ok(header.map(|header| Found { segments, header, spare }))
}

fn create_log(config: &LogConfig) -> Result<OpenLog, OpenError> {
    let LogConfig { disk, dir, store_id, segment_bytes, clock } = config;
    let header = SegmentHeader {
        store_id: *store_id,
        first_lsn: Lsn::FIRST,
        previous_hash: Head::EMPTY.hash,
        previous_first: Lsn::ZERO,
        previous_end: 0,
        created_wall_ns: clock.now().wall_ns,
    };
    let (segment, file) = prepare_segment(&**disk, dir, Lsn::FIRST, *segment_bytes)
        .and_then(|prepared| name_segment(&**disk, dir, &header, prepared))
        .map_err(io_at("create the first segment in", dir))?;
    let catalogue = Arc::new(Catalogue::new(vec![Arc::new(segment)]));
    let writer = SegmentWriter::new(Arc::clone(disk), dir.clone(), Arc::clone(&catalogue), file);
    Ok(OpenLog {
        catalogue,
        writer,
        head: Head::EMPTY,
        header,
        segment_bytes: *segment_bytes,
        created: true,
        finding: Finding::CleanEnd,
        cut_bytes: 0,
    })
}

/// The segments in `dir` by their first LSN, ascending.
pub fn list_segments(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<Lsn>> {
    let mut found: Vec<Lsn> = disk.list(dir)?.iter().filter_map(|path| segment_of_path(path)).collect();
    found.sort_unstable();
    Ok(found)
}

fn remove_unnamed(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    for path in disk.list(dir)? {
        if path.extension().is_some_and(|suffix| suffix == UNNAMED_SUFFIX) {
            disk.remove(&path)?;
        }
    }
    Ok(())
}

/// Reads the header of the segment at `path`, which must be the one its name says, of this store.
pub fn read_header(
    disk: &dyn Disk,
    path: &Path,
    first_lsn: Lsn,
    store_id: StoreId,
) -> Result<SegmentHeader, OpenError> {
    let damaged = |damage| OpenError::Damaged { path: path.to_owned(), damage };
    let file = disk.open_read(path).map_err(io_at("open", path))?;
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    file.read_at(&mut bytes, 0).map_err(io_at("read", path))?;
    let header = SegmentHeader::decode(&bytes).map_err(|bad| {
        damaged(match bad {
            BadHeader::Damaged => Damage::Header { first_lsn },
            BadHeader::Newer { found } => Damage::NewerFormat { found },
        })
    })?;
    if header.store_id != store_id {
        return Err(damaged(Damage::Foreign { found: header.store_id, expected: store_id }));
    }
    if header.first_lsn != first_lsn {
        return Err(damaged(Damage::Header { first_lsn }));
    }
    Ok(header)
}

/// Checks a closed segment against its successor's header and notes where it ends. Whether it has spare bytes.
fn check_closed(disk: &dyn Disk, segment: &Segment, successor: &SegmentHeader) -> Result<bool, OpenError> {
    let path = &segment.path;
    let damaged = |damage| Err(OpenError::Damaged { path: path.clone(), damage });
    if successor.previous_first != segment.first_lsn {
        return damaged(Damage::Gap { expected: successor.previous_first, found: successor.first_lsn });
    }
    let file = disk.open_read(path).map_err(io_at("open", path))?;
    let bytes = file.len().map_err(io_at("measure", path))?;
    let end = successor.previous_end;
    if bytes < end || end < SEGMENT_HEADER_BYTES as u64 {
        return damaged(Damage::Truncated { first_lsn: segment.first_lsn, bytes, bytes_expected: end });
    }
    segment.set_end(end);
    Ok(bytes > end)
}

/// The end of the last segment.
#[derive(Debug)]
struct Tail {
    head: Head,
    /// Where the next frame goes.
    end: u64,
    /// Frames of the last group: written, but perhaps not yet synced when the last writer ended.
    unsettled: Vec<Frame>,
    finding: Finding,
    /// Damage at the end, which is none for who only reads what is before it.
    damage: Option<Damage>,
    file_bytes: u64,
}

/// What can go wrong while looking for it.
enum TailError {
    Io(io::Error),
    Damage(Damage),
    Undecodable(OpenError),
}

impl TailError {
    fn at(self, path: &Path) -> OpenError {
        match self {
            Self::Io(source) => OpenError::Io { action: "read", path: path.to_owned(), source },
            Self::Damage(damage) => OpenError::Damaged { path: path.to_owned(), damage },
            Self::Undecodable(error) => error,
        }
    }
}

impl From<io::Error> for TailError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn find_tail(file: &Arc<dyn DiskFile>, segment: &Segment, header: &SegmentHeader) -> Result<Tail, TailError> {
    let file_bytes = file.len()?;
    let start = SEGMENT_HEADER_BYTES as u64;
    let mut scanner = Scanner::new(Arc::clone(file), header.store_id, start, file_bytes);
    let mut expected = header.first_lsn;
    let mut unsettled: Vec<Frame> = Vec::new();
    let stop = loop {
        match scanner.step()? {
            Step::Frame(frame) if frame.lsn == expected => {
                segment.remember(frame.lsn, frame.offset);
                // A frame of a later group proves that the groups before it were synced.
                if unsettled.first().is_some_and(|first| first.lsn < frame.group_first) {
                    unsettled.clear();
                }
                unsettled.push(frame);
                expected = expected.next();
            }
            Step::Frame(frame) => break Stop::Unexpected(frame.lsn),
            Step::Stop(NoFrame::Zeros) => break Stop::Zeros,
            // Less than a header at the end of a full segment: no frame was ever begun there, unless it is not zero.
            Step::Stop(NoFrame::Short { .. }) if file_bytes - scanner.offset() < FRAME_HEADER_BYTES as u64 => {
                break Stop::Zeros;
            }
            Step::Stop(NoFrame::Short { .. } | NoFrame::Bad) => break Stop::Bad,
        }
    };
    let end = scanner.offset();
    let finding = classify(&scanner.evidence(expected, stop)?);
    let damage = (finding.verdict() == Verdict::Refuse).then(|| match stop {
        Stop::Unexpected(found) if finding == Finding::Gap => Damage::Gap { expected, found },
        _ => Damage::Record { finding, lsn: expected },
    });
    let head = check_chain(&unsettled, header)?;
    Ok(Tail { head, end, unsettled, finding, damage, file_bytes })
}

/// Checks that the frames continue each other, and the first one the segment before if it is the segment's first.
fn check_chain(frames: &[Frame], header: &SegmentHeader) -> Result<Head, TailError> {
    let mut head = Head { lsn: Lsn(header.first_lsn.0 - 1), hash: header.previous_hash };
    let mut known = frames.first().is_none_or(|first| first.lsn == header.first_lsn);
    for frame in frames {
        let link = access_link(&frame.body)
            .map_err(|source| TailError::Undecodable(OpenError::Undecodable { lsn: frame.lsn, source }))?;
        if link.lsn != frame.lsn || (known && link.previous_hash != head.hash) {
            return Err(TailError::Damage(Damage::ChainBroken { lsn: frame.lsn }));
        }
        head = Head { lsn: frame.lsn, hash: hash_record(&frame.body) };
        known = true;
    }
    Ok(head)
}

/// Makes what was found the truth: the last group is written again and synced, as the process that wrote it may have ended
/// before its sync, or have seen it fail; what is behind it becomes zeros. Returns how many bytes were cut.
fn settle(file: &dyn DiskFile, tail: &Tail) -> io::Result<u64> {
    if let Some(first) = tail.unsettled.first() {
        let mut group = vec![0; usize::try_from(tail.end - first.offset).map_err(|_| io::ErrorKind::OutOfMemory)?];
        if file.read_at(&mut group, first.offset)? < group.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(&group, first.offset)?;
    }
    let cut_bytes = match tail.finding.verdict() {
        Verdict::Cut => zero_behind(file, tail.end, tail.file_bytes)?,
        Verdict::Accept | Verdict::Refuse => 0,
    };
    file.sync_data()?;
    Ok(cut_bytes)
}

/// Overwrites what is not zero between `end` and `limit`; returns how far it reached.
fn zero_behind(file: &dyn DiskFile, end: u64, limit: u64) -> io::Result<u64> {
    const PIECE_BYTES: usize = 64 << 10;
    let (mut piece, zeros) = (vec![0; PIECE_BYTES], vec![0; PIECE_BYTES]);
    let (mut offset, mut reached) = (end, end);
    while offset < limit {
        let wanted = usize::try_from(limit - offset).unwrap_or(usize::MAX).min(PIECE_BYTES);
        let read = file.read_at(&mut piece[..wanted], offset)?;
        if let Some(last) = piece[..read].iter().rposition(|byte| *byte != 0) {
            reached = offset + last as u64 + 1;
            file.write_at(&zeros[..read], offset)?;
        }
        if read < wanted {
            break;
        }
        offset += read as u64;
    }
    Ok(reached - end)
}

fn io_at<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OpenError + use<'a> {
    move |source| OpenError::Io { action, path: path.to_owned(), source }
}
