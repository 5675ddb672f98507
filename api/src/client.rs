//! The client: what the command line uses, and what a control plane in Rust would.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use hyper_util::rt::TokioIo;
use prost::Message as _;
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::precondition::Precondition;
use storage_schema::record::Transaction;
use storage_schema::resource::{Kind, ResourceKey};
use tokio::net::UnixStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, TimeoutExpired};

pub use crate::access::tls::Files;
use crate::convert::{
    Path as FieldPath, decode_resource, encode_key, encode_kind, encode_preconditions, encode_transaction,
};
use crate::filter::{ResourceFilter, encode_filter};
use crate::journal::{EncodedRecord, JournalError, RecordsQuery, encode_query};
use crate::namespace::Namespace;
use crate::plan::{Plan, decode_plan};
use crate::proto::datapath_service_client::DatapathServiceClient;
use crate::proto::journal_service_client::JournalServiceClient;
use crate::proto::push_service_client::PushServiceClient;
use crate::proto::replay_service_client::ReplayServiceClient;
use crate::proto::resource_service_client::ResourceServiceClient;
use crate::proto::status_service_client::StatusServiceClient;
use crate::push::stream::PushStream;
use crate::push::{Hello, encode_level};
use crate::rejection::{Rejection, Violations};
use crate::server::Read;
use crate::source::{ListedSource, decode_source};
use crate::status::{LogFilter, Status, UnreadableStatus, decode_status};
use crate::{Level, MESSAGE_BYTES_MAX, Receipt, Stored, WAIT_TIMEOUT_MAX, proto};

/// How long a call may take: longer than any wait that a server grants, so that it only ends calls to one that hangs.
const ANSWER_TIMEOUT: Duration = WAIT_TIMEOUT_MAX.saturating_add(Duration::from_secs(15));

/// How long a connection over TCP, its handshake included, may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often an agent that is silent over TCP is asked whether it is there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// A record may be larger than a push: what was one transaction then may have been read from a file.
const RECORD_MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or the connection broke.
    #[error("cannot reach the agent at {server}: {source}")]
    Unreachable {
        /// Where it was looked for.
        server: Server,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The agent did not accept the transaction.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The journal could not be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The address or the certificates cannot be used. Nothing was sent.
    #[error("cannot connect to {server}: {reason}")]
    Unusable {
        /// The address.
        server: Server,
        /// What is wrong.
        reason: String,
    },
    /// The agent does not let this caller do that.
    #[error("permission denied: {message}")]
    Denied {
        /// What it said.
        message: String,
    },
    /// The request is larger than the agent accepts. Nothing was sent.
    #[error("the request has {bytes} bytes: at most {MESSAGE_BYTES_MAX} are accepted; split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The agent is too old for this, and would not have told. Nothing was sent.
    #[error("the agent does not have the feature `{feature}`: upgrade it")]
    MissingFeature {
        /// What it does not have.
        feature: &'static str,
    },
    /// The agent did not answer in time.
    #[error("the agent did not answer in time")]
    TimedOut,
    /// The agent failed, in a way of which the API knows only a code.
    #[error("the agent answered {code:?}: {message}")]
    Failed {
        /// The gRPC code.
        code: Code,
        /// What it said.
        message: String,
    },
    /// The agent's answer has no meaning here.
    #[error("the agent's answer cannot be read: {what} (is the agent of another version?)")]
    UnreadableAnswer {
        /// What is wrong with it.
        what: String,
    },
}

impl From<UnreadableStatus> for ClientError {
    fn from(error: UnreadableStatus) -> Self {
        Self::UnreadableAnswer { what: format!("{} is missing or unknown", error.field) }
    }
}

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// A unix socket.
    Unix(PathBuf),
    /// `https://host:port`, with certificates at both ends.
    Tls {
        /// The address. The host is a name in the agent's certificate.
        url: String,
        /// The certificates.
        files: Files,
    },
    /// `http://127.0.0.1:port`: an agent that was told to do without TLS on a loopback address.
    Loopback {
        /// The address.
        url: String,
    },
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tls { url, .. } | Self::Loopback { url } => f.write_str(url),
        }
    }
}

impl From<PathBuf> for Server {
    fn from(socket: PathBuf) -> Self {
        Self::Unix(socket)
    }
}

