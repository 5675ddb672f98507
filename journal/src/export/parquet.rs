//! Records as a Parquet table, made for questions in SQL: one row for each delta, in the order of the journal.
//!
//! A record without deltas has one row, in which the columns of the delta are null. What is said of a record stands in each of
//! its rows.
//!
//! | column | type | null | meaning |
//! |---|---|---|---|
//! | `lsn` | number | no | the record's number |
//! | `hash` | text | no | its hash, 64 lower-case hexadecimal digits, as everywhere else |
//! | `previous_hash` | text | no | the hash of the record before it; zeros before the first |
//! | `wall_time` | time | yes | wall clock at the append; null if it showed a time after 2262-04-11 |
//! | `received_time` | time | yes | wall clock when its pusher asked for a place in the queue; null if it was not noted |
//! | `monotonic_ns` | number | no | nanoseconds since the boot, at the append; compares only within one boot |
//! | `boot_id` | word | no | the boot in which it was appended, 32 hexadecimal digits |
//! | `source` | word | no | who pushed it |
//! | `client` | word | yes | who pushed it, as the transport knows it; null if it was not noted |
//! | `incarnation` | number | no | which life of the source |
//! | `version` | number | yes | the source's own version of it; null if the source gave none |
//! | `cause` | word | no | why it was written: `push`, `sync`, `expiry` or `agent` |
//! | `take_over` | word | yes | `yes` if the pusher took resources of another source over by force, otherwise null |
//! | `event` | text | yes | what happened, as JSON, in a record that tells of an event; such a record has no deltas |
//! | `delta` | number | yes | which of the record's deltas this row is, from 0 |
//! | `action` | word | yes | `upsert` or `remove` |
//! | `kind` | word | yes | the resource's kind: `Service`, `Workload` or `Node` |
//! | `name` | text | yes | the resource's name within its kind |
//! | `resource` | text | yes | after an upsert the resource, as JSON of the form that manifests have; null after a removal |
//!
//! A *number* is a `UInt64`, a *text* `Utf8`, a *word* `Utf8` with a dictionary (few values, often repeated), and a *time* a
//! timestamp in nanoseconds, UTC. The file's key-value metadata has the version of this table under `holdfast.table_version` and
//! the journal's store id under `holdfast.store_id`. Columns may be added; those that there are keep name, type and meaning
//! within a version.
//!
//! # Query it
//!
//! ```sql
//! -- DuckDB. Who pushed how much?
//! SELECT source, count(DISTINCT lsn) AS records, count(delta) AS deltas FROM 'journal.parquet' GROUP BY source ORDER BY deltas DESC;
//! -- What changed in these ten minutes?
//! SELECT lsn, wall_time, action, kind, name FROM 'journal.parquet'
//!   WHERE wall_time BETWEEN '2026-03-01 12:00:00Z' AND '2026-03-01 12:10:00Z' ORDER BY lsn, delta;
//! -- When was how much pushed? (DuckDB reckons with times in microseconds: hence the cast.)
//! SELECT time_bucket(INTERVAL 1 MINUTE, wall_time::TIMESTAMPTZ) AS minute, count(delta) AS deltas FROM 'journal.parquet'
//!   GROUP BY minute ORDER BY minute;
//! -- A workload's addresses through time.
//! SELECT lsn, wall_time, resource->>'status' AS status, resource->'addresses' AS addresses FROM 'journal.parquet'
//!   WHERE kind = 'Workload' AND name = 'cluster1//Pod/shop/cart-1' ORDER BY lsn, delta;
//! -- Which journal is it?
//! SELECT decode(key), decode(value) FROM parquet_kv_metadata('journal.parquet');
//! ```
//!
//! # Memory
//!
//! A row group holds at most 65,536 rows, and ends with the row that brings it to 32 MiB. No more than that is held, however large
//! the journal. The file is readable once the export has returned: what one that failed has written is none.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::builder::{StringBuilder, StringDictionaryBuilder, TimestampNanosecondBuilder, UInt64Builder};
use arrow_array::types::Int32Type;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use storage_schema::id::{Lsn, StoreId};
use storage_schema::record::{Delta, Event, Record};

use super::ExportError;
use crate::error::ReadError;
use crate::read::{EncodedRecord, Records};

