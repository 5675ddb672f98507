//! The sockets that were balanced, wherever they are: found by their stamps, closed, or sent to another backend.
//!
//! ```text
//!  stamps ──iterator──▶ StampedSocket: stamp, cookie, namespace, addresses        all network namespaces in one pass
//!                          │
//!                          ├─▶ SOCK_DESTROY in its namespace: ECONNABORTED for the client, a reset for the peer
//!                          └─▶ connected UDP: connect() to the virtual address on the client's own descriptor; the hook
//!                              decides again, and the client notices nothing
//! ```
//!
//! Where the kernel lets nobody load iterators, `sock_diag(7)` and `/proc` list the same, [namespace by namespace](listing).
//!
//! Invariant `THAT_SOCKET`: only the socket that was dumped is touched. Closing compares cookie and both addresses in the
//! kernel ([`diag`]); a descriptor that was fetched is compared by its cookie and its whole stamp.
//!
//! Refuses: to say which sockets are to be closed. What is asked for is done, socket by socket.

mod diag;
mod layout;
mod listing;

pub(crate) use layout::tcp_layout;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aya::programs::Iter;
use aya::{Btf, EbpfLoader};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use storage_schema::map::{self, KernelLayout, SocketHolder, StampedSocket, key};
use zerocopy::FromBytes;

use self::listing::Inodes;
use crate::OBJECT;
use crate::datapath;
use crate::error::LoadError;
use crate::namespace;
use crate::sys;

const STAMPED_SOCKETS: &str = "hf_stamped_sockets";
const SOCKET_HOLDERS: &str = "hf_socket_holders";

/// What is read of a dump at once.
const READ_BYTES: usize = 64 << 10;

