//! The cgroup whose processes are balanced.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::LoadError;

/// An open cgroup v2 directory.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) directory: File,
    /// The number by which the kernel names it in a link's information: its inode number.
    pub(crate) id: u64,
}

impl Cgroup {
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        /// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
        const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
        let directory = File::open(path).map_err(LoadError::io("open the cgroup", path))?;
        let file_system =
            rustix::fs::fstatfs(&directory).map_err(|errno| LoadError::io("examine the cgroup", path)(errno.into()))?;
        if file_system.f_type != CGROUP2_SUPER_MAGIC {
            return Err(LoadError::NotCgroup2 { path: path.to_path_buf() });
        }
        let id = directory.metadata().map_err(LoadError::io("examine the cgroup", path))?.ino();
        Ok(Self { directory, id })
    }
}
