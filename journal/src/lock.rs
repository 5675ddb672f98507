//! One process at a time: the lock file of a state directory, and the directory itself; and the wait for sled's own lock.
//!
//! The lock is the kernel's (flock), so it ends with the process however that ends; the file's text is only there to name
//! the holder.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use storage_schema::id::StoreId;

use crate::config::Config;
use crate::error::OpenError;
use crate::segment::open::store_id_of_segments;

const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "store-id";

/// The lock on a state directory, released when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked and has not executed its program yet holds a copy of the descriptor.
        let _ = self.file.unlock();
    }
}

/// Creates or checks the state directory and takes its lock.
pub(crate) fn lock_state_dir(dir: &Path) -> Result<Lock, OpenError> {
    let failed = |action| move |source| OpenError::Io { action, path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create"))?;
    let ours = dir.join(LOCK_FILE).exists() || dir.join(IDENTITY_FILE).exists();
    let empty = fs::read_dir(dir).map_err(failed("list"))?.next().is_none();
    if !ours && !empty {
        return Err(OpenError::NotOurs { path: dir.to_owned() });
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700)).map_err(failed("restrict the mode of"))?;
    let path = dir.join(LOCK_FILE);
    let failed = |action| {
        let path = path.clone();
        move |source| OpenError::Io { action, path, source }
    };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(failed("open"))?;
    let locked = file.try_lock();
    held(&mut file, locked, dir)?;
    write_pid(&mut file).map_err(failed("write"))?;
    Ok(Lock { file })
}

/// Takes the lock of a directory that is only read; `None` if it has no lock file, as a copy may have none.
pub(crate) fn lock_for_reading(dir: &Path) -> Result<Option<Lock>, OpenError> {
    let path = dir.join(LOCK_FILE);
    let failed = |source| OpenError::Io { action: "open", path: path.clone(), source };
    if let Ok(mut file) = OpenOptions::new().read(true).write(true).open(&path) {
        let locked = file.try_lock();
        held(&mut file, locked, dir)?;
        write_pid(&mut file).map_err(failed)?;
        return Ok(Some(Lock { file }));
    }
    // Perhaps the directory cannot be written to.
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let locked = file.try_lock_shared();
    held(&mut file, locked, dir)?;
    Ok(Some(Lock { file }))
}

/// Names the holder of a lock that could not be taken.
fn held(file: &mut File, locked: Result<(), TryLockError>, dir: &Path) -> Result<(), OpenError> {
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Who holds it may be about to write this: an unreadable text is no other error.
            let _ = file.read_to_string(&mut text);
            Err(OpenError::InUse { path: dir.to_owned(), pid: text.trim().parse().unwrap_or_default() })
        }
        Err(TryLockError::Error(source)) => Err(OpenError::Io { action: "lock", path: dir.join(LOCK_FILE), source }),
    }
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Removes a state directory with all that is in it. Refuses one that is in use, or that is none.
pub(crate) fn remove_state_dir(dir: &Path) -> Result<(), OpenError> {
    let _lock = lock_state_dir(dir)?;
    fs::remove_dir_all(dir).map_err(|source| OpenError::Io { action: "remove", path: dir.to_owned(), source })
}

/// The state directory's store id, if it has one.
pub(crate) fn read_identity(dir: &Path) -> Result<Option<StoreId>, OpenError> {
    let path = dir.join(IDENTITY_FILE);
    let failed = |source| OpenError::Io { action: "read", path: path.clone(), source };
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(failed)?,
    };
    match parse_identity(text.trim()) {
        Some(store_id) => Ok(Some(store_id)),
        None => Err(OpenError::BadIdentity { path }),
    }
}

/// Writes the store id, durably.
pub(crate) fn write_identity(dir: &Path, store_id: StoreId) -> Result<(), OpenError> {
    let path = dir.join(IDENTITY_FILE);
    let unnamed = dir.join("store-id.new");
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unnamed)?;
        writeln!(file, "{store_id}")?;
        file.sync_all()?;
        fs::rename(&unnamed, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| OpenError::Io { action: "write", path: path.clone(), source })
}

/// The store id: what the directory says, else what its segments say, else a new one.
pub(crate) fn establish_identity(config: &Config, dir: &Path) -> Result<StoreId, OpenError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Io { action, path, source }
    };
    if let Some(store_id) = read_identity(&config.state_dir)? {
        return Ok(store_id);
    }
    let of_segments = store_id_of_segments(&*config.disk, dir).map_err(failed("list", dir))?;
    let store_id = match of_segments {
        Some(store_id) => {
            tracing::warn!(%store_id, path = %config.state_dir.display(), "the store-id file was missing; taken from the segments");
            store_id
        }
        None => random_store_id().map_err(failed("choose a store id for", &config.state_dir))?,
    };
    write_identity(&config.state_dir, store_id)?;
    Ok(store_id)
}

pub(crate) fn random_store_id() -> io::Result<StoreId> {
    let mut id = [0; 16];
    let mut random = File::open("/dev/urandom")?;
    random.read_exact(&mut id)?;
    Ok(StoreId(id))
}

/// How long an earlier sled of this process may take to let go of its file.
const SLED_TIMEOUT: Duration = Duration::from_secs(10);

/// sled gives its file's lock back from threads of its own, a moment after its last handle is gone, and refuses to open a
/// file that is locked. Nobody else can have it: whoever opens the store holds the journal's own lock.
pub(crate) fn wait_for_lock(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let deadline = Instant::now() + SLED_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error.into()),
        }
    }
}

pub(crate) fn parse_identity(text: &str) -> Option<StoreId> {
    let mut id = [0; 16];
    if text.len() != 2 * id.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(StoreId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_survive_their_text() {
        let id = StoreId(*b"0123456789abcdef");
        assert_eq!(parse_identity(&id.to_string()), Some(id));
        for bad in ["", "30", "zz313233343536373839616263646566", "+0313233343536373839616263646566"] {
            assert_eq!(parse_identity(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_second_holder_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = lock_state_dir(dir.path()).unwrap();
        match lock_state_dir(dir.path()) {
            Err(OpenError::InUse { pid, .. }) => assert_eq!(pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(lock);
        lock_state_dir(dir.path()).unwrap();
    }

    #[test]
    fn a_state_directory_is_removed_unless_it_is_in_use_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let lock = lock_state_dir(&state).unwrap();
        assert!(matches!(remove_state_dir(&state), Err(OpenError::InUse { .. })));
        drop(lock);
        remove_state_dir(&state).unwrap();
        assert!(!state.exists());
        fs::create_dir(&state).unwrap();
        fs::write(state.join("thesis.tex"), "x").unwrap();
        assert!(matches!(remove_state_dir(&state), Err(OpenError::NotOurs { .. })));
        assert!(state.join("thesis.tex").exists());
    }

    #[test]
    fn a_directory_of_other_files_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        let mode = fs::metadata(dir.path()).unwrap().permissions().mode();
        assert!(matches!(lock_state_dir(dir.path()), Err(OpenError::NotOurs { .. })));
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode(), mode);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
