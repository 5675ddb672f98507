//! The socket: who may open it, and what happens to one that is already there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use api::socket::{BindError, Socket, clean_up, is_listening, lock_path};
use tempfile::TempDir;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn only_the_owner_may_open_it_whatever_the_umask_is() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("run/holdfast.sock");
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    let socket = Socket::bind(&path);
    rustix::process::umask(umask);
    let _socket = socket.unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&lock_path(&path)), 0o600);
}

#[test]
fn a_socket_that_nobody_listens_on_is_replaced() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists() && !is_listening(&path).unwrap());
    let _socket = Socket::bind(&path).unwrap();
    assert!(is_listening(&path).unwrap());
}

#[test]
fn a_socket_that_somebody_listens_on_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    let _other = UnixListener::bind(&path).unwrap();
    assert!(matches!(Socket::bind(&path), Err(BindError::InUse { .. })));
    assert!(is_listening(&path).unwrap());
}

#[test]
fn two_agents_never_share_a_socket_even_if_its_file_is_gone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    let first = Socket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(matches!(Socket::bind(&path), Err(BindError::InUse { .. })));
    drop(first);
    Socket::bind(&path).unwrap();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Socket::bind(&path), Err(BindError::NotASocket { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
}

#[test]
fn its_file_goes_with_it() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    drop(Socket::bind(&path).unwrap());
    assert!(!path.exists());
}

#[test]
fn the_file_of_another_is_not_removed() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    let socket = Socket::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(socket);
    assert!(path.exists());
}

#[test]
fn what_a_killed_agent_left_is_cleaned_up_and_nothing_else() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    clean_up(&path).unwrap();
    let socket = Socket::bind(&path).unwrap();
    assert!(matches!(clean_up(&path), Err(BindError::InUse { .. })));
    drop(socket);
    drop(UnixListener::bind(&path).unwrap());
    clean_up(&path).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    fs::write(&path, "precious").unwrap();
    assert!(matches!(clean_up(&path), Err(BindError::NotASocket { .. })));
    assert!(path.exists());
}

#[test]
fn a_path_that_is_too_long_says_so() {
    let path = Path::new("/tmp").join("x".repeat(108));
    let error = Socket::bind(&path).unwrap_err();
    assert!(error.to_string().ends_with("is too long for a socket: at most 107 bytes"), "{error}");
}
