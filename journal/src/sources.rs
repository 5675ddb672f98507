//! Who has pushed what: deduplication by (source, version) and fencing by incarnation.
//!
//! A source's versions ascend over all of its lives; a newer incarnation fences the older ones off. What is queued but not
//! durable counts: a push that comes again while the first one is on its way waits for the same acknowledgement.
//! Records that the store has folded are forgotten here and answered from there.

use std::collections::{HashMap, VecDeque};

use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::{ArchivedCause, ArchivedEvent, ArchivedTransaction, Cause, Event, Origin, Transaction};
use tokio::sync::watch;

use crate::append::{Ack, Outcome};
use crate::error::{AppendError, OriginError, ReadError};
use crate::read::Records;

/// What is known about a source, or what some of its records say about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The newest life of it that has written.
    pub incarnation: u64,
    /// Its last version, if it numbers its transactions.
    pub last_version: Option<u64>,
    /// The last record it wrote.
    pub last_lsn: Lsn,
    /// How many seconds what it owns stays when it is gone, as it has said last; 0, or if it has never said: for ever.
    pub ttl_seconds: Option<u32>,
    /// Whether what it owned has expired since it said all that it has, in a sync; `None`: neither has happened.
    pub expired: Option<bool>,
}

impl SourceState {
    /// What a record says of its source.
    pub(crate) fn of(transaction: &Transaction, lsn: Lsn) -> Self {
        let Origin { source: _, incarnation, version } = transaction.origin;
        let ttl_seconds = match transaction.event {
            Some(Event::Leased(lease)) => Some(lease.ttl_seconds),
            Some(Event::Drained(_)) | None => None,
        };
        let expired = match transaction.cause {
            Cause::Expiry => Some(true),
            Cause::Sync => Some(false),
            Cause::Push | Cause::Agent => None,
        };
        Self { incarnation, last_version: version, last_lsn: lsn, ttl_seconds, expired }
    }

    /// The same, of a record as it is stored.
    pub(crate) fn of_archived(transaction: &ArchivedTransaction, lsn: Lsn) -> Self {
        let origin = &transaction.origin;
        let ttl_seconds = match transaction.event.as_ref() {
            Some(ArchivedEvent::Leased(lease)) => Some(lease.ttl_seconds.to_native()),
            Some(ArchivedEvent::Drained(_)) | None => None,
        };
        let expired = match transaction.cause {
            ArchivedCause::Expiry => Some(true),
            ArchivedCause::Sync => Some(false),
            ArchivedCause::Push | ArchivedCause::Agent => None,
        };
        let last_version = origin.version.as_ref().map(|version| version.to_native());
        Self { incarnation: origin.incarnation.to_native(), last_version, last_lsn: lsn, ttl_seconds, expired }
    }

    /// A later state: what it says nothing about is as it was.
    pub(crate) fn after(self, before: Self) -> Self {
        Self {
            last_version: self.last_version.or(before.last_version),
            ttl_seconds: self.ttl_seconds.or(before.ttl_seconds),
            expired: self.expired.or(before.expired),
            ..self
        }
    }

    /// After how many seconds without its source what it owns expires; `None`: never.
    pub fn expires_after_seconds(&self) -> Option<u32> {
        self.ttl_seconds.filter(|ttl_seconds| *ttl_seconds > 0)
    }

    /// Whether what it owned has expired, and it has not said since what it has.
    pub fn has_expired(&self) -> bool {
        self.expired == Some(true)
    }
}

/// Records that the store does not have yet.
#[derive(Debug, Default)]
pub(crate) struct Behind {
    /// How many.
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// What they make of their sources.
    pub(crate) sources: HashMap<String, SourceState>,
}

impl Behind {
    /// What these records come to.
    pub(crate) fn read(records: &mut Records) -> Result<Self, ReadError> {
        let mut behind = Self::default();
        while let Some(record) = records.next_encoded() {
            let record = record?.into_inner();
            let archived = record.access().map_err(|source| ReadError::Undecodable { lsn: record.lsn, source })?;
            let name = &archived.transaction.origin.source;
            let state = SourceState::of_archived(&archived.transaction, record.lsn);
            match behind.sources.get_mut(name.as_str()) {
                Some(source) => *source = state.after(*source),
                None => drop(behind.sources.insert(name.as_str().to_owned(), state)),
            }
            behind.records += 1;
            behind.bytes += record.encoded.len() as u64;
        }
        Ok(behind)
    }
}

