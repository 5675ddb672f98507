//! Damage to the files of a closed journal: every row of the recovery table, and every file of the store.

mod sample;

use std::fs;
use std::path::{Path, PathBuf};

use journal::segment::recovery::{Finding, TABLE, Verdict};
use journal::segment::scan::{Scanner, Step};
use journal::{Config, Disk, Journal, OpenError, ReadError, RealDisk};
use sample::{copy_dir, service, transaction, upsert};
use storage_schema::id::{Lsn, StoreId};

const HEADER: u64 = 4096;

/// A closed journal of 400 records in several segments, one group each.
struct Victim {
    dir: tempfile::TempDir,
    store_id: StoreId,
}

impl Victim {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(config(dir.path())).unwrap();
        for number in 1..=400 {
            append(&journal, number);
        }
        let store_id = journal.store_id();
        Self { dir, store_id }
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> =
            fs::read_dir(self.dir.path().join("journal")).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.extension().is_some_and(|suffix| suffix == "seg"));
        found.sort();
        assert!(found.len() > 2);
        found
    }

    fn last(&self) -> PathBuf {
        self.segments().pop().unwrap()
    }

    /// Number, place and length of each frame in a segment.
    fn frames(&self, path: &Path) -> Vec<(Lsn, u64, u64)> {
        let file = RealDisk.open_read(path).unwrap();
        let end = file.len().unwrap();
        let mut scanner = Scanner::new(file.into(), self.store_id, HEADER, end);
        let mut frames = Vec::new();
        while let Step::Frame(frame) = scanner.step().unwrap() {
            frames.push((frame.lsn, frame.offset, scanner.offset() - frame.offset));
        }
        frames
    }

    fn open(&self) -> Result<Journal, OpenError> {
        Journal::open(config(self.dir.path()))
    }

    fn refused(&self) -> (Finding, String) {
        match self.open() {
            Err(error @ OpenError::Damaged { .. }) => {
                let OpenError::Damaged { damage, .. } = &error else { unreachable!() };
                assert_eq!(damage.finding().verdict(), Verdict::Refuse);
                (damage.finding(), error.to_string())
            }
            other => panic!("{other:?}"),
        }
    }
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    edit(&mut bytes);
    fs::write(path, bytes).unwrap();
}

fn config(dir: &Path) -> Config {
    Config { segment_bytes: 64 << 10, ..Config::new(dir) }
}

fn append(journal: &Journal, number: u64) {
    let permit = journal.blocking_reserve().unwrap();
    let mut service = service(&format!("shop/svc-{:02}", number % 50));
    service.hostname = "h".repeat(200);
    permit.submit(transaction("t", Some(number), vec![upsert(service)])).unwrap().ack.blocking_wait().unwrap();
}

fn place(frame: (Lsn, u64, u64)) -> std::ops::Range<usize> {
    usize::try_from(frame.1).unwrap()..usize::try_from(frame.1 + frame.2).unwrap()
}

#[test]
fn a_torn_last_frame_is_cut_and_the_log_goes_on() {
    let victim = Victim::new();
    let last = victim.last();
    let frame = *victim.frames(&last).last().unwrap();
    edit(&last, |bytes| bytes[place(frame)][60..].fill(0));
    // The store is newer than the log now, which shows that the record had been acknowledged: this was no torn write.
    let journal = victim.open().unwrap();
    let report = journal.open_report().clone();
    assert_eq!((report.durable_lsn, report.lost), (Lsn(399), Some(Lsn(400))));
    assert!(report.cut_bytes > 0);
    append(&journal, 400);
    assert_eq!(journal.watermarks().durable_lsn, Lsn(400));
    drop(journal);
    let journal = victim.open().unwrap();
    assert_eq!((journal.open_report().cut_bytes, journal.open_report().durable_lsn), (0, Lsn(400)));
}

#[test]
fn a_damaged_record_in_the_middle_is_refused_by_number() {
    let victim = Victim::new();
    let last = victim.last();
    let frames = victim.frames(&last);
    let frame = frames[frames.len() / 2];
    edit(&last, |bytes| bytes[place(frame)][40] ^= 1);
    let (finding, message) = victim.refused();
    assert_eq!(finding, Finding::DamagedRecord);
    assert!(message.contains(&format!("LSN {}", frame.0)) && message.contains("journal repair"), "{message}");
}

#[test]
fn a_zeroed_record_in_the_middle_is_refused_by_number() {
    let victim = Victim::new();
    let last = victim.last();
    let frames = victim.frames(&last);
    let frame = frames[frames.len() / 2];
    edit(&last, |bytes| bytes[place(frame)].fill(0));
    let (finding, message) = victim.refused();
    assert_eq!(finding, Finding::ZeroedRecord);
    assert!(message.contains(&format!("LSN {}", frame.0)), "{message}");
}

