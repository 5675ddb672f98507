//! What a source has to remember so that each of its transactions is in the journal once, whatever happens to agent,
//! connection and stream: what it has sent and not seen answered.
//!
//! It does no I/O. A source that is to survive its own restart keeps the same on a disk of its own, or begins anew with a sync.

use std::collections::VecDeque;
use std::sync::Arc;

use storage_schema::record::Delta;

use super::{Answer, Hello, UNANSWERED_MAX, Welcome};
use crate::{Level, Receipt};

/// A source's unanswered transactions.
#[derive(Clone, Debug)]
pub struct Outbox {
    identity: Hello,
    last_sent: Option<u64>,
    last_acked: Option<u64>,
    unanswered: VecDeque<Unanswered>,
    /// The newest version that was acked without being durable.
    last_received: Option<u64>,
}

/// A transaction that is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// Its version.
    pub version: u64,
    /// What it changes.
    pub deltas: Arc<[Delta]>,
}

/// What a welcome says about what was unanswered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// In the journal.
    pub accepted: Vec<(u64, Receipt)>,
    /// Refused: the answer got lost, and nothing was changed.
    pub refused: Vec<u64>,
    /// Not seen by the agent: to be sent again, in this order. They are unanswered still.
    pub again: Vec<Unanswered>,
}

impl Outbox {
    /// An empty one. `identity` says who pushes, and what they know of earlier lives.
    pub fn new(identity: Hello) -> Self {
        let (last_sent, last_acked) = (identity.last_sent_version, identity.last_acked_version);
        Self { identity, last_sent, last_acked, unanswered: VecDeque::new(), last_received: None }
    }

    /// The hello that opens the next stream.
    pub fn hello(&self) -> Hello {
        Hello {
            last_sent_version: self.last_sent,
            last_acked_version: self.last_acked,
            unanswered_versions: self.unanswered.iter().map(|unanswered| unanswered.version).collect(),
            ..self.identity.clone()
        }
    }

    /// Whether one more may be sent: a hello can name only so many.
    pub fn has_room(&self) -> bool {
        self.unanswered.len() < UNANSWERED_MAX
    }

    /// How many are unanswered.
    pub fn len(&self) -> usize {
        self.unanswered.len()
    }

    /// Whether everything is answered.
    pub fn is_empty(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// The version for the next transaction.
    pub fn next_version(&self) -> u64 {
        self.last_sent.map_or(1, |last| last + 1)
    }

    /// Notes a transaction that is about to be sent, under the next version.
    ///
    /// # Panics
    /// Without [room](Self::has_room).
    pub fn add(&mut self, deltas: impl Into<Arc<[Delta]>>) -> Unanswered {
        assert!(self.has_room(), "answers are waited for before more is sent");
        let unanswered = Unanswered { version: self.next_version(), deltas: deltas.into() };
        self.last_sent = Some(unanswered.version);
        self.unanswered.push_back(unanswered.clone());
        unanswered
    }

    /// Notes an answer. One that says no more than "received" leaves the transaction in doubt until a later one is durable.
    pub fn answered(&mut self, answer: &Answer) {
        let version = answer.version();
        match answer {
            Answer::Acked { receipt, .. } if receipt.level == Level::Received => {
                self.last_received = Some(version);
                return;
            }
            // What was accepted before it stands before it in the journal, and is as durable as it is.
            Answer::Acked { .. } => {
                self.last_acked = self.last_acked.max(Some(version));
                let received = self.last_received.take().map_or(0, |received| received.min(version));
                self.unanswered.retain(|unanswered| unanswered.version > received);
            }
            // A dry run was never sent to be journaled.
            Answer::Planned { .. } => return,
            Answer::Nacked { .. } => {}
        }
        self.unanswered.retain(|unanswered| unanswered.version != version);
    }

    /// Notes what a welcome says, and works out what is to be sent again.
    pub fn resume(&mut self, welcome: &Welcome) -> Resumed {
        let mut resumed = Resumed::default();
        self.last_received = None;
        for unanswered in std::mem::take(&mut self.unanswered) {
            let version = unanswered.version;
            if let Some(accepted) = welcome.accepted.iter().find(|(accepted, _)| *accepted == version) {
                resumed.accepted.push(accepted.clone());
                self.last_acked = self.last_acked.max(Some(version));
            } else if welcome.last_version.is_some_and(|last| version <= last) {
                resumed.refused.push(version);
            } else {
                resumed.again.push(unanswered.clone());
                self.unanswered.push_back(unanswered);
            }
        }
        // Whoever has lost their memory goes on above what the journal has.
        self.last_sent = self.last_sent.max(welcome.last_version);
        resumed
    }
}

#[cfg(test)]
mod tests {
    use storage_schema::id::{Lsn, RecordHash, StoreId};

