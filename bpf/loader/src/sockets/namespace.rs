//! Network namespaces by their inode numbers.
//!
//! A namespace is found by a process or thread in it, or where it is mounted (`ip netns`). One that has neither, whose
//! sockets are held by processes that live elsewhere, is found by such a socket ([`super::Sockets`]).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::diag;

/// Opens the namespace of this number, if it is found.
pub(super) fn open(inode: u32) -> Option<OwnedFd> {
    let threads = || entries("/proc").filter(|path| is_number(path)).flat_map(|process| entries(process.join("task")));
    let of_processes = entries("/proc").filter(|path| is_number(path)).map(|process| process.join("ns/net"));
    let own = std::iter::once(PathBuf::from("/proc/thread-self/ns/net"));
    own.chain(of_processes)
        .chain(mounted())
        .chain(std::iter::once_with(threads).flatten().map(|thread| thread.join("ns/net")))
        .find_map(|path| open_if(&path, inode))
}

/// A netlink socket in a namespace.
pub(super) fn netlink(namespace: &OwnedFd) -> io::Result<OwnedFd> {
    // A thread of its own, as one that has entered a namespace may be unable to go back.
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            diag::connect()
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

fn is_number(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
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
