//! Closing a socket from outside: `SOCK_DESTROY` (`sock_diag(7)`; `net/ipv4/inet_diag.c`, kernels ≥ 4.9 with
//! `CONFIG_INET_DIAG_DESTROY`).
//!
//! The kernel looks the socket up by its addresses and ports in the netlink socket's network namespace, compares the cookie,
//! and closes it in one step: a socket that has been connected elsewhere, or has gone and left its address to another, is
//! not found.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use storage_schema::map::{StampedSocket, key};

/// `SOCK_DESTROY` of `linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
pub(super) const REQUEST_LEN: u32 = 16 + 56;

/// A netlink socket to the calling thread's network namespace. It works from any other one.
pub(super) fn connect() -> io::Result<OwnedFd> {
    let protocol = Some(net::netlink::SOCK_DIAG);
    Ok(net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?)
}

/// Closes a socket: whether it was still there and connected as it was.
pub(super) fn destroy(netlink: &OwnedFd, socket: &StampedSocket) -> io::Result<bool> {
    net::send(netlink, &request(socket), SendFlags::empty())?;
    let mut buffer = [0; 512];
    let (length, _) = net::recv(netlink, &mut buffer[..], RecvFlags::empty())?;
    match answer(&buffer[..length])? {
        0 => Ok(true),
        errno => match io::Error::from_raw_os_error(-errno) {
            error if error.kind() == io::ErrorKind::NotFound => Ok(false),
            error => Err(error),
        },
    }
}

fn request(socket: &StampedSocket) -> Vec<u8> {
    let mut request = Vec::with_capacity(REQUEST_LEN as usize);
    request.extend(REQUEST_LEN.to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    // Sequence number and port: the kernel is asked one thing at a time.
    request.extend([0; 8]);
    request.extend([socket.family, socket.protocol, 0, 0]);
    // In whatever state.
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(socket.local_port.to_be_bytes());
    request.extend(socket.remote_port_be.to_ne_bytes());
    for address in [socket.local_address, socket.remote_address] {
        let words = if socket.family == StampedSocket::INET {
            assert!(key::is_mapped(&address), "an IPv4 socket has IPv4 addresses");
            [address[3], 0, 0, 0]
        } else {
            address
        };
        request.extend(words.into_iter().flat_map(u32::to_ne_bytes));
    }
    request.extend(socket.device.to_ne_bytes());
    // Low word first, as `sock_diag_save_cookie` writes it.
    request.extend(u32::try_from(socket.cookie & 0xffff_ffff).expect("masked").to_ne_bytes());
    request.extend(u32::try_from(socket.cookie >> 32).expect("shifted").to_ne_bytes());
    assert_eq!(request.len(), REQUEST_LEN as usize, "the kernel knows this length");
    request
}

/// The error number in the answer: 0 or negative.
fn answer(message: &[u8]) -> io::Result<i32> {
    let kind = message.get(4..6).map(|bytes| u16::from_ne_bytes([bytes[0], bytes[1]]));
    let number = message.get(16..20).map(|bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    match (kind, number) {
        (Some(NLMSG_ERROR), Some(number)) => Ok(number),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is no acknowledgement")),
    }
}