    use super::*;
    use crate::push::PROTOCOL_VERSION;

    fn receipt(lsn: u64) -> Receipt {
        Receipt {
            lsn: Lsn(lsn),
            record_hash: RecordHash([1; 32]),
            duplicate: true,
            level: Level::Durable,
            blocked_reason: String::new(),
            removed: 0,
        }
    }

    fn welcome(last_version: Option<u64>, accepted: &[u64]) -> Welcome {
        Welcome {
            protocol_version: PROTOCOL_VERSION,
            last_version,
            last_lsn: Lsn::ZERO,
            accepted: accepted.iter().map(|version| (*version, receipt(*version))).collect(),
            resync: None,
            window: 1,
            record_bytes_max: 0,
            capabilities: Vec::new(),
            store_id: StoreId([0; 16]),
        }
    }

    fn with_five() -> Outbox {
        let mut outbox = Outbox::new(Hello::new("cp", 1));
        for version in 1..=5 {
            assert_eq!(outbox.add(Vec::new()).version, version);
        }
        outbox
    }

    #[test]
    fn only_what_is_missing_is_sent_again() {
        let mut outbox = with_five();
        outbox.answered(&Answer::Acked { version: 1, receipt: receipt(1) });
        assert_eq!(outbox.hello().unanswered_versions, [2, 3, 4, 5]);
        // 3 was refused, and its nack got lost; 5 never arrived.
        let resumed = outbox.resume(&welcome(Some(4), &[2, 4]));
        assert_eq!(resumed.accepted, [(2, receipt(2)), (4, receipt(4))]);
        assert_eq!(resumed.refused, [3]);
        assert_eq!(resumed.again.iter().map(|again| again.version).collect::<Vec<_>>(), [5]);
        let hello = outbox.hello();
        assert_eq!((hello.last_sent_version, hello.last_acked_version), (Some(5), Some(4)));
        assert_eq!(hello.unanswered_versions, [5]);
    }

    #[test]
    fn a_journal_that_knows_nothing_gets_everything_in_order() {
        let mut outbox = with_five();
        let again = outbox.resume(&welcome(None, &[])).again;
        assert_eq!(again.iter().map(|again| again.version).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(outbox.len(), 5);
    }

    #[test]
    fn received_is_no_answer_that_can_be_built_on() {
        let mut outbox = with_five();
        let received = Receipt { level: Level::Received, ..receipt(1) };
        outbox.answered(&Answer::Acked { version: 1, receipt: received });
        assert_eq!(outbox.hello().unanswered_versions, [1, 2, 3, 4, 5]);
        assert_eq!(outbox.hello().last_acked_version, None);
        outbox.answered(&Answer::Acked { version: 2, receipt: receipt(2) });
        assert_eq!(outbox.hello().unanswered_versions, [3, 4, 5], "what is behind it is durable as well");
    }

    #[test]
    fn who_has_no_memory_goes_on_above_what_is_there() {
        let mut outbox = Outbox::new(Hello::new("cp", 2));
        outbox.resume(&welcome(Some(41), &[]));
        assert_eq!(outbox.add(Vec::new()).version, 42);
    }
}
