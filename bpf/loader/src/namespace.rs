//! Network namespaces by their inode numbers.
//!
//! A namespace is found by a process or thread in it, or where it is mounted (`ip netns`). One that has neither, whose
//! sockets are held by processes that live elsewhere, is found by such a socket ([`crate::Sockets`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// Opens the namespace of this number, if it is found.
pub(crate) fn open(inode: u32) -> Option<OwnedFd> {
    paths().find_map(|path| open_if(&path, inode))
}

/// Every namespace that is found, once, with its number.
pub(crate) fn all() -> BTreeMap<u32, OwnedFd> {
    let mut found = BTreeMap::new();
    for path in paths() {
        let inode = fs::metadata(&path).ok().and_then(|metadata| u32::try_from(metadata.ino()).ok());
        if let Some(inode) = inode.filter(|inode| !found.contains_key(inode))
            && let Some(opened) = open_if(&path, inode)
            && sys::is_network_namespace(opened.as_fd())
        {
            found.insert(inode, opened);
        }
    }
    found
}

/// Every process, and where `/proc` has it.
pub(crate) fn processes() -> impl Iterator<Item = (u32, PathBuf)> {
    entries("/proc").filter_map(|path| Some((path.file_name()?.to_str()?.parse().ok()?, path)))
}

/// Where network namespaces are found, the likeliest places first.
fn paths() -> impl Iterator<Item = PathBuf> {
    let of_processes = processes().map(|(_, path)| path.join("ns/net"));
    let threads = || processes().flat_map(|(_, path)| entries(path.join("task")));
    let own = std::iter::once(PathBuf::from("/proc/thread-self/ns/net"));
    own.chain(of_processes)
        .chain(mounted())
        .chain(std::iter::once_with(threads).flatten().map(|thread| thread.join("ns/net")))
}

/// Does something in a namespace. What is none of a network is refused (`EINVAL`).
pub(crate) fn inside<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    // A thread of its own, as one that has entered a namespace may be unable to go back.
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            work()
        });
        inside.join().expect("the thread does not panic")
    })
}

fn open_if(path: &Path, inode: u32) -> Option<OwnedFd> {
    // Looked at before it is opened: to look is cheaper, and there are many.
    (fs::metadata(path).ok()?.ino() == u64::from(inode)).then_some(())?;
    let file = File::open(path).ok()?;
    // The process may have gone into another one meanwhile.
    (file.metadata().ok()?.ino() == u64::from(inode)).then(|| file.into())
}

fn entries(folder: impl AsRef<Path>) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Where namespaces of any kind are mounted.
fn mounted() -> impl Iterator<Item = PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let paths: Vec<PathBuf> = mounts
        .lines()
        .filter(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("nsfs ")))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect();
    paths.into_iter()
}
