//! Reading without a running journal, and what a journal says about itself.

mod sample;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use journal::Disk as _;
use journal::{Config, Filter, Histogram, Journal, OpenError, ReadError, Reader, RealDisk, Selection};
use sample::{service, transaction, upsert};
use storage_schema::id::Lsn;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, ResourceKey};

fn config(dir: &Path) -> Config {
    Config { segment_bytes: 64 << 10, ..Config::new(dir) }
}

fn append(journal: &Journal, records: u64) {
    let from = journal.watermarks().appended_lsn.0 + 1;
    let mut last = None;
    for number in from..from + records {
        let deltas = vec![upsert(service(&format!("shop/svc-{}", number % 10)))];
        let permit = journal.blocking_reserve().unwrap();
        last = Some(permit.submit(transaction("cp", Some(number), deltas)).unwrap());
    }
    last.unwrap().ack.blocking_wait().unwrap();
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_stopped_journal_is_read_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(dir.path())).unwrap();
    append(&journal, 1500);
    let checkpoint = journal.checkpoint().unwrap();
    append(&journal, 500);
    let (record, state) =
        (journal.record(Lsn(1234)).unwrap().into_inner(), journal.reader().state_at(Lsn(1999)).unwrap());
    let key = ResourceKey::new(Kind::Service, "shop/svc-3");
    let history = journal.reader().history(&key, Lsn(1), Lsn(2000)).unwrap();
    assert!(matches!(Reader::open(dir.path()), Err(OpenError::InUse { pid, .. }) if pid == std::process::id()));
    drop(journal);

    // A torn write at the end, which opening would cut.
    let last =
        files(&dir.path().join("journal")).into_keys().rfind(|path| path.extension().is_some_and(|it| it == "seg"));
    let last = RealDisk.open(&last.unwrap()).unwrap();
    let used = Reader::open(dir.path()).unwrap().stats().unwrap().bytes;
    assert!(used > 0);
    last.write_at(&[0x5a; 7], last.len().unwrap() - 7).unwrap();
    let before = files(&dir.path().join("journal"));
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!((reader.oldest_lsn(), reader.durable_lsn()), (Lsn(1), Lsn(2000)));
    assert_eq!(reader.record(Lsn(1234)).unwrap().decode().unwrap(), record);
    assert!(matches!(reader.record(Lsn(2001)), Err(ReadError::NotThere { durable_lsn: Lsn(2000), .. })));
    let read: Vec<Lsn> = reader.records(Lsn(1900)).unwrap().map(|record| record.unwrap().lsn).collect();
    assert_eq!(read, (1900..=2000).map(Lsn).collect::<Vec<_>>());
    assert_eq!(reader.history(&key, Lsn(1), Lsn(2000)).unwrap(), history);
    assert_eq!(reader.lsn_at(record.wall_ns).unwrap(), Lsn(1234).max(reader.lsn_at(record.wall_ns).unwrap()));
    let again = reader.state_at(Lsn(1999)).unwrap();
    assert!(
        again.iter().map(|it| (it.changed_lsn, it.encoded)).eq(state.iter().map(|it| (it.changed_lsn, it.encoded)))
    );
    let stats = reader.stats().unwrap();
    assert_eq!((stats.records(), stats.checkpoints.as_slice()), (2000, [checkpoint].as_slice()));
    assert!(stats.segments > 1 && stats.writing.is_none());
    drop(reader);
    assert!(files(&dir.path().join("journal")) == before, "reading changed a file");
}

