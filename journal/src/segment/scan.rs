//! Reads frames from a segment file in large pieces, without copying a body twice.

use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use storage_schema::id::{Lsn, StoreId};

use super::frame::{FRAME_ALIGN, FRAME_HEADER_BYTES, FrameHeader, NoFrame, parse_frame, peek_header};
use super::recovery::{Evidence, Stop};
use crate::disk::DiskFile;

/// How much is read at a time, unless a frame is larger.
const CHUNK_BYTES: usize = 256 << 10;

/// A frame that was read and checked.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The record's number.
    pub lsn: Lsn,
    /// The first record of the same write.
    pub group_first: Lsn,
    /// Where the frame begins in the file.
    pub offset: u64,
    /// The encoded record.
    pub body: Bytes,
}

/// What is at the scanner's place.
#[derive(Debug)]
pub enum Step {
    /// A frame; the scanner is behind it now.
    Frame(Frame),
    /// No frame; the scanner stays.
    Stop(NoFrame),
}

/// Walks the frames of one file up to a limit.
#[derive(Debug)]
pub struct Scanner {
    file: Arc<dyn DiskFile>,
    store_id: StoreId,
    /// Where `chunk` begins in the file.
    offset: u64,
    /// Bytes from `offset` on that have been read.
    chunk: Bytes,
    /// Where to stop.
    limit: u64,
}

impl Scanner {
    /// A scanner for the frames from `offset` to `limit`.
    pub fn new(file: Arc<dyn DiskFile>, store_id: StoreId, offset: u64, limit: u64) -> Self {
        Self { file, store_id, offset, chunk: Bytes::new(), limit }
    }

