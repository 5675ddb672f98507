//! Walks the whole log and says what can be trusted; cuts it there, keeping what is cut.
//!
//! Opening reads the last segment and the headers of the others. This reads every record of every segment: its checksum,
//! its number, and the chain of hashes, so that an altered, missing, repeated, reordered or truncated record is found and named.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use storage_schema::codec::{access_link, hash_record};
use storage_schema::id::{Lsn, RecordHash, StoreId};

use crate::disk::{Disk, DiskFile, RealDisk};
use crate::error::OpenError;
use crate::lock::{lock_state_dir, read_identity};
use crate::segment::catalogue::segment_path;
use crate::segment::frame::{FRAME_HEADER_BYTES, NoFrame};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::open::{list_segments, read_header, store_id_of_segments};
use crate::segment::recovery::{Damage, Finding, Stop, Verdict, classify};
use crate::segment::scan::{Scanner, Step};

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Bytes of log that were read.
    pub bytes: u64,
    /// Bytes of log that there are.
    pub bytes_total: u64,
    /// The last record that was read.
    pub lsn: Lsn,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The segment file.
    pub path: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What, with the LSN.
    pub damage: Damage,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// Which journal it is.
    pub store_id: StoreId,
    /// The oldest record.
    pub oldest_lsn: Lsn,
    /// Everything from `oldest_lsn` up to this record is as it was written.
    pub trusted_lsn: Lsn,
    /// Good records, those behind damage included.
    pub records: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// What the end of the log looks like: a torn write is no damage, as it was never acknowledged.
    pub end: Finding,
    /// Everything that is wrong, in the order of the log.
    pub wrong: Vec<Wrong>,
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepairReport {
    /// The last record that is left.
    pub kept_lsn: Lsn,
    /// The first record that is gone, if anything was cut.
    pub cut_lsn: Option<Lsn>,
    /// Where the cut part is: segment files as they were.
    pub cut_dir: Option<PathBuf>,
    /// Good records among what was cut.
    pub good_records_cut: u64,
}

/// Verifies the log of a state directory that no process has open.
pub fn verify(state_dir: &Path, progress: impl FnMut(VerifyProgress)) -> Result<VerifyReport, OpenError> {
    let _lock = lock_state_dir(state_dir)?;
    verify_locked(state_dir, progress)
}

/// Cuts the log of a state directory behind the last record that can be trusted. What is cut is moved to
/// `<state dir>/cut/<first LSN that is gone>/`. A log that is whole stays as it is; one of which not even the first record can
/// be trusted is refused.
pub fn repair(state_dir: &Path, progress: impl FnMut(VerifyProgress)) -> Result<RepairReport, OpenError> {
    let _lock = lock_state_dir(state_dir)?;
    let report = verify_locked(state_dir, progress)?;
    let kept_lsn = report.trusted_lsn;
    let Some(first) = report.wrong.first() else {
        return Ok(RepairReport { kept_lsn, cut_lsn: None, cut_dir: None, good_records_cut: 0 });
    };
    if kept_lsn < report.oldest_lsn {
        // Nothing would be left to go on from.
        return Err(OpenError::Damaged { path: first.path.clone(), damage: first.damage });
    }
    let cut_lsn = kept_lsn.next();
    let cut_dir = state_dir.join("cut").join(format!("{:020}", cut_lsn.0));
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action, path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&cut_dir).map_err(failed("create", &cut_dir))?;
    let dir = state_dir.join("journal");
    let segments = list_segments(&RealDisk, &dir).map_err(failed("list", &dir))?;
    // The newest goes first: a repair that is interrupted leaves a log that is damaged in the same place.
    for first_lsn in segments.iter().rev() {
        let path = segment_path(&dir, *first_lsn);
        let aside = segment_path(&cut_dir, *first_lsn);
        // A segment whose first record is trusted is cut within.
        if *first_lsn <= kept_lsn && path <= first.path {
            if path == first.path {
                fs::copy(&path, &aside).map_err(failed("copy", &path))?;
                fs::File::open(&aside).and_then(|file| file.sync_all()).map_err(failed("fsync", &aside))?;
                cut_file(&path, first.offset).map_err(failed("cut", &path))?;
            }
            break;
        }
        fs::rename(&path, &aside).map_err(failed("move away", &path))?;
        RealDisk.sync_dir(&cut_dir).map_err(failed("fsync", &cut_dir))?;
    }
    RealDisk.sync_dir(&cut_dir).map_err(failed("fsync", &cut_dir))?;
    RealDisk.sync_dir(&dir).map_err(failed("fsync", &dir))?;
    let trusted = kept_lsn.0.saturating_sub(report.oldest_lsn.0.saturating_sub(1));
    let good_records_cut = report.records.saturating_sub(trusted);
    Ok(RepairReport { kept_lsn, cut_lsn: Some(cut_lsn), cut_dir: Some(cut_dir), good_records_cut })
}

