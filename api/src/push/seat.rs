//! One stream for each source: a newer one of the same life, or of a newer life, takes the seat of the older one.
//!
//! A client whose connection hangs comes again while the server still believes in the first one. The older stream ends
//! before the newer one is welcomed, so that a welcome is true: nothing of the source is under way any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedMutexGuard, watch};

/// The seats of all sources.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    by_source: Mutex<HashMap<String, Arc<Seat>>>,
}

/// Who has asked for a source's seat last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Claim {
    number: u64,
    incarnation: u64,
}

#[derive(Debug)]
struct Seat {
    newest: watch::Sender<Claim>,
    /// Locked by who sits there.
    place: Arc<tokio::sync::Mutex<()>>,
}

/// A seat that is taken, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    seats: Arc<Seats>,
    source: String,
    seat: Arc<Seat>,
    claim: Claim,
    place: Option<OwnedMutexGuard<()>>,
}

/// Why a seat cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSeat {
    /// A newer life of the source sits there.
    Fenced {
        /// That life.
        current: u64,
    },
    /// Another stream has asked for it meanwhile.
    Superseded,
}

impl Seats {
    /// Takes a source's seat, once the stream that has it has ended.
    pub(super) async fn take(self: &Arc<Self>, source: &str, incarnation: u64) -> Result<Taken, NoSeat> {
        let mut taken = self.claim(source, incarnation)?;
        let place = Arc::clone(&taken.seat.place);
        tokio::select! {
            place = place.lock_owned() => taken.place = Some(place),
            () = taken.superseded() => return Err(NoSeat::Superseded),
        }
        Ok(taken)
    }

    /// Takes a source's seat if nobody has it, nor waits for it.
    pub(super) fn take_free(self: &Arc<Self>, source: &str, incarnation: u64) -> Option<Taken> {
        // Under one lock, as a claim ends the stream that has the seat.
        let mut by_source = self.lock();
        if by_source.contains_key(source) {
            return None;
        }
        let mut taken = self.claim_of(&mut by_source, source, incarnation).ok()?;
        taken.place = Arc::clone(&taken.seat.place).try_lock_owned().ok();
        Some(taken)
    }

    /// Whether anybody has a source's seat, or waits for it.
    pub(super) fn is_taken(&self, source: &str) -> bool {
        self.lock().contains_key(source)
    }

    fn claim(self: &Arc<Self>, source: &str, incarnation: u64) -> Result<Taken, NoSeat> {
        self.claim_of(&mut self.lock(), source, incarnation)
    }

    fn claim_of(
        self: &Arc<Self>,
        by_source: &mut HashMap<String, Arc<Seat>>,
        source: &str,
        incarnation: u64,
    ) -> Result<Taken, NoSeat> {
        let seat = by_source.entry(source.to_owned()).or_insert_with(|| {
            Arc::new(Seat { newest: watch::Sender::default(), place: Arc::new(tokio::sync::Mutex::new(())) })
        });
        let last = *seat.newest.borrow();
        if last.incarnation > incarnation {
            return Err(NoSeat::Fenced { current: last.incarnation });
        }
        let claim = Claim { number: last.number + 1, incarnation };
        seat.newest.send_replace(claim);
        Ok(Taken { seats: Arc::clone(self), source: source.to_owned(), seat: Arc::clone(seat), claim, place: None })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Seat>>> {
        self.by_source.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Returns when another stream wants the seat.
    pub(super) async fn superseded(&self) {
        let mut newest = self.seat.newest.subscribe();
        // The sender lives as long as the seat, of which this has a share.
        let _ = newest.wait_for(|newest| newest.number > self.claim.number).await;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.place.take();
        let mut by_source = self.seats.lock();
        // The map's share and this one are the last two: nobody waits.
        if Arc::strong_count(&self.seat) == 2 {
            by_source.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_newest_stream_has_the_seat() {
        let seats = Arc::new(Seats::default());
        let first = seats.take("cp", 1).await.unwrap();
        let second = tokio::spawn({
            let seats = Arc::clone(&seats);
            async move { seats.take("cp", 1).await.map(drop) }
        });
        first.superseded().await;
        // While the first one is still there, a third one comes: the second one will never sit.
        let third = tokio::spawn({
            let seats = Arc::clone(&seats);
            async move { seats.take("cp", 2).await }
        });
        assert_eq!(second.await.unwrap().unwrap_err(), NoSeat::Superseded);
        drop(first);
        let third = third.await.unwrap().unwrap();
        assert_eq!(seats.take("cp", 1).await.unwrap_err(), NoSeat::Fenced { current: 2 });
        assert!(seats.take("other", 0).await.is_ok());
        assert!(seats.is_taken("cp"));
        assert!(seats.take_free("cp", 2).is_none());
        drop(third);
        let free = seats.take_free("cp", 2).unwrap();
        assert!(seats.take_free("cp", 2).is_none());
        drop(free);
        assert!(seats.lock().is_empty(), "nothing is left of who has gone");
    }
}
