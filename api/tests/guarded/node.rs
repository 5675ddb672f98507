//! A server to call: a backend that holds back or gives without end, as a test needs it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Stored;
use api::access::{Listeners, Rule, Security, Tcp};
use api::client::Client;
use api::filter::{ListQuery, Page};
use api::journal::{EncodedRecord, JournalError, RecordsQuery};
use api::namespace::{Namespace, NamespaceError};
use api::plan::Plan;
use api::proto;
use api::push::{JournalFacts, Push, Recollection, SourceState, Submitted};
use api::rejection::Rejection;
use api::replay::{Question, StateQuery};
use api::server::{Backend, DatapathError, Flow, Limits, Read, Terms, Unreadable, serve};
use api::socket::Socket;
use api::source::SourcesPage;
use api::status::{Datapath, DatapathKind, Drift, LogFilter, Restart, Status};
use api::watch::{RecordsStep, RecordsWatch, StateStep, StateWatch};
use storage_schema::id::{Epoch, Lsn, RecordHash, StoreId};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Resource, ResourceKey, Service};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use crate::observer::Counts;

/// Takes everything; nothing is applied until it is told to, and its journal has no end.
#[derive(Default)]
pub(crate) struct Node {
    pub(crate) pushed: AtomicU64,
    pub(crate) client: Mutex<Option<String>>,
    pub(crate) refuses: AtomicBool,
    pub(crate) applied: watch::Sender<u64>,
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) node: Arc<Node>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) path: PathBuf,
    pub(crate) port: u16,
    server: JoinHandle<()>,
    pub(crate) directory: TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub(crate) async fn start(limits: Limits, rules: &[&str]) -> Running {
    start_with(limits, rules, None).await
}

pub(crate) async fn start_with(limits: Limits, rules: &[&str], security: Option<Security>) -> Running {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    let socket = Socket::bind(&path).unwrap();
    let tcp = security.map(|security| Tcp::bind(([127, 0, 0, 1], 0).into(), security).unwrap());
    let port = tcp.as_ref().map_or(0, |tcp| tcp.address().unwrap().port());
    let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let (node, counts) = (Arc::new(Node::default()), Arc::new(Counts::default()));
    let terms = Terms { limits, rules, observer: Arc::clone(&counts) as _ };
    let served = Arc::clone(&node);
    let server = tokio::spawn(async move {
        serve(served, Listeners { socket, tcp }, terms, std::future::pending()).await.unwrap();
    });
    Running { node, counts, path, port, server, directory }
}

impl Running {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(&self.path).await.unwrap()
    }

    /// What a client in another language uses.
    pub(crate) async fn channel(&self) -> Channel {
        let path = self.path.clone();
        over(move || UnixStream::connect(path.clone())).await
    }
}

/// A channel over streams that are made so.
pub(crate) async fn over<F>(connect: impl Fn() -> F + Send + Sync + 'static) -> Channel
where
    F: Future<Output = std::io::Result<UnixStream>> + Send + 'static,
{
    let connector = tower::service_fn(move |_| {
        let stream = connect();
        async move { stream.await.map(hyper_util::rt::TokioIo::new) }
    });
    Endpoint::from_static("http://holdfast").connect_with_connector(connector).await.unwrap()
}

/// A transaction of one service.
pub(crate) fn transaction(source: &str) -> Transaction {
    let service = Service { name: "a/b".to_owned(), ..Service::default() };
    let origin = Origin { source: source.to_owned(), incarnation: 0, version: None };
    Transaction::push(origin, vec![Delta::Upsert(Resource::Service(service))])
}

/// A request to push it, and to wait until it is applied if that is said.
pub(crate) fn apply_request(wait: proto::Level) -> proto::ApplyRequest {
    proto::ApplyRequest {
        transaction: Some(api::convert::encode_transaction(&transaction("test"))),
        wait: wait.into(),
        wait_timeout: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        ..proto::ApplyRequest::default()
    }
}

/// Waits until something is so, for ten seconds.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not happen in time: {what}");
}

impl Backend for Node {
    async fn submit(&self, push: Push) -> Result<Submitted, Rejection> {
        *self.client.lock().unwrap() = push.client;
        let lsn = Lsn(self.pushed.fetch_add(1, Ordering::Relaxed) + 1);
        let durable = Box::pin(async { Ok(()) });
        Ok(Submitted { lsn, record_hash: RecordHash([7; 32]), duplicate: false, removed: 0, durable })
    }

