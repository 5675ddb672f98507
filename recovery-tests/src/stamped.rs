//! Connections made by the calling process itself, together with the stamp that the kernel program left on the socket.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use loader::Datapath;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use storage_schema::map::{Stamp, key};

use crate::peer::is_connected_to;
use crate::sandbox::Sandbox;

/// While it lives, this process is in a sandbox's cgroup: its own connections go through the hooks.
#[derive(Debug)]
pub struct Enrolled {
    home: PathBuf,
    cgroup: PathBuf,
}

impl Enrolled {
    /// Moves this process, all its threads included, into the sandbox's cgroup.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn in_cgroup_of(sandbox: &Sandbox) -> Self {
        let cgroup = sandbox.cgroup().expect("hooks need a whole sandbox");
        let mount = cgroup.parent().expect("a cgroup lies in its mount");
        let own = fs::read_to_string("/proc/self/cgroup").expect("proc is mounted");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("cgroup v2 is mounted");
        let enrolled = Self { home: mount.join(own), cgroup: cgroup.to_owned() };
        move_to(cgroup);
        enrolled
    }

    /// Does something in the cgroup that this process came from.
    pub(crate) fn outside<T>(&self, work: impl FnOnce() -> T) -> T {
        move_to(&self.home);
        let done = work();
        move_to(&self.cgroup);
        done
    }
}

impl Drop for Enrolled {
    fn drop(&mut self) {
        move_to(&self.home);
    }
}

fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), "0").expect("root may move its own process");
}

/// What came of a connection.
#[derive(Debug)]
pub struct Attempt {
    /// Where it arrived, or why it did not.
    pub arrived: Result<SocketAddr, Errno>,
    /// What the program left on the socket; `None`: it did not balance it.
    pub stamp: Option<Stamp>,
    /// The socket: it stays open, and the stamp with it.
    pub socket: OwnedFd,
}

/// Connects, with an IPv6 socket also where the destination is IPv4 if `mapped`.
///
/// # Panics
/// If no socket can be made, or the stamp cannot be read.
pub fn attempt(datapath: &Datapath, to: SocketAddr, mapped: bool) -> Attempt {
    attempt_over(SocketType::STREAM, datapath, to, mapped, None)
}

/// Connects a socket of a type, bound to an address before if one is given.
///
/// # Panics
/// If no socket can be made or bound, or the stamp cannot be read.
pub fn attempt_over(
    kind: SocketType,
    datapath: &Datapath,
    to: SocketAddr,
    mapped: bool,
    bound: Option<SocketAddr>,
) -> Attempt {
    let to = match to.ip() {
        IpAddr::V4(v4) if mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
        _ => to,
    };
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family, kind, None).expect("a socket can be made");
    if let Some(bound) = bound {
        bind(&socket, &bound).expect("a local address");
    }
    let connected = connect(&socket, &to);
    let stamp = datapath.stamp(&socket).expect("the stamp can be read");
    let arrived = connected.map(|()| {
        let led_to = stamp.as_ref().map_or(to, |stamp| ends(stamp).1);
        assert!(is_connected_to(&socket, led_to).expect("the kernel tells"), "{to} leads to {led_to} by its stamp");
        SocketAddr::new(led_to.ip().to_canonical(), led_to.port())
    });
    Attempt { arrived, stamp, socket }
}

/// The ends of what a stamp is about: where it was sent, and where it went.
pub fn ends(stamp: &Stamp) -> (SocketAddr, SocketAddr) {
    let address = |words, port_be| SocketAddr::new(key::address_from_words(words), u16::from_be(port_be));
    (address(stamp.original_address, stamp.original_port_be), address(stamp.backend_address, stamp.backend_port_be))
}
