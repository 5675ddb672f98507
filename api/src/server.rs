//! The server: turns messages into calls of a [`Backend`] and bounds what a client can cost.
//!
//! Bounds, from the outside in: requests in flight over all connections and on each one, bytes of a message, time of a
//! request, deltas of a transaction, bytes of a page. A push that was accepted is answered with a receipt whatever
//! happens to the wait for it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use storage_schema::id::Lsn;
use storage_schema::record::Transaction;
use storage_schema::resource::{Kind, ResourceKey};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status as RpcStatus};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower::limit::GlobalConcurrencyLimitLayer;

use crate::convert::{Path, decode_key, decode_kind, decode_transaction, encode_resource};
use crate::journal::{EncodedRecord, JournalError, RecordsQuery, decode_query, encode_batch};
use crate::proto::datapath_service_server::{DatapathService, DatapathServiceServer};
use crate::proto::journal_service_server::{JournalService, JournalServiceServer};
use crate::proto::push_service_server::{PushService, PushServiceServer};
use crate::proto::resource_service_server::{ResourceService, ResourceServiceServer};
use crate::proto::status_service_server::{StatusService, StatusServiceServer};
use crate::rejection::{Rejection, Violation, Violations};
use crate::socket::{self, Socket};
use crate::status::{Status, encode_status};
use crate::{Level, MESSAGE_BYTES_MAX, Receipt, Stored, WAIT_TIMEOUT_DEFAULT, WAIT_TIMEOUT_MAX, proto};

/// What a backend tells bit by bit. It ends when the receiver is dropped.
pub type Flow<T> = mpsc::Receiver<Result<T, JournalError>>;

/// What stands behind the API: journal and applier in the agent, a fake in tests.
///
/// The futures are dropped when a client goes away. A push must therefore be all done or not begun at any await point.
pub trait Backend: Send + Sync + 'static {
    /// Takes a transaction; returns once it is durable. `client` is who pushed it, as the transport knows it
    /// ([`crate::socket::client`]).
    fn push(
        &self,
        transaction: Transaction,
        client: Option<String>,
    ) -> impl Future<Output = Result<Receipt, Rejection>> + Send;

    /// Returns once connections see the record with this number.
    fn applied(&self, lsn: Lsn) -> impl Future<Output = ()> + Send;

    /// One resource.
    fn resource(&self, key: ResourceKey) -> impl Future<Output = Result<Read<Option<Stored>>, Unreadable>> + Send;

    /// Up to `limit` resources of a kind in the order of their names, beginning after the name `after`.
    fn resources(
        &self,
        kind: Kind,
        after: Option<String>,
        limit: usize,
    ) -> impl Future<Output = Result<Read<Vec<Stored>>, Unreadable>> + Send;

    /// Records, in order, some at a time; of a query that follows, without end.
    fn records(
        &self,
        query: RecordsQuery,
    ) -> impl Future<Output = Result<Flow<Vec<EncodedRecord>>, JournalError>> + Send;

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

    /// Compares the tables with the journal's state.
    fn verify_tables(&self) -> impl Future<Output = Result<proto::VerifyTablesResponse, DatapathError>> + Send;

    /// Builds a new generation and switches to it; its name.
    fn renew_generation(&self) -> impl Future<Output = Result<String, DatapathError>> + Send;

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

/// What a client can cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in flight over all connections; more wait.
    pub requests_max: usize,
    /// Requests in flight on one connection; more wait.
    pub requests_per_connection_max: usize,
    /// Streams that are open at a time; one more is refused.
    pub streams_max: usize,
    /// How long a request may take altogether, of one that streams its answer until the first of it. Longer than [`WAIT_TIMEOUT_MAX`], so that receipts are not lost.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 1024,
            requests_per_connection_max: 128,
            streams_max: 64,
            request_timeout: WAIT_TIMEOUT_MAX + Duration::from_secs(10),
        }
    }
}

/// Resources on a page when the client does not say, and at most.
const PAGE_RESOURCES_MAX: usize = 1000;
/// A page ends after the resource that makes it this large, far below what a client accepts.
const PAGE_BYTES: usize = 1 << 20;

