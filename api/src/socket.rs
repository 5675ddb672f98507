//! The agent's unix socket: made so that nobody can open it who is not meant to, and so that two agents never share one.
//!
//! The mode is set on the socket before it is bound, so the file never exists with another one, whatever the umask is; a
//! group may be let in afterwards.
//! A lock file beside it (`<socket>.lock`) is held for as long as the agent listens: only its holder may replace a
//! socket file, and it does so only when nobody answers behind it. A kill leaves both files; the lock is gone with the
//! process, and the next start cleans up.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use crate::access::Peer;

/// The mode of the socket: only the agent's own user may open it.
pub const SOCKET_MODE: u32 = 0o600;
/// The mode of a socket that is given to a group.
pub const GROUP_SOCKET_MODE: u32 = 0o660;

const BACKLOG: i32 = 1024;

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent has it.
    #[error("another agent listens on {}: stop it, or choose another --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket lies there.
    #[error("{} is there and is not a socket: remove it, or choose another --socket", path.display())]
    NotASocket {
        /// What lies there.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    #[error("{} is too long for a socket: at most 107 bytes", path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A listening socket. Dropping it removes its file, unless the file is another's by now.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// The file of a listening socket and the lock on its place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    _lock: File,
}

impl Socket {
    /// Listens at `path`, of which the directory is created if it is missing.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let address = SocketAddrUnix::new(path).map_err(|_| BindError::TooLong { path: path.to_owned() })?;
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(|source| failed("create the directory", directory, source))?;
        }
        let lock = lock(path)?;
        remove_stale(path)?;
        let listener = listen_at(&address).map_err(|error| failed("listen on", path, error.into()))?;
        let metadata = fs::symlink_metadata(path).map_err(|source| failed("look at", path, source))?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { listener, file: SocketFile { path: path.to_owned(), identity, _lock: lock } })
    }

    /// Lets the members of a group open it too. What they may do there is for the server's rules to say.
    pub fn give_to_group(&self, gid: u32) -> Result<(), BindError> {
        let path = &self.file.path;
        std::os::unix::fs::lchown(path, None, Some(gid))
            .map_err(|source| failed("give to a group that the agent is not in", path, source))?;
        fs::set_permissions(path, fs::Permissions::from_mode(GROUP_SOCKET_MODE))
            .map_err(|source| failed("set the mode of", path, source))
    }

    pub(crate) fn into_parts(self) -> (UnixListener, SocketFile) {
        (self.listener, self.file)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours =
            fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// Who sent a request, as the journal notes it (see [`Peer`]). `None` if it came past the server's own listeners.
pub fn client(request: &tonic::Extensions) -> Option<String> {
    Peer::of(request).map(|peer| peer.to_string())
}

/// Whether an agent listens at `path`.
pub fn is_listening(path: &Path) -> io::Result<bool> {
    match UnixStream::connect(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes what a killed agent has left at `path`: the socket and its lock file. Refuses while somebody listens.
pub fn clean_up(path: &Path) -> Result<(), BindError> {
    if !path.exists() && !lock_path(path).exists() {
        return Ok(());
    }
    let _lock = lock(path)?;
    remove_stale(path)?;
    let lock_path = lock_path(path);
    fs::remove_file(&lock_path).map_err(|source| failed("remove", &lock_path, source))
}

/// The path of the lock file that belongs to a socket.
pub fn lock_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    path.into()
}

fn lock(socket: &Path) -> Result<File, BindError> {
    let path = lock_path(socket);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(SOCKET_MODE)
        .open(&path)
        .map_err(|source| failed("open", &path, source))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BindError::InUse { path: socket.to_owned() }),
        Err(error) => Err(failed("lock", &path, error.into())),
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let file_type = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("look at", path, source)),
    };
    if !file_type.is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    if is_listening(path).map_err(|source| failed("probe", path, source))? {
        return Err(BindError::InUse { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(|source| failed("remove the stale socket", path, source))
}

fn listen_at(address: &SocketAddrUnix) -> rustix::io::Result<UnixListener> {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    // On Linux bind() gives the file the mode of the socket's own inode, minus the umask.
    fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    bind(&socket, address)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> BindError {
    BindError::Io { action, path: path.to_owned(), source }
}
