//! Watches behind the API: each is a thread with a place in the journal, which waits for its client.
//!
//! Invariant (bounded): a watch holds one record or page in its hands and [`FLOW_MESSAGES`] on their way; nothing piles up behind a
//! slow client. Who is so slow that retention overtakes it is told.
//! Invariant (exact): at its mark a watch of the state has told the state after that record. Pages of the store come first, each of
//! its own moment, then every record from before the first page up to the store's head after the last one: they make up for what
//! changed between the pages, as a record says what a resource is and not how it changed.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use api::Stored;
use api::filter::{ListQuery, ResourceFilter};
use api::journal::{EncodedRecord, JournalError};
use api::server::Flow;
use api::watch::{RecordsStep, RecordsWatch, StateChanges, StateStep, StateWatch};
use journal::{Filter, Journal, ReadError, RecordStream};
use storage_schema::id::Lsn;
use storage_schema::record::{Delta, Record};
use storage_schema::resource::{Kind, ResourceKey};
use tokio::sync::mpsc::{self, Sender};

use super::backend::page;
use super::streams::{
    BATCH_BYTES, BATCH_RECORDS, FLOW_MESSAGES, Gone, LISTENING_INTERVAL, MESSAGE_RESOURCES, blocking,
};
use crate::journal_view::refused;

/// How often progress is told while there is nothing else to tell.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Records as they become durable.
pub(super) async fn records(journal: Journal, watch: RecordsWatch) -> Result<Flow<RecordsStep>, JournalError> {
    let RecordsWatch { from_lsn, source, kind, name } = watch;
    let first = from_lsn.unwrap_or_else(|| journal.watermarks().durable_lsn.next());
    let telling = Telling::begin(&journal, first).await?;
    let (told, flow) = mpsc::channel(FLOW_MESSAGES);
    let filter = Filter { source, kind, name };
    let teller = RecordsTeller { told, filter, batch: Vec::new(), bytes: 0 };
    tokio::task::spawn_blocking(move || telling.run(&journal, teller));
    Ok(flow)
}

/// The state, and what becomes of it.
pub(super) async fn state(journal: Journal, watch: StateWatch) -> Result<Flow<StateStep>, JournalError> {
    let seen_lsn = watch.after_lsn.unwrap_or_else(|| journal.watermarks().durable_lsn);
    let telling = Telling::begin(&journal, seen_lsn.next()).await?;
    // Pages are of this record or later ones.
    let durable_lsn = journal.watermarks().durable_lsn;
    journal.wait_stored(durable_lsn).await.map_err(refused)?;
    let (told, flow) = mpsc::channel(FLOW_MESSAGES);
    tokio::task::spawn_blocking(move || {
        let mut teller = StateTeller { told, watch, complete_lsn: Some(durable_lsn) };
        if teller.watch.after_lsn.is_none() {
            match teller.tell_initial(&journal) {
                Ok(Ok(())) => teller.complete_lsn = Some(journal.watermarks().store_lsn),
                Ok(Err(Gone)) => return,
                Err(error) => return drop(teller.told.blocking_send(Err(refused(error)))),
            }
        }
        telling.run(&journal, teller);
    });
    Ok(flow)
}

/// What a watch tells of records.
trait Teller {
    type Step;

    /// Where it tells.
    fn told(&self) -> &Sender<Result<Self::Step, JournalError>>;

    /// Tells a record, or keeps it to be told together with the next ones; whether it is one that was asked for.
    fn tell(&mut self, record: journal::EncodedRecord) -> Result<Result<bool, Gone>, ReadError>;

    /// Tells what was kept; everything up to a record is known by now.
    fn flush(&mut self, up_to: Lsn) -> Result<(), Gone>;

    /// How progress is told.
    fn progress(lsn: Lsn) -> Self::Step;
}

/// A place in the journal, and how much of it is told.
struct Telling {
    stream: RecordStream,
    /// The last record that the client knows to be told.
    told_lsn: Lsn,
    /// When progress was told last; `None`: not yet.
    progress: Option<Instant>,
}

