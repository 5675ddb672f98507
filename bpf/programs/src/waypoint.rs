//! What a waypoint is told: where the client dialled, before the client's first byte.
//!
//! ```text
//!   byte 0     0x01: the original destination
//!   1 to 4     length of what follows, network order: 6 or 18
//!   5 …        IPv4 (4) or IPv6 (16) address, port (2), network order
//!   then       0xfe, and four zeros: the end
//! ```
//!
//! A connection to a waypoint enters `waypoint_sockets` when it is established. From then on what is written to it passes the
//! program that is attached to that map, which puts the header before the first bytes, and lets everything else pass as it is.
//! Once the waypoint has acknowledged something, the socket leaves the map, and writes are as fast as any again.
//!
//! Invariant `ONCE`: the header comes before the first byte of a connection or not at all. What the application has written
//! before the socket was in the map (TCP Fast Open, or a blocking write that has waited for the connection) has passed no program;
//! then there is no header, and the stamp says so.
//!
//! Nothing here reads a table: sockets go on with the program that they have when a generation is replaced.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, bpf_sock, sk_action,
};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::helpers::generated::{bpf_map_delete_elem, bpf_msg_pull_data, bpf_skc_to_tcp_sock, bpf_sock_hash_update};
use aya_ebpf::macros::{sk_msg, sock_ops};
use aya_ebpf::programs::{SkMsgContext, SockOpsContext};
use core::ffi::c_void;
use storage_schema::map::{Stamp, TcpLayout, key};

use crate::maps;

/// Filled in by the loader before the programs are loaded.
#[unsafe(no_mangle)]
static TCP_LAYOUT: TcpLayout = TcpLayout::UNKNOWN;

/// Bytes of the header around an address and a port.
const FRAME_LEN: usize = 10;
const V4_LEN: usize = FRAME_LEN + 6;
const V6_LEN: usize = FRAME_LEN + 18;

const ORIGINAL_DESTINATION: u8 = 0x01;
const END: u8 = 0xfe;

/// The value that lets other programs' answers stand, and the connection be.
const DONE: u32 = 1;

#[sock_ops]
pub fn hf_sock_ops(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB as u32 {
        established(&ctx);
    } else if op == BPF_SOCK_OPS_RTT_CB as u32 {
        acknowledged(&ctx);
    }
    DONE
}

#[sk_msg]
pub fn hf_sk_msg(ctx: SkMsgContext) -> u32 {
    if introduce(&ctx) { sk_action::SK_PASS } else { sk_action::SK_DROP }
}

/// Has what is written to a connection to a waypoint pass the other program.
#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let Some(stamp) = stamp(ctx) else { return };
    if stamp.outcome != Stamp::FORWARDED || stamp.flags & Stamp::WAYPOINT == 0 {
        return;
    }
    // SAFETY: helpers; the verifier checks the context, the map and the pointer to this frame.
    let entered = unsafe {
        let mut cookie = bpf_get_socket_cookie(ctx.as_ptr());
        bpf_sock_hash_update(ctx.ops, maps::waypoint_sockets(), (&raw mut cookie).cast(), 0)
    };
    stamp.metadata = if entered == 0 { Stamp::METADATA_DUE } else { Stamp::METADATA_MISSED };
    if entered == 0 {
        // Without it the socket stays in the map: slower, and right.
        let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_RTT_CB_FLAG as u32) as i32);
    }
}

/// The waypoint has something: if that began with the header, the socket is done with.
#[inline(always)]
fn acknowledged(ctx: &SockOpsContext) {
    let Some(stamp) = stamp(ctx) else { return };
    if stamp.metadata == Stamp::METADATA_DUE {
        return;
    }
    // SAFETY: helpers, as above. A write that is under way holds what it needs until its end.
    unsafe {
        let mut cookie = bpf_get_socket_cookie(ctx.as_ptr());
        bpf_map_delete_elem(maps::waypoint_sockets(), (&raw mut cookie).cast());
    }
    let _ = ctx.set_cb_flags((ctx.cb_flags() & !(BPF_SOCK_OPS_RTT_CB_FLAG as u32)) as i32);
}

#[inline(always)]
fn stamp<'s>(ctx: &SockOpsContext) -> Option<&'s mut Stamp> {
    // SAFETY: context accesses, checked by the verifier; the stamp lives as long as the socket, whose lock is held.
    unsafe {
        let socket = (&raw const (*ctx.ops).__bindgen_anon_2.sk).read_volatile();
        if socket.is_null() { None } else { maps::stamp_of(socket).as_mut() }
    }
}

