//! A backend that keeps what is pushed, and a server in front of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use api::client::Client;
use api::filter::{ListQuery, Page};
use api::journal::{EncodedRecord, JournalError, Position, RecordsQuery};
use api::namespace::{Namespace, NamespaceError};
use api::plan::{Effect, Plan, PlannedChange};
use api::proto::verify_journal_response::Step;
use api::push::{JournalFacts, Push, Recollection, SourceState, Submitted};
use api::rejection::Rejection;
use api::replay::{Question, StateQuery};
use api::server::{Backend, DatapathError, Flow, Limits, Read, Unreadable, serve};
use api::socket::Socket;
use api::source::{Source, SourcesPage};
use api::status::{Datapath, DatapathKind, Drift, LogFilter, Restart, Status, TablePressure};
use api::watch::{RecordsStep, RecordsWatch, StateStep, StateWatch};
use api::{Stored, proto};
use storage_schema::codec::encode_record;
use storage_schema::id::{BootId, Epoch, Lsn, RecordHash, StoreId};
use storage_schema::record::{Delta, Origin, Record, Transaction};
use storage_schema::resource::{Kind, Resource, ResourceKey, Service};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// Keeps what is pushed; applies when it is told to.
pub(crate) struct Fake {
    pub(crate) state: Mutex<BTreeMap<ResourceKey, Resource>>,
    pub(crate) applied: watch::Sender<u64>,
    pub(crate) pushed: Mutex<u64>,
    pub(crate) client: Mutex<Option<String>>,
    pub(crate) answer: Mutex<Option<Rejection>>,
    pub(crate) query: Mutex<Option<RecordsQuery>>,
}

/// The sources that it knows: more than fit a page.
pub(crate) fn sources() -> Vec<Source> {
    let source = |number: u64| Source {
        name: format!("source-{number:04}"),
        state: SourceState {
            incarnation: number,
            last_version: number.checked_sub(1),
            last_lsn: Lsn(number),
            ttl: None,
            expired: false,
        },
        last_wall_ns: number.checked_sub(1).map(|earlier| 1_700_000_000_000_000_000 + earlier),
        owned: [number, 0, 1],
    };
    (0..2500).map(source).collect()
}

impl Backend for Fake {
    async fn submit(&self, push: Push) -> Result<Submitted, Rejection> {
        let Push { transaction, client, .. } = push;
        *self.client.lock().unwrap() = client;
        if let Some(rejection) = self.answer.lock().unwrap().clone() {
            return Err(rejection);
        }
        let mut state = self.state.lock().unwrap();
        for delta in transaction.deltas {
            match delta {
                Delta::Upsert(resource) => drop(state.insert(resource.key(), resource)),
                Delta::Remove(key) => drop(state.remove(&key)),
            }
        }
        let mut pushed = self.pushed.lock().unwrap();
        *pushed += 1;
        let durable = Box::pin(async { Ok(()) });
        Ok(Submitted { lsn: Lsn(*pushed), record_hash: RecordHash([7; 32]), duplicate: false, removed: 0, durable })
    }

    async fn plan(&self, push: Push) -> Result<Plan, Rejection> {
        if let Some(rejection) = self.answer.lock().unwrap().clone() {
            return Err(rejection);
        }
        let change = |delta: &Delta| PlannedChange {
            key: delta.key(),
            effect: Effect::Created,
            changed_lsn: Lsn::ZERO,
            owner: String::new(),
        };
        Ok(Plan::new(Lsn(*self.pushed.lock().unwrap()), push.transaction.deltas.iter().map(change)))
    }

    fn source(&self, _name: &str) -> Option<SourceState> {
        None
    }

    fn leased(&self) -> Vec<(String, SourceState)> {
        Vec::new()
    }

    async fn expire(&self, _source: &str, _incarnation: u64) -> Result<u64, Rejection> {
        Ok(0)
    }

