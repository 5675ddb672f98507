//! The layer: see [`crate::layers`] for what it does in which order.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span, field};

use super::call::{Answer, Call, Held};
use super::client::{Client, Clients};
use super::request::{Metered, Room, with_room};
use super::{Observer, deadline};
use crate::access::{Method, Peer, Shape, find};

/// The metadata in which a call's id comes, and goes back.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const REQUEST_ID_BYTES_MAX: usize = 128;

/// The layer.
#[derive(Clone)]
pub struct Guard(Arc<Shared>);

struct Shared {
    clients: Arc<Clients>,
    observer: Arc<dyn Observer>,
    ids: RequestIds,
}

impl Guard {
    pub(crate) fn new(clients: Arc<Clients>, observer: Arc<dyn Observer>) -> Self {
        Self(Arc::new(Shared { clients, observer, ids: RequestIds::default() }))
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service that is guarded.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answering {
        // The clone is not ready yet; the one that is, is used.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = Arc::clone(&self.guard.0);
        let id = shared.ids.of(request.headers());
        let method = find(request.uri().path());
        let path = method.map_or("unknown", |method| method.path);
        let mut call = Call::begin(path, Arc::clone(&shared.observer));
        let peer = Peer::of(request.extensions());
        let span = tracing::info_span!("call", method = path, peer = field::Empty, id = ?id, source = field::Empty);
        if let Some(peer) = &peer {
            span.record("peer", field::display(peer));
        }
        let times = Times::of(request.headers(), method, shared.clients.limits().request_timeout);
        let admitted = shared.admit(method, peer, &mut call, &mut request);
        let answering = async move {
            let answer = match admitted {
                Ok((client, room)) => match times.head.timed(with_room(client, room, inner.call(request))).await {
                    Some(answer) => answer?,
                    None => Status::deadline_exceeded("it took longer than it may").into_http(),
                },
                Err(status) => status.into_http(),
            };
            let (mut head, body) = answer.into_parts();
            call.outcome_of(&head.headers);
            head.headers.insert(REQUEST_ID, id);
            let body = Answer::new(body, call, times.body, Span::current());
            Ok(Response::from_parts(head, Body::new(body)))
        };
        Box::pin(answering.instrument(span))
    }
}

impl Shared {
    /// Lets a call in, or says why not.
    fn admit(
        &self,
        method: Option<&'static Method>,
        peer: Option<Peer>,
        call: &mut Call,
        request: &mut Request<Body>,
    ) -> Result<(Arc<Client>, Room), Status> {
        let peer = peer.ok_or_else(|| Status::permission_denied("nobody vouches for this connection"))?;
        let refused = |status: Status| {
            tracing::info!(%peer, method = call.method, reason = status.message(), "a call is refused");
            status
        };
        let Some(method) = method else {
            return Err(Status::unimplemented("there is no such method; reflection lists those that there are"));
        };
        peer.caller().check(method.need).map_err(refused)?;
        let place = peer.client().begin(method.shape).map_err(|exceeded| {
            tracing::debug!(%peer, method = call.method, limit = exceeded.limit, "a call is refused");
            exceeded.to_status()
        })?;
        let room = Room::default();
        let streams = (method.shape != Shape::Unary).then(|| Arc::clone(&self.clients));
        call.hold(Held { place, room: Arc::clone(&room), streams });
        let body = std::mem::take(request.body_mut());
        let client = Arc::clone(peer.client());
        *request.body_mut() = Body::new(Metered::new(body, Arc::clone(&client), Arc::clone(&room)));
        Ok((client, room))
    }
}

/// How long a call may take.
struct Times {
    head: Head,
    /// Until the end of the answer, if the client says so.
    body: Option<Pin<Box<Sleep>>>,
}

/// Until when the answer must begin.
struct Head(Instant);

impl Times {
    fn of(headers: &HeaderMap, method: Option<&'static Method>, most: Duration) -> Self {
        let now = Instant::now();
        let given = deadline::of(headers);
        let unary = method.is_some_and(|method| method.shape == Shape::Unary);
        let head = Head(now + given.map_or(most, |given| given.min(most)));
        // The answer of a unary call is there as a whole once it begins.
        let until = given.filter(|_| !unary).and_then(|given| now.checked_add(given));
        Self { head, body: until.map(|until| Box::pin(tokio::time::sleep_until(until))) }
    }
}

impl Head {
    async fn timed<T>(self, future: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout_at(self.0, future).await.ok()
    }
}

/// Ids that are unlike those of any other agent or start.
struct RequestIds {
    random: u64,
    next: AtomicU64,
}

impl Default for RequestIds {
    fn default() -> Self {
        Self { random: RandomState::new().hash_one("holdfast"), next: AtomicU64::new(1) }
    }
}

impl RequestIds {
    /// The one that came with a call, if it is one to put into a log, or a new one.
    fn of(&self, headers: &HeaderMap) -> HeaderValue {
        let visible = |id: &&HeaderValue| id.as_bytes().iter().all(u8::is_ascii_graphic);
        let fits = |id: &&HeaderValue| (1..=REQUEST_ID_BYTES_MAX).contains(&id.len());
        headers.get(REQUEST_ID).filter(visible).filter(fits).cloned().unwrap_or_else(|| self.new_one())
    }

    fn new_one(&self) -> HeaderValue {
        let mut id = String::with_capacity(24);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // Writing to a string does not fail.
        let _ = write!(id, "{:016x}-{number:x}", self.random);
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("-"))
    }
}
