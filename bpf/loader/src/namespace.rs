//! Network namespaces by their inode numbers.
//!
//! A namespace is found by a process or thread in it, or where it is mounted (`ip netns`). One that has neither, whose
//! sockets are held by processes that live elsewhere, is found by such a socket ([`crate::Sockets`]).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Opens the namespace of this number, if it is found.
pub(crate) fn open(inode: u32) -> Option<OwnedFd> {
    places().find_map(|path| open_if(&path, inode))
}

/// All that are found, each once.
pub(crate) fn all() -> Vec<OwnedFd> {
    let mut seen = HashSet::new();
    let inode = |path: &Path| Some(fs::metadata(path).ok()?.ino());
    let is_new = |path: &PathBuf| inode(path).is_some_and(|inode| seen.insert(inode));
    places().filter(is_new).filter_map(|path| File::open(path).ok()).map(OwnedFd::from).collect()
}

/// Where namespaces can be: one may be there many times, or be of another kind.
fn places() -> impl Iterator<Item = PathBuf> {
    let threads = || entries("/proc").filter(|path| is_number(path)).flat_map(|process| entries(process.join("task")));
    let of_processes = entries("/proc").filter(|path| is_number(path)).map(|process| process.join("ns/net"));
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