impl From<&PathBuf> for Server {
    fn from(socket: &PathBuf) -> Self {
        Self::Unix(socket.clone())
    }
}

impl From<&Path> for Server {
    fn from(socket: &Path) -> Self {
        Self::Unix(socket.to_owned())
    }
}

impl Server {
    fn unusable(&self, reason: impl fmt::Display) -> ClientError {
        ClientError::Unusable { server: self.clone(), reason: reason.to_string() }
    }

    async fn channel(&self) -> Result<Channel, ClientError> {
        let unreachable = |error: tonic::transport::Error| unreachable_error(self, &error);
        let (url, tls) = match self {
            Self::Unix(path) => {
                let path = path.clone();
                let connector = tower::service_fn(move |_| {
                    let path = path.clone();
                    async move { UnixStream::connect(path).await.map(TokioIo::new) }
                });
                // The address is of no use on a unix socket, but HTTP/2 wants an authority.
                let endpoint = Endpoint::from_static("http://holdfast").timeout(ANSWER_TIMEOUT);
                return endpoint.connect_with_connector(connector).await.map_err(unreachable);
            }
            Self::Tls { url, files } => (url, Some(self.tls_config(files)?)),
            Self::Loopback { url } => (url, None),
        };
        let mut endpoint = Endpoint::from_shared(url.clone()).map_err(|error| self.unusable(innermost(&error)))?;
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).map_err(|error| self.unusable(innermost(&error)))?;
        }
        endpoint
            .timeout(ANSWER_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .connect()
            .await
            .map_err(unreachable)
    }

    fn tls_config(&self, files: &Files) -> Result<ClientTlsConfig, ClientError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| self.unusable(format!("cannot read {}: {error}", path.display())))
        };
        let identity = Identity::from_pem(read(&files.certificate)?, read(&files.key)?);
        let authorities = Certificate::from_pem(read(&files.authorities)?);
        Ok(ClientTlsConfig::new().identity(identity).ca_certificate(authorities))
    }
}

/// A connection to an agent. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    server: Server,
    channel: Channel,
}

impl Client {
    /// Connects to the agent that listens there: a path is that of a unix socket. A connection that breaks is made again at
    /// the next call.
    pub async fn connect(server: impl Into<Server>) -> Result<Self, ClientError> {
        let server = server.into();
        let channel = server.channel().await?;
        Ok(Self { server, channel })
    }

    /// The agent that this client talks to.
    pub const fn server(&self) -> &Server {
        &self.server
    }

