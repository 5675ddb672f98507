//! The body of a request: its messages are passed on once there is room for them.
//!
//! A message says its length before it comes (gRPC's five bytes: a flag, then the length). The room is taken then, all at
//! once, and given back when the next message begins or the call ends. Nothing is asked for while room is held for a message
//! of the same stream, so nobody waits for himself.
//!
//! Decoded, a message may take far more than on the wire. The decoder knows how much ([`super::weight`]) and takes that room as
//! well, or refuses the message; what decodes on another task than the call's has no room to take, and is bounded by itself.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

use super::client::{Client, Exceeded, MessageRoom, RETRY_AFTER};
use crate::MESSAGE_BYTES_MAX;

const PREFIX_BYTES: usize = 5;

/// The most that a message may take once it is decoded, where nobody counts the room.
const DECODED_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// The room that a call's present message takes, encoded and decoded; the call holds it until it ends.
pub(super) type Room = Arc<Mutex<Vec<MessageRoom>>>;

tokio::task_local! {
    /// The room of the call that this task is serving, and whose it is.
    static ROOM: (Arc<Client>, Room);
}

/// Runs what serves a call; messages that are decoded meanwhile take room for it.
pub(super) async fn with_room<T>(client: Arc<Client>, room: Room, serving: impl Future<Output = T>) -> T {
    ROOM.scope((client, room), serving).await
}

/// The most room that there can be for a message.
pub(super) fn room_max() -> usize {
    ROOM.try_with(|(client, _)| client.room_max()).unwrap_or(DECODED_BYTES_MAX)
}

/// Takes room for a message that will have so many bytes in memory.
pub(super) fn grow_room(bytes: usize) -> Result<(), Status> {
    let taken = ROOM.try_with(|(client, room)| match client.try_room(bytes) {
        Some(more) => {
            room.lock().unwrap_or_else(PoisonError::into_inner).push(more);
            true
        }
        None => false,
    });
    match taken {
        Ok(true) => Ok(()),
        Err(_) if bytes <= DECODED_BYTES_MAX => Ok(()),
        Ok(false) | Err(_) => {
            let exceeded = Exceeded { limit: "request_bytes_per_client", retry_after: RETRY_AFTER };
            Err(exceeded.to_status())
        }
    }
}

/// A request's body.
pub(super) struct Metered {
    inner: Body,
    client: Arc<Client>,
    room: Room,
    lengths: Lengths,
    /// A frame that waits for room.
    waiting: Option<(Frame<Bytes>, Waiting)>,
}

type Waiting = Pin<Box<dyn Future<Output = MessageRoom> + Send>>;

impl Metered {
    pub(super) fn new(inner: Body, client: Arc<Client>, room: Room) -> Self {
        Self { inner, client, room, lengths: Lengths::default(), waiting: None }
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.waiting.is_none() {
            let frame = match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            let longest = match frame.data_ref() {
                Some(data) => this.lengths.longest_begun(data),
                None => None,
            };
            match longest {
                None => return Poll::Ready(Some(Ok(frame))),
                Some(length) if length as usize > MESSAGE_BYTES_MAX => {
                    let what = format!("a message of {length} bytes: at most {MESSAGE_BYTES_MAX} are accepted");
                    return Poll::Ready(Some(Err(Status::resource_exhausted(what))));
                }
                Some(length) => {
                    this.room.lock().unwrap_or_else(PoisonError::into_inner).clear();
                    this.waiting = Some((frame, Box::pin(Arc::clone(&this.client).room(length))));
                }
            }
        }
        let Some((frame, mut room)) = this.waiting.take() else { return Poll::Pending };
        match room.as_mut().poll(context) {
            Poll::Ready(room) => {
                this.room.lock().unwrap_or_else(PoisonError::into_inner).push(room);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => {
                this.waiting = Some((frame, room));
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.waiting.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

/// Finds where messages begin, and how long they will be, in bytes that are cut anyhow.
#[derive(Debug, Default)]
struct Lengths {
    prefix: [u8; PREFIX_BYTES],
    filled: usize,
    /// Bytes of the present message that are still to come.
    missing: u32,
}

impl Lengths {
    /// The longest message whose prefix is complete with these bytes.
    fn longest_begun(&mut self, mut bytes: &[u8]) -> Option<u32> {
        let mut longest = None;
        loop {
            let of_message = bytes.len().min(self.missing as usize);
            bytes = &bytes[of_message..];
            self.missing -= u32::try_from(of_message).unwrap_or(self.missing);
            if bytes.is_empty() {
                return longest;
            }
            let of_prefix = bytes.len().min(PREFIX_BYTES - self.filled);
            self.prefix[self.filled..self.filled + of_prefix].copy_from_slice(&bytes[..of_prefix]);
            self.filled += of_prefix;
            bytes = &bytes[of_prefix..];
            if self.filled == PREFIX_BYTES {
                let [_flag, length @ ..] = self.prefix;
                self.missing = u32::from_be_bytes(length);
                self.filled = 0;
                longest = longest.max(Some(self.missing));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(length.to_be_bytes());
        bytes.resize(PREFIX_BYTES + length as usize, 0xff);
        bytes
    }

    #[test]
    fn lengths_are_found_however_the_bytes_are_cut() {
        let lengths = [7, 0, 0, 300, 1];
        let bytes: Vec<u8> = lengths.into_iter().flat_map(message).collect();
        for size in 1..=bytes.len() {
            let mut found = Lengths::default();
            let begun: Vec<u32> = bytes.chunks(size).filter_map(|chunk| found.longest_begun(chunk)).collect();
            assert_eq!(begun.iter().max(), Some(&300), "{size}");
            if size <= PREFIX_BYTES {
                assert_eq!(begun, lengths, "{size}");
            }
            assert_eq!((found.missing, found.filled), (0, 0), "{size}");
        }
    }
}