#[test]
fn a_record_that_was_cut_out_is_a_gap() {
    let victim = Victim::new();
    let last = victim.last();
    let frames = victim.frames(&last);
    let frame = frames[frames.len() / 2];
    edit(&last, |bytes| drop(bytes.drain(place(frame))));
    assert_eq!(victim.refused().0, Finding::Gap);
}

#[test]
fn a_record_that_comes_twice_is_refused() {
    let victim = Victim::new();
    let last = victim.last();
    let frames = victim.frames(&last);
    let (before, frame) = (frames[3], frames[4]);
    assert_eq!(before.2, frame.2, "these two are of one length");
    edit(&last, |bytes| bytes.copy_within(place(before), place(frame).start));
    assert_eq!(victim.refused().0, Finding::RepeatedRecord);
}

#[test]
fn a_replaced_last_record_breaks_the_chain() {
    let victim = Victim::new();
    let last = victim.last();
    let frame = *victim.frames(&last).last().unwrap();
    edit(&last, |bytes| {
        // A record that is whole, has the right number and the right checksum, but was written after another one.
        let (_, body, _) = journal::segment::frame::parse_frame(&bytes[place(frame)], victim.store_id).unwrap();
        let mut record = storage_schema::codec::decode_record(body).unwrap();
        record.previous_hash.0[0] ^= 1;
        let body = storage_schema::codec::encode_record(&record);
        let mut forged = Vec::new();
        // In one group with its predecessor, so that the chain between them is looked at.
        let group_first = Lsn(frame.0.0 - 1);
        journal::segment::frame::push_frame(&mut forged, victim.store_id, frame.0, group_first, &body);
        bytes[place(frame)].copy_from_slice(&forged);
    });
    assert_eq!(victim.refused().0, Finding::ChainBroken);
}

#[test]
fn a_missing_segment_is_a_gap() {
    let victim = Victim::new();
    fs::remove_file(&victim.segments()[1]).unwrap();
    assert_eq!(victim.refused().0, Finding::Gap);
}

#[test]
fn a_truncated_closed_segment_is_refused() {
    let victim = Victim::new();
    edit(&victim.segments()[0], |bytes| bytes.truncate(bytes.len() - 8));
    assert_eq!(victim.refused().0, Finding::TruncatedSegment);
}

#[test]
fn a_damaged_header_is_refused() {
    for at in [0, 9, 17, 33, 50, 100, 4000] {
        let victim = Victim::new();
        edit(&victim.segments()[1], |bytes| bytes[at] ^= 0x40);
        let (finding, message) = victim.refused();
        assert!(matches!(finding, Finding::DamagedHeader | Finding::NewerFormat), "byte {at}: {message}");
    }
}

#[test]
fn a_segment_under_another_name_is_refused() {
    let victim = Victim::new();
    let last = victim.last();
    fs::rename(&last, last.with_file_name("00000000000000099999.seg")).unwrap();
    assert_eq!(victim.refused().0, Finding::DamagedHeader);
}

#[test]
fn a_segment_of_another_journal_is_refused() {
    let victim = Victim::new();
    let other = Victim::new();
    fs::copy(&other.segments()[1], &victim.segments()[1]).unwrap();
    let (finding, message) = victim.refused();
    assert_eq!(finding, Finding::ForeignSegment);
    assert!(message.contains(&other.store_id.to_string()), "{message}");
}

#[test]
fn a_newer_format_is_refused() {
    let victim = Victim::new();
    edit(&victim.last(), |bytes| bytes[8] = 2);
    let (finding, message) = victim.refused();
    assert_eq!(finding, Finding::NewerFormat);
    assert!(message.contains("version 2"), "{message}");
}

#[test]
fn every_row_that_refuses_has_a_test_above() {
    let tested = [
        Finding::DamagedRecord,
        Finding::ZeroedRecord,
        Finding::Gap,
        Finding::RepeatedRecord,
        Finding::ChainBroken,
        Finding::TruncatedSegment,
        Finding::DamagedHeader,
        Finding::ForeignSegment,
        Finding::NewerFormat,
    ];
    let refusing = TABLE.iter().filter(|row| row.2 == Verdict::Refuse).map(|row| row.0);
    assert!(refusing.eq(tested));
}

#[test]
fn damage_in_a_closed_segment_shows_when_it_is_read() {
    let victim = Victim::new();
    let closed = &victim.segments()[1];
    let frame = victim.frames(closed)[5];
    edit(closed, |bytes| bytes[place(frame)][40] ^= 1);
    let journal = victim.open().unwrap();
    let mut records = journal.read_from(Lsn(1)).unwrap();
    let error = records.by_ref().find_map(Result::err).unwrap();
    assert!(matches!(error, ReadError::Damaged { .. }));
    assert!(error.to_string().contains(&format!("LSN {}", frame.0)), "{error}");
}