/// Why sockets could not be found, closed or moved.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The kernel's own BTF could not be read.
    #[error("cannot read the kernel's types from /sys/kernel/btf/vmlinux: {source}")]
    KernelTypes {
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel keeps something elsewhere than this build knows.
    #[error("the kernel's types have no {missing}: balanced sockets cannot be listed on this kernel")]
    UnknownLayout {
        /// What was looked for.
        missing: &'static str,
    },
    /// The iterators could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A dump failed.
    #[error("cannot list {what}: {source}")]
    Dump {
        /// Of what.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A network namespace has neither a process nor a mount, and nobody holds the socket.
    #[error("the network namespace {namespace} is not found")]
    NoNamespace {
        /// Its inode number.
        namespace: u32,
    },
    /// A network namespace could not be entered.
    #[error("cannot enter the network namespace {namespace} (CAP_SYS_ADMIN): {source}")]
    Enter {
        /// Its inode number.
        namespace: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refuses to close a socket.
    #[error("the kernel does not close a socket (CONFIG_INET_DIAG_DESTROY, CAP_NET_ADMIN): {source}")]
    Destroy {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A descriptor could not be fetched from its process.
    #[error("cannot fetch a descriptor of process {process} (CAP_SYS_PTRACE): {source}")]
    Fetch {
        /// The process.
        process: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// What became of a connected UDP socket that was to be sent to another backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reselected {
    /// It is connected to another backend.
    Moved,
    /// Its service has no usable backend, or none that can be reached from its address.
    Stuck,
    /// It is gone, was connected elsewhere by its process, or is held by no process.
    Gone,
}

/// The balanced sockets of this machine. Needs `CAP_BPF`, `CAP_PERFMON`, `CAP_NET_ADMIN`; to close sockets in other network
/// namespaces also `CAP_SYS_ADMIN`, to move them `CAP_SYS_PTRACE`.
#[derive(Debug)]
pub struct Sockets {
    stamps: PathBuf,
    lister: Lister,
}

/// What lists sockets.
#[derive(Debug)]
enum Lister {
    /// Iterators over stamps and over open files.
    Iterators { stamped: OwnedFd, held: OwnedFd },
    /// `sock_diag(7)` and `/proc`; the inode numbers of the sockets that were listed last.
    Diag { why: Box<SocketError>, inodes: Mutex<Inodes> },
}

/// [`KernelLayout`] as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct LayoutEntry(KernelLayout);

// SAFETY: plain data without padding, which the ABI asserts.
unsafe impl aya::Pod for LayoutEntry {}

impl Sockets {
    /// Loads the iterators, or does without ([`Sockets::without_iterators`]). Nothing is attached or pinned: they go with the
    /// value.
    pub fn open(pin_root: &Path) -> Self {
        let lister = load_iterators(pin_root)
            .unwrap_or_else(|why| Lister::Diag { why: Box::new(why), inodes: Mutex::default() });
        Self { stamps: datapath::stamps_path(pin_root), lister }
    }

    /// Why there are no iterators, if that is so: then sockets in network namespaces are not found that neither have a process
    /// nor are mounted.
    pub fn without_iterators(&self) -> Option<&SocketError> {
        match &self.lister {
            Lister::Iterators { .. } => None,
            Lister::Diag { why, .. } => Some(why),
        }
    }

    /// Shows every connected socket that was balanced to a backend, while it goes over them: a socket may be closed at
    /// once. Sockets that come or go meanwhile may be missed; on an error, some have been shown.
    pub fn for_each(&self, see: impl FnMut(StampedSocket)) -> Result<(), SocketError> {
        let failed = |source| SocketError::Dump { what: "balanced sockets", source };
        match &self.lister {
            Lister::Iterators { stamped, .. } => {
                let stamps = sys::obj_get(&self.stamps).map_err(failed)?;
                let dump = sys::iterate(stamped.as_fd(), Some(stamps.as_fd())).map_err(failed)?;
                read_records(dump, see).map_err(failed)
            }
            Lister::Diag { inodes, .. } => {
                let listed = listing::stamped(&self.stamps)?;
                *inodes.lock().unwrap_or_else(PoisonError::into_inner) = listed.inodes;
                listed.sockets.into_iter().for_each(see);
                listed.refused.map_or(Ok(()), Err)
            }
        }
    }

    /// The processes that hold some of these sockets, by the sockets' cookies; one process for each.
    fn holders(&self, sockets: &[StampedSocket]) -> Result<HashMap<u64, SocketHolder>, SocketError> {
        let failed = |source| SocketError::Dump { what: "open sockets", source };
        let mut holders: HashMap<u64, Option<SocketHolder>> =
            sockets.iter().map(|socket| (socket.cookie, None)).collect();
        let see = |holder: SocketHolder| {
            if let Some(found) = holders.get_mut(&holder.cookie) {
                *found = Some(holder);
            }
        };
        match &self.lister {
            Lister::Iterators { held, .. } => {
                let dump = sys::iterate(held.as_fd(), None).map_err(failed)?;
                read_records(dump, see).map_err(failed)?;
            }
            Lister::Diag { inodes, .. } => {
                listing::holders(&inodes.lock().unwrap_or_else(PoisonError::into_inner), see);
            }
        }
        Ok(holders.into_iter().filter_map(|(cookie, holder)| Some((cookie, holder?))).collect())
    }

    /// What closes sockets. Let it go when done: it keeps the network namespaces that it has been in.
    pub fn closer(&self) -> Closer<'_> {
        Closer { sockets: self, netlinks: HashMap::new() }
    }

    /// Has connected UDP sockets decided again, on the descriptors of the processes that hold them: `done` is told what
    /// became of each. The source address and port stay.
    pub fn reselect(
        &self,
        sockets: &[StampedSocket],
        mut done: impl FnMut(&StampedSocket, Result<Reselected, SocketError>),
    ) -> Result<(), SocketError> {
        let holders = self.holders(sockets)?;
        for socket in sockets {
            let outcome = match holders.get(&socket.cookie) {
                Some(holder) => self.reselect_one(socket, holder),
                None => Ok(Reselected::Gone),
            };
            done(socket, outcome);
        }
        Ok(())
    }

    fn reselect_one(&self, socket: &StampedSocket, holder: &SocketHolder) -> Result<Reselected, SocketError> {
        let Some(descriptor) = fetch(socket, holder)? else { return Ok(Reselected::Gone) };
        if datapath::read_stamp(&self.stamps, &descriptor)? != Some(socket.stamp) {
            return Ok(Reselected::Gone);
        }
        let ip = match (key::address_from_words(socket.stamp.original_address), socket.family) {
            (IpAddr::V4(v4), StampedSocket::INET6) => IpAddr::V6(v4.to_ipv6_mapped()),
            (ip, _) => ip,
        };
        let dialled = SocketAddr::new(ip, u16::from_be(socket.stamp.original_port_be));
        match rustix::net::connect(&descriptor, &dialled) {
            Ok(()) => Ok(Reselected::Moved),
            Err(_) => Ok(Reselected::Stuck),
        }
    }
}

fn load_iterators(pin_root: &Path) -> Result<Lister, SocketError> {
    let layout = LayoutEntry(layout::kernel_layout()?);
    let stamps = datapath::stamps_path(pin_root);
    let mut object = EbpfLoader::new()
        .map_pin_path(map::name::STAMPS, &stamps)
        .override_global("KERNEL_LAYOUT", &layout, true)
        .load(OBJECT)
        .map_err(LoadError::object)?;
    let btf = Btf::from_sys_fs().map_err(|source| LoadError::object(source.into()))?;
    let mut load = |name: &'static str, target: &str| -> Result<OwnedFd, SocketError> {
        let program = object.program_mut(name).ok_or(LoadError::Incomplete { what: name })?;
        let program: &mut Iter = program.try_into().map_err(LoadError::program(name))?;
        program.load(target, &btf).map_err(LoadError::program(name))?;
        let descriptor = program.fd().map_err(LoadError::program(name))?.as_fd().try_clone_to_owned();
        descriptor.map_err(|source| SocketError::Dump { what: name, source })
    };
    let stamped = load(STAMPED_SOCKETS, "bpf_sk_storage_map")?;
    let held = load(SOCKET_HOLDERS, "task_file")?;
    Ok(Lister::Iterators { stamped, held })
}

/// Closes sockets.
#[derive(Debug)]
pub struct Closer<'s> {
    sockets: &'s Sockets,
    /// By the namespaces that they are in.
    netlinks: HashMap<u32, OwnedFd>,
}

impl Closer<'_> {
    /// Closes a socket as it was dumped: `false` if it is gone or connected elsewhere. Its process sees `ECONNABORTED`.
    pub fn destroy(&mut self, socket: &StampedSocket) -> Result<bool, SocketError> {
        let namespace = socket.namespace;
        if !self.netlinks.contains_key(&namespace) {
            let Some(opened) = self.find_namespace(socket)? else { return Err(SocketError::NoNamespace { namespace }) };
            let netlink = namespace::inside(opened.as_fd(), diag::connect)
                .map_err(|source| SocketError::Enter { namespace, source })?;
            self.netlinks.insert(namespace, netlink);
        }
        diag::destroy(&self.netlinks[&namespace], socket).map_err(|source| SocketError::Destroy { source })
    }

    fn find_namespace(&self, socket: &StampedSocket) -> Result<Option<OwnedFd>, SocketError> {
        if let Some(found) = namespace::open(socket.namespace) {
            return Ok(Some(found));
        }
        let holders = self.sockets.holders(std::slice::from_ref(socket))?;
        let Some(holder) = holders.get(&socket.cookie) else { return Ok(None) };
        let Some(descriptor) = fetch(socket, holder)? else { return Ok(None) };
        let enter = |source| SocketError::Enter { namespace: socket.namespace, source };
        sys::socket_namespace(descriptor.as_fd()).map(Some).map_err(enter)
    }
}