impl Telling {
    /// Takes its place, if the records are still there.
    async fn begin(journal: &Journal, first: Lsn) -> Result<Self, JournalError> {
        let journal = journal.clone();
        let first = first.max(Lsn::FIRST);
        blocking(move || {
            let durable_lsn = journal.watermarks().durable_lsn;
            if first > durable_lsn.next() {
                return Err(refused(ReadError::NotThere { wanted: first, durable_lsn }));
            }
            let stream = journal.watch(first).map_err(refused)?;
            Ok(Self { stream, told_lsn: Lsn(first.0 - 1), progress: None })
        })
        .await
    }

    /// Tells until the client has gone or something is wrong.
    fn run<T: Teller>(mut self, journal: &Journal, mut teller: T) {
        if teller.flush(self.told_lsn).is_err() {
            return;
        }
        while !teller.told().is_closed() {
            let told = match self.stream.blocking_next(LISTENING_INTERVAL) {
                None => Ok(Ok(false)),
                Some(record) => record.map(journal::Durable::into_inner).and_then(|record| teller.tell(record)),
            };
            let gone = match told {
                Ok(Ok(is_new)) => {
                    let known_lsn = Lsn(self.stream.next_lsn().0 - 1);
                    let is_behind = known_lsn < journal.watermarks().durable_lsn;
                    // What is there already goes out together; nothing waits for what may come.
                    !is_behind && self.tell_all(&mut teller, known_lsn, is_new).is_err()
                }
                Ok(Err(Gone)) => true,
                Err(error) => {
                    drop(teller.flush(Lsn(self.stream.next_lsn().0 - 1)));
                    drop(teller.told().blocking_send(Err(refused(error))));
                    true
                }
            };
            if gone {
                return;
            }
        }
    }

    fn tell_all<T: Teller>(&mut self, teller: &mut T, known_lsn: Lsn, is_new: bool) -> Result<(), Gone> {
        teller.flush(known_lsn)?;
        if is_new {
            self.told_lsn = known_lsn;
        }
        let is_due = match self.progress {
            None => true,
            Some(last) => known_lsn > self.told_lsn && last.elapsed() >= PROGRESS_INTERVAL,
        };
        if is_due {
            teller.told().blocking_send(Ok(T::progress(known_lsn))).map_err(|_| Gone)?;
            (self.told_lsn, self.progress) = (known_lsn, Some(Instant::now()));
        }
        Ok(())
    }
}

struct RecordsTeller {
    told: Sender<Result<RecordsStep, JournalError>>,
    filter: Filter,
    batch: Vec<EncodedRecord>,
    bytes: usize,
}

impl Teller for RecordsTeller {
    type Step = RecordsStep;

    fn told(&self) -> &Sender<Result<RecordsStep, JournalError>> {
        &self.told
    }

    fn tell(&mut self, record: journal::EncodedRecord) -> Result<Result<bool, Gone>, ReadError> {
        if !self.filter.admits(&record)? {
            return Ok(Ok(false));
        }
        let journal::EncodedRecord { lsn, encoded, .. } = record;
        self.bytes += encoded.len();
        self.batch.push(EncodedRecord { lsn, encoded });
        let is_full = self.bytes >= BATCH_BYTES || self.batch.len() >= BATCH_RECORDS;
        Ok(if is_full { self.flush(lsn).map(|()| true) } else { Ok(true) })
    }

    fn flush(&mut self, _up_to: Lsn) -> Result<(), Gone> {
        self.bytes = 0;
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.told.blocking_send(Ok(RecordsStep::Records(batch))).map_err(|_| Gone)
    }

    fn progress(lsn: Lsn) -> RecordsStep {
        RecordsStep::Progress(lsn)
    }
}