#[test]
fn a_missing_identity_is_taken_from_the_segments_and_a_broken_one_is_refused() {
    let victim = Victim::new();
    let identity = victim.dir.path().join("store-id");
    fs::remove_file(&identity).unwrap();
    assert_eq!(victim.open().unwrap().store_id(), victim.store_id);
    fs::write(&identity, "none\n").unwrap();
    assert!(matches!(victim.open(), Err(OpenError::BadIdentity { .. })));
}

/// Verifies, and expects one thing to be wrong, of this kind, with this much left to trust.
fn found(victim: &Victim, finding: Finding, trusted: u64) -> journal::VerifyReport {
    let mut progressed = 0;
    let report = journal::verify(victim.dir.path(), |progress| {
        assert!(progress.bytes >= progressed && progress.bytes <= progress.bytes_total);
        progressed = progress.bytes;
    })
    .unwrap();
    let wrong: Vec<Finding> = report.wrong.iter().map(|wrong| wrong.damage.finding()).collect();
    assert_eq!((wrong, report.trusted_lsn), (vec![finding], Lsn(trusted)));
    report
}

#[test]
fn a_whole_log_verifies_stopped_and_running() {
    let victim = Victim::new();
    let report = journal::verify(victim.dir.path(), |_| {}).unwrap();
    assert_eq!((report.wrong.len(), report.records, report.trusted_lsn), (0, 400, Lsn(400)));
    assert_eq!((report.oldest_lsn, report.end, report.store_id), (Lsn(1), Finding::CleanEnd, victim.store_id));
    let journal = victim.open().unwrap();
    assert!(matches!(journal::verify(victim.dir.path(), |_| {}), Err(OpenError::InUse { .. })));
    let report = journal.verify(|_| {}).unwrap();
    assert_eq!((report.wrong.len(), report.records, report.trusted_lsn), (0, 400, Lsn(400)));
}

#[test]
fn verification_names_what_is_wrong_in_any_segment_and_repair_cuts_there() {
    for segment in 0..3 {
        let victim = Victim::new();
        let segments = victim.segments();
        let path = &segments[segment];
        let frames = victim.frames(path);
        let frame = frames[frames.len() / 2];
        edit(path, |bytes| bytes[place(frame)][40] ^= 1);
        let lsn = frame.0.0;
        let report = found(&victim, Finding::DamagedRecord, lsn - 1);
        assert_eq!(report.records, 399);
        assert!(report.wrong[0].damage.to_string().contains(&format!("LSN {lsn}")));

        let repaired = journal::repair(victim.dir.path(), |_| {}).unwrap();
        assert_eq!((repaired.kept_lsn, repaired.cut_lsn), (Lsn(lsn - 1), Some(Lsn(lsn))));
        assert_eq!(repaired.good_records_cut, 400 - lsn);
        let aside = fs::read_dir(repaired.cut_dir.unwrap()).unwrap().count();
        assert_eq!(aside, segments.len() - segment, "the cut part is kept");
        let journal = victim.open().unwrap();
        assert_eq!(journal.open_report().durable_lsn, Lsn(lsn - 1));
        assert_eq!(journal.open_report().lost, Some(Lsn(400)));
        assert_store_equals_log(&journal);
        append(&journal, lsn);
        assert_eq!(journal.watermarks().durable_lsn, Lsn(lsn));
        drop(journal);
        assert!(journal::verify(victim.dir.path(), |_| {}).unwrap().wrong.is_empty());
        assert_eq!(journal::repair(victim.dir.path(), |_| {}).unwrap().cut_lsn, None);
    }
}

