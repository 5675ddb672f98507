//! The disk as the journal sees it: a small trait, the real one, and (feature `simulation`) a faulty twin.
//!
//! The trait is the list of everything the log relies on:
//! * `write_at` promises nothing until `sync_data` of the same file returns `Ok`;
//! * a 512-byte sector is written whole or not at all, sectors of one write in any order;
//! * `create`, `rename` and `remove` promise nothing until `sync_dir` of the directory returns `Ok`;
//! * an error from `sync_data` is final: what was written since the last good one may be lost, whatever a read shows.

mod real;
#[cfg(feature = "simulation")]
pub mod simulated;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

pub use real::RealDisk;

/// The unit that a disk writes atomically.
pub const SECTOR_BYTES: usize = 512;

/// A disk with directories.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Creates a file that must not be there yet, readable and writable by its owner alone.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// Opens a file for reading alone.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    /// The files in a directory, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Renames a file, replacing what is there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Unlinks a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Creates a directory (mode 0700) with its parents; one that is there is fine.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes the directory's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// An open file. All methods take `&self`: readers and the writer share it.
pub trait DiskFile: fmt::Debug + Send + Sync {
    /// Reads up to `buffer.len()` bytes; fewer at the end of the file.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `bytes`. After an error any part of them may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written so far durable, with the size that is needed to read it.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts or extends (with zeros) the file; durable after `sync_data`.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// The file's length.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Forgets what is cached, so that the next read shows what the disk really holds.
    fn drop_cache(&self) -> io::Result<()>;
}
