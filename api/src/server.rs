//! The server: turns messages into calls of a [`Backend`] and bounds what a client can cost.
//!
//! Bounds, from the outside in: connections, calls, their rate, their bytes and their time ([`crate::layers`]); deltas of a
//! transaction, bytes of a page. A push that was accepted is answered with a receipt whatever happens to the wait for it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use storage_schema::id::Lsn;
use storage_schema::resource::ResourceKey;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status as RpcStatus};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::access::{self, Gate, Listeners, Peer, Rule};
use crate::convert::{Path, decode_key, decode_kind, encode_resource};
use crate::filter::{ListQuery, Page, decode_filter};
use crate::journal::{EncodedRecord, JournalError, RecordsQuery, decode_query, encode_batch};
pub use crate::layers::Limits;
use crate::layers::{Clients, Guard, Observer, Unobserved};
use crate::namespace::{Namespace, NamespaceError, decode_namespace};
use crate::plan::Plan;
use crate::proto::datapath_service_server::{DatapathService, DatapathServiceServer};
use crate::proto::journal_service_server::{JournalService, JournalServiceServer};
use crate::proto::push_service_server::PushServiceServer;
use crate::proto::replay_service_server::ReplayServiceServer;
use crate::proto::resource_service_server::{ResourceService, ResourceServiceServer};
use crate::proto::status_service_server::{StatusService, StatusServiceServer};
use crate::push::lease::{self, Leases};
use crate::push::{JournalFacts, Push, Recollection, Seats, SourceState, Submitted};
use crate::rejection::{Rejection, Violation, Violations};
use crate::replay::{Question, StateQuery};
use crate::services::{capabilities, health, reflection};
use crate::source::SourcesPage;
use crate::status::{LogFilter, Status, encode_status};
use crate::watch::{
    RecordsStep, RecordsWatch, StateStep, StateWatch, decode_records_watch, decode_state_watch, encode_records_step,
    encode_state_step,
};
use crate::{MESSAGE_BYTES_MAX, Stored, proto};

/// What a backend tells bit by bit. It ends when the receiver is dropped.
pub type Flow<T> = mpsc::Receiver<Result<T, JournalError>>;

