//! Balanced sockets without iterators: `sock_diag(7)` lists the sockets of one network namespace with what a map keeps of each
//! (`INET_DIAG_REQ_SK_BPF_STORAGES`; `net/core/bpf_sk_storage.c`, kernels ≥ 5.7), and `/proc` tells who holds them.
//!
//! Kernels whose security policy lets nobody load tracing programs have this. It is one listing for each namespace, and it
//! shows only those namespaces in which something runs or that are mounted. What maps keep of UDP sockets is not listed: it is read
//! through the descriptors of their processes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::net::{self, RecvFlags, SendFlags};
use storage_schema::map::{SocketHolder, Stamp, StampedSocket, key};
use zerocopy::FromBytes as _;

use super::diag::{self, REQUEST_LEN};
use super::{SocketError, fetch};
use crate::{datapath, namespace, sys};

/// `SOCK_DIAG_BY_FAMILY` of `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Of `linux/inet_diag.h` and `linux/sock_diag.h`: what is asked for, and where it is in the answer.
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const SK_BPF_STORAGES: u16 = 20;
const BPF_STORAGE: u16 = 1;
const MAP_VALUE: u16 = 3;
/// Two attributes around a descriptor.
const ATTRIBUTES_LEN: u32 = 12;
/// `struct nlmsghdr`, `struct inet_diag_msg`, `struct nlattr`.
const HEADER_LEN: usize = 16;
const MESSAGE_LEN: usize = 72;
const ATTRIBUTE_LEN: usize = 4;
/// The kernel fills no larger piece of a listing.
const ANSWER_BYTES: usize = 64 << 10;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Inode numbers of sockets, by their cookies.
pub(super) type Inodes = HashMap<u64, u32>;

/// The connected sockets that were balanced.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) sockets: Vec<StampedSocket>,
    /// Of these and others.
    pub(super) inodes: Inodes,
    /// Why some could not be looked at.
    pub(super) refused: Option<SocketError>,
}

/// Lists them, in all namespaces that are found.
pub(super) fn stamped(stamps: &Path) -> Result<Listed, SocketError> {
    let failed = |source| SocketError::Dump { what: "balanced sockets", source };
    let map = sys::obj_get(stamps).map_err(failed)?;
    let (mut found, mut datagrams, mut inodes) = (Vec::new(), HashMap::new(), Inodes::new());
    for (namespace, opened) in namespace::all() {
        let enter = |source| SocketError::Enter { namespace, source };
        let netlink = namespace::inside(opened.as_fd(), diag::connect).map_err(enter)?;
        for family in [StampedSocket::INET, StampedSocket::INET6] {
            for protocol in [TCP, UDP] {
                list(&netlink, &map, (family, protocol), |socket, stamp, inode| {
                    let socket = StampedSocket { namespace, ..socket };
                    inodes.insert(socket.cookie, inode);
                    match stamp {
                        Some(stamp) => found.push(StampedSocket { stamp, ..socket }),
                        None if protocol == UDP => drop(datagrams.insert(socket.cookie, socket)),
                        None => {}
                    }
                })
                .map_err(failed)?;
            }
        }
    }
    let of_datagrams = inodes.iter().filter(|(cookie, _)| datagrams.contains_key(cookie));
    let of_datagrams: Inodes = of_datagrams.map(|(cookie, inode)| (*cookie, *inode)).collect();
    let mut refused = None;
    holders(&of_datagrams, |holder| {
        // Each is looked at once, whoever holds it.
        let Some(socket) = datagrams.remove(&holder.cookie) else { return };
        let stamp = fetch(&socket, &holder).and_then(|descriptor| match descriptor {
            Some(descriptor) => Ok(datapath::read_stamp(stamps, &descriptor)?),
            None => Ok(None),
        });
        match stamp {
            Ok(stamp) => found.extend(stamp.map(|stamp| StampedSocket { stamp, ..socket })),
            Err(error) => refused = Some(error),
        }
    });
    found.retain(|socket| socket.stamp.outcome == Stamp::FORWARDED);
    Ok(Listed { sockets: found, inodes, refused })
}

/// The processes that hold sockets of these inode numbers.
pub(super) fn holders(inodes: &Inodes, mut see: impl FnMut(SocketHolder)) {
    let cookies: HashMap<u32, u64> = inodes.iter().map(|(cookie, inode)| (*inode, *cookie)).collect();
    for (process, path) in namespace::processes() {
        let descriptors = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        for descriptor in descriptors {
            let cookie = fs::read_link(descriptor.path()).ok().and_then(|link| {
                let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()?;
                cookies.get(&inode).copied()
            });
            let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
            if let (Some(cookie), Some(descriptor)) = (cookie, number) {
                see(SocketHolder { cookie, process, descriptor });
            }
        }
    }
}

