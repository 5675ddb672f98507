//! Random histories against a plain model: appends, repeated pushes, removals, waits, reopenings.

mod sample;

use std::collections::BTreeMap;

use journal::{Config, Journal, OriginError, OriginState, Receipt};
use proptest::prelude::*;
use sample::{origin, service, transaction, upsert};
use storage_schema::id::Lsn;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, Resource, ResourceKey};

#[derive(Clone, Debug)]
enum Action {
    /// A source pushes its next version: keys that are set to a length of host name, or removed.
    Push {
        source: u8,
        incarnation: u64,
        deltas: Vec<(u8, Option<u16>)>,
    },
    /// A source pushes a version it has pushed before, this many versions ago.
    Repeat {
        source: u8,
        ago: u64,
    },
    /// Everything is durable and in the store.
    Settle,
    Reopen,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let delta = (0u8..12, proptest::option::weighted(0.8, 0u16..9000));
    let push = (0u8..3, 0u64..3, proptest::collection::vec(delta, 0..4))
        .prop_map(|(source, incarnation, deltas)| Action::Push { source, incarnation, deltas });
    let repeat = (0u8..3, 0u64..30).prop_map(|(source, ago)| Action::Repeat { source, ago });
    let action = prop_oneof![10 => push, 3 => repeat, 1 => Just(Action::Settle), 1 => Just(Action::Reopen)];
    proptest::collection::vec(action, 1..120)
}

#[derive(Default)]
struct Model {
    last_lsn: u64,
    resources: BTreeMap<ResourceKey, (Resource, Lsn)>,
    sources: BTreeMap<u8, Source>,
}

#[derive(Default)]
struct Source {
    incarnation: u64,
    last: u64,
    receipts: BTreeMap<u64, Receipt>,
}

fn name(source: u8) -> String {
    format!("source-{source}")
}

impl Model {
    fn push(&mut self, journal: &Journal, source: u8, incarnation: u64, deltas: &[(u8, Option<u16>)]) {
        let known = self.sources.entry(source).or_default();
        let origin = origin(&name(source), incarnation, known.last + 1);
        let state = journal.origin(&origin);
        if incarnation < known.incarnation {
            assert!(matches!(state, Err(OriginError::Fenced { .. })), "{state:?}");
            return;
        }
        assert!(matches!(state, Ok(OriginState::Fresh)), "{state:?}");
        self.last_lsn += 1;
        let lsn = Lsn(self.last_lsn);
        let deltas: Vec<Delta> = deltas
            .iter()
            .map(|(key, bytes)| {
                let name = format!("shop/svc-{key}");
                let key = ResourceKey::new(Kind::Service, &*name);
                let Some(bytes) = bytes else {
                    self.resources.remove(&key);
                    return Delta::Remove(key);
                };
                let mut service = service(&name);
                service.hostname = "h".repeat(usize::from(*bytes));
                self.resources.insert(key, (Resource::Service(service.clone()), lsn));
                upsert(service)
            })
            .collect();
        let mut transaction = transaction(&name(source), Some(known.last + 1), deltas);
        transaction.origin.incarnation = incarnation;
        let submitted = journal.blocking_reserve().unwrap().submit(transaction).unwrap();
        assert_eq!(submitted.lsn, lsn, "dense");
        known.incarnation = incarnation;
        known.last += 1;
        known.receipts.insert(known.last, submitted.ack.blocking_wait().unwrap());
    }

    fn repeat(&mut self, journal: &Journal, source: u8, ago: u64) {
        let Some(known) = self.sources.get(&source) else { return };
        let version = known.last.saturating_sub(ago);
        let answer = journal.origin(&origin(&name(source), known.incarnation, version));
        match (known.receipts.get(&version), answer) {
            (Some(receipt), Ok(OriginState::Duplicate(ack))) => {
                let again = ack.blocking_wait().unwrap();
                assert_eq!((again.lsn, again.hash), (receipt.lsn, receipt.hash));
            }
            (None, Err(OriginError::Stale { given, last, .. })) => assert_eq!((given, last), (version, known.last)),
            (None, Ok(OriginState::Fresh)) => {
                assert_eq!(known.last, 0, "only a source that has never written is fresh");
            }
            (receipt, answer) => panic!("version {version}: {receipt:?}, {answer:?}"),
        }
    }

    fn check(&self, journal: &Journal) {
        journal.blocking_wait_stored(Lsn(self.last_lsn)).unwrap();
        let stored: BTreeMap<_, _> = journal
            .resources(None)
            .map(Result::unwrap)
            .map(|(resource, lsn)| (resource.key(), (resource, lsn)))
            .collect();
        assert_eq!(stored, self.resources);
        assert_eq!(journal.resources_count().unwrap(), self.resources.len() as u64);
        let lsns: Vec<u64> = journal.read_from(Lsn(1)).unwrap().map(|record| record.unwrap().lsn.0).collect();
        assert_eq!(lsns, (1..=self.last_lsn).collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_behaves_as_its_model(actions in actions()) {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { segment_bytes: 64 << 10, ..Config::new(dir.path()) };
        let mut journal = Journal::open(config.clone()).unwrap();
        let mut model = Model::default();
        for action in &actions {
            match action {
                Action::Push { source, incarnation, deltas } => model.push(&journal, *source, *incarnation, deltas),
                Action::Repeat { source, ago } => model.repeat(&journal, *source, *ago),
                Action::Settle => model.check(&journal),
                Action::Reopen => {
                    drop(journal);
                    journal = Journal::open(config.clone()).unwrap();
                    assert_eq!(journal.open_report().store_rebuilt, None);
                    assert_eq!(journal.open_report().cut_bytes, 0);
                }
            }
        }
        model.check(&journal);
    }
}
