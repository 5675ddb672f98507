//! Which segments there are: shared by the writer, which adds, retention, which removes, and readers.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use storage_schema::id::{Lsn, RecordHash};

use super::header::SEGMENT_HEADER_BYTES;

const SUFFIX: &str = "seg";
/// A place is remembered at most every so many bytes.
pub const INDEX_STEP_BYTES: u64 = 64 << 10;

/// The file of the segment that begins with `first`.
pub fn segment_path(dir: &Path, first: Lsn) -> PathBuf {
    dir.join(format!("{:020}.{SUFFIX}", first.0))
}

/// The first LSN that a segment's file name says; `None` for files that are no segments.
pub fn segment_of_path(path: &Path) -> Option<Lsn> {
    if path.extension()? != SUFFIX {
        return None;
    }
    let stem = path.file_stem()?.to_str()?;
    let digits = stem.len() == 20 && stem.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| stem.parse().ok().map(Lsn)).flatten().filter(|first| first.is_of_record())
}

/// One segment.
#[derive(Debug)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Its first record.
    pub first_lsn: Lsn,
    /// The hash of the record before it.
    pub previous_hash: RecordHash,
    /// When it was created, nanoseconds since 1970-01-01 UTC.
    pub created_wall_ns: u64,
    /// How many bytes hold durable frames and the header.
    end: AtomicU64,
    /// Some records' places, ascending.
    places: Mutex<Vec<(Lsn, u64)>>,
    /// Whether its index file was compared with its hash by this process.
    index_trusted: AtomicBool,
}

impl Segment {
    pub(crate) fn new(
        path: PathBuf,
        first_lsn: Lsn,
        previous_hash: RecordHash,
        created_wall_ns: u64,
        end: u64,
    ) -> Self {
        let places = Mutex::new(vec![(first_lsn, SEGMENT_HEADER_BYTES as u64)]);
        Self {
            path,
            first_lsn,
            previous_hash,
            created_wall_ns,
            end: AtomicU64::new(end),
            places,
            index_trusted: AtomicBool::new(false),
        }
    }

    /// How many bytes hold durable frames and the header.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(crate) fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    pub(crate) fn index_trusted(&self) -> bool {
        self.index_trusted.load(Ordering::Acquire)
    }

    pub(crate) fn trust_index(&self) {
        self.index_trusted.store(true, Ordering::Release);
    }

    /// The nearest place at or before `lsn` that is known: a record's number and where its frame begins.
    pub fn place_before(&self, lsn: Lsn) -> (Lsn, u64) {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = places.partition_point(|place| place.0 <= lsn);
        places[behind.saturating_sub(1)]
    }

    /// Remembers where a durable record's frame begins, if that is worth it.
    pub fn remember(&self, lsn: Lsn, offset: u64) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let behind = places.partition_point(|place| place.0 <= lsn);
        let far_from =
            |place: Option<&(Lsn, u64)>| place.is_none_or(|place| offset.abs_diff(place.1) >= INDEX_STEP_BYTES);
        if far_from(behind.checked_sub(1).and_then(|before| places.get(before))) && far_from(places.get(behind)) {
            places.insert(behind, (lsn, offset));
        }
    }
}

/// All segments, oldest first. There is always one.
#[derive(Debug)]
pub struct Catalogue {
    segments: RwLock<Vec<Arc<Segment>>>,
}

impl Catalogue {
    pub(crate) fn new(segments: Vec<Arc<Segment>>) -> Self {
        assert!(!segments.is_empty(), "a log has at least one segment");
        Self { segments: RwLock::new(segments) }
    }

    /// All segments, oldest first.
    pub fn all(&self) -> Vec<Arc<Segment>> {
        self.read().clone()
    }

    /// The first record that is, or will be, in the oldest segment.
    pub fn oldest_lsn(&self) -> Lsn {
        self.read()[0].first_lsn
    }

    /// The segment that is written to.
    pub fn last(&self) -> Arc<Segment> {
        Arc::clone(self.read().last().expect("a log has at least one segment"))
    }

    /// The segment that holds `lsn` (or would, being the last); `None` for records before the oldest.
    pub fn holding(&self, lsn: Lsn) -> Option<Arc<Segment>> {
        let segments = self.read();
        let behind = segments.partition_point(|segment| segment.first_lsn <= lsn);
        Some(Arc::clone(&segments[behind.checked_sub(1)?]))
    }

    /// Where the segment after the one that begins with `first` begins.
    pub(crate) fn after(&self, first: Lsn) -> Option<Lsn> {
        let segments = self.read();
        let behind = segments.partition_point(|segment| segment.first_lsn <= first);
        segments.get(behind).map(|segment| segment.first_lsn)
    }

    pub(crate) fn push(&self, segment: Arc<Segment>) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        assert!(segments.last().is_none_or(|last| last.first_lsn < segment.first_lsn), "segments ascend");
        segments.push(segment);
    }

    /// Forgets the segments that end before `lsn`; returns them, oldest first. The last one always stays.
    pub(crate) fn remove_before(&self, lsn: Lsn) -> Vec<Arc<Segment>> {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        let gone = segments.windows(2).take_while(|pair| pair[1].first_lsn <= lsn).count();
        segments.drain(..gone).collect()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Segment>>> {
        self.segments.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        let path = segment_path(Path::new("/x"), Lsn(42));
        assert_eq!(path, Path::new("/x/00000000000000000042.seg"));
        assert_eq!(segment_of_path(&path), Some(Lsn(42)));
        for other in ["42.seg", "00000000000000000042.tmp", "0000000000000000004x.seg", "+0000000000000000042.seg", "x"]
        {
            assert_eq!(segment_of_path(Path::new(other)), None, "{other}");
        }
        for number in ["00000000000000000000", "18446744073709551615", "99999999999999999999"] {
            assert_eq!(segment_of_path(Path::new(&format!("{number}.seg"))), None, "no record is {number}");
        }
    }

    #[test]
    fn places_are_found_and_kept_sparse() {
        let segment = Segment::new(PathBuf::new(), Lsn(10), RecordHash::default(), 0, 4096);
        segment.remember(Lsn(11), 4200);
        segment.remember(Lsn(900), 4096 + (64 << 10));
        segment.remember(Lsn(500), 4096 + (40 << 10));
        assert_eq!(segment.place_before(Lsn(10)), (Lsn(10), 4096));
        assert_eq!(segment.place_before(Lsn(899)), (Lsn(10), 4096));
        assert_eq!(segment.place_before(Lsn(1000)), (Lsn(900), 4096 + (64 << 10)));
    }
}
