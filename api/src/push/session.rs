//! One push stream, from hello to end: a half that reads, and a half that answers.
//!
//! The reading half gives each transaction its place in the journal and queues what is to be awaited; the answering half awaits
//! it, in order. The queue between them is the window: when it is full nothing more is read, and HTTP/2's own flow
//! control holds the client up. Both halves end together.

use std::sync::Arc;
use std::time::Duration;

use storage_schema::record::{Event, Lease, Origin, Transaction};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tonic::{Code, Status as RpcStatus, Streaming};

use super::lease::Leases;
use super::message::{Pushed, decode_hello, decode_pushed, encode_ack, encode_nack, encode_welcome};
use super::seat::{NoSeat, Seats, Taken};
use super::service::wait_for;
use super::sync::Gathering;
use super::{
    CAPABILITIES, Hello, JournalFacts, PROTOCOL_VERSION, Push, Recollection, Resync, Submitted, WINDOW, Welcome,
};
use crate::access::{self, Peer};
use crate::plan::{Plan, encode_plan};
use crate::proto::push_request::Step as Asked;
use crate::proto::push_response::Step as Said;
use crate::rejection::{Reason, Rejection, Violation};
use crate::server::Backend;
use crate::{Level, proto};

/// Answers that wait for a client to read them, beside what HTTP/2 holds.
pub(super) const OUT_MESSAGES: usize = 64;
/// A client says hello at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A sync goes on at once: others wait for their turn.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);
/// A client that reads no answer for so long has gone, or might as well have.
const READ_TIMEOUT: Duration = Duration::from_mins(1);

/// What a stream's task has.
pub(super) struct Session<B> {
    pub(super) backend: Arc<B>,
    pub(super) seats: Arc<Seats>,
    pub(super) syncs: Arc<Semaphore>,
    pub(super) leases: Arc<Leases>,
    pub(super) stopping: watch::Receiver<bool>,
    /// Who pushes.
    pub(super) peer: Option<Peer>,
    pub(super) out: mpsc::Sender<Result<proto::PushResponse, RpcStatus>>,
}

/// A transaction that is to be answered.
enum Owed {
    Answer { version: u64, level: Level, since: Instant, submitted: Submitted },
    Plan { version: u64, plan: Plan },
    Nack { version: u64, rejection: Rejection },
}

/// How a stream ends.
enum End {
    /// The client has closed its half, or its connection.
    ByClient,
    /// With a status.
    With(RpcStatus),
}

impl From<RpcStatus> for End {
    fn from(status: RpcStatus) -> Self {
        Self::With(status)
    }
}

impl From<Rejection> for End {
    fn from(rejection: Rejection) -> Self {
        Self::With(rejection.to_status())
    }
}

impl<B: Backend> Session<B> {
    /// Serves the stream to its end.
    pub(super) async fn run(self, mut requests: Streaming<proto::PushRequest>) {
        if let Err(End::With(status)) = self.serve(&mut requests).await {
            tracing::info!(code = ?status.code(), reason = status.message(), "a push stream ends");
            drop(tokio::time::timeout(READ_TIMEOUT, self.out.send(Err(status))).await);
        }
    }

    async fn serve(&self, requests: &mut Streaming<proto::PushRequest>) -> Result<(), End> {
        let hello = tokio::time::timeout(HELLO_TIMEOUT, next_step(requests)).await;
        let hello = match hello.map_err(|_| RpcStatus::deadline_exceeded("there was no hello in time"))?? {
            Some(Asked::Hello(hello)) => decode_hello(hello)?,
            Some(_) => return Err(invalid("step", "the first step must be a hello").into()),
            None => return Err(End::ByClient),
        };
        access::check_source(self.peer.as_ref(), &hello.source)?;
        let known = self.backend.source(&hello.source);
        if let Some(known) = known.filter(|known| known.incarnation > hello.incarnation) {
            return Err(fenced(&hello, known.incarnation).into());
        }
        let seat = self.seats.take(&hello.source, hello.incarnation).await.map_err(|no_seat| match no_seat {
            NoSeat::Fenced { current } => End::With(fenced(&hello, current)),
            NoSeat::Superseded => End::With(superseded()),
        })?;
        let outcome = tokio::select! {
            outcome = self.converse(&hello, requests) => outcome,
            () = Taken::superseded(&seat) => Err(superseded().into()),
        };
        // While it has its seat: from now on the lease runs.
        self.leases.seen(&hello.source, self.backend.source(&hello.source).as_ref());
        outcome
    }