fn cut_file(path: &Path, offset: u64) -> io::Result<()> {
    let file = RealDisk.open(path)?;
    file.set_len(offset)?;
    file.sync_data()
}

fn verify_locked(state_dir: &Path, progress: impl FnMut(VerifyProgress)) -> Result<VerifyReport, OpenError> {
    let dir = state_dir.join("journal");
    let failed = |source| OpenError::Io { action: "list", path: dir.clone(), source };
    let store_id = match read_identity(state_dir)? {
        Some(store_id) => store_id,
        None => store_id_of_segments(&RealDisk, &dir)
            .map_err(failed)?
            .ok_or_else(|| OpenError::NotOurs { path: state_dir.to_owned() })?,
    };
    verify_log(&RealDisk, &dir, store_id, None, progress)
}

/// Verifies the segments in `dir`; of a log that is being written to, up to record `durable_lsn`.
pub(crate) fn verify_log(
    disk: &dyn Disk,
    dir: &Path,
    store_id: StoreId,
    durable_lsn: Option<Lsn>,
    progress: impl FnMut(VerifyProgress),
) -> Result<VerifyReport, OpenError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action, path, source }
    };
    let segments = list_segments(disk, dir).map_err(failed("list", dir))?;
    let mut walk = Walk {
        store_id,
        durable_lsn,
        expected: segments.first().copied().unwrap_or(Lsn::FIRST),
        previous_hash: None,
        trusted_lsn: None,
        records: 0,
        bytes: 0,
        bytes_total: 0,
        end: Finding::CleanEnd,
        wrong: Vec::new(),
        progress,
    };
    for first_lsn in &segments {
        let path = segment_path(dir, *first_lsn);
        walk.bytes_total += disk.open_read(&path).and_then(|file| file.len()).map_err(failed("measure", &path))?;
    }
    for (number, first_lsn) in segments.iter().enumerate() {
        if durable_lsn.is_some_and(|durable_lsn| *first_lsn > durable_lsn) {
            break;
        }
        let path = segment_path(dir, *first_lsn);
        let header = match read_header(disk, &path, *first_lsn, store_id) {
            Ok(header) => header,
            Err(OpenError::Damaged { path, damage }) => {
                walk.note(&path, 0, damage);
                continue;
            }
            // Retention was quicker.
            Err(_) if durable_lsn.is_some() && disk.open_read(&path).is_err() => continue,
            Err(error) => return Err(error),
        };
        let successor = segments
            .get(number + 1)
            .and_then(|next| read_header(disk, &segment_path(dir, *next), *next, store_id).ok());
        let file: Arc<dyn DiskFile> = disk.open_read(&path).map_err(failed("open", &path))?.into();
        let before = number.checked_sub(1).map(|before| segments[before]);
        walk.segment(&path, &file, &header, before, successor.as_ref(), number + 1 == segments.len())
            .map_err(failed("read", &path))?;
    }
    let oldest_lsn = segments.first().copied().unwrap_or(Lsn::FIRST);
    let last = Lsn(walk.expected.0 - 1);
    let trusted_lsn = walk.trusted_lsn.unwrap_or(last);
    let Walk { records, bytes, end, wrong, .. } = walk;
    Ok(VerifyReport { store_id, oldest_lsn, trusted_lsn, records, bytes, end, wrong })
}

struct Walk<P> {
    store_id: StoreId,
    durable_lsn: Option<Lsn>,
    expected: Lsn,
    /// The hash of the record before `expected`; `None` behind damage.
    previous_hash: Option<RecordHash>,
    trusted_lsn: Option<Lsn>,
    records: u64,
    bytes: u64,
    bytes_total: u64,
    end: Finding,
    wrong: Vec<Wrong>,
    progress: P,
}

impl<P: FnMut(VerifyProgress)> Walk<P> {
    fn note(&mut self, path: &Path, offset: u64, damage: Damage) {
        self.trusted_lsn.get_or_insert(Lsn(self.expected.0 - 1));
        self.previous_hash = None;
        self.wrong.push(Wrong { path: path.to_owned(), offset, damage });
    }