/// Serves until `stop` completes; then takes no more requests, finishes those in flight and removes the socket.
pub async fn serve<B: Backend>(
    backend: Arc<B>,
    socket: Socket,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (listener, _file) = socket.into_parts();
    let listener = tokio::net::UnixListener::from_std(listener).map_err(ServeError::Listen)?;
    let handler = Handler { backend, streams: Arc::new(Semaphore::new(limits.streams_max)) };
    let push = PushServiceServer::new(handler.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let resource = ResourceServiceServer::new(handler.clone()).max_encoding_message_size(MESSAGE_BYTES_MAX);
    let journal = JournalServiceServer::new(handler.clone());
    let datapath = DatapathServiceServer::new(handler.clone());
    let status = StatusServiceServer::new(handler);
    tonic::transport::Server::builder()
        .timeout(limits.request_timeout)
        .concurrency_limit_per_connection(limits.requests_per_connection_max)
        .max_concurrent_streams(u32::try_from(limits.requests_per_connection_max).unwrap_or(u32::MAX))
        .trace_fn(|request| tracing::debug_span!("request", method = request.uri().path()))
        .layer(GlobalConcurrencyLimitLayer::new(limits.requests_max))
        .add_service(push)
        .add_service(resource)
        .add_service(status)
        .add_service(journal)
        .add_service(datapath)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop)
        .await
        .map_err(ServeError::Serve)
}