/// What stands behind the API: journal and applier in the agent, a fake in tests.
///
/// The futures are dropped when a client goes away. A push must therefore be all done or not begun at any await point.
pub trait Backend: Send + Sync + 'static {
    /// Gives a transaction its place in the journal, behind everything that was submitted before. Waits only while the journal
    /// has no room.
    fn submit(&self, push: Push) -> impl Future<Output = Result<Submitted, Rejection>> + Send;

    /// What a transaction would change: checked as by [`Backend::submit`], and nothing is journaled.
    fn plan(&self, push: Push) -> impl Future<Output = Result<Plan, Rejection>> + Send;

    /// What the journal has of a source, with everything that was submitted.
    fn source(&self, name: &str) -> Option<SourceState>;

    /// All sources of which the journal says that what they own does not stay when they are gone.
    fn leased(&self) -> Vec<(String, SourceState)>;

    /// Removes what a source owns, as it is gone, if this is still its newest incarnation; how many resources that were. Returns
    /// once it is durable.
    fn expire(&self, source: &str, incarnation: u64) -> impl Future<Output = Result<u64, Rejection>> + Send;

    /// Up to `limit` sources whose names come after `after`.
    fn sources(
        &self,
        after: Option<String>,
        limit: usize,
    ) -> impl Future<Output = Result<SourcesPage, Unreadable>> + Send;

    /// What became of a version of a source. What is on its way to the disk is waited for.
    fn recollect(&self, source: &str, version: u64) -> impl Future<Output = Result<Recollection, Unreadable>> + Send;

    /// The journal that is pushed to.
    fn facts(&self) -> JournalFacts;

    /// Returns once connections see the record with this number.
    fn applied(&self, lsn: Lsn) -> impl Future<Output = ()> + Send;

    /// One resource.
    fn resource(&self, key: ResourceKey) -> impl Future<Output = Result<Read<Option<Stored>>, Unreadable>> + Send;

    /// Up to `limit` of the resources that a query names. Fewer are no sign that there are no more.
    fn resources(&self, query: ListQuery, limit: usize) -> impl Future<Output = Result<Read<Page>, Unreadable>> + Send;

    /// Records, in order, some at a time; of a query that follows, without end.
    fn records(
        &self,
        query: RecordsQuery,
    ) -> impl Future<Output = Result<Flow<Vec<EncodedRecord>>, JournalError>> + Send;

    /// Records, from one on or from now on, without end.
    fn watch_records(
        &self,
        watch: RecordsWatch,
    ) -> impl Future<Output = Result<Flow<RecordsStep>, JournalError>> + Send;

    /// Resources, and what becomes of them, without end.
    fn watch_state(&self, watch: StateWatch) -> impl Future<Output = Result<Flow<StateStep>, JournalError>> + Send;

    /// How much journal there is.
    fn journal_stats(&self) -> impl Future<Output = Result<proto::GetJournalStatsResponse, JournalError>> + Send;

    /// Verifies the journal: progress, then a report.
    fn verify_journal(
        &self,
    ) -> impl Future<Output = Result<Flow<proto::verify_journal_response::Step>, JournalError>> + Send;

    /// Makes a checkpoint.
    fn checkpoint(&self) -> impl Future<Output = Result<proto::Checkpoint, JournalError>> + Send;

    /// Makes a checkpoint, and lets go what is not to be kept.
    fn compact(
        &self,
        request: proto::CompactJournalRequest,
    ) -> impl Future<Output = Result<proto::CompactJournalResponse, JournalError>> + Send;

    /// The journal as a file, chunk by chunk.
    fn snapshot(&self) -> impl Future<Output = Result<Flow<Vec<u8>>, JournalError>> + Send;

    /// Resources as they were at a moment, some at a time: at least one message, which names the moment's record.
    fn state(&self, query: StateQuery) -> impl Future<Output = Result<Flow<Read<Vec<Stored>>>, JournalError>> + Send;

    /// The answer to a question about the past: a JSON document, chunk by chunk.
    fn explain(&self, question: Question) -> impl Future<Output = Result<Flow<Vec<u8>>, JournalError>> + Send;

    /// Compares the tables with the journal's state.
    fn verify_tables(&self) -> impl Future<Output = Result<proto::VerifyTablesResponse, DatapathError>> + Send;

    /// Builds a new generation and switches to it; its name.
    fn renew_generation(&self) -> impl Future<Output = Result<String, DatapathError>> + Send;

    /// Has a network namespace managed: its cookie, and whether it was not before.
    fn enrol_namespace(&self, namespace: Namespace)
    -> impl Future<Output = Result<(u64, bool), NamespaceError>> + Send;

    /// Ends that: its cookie, and whether it was managed.
    fn release_namespace(
        &self,
        namespace: Namespace,
    ) -> impl Future<Output = Result<(u64, bool), NamespaceError>> + Send;

    /// The network namespaces that are managed.
    fn namespaces(&self) -> impl Future<Output = Result<Vec<proto::EnrolledNamespace>, NamespaceError>> + Send;

    /// Changes what is logged; without a filter, back to what the settings say. `Err`: why that is no filter.
    fn set_log_filter(&self, filter: Option<String>) -> Result<LogFilter, String>;

    /// Whether transactions are taken now. Asked often.
    fn takes_transactions(&self) -> bool;

    /// The agent's condition.
    fn status(&self) -> impl Future<Output = Status> + Send;
}

/// Something read, and the LSN whose state it was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read<T> {
    /// What was read.
    pub value: T,
    /// The state's LSN.
    pub state_lsn: Lsn,
}

/// The store cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be read: {cause}")]
pub struct Unreadable {
    /// Why not.
    pub cause: String,
}

/// What was asked of the datapath was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct DatapathError {
    /// Why not.
    pub cause: String,
}

/// A sync is gathered in memory, up to the limits of one.
const SYNCS_MAX: usize = 2;

/// Entries of a page when the client does not say, and at most.
const PAGE_MAX: usize = 1000;
/// A page ends after the resource that makes it this large, far below what a client accepts.
const PAGE_BYTES: usize = 1 << 20;

