//! The client: what the command line uses, and what a control plane in Rust would.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message as _;
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::Transaction;
use storage_schema::resource::{Kind, ResourceKey};
use tokio::net::UnixStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::convert::{Path as FieldPath, decode_resource, encode_key, encode_kind, encode_transaction};
use crate::journal::{EncodedRecord, JournalError, RecordsQuery, encode_query};
use crate::proto::datapath_service_client::DatapathServiceClient;
use crate::proto::journal_service_client::JournalServiceClient;
use crate::proto::push_service_client::PushServiceClient;
use crate::proto::resource_service_client::ResourceServiceClient;
use crate::proto::status_service_client::StatusServiceClient;
use crate::rejection::{Rejection, Violations};
use crate::server::Read;
use crate::status::{Status, UnreadableStatus, decode_status};
use crate::{Level, MESSAGE_BYTES_MAX, Receipt, Stored, WAIT_TIMEOUT_MAX, proto};

/// How long a call may take: longer than any wait that a server grants, so that it only ends calls to one that hangs.
const ANSWER_TIMEOUT: Duration = WAIT_TIMEOUT_MAX.saturating_add(Duration::from_secs(15));

/// A record may be larger than a push: what was one transaction then may have been read from a file.
const RECORD_MESSAGE_BYTES_MAX: usize = 256 << 20;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket, or the connection broke.
    #[error("cannot reach the agent at {}: {source}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
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
    /// The request is larger than the agent accepts. Nothing was sent.
    #[error("the request has {bytes} bytes: at most {MESSAGE_BYTES_MAX} are accepted; split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
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

/// A connection to an agent. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    channel: Channel,
}

impl Client {
    /// Connects to the agent that listens at `socket`. A connection that breaks is made again at the next call.
    pub async fn connect(socket: impl Into<PathBuf>) -> Result<Self, ClientError> {
        let socket = socket.into();
        let path = socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The address is of no use on a unix socket, but HTTP/2 wants an authority.
        let channel = Endpoint::from_static("http://holdfast")
            .timeout(ANSWER_TIMEOUT)
            .connect_with_connector(connector)
            .await
            .map_err(|error| unreachable_error(&socket, &error))?;
        Ok(Self { socket, channel })
    }

    /// The socket that this client talks to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Pushes a transaction. It returns when the transaction is as far as `wait` says, or, being durable, when
    /// `timeout` has passed: the receipt says which.
    pub async fn apply(
        &self,
        transaction: &Transaction,
        wait: Level,
        timeout: Duration,
    ) -> Result<Receipt, ClientError> {
        let request = proto::ApplyRequest {
            transaction: Some(encode_transaction(transaction)),
            wait: match wait {
                Level::Durable => proto::Level::Durable,
                Level::Applied => proto::Level::Applied,
            }
            .into(),
            wait_timeout: timeout.min(WAIT_TIMEOUT_MAX).try_into().ok(),
        };
        let bytes = request.encoded_len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(ClientError::TooLarge { bytes });
        }
        let mut client = PushServiceClient::new(self.channel.clone());
        let answer = client.apply(request).await.map_err(|status| self.error(&status))?.into_inner();
        decode_receipt(answer)
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

    /// All resources of a kind, in the order of their names.
    ///
    /// They are read in pages; each page is of one state, but a transaction may come between two of them.
    pub async fn list(&self, kind: Kind) -> Result<Vec<Stored>, ClientError> {
        let mut all = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = proto::ListResourcesRequest { kind: encode_kind(kind).into(), page_size: 0, page_token };
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

    /// The agent's condition.
    pub async fn status(&self) -> Result<Status, ClientError> {
        let mut client = StatusServiceClient::new(self.channel.clone());
        let answer = client.get_status(proto::GetStatusRequest {}).await.map_err(|status| self.error(&status))?;
        Ok(decode_status(answer.into_inner())?)
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

    fn journal_client(&self) -> JournalServiceClient<Channel> {
        JournalServiceClient::new(self.channel.clone()).max_decoding_message_size(RECORD_MESSAGE_BYTES_MAX)
    }

    fn resources_client(&self) -> ResourceServiceClient<Channel> {
        ResourceServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    fn error(&self, status: &tonic::Status) -> ClientError {
        if let Some(rejection) = Rejection::from_status(status) {
            return rejection.into();
        }
        if let Some(error) = JournalError::from_status(status) {
            return error.into();
        }
        let broken = status.source().is_some() && matches!(status.code(), Code::Unavailable | Code::Unknown);
        match status.code() {
            _ if broken => unreachable_error(&self.socket, status),
            Code::DeadlineExceeded | Code::Cancelled => ClientError::TimedOut,
            code => ClientError::Failed { code, message: status.message().to_owned() },
        }
    }
}

fn decode_receipt(answer: proto::ApplyResponse) -> Result<Receipt, ClientError> {
    let unreadable = |what: &str| ClientError::UnreadableAnswer { what: what.to_owned() };
    let proto::ApplyResponse { lsn, level, duplicate, record_hash, blocked_reason } = answer;
    Ok(Receipt {
        lsn: Lsn(lsn),
        record_hash: RecordHash(record_hash.try_into().map_err(|_| unreadable("record_hash has not 32 bytes"))?),
        duplicate,
        level: match proto::Level::try_from(level) {
            Ok(proto::Level::Unspecified | proto::Level::Durable) => Level::Durable,
            Ok(proto::Level::Applied) => Level::Applied,
            Err(_) => return Err(unreadable("level is unknown")),
        },
        blocked_reason,
    })
}

fn decode_answer(answer: proto::StoredResource) -> Result<Stored, ClientError> {
    let proto::StoredResource { resource, changed_lsn } = answer;
    let mut found = Violations::default();
    match decode_resource(&FieldPath::root("resource"), resource.unwrap_or_default(), &mut found) {
        Some(resource) => Ok(Stored { resource, changed_lsn: Lsn(changed_lsn) }),
        None => Err(ClientError::UnreadableAnswer { what: found.to_string() }),
    }
}

/// The innermost I/O error is what a person can act on; tonic wraps it several times.
fn unreachable_error(socket: &Path, error: &(dyn std::error::Error + 'static)) -> ClientError {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let source = match innermost.downcast_ref::<io::Error>() {
        Some(error) => match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        },
        None => io::Error::other(innermost.to_string()),
    };
    ClientError::Unreachable { socket: socket.to_owned(), source }
}
