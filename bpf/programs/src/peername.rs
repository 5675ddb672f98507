//! `getpeername(2)` of balanced sockets in the cgroup: an application is shown the address that it dialled, not where that led.
//!
//! Invariant `AS_DIALLED`: an address is only replaced where the socket's own stamp says that what it dialled led to that very
//! address and port. Nothing here reads a table.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::call::{self, Family, IPPROTO_TCP, IPPROTO_UDP, PROCEED, V4, V6};
use crate::connect;

#[cgroup_sock_addr(getpeername4)]
pub fn hf_getpeername4(ctx: SockAddrContext) -> i32 {
    show::<V4>(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
pub fn hf_getpeername6(ctx: SockAddrContext) -> i32 {
    show::<V6>(&ctx);
    PROCEED
}

#[inline(always)]
fn show<F: Family>(ctx: &SockAddrContext) {
    let protocol = call::protocol(ctx);
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return;
    }
    let peer = call::destination::<F>(ctx, protocol);
    if let Some(stamp) = connect::stamp(ctx).filter(|stamp| connect::led_to(stamp, &peer)) {
        call::replace::<F>(ctx, &stamp.original_address, stamp.original_port_be);
    }
}
