//! Export as Parquet: read back, every cell compared with the records.

#![cfg(feature = "parquet")]

mod sample;

use std::io::{self, Write};

use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, TimestampNanosecondType, UInt64Type};
use arrow_array::{Array, RecordBatch};
use bytes::Bytes;
use journal::{Config, ExportError, Journal, PARQUET_COLUMNS, ReadError, export_parquet};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use sample::{service, transaction, upsert};
use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Record};
use storage_schema::resource::{Kind, Resource, ResourceKey};

fn journal_of(dir: &tempfile::TempDir, transactions: impl IntoIterator<Item = (Option<u64>, Vec<Delta>)>) -> Journal {
    let journal = Journal::open(Config { segment_bytes: 1 << 20, ..Config::new(dir.path().join("state")) }).unwrap();
    let mut last = None;
    for (version, deltas) in transactions {
        let source = if version.is_some() { "cp" } else { "cli" };
        last = Some(journal.blocking_reserve().unwrap().submit(transaction(source, version, deltas)).unwrap());
    }
    if let Some(last) = last {
        last.ack.blocking_wait().unwrap();
    }
    journal
}

fn exported(journal: &Journal, first: Lsn, last: Lsn) -> (u64, Bytes) {
    let mut file = Vec::new();
    let records = export_parquet(&mut journal.read_from(first).unwrap(), last, &mut file).unwrap();
    (records, file.into())
}

fn batches(file: &Bytes) -> Vec<RecordBatch> {
    ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().build().unwrap().map(Result::unwrap).collect()
}

fn metadata(file: &Bytes) -> ParquetMetaData {
    ParquetRecordBatchReaderBuilder::try_new(file.clone()).unwrap().metadata().as_ref().clone()
}

/// A cell as text.
fn cell(batch: &RecordBatch, column: &str, row: usize) -> Option<String> {
    let described = PARQUET_COLUMNS.iter().find(|described| described.name == column).unwrap();
    let array = batch.column_by_name(column).unwrap();
    array.is_valid(row).then(|| match described.type_name() {
        "number" => array.as_primitive::<UInt64Type>().value(row).to_string(),
        "time" => array.as_primitive::<TimestampNanosecondType>().value(row).to_string(),
        "text" => array.as_string::<i32>().value(row).to_owned(),
        "word" => {
            let words = array.as_dictionary::<Int32Type>();
            words.values().as_string::<i32>().value(words.key(row).unwrap()).to_owned()
        }
        other => panic!("{other}"),
    })
}

/// What the rows of a record should say, column by column.
fn expected(record: &Record, hash: &str) -> Vec<Vec<Option<String>>> {
    let row = |delta: Option<(usize, &Delta)>| {
        let origin = &record.transaction.origin;
        let (action, resource) = match delta {
            Some((_, Delta::Upsert(resource))) => (Some("upsert"), Some(serde_json::to_string(resource).unwrap())),
            Some((_, Delta::Remove(_))) => (Some("remove"), None),
            None => (None, None),
        };
        let key = delta.map(|(_, delta)| delta.key());
        vec![
            Some(record.lsn.to_string()),
            Some(hash.to_owned()),
            Some(record.previous_hash.to_string()),
            Some(record.wall_ns.to_string()),
            record.received_wall_ns.map(|wall_ns| wall_ns.to_string()),
            Some(record.monotonic_ns.to_string()),
            Some(record.boot_id.to_string()),
            Some(origin.source.clone()),
            record.client.clone(),
            Some(origin.incarnation.to_string()),
            origin.version.map(|version| version.to_string()),
            Some(record.transaction.cause.to_string()),
            record.transaction.take_over.then(|| "yes".to_owned()),
            record.transaction.event.as_ref().map(|event| serde_json::to_string(event).unwrap()),
            delta.map(|(number, _)| number.to_string()),
            action.map(str::to_owned),
            key.as_ref().map(|key| key.kind.to_string()),
            key.map(|key| key.name),
            resource,
        ]
    };
    let deltas = &record.transaction.deltas;
    if deltas.is_empty() { vec![row(None)] } else { deltas.iter().enumerate().map(Some).map(row).collect() }
}

fn assert_same(journal: &Journal, first: Lsn, last: Lsn, file: &Bytes) {
    let mut records = journal.read_from(first).unwrap();
    let mut rows = Vec::new();
    while records.next_lsn() <= last {
        let Some(record) = records.next_encoded() else { break };
        let encoded = record.unwrap();
        rows.extend(expected(&encoded.decode().unwrap(), &encoded.hash().to_string()));
    }
    let mut rows = rows.into_iter();
    for batch in batches(file) {
        for at in 0..batch.num_rows() {
            let cells: Vec<_> = PARQUET_COLUMNS.iter().map(|column| cell(&batch, column.name, at)).collect();
            assert_eq!(Some(cells), rows.next());
        }
    }
    assert_eq!(rows.next(), None);
}