/// Lists the connected sockets of a family and protocol, with their stamps and inode numbers.
fn list(
    netlink: &OwnedFd,
    stamps: &OwnedFd,
    (family, protocol): (u8, u8),
    mut see: impl FnMut(StampedSocket, Option<Stamp>, u32),
) -> io::Result<()> {
    net::send(netlink, &request(stamps, family, protocol), SendFlags::empty())?;
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let (length, _) = net::recv(netlink, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, body)) = take_message(&mut rest) {
            match kind {
                SOCK_DIAG_BY_FAMILY => {
                    if let Some((socket, stamp, inode)) = parse(body, protocol) {
                        see(socket, stamp, inode);
                    }
                }
                // Both say how it ended: 0, or an error.
                NLMSG_DONE | NLMSG_ERROR => {
                    return match body
                        .get(..4)
                        .map_or(0, |bytes| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
                    {
                        0 => Ok(()),
                        errno => Err(io::Error::from_raw_os_error(errno.saturating_abs())),
                    };
                }
                _ => {}
            }
        }
    }
}

fn request(stamps: &OwnedFd, family: u8, protocol: u8) -> Vec<u8> {
    let connected = !(1 << StampedSocket::CLOSE | 1 << StampedSocket::LISTEN);
    // As far as states go that every kernel with this listing has.
    let states: u32 = connected & 0x1ffe;
    let mut request = Vec::new();
    request.extend((REQUEST_LEN + ATTRIBUTES_LEN).to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([family, protocol, 0, 0]);
    request.extend(states.to_ne_bytes());
    request.resize(REQUEST_LEN as usize, 0);
    for (length, kind) in [(12_u16, REQ_SK_BPF_STORAGES), (8, REQ_MAP_FD)] {
        request.extend(length.to_ne_bytes());
        request.extend(kind.to_ne_bytes());
    }
    request.extend(stamps.as_raw_fd().to_ne_bytes());
    request
}

/// Takes a message from the front: its type and its body.
fn take_message<'b>(rest: &mut &'b [u8]) -> Option<(u16, &'b [u8])> {
    let length = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*rest.get(4)?, *rest.get(5)?]);
    let body = rest.get(HEADER_LEN..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, body))
}

/// The value of the first attribute of a type.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        // Two bits are flags.
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & 0x3fff;
        let value = rest.get(ATTRIBUTE_LEN..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// A socket, but for stamp and namespace; its stamp, if it is told; its inode number.
fn parse(body: &[u8], protocol: u8) -> Option<(StampedSocket, Option<Stamp>, u32)> {
    let message = body.get(..MESSAGE_LEN)?;
    let value = attribute(&body[MESSAGE_LEN..], SK_BPF_STORAGES)
        .and_then(|storages| attribute(storages, BPF_STORAGE))
        .and_then(|storage| attribute(storage, MAP_VALUE));
    let half = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
    let word = |at: usize| u32::from_ne_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]]);
    let family = message[0];
    let address = |at: usize| match family {
        StampedSocket::INET => key::mapped(word(at)),
        _ => [word(at), word(at + 4), word(at + 8), word(at + 12)],
    };
    let socket = StampedSocket {
        // Low word first, as `sock_diag_save_cookie` writes it.
        cookie: u64::from(word(44)) | u64::from(word(48)) << 32,
        device: word(40),
        local_address: address(8),
        remote_address: address(24),
        local_port: u16::from_be(half(4)),
        remote_port_be: half(6),
        family,
        state: message[1],
        protocol,
        ..StampedSocket::default()
    };
    Some((socket, value.and_then(|value| Stamp::read_from_bytes(value).ok()), word(68)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_and_none_past_the_end() {
        let attributes = [5, 0, 1, 0, 0xaa, 0, 0, 0, 8, 0, 3, 0x80, 1, 2, 3, 4];
        assert_eq!(attribute(&attributes, 1), Some(&[0xaa][..]));
        assert_eq!(attribute(&attributes, 3), Some(&[1, 2, 3, 4][..]));
        assert_eq!(attribute(&attributes, 2), None);
        for length in 0..attributes.len() {
            assert_eq!(attribute(&attributes[..length], 3), None);
        }
        assert_eq!(attribute(&[0; 8], 3), None);
    }
}