    async fn sources(&self, after: Option<String>, limit: usize) -> Result<SourcesPage, Unreadable> {
        let mut left = sources().into_iter().filter(|source| after.as_ref().is_none_or(|after| source.name > *after));
        let sources: Vec<Source> = left.by_ref().take(limit).collect();
        let next = left.next().and_then(|_| sources.last()).map(|last| last.name.clone());
        Ok(SourcesPage { sources, next })
    }

    async fn recollect(&self, _source: &str, _version: u64) -> Result<Recollection, Unreadable> {
        Ok(Recollection::NotThere)
    }

    fn facts(&self) -> JournalFacts {
        JournalFacts { store_id: StoreId([9; 16]), record_bytes_max: 1 << 20 }
    }

    async fn applied(&self, lsn: Lsn) {
        self.applied.subscribe().wait_for(|applied| *applied >= lsn.0).await.expect("the fake outlives its calls");
    }

    async fn resource(&self, key: ResourceKey) -> Result<Read<Option<Stored>>, Unreadable> {
        Ok(Read {
            value: self.state.lock().unwrap().get(&key).map(stored),
            state_lsn: Lsn(*self.pushed.lock().unwrap()),
        })
    }

    /// Looks at a thousand resources for each page.
    async fn resources(&self, query: ListQuery, limit: usize) -> Result<Read<Page>, Unreadable> {
        let ListQuery { kind, filter, after } = query;
        let after = after.unwrap_or_default();
        let state = self.state.lock().unwrap();
        let mut left = state.values().filter(|resource| resource.kind() == kind && *resource.name() > *after);
        let looked_at: Vec<Stored> = left.by_ref().take(limit.min(1000)).map(stored).collect();
        let next = looked_at.last().filter(|_| left.next().is_some()).map(|last| last.resource.name().to_owned());
        let admitted = |one: &Stored| filter.admits(one.resource.name(), &one.owner, one.changed_lsn);
        let page = Page { resources: looked_at.into_iter().filter(admitted).collect(), next };
        Ok(Read { value: page, state_lsn: Lsn(*self.pushed.lock().unwrap()) })
    }

    async fn state(&self, query: StateQuery) -> Result<Flow<Read<Vec<Stored>>>, JournalError> {
        let Some(Position::Lsn(lsn)) = query.at else {
            return Err(JournalError::OutOfRange("what was so then is not kept any more".to_owned()));
        };
        let (sender, flow) = tokio::sync::mpsc::channel(2);
        let value: Vec<Stored> = self.state.lock().unwrap().values().map(stored).collect();
        for value in [value, Vec::new()] {
            sender.send(Ok(Read { value, state_lsn: lsn })).await.unwrap();
        }
        Ok(flow)
    }

    async fn explain(&self, question: Question) -> Result<Flow<Vec<u8>>, JournalError> {
        let (sender, flow) = tokio::sync::mpsc::channel(3);
        let told = serde_json::to_string(&format!("{question:?}")).unwrap();
        for chunk in ["[", &told, "]"] {
            sender.send(Ok(chunk.as_bytes().to_vec())).await.unwrap();
        }
        Ok(flow)
    }

    async fn verify_tables(&self) -> Result<proto::VerifyTablesResponse, DatapathError> {
        Ok(proto::VerifyTablesResponse { epoch: 5, entries_checked: 9, repairing: true, ..Default::default() })
    }

    async fn renew_generation(&self) -> Result<String, DatapathError> {
        Err(DatapathError { cause: "no room on the BPF file system".to_owned() })
    }

    async fn enrol_namespace(&self, namespace: Namespace) -> Result<(u64, bool), NamespaceError> {
        Err(NamespaceError::Unusable(format!("{} is not there", namespace.path().display())))
    }

    async fn release_namespace(&self, _namespace: Namespace) -> Result<(u64, bool), NamespaceError> {
        Ok((7, false))
    }

