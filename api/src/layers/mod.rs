//! What lies around every service: one tower layer, [`Guard`], through which each call goes, in this order:
//!
//! 1. it gets a **request id** (the caller's `x-request-id`, or a new one), which goes back with the answer, and a
//!    **tracing span** with method, peer, request id and source;
//! 2. its **method** must be in the table of [`crate::access`], and its **caller** must have what that asks for;
//! 3. it takes a **place** among the calls of its client and of all, or is refused with `RESOURCE_EXHAUSTED` and a
//!    `RetryInfo` ([`Limits`]);
//! 4. its messages are read once there is **room** for them, and are decoded only if there is room for what they then take
//!    ([`WeighingCodec`]);
//! 5. it ends in **time**: the client's `grpc-timeout`, at most [`Limits::request_timeout`] (of a stream: until its answer
//!    begins);
//! 6. how it ended is **told** to an [`Observer`], by method and code.
//!
//! Invariant: places and room come back when the call ends, however it ends: they belong to values that are dropped with it.

mod call;
mod client;
mod codec;
mod deadline;
mod guard;
mod limits;
mod rate;
mod request;
mod weight;

use std::time::Duration;

pub(crate) use self::client::{Client, Clients, ConnectionPlace};
pub use self::codec::{WeighingCodec, WeighingDecoder};
pub use self::guard::{Guard, Guarded, REQUEST_ID};
pub use self::limits::Limits;

/// Who is told what goes on, for metrics. All of it is called often and must be quick.
pub trait Observer: Send + Sync + 'static {
    /// A call has ended. `method` is its path, or `unknown`; `code` is gRPC's name of its outcome, as `NOT_FOUND`.
    fn call_ended(&self, method: &'static str, code: &'static str, took: Duration);
    /// So many streams are open now.
    fn streams_open(&self, open: usize);
    /// A connection was closed before its first call, for this reason.
    fn connection_refused(&self, reason: &'static str);
    /// Certificate files had changed, and are in use now or could not be used.
    fn certificates_read(&self, in_use: bool);
}

/// Nobody is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn call_ended(&self, _method: &'static str, _code: &'static str, _took: Duration) {}
    fn streams_open(&self, _open: usize) {}
    fn connection_refused(&self, _reason: &'static str) {}
    fn certificates_read(&self, _in_use: bool) {}
}