    /// Where the next frame begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads on when the file has grown: bytes behind the frames seen so far are read again.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.chunk.clear();
    }

    /// The next frame, checked.
    pub fn step(&mut self) -> io::Result<Step> {
        loop {
            match parse_frame(&self.chunk, self.store_id) {
                Ok((FrameHeader { lsn, group_first, .. }, body, total)) => {
                    let body = self.chunk.slice_ref(body);
                    let frame = Frame { lsn, group_first, offset: self.offset, body };
                    self.chunk.advance(total);
                    self.offset += total as u64;
                    return Ok(Step::Frame(frame));
                }
                Err(NoFrame::Short { needed }) if self.available() >= needed => self.refill(needed)?,
                Err(no_frame) => return Ok(Step::Stop(no_frame)),
            }
        }
    }

    /// Steps over the next frame by its header alone: for finding a place, where the bytes passed over do not matter.
    pub fn skip(&mut self) -> io::Result<Result<FrameHeader, NoFrame>> {
        loop {
            match peek_header(&self.chunk) {
                Ok(header) => {
                    let total = (FRAME_HEADER_BYTES + header.body_bytes as usize).next_multiple_of(FRAME_ALIGN);
                    if total as u64 > self.limit.saturating_sub(self.offset) {
                        return Ok(Err(NoFrame::Short { needed: total as u64 }));
                    }
                    self.chunk.advance(total.min(self.chunk.len()));
                    self.offset += total as u64;
                    return Ok(Ok(header));
                }
                Err(NoFrame::Short { needed }) if self.available() >= needed => self.refill(needed)?,
                Err(no_frame) => return Ok(Err(no_frame)),
            }
        }
    }

    /// The header of the next frame, not checked.
    pub fn peek(&mut self) -> io::Result<Result<FrameHeader, NoFrame>> {
        loop {
            match peek_header(&self.chunk) {
                Err(NoFrame::Short { needed }) if self.available() >= needed => self.refill(needed)?,
                answer => return Ok(answer),
            }
        }
    }

    /// A second scanner at the same place.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::new(Arc::clone(&self.file), self.store_id, self.offset, self.limit)
    }

    /// Goes to the next good frame that begins behind the scanner's place and has at least this number; returns its number.
    pub fn seek_frame(&mut self, at_least: Lsn) -> io::Result<Option<Lsn>> {
        while self.available() > FRAME_ALIGN as u64 {
            if self.chunk.len() < FRAME_ALIGN + FRAME_HEADER_BYTES {
                self.refill(FRAME_HEADER_BYTES as u64)?;
                if self.chunk.len() <= FRAME_ALIGN {
                    break;
                }
            }
            self.pass(FRAME_ALIGN);
            if self.later_frame(Lsn(at_least.0 - 1))?.is_some() {
                return Ok(peek_header(&self.chunk).ok().map(|header| header.lsn));
            }
        }
        Ok(None)
    }

    /// Gathers what is behind the scanner's place, where `stop` was found instead of record `expected`.
    pub fn evidence(mut self, expected: Lsn, stop: Stop) -> io::Result<Evidence> {
        let mut evidence = Evidence { expected, stop, rest_is_zero: true, later_group: None };
        while self.available() >= FRAME_HEADER_BYTES as u64 {
            if self.chunk.len() < FRAME_HEADER_BYTES {
                self.refill(FRAME_HEADER_BYTES as u64)?;
                if self.chunk.len() < FRAME_HEADER_BYTES {
                    break;
                }
            }
            let zeros = zero_prefix(&self.chunk);
            if zeros >= FRAME_ALIGN {
                self.pass(zeros / FRAME_ALIGN * FRAME_ALIGN);
                continue;
            }
            evidence.rest_is_zero = false;
            if let Some(group) = self.later_frame(expected)? {
                evidence.later_group = evidence.later_group.max(Some(group));
            }
            self.pass(FRAME_ALIGN);
        }
        // What is left is shorter than a header, but it counts for being zero.
        if self.chunk.len() < usize::try_from(self.available()).unwrap_or(usize::MAX) {
            self.refill(self.available())?;
        }
        evidence.rest_is_zero &= self.chunk.iter().all(|byte| *byte == 0);
        Ok(evidence)
    }

    /// The group of the frame at the scanner's place, if there is a good one with a number above `expected`.
    fn later_frame(&mut self, expected: Lsn) -> io::Result<Option<Lsn>> {
        loop {
            // Cheap checks first: a checksum over megabytes for every eight bytes would take forever.
            match peek_header(&self.chunk) {
                Ok(header) if header.lsn > expected && header.lsn.0 - expected.0 < u64::from(u32::MAX) => {}
                _ => return Ok(None),
            }
            match parse_frame(&self.chunk, self.store_id) {
                Ok((header, ..)) => return Ok(Some(header.group_first)),
                Err(NoFrame::Short { needed }) if self.available() >= needed => self.refill(needed)?,
                Err(_) => return Ok(None),
            }
        }
    }

    fn pass(&mut self, bytes: usize) {
        self.chunk.advance(bytes);
        self.offset += bytes as u64;
    }

    fn available(&self) -> u64 {
        self.limit.saturating_sub(self.offset)
    }

    /// Reads at least `needed` bytes from the scanner's place on, or up to the end of the file, which becomes the limit.
    fn refill(&mut self, needed: u64) -> io::Result<()> {
        let wanted = needed.max(CHUNK_BYTES as u64).min(self.available());
        let wanted = usize::try_from(wanted).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // The last chunk's memory serves again unless somebody still holds a record in it.
        let mut buffer = std::mem::take(&mut self.chunk).try_into_mut().unwrap_or_default();
        buffer.clear();
        buffer.resize(wanted, 0);
        let read = self.file.read_at(&mut buffer, self.offset)?;
        if read < wanted {
            self.limit = self.offset + read as u64;
            buffer.truncate(read);
        }
        self.chunk = buffer.freeze();
        Ok(())
    }
}

/// How many zeros `bytes` begins with.
fn zero_prefix(bytes: &[u8]) -> usize {
    const ZEROS: [u8; 4096] = [0; 4096];
    let blocks = bytes.chunks_exact(ZEROS.len()).take_while(|block| *block == ZEROS).count();
    let passed = blocks * ZEROS.len();
    passed + bytes[passed..].iter().take_while(|byte| **byte == 0).count()
}
