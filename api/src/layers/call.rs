//! One call from its beginning to its end, and the body of its answer, with which most calls end.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::{Code, Status};
use tracing::Span;

use super::Observer;
use super::client::{CallPlace, Clients};
use super::request::Room;

/// A call that goes on. When it is dropped the call has ended.
pub(super) struct Call {
    pub(super) method: &'static str,
    pub(super) observer: Arc<dyn Observer>,
    began: Instant,
    outcome: Option<Code>,
    held: Option<Held>,
}

/// What a call that was admitted holds until it ends.
pub(super) struct Held {
    pub(super) place: CallPlace,
    pub(super) room: Room,
    /// For streams: who counts them.
    pub(super) streams: Option<Arc<Clients>>,
}

impl Call {
    pub(super) fn begin(method: &'static str, observer: Arc<dyn Observer>) -> Self {
        Self { method, observer, began: Instant::now(), outcome: None, held: None }
    }

    pub(super) fn hold(&mut self, held: Held) {
        if let Some(clients) = &held.streams {
            self.observer.streams_open(clients.streams_open());
        }
        self.held = Some(held);
    }

    /// Takes note of how it ended; what is said first holds.
    pub(super) fn outcome(&mut self, code: Code) {
        self.outcome.get_or_insert(code);
    }

    /// Takes note of it if these headers or trailers say it.
    pub(super) fn outcome_of(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.outcome(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Whoever says nothing about its end went away.
        let code = self.outcome.unwrap_or(Code::Cancelled);
        if let Some(Held { place, room, streams }) = self.held.take() {
            drop((place, room));
            if let Some(clients) = streams {
                self.observer.streams_open(clients.streams_open());
            }
        }
        self.observer.call_ended(self.method, name(code), self.began.elapsed());
    }
}

/// The body of an answer. It ends at the client's deadline, if it gave one.
pub(super) struct Answer {
    inner: Body,
    call: Call,
    deadline: Option<Pin<Box<Sleep>>>,
    span: Span,
    ended: bool,
}

impl Answer {
    pub(super) fn new(inner: Body, call: Call, deadline: Option<Pin<Box<Sleep>>>, span: Span) -> Self {
        Self { inner, call, deadline, span, ended: false }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        let _entered = this.span.enter();
        if let Some(deadline) = &mut this.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            this.ended = true;
            this.call.outcome(Code::DeadlineExceeded);
            let mut trailers = HeaderMap::new();
            let status = Status::deadline_exceeded("the deadline that came with the call has passed");
            return Poll::Ready(Some(match status.add_header(&mut trailers) {
                Ok(()) => Ok(Frame::trailers(trailers)),
                Err(error) => Err(error),
            }));
        }
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.call.outcome_of(trailers);
                }
            }
            Some(Err(status)) => this.call.outcome(status.code()),
            None => this.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// gRPC's own name of a code.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
