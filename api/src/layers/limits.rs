//! What a client can cost: every limit there is, and its default.

use std::time::Duration;

use crate::{MESSAGE_BYTES_MAX, WAIT_TIMEOUT_MAX};

/// What clients can cost, each and all together. A client is a user of this machine, or an identity in a certificate, over
/// however many connections. What is over a limit is refused at once with `RESOURCE_EXHAUSTED` and a `RetryInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests in flight of all clients.
    pub requests_max: usize,
    /// Requests in flight of one client.
    pub requests_per_client_max: usize,
    /// Calls that one client may begin in a second, in the long run; a second's worth of them may come at once.
    pub requests_per_second_max: u32,
    /// Streams of all clients.
    pub streams_max: usize,
    /// Streams of one client.
    pub streams_per_client_max: usize,
    /// Streams of all clients that read the journal: each has a thread.
    pub readers_max: usize,
    /// Of them, one client's.
    pub readers_per_client_max: usize,
    /// Push streams of all clients: each may have a window of transactions in flight.
    pub push_streams_max: usize,
    /// Of them, one client's.
    pub push_streams_per_client_max: usize,
    /// Connections of all clients; one more is closed.
    pub connections_max: usize,
    /// Connections of one client; one more is closed.
    pub connections_per_client_max: usize,
    /// Bytes of requests that all clients have begun to send and that are not answered; more are not read until there is room.
    pub request_bytes_max: usize,
    /// Of them, one client's. At least a message.
    pub request_bytes_per_client_max: usize,
    /// How long a call may take altogether, of a stream until the first message of its answer. Longer than
    /// [`WAIT_TIMEOUT_MAX`], so that receipts are not lost.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 1024,
            requests_per_client_max: 512,
            requests_per_second_max: 20_000,
            streams_max: 8192,
            streams_per_client_max: 6144,
            readers_max: 64,
            readers_per_client_max: 48,
            push_streams_max: 256,
            push_streams_per_client_max: 192,
            connections_max: 1024,
            connections_per_client_max: 256,
            request_bytes_max: 16 * MESSAGE_BYTES_MAX,
            request_bytes_per_client_max: 4 * MESSAGE_BYTES_MAX,
            request_timeout: WAIT_TIMEOUT_MAX + Duration::from_secs(10),
        }
    }
}