const TABLE_VERSION: &str = "1";
const GROUP_ROWS_MAX: usize = 65_536;
const GROUP_BYTES_MAX: usize = 32 << 20;
const UTC: &str = "UTC";

/// A column of the table.
#[derive(Clone, Copy, Debug)]
pub struct ParquetColumn {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub meaning: &'static str,
    /// Whether it may be null.
    pub nullable: bool,
    cell: Cell,
}

/// A column's type, and how its cell in a row is found.
#[derive(Clone, Copy, Debug)]
enum Cell {
    Number(fn(&Row<'_>) -> Option<u64>),
    Time(fn(&Row<'_>) -> Option<i64>),
    Text(for<'a> fn(&Row<'a>) -> Option<Cow<'a, str>>),
    Word(for<'a> fn(&Row<'a>) -> Option<Cow<'a, str>>),
}

/// The columns in their order: the one definition of the table.
pub const PARQUET_COLUMNS: [ParquetColumn; 19] = [
    always("lsn", "the record's number", Cell::Number(|row| Some(row.record.lsn.0))),
    always(
        "hash",
        "its hash, 64 lower-case hexadecimal digits, as everywhere else",
        Cell::Text(|row| Some(row.hash.into())),
    ),
    always(
        "previous_hash",
        "the hash of the record before it; zeros before the first",
        Cell::Text(|row| Some(row.previous_hash.into())),
    ),
    maybe(
        "wall_time",
        "wall clock at the append; null if it showed a time after 2262-04-11",
        Cell::Time(|row| row.record.wall_ns.try_into().ok()),
    ),
    maybe(
        "received_time",
        "wall clock when its pusher asked for a place in the queue; null if it was not noted",
        Cell::Time(|row| row.record.received_wall_ns?.try_into().ok()),
    ),
    always(
        "monotonic_ns",
        "nanoseconds since the boot, at the append; compares only within one boot",
        Cell::Number(|row| Some(row.record.monotonic_ns)),
    ),
    always(
        "boot_id",
        "the boot in which it was appended, 32 hexadecimal digits",
        Cell::Word(|row| Some(row.boot_id.into())),
    ),
    always("source", "who pushed it", Cell::Word(|row| Some((&*row.record.transaction.origin.source).into()))),
    maybe(
        "client",
        "who pushed it, as the transport knows it; null if it was not noted",
        Cell::Word(|row| row.record.client.as_deref().map(Cow::Borrowed)),
    ),
    always(
        "incarnation",
        "which life of the source",
        Cell::Number(|row| Some(row.record.transaction.origin.incarnation)),
    ),
    maybe(
        "version",
        "the source's own version of it; null if the source gave none",
        Cell::Number(|row| row.record.transaction.origin.version),
    ),
    always(
        "cause",
        "why it was written: `push`, `sync`, `expiry` or `agent`",
        Cell::Word(|row| Some(row.record.transaction.cause.as_str().into())),
    ),
    maybe(
        "take_over",
        "`yes` if the pusher took resources of another source over by force, otherwise null",
        Cell::Word(|row| row.record.transaction.take_over.then(|| "yes".into())),
    ),
    maybe(
        "event",
        "what happened, as JSON, in a record that tells of an event; such a record has no deltas",
        Cell::Text(|row| row.record.transaction.event.as_ref().map(event).map(Cow::Owned)),
    ),
    maybe("delta", "which of the record's deltas this row is, from 0", Cell::Number(|row| Some(row.delta?.0))),
    maybe("action", "`upsert` or `remove`", Cell::Word(|row| Some(action(row.delta?.1).into()))),
    maybe(
        "kind",
        "the resource's kind: `Service`, `Workload` or `Node`",
        Cell::Word(|row| Some(kind(row.delta?.1).into())),
    ),
    maybe("name", "the resource's name within its kind", Cell::Text(|row| Some(name(row.delta?.1).into()))),
    maybe(
        "resource",
        "after an upsert the resource, as JSON of the form that manifests have; null after a removal",
        Cell::Text(|row| resource(row.delta?.1).map(Cow::Owned)),
    ),
];

/// Writes records up to `last` as a Parquet file; returns how many.
pub fn export_parquet(records: &mut Records, last: Lsn, out: impl Write + Send) -> Result<u64, ExportError> {
    let mut table = ParquetExport::new(records.store_id(), out)?;
    let mut written = 0;
    while records.next_lsn() <= last {
        let Some(record) = records.next_encoded() else { break };
        table.push(&*record?)?;
        written += 1;
    }
    table.finish()?;
    Ok(written)
}

const fn always(name: &'static str, meaning: &'static str, cell: Cell) -> ParquetColumn {
    ParquetColumn { name, meaning, nullable: false, cell }
}

const fn maybe(name: &'static str, meaning: &'static str, cell: Cell) -> ParquetColumn {
    ParquetColumn { name, meaning, nullable: true, cell }
}

impl ParquetColumn {
    /// Its type as the documentation calls it: `number`, `text`, `word` or `time`.
    pub const fn type_name(&self) -> &'static str {
        match self.cell {
            Cell::Number(_) => "number",
            Cell::Time(_) => "time",
            Cell::Text(_) => "text",
            Cell::Word(_) => "word",
        }
    }

    fn field(&self) -> Field {
        let data_type = match self.cell {
            Cell::Number(_) => DataType::UInt64,
            Cell::Time(_) => DataType::Timestamp(TimeUnit::Nanosecond, Some(UTC.into())),
            Cell::Text(_) => DataType::Utf8,
            Cell::Word(_) => DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
        };
        Field::new(self.name, data_type, self.nullable)
    }
}

/// What a row is made of.
struct Row<'a> {
    record: &'a Record,
    hash: &'a str,
    previous_hash: &'a str,
    boot_id: &'a str,
    delta: Option<(u64, &'a Delta)>,
}

const fn action(delta: &Delta) -> &'static str {
    match delta {
        Delta::Upsert(_) => "upsert",
        Delta::Remove(_) => "remove",
    }
}

const fn kind(delta: &Delta) -> &'static str {
    match delta {
        Delta::Upsert(resource) => resource.kind().as_str(),
        Delta::Remove(key) => key.kind.as_str(),
    }
}

fn name(delta: &Delta) -> &str {
    match delta {
        Delta::Upsert(resource) => resource.name(),
        Delta::Remove(key) => &key.name,
    }
}

fn resource(delta: &Delta) -> Option<String> {
    match delta {
        Delta::Upsert(resource) => Some(serde_json::to_string(resource).expect("a resource is fields and lists")),
        Delta::Remove(_) => None,
    }
}

fn event(event: &Event) -> String {
    serde_json::to_string(event).expect("an event is fields")
}

/// A Parquet file that is being written, and the row group that is being gathered for it.
pub struct ParquetExport<W: Write + Send> {
    writer: ArrowWriter<W>,
    schema: SchemaRef,
    columns: Vec<Cells>,
    rows: usize,
    bytes: usize,
}

impl<W: Write + Send> ParquetExport<W> {
    /// Begins a file of the journal `store_id` in `out`.
    pub fn new(store_id: StoreId, out: W) -> Result<Self, ExportError> {
        let schema = Arc::new(Schema::new(PARQUET_COLUMNS.iter().map(ParquetColumn::field).collect::<Vec<_>>()));
        let metadata =
            [("holdfast.table_version", TABLE_VERSION.to_owned()), ("holdfast.store_id", store_id.to_string())];
        let metadata = metadata.into_iter().map(|(key, value)| KeyValue::new(key.to_owned(), value)).collect();
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_max_row_group_row_count(Some(GROUP_ROWS_MAX))
            .set_created_by(concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_key_value_metadata(Some(metadata))
            .build();
        let writer = ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties)).map_err(transfer)?;
        let columns = PARQUET_COLUMNS.iter().map(|column| Cells::new(column.cell)).collect();
        Ok(Self { writer, schema, columns, rows: 0, bytes: 0 })
    }

