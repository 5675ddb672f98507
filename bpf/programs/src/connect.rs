//! `connect(2)` of sockets in the cgroup: the destination is replaced before the kernel sees it, so that nothing is
//! translated packet by packet and an established connection needs neither program nor agent.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use decision::{Verdict, Words};
use storage_schema::map::{FrontendKey, Stamp, key};

use crate::maps::{self, Maps, STAMPS};

/// The hook's verdicts: the call goes on, or fails with what `bpf_set_retval` said.
const PROCEED: i32 = 1;
const FAIL: i32 = 0;

const ECONNREFUSED: i32 = 111;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

#[cgroup_sock_addr(connect4)]
pub fn hf_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the verifier checks each access to the context; words are read one by one, as it wants them.
    let address = unsafe { key::mapped((&raw const (*ctx.sock_addr).user_ip4).read_volatile()) };
    connect(&ctx, address, bound_v4, write_v4)
}

#[cgroup_sock_addr(connect6)]
pub fn hf_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: as above.
    let address = unsafe {
        let words = (&raw const (*ctx.sock_addr).user_ip6).cast::<u32>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    };
    connect(&ctx, address, bound_v6, write_v6)
}

/// The words of a connection that is being made.
struct Fresh<'c> {
    ctx: &'c SockAddrContext,
    bound: fn(*mut bpf_sock_addr) -> [u32; 4],
}

impl Words for Fresh<'_> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn client(&self) -> u32 {
        // SAFETY: a helper; the verifier checks the context.
        let namespace = unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) };
        decision::client_word(namespace, &(self.bound)(self.ctx.sock_addr))
    }
}

/// The address that a socket is bound to; zeros if it is not.
#[inline(always)]
fn bound_v4(context: *mut bpf_sock_addr) -> [u32; 4] {
    // SAFETY: context accesses, checked by the verifier.
    unsafe {
        let socket = (&raw const (*context).__bindgen_anon_1.sk).read_volatile();
        if socket.is_null() {
            return [0; 4];
        }
        match (&raw const (*socket).src_ip4).read_volatile() {
            0 => [0; 4],
            address => key::mapped(address),
        }
    }
}

/// As above. A socket that is bound to an IPv4-mapped address is the client that an IPv4 socket bound to that address is.
#[inline(always)]
fn bound_v6(context: *mut bpf_sock_addr) -> [u32; 4] {
    // SAFETY: context accesses, checked by the verifier.
    unsafe {
        let socket = (&raw const (*context).__bindgen_anon_1.sk).read_volatile();
        if socket.is_null() {
            return [0; 4];
        }
        let words = (&raw const (*socket).src_ip6).cast::<u32>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    }
}

#[inline(always)]
fn connect(
    ctx: &SockAddrContext,
    address: [u32; 4],
    bound: fn(*mut bpf_sock_addr) -> [u32; 4],
    write: fn(*mut bpf_sock_addr, &[u32; 4]),
) -> i32 {
    // SAFETY: context accesses, checked by the verifier.
    let (protocol, port_be) = unsafe {
        (
            (&raw const (*ctx.sock_addr).protocol).read_volatile(),
            (&raw const (*ctx.sock_addr).user_port).read_volatile() as u16,
        )
    };
    if protocol != IPPROTO_TCP && protocol != IPPROTO_UDP {
        return PROCEED;
    }
    let Some(epoch) = maps::active_epoch() else { return PROCEED };
    let destination = FrontendKey { address, port_be, protocol: protocol as u8, reserved: 0 };
    let mut stamp = Stamp {
        epoch,
        original_address: address,
        original_port_be: port_be,
        protocol: protocol as u8,
        ..Stamp::default()
    };
    match decision::decide_with(&Maps, epoch, &destination, &Fresh { ctx, bound }) {
        Verdict::Pass => {
            forget(ctx);
            PROCEED
        }
        Verdict::Forward { service, backend, address, port_be, entropy, flags } => {
            stamp.service = service;
            stamp.backend = backend;
            stamp.entropy = entropy;
            stamp.flags = flags;
            stamp.outcome = Stamp::FORWARDED;
            remember(ctx, stamp);
            write(ctx.sock_addr, &address);
            // SAFETY: a context access, checked by the verifier.
            unsafe { (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(port_be)) };
            PROCEED
        }
        Verdict::Refuse { service } => {
            stamp.service = service;
            stamp.outcome = Stamp::REFUSED;
            remember(ctx, stamp);
            // SAFETY: a helper whose argument is a number.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            FAIL
        }
    }
}

#[inline(always)]
fn write_v4(context: *mut bpf_sock_addr, address: &[u32; 4]) {
    // SAFETY: a context access, checked by the verifier.
    unsafe { (&raw mut (*context).user_ip4).write_volatile(address[3]) };
}

#[inline(always)]
fn write_v6(context: *mut bpf_sock_addr, address: &[u32; 4]) {
    // SAFETY: context accesses, checked by the verifier.
    unsafe {
        let words = (&raw mut (*context).user_ip6).cast::<u32>();
        words.write_volatile(address[0]);
        words.add(1).write_volatile(address[1]);
        words.add(2).write_volatile(address[2]);
        words.add(3).write_volatile(address[3]);
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