    async fn plan(&self, _push: Push) -> Result<Plan, Rejection> {
        Ok(Plan::default())
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

    async fn sources(&self, _after: Option<String>, _limit: usize) -> Result<SourcesPage, Unreadable> {
        Ok(SourcesPage::default())
    }

    async fn recollect(&self, _source: &str, _version: u64) -> Result<Recollection, Unreadable> {
        Ok(Recollection::NotThere)
    }

    fn facts(&self) -> JournalFacts {
        JournalFacts { store_id: StoreId([9; 16]), record_bytes_max: 1 << 20 }
    }

    async fn applied(&self, lsn: Lsn) {
        let mut applied = self.applied.subscribe();
        drop(applied.wait_for(|applied| *applied >= lsn.0).await);
    }

    async fn resource(&self, _key: ResourceKey) -> Result<Read<Option<Stored>>, Unreadable> {
        Ok(Read { value: None, state_lsn: Lsn(0) })
    }

    /// A megabyte on every page.
    async fn resources(&self, _query: ListQuery, limit: usize) -> Result<Read<Page>, Unreadable> {
        let named = |i: usize| {
            let service = Service { name: format!("a/{i}"), hostname: "x".repeat(1024), ..Service::default() };
            Stored { resource: Resource::Service(service), changed_lsn: Lsn(1), owner: "test".to_owned() }
        };
        let page = Page { resources: (0..limit).map(named).collect(), next: Some("a/last".to_owned()) };
        Ok(Read { value: page, state_lsn: Lsn(0) })
    }

    async fn records(&self, query: RecordsQuery) -> Result<Flow<Vec<EncodedRecord>>, JournalError> {
        let (sender, flow) = mpsc::channel(8);
        tokio::spawn(async move {
            if query.follow {
                return sender.closed().await;
            }
            // Not records, but as large: whoever asks for them encoded gets them as they are.
            let batch = || vec![EncodedRecord { lsn: Lsn(1), encoded: vec![7; 64 << 10].into() }];
            while sender.send(Ok(batch())).await.is_ok() {}
        });
        Ok(flow)
    }

    async fn watch_records(&self, _watch: RecordsWatch) -> Result<Flow<RecordsStep>, JournalError> {
        let (sender, flow) = mpsc::channel(1);
        tokio::spawn(async move { sender.closed().await });
        Ok(flow)
    }

    async fn watch_state(&self, _watch: StateWatch) -> Result<Flow<StateStep>, JournalError> {
        Err(JournalError::Failed("there is no journal".to_owned()))
    }

    async fn journal_stats(&self) -> Result<proto::GetJournalStatsResponse, JournalError> {
        Ok(proto::GetJournalStatsResponse::default())
    }

    async fn verify_journal(&self) -> Result<Flow<proto::verify_journal_response::Step>, JournalError> {
        Err(JournalError::Failed("there is no journal".to_owned()))
    }

    async fn checkpoint(&self) -> Result<proto::Checkpoint, JournalError> {
        Ok(proto::Checkpoint::default())
    }

    async fn compact(
        &self,
        _request: proto::CompactJournalRequest,
    ) -> Result<proto::CompactJournalResponse, JournalError> {
        Ok(proto::CompactJournalResponse::default())
    }

    async fn snapshot(&self) -> Result<Flow<Vec<u8>>, JournalError> {
        Err(JournalError::Failed("there is no journal".to_owned()))
    }

    async fn state(&self, _query: StateQuery) -> Result<Flow<Read<Vec<Stored>>>, JournalError> {
        Err(JournalError::Failed("there is no journal".to_owned()))
    }

    async fn explain(&self, _question: Question) -> Result<Flow<Vec<u8>>, JournalError> {
        Err(JournalError::Failed("there is no journal".to_owned()))
    }

    async fn verify_tables(&self) -> Result<proto::VerifyTablesResponse, DatapathError> {
        Ok(proto::VerifyTablesResponse::default())
    }

    async fn renew_generation(&self) -> Result<String, DatapathError> {
        Ok("gen-1".to_owned())
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
        !self.refuses.load(Ordering::Relaxed)
    }

    async fn status(&self) -> Status {
        Status {
            loading: false,
            version: "1.2.3".to_owned(),
            store_id: StoreId([9; 16]),
            uptime: Duration::ZERO,
            appended_lsn: Lsn(0),
            durable_lsn: Lsn(0),
            applied_lsn: Lsn(0),
            stored_lsn: Lsn(0),
            datapath: Datapath {
                kind: DatapathKind::Memory,
                active_epoch: Epoch(0),
                generation: String::new(),
                cgroup: String::new(),
                pins: Vec::new(),
                map_writes: 0,
                generations_built: 0,
                drift: Drift { changes: 0, compared_at: None, entries_checked: 0, entries_differing: 0 },
            },
            restart: Restart { time_to_ready_us: 0, entries_rewritten: 0 },
            tables: Vec::new(),
            resources: Vec::new(),
            blocked_reason: None,
        }
    }
}
