//! `PushService`: one transaction at a time, or a stream of them.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use storage_schema::precondition::Precondition;
use storage_schema::record::Transaction;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status as RpcStatus, Streaming};
use tracing::Instrument as _;

use super::session::{self, Session};
use super::{Push, decode_level, encode_level, message};
use crate::access::{self, Peer};
use crate::convert::{self, Path, decode_transaction};
use crate::plan::encode_plan;
use crate::proto::push_service_server::PushService;
use crate::rejection::{Rejection, Violations};
use crate::server::{Backend, Handler, Messages, page, unreadable};
use crate::source::{ListedSource, Source, SourcesPage, encode_source};
use crate::{Level, Receipt, proto, socket};

#[tonic::async_trait]
impl<B: Backend> PushService for Handler<B> {
    type PushStream = Messages<proto::PushResponse>;

    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Result<Response<proto::ApplyResponse>, RpcStatus> {
        let (_, extensions, message) = request.into_parts();
        let client = socket::client(&extensions);
        let proto::ApplyRequest { transaction, wait, wait_timeout, take_over, dry_run, preconditions } = message;
        let (level, timeout) = decode_wait(wait, wait_timeout).map_err(|rejection| rejection.to_status())?;
        let transaction = decode_transaction(transaction).map_err(|rejection| rejection.to_status())?;
        let transaction = Transaction { take_over, ..transaction };
        let preconditions = decode_preconditions(preconditions).map_err(|rejection| rejection.to_status())?;
        access::check_source(Peer::of(&extensions).as_ref(), &transaction.origin.source)?;
        let refused = |rejection: Rejection| {
            tracing::info!(%rejection, "transaction refused");
            rejection.to_status()
        };
        let push = Push { transaction, preconditions, client };
        if dry_run {
            let plan = Some(encode_plan(self.backend.plan(push).await.map_err(refused)?));
            return Ok(Response::new(proto::ApplyResponse { plan, ..Default::default() }));
        }
        let source = push.transaction.origin.source.clone();
        let submitted = self.backend.submit(push).await.map_err(refused)?;
        self.leases.seen(&source, self.backend.source(&source).as_ref());
        let receipt = submitted.receipt(Level::Durable);
        submitted.durable.await.map_err(refused)?;
        let receipt = wait_for(&*self.backend, receipt, level, tokio::time::sleep(timeout)).await;
        Ok(Response::new(proto::ApplyResponse {
            lsn: receipt.lsn.0,
            level: encode_level(receipt.level).into(),
            duplicate: receipt.duplicate,
            record_hash: receipt.record_hash.0.to_vec(),
            blocked_reason: receipt.blocked_reason,
            plan: None,
        }))
    }

    async fn push(
        &self,
        request: Request<Streaming<proto::PushRequest>>,
    ) -> Result<Response<Self::PushStream>, RpcStatus> {
        let (out, answers) = mpsc::channel(session::OUT_MESSAGES);
        let session = Session {
            backend: Arc::clone(&self.backend),
            seats: Arc::clone(&self.seats),
            syncs: Arc::clone(&self.syncs),
            leases: Arc::clone(&self.leases),
            stopping: self.stopping.clone(),
            peer: Peer::of(request.extensions()),
            out,
        };
        let requests = request.into_inner();
        tokio::spawn(session.run(requests).in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn list_sources(
        &self,
        request: Request<proto::ListSourcesRequest>,
    ) -> Result<Response<proto::ListSourcesResponse>, RpcStatus> {
        let proto::ListSourcesRequest { page_size, page_token } = request.into_inner();
        let (limit, after) = page(page_size, page_token);
        let SourcesPage { sources, next } = self.backend.sources(after, limit).await.map_err(unreadable)?;
        let with_seat = |source: Source| {
            let connected = self.seats.is_taken(&source.name);
            let left = self.leases.left(&source.name, &source.state);
            encode_source(ListedSource { source, connected, expires_in: left.filter(|_| !connected) })
        };
        let sources = sources.into_iter().map(with_seat).collect();
        Ok(Response::new(proto::ListSourcesResponse { sources, next_page_token: next.unwrap_or_default() }))
    }
}

/// Waits until a durable transaction has come as far as was asked, or until `patience` ends.
pub(super) async fn wait_for<B: Backend>(
    backend: &B,
    mut receipt: Receipt,
    level: Level,
    patience: impl Future<Output = ()>,
) -> Receipt {
    if level > receipt.level {
        tokio::select! {
            // What is there already needs no patience.
            biased;
            () = backend.applied(receipt.lsn) => receipt.level = Level::Applied,
            () = patience => receipt.blocked_reason = backend.status().await.blocked_reason.unwrap_or_default(),
        }
    }
    receipt
}

fn decode_preconditions(preconditions: Vec<proto::Precondition>) -> Result<Vec<Precondition>, Rejection> {
    let mut found = Violations::default();
    let decoded = convert::decode_preconditions(&Path::root("preconditions"), preconditions, &mut found);
    decoded.ok_or_else(|| Rejection::invalid(found))
}

fn decode_wait(level: i32, timeout: Option<prost_types::Duration>) -> Result<(Level, Duration), Rejection> {
    let mut found = Violations::default();
    let level = decode_level(&Path::root("wait"), level, &mut found).unwrap_or_default();
    let timeout = message::decode_timeout(&Path::root("wait_timeout"), timeout, &mut found);
    match timeout {
        Some(timeout) if found.is_empty() => Ok((level, timeout)),
        _ => Err(Rejection::invalid(found)),
    }
}