#[test]
fn every_cell_is_that_of_the_records() {
    let dir = tempfile::tempdir().unwrap();
    let many = (0..2000).map(|number| match number % 3 {
        0 => Delta::Remove(ResourceKey::new(Kind::Workload, format!("c//Pod/shop/{number}"))),
        _ => upsert(service(&format!("shop/\"späti\"-{number}"))),
    });
    let node =
        Delta::Upsert(Resource::Node(storage_schema::resource::Node { name: "n1".into(), ..Default::default() }));
    let transactions = [
        (Some(1), vec![upsert(service("shop/cart"))]),
        (None, vec![]),
        (Some(u64::MAX - 1), many.collect()),
        (None, vec![node, Delta::Remove(ResourceKey::new(Kind::Node, "n1"))]),
        (Some(u64::MAX), vec![]),
    ];
    let journal = journal_of(&dir, transactions);
    let (records, file) = exported(&journal, Lsn(1), Lsn(u64::MAX));
    assert_eq!((records, metadata(&file).file_metadata().num_rows()), (5, 2005));
    assert_same(&journal, Lsn(1), Lsn(5), &file);
    let (records, file) = exported(&journal, Lsn(2), Lsn(4));
    assert_eq!(records, 3);
    assert_same(&journal, Lsn(2), Lsn(4), &file);

    let metadata = metadata(&file);
    let pairs = metadata.file_metadata().key_value_metadata().unwrap();
    let value = |key: &str| pairs.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
    assert_eq!(value("holdfast.table_version").as_deref(), Some("1"));
    assert_eq!(value("holdfast.store_id"), Some(journal.store_id().to_string()));
}

#[test]
fn an_empty_journal_is_an_empty_table() {
    let dir = tempfile::tempdir().unwrap();
    let journal = journal_of(&dir, []);
    let (records, file) = exported(&journal, Lsn(1), Lsn(u64::MAX));
    assert_eq!((records, metadata(&file).num_row_groups()), (0, 0));
    let schema = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().schema().clone();
    let columns: Vec<(&str, bool)> =
        schema.fields().iter().map(|field| (field.name().as_str(), field.is_nullable())).collect();
    assert_eq!(columns, PARQUET_COLUMNS.map(|column| (column.name, column.nullable)));
}

#[test]
fn row_groups_are_bounded_by_rows_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    // More rows than a group has, in records that do not end where it does; then few rows with much text.
    let small = (0..70).map(|record| {
        let remove = |number| Delta::Remove(ResourceKey::new(Kind::Service, format!("shop/{record}-{number}")));
        (None, (0..1000).map(remove).collect())
    });
    let large = (0..40).map(|number| {
        let mut service = service(&format!("shop/{number}"));
        service.hostname = "x".repeat(1 << 20);
        (None, vec![upsert(service)])
    });
    let journal = journal_of(&dir, small.chain(large));
    let (records, file) = exported(&journal, Lsn(1), Lsn(u64::MAX));
    assert_eq!(records, 110);
    let rows: Vec<i64> = metadata(&file).row_groups().iter().map(RowGroupMetaData::num_rows).collect();
    assert_eq!(rows[0], 65_536);
    assert_eq!((rows.len(), rows.iter().sum::<i64>()), (3, 70_040));
    assert!((8..12).contains(&rows[2]), "{rows:?}: 31 of the large ones end a group of 32 MiB");
    assert_same(&journal, Lsn(1), Lsn(110), &file);
}

#[test]
fn a_place_that_takes_no_more_and_a_damaged_record_are_named() {
    /// Takes so many bytes.
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let many = (0..200).map(|number| (Some(number), vec![upsert(service(&format!("shop/{number}")))]));
    let journal = journal_of(&dir, many);
    let whole = exported(&journal, Lsn(1), Lsn(200)).1.len();
    for room in (0..whole).step_by(whole / 20) {
        match export_parquet(&mut journal.read_from(Lsn(1)).unwrap(), Lsn(200), Full(room)) {
            Err(ExportError::Transfer(error)) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
            other => panic!("{other:?}"),
        }
    }
    let segment = dir.path().join("state/journal/00000000000000000001.seg");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 40] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    match export_parquet(&mut journal.read_from(Lsn(1)).unwrap(), Lsn(200), io::sink()) {
        Err(ExportError::Read(ReadError::Damaged { .. })) => {}
        other => panic!("{other:?}"),
    }
}