/// How the server treats its clients.
#[derive(Clone)]
pub struct Terms {
    /// What they can cost.
    pub limits: Limits,
    /// Who may do what, beside root and the agent's own user at the unix socket.
    pub rules: Vec<Rule>,
    /// Who is told what goes on.
    pub observer: Arc<dyn Observer>,
}

impl From<Limits> for Terms {
    fn from(limits: Limits) -> Self {
        Self { limits, rules: Vec::new(), observer: Arc::new(Unobserved) }
    }
}

/// HTTP/2: how much of what a client sends is kept before it is read, on a connection and on one stream of it.
const WINDOW_BYTES: u32 = 1 << 20;
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// HTTP/2: calls at a time on one connection; more wait at the client.
const CALLS_PER_CONNECTION_MAX: u32 = 1024;
/// HTTP/2: how often a silent client is asked whether it is there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `stop` completes; then takes no more requests, finishes those in flight and removes the socket.
pub async fn serve<B: Backend>(
    backend: Arc<B>,
    listeners: impl Into<Listeners>,
    terms: impl Into<Terms>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Terms { limits, rules, observer } = terms.into();
    let clients = Clients::new(limits);
    let gate = Gate::new(rules, Arc::clone(&clients), Arc::clone(&observer));
    let (incoming, _file) = access::incoming(listeners.into(), gate).map_err(ServeError::Listen)?;
    let (reporter, health) = tonic_health::server::health_reporter();
    health::begin(&reporter, &*backend).await;
    let mut watching = JoinSet::new();
    watching.spawn(health::keep_up_to_date(reporter, Arc::clone(&backend)));
    let (stop_streams, stopping) = watch::channel(false);
    let syncs = Arc::new(Semaphore::new(SYNCS_MAX));
    let (seats, leases) = (Arc::<Seats>::default(), Arc::new(Leases::new()));
    watching.spawn(lease::watch_over(Arc::clone(&backend), Arc::clone(&seats), Arc::clone(&leases)));
    let handler = Handler { backend, limits, seats, syncs, leases, stopping };
    let stop = async move {
        stop.await;
        stop_streams.send_replace(true);
    };
    let push = PushServiceServer::new(handler.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let resource = ResourceServiceServer::new(handler.clone()).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let journal = JournalServiceServer::new(handler.clone());
    let datapath = DatapathServiceServer::new(handler.clone());
    let replay = ReplayServiceServer::new(handler.clone());
    let status = StatusServiceServer::new(handler);
    tonic::transport::Server::builder()
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .layer(Guard::new(clients, observer))
        .add_service(push)
        .add_service(resource)
        .add_service(status)
        .add_service(journal)
        .add_service(datapath)
        .add_service(replay)
        .add_service(health)
        .add_service(reflection::builder().build_v1().map_err(ServeError::Reflection)?)
        .add_service(reflection::builder().build_v1alpha().map_err(ServeError::Reflection)?)
        .serve_with_incoming_shutdown(incoming, stop)
        .await
        .map_err(ServeError::Serve)
}

/// Why the server ended otherwise than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be used.
    #[error("cannot listen: {0}")]
    Listen(#[source] io::Error),
    /// The compiled proto files, which reflection tells about, are not readable.
    #[error("cannot reflect: {0}")]
    Reflection(#[source] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("cannot serve: {0}")]
    Serve(#[source] tonic::transport::Error),
}

pub(crate) struct Handler<B> {
    pub(crate) backend: Arc<B>,
    limits: Limits,
    pub(crate) seats: Arc<Seats>,
    /// Syncs that are gathered at a time; more wait.
    pub(crate) syncs: Arc<Semaphore>,
    /// When sources were there.
    pub(crate) leases: Arc<Leases>,
    /// Turns true when streams are to end.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl<B> Clone for Handler<B> {
    fn clone(&self) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
            limits: self.limits,
            seats: Arc::clone(&self.seats),
            syncs: Arc::clone(&self.syncs),
            leases: Arc::clone(&self.leases),
            stopping: self.stopping.clone(),
        }
    }
}

/// Passes on what a backend tells, for as long as the client listens.
pub(crate) fn passed_on<T, M>(flow: Flow<T>, encode: impl Fn(T) -> Result<M, RpcStatus> + Send + 'static) -> Messages<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let flow = ReceiverStream::new(flow);
    Box::pin(flow.map(move |step| encode(step.map_err(|error| error.to_status())?)))
}

/// Messages without end, which end when the agent stops.
struct UntilStopped<M> {
    messages: Option<Messages<M>>,
    stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<M> UntilStopped<M> {
    fn new(messages: Messages<M>, mut stopping: watch::Receiver<bool>) -> Self {
        let stop = async move { drop(stopping.wait_for(|stopping| *stopping).await) };
        Self { messages: Some(messages), stop: Box::pin(stop) }
    }
}

impl<M> Stream for UntilStopped<M> {
    type Item = Result<M, RpcStatus>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { messages, stop } = &mut *self;
        let Some(running) = messages else { return Poll::Ready(None) };
        if stop.as_mut().poll(context).is_ready() {
            *messages = None;
            let cause = "the agent is stopping".to_owned();
            return Poll::Ready(Some(Err(Rejection::Unavailable { cause }.to_status())));
        }
        running.as_mut().poll_next(context)
    }
}

pub(crate) type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, RpcStatus>> + Send>>;

#[tonic::async_trait]
impl<B: Backend> ResourceService for Handler<B> {
    type WatchStateStream = Messages<proto::WatchStateResponse>;

    async fn watch_state(
        &self,
        request: Request<proto::WatchStateRequest>,
    ) -> Result<Response<Self::WatchStateStream>, RpcStatus> {
        let watch = decode_state_watch(request.into_inner()).map_err(|rejection| rejection.to_status())?;
        let flow = self.backend.watch_state(watch).await.map_err(|error| error.to_status())?;
        let messages = passed_on(flow, |step| Ok(encode_state_step(step)));
        Ok(Response::new(Box::pin(UntilStopped::new(messages, self.stopping.clone()))))
    }

    async fn get_resource(
        &self,
        request: Request<proto::GetResourceRequest>,
    ) -> Result<Response<proto::GetResourceResponse>, RpcStatus> {
        let mut found = Violations::default();
        let key = match request.into_inner().key {
            Some(key) => decode_key(&Path::root("key"), key, &mut found),
            None => required("key", &mut found),
        };
        let key = key.ok_or_else(|| Rejection::invalid(found).to_status())?;
        let Read { value, state_lsn } = self.backend.resource(key.clone()).await.map_err(unreadable)?;
        let stored = value.ok_or_else(|| not_found(&key))?;
        Ok(Response::new(proto::GetResourceResponse { resource: Some(encode_stored(&stored)), state_lsn: state_lsn.0 }))
    }

    async fn list_resources(
        &self,
        request: Request<proto::ListResourcesRequest>,
    ) -> Result<Response<proto::ListResourcesResponse>, RpcStatus> {
        let proto::ListResourcesRequest { kind, page_size, page_token, filter } = request.into_inner();
        let mut found = Violations::default();
        let kind = decode_kind(&Path::root("kind"), kind, &mut found);
        let filter = decode_filter(&Path::root("filter"), filter, &mut found);
        let (Some(kind), Some(filter)) = (kind, filter) else { return Err(Rejection::invalid(found).to_status()) };
        let (limit, after) = page(page_size, page_token);
        let query = ListQuery { kind, filter, after };
        let Read { value, state_lsn } = self.backend.resources(query, limit).await.map_err(unreadable)?;
        let (resources, next_page_token) = encode_page(value);
        Ok(Response::new(proto::ListResourcesResponse { resources, next_page_token, state_lsn: state_lsn.0 }))
    }
}

#[tonic::async_trait]
impl<B: Backend> StatusService for Handler<B> {
    async fn get_status(
        &self,
        _request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, RpcStatus> {
        Ok(Response::new(encode_status(self.backend.status().await)))
    }

    async fn set_log_filter(
        &self,
        request: Request<proto::SetLogFilterRequest>,
    ) -> Result<Response<proto::SetLogFilterResponse>, RpcStatus> {
        let changed = self.backend.set_log_filter(request.into_inner().filter);
        let LogFilter { now, before } = changed.map_err(|description| {
            let mut found = Violations::default();
            found.push(violation("filter", description));
            Rejection::invalid(found).to_status()
        })?;
        Ok(Response::new(proto::SetLogFilterResponse { filter: now, filter_before: before }))
    }

    async fn get_capabilities(
        &self,
        request: Request<proto::GetCapabilitiesRequest>,
    ) -> Result<Response<proto::GetCapabilitiesResponse>, RpcStatus> {
        let peer = Peer::of(request.extensions()).ok_or_else(|| RpcStatus::permission_denied("nobody calls"))?;
        let version = self.backend.status().await.version;
        Ok(Response::new(capabilities::answer(&self.limits, peer.caller(), version)))
    }
}

#[tonic::async_trait]
impl<B: Backend> JournalService for Handler<B> {
    type ReadRecordsStream = Messages<proto::ReadRecordsResponse>;
    type VerifyJournalStream = Messages<proto::VerifyJournalResponse>;
    type SaveSnapshotStream = Messages<proto::SaveSnapshotResponse>;
    type WatchRecordsStream = Messages<proto::WatchRecordsResponse>;

    async fn watch_records(
        &self,
        request: Request<proto::WatchRecordsRequest>,
    ) -> Result<Response<Self::WatchRecordsStream>, RpcStatus> {
        let (watch, encoded) = decode_records_watch(request.into_inner()).map_err(|rejection| rejection.to_status())?;
        let flow = self.backend.watch_records(watch).await.map_err(|error| error.to_status())?;
        let messages = passed_on(flow, move |step| encode_records_step(step, encoded));
        Ok(Response::new(Box::pin(UntilStopped::new(messages, self.stopping.clone()))))
    }

    async fn read_records(
        &self,
        request: Request<proto::ReadRecordsRequest>,
    ) -> Result<Response<Self::ReadRecordsStream>, RpcStatus> {
        let (query, encoded) = decode_query(request.into_inner()).map_err(|rejection| rejection.to_status())?;
        let flow = self.backend.records(query).await.map_err(|error| error.to_status())?;
        Ok(Response::new(passed_on(flow, move |records| encode_batch(records, encoded))))
    }

    async fn get_journal_stats(
        &self,
        _request: Request<proto::GetJournalStatsRequest>,
    ) -> Result<Response<proto::GetJournalStatsResponse>, RpcStatus> {
        self.backend.journal_stats().await.map(Response::new).map_err(|error| error.to_status())
    }

    async fn verify_journal(
        &self,
        _request: Request<proto::VerifyJournalRequest>,
    ) -> Result<Response<Self::VerifyJournalStream>, RpcStatus> {
        let flow = self.backend.verify_journal().await.map_err(|error| error.to_status())?;
        let message = |step| Ok(proto::VerifyJournalResponse { step: Some(step) });
        Ok(Response::new(passed_on(flow, message)))
    }

    async fn create_checkpoint(
        &self,
        _request: Request<proto::CreateCheckpointRequest>,
    ) -> Result<Response<proto::CreateCheckpointResponse>, RpcStatus> {
        let checkpoint = self.backend.checkpoint().await.map_err(|error| error.to_status())?;
        Ok(Response::new(proto::CreateCheckpointResponse { checkpoint: Some(checkpoint) }))
    }

    async fn compact_journal(
        &self,
        request: Request<proto::CompactJournalRequest>,
    ) -> Result<Response<proto::CompactJournalResponse>, RpcStatus> {
        self.backend.compact(request.into_inner()).await.map(Response::new).map_err(|error| error.to_status())
    }

    async fn save_snapshot(
        &self,
        _request: Request<proto::SaveSnapshotRequest>,
    ) -> Result<Response<Self::SaveSnapshotStream>, RpcStatus> {
        let flow = self.backend.snapshot().await.map_err(|error| error.to_status())?;
        Ok(Response::new(passed_on(flow, |chunk| Ok(proto::SaveSnapshotResponse { chunk }))))
    }
}

#[tonic::async_trait]
impl<B: Backend> DatapathService for Handler<B> {
    async fn verify_tables(
        &self,
        _request: Request<proto::VerifyTablesRequest>,
    ) -> Result<Response<proto::VerifyTablesResponse>, RpcStatus> {
        self.backend.verify_tables().await.map(Response::new).map_err(|error| RpcStatus::internal(error.cause))
    }

    async fn enrol_namespace(
        &self,
        request: Request<proto::EnrolNamespaceRequest>,
    ) -> Result<Response<proto::EnrolNamespaceResponse>, RpcStatus> {
        let namespace = decode_namespace(request.into_inner().namespace)?;
        let (cookie, enrolled) = self.backend.enrol_namespace(namespace).await.map_err(|error| error.to_status())?;
        Ok(Response::new(proto::EnrolNamespaceResponse { cookie, enrolled }))
    }

    async fn release_namespace(
        &self,
        request: Request<proto::ReleaseNamespaceRequest>,
    ) -> Result<Response<proto::ReleaseNamespaceResponse>, RpcStatus> {
        let namespace = decode_namespace(request.into_inner().namespace)?;
        let (cookie, released) = self.backend.release_namespace(namespace).await.map_err(|error| error.to_status())?;
        Ok(Response::new(proto::ReleaseNamespaceResponse { cookie, released }))
    }

    async fn list_namespaces(
        &self,
        _request: Request<proto::ListNamespacesRequest>,
    ) -> Result<Response<proto::ListNamespacesResponse>, RpcStatus> {
        let namespaces = self.backend.namespaces().await.map_err(|error| error.to_status())?;
        Ok(Response::new(proto::ListNamespacesResponse { namespaces }))
    }

    async fn renew_generation(
        &self,
        _request: Request<proto::RenewGenerationRequest>,
    ) -> Result<Response<proto::RenewGenerationResponse>, RpcStatus> {
        let generation = self.backend.renew_generation().await.map_err(|error| RpcStatus::internal(error.cause))?;
        Ok(Response::new(proto::RenewGenerationResponse { generation }))
    }
}

pub(crate) fn encode_stored(stored: &Stored) -> proto::StoredResource {
    let Stored { resource, changed_lsn, owner } = stored;
    let resource = Some(encode_resource(resource));
    proto::StoredResource { resource, changed_lsn: changed_lsn.0, owner: owner.clone() }
}

/// What of a page goes into one message, and where the next one starts.
fn encode_page(page: Page) -> (Vec<proto::StoredResource>, String) {
    let mut bytes = 0;
    let mut messages = Vec::with_capacity(page.resources.len());
    for stored in &page.resources {
        let message = encode_stored(stored);
        bytes += prost::Message::encoded_len(&message);
        messages.push(message);
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    let is_cut = messages.len() < page.resources.len();
    let last = page.resources.get(messages.len().wrapping_sub(1)).filter(|_| is_cut);
    let next = last.map(|last| last.resource.name().to_owned()).or(page.next);
    (messages, next.unwrap_or_default())
}

fn required<T>(path: &str, found: &mut Violations) -> Option<T> {
    found.push(violation(path, "is required"));
    None
}

fn violation(path: &str, description: impl Into<String>) -> Violation {
    Violation { path: path.to_owned(), resource: None, description: description.into() }
}

/// How many to read for a page, and after which name.
pub(crate) fn page(page_size: u32, page_token: String) -> (usize, Option<String>) {
    let limit = match usize::try_from(page_size) {
        Ok(size @ 1..=PAGE_MAX) => size,
        _ => PAGE_MAX,
    };
    (limit, (!page_token.is_empty()).then_some(page_token))
}

fn not_found(key: &ResourceKey) -> RpcStatus {
    let details = ErrorDetails::with_resource_info(key.kind.as_str(), &key.name, "", "it does not exist");
    RpcStatus::with_error_details(tonic::Code::NotFound, format!("{key} does not exist"), details)
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
pub(crate) fn unreadable(error: Unreadable) -> RpcStatus {
    tracing::error!(%error, "a read failed");
    RpcStatus::internal(error.to_string())
}