    async fn namespaces(&self) -> Result<Vec<proto::EnrolledNamespace>, NamespaceError> {
        Ok(vec![proto::EnrolledNamespace { cookie: 7, ..Default::default() }])
    }

    fn set_log_filter(&self, _filter: Option<String>) -> Result<LogFilter, String> {
        Err("there is no log".to_owned())
    }

    fn takes_transactions(&self) -> bool {
        !matches!(*self.answer.lock().unwrap(), Some(Rejection::Unavailable { .. }))
    }

    async fn status(&self) -> Status {
        status()
    }

    /// Ten records for each query, two at a time, and then an error.
    async fn records(&self, query: RecordsQuery) -> Result<Flow<Vec<EncodedRecord>>, JournalError> {
        if query.from == Some(Position::Lsn(Lsn(1))) {
            return Err(JournalError::OutOfRange("record 1 is no longer kept: the oldest one is 5".to_owned()));
        }
        let follow = query.follow;
        *self.query.lock().unwrap() = Some(query);
        let (sender, flow) = mpsc::channel(1);
        tokio::spawn(async move {
            if follow {
                return sender.closed().await;
            }
            for lsn in (1..=10).step_by(2) {
                if sender.send(Ok(vec![record(lsn), record(lsn + 1)])).await.is_err() {
                    return;
                }
            }
            drop(sender.send(Err(JournalError::Damaged("record 11 is damaged".to_owned()))).await);
        });
        Ok(flow)
    }

    async fn watch_records(&self, watch: RecordsWatch) -> Result<Flow<RecordsStep>, JournalError> {
        if watch.from_lsn == Some(Lsn(1)) {
            return Err(JournalError::Compacted { wanted_lsn: Lsn(1), oldest_lsn: Lsn(5) });
        }
        let (sender, flow) = mpsc::channel(1);
        tokio::spawn(async move {
            for step in [RecordsStep::Progress(Lsn(6)), RecordsStep::Records(vec![record(7)])] {
                drop(sender.send(Ok(step)).await);
            }
            sender.closed().await;
        });
        Ok(flow)
    }

    async fn watch_state(&self, _watch: StateWatch) -> Result<Flow<StateStep>, JournalError> {
        let (sender, flow) = mpsc::channel(1);
        let initial = StateStep::Initial(self.state.lock().unwrap().values().map(stored).collect());
        tokio::spawn(async move {
            for step in [initial, StateStep::Complete(Lsn(6))] {
                drop(sender.send(Ok(step)).await);
            }
            let behind = JournalError::Compacted { wanted_lsn: Lsn(7), oldest_lsn: Lsn(9) };
            drop(sender.send(Err(behind)).await);
        });
        Ok(flow)
    }

    async fn journal_stats(&self) -> Result<proto::GetJournalStatsResponse, JournalError> {
        Ok(proto::GetJournalStatsResponse { oldest_lsn: 5, durable_lsn: 12, ..Default::default() })
    }

    async fn verify_journal(&self) -> Result<Flow<Step>, JournalError> {
        let (sender, flow) = mpsc::channel(4);
        for bytes in [1, 2] {
            let progress = proto::VerifyProgress { bytes, bytes_total: 2, lsn: bytes };
            sender.send(Ok(Step::Progress(progress))).await.unwrap();
        }
        sender.send(Ok(Step::Report(proto::VerifyReport { records: 7, ..Default::default() }))).await.unwrap();
        Ok(flow)
    }

    async fn checkpoint(&self) -> Result<proto::Checkpoint, JournalError> {
        Ok(proto::Checkpoint { lsn: 12, bytes: 345 })
    }

    async fn compact(
        &self,
        request: proto::CompactJournalRequest,
    ) -> Result<proto::CompactJournalResponse, JournalError> {
        Ok(proto::CompactJournalResponse { oldest_lsn: request.keep_records(), ..Default::default() })
    }