/// What became of a version of a source.
#[derive(Clone, Debug)]
pub enum Recollection {
    /// It is in the journal, or on its way there.
    Accepted(Ack),
    /// It is not in the journal.
    NotThere,
    /// It is not newer than the last one, and older than every receipt that is kept.
    Forgotten,
}

/// A record that a source has written.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) lsn: Lsn,
    pub(crate) hash: RecordHash,
    pub(crate) outcome: watch::Receiver<Outcome>,
}

/// What is known about a push.
#[derive(Clone, Debug)]
pub(crate) enum Standing {
    /// New.
    Fresh,
    /// It is this record.
    Known(Known),
    /// Not newer than the last one, and not among the recent ones: the store may know it.
    AskStore { last: u64 },
}

/// All sources, with their recent pushes.
#[derive(Debug, Default)]
pub(crate) struct Sources(HashMap<String, Source>);

#[derive(Debug)]
struct Source {
    state: SourceState,
    /// Versions that may not be in the store yet, ascending.
    recent: VecDeque<(u64, Known)>,
}

impl Sources {
    pub(crate) fn new(states: impl IntoIterator<Item = (String, SourceState)>) -> Self {
        Self(states.into_iter().map(|(name, state)| (name, Source { state, recent: VecDeque::new() })).collect())
    }

    /// Goes on with what the store is behind.
    pub(crate) fn follow(&mut self, behind: HashMap<String, SourceState>) {
        for (name, state) in behind {
            match self.0.get_mut(&name) {
                // A fold that was interrupted may have been there already.
                Some(source) if source.state.last_lsn >= state.last_lsn => {}
                Some(source) => source.state = state.after(source.state),
                None => drop(self.0.insert(name, Source { state, recent: VecDeque::new() })),
            }
        }
    }

    pub(crate) fn state(&self, name: &str) -> Option<SourceState> {
        self.0.get(name).map(|source| source.state)
    }

    /// How many recent versions of a source are known here, and the oldest of them.
    pub(crate) fn recent(&self, name: &str) -> (usize, Option<u64>) {
        let recent = self.0.get(name).map(|source| &source.recent);
        (recent.map_or(0, VecDeque::len), recent.and_then(|recent| recent.front()).map(|(version, _)| *version))
    }

    pub(crate) fn all(&self) -> Vec<(String, SourceState)> {
        self.0.iter().map(|(name, source)| (name.clone(), source.state)).collect()
    }

    /// What is known about a push.
    pub(crate) fn standing(&self, origin: &Origin) -> Result<Standing, OriginError> {
        let Some(source) = self.0.get(&origin.source) else { return Ok(Standing::Fresh) };
        if origin.incarnation < source.state.incarnation {
            return Err(OriginError::Fenced {
                origin: origin.source.clone(),
                given: origin.incarnation,
                current: source.state.incarnation,
            });
        }
        let (Some(given), Some(last)) = (origin.version, source.state.last_version) else { return Ok(Standing::Fresh) };
        if given > last {
            return Ok(Standing::Fresh);
        }
        Ok(match source.recent.binary_search_by_key(&given, |recent| recent.0) {
            Ok(at) => Standing::Known(source.recent[at].1.clone()),
            Err(_) => Standing::AskStore { last },
        })
    }

    /// Refuses what must not be journaled, whatever the caller has asked before.
    pub(crate) fn admit(&self, origin: &Origin) -> Result<(), AppendError> {
        match self.standing(origin)? {
            Standing::Fresh => Ok(()),
            Standing::Known(_) | Standing::AskStore { .. } => Err(AppendError::Repeated {
                origin: origin.source.clone(),
                version: origin.version.unwrap_or_default(),
            }),
        }
    }