#[test]
fn verification_finds_what_is_missing_or_replaced() {
    let victim = Victim::new();
    let segments = victim.segments();
    let second_first = victim.frames(&segments[1])[0].0.0;
    fs::remove_file(&segments[1]).unwrap();
    found(&victim, Finding::Gap, second_first - 1);

    let victim = Victim::new();
    let segments = victim.segments();
    edit(&segments[1], |bytes| bytes[20] ^= 1);
    let report = journal::verify(victim.dir.path(), |_| {}).unwrap();
    assert_eq!(report.wrong[0].damage.finding(), Finding::DamagedHeader);
    assert_eq!(report.trusted_lsn, Lsn(victim.frames(&segments[1])[0].0.0 - 1));
    let repaired = journal::repair(victim.dir.path(), |_| {}).unwrap();
    assert_eq!(repaired.kept_lsn, report.trusted_lsn);
    assert_eq!(victim.open().unwrap().open_report().durable_lsn, report.trusted_lsn);

    // A record in a closed segment replaced by one with right checksum and number, but with other contents.
    let victim = Victim::new();
    let segments = victim.segments();
    let frames = victim.frames(&segments[0]);
    let frame = frames[7];
    edit(&segments[0], |bytes| {
        let (header, body, _) = journal::segment::frame::parse_frame(&bytes[place(frame)], victim.store_id).unwrap();
        let mut record = storage_schema::codec::decode_record(body).unwrap();
        record.wall_ns ^= 1;
        let body = storage_schema::codec::encode_record(&record);
        let mut forged = Vec::new();
        journal::segment::frame::push_frame(&mut forged, victim.store_id, header.lsn, header.group_first, &body);
        bytes[place(frame)].copy_from_slice(&forged);
    });
    found(&victim, Finding::ChainBroken, frames[8].0.0 - 1);
}

/// The state as the store shows it, against the state as the log gives it.
fn assert_store_equals_log(journal: &Journal) {
    let mut stored = Vec::new();
    let at = journal
        .for_each_encoded(|resource| {
            stored.push((resource.name.to_owned(), resource.changed_lsn, resource.encoded.to_vec()));
        })
        .unwrap();
    assert_eq!(at, journal.watermarks().durable_lsn);
    let mut folded = std::collections::BTreeMap::new();
    for record in journal.read_from(Lsn(1)).unwrap() {
        let record = record.unwrap().into_inner();
        for delta in record.transaction.deltas {
            let storage_schema::record::Delta::Upsert(resource) = delta else { panic!("there are no removals") };
            folded.insert(resource.name().to_owned(), (record.lsn, storage_schema::codec::encode_resource(&resource)));
        }
    }
    let folded: Vec<_> = folded.into_iter().map(|(name, (lsn, encoded))| (name, lsn, encoded)).collect();
    assert_eq!(stored, folded);
}

#[test]
fn a_missing_store_is_rebuilt() {
    let victim = Victim::new();
    fs::remove_dir_all(victim.dir.path().join("store")).unwrap();
    let journal = victim.open().unwrap();
    assert_eq!(journal.open_report().store_rebuilt.as_deref(), Some("it was missing"));
    assert_eq!(journal.open_report().folded, 400);
    assert_store_equals_log(&journal);
}

#[test]
fn a_store_of_another_journal_is_rebuilt() {
    let victim = Victim::new();
    let other = Victim::new();
    fs::remove_dir_all(victim.dir.path().join("store")).unwrap();
    fs::rename(other.dir.path().join("store"), victim.dir.path().join("store")).unwrap();
    let journal = victim.open().unwrap();
    assert!(journal.open_report().store_rebuilt.as_deref().unwrap().contains("another journal"));
    assert_store_equals_log(&journal);
}

#[test]
fn a_leftover_of_a_kill_while_sled_opened_is_removed() {
    let victim = Victim::new();
    fs::write(victim.dir.path().join("store/snap.0000000000000BAD.generating"), "half").unwrap();
    let journal = victim.open().unwrap();
    assert_eq!(journal.open_report().store_rebuilt, None);
    assert_store_equals_log(&journal);
}

/// Any byte of any of its files: the store is used only if its contents are right all the same.
#[test]
fn a_damaged_store_is_never_believed() {
    let victim = Victim::new();
    let store = victim.dir.path().join("store");
    let saved = victim.dir.path().join("saved");
    copy_dir(&store, &saved);
    let mut rebuilt = 0;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for file in fs::read_dir(&saved).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_file()) {
        let bytes = fs::read(file.path()).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for _ in 0..12 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = usize::try_from(seed >> 33).unwrap() % used.max(1);
            fs::remove_dir_all(&store).unwrap();
            copy_dir(&saved, &store);
            let mut damaged = bytes.clone();
            if let Some(byte) = damaged.get_mut(at) {
                *byte ^= 0x5a;
            }
            fs::write(store.join(file.file_name()), damaged).unwrap();
            let journal = victim.open().unwrap();
            rebuilt += u32::from(journal.open_report().store_rebuilt.is_some());
            assert_store_equals_log(&journal);
        }
    }
    assert!(rebuilt > 0, "no damage was noticed at all");
}

#[test]
fn a_truncated_store_is_never_believed() {
    let victim = Victim::new();
    let store = victim.dir.path().join("store");
    let db = store.join("db");
    let bytes = fs::read(&db).unwrap();
    for length in [0, 1, 511, 4096, bytes.len() / 2] {
        fs::write(&db, &bytes[..length.min(bytes.len())]).unwrap();
        assert_store_equals_log(&victim.open().unwrap());
    }
}