    /// Has the journal say how long what the source owns stays, if that is not what it says already.
    async fn lease(&self, hello: &Hello) -> Result<(), End> {
        let known = self.backend.source(&hello.source).and_then(|known| known.ttl).unwrap_or_default();
        let Some(ttl) = hello.ttl.filter(|ttl| *ttl != known) else { return Ok(()) };
        let ttl_seconds = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        let origin = Origin { source: hello.source.clone(), incarnation: hello.incarnation, version: None };
        let event = Some(Event::Leased(Lease { ttl_seconds }));
        let transaction = Transaction { event, ..Transaction::push(origin, Vec::new()) };
        let client = self.peer.as_ref().map(Peer::to_string);
        let submitted = self.backend.submit(Push { transaction, preconditions: Vec::new(), client }).await?;
        Ok(submitted.durable.await?)
    }

    async fn converse(&self, hello: &Hello, requests: &mut Streaming<proto::PushRequest>) -> Result<(), End> {
        self.lease(hello).await?;
        let welcome = self.welcome(hello).await?;
        tracing::debug!(source = hello.source, ?welcome.last_version, ?welcome.resync, "a push stream begins");
        self.say(Said::Welcome(encode_welcome(&welcome))).await?;
        // The answering half holds one more in its hands.
        let (owed, owing) = mpsc::channel(WINDOW as usize - 1);
        let reading = async {
            let end = self.read(hello, requests, owed).await;
            // What has its place is answered, whatever ended the reading.
            Ok::<End, End>(end)
        };
        match tokio::try_join!(reading, self.answer(hello, owing))? {
            (End::ByClient, ()) => Ok(()),
            (end, ()) => Err(end),
        }
    }

    async fn welcome(&self, hello: &Hello) -> Result<Welcome, End> {
        // Before the receipts are looked up: what is there now is there then.
        let known = self.backend.source(&hello.source);
        let (mut accepted, mut forgotten) = (Vec::new(), false);
        for version in &hello.unanswered_versions {
            let recollection = self.backend.recollect(&hello.source, *version).await;
            match recollection.map_err(|unreadable| RpcStatus::internal(unreadable.to_string()))? {
                Recollection::Accepted(receipt) => accepted.push((*version, receipt)),
                Recollection::NotThere => {}
                Recollection::Forgotten => forgotten = true,
            }
        }
        let JournalFacts { store_id, record_bytes_max } = self.backend.facts();
        Ok(Welcome {
            protocol_version: hello.protocol_version.min(PROTOCOL_VERSION),
            last_version: known.and_then(|known| known.last_version),
            last_lsn: known.map(|known| known.last_lsn).unwrap_or_default(),
            accepted,
            resync: Resync::needed(hello, known.as_ref(), forgotten),
            window: WINDOW,
            record_bytes_max,
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            store_id,
        })
    }

    /// Reads until the client has no more to say, or may say no more.
    async fn read(&self, hello: &Hello, requests: &mut Streaming<proto::PushRequest>, owed: mpsc::Sender<Owed>) -> End {
        let mut stopping = self.stopping.clone();
        let mut gathering: Option<Gathering> = None;
        loop {
            let step = tokio::select! {
                step = next_step(requests) => step,
                () = tokio::time::sleep(STEP_TIMEOUT), if gathering.is_some() => {
                    return RpcStatus::deadline_exceeded("a sync was begun and not gone on with").into();
                }
                _ = stopping.wait_for(|stopping| *stopping) => {
                    let cause = "the agent is stopping".to_owned();
                    return Rejection::Unavailable { cause }.into();
                }
            };
            let next = match (step, gathering.take()) {
                (Ok(Some(Asked::Transaction(message))), None) => {
                    let (version, dry_run) = (message.version, message.dry_run);
                    self.take(hello, version, dry_run, decode_pushed(hello, message)).await.map(Some)
                }
                (Ok(Some(Asked::SyncBegin(begin))), None) => {
                    gathering = Some(Gathering::begin(hello, begin, &self.syncs, self.backend.facts()).await);
                    Ok(None)
                }
                (Ok(Some(Asked::SyncChunk(chunk))), Some(mut begun)) => {
                    begun.add(chunk);
                    gathering = Some(begun);
                    Ok(None)
                }
                (Ok(Some(Asked::SyncEnd(end))), Some(begun)) => {
                    let dry_run = begun.is_dry_run();
                    let (version, decoded, _permit) = begun.end(hello, end);
                    self.take(hello, version, dry_run, decoded).await.map(Some)
                }
                (Ok(Some(step)), begun) => Err(out_of_order(&step, begun.is_some()).into()),
                (Ok(None), _) => Err(End::ByClient),
                (Err(end), _) => Err(end),
            };
            match next {
                // The answering half has gone only if it has failed, and says why.
                Ok(next) => {
                    if let Some(next) = next {
                        drop(owed.send(next).await);
                    }
                }
                Err(end) => return end,
            }
        }
    }

