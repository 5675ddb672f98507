//! The push protocol: what is said on a push stream, apart from how it travels.
//!
//! * here: hello and welcome, acks and nacks, and when a source is asked to send everything anew.
//! * [`outbox`]: what a source has to remember so that nothing is lost and nothing is sent in vain.
//! * [`stream`]: the client's end of a stream.
//! * `service`, `session`, `seat`, `sync`, `lease`: the server's.
//!
//! Invariant (in order): what a stream's transactions are answered with comes in the order in which they were sent.
//! Invariant (final): a nack is never taken back. What may still succeed ends the stream, and is in doubt until the next
//! welcome.
//! Invariant (bounded): a stream holds one message, for each of at most [`WINDOW`] unanswered transactions its number, and of a
//! sync what the limits of one allow.
//! Invariant (whole): a sync whose end did not come changes nothing.

pub mod outbox;
pub mod stream;

pub(crate) mod lease;
mod message;
mod seat;
pub(crate) mod service;
mod session;
mod sync;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use storage_schema::id::{Lsn, RecordHash, StoreId};
use storage_schema::precondition::Precondition;
use storage_schema::record::{Origin, Transaction};

pub(crate) use self::message::{decode_level, encode_level};
pub(crate) use self::seat::Seats;
use crate::plan::Plan;
use crate::rejection::Rejection;
use crate::{Level, Receipt, WAIT_TIMEOUT_DEFAULT};

/// The protocol version that is spoken here.
pub const PROTOCOL_VERSION: u32 = 1;

/// How many transactions of one stream may be unanswered.
pub const WINDOW: u32 = 256;

/// How many unanswered versions a hello may name. Far fewer than the journal keeps receipts for.
pub const UNANSWERED_MAX: usize = 1024;

/// The most resources of one sync.
pub const SYNC_RESOURCES_MAX: usize = 262_144;

/// What this server can do beyond protocol version 1.
pub const CAPABILITIES: [&str; 5] = ["sync", "take_over", "dry_run", "preconditions", "expire"];

/// A transaction on its way to the backend.
#[derive(Clone, Debug)]
pub struct Push {
    /// What is pushed.
    pub transaction: Transaction,
    /// What must be so when it has its turn.
    pub preconditions: Vec<Precondition>,
    /// Who pushes, as the transport knows it ([`crate::socket::client`]).
    pub client: Option<String>,
}

/// A transaction that has its place in the journal.
pub struct Submitted {
    /// Its number.
    pub lsn: Lsn,
    /// The record's hash.
    pub record_hash: RecordHash,
    /// Whether it had been pushed before.
    pub duplicate: bool,
    /// Of a sync: how many resources it removed.
    pub removed: u64,
    /// Completes when it is durable, or when it is known that it may not become so.
    pub durable: Pin<Box<dyn Future<Output = Result<(), Rejection>> + Send>>,
}

impl Submitted {
    pub(crate) fn receipt(&self, level: Level) -> Receipt {
        let Self { lsn, record_hash, duplicate, removed, .. } = *self;
        Receipt { lsn, record_hash, duplicate, level, blocked_reason: String::new(), removed }
    }
}

/// What the journal has of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceState {
    /// The newest life of it that has written.
    pub incarnation: u64,
    /// Its newest version, if it numbers its transactions.
    pub last_version: Option<u64>,
    /// Its newest record.
    pub last_lsn: Lsn,
    /// How long what it owns stays when it is gone, as it has said last; `None`: for ever.
    pub ttl: Option<Duration>,
    /// Whether what it owned has expired, and it has not synced since.
    pub expired: bool,
}

/// What became of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recollection {
    /// It is in the journal.
    Accepted(Receipt),
    /// It is not in the journal.
    NotThere,
    /// It is too long ago to be known.
    Forgotten,
}

/// What there is to know about the journal that is pushed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalFacts {
    /// Which journal it is.
    pub store_id: StoreId,
    /// The most bytes of one record.
    pub record_bytes_max: u64,
}

/// Who pushes, and what they know of earlier streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The source's name.
    pub source: String,
    /// Which life of the source.
    pub incarnation: u64,
    /// The newest protocol version that the client speaks.
    pub protocol_version: u32,
    /// The newest version that was ever sent.
    pub last_sent_version: Option<u64>,
    /// The newest version that there is an ack for, durable or more.
    pub last_acked_version: Option<u64>,
    /// What was sent and not answered, ascending; at most [`UNANSWERED_MAX`].
    pub unanswered_versions: Vec<u64>,
    /// How far transactions are to have come when they are acked.
    pub level: Level,
    /// How long an ack waits for more than durable.
    pub wait_timeout: Duration,
    /// How long what the source owns stays when it is gone, in whole seconds, at most a week; zero: for ever; `None`: as it has
    /// said last. Look for `expire` among the features of [`Client::capabilities`](crate::client::Client::capabilities) before.
    pub ttl: Option<Duration>,
}

