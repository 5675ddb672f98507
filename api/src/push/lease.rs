//! What happens to what a source owns when the source is gone: it stays, or, if the source has said so in a hello, it expires.
//!
//! A source is there while it has a stream open, and for as long as its lease after the stream's end or its last `Apply`.
//! HTTP/2's pings end the stream of one whose machine or network is gone. How long a lease is, is in the journal; when a source
//! was last there is not: an agent that starts has seen everybody then, so that nothing expires for want of an agent.
//!
//! Invariant (apart): a source expires while nobody has its seat and its expiry has. So none expires under an open stream, and the
//! welcome of the next one knows of the expiry.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Seats, SourceState};
use crate::server::Backend;

/// How often it is looked who is gone: as often as the shortest lease asks for.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest lease.
pub(super) const TTL_MAX: Duration = Duration::from_hours(7 * 24);
/// What could not be removed, as others needed it or the disk refused, is looked at again after so long at the soonest.
const AGAIN: Duration = Duration::from_mins(1);

/// When sources with a lease were last there.
#[derive(Debug)]
pub(crate) struct Leases {
    began: Instant,
    by_source: Mutex<HashMap<String, Last>>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    seen: Instant,
    /// When it was last tried to have it expire, since it was seen.
    tried: Option<Instant>,
}

impl Leases {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), by_source: Mutex::default() }
    }

    /// Notes that a source is there; `known` is what the journal has of it.
    pub(super) fn seen(&self, source: &str, known: Option<&SourceState>) {
        if known.is_some_and(|known| known.ttl.is_some()) {
            self.lock().insert(source.to_owned(), Last { seen: Instant::now(), tried: None });
        }
    }

    /// How long a source without a stream may stay away before what it owns expires; `None`: for ever.
    pub(super) fn left(&self, source: &str, known: &SourceState) -> Option<Duration> {
        let ttl = known.ttl?;
        let seen = self.lock().get(source).map_or(self.began, |last| last.seen);
        Some((seen + ttl).saturating_duration_since(Instant::now()))
    }

    /// Whether it is to be tried now.
    fn is_due(&self, source: &str, known: &SourceState) -> bool {
        let tried = self.lock().get(source).and_then(|last| last.tried);
        self.left(source, known).is_some_and(|left| left.is_zero())
            && tried.is_none_or(|tried| tried.elapsed() >= AGAIN)
    }

    fn tried(&self, source: &str) {
        let mut by_source = self.lock();
        let last = by_source.entry(source.to_owned()).or_insert(Last { seen: self.began, tried: None });
        last.tried = Some(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Last>> {
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has what sources own expire when they are gone for too long, for as long as the server runs.
pub(crate) async fn watch_over<B: Backend>(backend: Arc<B>, seats: Arc<Seats>, leases: Arc<Leases>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        // While the state is being loaded nobody could push either.
        if !backend.takes_transactions() {
            continue;
        }
        for (source, known) in backend.leased() {
            if leases.is_due(&source, &known)
                && let Some(_seat) = seats.take_free(&source, known.incarnation)
            {
                expire(&*backend, &leases, &source).await;
            }
        }
    }
}

/// For whoever has the source's seat.
async fn expire<B: Backend>(backend: &B, leases: &Leases, source: &str) {
    // Before the seat was taken a stream may have been there, and have said something else.
    let Some(known) = backend.source(source).filter(|known| leases.is_due(source, known)) else { return };
    leases.tried(source);
    match backend.expire(source, known.incarnation).await {
        Ok(0) => {}
        Ok(removed) => tracing::warn!(source, removed, ttl = ?known.ttl, "a source is gone: what it owned has expired"),
        Err(rejection) => tracing::warn!(source, %rejection, "a source is gone, and what it owns cannot be removed"),
    }
}

#[cfg(test)]
mod tests {
    use storage_schema::id::Lsn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_begins_when_its_source_was_last_seen() {
        let leases = Leases::new();
        let known = |ttl| SourceState { incarnation: 1, last_version: None, last_lsn: Lsn(1), ttl, expired: false };
        let (kept, leased) = (known(None), known(Some(Duration::from_secs(30))));
        let after = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        after(20).await;
        leases.seen("late", Some(&leased));
        leases.seen("kept", Some(&kept));
        after(10).await;
        assert_eq!(leases.left("kept", &kept), None);
        assert_eq!(leases.left("late", &leased), Some(Duration::from_secs(20)));
        assert!(leases.is_due("never seen", &leased), "its lease began with the agent");
        assert!(!leases.is_due("late", &leased) && !leases.is_due("kept", &kept));
        leases.tried("never seen");
        assert!(!leases.is_due("never seen", &leased), "not again and again");
        after(60).await;
        assert!(leases.is_due("never seen", &leased) && leases.is_due("late", &leased));
        leases.seen("late", Some(&leased));
        assert!(!leases.is_due("late", &leased));
        assert_eq!(leases.lock().len(), 2, "who has no lease costs nothing");
    }
}