struct StateTeller {
    told: Sender<Result<StateStep, JournalError>>,
    watch: StateWatch,
    /// The record after which the initial state is complete, until that is told.
    complete_lsn: Option<Lsn>,
}

impl StateTeller {
    fn say(&self, step: StateStep) -> Result<(), Gone> {
        self.told.blocking_send(Ok(step)).map_err(|_| Gone)
    }

    /// The store's resources, page by page.
    fn tell_initial(&self, journal: &Journal) -> Result<Result<(), Gone>, ReadError> {
        let StateWatch { kind, name_prefix, owner, .. } = &self.watch;
        let filter =
            ResourceFilter { name_prefix: name_prefix.clone(), owner: owner.clone(), ..ResourceFilter::default() };
        for kind in Kind::ALL.into_iter().filter(|one| kind.is_none_or(|wanted| wanted == *one)) {
            let mut query = ListQuery { kind, filter: filter.clone(), after: None };
            loop {
                let page = page(journal, &query, MESSAGE_RESOURCES)?;
                if !page.resources.is_empty() && self.say(StateStep::Initial(page.resources)).is_err() {
                    return Ok(Err(Gone));
                }
                match page.next {
                    Some(next) if !self.told.is_closed() => query.after = Some(next),
                    Some(_) => return Ok(Err(Gone)),
                    None => break,
                }
            }
        }
        Ok(Ok(()))
    }
}

impl Teller for StateTeller {
    type Step = StateStep;

    fn told(&self) -> &Sender<Result<StateStep, JournalError>> {
        &self.told
    }

    fn tell(&mut self, record: journal::EncodedRecord) -> Result<Result<bool, Gone>, ReadError> {
        let lsn = record.lsn;
        let record = record.decode().map_err(|source| ReadError::Undecodable { lsn, source })?;
        let changes = changes_of(record, &self.watch);
        let is_new = changes.is_some();
        let mut told = changes.map_or(Ok(()), |changes| self.say(StateStep::Changes(changes)));
        // Exactly here: what comes later is of a later state.
        if told.is_ok() && self.complete_lsn == Some(lsn) {
            told = self.flush(lsn);
        }
        Ok(told.map(|()| is_new))
    }

    fn flush(&mut self, up_to: Lsn) -> Result<(), Gone> {
        match self.complete_lsn.take_if(|complete_lsn| *complete_lsn <= up_to) {
            Some(complete_lsn) => self.say(StateStep::Complete(complete_lsn)),
            None => Ok(()),
        }
    }

    fn progress(lsn: Lsn) -> StateStep {
        StateStep::Progress(lsn)
    }
}

/// What a record changes among the resources that are watched; of two deltas for one resource the later one holds.
///
/// Only a record that takes over can make a resource another source's, so with an owner given the resources of such records of
/// other sources are no longer among those that are watched, whether or not they were.
fn changes_of(record: Record, watch: &StateWatch) -> Option<StateChanges> {
    let Record { lsn, transaction, .. } = record;
    let source = transaction.origin.source;
    let is_owners = watch.owner.as_ref().is_none_or(|owner| *owner == source);
    if !is_owners && !transaction.take_over {
        return None;
    }
    let mut changes = StateChanges { lsn, changed: Vec::new(), removed: Vec::new() };
    let mut seen: HashSet<ResourceKey> = HashSet::new();
    for delta in transaction.deltas.into_iter().rev() {
        let key = delta.key();
        let is_watched = watch.kind.is_none_or(|kind| kind == key.kind) && key.name.starts_with(&watch.name_prefix);
        if !is_watched || !seen.insert(key.clone()) {
            continue;
        }
        match delta {
            Delta::Upsert(resource) if is_owners => {
                changes.changed.push(Stored { resource, changed_lsn: lsn, owner: source.clone() });
            }
            Delta::Upsert(_) | Delta::Remove(_) => changes.removed.push(key),
        }
    }
    changes.changed.reverse();
    changes.removed.reverse();
    (!seen.is_empty()).then_some(changes)
}
