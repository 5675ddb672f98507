//! What the clients have open: one [`Client`] for each, with permits out of its own limits and out of those of all.
//!
//! Invariant: a permit of all is only asked for by one who holds the client's own. A client that asks for too much is
//! therefore stopped by its own limits, which are below those of all, and leaves the others theirs.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt as _};

use super::limits::Limits;
use super::rate::Rate;
use crate::access::Shape;
use crate::rejection::DOMAIN;

/// When another attempt makes sense that was refused because of what is in flight: most requests take less.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// All clients.
#[derive(Debug)]
pub(crate) struct Clients {
    limits: Limits,
    all: Pool,
    by_name: Mutex<HashMap<String, Weak<Client>>>,
}

/// One client, for as long as it has a connection.
#[derive(Debug)]
pub(crate) struct Client {
    name: String,
    own: Pool,
    rate: Mutex<Rate>,
    clients: Arc<Clients>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPlace {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// A call's place; given back when dropped.
#[derive(Debug)]
pub(super) struct CallPlace {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
    _costly: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

/// The room that a message takes; given back when dropped.
#[derive(Debug)]
pub(super) struct MessageRoom {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// A limit that was reached. Its name is that of the setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exceeded {
    pub(super) limit: &'static str,
    pub(super) retry_after: Duration,
}

#[derive(Debug)]
struct Pool {
    requests: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    pushes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Pool {
    fn of_all(limits: &Limits) -> Self {
        Self {
            requests: permits(limits.requests_max),
            streams: permits(limits.streams_max),
            readers: permits(limits.readers_max),
            pushes: permits(limits.push_streams_max),
            connections: permits(limits.connections_max),
            bytes: permits(limits.request_bytes_max),
        }
    }

    fn of_one(limits: &Limits) -> Self {
        Self {
            requests: permits(limits.requests_per_client_max),
            streams: permits(limits.streams_per_client_max),
            readers: permits(limits.readers_per_client_max),
            pushes: permits(limits.push_streams_per_client_max),
            connections: permits(limits.connections_per_client_max),
            bytes: permits(limits.request_bytes_per_client_max),
        }
    }
}

fn permits(count: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
}

impl Clients {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, all: Pool::of_all(&limits), by_name: Mutex::default() })
    }

    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Streams that are open.
    pub(crate) fn streams_open(&self) -> usize {
        self.limits.streams_max.saturating_sub(self.all.streams.available_permits())
    }

    /// The client of this name, and a place for one more connection of it; `None` if there is none.
    pub(crate) fn connect(self: &Arc<Self>, name: &str) -> Option<(Arc<Client>, ConnectionPlace)> {
        let mut by_name = self.by_name();
        let known = by_name.get(name).and_then(Weak::upgrade);
        let client = known.unwrap_or_else(|| {
            let client = Arc::new(Client::new(name, Arc::clone(self)));
            by_name.insert(name.to_owned(), Arc::downgrade(&client));
            client
        });
        // Dropping a client takes the lock.
        drop(by_name);
        let place = ConnectionPlace {
            _own: Arc::clone(&client.own.connections).try_acquire_owned().ok()?,
            _all: Arc::clone(&self.all.connections).try_acquire_owned().ok()?,
        };
        Some((client, place))
    }

    fn by_name(&self) -> MutexGuard<'_, HashMap<String, Weak<Client>>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn new(name: &str, clients: Arc<Clients>) -> Self {
        let limits = clients.limits;
        let own = Pool::of_one(&limits);
        let rate = Mutex::new(Rate::new(limits.requests_per_second_max, Instant::now()));
        Self { name: name.to_owned(), own, rate, clients }
    }

    /// A place for one more call.
    pub(super) fn begin(&self, shape: Shape) -> Result<CallPlace, Exceeded> {
        let full = |limit| move |_| Exceeded { limit, retry_after: RETRY_AFTER };
        let take = |own: &Arc<Semaphore>, all: &Arc<Semaphore>, own_limit, limit| {
            let own = Arc::clone(own).try_acquire_owned().map_err(full(own_limit))?;
            let all = Arc::clone(all).try_acquire_owned().map_err(full(limit))?;
            Ok((own, all))
        };
        let (own, all) = (&self.own, &self.clients.all);
        self.rate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .admit(Instant::now())
            .map_err(|retry_after| Exceeded { limit: "requests_per_second", retry_after })?;
        let (own_place, all_place) = if shape == Shape::Unary {
            take(&own.requests, &all.requests, "requests_per_client", "requests")?
        } else {
            take(&own.streams, &all.streams, "streams_per_client", "streams")?
        };
        let costly = match shape {
            Shape::Reader => Some(take(&own.readers, &all.readers, "readers_per_client", "readers")?),
            Shape::Push => Some(take(&own.pushes, &all.pushes, "push_streams_per_client", "push_streams")?),
            Shape::Unary | Shape::Stream => None,
        };
        Ok(CallPlace { _own: own_place, _all: all_place, _costly: costly })
    }

