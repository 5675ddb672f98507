//! Whole logs: scanned, verified, recovered, repaired.
#![no_main]

use std::path::Path;
use std::sync::Arc;

use journal::segment::header::SEGMENT_HEADER_BYTES;
use journal::segment::open::{LogConfig, OpenLog, open_log};
use journal::segment::recovery::Finding;
use journal::segment::scan::{Scanner, Step};
use journal::{Disk, OpenError, RealDisk, SystemClock};
use journal_fuzz::{Log, STORE};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use storage_schema::id::Lsn;

#[derive(Arbitrary, Debug)]
struct Script<'a> {
    first: First,
    pieces: Vec<Piece<'a>>,
    edits: Vec<(u16, u8)>,
    spare: u8,
}

#[derive(Arbitrary, Debug)]
enum First {
    One,
    Low(u8),
    High(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Piece<'a> {
    Record { group: u8 },
    Frame { step: i8, group: u8, body: &'a [u8] },
    Raw(&'a [u8]),
    Zeros(u8),
    Roll { error: i8 },
}

fuzz_target!(|script: Script| {
    let first = match script.first {
        First::One => 1,
        First::Low(low) => low.into(),
        First::High(high) => u64::MAX - u64::from(high),
        First::Any(any) => any,
    };
    let mut log = Log::new(Lsn(first));
    for piece in script.pieces.iter().take(64) {
        match piece {
            Piece::Record { group } => log.record(*group),
            Piece::Frame { step, group, body } => {
                log.frame(Lsn(log.next_lsn.0.wrapping_add_signed((*step).into())), *group, body);
            }
            Piece::Raw(bytes) => log.last().extend_from_slice(bytes),
            Piece::Zeros(words) => {
                let end = log.last().len() + 8 * usize::from(*words);
                log.last().resize(end, 0);
            }
            Piece::Roll { error } => log.roll(*error),
        }
    }
    let last = log.last();
    journal_fuzz::edit(last, &script.edits);
    let end = last.len() + 8 * usize::from(script.spare);
    last.resize(end, 0);
    let dir = journal_fuzz::tempdir();
    log.write(dir.path());
    check(dir.path());
});

fn check(state: &Path) {
    let dir = state.join("journal");
    for path in RealDisk.list(&dir).expect("a directory") {
        let file: Arc<dyn journal::DiskFile> = RealDisk.open_read(&path).expect("a file").into();
        let length = file.len().expect("a length");
        let mut scanner = Scanner::new(file, STORE, SEGMENT_HEADER_BYTES as u64, length);
        while let Ok(Ok(_)) = scanner.fork().skip() {
            if !matches!(scanner.step(), Ok(Step::Frame(_))) {
                break;
            }
        }
        let _ = scanner.seek_frame(Lsn(1));
    }

    let before = journal::verify(state, |_| {});
    if let Ok(log) = open(&dir) {
        // What was recovered is settled: another recovery finds nothing to do.
        let again = open(&dir).expect("what was recovered opens");
        assert_eq!((again.head, again.finding, again.cut_bytes), (log.head, Finding::CleanEnd, 0));
        let report = journal::verify(state, |_| {}).expect("what was recovered can be verified");
        if report.wrong.is_empty() {
            assert_eq!(report.trusted_lsn, log.head.lsn);
        }
    } else if let Ok(report) = before {
        assert!(!report.wrong.is_empty(), "what verifies opens: {report:?}");
    }
    if journal::repair(state, |_| {}).is_ok() {
        let report = journal::verify(state, |_| {}).expect("what was repaired can be verified");
        assert_eq!(report.wrong, [], "a repair leaves nothing that is wrong");
        open(&dir).expect("what was repaired opens");
    }
}

fn open(dir: &Path) -> Result<OpenLog, OpenError> {
    let (disk, clock) = (Arc::new(RealDisk), Arc::new(SystemClock));
    open_log(&LogConfig { disk, dir: dir.to_owned(), store_id: STORE, segment_bytes: 64 << 10, clock })
}