/// A process's descriptor of a socket; `None` if it is another's by now.
fn fetch(socket: &StampedSocket, holder: &SocketHolder) -> Result<Option<OwnedFd>, SocketError> {
    let process = holder.process;
    let fetched = || -> io::Result<OwnedFd> {
        let number = i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let descriptor = RawFd::try_from(holder.descriptor).map_err(|_| io::ErrorKind::NotFound)?;
        Ok(pidfd_getfd(pidfd, descriptor, PidfdGetfdFlags::empty())?)
    };
    let descriptor = match fetched() {
        Ok(descriptor) => descriptor,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(SocketError::Fetch { process, source: error });
        }
        // The process is gone, or has closed it.
        Err(_) => return Ok(None),
    };
    let same = rustix::net::sockopt::socket_cookie(&descriptor).is_ok_and(|cookie| cookie == socket.cookie);
    Ok(same.then_some(descriptor))
}

/// Reads an iterator's file to its end, record by record.
fn read_records<R: FromBytes>(mut dump: File, mut see: impl FnMut(R)) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut filled = 0;
    loop {
        match dump.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            // The kernel has passed very many things that are not shown, and asks whether to go on.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => continue,
            Err(error) => return Err(error),
        }
        let mut rest = &buffer[..filled];
        while let Ok((record, after)) = R::read_from_prefix(rest) {
            see(record);
            rest = after;
        }
        let (begin, left) = (filled - rest.len(), rest.len());
        buffer.copy_within(begin..filled, 0);
        filled = left;
    }
    if filled == 0 {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the dump ends within a record"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    #[test]
    fn records_are_read_across_the_ends_of_reads() {
        let count = 3 * READ_BYTES as u64 / 16 + 5;
        let mut file = tempfile::tempfile().expect("a file");
        let bytes: Vec<u8> = (0..count)
            .flat_map(|cookie| [cookie, u64::from(u32::MAX)].map(u64::to_ne_bytes).concat())
            .chain([0; 3])
            .collect();
        file.write_all(&bytes).expect("written");
        file.rewind().expect("rewound");
        let mut seen = 0;
        let error = read_records(file, |holder: SocketHolder| {
            assert_eq!((holder.cookie, holder.process), (seen, u32::MAX));
            seen += 1;
        });
        assert_eq!(seen, count);
        assert_eq!(error.map_err(|error| error.kind()), Err(io::ErrorKind::UnexpectedEof));
    }
}
