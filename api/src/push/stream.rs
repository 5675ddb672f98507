//! The client's end of a push stream.

use prost::Message as _;
use storage_schema::precondition::Precondition;
use storage_schema::record::Delta;
use storage_schema::resource::Resource;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::message::{decode_ack, decode_nack, decode_welcome, encode_hello, encode_pushed};
use super::{Answer, Hello, Welcome, encode_level};
use crate::client::{Client, ClientError};
use crate::convert::encode_resource;
use crate::plan::decode_plan;
use crate::proto::push_request::Step as Asked;
use crate::proto::push_response::Step as Said;
use crate::{Level, MESSAGE_BYTES_MAX, proto};

/// A chunk of a sync ends with the resource that makes it this large.
const CHUNK_BYTES: usize = 256 << 10;
/// Messages that wait for the transport.
const OUT_MESSAGES: usize = 16;

/// A stream whose hello was answered. Use both halves at once: a sender that waits for no answers, and answers that are read
/// as they come.
#[derive(Debug)]
pub struct PushStream {
    welcome: Welcome,
    sender: PushSender,
    answers: PushAnswers,
}

/// How a transaction is pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// How far it is to have come when it is acked, if otherwise than the hello says.
    pub level: Option<Level>,
    /// Takes over what other sources have.
    pub take_over: bool,
    /// Only asks what it would change. Look for `dry_run` among the welcome's capabilities before.
    pub dry_run: bool,
}

impl From<Option<Level>> for How {
    fn from(level: Option<Level>) -> Self {
        Self { level, ..Self::default() }
    }
}

/// The half that sends. Dropping it closes the client's half of the stream.
#[derive(Debug)]
pub struct PushSender {
    out: mpsc::Sender<proto::PushRequest>,
}

/// The half that is answered.
#[derive(Debug)]
pub struct PushAnswers {
    client: Client,
    answers: Streaming<proto::PushResponse>,
}

/// The stream has ended: what the answers end with says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the push stream has ended")]
pub struct StreamEnded;

/// Why a transaction was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The stream has ended.
    #[error(transparent)]
    Ended(#[from] StreamEnded),
    /// It is larger than the agent accepts.
    #[error("the transaction has {bytes} bytes: at most {MESSAGE_BYTES_MAX} are accepted; split it")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
}

impl PushStream {
    pub(crate) async fn open(client: &Client, hello: &Hello) -> Result<Self, ClientError> {
        let (out, requests) = mpsc::channel(OUT_MESSAGES);
        let step = Some(Asked::Hello(encode_hello(hello)));
        out.try_send(proto::PushRequest { step }).expect("a new channel has room");
        let answer = client.push_client().push(ReceiverStream::new(requests)).await;
        let answers = answer.map_err(|status| client.error(&status))?.into_inner();
        let mut answers = PushAnswers { client: client.clone(), answers };
        let unreadable = |what: &str| ClientError::UnreadableAnswer { what: what.to_owned() };
        match answers.message().await? {
            Some(Said::Welcome(welcome)) => {
                let welcome = decode_welcome(welcome).map_err(unreadable)?;
                Ok(Self { welcome, sender: PushSender { out }, answers })
            }
            Some(_) => Err(unreadable("it is no welcome")),
            None => Err(unreadable("the stream ended without a welcome")),
        }
    }

    /// What the hello was answered with.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Both halves, for two tasks.
    pub fn split(self) -> (PushSender, PushAnswers) {
        (self.sender, self.answers)
    }

    /// See [`PushSender::send`].
    pub async fn send(&self, version: u64, deltas: &[Delta], how: impl Into<How>) -> Result<(), SendError> {
        self.sender.send(version, deltas, how).await
    }

    /// See [`PushSender::send_if`].
    pub async fn send_if(
        &self,
        version: u64,
        deltas: &[Delta],
        preconditions: &[Precondition],
        how: impl Into<How>,
    ) -> Result<(), SendError> {
        self.sender.send_if(version, deltas, preconditions, how).await
    }

    /// See [`PushSender::sync`].
    pub async fn sync(&self, version: u64, resources: &[Resource], how: impl Into<How>) -> Result<(), SendError> {
        self.sender.sync(version, resources, how).await
    }