    /// What the agent can do and takes at most, and who it takes this client for.
    pub async fn capabilities(&self) -> Result<proto::GetCapabilitiesResponse, ClientError> {
        let mut client = StatusServiceClient::new(self.channel.clone());
        let answer = client.get_capabilities(proto::GetCapabilitiesRequest {}).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner())
    }

    /// Pushes a transaction. It returns when the transaction is as far as `wait` says, or, being durable, when
    /// `timeout` has passed: the receipt says which.
    pub async fn apply(
        &self,
        transaction: &Transaction,
        wait: Level,
        timeout: Duration,
    ) -> Result<Receipt, ClientError> {
        self.apply_if(transaction, &[], wait, timeout).await
    }

    /// [`Client::apply`], of a transaction that is refused ([`Rejection::Unmet`]) unless the preconditions hold when it has its
    /// turn.
    pub async fn apply_if(
        &self,
        transaction: &Transaction,
        preconditions: &[Precondition],
        wait: Level,
        timeout: Duration,
    ) -> Result<Receipt, ClientError> {
        self.require_for(preconditions).await?;
        let request = proto::ApplyRequest {
            transaction: Some(encode_transaction(transaction)),
            wait: encode_level(wait).into(),
            wait_timeout: timeout.min(WAIT_TIMEOUT_MAX).try_into().ok(),
            take_over: transaction.take_over,
            preconditions: encode_preconditions(preconditions),
            ..Default::default()
        };
        decode_receipt(self.send(request).await?)
    }

    /// What a transaction would change, or why it would be refused. Nothing is journaled.
    pub async fn plan(&self, transaction: &Transaction, preconditions: &[Precondition]) -> Result<Plan, ClientError> {
        self.require("dry_run").await?;
        self.require_for(preconditions).await?;
        let request = proto::ApplyRequest {
            transaction: Some(encode_transaction(transaction)),
            take_over: transaction.take_over,
            dry_run: true,
            preconditions: encode_preconditions(preconditions),
            ..Default::default()
        };
        decode_plan(self.send(request).await?.plan).map_err(unreadable)
    }

    async fn require_for(&self, preconditions: &[Precondition]) -> Result<(), ClientError> {
        if preconditions.is_empty() { Ok(()) } else { self.require("preconditions").await }
    }

    /// Makes sure that the agent has a feature which an older one would not miss.
    async fn require(&self, feature: &'static str) -> Result<(), ClientError> {
        if self.capabilities().await?.features.iter().any(|known| known == feature) {
            return Ok(());
        }
        Err(ClientError::MissingFeature { feature })
    }

    async fn send(&self, request: proto::ApplyRequest) -> Result<proto::ApplyResponse, ClientError> {
        let bytes = request.encoded_len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(ClientError::TooLarge { bytes });
        }
        Ok(self.push_client().apply(request).await.map_err(|status| self.error(&status))?.into_inner())
    }

    /// Opens a push stream, which begins with this hello.
    pub async fn push(&self, hello: &Hello) -> Result<PushStream, ClientError> {
        PushStream::open(self, hello).await
    }

    /// One resource, or `None` if it does not exist.
    pub async fn get(&self, key: &ResourceKey) -> Result<Option<Read<Stored>>, ClientError> {
        let request = proto::GetResourceRequest { key: Some(encode_key(key)) };
        match self.resources_client().get_resource(request).await {
            Ok(answer) => {
                let proto::GetResourceResponse { resource, state_lsn } = answer.into_inner();
                let value = decode_answer(resource.unwrap_or_default())?;
                Ok(Some(Read { value, state_lsn: Lsn(state_lsn) }))
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.error(&status)),
        }
    }

    /// All resources of a kind, in the order of their names: see [`Client::list_some`].
    pub async fn list(&self, kind: Kind) -> Result<Vec<Stored>, ClientError> {
        self.list_some(kind, &ResourceFilter::default()).await
    }

    /// The resources of a kind that a filter admits, in the order of their names.
    ///
    /// They are read in pages; each page is of one state, but a transaction may come between two of them.
    pub async fn list_some(&self, kind: Kind, filter: &ResourceFilter) -> Result<Vec<Stored>, ClientError> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let filter = Some(encode_filter(filter));
            let request =
                proto::ListResourcesRequest { kind: encode_kind(kind).into(), page_size: 0, page_token, filter };
            let answer = self.resources_client().list_resources(request).await.map_err(|status| self.error(&status))?;
            let proto::ListResourcesResponse { resources, next_page_token, state_lsn: _ } = answer.into_inner();
            for resource in resources {
                all.push(decode_answer(resource)?);
            }
            if next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = next_page_token;
        }
    }

    /// Who pushes, in the order of their names. They are read in pages; a source that comes meanwhile may be missing.
    pub async fn sources(&self) -> Result<Vec<ListedSource>, ClientError> {
        let mut client = PushServiceClient::new(self.channel.clone());
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = proto::ListSourcesRequest { page_size: 0, page_token };
            let answer = client.list_sources(request).await.map_err(|status| self.error(&status))?;
            let proto::ListSourcesResponse { sources, next_page_token } = answer.into_inner();
            all.extend(sources.into_iter().map(decode_source));
            if next_page_token.is_empty() {
                return Ok(all);
            }
            page_token = next_page_token;
        }
    }

    /// The agent's condition.
    pub async fn status(&self) -> Result<Status, ClientError> {
        let mut client = StatusServiceClient::new(self.channel.clone());
        let answer = client.get_status(proto::GetStatusRequest {}).await.map_err(|status| self.error(&status))?;
        Ok(decode_status(answer.into_inner())?)
    }

    /// Changes what the agent logs; without a filter, back to what its settings say.
    pub async fn set_log_filter(&self, filter: Option<&str>) -> Result<LogFilter, ClientError> {
        let mut client = StatusServiceClient::new(self.channel.clone());
        let request = proto::SetLogFilterRequest { filter: filter.map(str::to_owned) };
        let answer = client.set_log_filter(request).await.map_err(|status| self.error(&status))?.into_inner();
        Ok(LogFilter { now: answer.filter, before: answer.filter_before })
    }

    /// Has the agent compare its tables with the journal.
    pub async fn verify_tables(&self) -> Result<proto::VerifyTablesResponse, ClientError> {
        let mut client = DatapathServiceClient::new(self.channel.clone());
        let answer = client.verify_tables(proto::VerifyTablesRequest {}).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner())
    }

    /// Has the agent make a new generation; its name, empty without a kernel datapath.
    pub async fn renew_generation(&self) -> Result<String, ClientError> {
        let mut client = DatapathServiceClient::new(self.channel.clone());
        let answer = client.renew_generation(proto::RenewGenerationRequest {}).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner().generation)
    }

    /// Has the processes in a network namespace managed: its cookie, and whether they were not before.
    pub async fn enrol_namespace(&self, namespace: &Namespace) -> Result<(u64, bool), ClientError> {
        let mut client = DatapathServiceClient::new(self.channel.clone());
        let request = proto::EnrolNamespaceRequest { namespace: Some(namespace.encode()) };
        let answer = client.enrol_namespace(request).await.map_err(|status| self.error(&status))?.into_inner();
        Ok((answer.cookie, answer.enrolled))
    }

    /// Ends that: its cookie, and whether they were managed.
    pub async fn release_namespace(&self, namespace: &Namespace) -> Result<(u64, bool), ClientError> {
        let mut client = DatapathServiceClient::new(self.channel.clone());
        let request = proto::ReleaseNamespaceRequest { namespace: Some(namespace.encode()) };
        let answer = client.release_namespace(request).await.map_err(|status| self.error(&status))?.into_inner();
        Ok((answer.cookie, answer.released))
    }

    /// The network namespaces whose processes are managed.
    pub async fn namespaces(&self) -> Result<Vec<proto::EnrolledNamespace>, ClientError> {
        let mut client = DatapathServiceClient::new(self.channel.clone());
        let answer = client.list_namespaces(proto::ListNamespacesRequest {}).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner().namespaces)
    }

    /// The records that a query names, as they come.
    pub async fn records(
        &self,
        query: &RecordsQuery,
    ) -> Result<impl Stream<Item = Result<Vec<EncodedRecord>, ClientError>> + Send + use<>, ClientError> {
        let answer = self.journal_client().read_records(encode_query(query)).await;
        let client = self.clone();
        Ok(answer.map_err(|status| self.error(&status))?.into_inner().map(move |batch| {
            let record =
                |record: proto::EncodedRecord| EncodedRecord { lsn: Lsn(record.lsn), encoded: record.bytes.into() };
            let batch = batch.map_err(|status| client.error(&status))?;
            Ok(batch.encoded.into_iter().map(record).collect())
        }))
    }

    /// How much journal there is.
    pub async fn journal_stats(&self) -> Result<proto::GetJournalStatsResponse, ClientError> {
        let answer = self.journal_client().get_journal_stats(proto::GetJournalStatsRequest {}).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner())
    }

    /// Has the agent verify its journal; `progress` is told how far it is.
    pub async fn verify_journal(
        &self,
        mut progress: impl FnMut(proto::VerifyProgress),
    ) -> Result<proto::VerifyReport, ClientError> {
        use proto::verify_journal_response::Step;
        let answer = self.journal_client().verify_journal(proto::VerifyJournalRequest {}).await;
        let mut steps = answer.map_err(|status| self.error(&status))?.into_inner();
        while let Some(message) = steps.message().await.map_err(|status| self.error(&status))? {
            match message.step {
                Some(Step::Progress(step)) => progress(step),
                Some(Step::Report(report)) => return Ok(report),
                None => {}
            }
        }
        Err(ClientError::UnreadableAnswer { what: "it ended without a report".to_owned() })
    }

    /// Has the agent make a checkpoint.
    pub async fn create_checkpoint(&self) -> Result<proto::Checkpoint, ClientError> {
        let answer = self.journal_client().create_checkpoint(proto::CreateCheckpointRequest {}).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner().checkpoint.unwrap_or_default())
    }

    /// Has the agent make a checkpoint and let go what is not to be kept.
    pub async fn compact_journal(
        &self,
        request: proto::CompactJournalRequest,
    ) -> Result<proto::CompactJournalResponse, ClientError> {
        let answer = self.journal_client().compact_journal(request).await;
        Ok(answer.map_err(|status| self.error(&status))?.into_inner())
    }

    /// The whole journal as a file, chunk by chunk.
    pub async fn save_snapshot(
        &self,
    ) -> Result<impl Stream<Item = Result<Vec<u8>, ClientError>> + Send + use<>, ClientError> {
        let answer = self.journal_client().save_snapshot(proto::SaveSnapshotRequest {}).await;
        let client = self.clone();
        let chunks = answer.map_err(|status| self.error(&status))?.into_inner();
        Ok(chunks.map(move |message| message.map(|message| message.chunk).map_err(|status| client.error(&status))))
    }

    pub(crate) fn push_client(&self) -> PushServiceClient<Channel> {
        PushServiceClient::new(self.channel.clone())
    }

    pub(crate) fn journal_client(&self) -> JournalServiceClient<Channel> {
        JournalServiceClient::new(self.channel.clone()).max_decoding_message_size(RECORD_MESSAGE_BYTES_MAX)
    }

    pub(crate) fn replay_client(&self) -> ReplayServiceClient<Channel> {
        ReplayServiceClient::new(self.channel.clone()).max_decoding_message_size(RECORD_MESSAGE_BYTES_MAX)
    }

    /// A record may be larger than a page, and what it changes comes in one message.
    pub(crate) fn watching_client(&self) -> ResourceServiceClient<Channel> {
        self.resources_client().max_decoding_message_size(RECORD_MESSAGE_BYTES_MAX)
    }

    fn resources_client(&self) -> ResourceServiceClient<Channel> {
        ResourceServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn error(&self, status: &tonic::Status) -> ClientError {
        if let Some(rejection) = Rejection::from_status(status) {
            return rejection.into();
        }
        if let Some(error) = JournalError::from_status(status) {
            return error.into();
        }
        let broken = match status.code() {
            Code::Unavailable | Code::Unknown => status.source().is_some(),
            // A connection that was just being closed, unless it is the end of our own patience.
            Code::Cancelled => status.source().is_some_and(|error| !innermost(error).is::<TimeoutExpired>()),
            _ => false,
        };
        match status.code() {
            _ if broken => unreachable_error(&self.server, status),
            Code::PermissionDenied => ClientError::Denied { message: status.message().to_owned() },
            Code::DeadlineExceeded | Code::Cancelled => ClientError::TimedOut,
            code => ClientError::Failed { code, message: status.message().to_owned() },
        }
    }
}