    /// Notes a push that has got its number.
    pub(crate) fn note(
        &mut self,
        transaction: &Transaction,
        known: &Known,
        stored_lsn: Lsn,
        receipts_per_source: usize,
    ) {
        let (state, origin) = (SourceState::of(transaction, known.lsn), &transaction.origin);
        let source = match self.0.get_mut(&origin.source) {
            Some(source) => source,
            None => self.0.entry(origin.source.clone()).or_insert(Source { state, recent: VecDeque::new() }),
        };
        source.state = state.after(source.state);
        while source.recent.front().is_some_and(|front| front.1.lsn <= stored_lsn) {
            source.recent.pop_front();
        }
        if source.recent.len() >= receipts_per_source {
            source.recent.pop_front();
        }
        if let Some(version) = origin.version {
            source.recent.push_back((version, known.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(incarnation: u64, version: impl Into<Option<u64>>) -> Origin {
        Origin { source: "cp".to_owned(), incarnation, version: version.into() }
    }

    fn pushed(incarnation: u64, version: impl Into<Option<u64>>) -> Transaction {
        Transaction::push(origin(incarnation, version), Vec::new())
    }

    fn known(lsn: u64) -> Known {
        Known { lsn: Lsn(lsn), hash: RecordHash::default(), outcome: watch::channel(Outcome::Pending).1 }
    }

    /// `Some(lsn)` for a known record, `None` for a fresh one, `Err(last)` where the store is asked.
    fn standing(sources: &Sources, origin: &Origin) -> Result<Option<u64>, u64> {
        match sources.standing(origin).unwrap() {
            Standing::Fresh => Ok(None),
            Standing::Known(known) => Ok(Some(known.lsn.0)),
            Standing::AskStore { last } => Err(last),
        }
    }

    #[test]
    fn versions_are_recognised_refused_and_forgotten() {
        let mut sources = Sources::default();
        assert_eq!(standing(&sources, &origin(1, 5)), Ok(None));
        sources.note(&pushed(1, 5), &known(1), Lsn::ZERO, 10);
        sources.note(&pushed(1, 7), &known(2), Lsn::ZERO, 10);
        assert_eq!(standing(&sources, &origin(1, 5)), Ok(Some(1)));
        assert_eq!(standing(&sources, &origin(1, 6)), Err(7));
        assert_eq!(standing(&sources, &origin(1, 8)), Ok(None));
        assert!(matches!(sources.admit(&origin(1, 7)), Err(AppendError::Repeated { version: 7, .. })));
        // Once the store has it, the store is asked.
        sources.note(&pushed(1, 9), &known(3), Lsn(2), 10);
        assert_eq!(standing(&sources, &origin(1, 7)), Err(9));
    }

    #[test]
    fn unnumbered_pushes_keep_the_last_version() {
        let mut sources = Sources::default();
        sources.note(&pushed(1, 5), &known(1), Lsn::ZERO, 10);
        sources.note(&pushed(1, None), &known(2), Lsn::ZERO, 10);
        let state = sources.state("cp").unwrap();
        assert_eq!((state.last_version, state.last_lsn), (Some(5), Lsn(2)));
    }

    #[test]
    fn what_a_record_says_nothing_about_is_as_it_was() {
        let mut sources = Sources::default();
        let leased = Event::Leased(storage_schema::record::Lease { ttl_seconds: 30 });
        let leased = Transaction { event: Some(leased), ..pushed(1, None) };
        let caused = |cause| Transaction { cause, ..pushed(1, None) };
        let expected = [
            (pushed(1, 5), (None, false)),
            (leased, (Some(30), false)),
            (pushed(1, 6), (Some(30), false)),
            (caused(Cause::Expiry), (Some(30), true)),
            (pushed(1, 7), (Some(30), true)),
            (caused(Cause::Sync), (Some(30), false)),
        ];
        for (lsn, (transaction, expected)) in (1..).zip(expected) {
            sources.note(&transaction, &known(lsn), Lsn::ZERO, 10);
            let state = sources.state("cp").unwrap();
            assert_eq!((state.expires_after_seconds(), state.has_expired()), expected, "{transaction:?}");
        }
        assert_eq!(sources.state("cp").unwrap().last_version, Some(7));
    }

    #[test]
    fn an_older_incarnation_is_fenced_off() {
        let mut sources = Sources::default();
        sources.note(&pushed(2, 5), &known(1), Lsn::ZERO, 10);
        assert!(matches!(sources.standing(&origin(1, 6)), Err(OriginError::Fenced { given: 1, current: 2, .. })));
        assert_eq!(standing(&sources, &origin(3, 6)), Ok(None));
        assert_eq!(standing(&sources, &origin(3, 5)), Ok(Some(1)), "versions outlive a life");
    }
}