/// Why the server ended otherwise than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be used.
    #[error("cannot listen: {0}")]
    Listen(#[source] io::Error),
    /// The transport failed.
    #[error("cannot serve: {0}")]
    Serve(#[source] tonic::transport::Error),
}

struct Handler<B> {
    backend: Arc<B>,
    streams: Arc<Semaphore>,
}

impl<B> Clone for Handler<B> {
    fn clone(&self) -> Self {
        Self { backend: Arc::clone(&self.backend), streams: Arc::clone(&self.streams) }
    }
}

impl<B> Handler<B> {
    fn stream(&self) -> Result<OwnedSemaphorePermit, JournalError> {
        let permit = Arc::clone(&self.streams).try_acquire_owned();
        permit.map_err(|_| JournalError::Busy("too many streams are open: try again later".to_owned()))
    }
}

/// Passes on what a backend tells, for as long as the client listens.
fn passed_on<T, M>(
    permit: OwnedSemaphorePermit,
    flow: Flow<T>,
    encode: impl Fn(T) -> Result<M, RpcStatus> + Send + 'static,
) -> Messages<M>
where
    T: Send + 'static,
    M: Send + 'static,
{
    let flow = ReceiverStream::new(flow);
    Box::pin(flow.map(move |step| {
        let _held = &permit;
        encode(step.map_err(|error| error.to_status())?)
    }))
}

type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, RpcStatus>> + Send>>;

#[tonic::async_trait]
impl<B: Backend> PushService for Handler<B> {
    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Result<Response<proto::ApplyResponse>, RpcStatus> {
        let client = socket::client(request.extensions());
        let proto::ApplyRequest { transaction, wait, wait_timeout } = request.into_inner();
        let (wait, timeout) = decode_wait(wait, wait_timeout).map_err(|rejection| rejection.to_status())?;
        let transaction = decode_transaction(transaction).map_err(|rejection| rejection.to_status())?;
        let mut receipt = self.backend.push(transaction, client).await.map_err(|rejection| {
            tracing::info!(%rejection, "transaction refused");
            rejection.to_status()
        })?;
        if wait > receipt.level {
            match tokio::time::timeout(timeout, self.backend.applied(receipt.lsn)).await {
                Ok(()) => receipt.level = Level::Applied,
                Err(_) => receipt.blocked_reason = self.backend.status().await.blocked_reason.unwrap_or_default(),
            }
        }
        Ok(Response::new(proto::ApplyResponse {
            lsn: receipt.lsn.0,
            level: encode_level(receipt.level).into(),
            duplicate: receipt.duplicate,
            record_hash: receipt.record_hash.0.to_vec(),
            blocked_reason: receipt.blocked_reason,
        }))
    }
}

#[tonic::async_trait]
impl<B: Backend> ResourceService for Handler<B> {
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
        let proto::ListResourcesRequest { kind, page_size, page_token } = request.into_inner();
        let mut found = Violations::default();
        let kind =
            decode_kind(&Path::root("kind"), kind, &mut found).ok_or_else(|| Rejection::invalid(found).to_status())?;
        let limit = match usize::try_from(page_size) {
            Ok(size @ 1..=PAGE_RESOURCES_MAX) => size,
            _ => PAGE_RESOURCES_MAX,
        };
        let after = (!page_token.is_empty()).then_some(page_token);
        let Read { value, state_lsn } = self.backend.resources(kind, after, limit).await.map_err(unreadable)?;
        let (resources, next_page_token) = page(&value, limit);
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
}

#[tonic::async_trait]
impl<B: Backend> JournalService for Handler<B> {
    type ReadRecordsStream = Messages<proto::ReadRecordsResponse>;
    type VerifyJournalStream = Messages<proto::VerifyJournalResponse>;
    type SaveSnapshotStream = Messages<proto::SaveSnapshotResponse>;

    async fn read_records(
        &self,
        request: Request<proto::ReadRecordsRequest>,
    ) -> Result<Response<Self::ReadRecordsStream>, RpcStatus> {
        let (query, encoded) = decode_query(request.into_inner()).map_err(|rejection| rejection.to_status())?;
        let permit = self.stream().map_err(|error| error.to_status())?;
        let flow = self.backend.records(query).await.map_err(|error| error.to_status())?;
        Ok(Response::new(passed_on(permit, flow, move |records| encode_batch(records, encoded))))
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
        let permit = self.stream().map_err(|error| error.to_status())?;
        let flow = self.backend.verify_journal().await.map_err(|error| error.to_status())?;
        let message = |step| Ok(proto::VerifyJournalResponse { step: Some(step) });
        Ok(Response::new(passed_on(permit, flow, message)))
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
        let permit = self.stream().map_err(|error| error.to_status())?;
        let flow = self.backend.snapshot().await.map_err(|error| error.to_status())?;
        Ok(Response::new(passed_on(permit, flow, |chunk| Ok(proto::SaveSnapshotResponse { chunk }))))
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

    async fn renew_generation(
        &self,
        _request: Request<proto::RenewGenerationRequest>,
    ) -> Result<Response<proto::RenewGenerationResponse>, RpcStatus> {
        let generation = self.backend.renew_generation().await.map_err(|error| RpcStatus::internal(error.cause))?;
        Ok(Response::new(proto::RenewGenerationResponse { generation }))
    }
}

fn encode_level(level: Level) -> proto::Level {
    match level {
        Level::Durable => proto::Level::Durable,
        Level::Applied => proto::Level::Applied,
    }
}

fn decode_wait(level: i32, timeout: Option<prost_types::Duration>) -> Result<(Level, Duration), Rejection> {
    let mut found = Violations::default();
    let level = match proto::Level::try_from(level) {
        Ok(proto::Level::Unspecified | proto::Level::Durable) => Level::Durable,
        Ok(proto::Level::Applied) => Level::Applied,
        Err(_) => {
            found.push(violation("wait", format!("{level} is not a level that this agent knows")));
            Level::Durable
        }
    };
    let timeout = match timeout.map(Duration::try_from) {
        None => WAIT_TIMEOUT_DEFAULT,
        Some(Ok(timeout)) if timeout <= WAIT_TIMEOUT_MAX => timeout,
        Some(_) => {
            found.push(violation("wait_timeout", format!("must be 0 to {} seconds", WAIT_TIMEOUT_MAX.as_secs())));
            WAIT_TIMEOUT_DEFAULT
        }
    };
    if found.iter().next().is_some() { Err(Rejection::invalid(found)) } else { Ok((level, timeout)) }
}

fn encode_stored(stored: &Stored) -> proto::StoredResource {
    let Stored { resource, changed_lsn } = stored;
    proto::StoredResource { resource: Some(encode_resource(resource)), changed_lsn: changed_lsn.0 }
}

fn page(resources: &[Stored], limit: usize) -> (Vec<proto::StoredResource>, String) {
    let mut bytes = 0;
    let mut messages = Vec::with_capacity(resources.len());
    for stored in resources {
        let message = encode_stored(stored);
        bytes += prost::Message::encoded_len(&message);
        messages.push(message);
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    // A full page may be the last one; the client then gets an empty one after it.
    let more = messages.len() < resources.len() || resources.len() == limit;
    let last = resources.get(messages.len().wrapping_sub(1)).filter(|_| more);
    let token = last.map(|last| last.resource.name().to_owned());
    (messages, token.unwrap_or_default())
}

fn required<T>(path: &str, found: &mut Violations) -> Option<T> {
    found.push(violation(path, "is required"));
    None
}

fn violation(path: &str, description: impl Into<String>) -> Violation {
    Violation { path: path.to_owned(), resource: None, description: description.into() }
}

fn not_found(key: &ResourceKey) -> RpcStatus {
    let details = ErrorDetails::with_resource_info(key.kind.as_str(), &key.name, "", "it does not exist");
    RpcStatus::with_error_details(tonic::Code::NotFound, format!("{key} does not exist"), details)
}

#[expect(clippy::needless_pass_by_value, reason = "it is passed to map_err")]
fn unreadable(error: Unreadable) -> RpcStatus {
    tracing::error!(%error, "a read failed");
    RpcStatus::internal(error.to_string())
}