    /// Gives what was decoded its place in the journal, or works out what would become of it.
    async fn take(
        &self,
        hello: &Hello,
        version: u64,
        dry_run: bool,
        decoded: Result<Pushed, Rejection>,
    ) -> Result<Owed, End> {
        let since = Instant::now();
        let client = self.peer.as_ref().map(Peer::to_string);
        let taken = match decoded {
            Ok(Pushed { transaction, preconditions, .. }) if dry_run => {
                let planned = self.backend.plan(Push { transaction, preconditions, client }).await;
                planned.map(|plan| Owed::Plan { version, plan })
            }
            Ok(Pushed { transaction, preconditions, level }) => {
                let submitted = self.backend.submit(Push { transaction, preconditions, client }).await;
                submitted.map(|submitted| Owed::Answer { version, level, since, submitted })
            }
            Err(rejection) => Err(rejection),
        };
        match taken {
            Ok(owed) => Ok(owed),
            Err(rejection) if rejection.is_final() => {
                tracing::info!(source = hello.source, version, %rejection, "transaction refused");
                let is_stale = matches!(rejection, Rejection::Refused { reason: Reason::Stale, .. });
                let known = self.backend.source(&hello.source).filter(|_| is_stale);
                match known.filter(|known| known.incarnation > hello.incarnation) {
                    Some(known) => Err(fenced(hello, known.incarnation).into()),
                    None => Ok(Owed::Nack { version, rejection }),
                }
            }
            Err(rejection) => Err(rejection.into()),
        }
    }

    /// Answers what is owed, in order, until there is no more.
    async fn answer(&self, hello: &Hello, mut owing: mpsc::Receiver<Owed>) -> Result<(), End> {
        while let Some(owed) = owing.recv().await {
            let said = match owed {
                Owed::Nack { version, rejection } => Said::Nack(encode_nack(version, &rejection)),
                Owed::Plan { version, plan } => Said::Plan(proto::PushPlan { version, plan: Some(encode_plan(plan)) }),
                Owed::Answer { version, level: Level::Received, submitted, .. } => {
                    Said::Ack(encode_ack(version, &submitted.receipt(Level::Received)))
                }
                Owed::Answer { version, level, since, submitted } => {
                    let receipt = submitted.receipt(Level::Durable);
                    submitted.durable.await?;
                    let patience = tokio::time::sleep_until(since + hello.wait_timeout);
                    Said::Ack(encode_ack(version, &wait_for(&*self.backend, receipt, level, patience).await))
                }
            };
            self.say(said).await?;
        }
        Ok(())
    }

    async fn say(&self, step: Said) -> Result<(), End> {
        let message = proto::PushResponse { step: Some(step) };
        match tokio::time::timeout(READ_TIMEOUT, self.out.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::ByClient),
        }
    }
}

async fn next_step(requests: &mut Streaming<proto::PushRequest>) -> Result<Option<Asked>, End> {
    match requests.message().await {
        Ok(Some(proto::PushRequest { step: Some(step) })) => Ok(Some(step)),
        Ok(Some(proto::PushRequest { step: None })) => Err(invalid("step", "must be one that this agent knows").into()),
        Ok(None) => Ok(None),
        Err(status) if matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted) => {
            Err(RpcStatus::resource_exhausted(status.message().to_owned()).into())
        }
        Err(_) => Err(End::ByClient),
    }
}

fn out_of_order(step: &Asked, in_a_sync: bool) -> Rejection {
    let description = match step {
        Asked::Hello(_) => "a second hello",
        Asked::SyncChunk(_) | Asked::SyncEnd(_) => "there is no sync that it could belong to",
        Asked::Transaction(_) | Asked::SyncBegin(_) if in_a_sync => "a sync was begun and not ended",
        Asked::Transaction(_) | Asked::SyncBegin(_) => "may not come here",
    };
    invalid("step", description)
}

fn invalid(path: &str, description: &str) -> Rejection {
    let (path, description) = (path.to_owned(), description.to_owned());
    Rejection::invalid(Violation { path, resource: None, description })
}

fn fenced(hello: &Hello, current: u64) -> RpcStatus {
    let Hello { source, incarnation, .. } = hello;
    let description = format!("incarnation {incarnation} of source `{source}` is superseded by incarnation {current}");
    let violation = Violation { path: "hello.incarnation".to_owned(), resource: None, description };
    Rejection::Refused { reason: Reason::Stale, violations: violation.into() }.to_status()
}

fn superseded() -> RpcStatus {
    RpcStatus::aborted("a newer stream of this source took over")
}