    /// Adds a record.
    pub fn push(&mut self, encoded: &EncodedRecord) -> Result<(), ExportError> {
        let record = encoded.decode().map_err(|source| ReadError::Undecodable { lsn: encoded.lsn, source })?;
        let (hash, previous_hash) = (encoded.hash().to_string(), record.previous_hash.to_string());
        let boot_id = record.boot_id.to_string();
        let row = |delta| Row { record: &record, hash: &hash, previous_hash: &previous_hash, boot_id: &boot_id, delta };
        let deltas = &record.transaction.deltas;
        if deltas.is_empty() {
            self.push_row(&row(None))?;
        }
        for numbered in (0..).zip(deltas) {
            self.push_row(&row(Some(numbered)))?;
        }
        Ok(())
    }

    fn push_row(&mut self, row: &Row<'_>) -> Result<(), ExportError> {
        self.bytes += self.columns.iter_mut().map(|cells| cells.push(row)).sum::<usize>();
        self.rows += 1;
        if self.rows == GROUP_ROWS_MAX || self.bytes >= GROUP_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    /// Writes what was gathered as a row group.
    fn flush(&mut self) -> Result<(), ExportError> {
        if self.rows > 0 {
            let arrays = self.columns.iter_mut().map(Cells::finish).collect();
            let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays);
            let batch = batch.expect("schema and arrays are made of the same columns, and each row has a cell in each");
            self.writer.write(&batch).and_then(|()| self.writer.flush()).map_err(transfer)?;
            (self.rows, self.bytes) = (0, 0);
        }
        Ok(())
    }