impl Hello {
    /// The hello of a source that has never sent anything.
    pub fn new(source: impl Into<String>, incarnation: u64) -> Self {
        Self {
            source: source.into(),
            incarnation,
            protocol_version: PROTOCOL_VERSION,
            last_sent_version: None,
            last_acked_version: None,
            unanswered_versions: Vec::new(),
            level: Level::Durable,
            wait_timeout: WAIT_TIMEOUT_DEFAULT,
            ttl: None,
        }
    }

    /// Who pushes a version.
    fn origin(&self, version: u64) -> Origin {
        Origin { source: self.source.clone(), incarnation: self.incarnation, version: Some(version) }
    }
}

/// What the journal has of a source, and what is accepted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The protocol version of the stream.
    pub protocol_version: u32,
    /// The source's newest version in the journal.
    pub last_version: Option<u64>,
    /// The source's newest record; 0: none.
    pub last_lsn: Lsn,
    /// Those of the unanswered versions that are in the journal.
    pub accepted: Vec<(u64, Receipt)>,
    /// Why everything is to be sent anew, if it is.
    pub resync: Option<Resync>,
    /// How many transactions may be unanswered.
    pub window: u32,
    /// The most bytes of one record.
    pub record_bytes_max: u64,
    /// What the server can do beyond the protocol version.
    pub capabilities: Vec<String>,
    /// Which journal it is.
    pub store_id: StoreId,
}

/// Why a source is to send everything anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resync {
    /// The journal does not know the source, which has acks.
    UnknownSource,
    /// The source has acks for versions that the journal does not have.
    JournalBehind,
    /// The journal has versions of which the source says nothing.
    SourceBehind,
    /// What became of an unanswered version is not known any more.
    Forgotten,
    /// The source was gone for longer than its lease, and what it owned was removed.
    Expired,
}

impl Resync {
    /// Whether what the journal has can be brought together with what a source says.
    fn needed(hello: &Hello, known: Option<&SourceState>, forgotten: bool) -> Option<Self> {
        let journaled = known.and_then(|known| known.last_version);
        match (hello.last_acked_version, journaled) {
            (Some(_), None) => Some(Self::UnknownSource),
            (Some(acked), Some(last)) if acked > last => Some(Self::JournalBehind),
            (_, Some(last)) if hello.last_sent_version.is_none_or(|sent| sent < last) => Some(Self::SourceBehind),
            _ if known.is_some_and(|known| known.expired) => Some(Self::Expired),
            _ => forgotten.then_some(Self::Forgotten),
        }
    }
}

/// What a transaction of a stream is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was accepted.
    Acked {
        /// The source's version.
        version: u64,
        /// The receipt.
        receipt: Receipt,
    },
    /// It was refused, for good, and changed nothing.
    Nacked {
        /// The source's version.
        version: u64,
        /// Why.
        rejection: Rejection,
    },
    /// It was a dry run, and would be accepted.
    Planned {
        /// The source's version.
        version: u64,
        /// What it would change.
        plan: Plan,
    },
}

impl Answer {
    /// The version that is answered.
    pub const fn version(&self) -> u64 {
        match self {
            Self::Acked { version, .. } | Self::Nacked { version, .. } | Self::Planned { version, .. } => *version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resync_is_asked_for_where_the_journal_cannot_tell() {
        let hello = |sent: Option<u64>, acked: Option<u64>| Hello {
            last_sent_version: sent,
            last_acked_version: acked,
            ..Hello::new("cp", 1)
        };
        let known =
            |last| SourceState { incarnation: 1, last_version: last, last_lsn: Lsn(9), ttl: None, expired: false };
        for (hello, known, expected) in [
            (hello(None, None), None, None),
            (hello(Some(5), None), None, None),
            (hello(Some(5), Some(4)), None, Some(Resync::UnknownSource)),
            (hello(Some(5), Some(4)), Some(known(None)), Some(Resync::UnknownSource)),
            (hello(Some(5), Some(4)), Some(known(Some(3))), Some(Resync::JournalBehind)),
            (hello(Some(5), Some(4)), Some(known(Some(4))), None),
            (hello(Some(5), Some(4)), Some(known(Some(5))), None),
            (hello(Some(5), Some(4)), Some(known(Some(6))), Some(Resync::SourceBehind)),
            (hello(None, None), Some(known(Some(1))), Some(Resync::SourceBehind)),
            (hello(None, None), Some(known(None)), None),
        ] {
            assert_eq!(Resync::needed(&hello, known.as_ref(), false), expected, "{hello:?} {known:?}");
        }
        assert_eq!(Resync::needed(&hello(Some(5), None), Some(&known(Some(5))), true), Some(Resync::Forgotten));
        let expired = SourceState { expired: true, ..known(Some(5)) };
        assert_eq!(Resync::needed(&hello(Some(5), Some(5)), Some(&expired), false), Some(Resync::Expired));
    }
}