    /// The most room that there can be.
    pub(super) fn room_max(&self) -> usize {
        let limits = &self.clients.limits;
        limits.request_bytes_per_client_max.min(limits.request_bytes_max)
    }

    /// The room that a message takes, if there is so much.
    pub(super) fn try_room(&self, bytes: usize) -> Option<MessageRoom> {
        let bytes = u32::try_from(bytes).ok()?;
        let own = Arc::clone(&self.own.bytes).try_acquire_many_owned(bytes).ok()?;
        let all = Arc::clone(&self.clients.all.bytes).try_acquire_many_owned(bytes).ok()?;
        Some(MessageRoom { _own: own, _all: all })
    }

    /// Waits for the room that a message takes.
    pub(super) async fn room(self: Arc<Self>, bytes: u32) -> MessageRoom {
        // More than there ever is would be waited for without end.
        let bytes = bytes.min(u32::try_from(self.room_max()).unwrap_or(u32::MAX));
        let open = "the semaphores of the clients are never closed";
        let own = Arc::clone(&self.own.bytes).acquire_many_owned(bytes).await.expect(open);
        let all = Arc::clone(&self.clients.all.bytes).acquire_many_owned(bytes).await.expect(open);
        MessageRoom { _own: own, _all: all }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut by_name = self.clients.by_name();
        // Another of the same name may have been made by now.
        if by_name.get(&self.name).is_some_and(|client| client.strong_count() == 0) {
            by_name.remove(&self.name);
        }
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the limit {} is reached: try again in {:?}", self.limit, self.retry_after)
    }
}

impl Exceeded {
    pub(super) fn to_status(self) -> Status {
        let mut details = ErrorDetails::new();
        details.set_error_info("BUSY", DOMAIN, HashMap::from([("limit".to_owned(), self.limit.to_owned())]));
        details.set_retry_info(Some(self.retry_after));
        Status::with_error_details(tonic::Code::ResourceExhausted, self.to_string(), details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            requests_max: 3,
            requests_per_client_max: 2,
            streams_max: 2,
            streams_per_client_max: 1,
            connections_max: 3,
            connections_per_client_max: 2,
            ..Limits::default()
        }
    }

    fn limit(outcome: Result<CallPlace, Exceeded>) -> &'static str {
        outcome.expect_err("it was admitted").limit
    }

    #[test]
    fn a_client_that_takes_all_it_can_leaves_the_others_theirs() {
        let clients = Clients::new(limits());
        let (greedy, _first) = clients.connect("greedy").unwrap();
        let (modest, _second) = clients.connect("modest").unwrap();
        let held = [greedy.begin(Shape::Unary).unwrap(), greedy.begin(Shape::Unary).unwrap()];
        assert_eq!(limit(greedy.begin(Shape::Unary)), "requests_per_client");
        let _one = modest.begin(Shape::Unary).unwrap();
        assert_eq!(limit(modest.begin(Shape::Unary)), "requests");
        let _stream = greedy.begin(Shape::Stream).unwrap();
        assert_eq!(limit(greedy.begin(Shape::Stream)), "streams_per_client");
        assert_eq!(clients.streams_open(), 1);
        drop(held);
        assert!(modest.begin(Shape::Unary).is_ok());
    }

    #[test]
    fn connections_of_one_name_share_its_limits_and_are_forgotten_with_the_last() {
        let clients = Clients::new(limits());
        let (first, place) = clients.connect("a").unwrap();
        let (second, _other) = clients.connect("a").unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(clients.connect("a").is_none());
        let (_b, _of_b) = clients.connect("b").unwrap();
        assert!(clients.connect("c").is_none(), "three is all");
        drop(place);
        assert!(clients.connect("c").is_some());
        drop((first, second));
        assert_eq!(clients.by_name().keys().collect::<Vec<_>>(), ["b"]);
    }

    #[tokio::test]
    async fn a_message_waits_for_room_and_a_huge_one_does_not_wait_for_ever() {
        let limits = Limits { request_bytes_max: 100, request_bytes_per_client_max: 60, ..Limits::default() };
        let clients = Clients::new(limits);
        let (client, _place) = clients.connect("a").unwrap();
        let held = Arc::clone(&client).room(1000).await;
        let waiting = tokio::spawn(Arc::clone(&client).room(1));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(held);
        waiting.await.unwrap();
    }
}