    /// Writes what is left, and the file's end; without it there is no file.
    pub fn finish(mut self) -> Result<(), ExportError> {
        self.flush()?;
        self.writer.finish().map_err(transfer)?;
        Ok(())
    }
}

/// The cells of one column in the row group that is being gathered.
enum Cells {
    Number(fn(&Row<'_>) -> Option<u64>, UInt64Builder),
    Time(fn(&Row<'_>) -> Option<i64>, TimestampNanosecondBuilder),
    Text(for<'a> fn(&Row<'a>) -> Option<Cow<'a, str>>, StringBuilder),
    Word(for<'a> fn(&Row<'a>) -> Option<Cow<'a, str>>, StringDictionaryBuilder<Int32Type>),
}

impl Cells {
    fn new(cell: Cell) -> Self {
        match cell {
            Cell::Number(of) => Self::Number(of, UInt64Builder::new()),
            Cell::Time(of) => Self::Time(of, TimestampNanosecondBuilder::new().with_timezone(UTC)),
            Cell::Text(of) => Self::Text(of, StringBuilder::new()),
            Cell::Word(of) => Self::Word(of, StringDictionaryBuilder::new()),
        }
    }

    /// Adds a row's cell; returns how many bytes that takes, about.
    fn push(&mut self, row: &Row<'_>) -> usize {
        const FIXED_BYTES: usize = 8;
        match self {
            Self::Number(of, cells) => {
                cells.append_option(of(row));
                FIXED_BYTES
            }
            Self::Time(of, cells) => {
                cells.append_option(of(row));
                FIXED_BYTES
            }
            Self::Text(of, cells) => {
                let text = of(row);
                cells.append_option(text.as_deref());
                FIXED_BYTES + text.map_or(0, |text| text.len())
            }
            Self::Word(of, cells) => {
                let word = of(row);
                cells.append_option(word.as_deref());
                FIXED_BYTES + word.map_or(0, |word| word.len())
            }
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Number(_, cells) => Arc::new(cells.finish()),
            Self::Time(_, cells) => Arc::new(cells.finish()),
            Self::Text(_, cells) => Arc::new(cells.finish()),
            Self::Word(_, cells) => Arc::new(cells.finish()),
        }
    }
}

fn transfer(error: ParquetError) -> ExportError {
    ExportError::Transfer(match error {
        // What the place that is written to has said.
        ParquetError::External(source) => source.downcast().map_or_else(io::Error::other, |error| *error),
        other => io::Error::other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table_is_the_table() {
        let documented: Vec<[&str; 4]> = include_str!("parquet.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | "))
            .skip(1)
            .map(|row| {
                let mut cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
                cells[0] = cells[0].trim_matches('`');
                cells.try_into().expect("four cells")
            })
            .collect();
        let data: Vec<[&str; 4]> = PARQUET_COLUMNS
            .iter()
            .map(|column| [column.name, column.type_name(), if column.nullable { "yes" } else { "no" }, column.meaning])
            .collect();
        assert_eq!(documented, data);
    }
}