fn unreadable(what: &str) -> ClientError {
    ClientError::UnreadableAnswer { what: what.to_owned() }
}

fn decode_receipt(answer: proto::ApplyResponse) -> Result<Receipt, ClientError> {
    let proto::ApplyResponse { lsn, level, duplicate, record_hash, blocked_reason, plan: _ } = answer;
    Ok(Receipt {
        lsn: Lsn(lsn),
        record_hash: RecordHash(record_hash.try_into().map_err(|_| unreadable("record_hash has not 32 bytes"))?),
        duplicate,
        level: match proto::Level::try_from(level) {
            Ok(proto::Level::Unspecified | proto::Level::Durable) => Level::Durable,
            Ok(proto::Level::Applied) => Level::Applied,
            Ok(proto::Level::Received) | Err(_) => return Err(unreadable("level is unknown")),
        },
        blocked_reason,
        removed: 0,
    })
}

pub(crate) fn decode_answer(answer: proto::StoredResource) -> Result<Stored, ClientError> {
    let proto::StoredResource { resource, changed_lsn, owner } = answer;
    let mut found = Violations::default();
    match decode_resource(&FieldPath::root("resource"), resource.unwrap_or_default(), &mut found) {
        Some(resource) => Ok(Stored { resource, changed_lsn: Lsn(changed_lsn), owner }),
        None => Err(ClientError::UnreadableAnswer { what: found.to_string() }),
    }
}

/// The innermost error is what a person can act on; tonic wraps it several times.
fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost
}

fn unreachable_error(server: &Server, error: &(dyn std::error::Error + 'static)) -> ClientError {
    let innermost = innermost(error);
    let source = match innermost.downcast_ref::<io::Error>() {
        Some(error) => match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        },
        None => io::Error::other(innermost.to_string()),
    };
    ClientError::Unreachable { server: server.clone(), source }
}