/// Puts the header before what is written, if it is due. `false`: what is written can no longer pass as it is, and must not.
#[inline(always)]
fn introduce(ctx: &SkMsgContext) -> bool {
    // SAFETY: context accesses, checked by the verifier; the stamp lives as long as the socket, whose lock is held.
    let (socket, stamp) = unsafe {
        let socket = (&raw const (*ctx.msg).__bindgen_anon_3.sk).read_volatile();
        (socket, maps::stamp_of(socket).as_mut())
    };
    let Some(stamp) = stamp.filter(|stamp| stamp.metadata == Stamp::METADATA_DUE) else { return true };
    if !nothing_is_written(socket) {
        stamp.metadata = Stamp::METADATA_MISSED;
        return true;
    }
    let put = if key::is_mapped(&stamp.original_address) {
        let [.., address] = stamp.original_address;
        put::<V4_LEN>(ctx, &header(&address.to_ne_bytes(), stamp.original_port_be))
    } else {
        let [a, b, c, d] = stamp.original_address.map(u32::to_ne_bytes);
        let mut address = [0; 16];
        for (index, word) in [a, b, c, d].into_iter().enumerate() {
            address[index * 4] = word[0];
            address[index * 4 + 1] = word[1];
            address[index * 4 + 2] = word[2];
            address[index * 4 + 3] = word[3];
        }
        put::<V6_LEN>(ctx, &header(&address, stamp.original_port_be))
    };
    stamp.metadata = if put == Put::Done { Stamp::METADATA_SENT } else { Stamp::METADATA_MISSED };
    put != Put::Halfway
}

#[inline(always)]
fn header<const ADDRESS: usize, const LEN: usize>(address: &[u8; ADDRESS], port_be: u16) -> [u8; LEN] {
    let mut header = [0; LEN];
    header[0] = ORIGINAL_DESTINATION;
    header[4] = ADDRESS as u8 + 2;
    let mut index = 0;
    while index < ADDRESS {
        header[5 + index] = address[index];
        index += 1;
    }
    [header[5 + ADDRESS], header[6 + ADDRESS]] = port_be.to_ne_bytes();
    header[7 + ADDRESS] = END;
    header
}

/// Whether the application has written nothing yet: what was written before is ahead of us.
#[inline(always)]
fn nothing_is_written(socket: *mut bpf_sock) -> bool {
    // SAFETY: a static of ours, which the loader has changed since it was compiled. The verifier takes it for a constant, and
    // checks that these are members of the kernel's structure.
    unsafe {
        let layout = (&raw const TCP_LAYOUT).read_volatile();
        let tcp = bpf_skc_to_tcp_sock(socket.cast()).cast::<c_void>();
        if tcp.is_null() {
            return false;
        }
        let written: u32 = tcp.byte_add(layout.write_seq as usize).cast::<u32>().read_volatile();
        let acknowledged: u32 = tcp.byte_add(layout.snd_una as usize).cast::<u32>().read_volatile();
        let bytes_acked: u64 = tcp.byte_add(layout.bytes_acked as usize).cast::<u64>().read_volatile();
        // The connection request counts as one.
        written == acknowledged && bytes_acked <= 1
    }
}

/// What became of a header.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Done,
    /// The kernel had no memory for it: the message is as it was.
    Not,
    /// The message begins with bytes that are nothing, and could not be rid of them.
    Halfway,
}

#[inline(always)]
fn put<const LEN: usize>(ctx: &SkMsgContext, header: &[u8; LEN]) -> Put {
    let len = LEN as u32;
    if ctx.push_data(0, len, 0).is_err() {
        return Put::Not;
    }
    // The pushed bytes are a page of their own, which is only to be written once it has been pulled.
    // SAFETY: a helper; the verifier checks the context.
    let pulled = unsafe { bpf_msg_pull_data(ctx.msg, 0, len, 0) } == 0;
    let (data, end) = (ctx.data(), ctx.data_end());
    if !pulled || data + LEN > end {
        return if ctx.pop_data(0, len, 0).is_ok() { Put::Not } else { Put::Halfway };
    }
    // SAFETY: there are that many bytes, as the verifier sees too.
    unsafe { (data as *mut [u8; LEN]).write_volatile(*header) };
    Put::Done
}
