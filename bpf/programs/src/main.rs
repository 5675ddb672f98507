//! The kernel programs: context in, decision, context out.
//!
//! Each program turns its hook's context into the arguments of [`decision::decide`], and the verdict into what the hook
//! can do. What a connection is balanced by is in the `decision` crate; what the tables hold is in `storage_schema::map`.
//!
//! * `maps.rs`: the maps, and the reader's view of them.
//! * `call.rs`: the calls that the hooks see: whose they are, their address, the words that choose.
//! * `enrolment.rs`: whether the process that calls is managed.
//! * `connect.rs`: the cgroup connect hooks.
//! * `datagram.rs`: the cgroup sendmsg and recvmsg hooks, for UDP sockets.
//! * `peername.rs`: the cgroup getpeername hooks.
//! * `waypoint.rs`: the cgroup sock_ops hook, and the program for messages: what waypoints are told.
//! * `sockets.rs`: iterators that find balanced sockets and who holds them.

#![no_std]
#![no_main]

#[cfg(not(bpf_target_arch = "x86_64"))]
compile_error!(
    "decision::read_epoch relies on loads staying in order, which x86-64 does; other processors need an acquire load"
);

mod call;
mod connect;
mod datagram;
mod enrolment;
mod maps;
mod peername;
mod sockets;
mod waypoint;

/// The kernel offers some helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier admits no program from which this can be reached.
    loop {}
}