#[test]
fn records_are_chosen_by_source_kind_and_name() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(dir.path())).unwrap();
    let mut expected = Vec::new();
    for number in 1..=900_u64 {
        let source = if number % 3 == 0 { "three" } else { "other" };
        let name = format!("shop/svc-{}", number % 7);
        let delta = if number % 5 == 0 {
            Delta::Remove(ResourceKey::new(Kind::Workload, &*name))
        } else {
            upsert(service(&name))
        };
        let kind = delta.key().kind;
        expected.push((Lsn(number), source, kind, name));
        let permit = journal.blocking_reserve().unwrap();
        let submitted = permit.submit(transaction(source, Some(number), vec![delta])).unwrap();
        if number == 900 {
            submitted.ack.blocking_wait().unwrap();
        }
    }
    let reader = journal.reader();
    assert!(reader.stats().unwrap().segments > 1, "indexes are used");
    let (three, name) = (Some("three".to_owned()), Some("shop/svc-4".to_owned()));
    let filters = [
        Filter::default(),
        Filter { source: three.clone(), ..Filter::default() },
        Filter { kind: Some(Kind::Workload), ..Filter::default() },
        Filter { name: name.clone(), ..Filter::default() },
        Filter { kind: Some(Kind::Service), name: name.clone(), ..Filter::default() },
        Filter { source: three, kind: Some(Kind::Workload), name },
        Filter { name: Some("nobody".to_owned()), ..Filter::default() },
    ];
    for filter in filters {
        for (first, last) in [(1, 900), (100, 777), (500, 499), (899, 5000)] {
            let wanted: Vec<Lsn> = expected
                .iter()
                .filter(|(lsn, source, kind, name)| {
                    (Lsn(first)..=Lsn(last)).contains(lsn)
                        && filter.source.as_deref().is_none_or(|wanted| wanted == *source)
                        && filter.kind.is_none_or(|wanted| wanted == *kind)
                        && filter.name.as_ref().is_none_or(|wanted| wanted == name)
                })
                .map(|(lsn, ..)| *lsn)
                .collect();
            let select = || reader.select(Lsn(first), Lsn(last), filter.clone()).unwrap();
            let lsns = |selection: Selection| selection.map(|record| record.unwrap().lsn).collect::<Vec<_>>();
            assert_eq!(lsns(select()), wanted, "{filter:?} {first}..={last}");
            for count in [0, 1, 5, 10_000] {
                let tail = &wanted[wanted.len().saturating_sub(count)..];
                assert_eq!(lsns(select().last(count).unwrap()), tail, "{filter:?} {first}..={last}, last {count}");
            }
        }
    }
}

#[test]
fn a_directory_without_a_journal_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for place in [dir.path().to_owned(), dir.path().join("nowhere")] {
        let error = Reader::open(&place).unwrap_err();
        assert!(matches!(&error, OpenError::NoJournal { path } if *path == place), "{error}");
        assert!(!dir.path().join("nowhere").exists() && !dir.path().join("LOCK").exists(), "it was only asked");
    }
}

#[test]
fn the_writers_work_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(config(dir.path())).unwrap();
    assert_eq!(journal.stats().unwrap().writing, Some(journal::WriteStats::default()));
    append(&journal, 100);
    let stats = journal.stats().unwrap();
    let writing = stats.writing.clone().unwrap();
    assert_eq!((writing.records, stats.records()), (100, 100));
    assert!((1..=100).contains(&writing.groups) && writing.sync.count() == writing.groups, "{writing:?}");
    let headers = 4096 * stats.segments as u64;
    assert_eq!(stats.bytes, writing.bytes + headers, "what was written is what is there");
    assert_eq!(writing.sync.buckets.len(), Histogram::BUCKETS);
}

/// Pushers that do not wait for each other share a sync, even if each finds the writer idle.
#[test]
fn a_group_gathers_for_as_long_as_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(Config { group_wait: Duration::from_millis(300), ..config(dir.path()) }).unwrap();
    let mut acks = Vec::new();
    let started = Instant::now();
    for number in 1..=20 {
        let permit = journal.blocking_reserve().unwrap();
        acks.push(permit.submit(transaction("cp", Some(number), Vec::new())).unwrap().ack);
        std::thread::sleep(Duration::from_millis(1));
    }
    for ack in acks {
        ack.blocking_wait().unwrap();
    }
    let groups = journal.stats().unwrap().writing.unwrap().groups;
    let most = started.elapsed().as_millis() / 300 + 1;
    assert!(u128::from(groups) <= most, "{groups} groups, where {most} had time to gather");

    // A full group does not wait, and neither does the end.
    let dir = tempfile::tempdir().unwrap();
    let config = Config { group_wait: Duration::from_secs(1), group_bytes_max: 1, ..config(dir.path()) };
    let journal = Journal::open(config).unwrap();
    let submitted = |number| {
        let permit = journal.blocking_reserve().unwrap();
        permit.submit(transaction("cp", Some(number), Vec::new())).unwrap()
    };
    let (first, second) = (submitted(1), submitted(2));
    first.ack.blocking_wait().unwrap();
    assert_eq!(journal.watermarks().appended_lsn, Lsn(2));
    drop(second);
    drop(journal);
    assert_eq!(Reader::open(dir.path()).unwrap().durable_lsn(), Lsn(2));
}

#[test]
fn a_wait_that_nobody_would_want_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { group_wait: Duration::from_secs(2), ..config(dir.path()) };
    let error = Journal::open(config).unwrap_err();
    assert!(matches!(error, OpenError::BadConfig { field: "group_wait", .. }), "{error}");
}
