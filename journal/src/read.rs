//! The way out: records by LSN, in order, up to what is durable.

use std::sync::Arc;

use bytes::Bytes;
use storage_schema::codec::{DecodeError, access_record, decode_record, hash_record, upcast_record};
use storage_schema::id::{Lsn, RecordHash, StoreId};
use storage_schema::record::{ArchivedRecord, Record};
use tokio::sync::watch;

use crate::disk::{Disk, DiskFile};
use crate::durable::{Durable, Head};
use crate::error::ReadError;
use crate::segment::catalogue::{Catalogue, INDEX_STEP_BYTES, Segment};
use crate::segment::frame::NoFrame;
use crate::segment::recovery::{Damage, Finding};
use crate::segment::scan::{Scanner, Step};

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRecord {
    /// Its number.
    pub lsn: Lsn,
    /// The encoded record, as it was written: a schema version and an archive.
    pub encoded: Bytes,
    /// The same record in the current schema version, if it was written in an older one.
    upcast: Option<Bytes>,
}

impl EncodedRecord {
    /// What was read from a frame, or came from another agent; one of an unknown schema version is refused.
    pub fn new(lsn: Lsn, encoded: Bytes) -> Result<Self, DecodeError> {
        let upcast = upcast_record(&encoded)?.map(Bytes::from);
        Ok(Self { lsn, encoded, upcast })
    }

    /// Its hash, which its successor holds: that of the bytes as they were written.
    pub fn hash(&self) -> RecordHash {
        hash_record(&self.encoded)
    }

    /// The record where it lies; one of an older schema version where its upcast lies.
    pub fn access(&self) -> Result<&ArchivedRecord, DecodeError> {
        access_record(self.upcast.as_ref().unwrap_or(&self.encoded))
    }

    /// The record.
    pub fn decode(&self) -> Result<Record, DecodeError> {
        decode_record(&self.encoded)
    }
}

impl Durable<EncodedRecord> {
    /// The end of the log as it was with this record, which is as durable as the record.
    pub fn head(&self) -> Durable<Head> {
        Durable::vouch(Head { lsn: self.lsn, hash: self.hash() })
    }
}

/// What readers share.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) store_id: StoreId,
    pub(crate) catalogue: Arc<Catalogue>,
    pub(crate) durable: watch::Receiver<Durable<Head>>,
}

impl Library {
    pub(crate) fn durable_lsn(&self) -> Lsn {
        self.durable.borrow().lsn
    }

    pub(crate) fn read_from(&self, first: Lsn) -> Result<Records, ReadError> {
        let first = first.max(Lsn::FIRST);
        let oldest_lsn = self.catalogue.oldest_lsn();
        if first < oldest_lsn {
            return Err(ReadError::Compacted { wanted: first, oldest_lsn });
        }
        Ok(Records { library: self.clone(), next: first, durable_lsn: Lsn::ZERO, place: None })
    }

    pub(crate) fn encoded_record(&self, lsn: Lsn) -> Result<Durable<EncodedRecord>, ReadError> {
        let not_there = || ReadError::NotThere { wanted: lsn, durable_lsn: self.durable_lsn() };
        if lsn == Lsn::ZERO {
            return Err(not_there());
        }
        self.read_from(lsn)?.next_encoded().ok_or_else(not_there)?
    }
}

/// Records in order, up to the durable head; `None` there, and more records once the head has moved on. It holds no lock,
/// and its segments stay readable when retention unlinks them.
#[derive(Debug)]
pub struct Records {
    library: Library,
    next: Lsn,
    /// The head when it was last looked at: it only moves on.
    durable_lsn: Lsn,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    segment: Arc<Segment>,
    scanner: Scanner,
    limit: u64,
    /// Where the last place was remembered.
    noted: u64,
}

impl Records {
    /// The journal they are of.
    pub fn store_id(&self) -> StoreId {
        self.library.store_id
    }

    /// The number of the record that comes next.
    pub fn next_lsn(&self) -> Lsn {
        self.next
    }

    /// The next record, not decoded; its checksum was checked.
    pub fn next_encoded(&mut self) -> Option<Result<Durable<EncodedRecord>, ReadError>> {
        if self.next > self.durable_lsn {
            self.durable_lsn = self.library.durable_lsn();
        }
        (self.next <= self.durable_lsn).then(|| self.read_next())
    }

