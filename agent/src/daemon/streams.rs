//! The journal behind the API: each stream is a thread that reads for as long as its client listens.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use api::journal::{EncodedRecord, JournalError, RecordsQuery};
use api::replay::{Question, StateQuery};
use api::server::{Flow, Read};
use api::{Stored, proto};
use journal::{Filter, Journal, Reader};
use replay::Past;
use storage_schema::id::Lsn;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{self, Sender};

use crate::journal_view::{self, refused};
use crate::past_view;

/// Messages that wait for a slow client, beside one in the hands of who tells and one in those of who encodes.
pub(super) const FLOW_MESSAGES: usize = 1;
/// Records go out together up to this much.
pub(super) const BATCH_BYTES: usize = 64 << 10;
pub(super) const BATCH_RECORDS: usize = 1024;
/// Bytes of a snapshot's chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// Resources of the past go out in messages of so many.
pub(super) const MESSAGE_RESOURCES: usize = 256;
/// How often a stream that follows looks whether its client is still there.
pub(super) const LISTENING_INTERVAL: Duration = Duration::from_millis(200);

/// Runs something that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(JournalError::Failed(error.to_string())),
    }
}

pub(super) async fn records(journal: Journal, query: RecordsQuery) -> Result<Flow<Vec<EncodedRecord>>, JournalError> {
    let reader = journal.reader();
    let (follow, filter) = (query.follow, journal_view::filter(&query));
    let (selection, next) = blocking(move || journal_view::select(&reader, &query).map_err(refused)).await?;
    let (sender, flow) = mpsc::channel(FLOW_MESSAGES);
    tokio::task::spawn_blocking(move || {
        let mut batch = Batch { sender, records: Vec::new(), bytes: 0 };
        let sent = selection.into_iter().try_for_each(|record| batch.add(record.map_err(refused)));
        if sent.and_then(|()| batch.send()).is_ok() && follow {
            follow_on(&journal, next, &filter, &mut batch);
        }
    });
    Ok(flow)
}

/// What is appended from `next` on, until the client goes away or the journal is closed.
fn follow_on(journal: &Journal, next: Lsn, filter: &Filter, batch: &mut Batch) {
    let mut stream = match journal.watch(next) {
        Ok(stream) => stream,
        Err(error) => return drop(batch.add(Err(refused(error)))),
    };
    while !batch.sender.is_closed() {
        let Some(record) = stream.blocking_next(LISTENING_INTERVAL) else { continue };
        let chosen = record.map(journal::Durable::into_inner).and_then(|record| Ok((filter.admits(&record)?, record)));
        let added = match chosen {
            Ok((false, _)) => Ok(()),
            Ok((true, record)) => batch.add(Ok(record)),
            Err(error) => batch.add(Err(refused(error))),
        };
        // What is there already goes out together; nothing waits for what may come.
        let waiting = stream.next_lsn() <= journal.watermarks().durable_lsn;
        if added.is_err() || (!waiting && batch.send().is_err()) {
            return;
        }
    }
}

/// Its client has gone.
pub(super) struct Gone;

struct Batch {
    sender: Sender<Result<Vec<EncodedRecord>, JournalError>>,
    records: Vec<EncodedRecord>,
    bytes: usize,
}

impl Batch {
    /// Takes a record, or the error that ends the stream.
    fn add(&mut self, record: Result<journal::EncodedRecord, JournalError>) -> Result<(), Gone> {
        match record {
            Ok(journal::EncodedRecord { lsn, encoded, .. }) => {
                self.bytes += encoded.len();
                self.records.push(EncodedRecord { lsn, encoded });
                if self.bytes >= BATCH_BYTES || self.records.len() >= BATCH_RECORDS { self.send() } else { Ok(()) }
            }
            Err(error) => {
                self.send()?;
                self.sender.blocking_send(Err(error)).map_err(|_| Gone)?;
                Err(Gone)
            }
        }
    }

    fn send(&mut self) -> Result<(), Gone> {
        self.bytes = 0;
        if self.records.is_empty() {
            return Ok(());
        }
        self.sender.blocking_send(Ok(std::mem::take(&mut self.records))).map_err(|_| Gone)
    }
}

pub(super) fn verify(journal: Journal) -> Flow<proto::verify_journal_response::Step> {
    use proto::verify_journal_response::Step;
    let (sender, flow) = mpsc::channel(FLOW_MESSAGES);
    tokio::task::spawn_blocking(move || {
        // A client that is slow misses some progress, but not the report.
        let report =
            journal.verify(|progress| drop(sender.try_send(Ok(Step::Progress(journal_view::progress(progress))))));
        let step = match report {
            Ok(report) => Ok(Step::Report(journal_view::report(&report))),
            Err(error) => Err(JournalError::Failed(error.to_string())),
        };
        drop(sender.blocking_send(step));
    });
    flow
}

/// Resources as they were, and at least one message.
pub(super) async fn state(
    reader: Reader,
    query: StateQuery,
    questions: &Arc<Semaphore>,
) -> Result<Flow<Read<Vec<Stored>>>, JournalError> {
    let Read { value, state_lsn } = in_turn(questions, move || past_view::state(&Past::of(reader), &query)).await?;
    let mut left = value.into_iter();
    let first = left.by_ref().take(MESSAGE_RESOURCES).collect();
    let rest = std::iter::from_fn(move || {
        let value: Vec<Stored> = left.by_ref().take(MESSAGE_RESOURCES).collect();
        (!value.is_empty()).then_some(value)
    });
    Ok(flow_of(std::iter::once(first).chain(rest).map(move |value| Read { value, state_lsn })))
}

/// The answer to a question.
pub(super) async fn explain(
    reader: Reader,
    question: Question,
    questions: &Arc<Semaphore>,
) -> Result<Flow<Vec<u8>>, JournalError> {
    let document = in_turn(questions, move || past_view::answer(&Past::of(reader), question)).await?;
    let chunks = (0..document.len().div_ceil(CHUNK_BYTES)).map(move |number| {
        let rest = &document[number * CHUNK_BYTES..];
        rest[..rest.len().min(CHUNK_BYTES)].to_vec()
    });
    Ok(flow_of(chunks))
}

/// Runs something that takes much memory, when nothing else does.
async fn in_turn<T: Send + 'static>(
    questions: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, JournalError> + Send + 'static,
) -> Result<T, JournalError> {
    let turn = Arc::clone(questions).acquire_owned().await.expect("it is never closed");
    // The turn ends with the work, also when whoever asked has gone away meanwhile.
    blocking(move || {
        let _turn = turn;
        work()
    })
    .await
}

/// Messages that are there already, for a client at its own speed.
fn flow_of<T: Send + 'static>(messages: impl Iterator<Item = T> + Send + 'static) -> Flow<T> {
    let (sender, flow) = mpsc::channel(FLOW_MESSAGES);
    tokio::spawn(async move {
        for message in messages {
            if sender.send(Ok(message)).await.is_err() {
                return;
            }
        }
    });
    flow
}

pub(super) fn snapshot(journal: Journal) -> Flow<Vec<u8>> {
    let (sender, flow) = mpsc::channel(FLOW_MESSAGES);
    tokio::task::spawn_blocking(move || {
        let mut chunks = Chunks { sender, chunk: Vec::new() };
        if let Err(error) = journal.snapshot(&mut chunks) {
            drop(chunks.sender.blocking_send(Err(JournalError::Failed(error.to_string()))));
        }
    });
    flow
}

/// Writes to a client.
struct Chunks {
    sender: Sender<Result<Vec<u8>, JournalError>>,
    chunk: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.sender.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
