//! `connect(2)` of sockets in the cgroup: the destination is replaced before the kernel sees it, so that nothing is
//! translated packet by packet and an established connection needs neither program nor agent.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use decision::Verdict;
use storage_schema::map::{FrontendKey, Stamp};

use crate::call::{self, Family, Fresh, IPPROTO_TCP, IPPROTO_UDP, PROCEED, V4, V6};
use crate::enrolment::{self, Enrolled};
use crate::maps::{self, Maps, STAMPS};

#[cgroup_sock_addr(connect4)]
pub fn hf_connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn hf_connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let protocol = call::protocol(ctx);
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return PROCEED;
    }
    let destination = call::destination::<F>(ctx, protocol);
    match enrolment::of(ctx, &destination) {
        Enrolled::Managed => {}
        Enrolled::Unmanaged => {
            forget(ctx);
            return PROCEED;
        }
        Enrolled::Call => return call::refuse(),
    }
    let Some(epoch) = maps::active_epoch() else { return PROCEED };
    let words = Fresh::<F>::of(ctx, &destination);
    let verdict = decision::decide_with(&Maps, epoch, &destination, &words);
    words.remember(&verdict);
    match verdict {
        Verdict::Pass => {
            forget(ctx);
            PROCEED
        }
        Verdict::Forward { address, port_be, .. } => {
            remember(ctx, verdict.stamp(epoch, &destination));
            call::replace::<F>(ctx, &address, port_be);
            PROCEED
        }
        Verdict::Refuse { .. } => {
            remember(ctx, verdict.stamp(epoch, &destination));
            call::refuse()
        }
    }
}

/// Stamps the socket. Without memory for it the connection goes on, balanced but not explained.
#[inline(always)]
fn remember(ctx: &SockAddrContext, mut stamp: Stamp) {
    // SAFETY: helpers; the verifier checks the context and the pointer to this frame.
    unsafe {
        // Gives the socket its cookie, which dumps of the storage name it by.
        bpf_get_socket_cookie(ctx.as_ptr());
        stamp.monotonic_ns = bpf_ktime_get_ns();
        let stored = STAMPS.get_or_insert_ptr_mut(ctx, Some(&mut stamp));
        if !stored.is_null() {
            // A socket that is connected again has its stamp already.
            *stored = stamp;
        }
    }
}

/// The stamp of the socket, if it was balanced.
#[inline(always)]
pub fn stamp(ctx: &SockAddrContext) -> Option<&Stamp> {
    // SAFETY: a helper, the verifier checks the context; it returns null, or a stamp that lives as long as the socket, which
    // outlives the program's run.
    unsafe { STAMPS.get_ptr_mut(ctx).as_ref() }
}

/// Whether a stamp is of what went to this backend.
#[inline(always)]
pub fn led_to(stamp: &Stamp, backend: &FrontendKey) -> bool {
    stamp.outcome == Stamp::FORWARDED
        && stamp.backend_port_be == backend.port_be
        && decision::same_address(&stamp.backend_address, &backend.address)
}

/// Takes the stamp from a socket that was balanced before and is now connected to something else.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: a helper; the verifier checks the context.
    let stored = unsafe { STAMPS.get_ptr_mut(ctx) };
    if !stored.is_null() {
        // SAFETY: not null, and checked by the verifier.
        unsafe { *stored = Stamp::default() };
    }
}