    /// See [`PushAnswers::next`].
    pub async fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        self.answers.next().await
    }
}

impl PushSender {
    /// Sends a transaction. Waits while the agent does not read on, which it does not while its window is full of answers that
    /// nobody reads.
    pub async fn send(&self, version: u64, deltas: &[Delta], how: impl Into<How>) -> Result<(), SendError> {
        self.send_if(version, deltas, &[], how).await
    }

    /// [`PushSender::send`], of a transaction that is refused unless the preconditions hold when it has its turn. Look for
    /// `preconditions` among the welcome's capabilities before.
    pub async fn send_if(
        &self,
        version: u64,
        deltas: &[Delta],
        preconditions: &[Precondition],
        how: impl Into<How>,
    ) -> Result<(), SendError> {
        self.say(Asked::Transaction(encode_pushed(version, deltas, preconditions, how.into()))).await
    }

    /// Sends everything that the source has, as one transaction, which removes what it had before and is not among this.
    pub async fn sync(&self, version: u64, resources: &[Resource], how: impl Into<How>) -> Result<(), SendError> {
        self.begin_sync(version, how).await?;
        self.add_to_sync(resources).await?;
        self.end_sync(resources.len() as u64).await
    }

    /// Begins a sync, for those who do not have it all at once. It is nothing until it is ended.
    pub async fn begin_sync(&self, version: u64, how: impl Into<How>) -> Result<(), SendError> {
        let How { level, take_over, dry_run } = how.into();
        let level = level.map_or(proto::Level::Unspecified, encode_level).into();
        self.say(Asked::SyncBegin(proto::SyncBegin { version, level, take_over, dry_run })).await
    }

    /// Adds resources to the sync that was begun.
    pub async fn add_to_sync(&self, resources: &[Resource]) -> Result<(), SendError> {
        let mut chunk = proto::SyncChunk::default();
        let mut bytes = 0;
        for resource in resources {
            let resource = encode_resource(resource);
            bytes += resource.encoded_len();
            chunk.resources.push(resource);
            if bytes >= CHUNK_BYTES {
                self.say(Asked::SyncChunk(std::mem::take(&mut chunk))).await?;
                bytes = 0;
            }
        }
        if chunk.resources.is_empty() { Ok(()) } else { self.say(Asked::SyncChunk(chunk)).await }
    }

    /// Ends the sync: `resources` is how many were added.
    pub async fn end_sync(&self, resources: u64) -> Result<(), SendError> {
        self.say(Asked::SyncEnd(proto::SyncEnd { resources })).await
    }

    async fn say(&self, step: Asked) -> Result<(), SendError> {
        let request = proto::PushRequest { step: Some(step) };
        let bytes = request.encoded_len();
        if bytes > MESSAGE_BYTES_MAX {
            return Err(SendError::TooLarge { bytes });
        }
        Ok(self.out.send(request).await.map_err(|_| StreamEnded)?)
    }
}

impl PushAnswers {
    /// The next answer; `None` when the client's half is closed and everything was answered. An error ends the stream, and leaves
    /// in doubt what was not answered. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Answer>, ClientError> {
        let unreadable = |what: &str| ClientError::UnreadableAnswer { what: what.to_owned() };
        match self.message().await? {
            None => Ok(None),
            Some(Said::Ack(ack)) => {
                let (version, receipt) = decode_ack(ack).map_err(unreadable)?;
                Ok(Some(Answer::Acked { version, receipt }))
            }
            Some(Said::Nack(nack)) => Ok(Some(decode_nack(nack))),
            Some(Said::Plan(proto::PushPlan { version, plan })) => {
                Ok(Some(Answer::Planned { version, plan: decode_plan(plan).map_err(unreadable)? }))
            }
            Some(Said::Welcome(_)) => Err(unreadable("it is a second welcome")),
        }
    }

    async fn message(&mut self) -> Result<Option<Said>, ClientError> {
        match self.answers.message().await {
            Ok(Some(proto::PushResponse { step: Some(step) })) => Ok(Some(step)),
            Ok(Some(proto::PushResponse { step: None })) => {
                Err(ClientError::UnreadableAnswer { what: "it is a step that is not known here".to_owned() })
            }
            Ok(None) => Ok(None),
            Err(status) => Err(self.client.error(&status)),
        }
    }
}