    /// Reads record `self.next`, which is durable and therefore there.
    fn read_next(&mut self) -> Result<Durable<EncodedRecord>, ReadError> {
        loop {
            let place = match &mut self.place {
                Some(place) => place,
                None => {
                    let place = self.find_place()?;
                    self.place.insert(place)
                }
            };
            let path = &place.segment.path;
            let step =
                place.scanner.step().map_err(|source| ReadError::Io { action: "read", path: path.clone(), source })?;
            match step {
                Step::Frame(frame) if frame.lsn == self.next => {
                    self.next = self.next.next();
                    if frame.offset >= place.noted + INDEX_STEP_BYTES {
                        place.noted = frame.offset;
                        place.segment.remember(frame.lsn, frame.offset);
                    }
                    let undecodable = |source| ReadError::Undecodable { lsn: frame.lsn, source };
                    return EncodedRecord::new(frame.lsn, frame.body).map(Durable::vouch).map_err(undecodable);
                }
                Step::Frame(frame) => {
                    let damage = Damage::Gap { expected: self.next, found: frame.lsn };
                    return Err(ReadError::Damaged { path: path.clone(), damage });
                }
                // The end of what was durable when the place was found: the segment has grown since, or goes on in the next one.
                Step::Stop(NoFrame::Short { .. }) if place.scanner.offset() >= place.limit => {
                    let end = place.segment.end();
                    if end > place.limit {
                        place.limit = end;
                        place.scanner.set_limit(end);
                    } else if self.library.catalogue.last().first_lsn > place.segment.first_lsn {
                        self.place = None;
                    } else {
                        let damage = Damage::Record { finding: Finding::ZeroedRecord, lsn: self.next };
                        return Err(ReadError::Damaged { path: path.clone(), damage });
                    }
                }
                Step::Stop(stop) => {
                    let finding = match stop {
                        NoFrame::Zeros => Finding::ZeroedRecord,
                        NoFrame::Short { .. } | NoFrame::Bad => Finding::DamagedRecord,
                    };
                    let damage = Damage::Record { finding, lsn: self.next };
                    return Err(ReadError::Damaged { path: path.clone(), damage });
                }
            }
        }
    }

    /// Goes to record `self.next`: its segment, the nearest known place before it, then header by header.
    fn find_place(&self) -> Result<Place, ReadError> {
        let Library { disk, store_id, catalogue, .. } = &self.library;
        let compacted = || ReadError::Compacted { wanted: self.next, oldest_lsn: catalogue.oldest_lsn() };
        let segment = catalogue.holding(self.next).ok_or_else(compacted)?;
        let failed = |action| {
            let path = segment.path.clone();
            move |source| ReadError::Io { action, path, source }
        };
        let file: Arc<dyn DiskFile> = match disk.open_read(&segment.path) {
            Ok(file) => file.into(),
            // Retention was quicker.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && catalogue.oldest_lsn() > self.next => {
                return Err(compacted());
            }
            Err(error) => return Err(failed("open")(error)),
        };
        let (mut lsn, offset) = segment.place_before(self.next);
        let limit = segment.end();
        let mut scanner = Scanner::new(file, *store_id, offset, limit);
        while lsn < self.next {
            let offset = scanner.offset();
            match scanner.skip().map_err(failed("read"))? {
                Ok(header) if header.lsn == lsn => {
                    segment.remember(lsn, offset);
                    lsn = lsn.next();
                }
                // The frame before the one that is wanted may be the damaged one; which one shows when they are read.
                _ => {
                    let damage = Damage::Record { finding: Finding::DamagedRecord, lsn };
                    return Err(ReadError::Damaged { path: segment.path.clone(), damage });
                }
            }
        }
        Ok(Place { segment, limit, noted: scanner.offset(), scanner })
    }
}

impl Iterator for Records {
    type Item = Result<Durable<Record>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let encoded = match self.next_encoded()? {
            Ok(encoded) => encoded.into_inner(),
            Err(error) => return Some(Err(error)),
        };
        let decoded = encoded.decode().map_err(|source| ReadError::Undecodable { lsn: encoded.lsn, source });
        Some(decoded.map(Durable::vouch))
    }
}
