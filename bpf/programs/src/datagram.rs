//! Datagrams of UDP sockets in the cgroup that are sent and received with an address: `sendto(2)`, `recvmsg(2)` and their kin.
//!
//! What is sent to a frontend goes to a backend, and the socket remembers both ([`Peers`]). What comes back from that backend
//! is shown to the application as coming from the frontend. A socket that talks to one backend by two frontends is shown the
//! one that it sent to last; a backend that it sent to directly after that is shown as it is.
//!
//! A connected socket hears its peer and nobody else: what it is shown is what it was connected to, by its stamp.
//!
//! Invariant `AS_SENT`: a source address is only replaced by a frontend that this socket has sent to, or was connected to, and
//! only where that led to this very address and port.
//!
//! An IPv6 socket that sends to an IPv4-mapped address runs `sendmsg4`, and `recvmsg6` for the answer.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use decision::Verdict;
use storage_schema::map::{FrontendKey, Peers, Stamp};

use crate::call::{self, Family, Fresh, IPPROTO_UDP, PROCEED, V4, V6};
use crate::connect::{self, led_to};
use crate::enrolment;
use crate::maps::{self, Maps, PEERS};

#[cgroup_sock_addr(sendmsg4)]
pub fn hf_sendmsg4(ctx: SockAddrContext) -> i32 {
    send::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn hf_sendmsg6(ctx: SockAddrContext) -> i32 {
    send::<V6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn hf_recvmsg4(ctx: SockAddrContext) -> i32 {
    receive::<V4>(&ctx);
    PROCEED
}

#[cgroup_sock_addr(recvmsg6)]
pub fn hf_recvmsg6(ctx: SockAddrContext) -> i32 {
    receive::<V6>(&ctx);
    PROCEED
}

#[inline(always)]
fn send<F: Family>(ctx: &SockAddrContext) -> i32 {
    let protocol = call::protocol(ctx);
    if protocol != IPPROTO_UDP {
        return PROCEED;
    }
    let destination = call::destination::<F>(ctx, protocol);
    // SAFETY: a helper; the verifier checks the context.
    let peers = unsafe { PEERS.get_ptr_mut(ctx) };
    if !enrolment::manages(ctx) {
        forget(peers, &destination);
        return PROCEED;
    }
    let Some(epoch) = maps::active_epoch() else { return PROCEED };
    let last = newest(peers, |stamp| led_from(stamp, &destination));
    let words = Fresh::<F>::of(ctx, &destination);
    let verdict = decision::decide_keeping(&Maps, epoch, &destination, last, &words);
    words.remember(&verdict);
    match verdict {
        Verdict::Pass => {
            forget(peers, &destination);
            PROCEED
        }
        Verdict::Forward { address, port_be, .. } => {
            remember(ctx, &destination, verdict.stamp(epoch, &destination));
            call::replace::<F>(ctx, &address, port_be);
            PROCEED
        }
        Verdict::Refuse { .. } => call::refuse(),
    }
}

#[inline(always)]
fn receive<F: Family>(ctx: &SockAddrContext) {
    let protocol = call::protocol(ctx);
    if protocol != IPPROTO_UDP {
        return;
    }
    let source = call::destination::<F>(ctx, protocol);
    let stamp = if is_connected(ctx) {
        connect::stamp(ctx).filter(|stamp| led_to(stamp, &source))
    } else {
        // SAFETY: a helper; the verifier checks the context.
        let peers = unsafe { PEERS.get_ptr_mut(ctx) };
        newest(peers, |stamp| led_to(stamp, &source))
    };
    if let Some(stamp) = stamp {
        call::replace::<F>(ctx, &stamp.original_address, stamp.original_port_be);
    }
}

#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    // SAFETY: context accesses, checked by the verifier.
    unsafe {
        let socket = (&raw const (*ctx.sock_addr).__bindgen_anon_1.sk).read_volatile();
        !socket.is_null() && (&raw const (*socket).dst_port).read_volatile() != 0
    }
}

/// Whether a stamp is of what was sent to this frontend.
#[inline(always)]
fn led_from(stamp: &Stamp, frontend: &FrontendKey) -> bool {
    stamp.outcome == Stamp::FORWARDED
        && stamp.original_port_be == frontend.port_be
        && decision::same_address(&stamp.original_address, &frontend.address)
}

/// Of the stamps that are wanted, that of the latest datagram.
#[inline(always)]
fn newest<'p>(peers: *const Peers, wanted: impl Fn(&Stamp) -> bool) -> Option<&'p Stamp> {
    // SAFETY: null, or what the socket carries, which lives as long as it does.
    let peers = unsafe { peers.as_ref() }?;
    let mut newest: Option<&Stamp> = None;
    for stamp in &peers.stamps {
        if wanted(stamp) && newest.is_none_or(|newest| newest.monotonic_ns <= stamp.monotonic_ns) {
            newest = Some(stamp);
        }
    }
    newest
}

/// Notes what a datagram's decision was: in the place of an earlier one of the same two ends, or of the one that was sent to
/// longest ago. Without memory for it the datagram goes on, and the answer shows the backend.
#[inline(always)]
fn remember(ctx: &SockAddrContext, frontend: &FrontendKey, mut stamp: Stamp) {
    // SAFETY: helpers; the verifier checks the context, and the kernel makes new storage of zeros.
    let peers = unsafe {
        stamp.monotonic_ns = bpf_ktime_get_ns();
        PEERS.get_or_insert_ptr_mut(ctx, None)
    };
    // SAFETY: null, or what the socket carries, of which there is one user at a time.
    let Some(peers) = (unsafe { peers.as_mut() }) else { return };
    let backend = FrontendKey { address: stamp.backend_address, port_be: stamp.backend_port_be, ..*frontend };
    let mut place = 0;
    let mut oldest_ns = u64::MAX;
    for (index, stamp) in peers.stamps.iter().enumerate() {
        let sent_ns = if led_from(stamp, frontend) && led_to(stamp, &backend) { 0 } else { stamp.monotonic_ns + 1 };
        if sent_ns < oldest_ns {
            (place, oldest_ns) = (index, sent_ns);
        }
    }
    // What the verifier cannot tell from the loop.
    peers.stamps[place % Peers::MAX] = stamp;
}

/// Forgets what led to a backend that is now sent to directly.
#[inline(always)]
fn forget(peers: *mut Peers, backend: &FrontendKey) {
    // SAFETY: as above.
    let Some(peers) = (unsafe { peers.as_mut() }) else { return };
    for stamp in &mut peers.stamps {
        if led_to(stamp, backend) {
            stamp.outcome = Stamp::NONE;
            stamp.monotonic_ns = 0;
        }
    }
}