    async fn snapshot(&self) -> Result<Flow<Vec<u8>>, JournalError> {
        let (sender, flow) = mpsc::channel(4);
        for chunk in [b"one".to_vec(), b"two".to_vec()] {
            sender.send(Ok(chunk)).await.unwrap();
        }
        sender.send(Err(JournalError::Failed("the disk said no".to_owned()))).await.unwrap();
        Ok(flow)
    }
}

pub(crate) fn record(lsn: u64) -> EncodedRecord {
    let origin = Origin { source: "test".to_owned(), incarnation: 2, version: Some(lsn) };
    let key = ResourceKey::new(Kind::Service, "shop/cart");
    let record = Record {
        lsn: Lsn(lsn),
        transaction: Transaction::push(origin, vec![Delta::Remove(key)]),
        wall_ns: 1_700_000_000_123_456_789,
        monotonic_ns: 42,
        boot_id: BootId([3; 16]),
        previous_hash: RecordHash([4; 32]),
        received_wall_ns: Some(1_700_000_000_000_000_000),
        client: Some("uid=0".to_owned()),
    };
    EncodedRecord { lsn: Lsn(lsn), encoded: encode_record(&record).into() }
}

pub(crate) fn stored(resource: &Resource) -> Stored {
    Stored { resource: resource.clone(), changed_lsn: Lsn(5), owner: "test".to_owned() }
}

pub(crate) fn status() -> Status {
    Status {
        version: "1.2.3".to_owned(),
        store_id: StoreId([9; 16]),
        uptime: Duration::from_millis(1500),
        appended_lsn: Lsn(815),
        durable_lsn: Lsn(812),
        applied_lsn: Lsn(809),
        stored_lsn: Lsn(800),
        datapath: Datapath {
            kind: DatapathKind::Kernel,
            active_epoch: Epoch(809),
            generation: "gen-1".to_owned(),
            cgroup: "/sys/fs/cgroup".to_owned(),
            pins: vec!["/sys/fs/bpf/holdfast/gen-1/control".to_owned()],
            map_writes: 12,
            generations_built: 1,
            drift: Drift { changes: 2, compared_at: Some(UNIX_EPOCH), entries_checked: 9, entries_differing: 3 },
        },
        restart: Restart { time_to_ready_us: 4321, entries_rewritten: 0 },
        tables: vec![TablePressure { table: "services".to_owned(), used: 3, capacity: 32768, room: 1024 }],
        resources: vec![(Kind::Service, 3), (Kind::Workload, 6)],
        blocked_reason: Some("the kernel says EBUSY".to_owned()),
        loading: true,
    }
}

pub(crate) struct Running {
    pub(crate) backend: Arc<Fake>,
    pub(crate) client: Client,
    pub(crate) path: PathBuf,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) server: JoinHandle<()>,
    pub(crate) _directory: TempDir,
}

pub(crate) async fn start() -> Running {
    start_with(Limits::default()).await
}

pub(crate) async fn start_with(limits: Limits) -> Running {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    let backend = Arc::new(Fake {
        state: Mutex::default(),
        applied: watch::Sender::new(0),
        pushed: Mutex::default(),
        client: Mutex::default(),
        answer: Mutex::default(),
        query: Mutex::default(),
    });
    let socket = Socket::bind(&path).unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = Arc::clone(&backend);
    let server = tokio::spawn(async move {
        serve(served, socket, limits, async { drop(stopped.await) }).await.unwrap();
    });
    let client = Client::connect(&path).await.unwrap();
    Running { backend, client, path, stop, server, _directory: directory }
}

pub(crate) fn upsert(names: impl IntoIterator<Item = String>) -> Transaction {
    let service = |name| Delta::Upsert(Resource::Service(Service { name, ..Service::default() }));
    let origin = Origin { source: "test".to_owned(), incarnation: 0, version: None };
    Transaction::push(origin, names.into_iter().map(service).collect())
}
