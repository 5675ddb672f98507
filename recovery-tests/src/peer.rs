//! Where a socket is really connected to: what `getpeername(2)` says is what the datapath shows.
//!
//! `sock_diag(7)` finds a socket by both its ends, and tells by the cookie whether it is the one that is meant.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`: the request, and a socket in the answer.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const REQUEST_LEN: u32 = 16 + 56;

/// Whether a socket's other end is there, as the kernel has it, in the calling thread's network namespace.
///
/// # Errors
/// If the kernel cannot be asked.
pub fn is_connected_to(socket: &impl AsFd, peer: SocketAddr) -> io::Result<bool> {
    let own = SocketAddr::try_from(net::getsockname(socket)?)?;
    let protocol = match sockopt::socket_type(socket)? {
        SocketType::STREAM => ipproto::TCP,
        _ => ipproto::UDP,
    };
    let peer = SocketAddr::new(written_as(own.ip(), peer.ip()), peer.port());
    // The kernel's lookup of one UDP socket takes the ends the other way round, "for historical reasons".
    let ends = if protocol == ipproto::TCP { [own, peer] } else { [peer, own] };
    let cookie = sockopt::socket_cookie(socket)?;
    let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };

    let mut request = Vec::with_capacity(REQUEST_LEN as usize);
    request.extend(REQUEST_LEN.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    let number = |raw: u32| u8::try_from(raw).expect("families and protocols have small numbers");
    request.extend([number(family.as_raw().into()), number(protocol.as_raw().get()), 0, 0]);
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(ends.iter().flat_map(|end| end.port().to_be_bytes()));
    for end in ends {
        let mut address = [0; 16];
        match end.ip() {
            IpAddr::V4(v4) => address[..4].copy_from_slice(&v4.octets()),
            IpAddr::V6(v6) => address = v6.octets(),
        }
        request.extend(address);
    }
    request.extend(0_u32.to_ne_bytes());
    // Low word first.
    for word in [cookie & 0xffff_ffff, cookie >> 32] {
        request.extend(u32::try_from(word).expect("half of it").to_ne_bytes());
    }
    assert_eq!(request.len(), REQUEST_LEN as usize, "the kernel knows this length");

    let netlink =
        net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(net::netlink::SOCK_DIAG))?;
    net::send(&netlink, &request, SendFlags::empty())?;
    let mut answer = [0; 4096];
    let (length, _) = net::recv(&netlink, &mut answer[..], RecvFlags::empty())?;
    // The other answer is an error: there is none with these ends, or it is another one.
    Ok(length >= 6 && u16::from_ne_bytes([answer[4], answer[5]]) == SOCK_DIAG_BY_FAMILY)
}

/// An address as a socket with an address like `own` writes it.
fn written_as(own: IpAddr, address: IpAddr) -> IpAddr {
    match (own, address) {
        (IpAddr::V6(_), IpAddr::V4(v4)) => v4.to_ipv6_mapped().into(),
        (_, address) => address,
    }
}