    fn segment(
        &mut self,
        path: &Path,
        file: &Arc<dyn DiskFile>,
        header: &SegmentHeader,
        before: Option<Lsn>,
        successor: Option<&SegmentHeader>,
        last: bool,
    ) -> io::Result<()> {
        if header.first_lsn != self.expected {
            let (expected, found) = (self.expected, header.first_lsn);
            self.note(path, 0, Damage::Gap { expected, found });
            self.expected = found;
        } else if before.is_some_and(|before| before != header.previous_first) {
            self.note(path, 0, Damage::Gap { expected: header.previous_first, found: header.first_lsn });
        } else if self.previous_hash.is_some_and(|hash| hash != header.previous_hash) {
            self.note(path, 0, Damage::ChainBroken { lsn: header.first_lsn });
        }
        self.previous_hash = Some(header.previous_hash);
        let bytes = file.len()?;
        let end = successor.filter(|next| next.previous_first == header.first_lsn).map(|next| next.previous_end);
        let limit = end.unwrap_or(bytes).min(bytes);
        let before = self.bytes;
        let mut scanner = Scanner::new(Arc::clone(file), self.store_id, SEGMENT_HEADER_BYTES as u64, limit);
        loop {
            if self.durable_lsn.is_some_and(|durable_lsn| self.expected > durable_lsn) {
                break;
            }
            let offset = scanner.offset();
            let stop = match scanner.step()? {
                Step::Frame(frame) if frame.lsn == self.expected => {
                    self.record(path, offset, &frame.body);
                    self.bytes = before + scanner.offset();
                    continue;
                }
                Step::Frame(frame) => {
                    let (expected, found) = (self.expected, frame.lsn);
                    if found > expected {
                        self.note(path, offset, Damage::Gap { expected, found });
                        self.expected = found;
                        self.record(path, offset, &frame.body);
                    } else {
                        self.note(path, offset, Damage::Record { finding: Finding::RepeatedRecord, lsn: found });
                    }
                    continue;
                }
                Step::Stop(NoFrame::Short { .. }) if offset >= limit => break,
                Step::Stop(NoFrame::Zeros) => Stop::Zeros,
                Step::Stop(NoFrame::Short { .. }) if last && limit - offset < FRAME_HEADER_BYTES as u64 => Stop::Zeros,
                Step::Stop(NoFrame::Short { .. } | NoFrame::Bad) => Stop::Bad,
            };
            if !self.resume(path, &mut scanner, stop, last)? {
                break;
            }
        }
        if let Some(bytes_expected) = end.filter(|end| bytes < *end) {
            let first_lsn = header.first_lsn;
            self.note(path, limit, Damage::Truncated { first_lsn, bytes, bytes_expected });
        }
        self.bytes = before + bytes;
        (self.progress)(VerifyProgress {
            bytes: self.bytes,
            bytes_total: self.bytes_total,
            lsn: Lsn(self.expected.0 - 1),
        });
        Ok(())
    }

    /// At bytes that are no frame: notes what that means, and goes on behind them. Whether there is anything behind them.
    fn resume(&mut self, path: &Path, scanner: &mut Scanner, stop: Stop, last: bool) -> io::Result<bool> {
        let (offset, lsn) = (scanner.offset(), self.expected);
        if last {
            let finding = classify(&scanner.fork().evidence(lsn, stop)?);
            if finding.verdict() != Verdict::Refuse {
                self.end = finding;
                return Ok(false);
            }
            self.note(path, offset, Damage::Record { finding, lsn });
        } else {
            let finding = if stop == Stop::Zeros { Finding::ZeroedRecord } else { Finding::DamagedRecord };
            self.note(path, offset, Damage::Record { finding, lsn });
        }
        let Some(found) = scanner.seek_frame(lsn)? else { return Ok(false) };
        // What is between is part of the same damage; the records behind it are looked at for themselves.
        self.expected = found;
        Ok(true)
    }

    fn record(&mut self, path: &Path, offset: u64, body: &[u8]) {
        let lsn = self.expected;
        match access_link(body) {
            Ok(link) => {
                let chained = self.previous_hash.is_none_or(|hash| hash == link.previous_hash);
                if !chained || link.lsn != lsn {
                    self.note(path, offset, Damage::ChainBroken { lsn });
                }
            }
            Err(_) => self.note(path, offset, Damage::Record { finding: Finding::DamagedRecord, lsn }),
        }
        self.previous_hash = Some(hash_record(body));
        self.expected = lsn.next();
        self.records += 1;
        if self.records.is_multiple_of(4096) {
            (self.progress)(VerifyProgress { bytes: self.bytes, bytes_total: self.bytes_total, lsn });
        }
    }
}
