//! This machine: its mounts, its privileges, its kernel. The only place that looks at them.

mod checks;
mod mounts;
pub(crate) mod process;

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

pub use checks::{Check, Outcome, examine};
pub use mounts::{Mount, MountTable};

/// Where a BPF file system is mounted by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// What this machine does not give the agent.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The process may not use the kernel datapath.
    #[error(
        "the kernel datapath needs {}: run as root, give the agent these capabilities, or use --datapath memory",
        lacking.join(", ")
    )]
    Privileges {
        /// The capabilities that it lacks.
        lacking: Vec<&'static str>,
    },
    /// The configured cgroup is none.
    #[error("{} is not a directory of a cgroup v2 file system: name one with --cgroup", path.display())]
    NotCgroup2 {
        /// What was given.
        path: PathBuf,
    },
    /// There is no cgroup v2 mount.
    #[error(
        "there is no cgroup v2 mount: mount one with `mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 \
         /sys/fs/cgroup/unified`, or name a cgroup with --cgroup"
    )]
    NoCgroup2,
    /// The pin root is on another file system, at a place where mounting one would be a surprise.
    #[error("{} is not on a BPF file system: mount one with `mount -t bpf bpf {}`", pin_root.display(), parent.display())]
    NotBpffs {
        /// The pin root.
        pin_root: PathBuf,
        /// Where to mount.
        parent: PathBuf,
    },
    /// The BPF file system could not be mounted.
    #[error("cannot mount a BPF file system on {BPFFS}: {source}; as root: `mount -t bpf bpf {BPFFS}`")]
    Mount {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The mounts cannot be read.
    #[error("cannot read /proc/self/mountinfo: {source}")]
    MountInfo {
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Refuses a process that may not use the kernel datapath, before anything is created for it.
pub fn require_privileges() -> Result<(), HostError> {
    match checks::lacking_here() {
        Some(lacking) if !lacking.is_empty() => Err(HostError::Privileges { lacking }),
        _ => Ok(()),
    }
}

/// The cgroup whose processes are balanced: the configured one, or the root of the cgroup v2 mount.
pub fn cgroup(configured: Option<&Path>, mounts: &MountTable) -> Result<PathBuf, HostError> {
    match configured {
        Some(cgroup) if mounts.is_cgroup2(cgroup) && cgroup.is_dir() => Ok(cgroup.to_owned()),
        Some(cgroup) => Err(HostError::NotCgroup2 { path: cgroup.to_owned() }),
        None => mounts.cgroup2_root().map(Path::to_owned).ok_or(HostError::NoCgroup2),
    }
}

/// Makes sure that the pin root is on a BPF file system, mounting one on [`BPFFS`] if that is all that is missing.
/// Returns whether it did.
pub fn ensure_bpffs(pin_root: &Path, mounts: &MountTable) -> Result<bool, HostError> {
    if mounts.is_bpffs(pin_root) {
        return Ok(false);
    }
    if !pin_root.starts_with(BPFFS) {
        let parent = pin_root.parent().unwrap_or(pin_root).to_owned();
        return Err(HostError::NotBpffs { pin_root: pin_root.to_owned(), parent });
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    match rustix::mount::mount("bpf", BPFFS, "bpf", flags, c"mode=700") {
        Ok(()) => Ok(true),
        Err(errno) => Err(HostError::Mount { source: errno.into() }),
    }
}
