//! A place of the bench's own: a BPF file system in a mount namespace, whose pins vanish with the last process, and a cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

const BPF_FS: &str = "/sys/fs/bpf";

/// Names of cgroups: this and the bench's process id.
const CGROUP_PREFIX: &str = "holdfast-bench-";

/// The place. Its cgroup is removed on drop; one that a killed bench left behind, by the next bench.
#[derive(Debug)]
pub(crate) struct Place {
    cgroup: PathBuf,
}

impl Place {
    /// Moves this process into a mount namespace of its own. To be called before threads are started.
    pub(crate) fn enter() -> io::Result<Self> {
        let mount_point = cgroup2_mount().ok_or_else(|| io::Error::other("no cgroup v2 file system is mounted"))?;
        remove_abandoned(&mount_point)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Else mounts would show in the namespace that we come from.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("bpf", BPF_FS, "bpf", MountFlags::empty(), c"mode=700")?;
        let cgroup = mount_point.join(format!("{CGROUP_PREFIX}{}", std::process::id()));
        fs::create_dir(&cgroup)?;
        Ok(Self { cgroup })
    }

    /// Where programs are attached. Nothing runs in this cgroup.
    pub(crate) fn options(&self) -> loader::Options {
        loader::Options { pin_root: Path::new(BPF_FS).join("holdfast"), cgroup: self.cgroup.clone() }
    }

    /// Removes all pins, as a reboot does.
    pub(crate) fn clear(&self) {
        loader::uninstall(&self.options().pin_root).expect("pins can be removed");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
        if let Err(error) = fs::remove_dir(&self.cgroup) {
            eprintln!("cannot remove {}: {error}", self.cgroup.display());
        }
    }
}

fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        // "36 35 98:0 /root /mount/point options ... - type source options", proc_pid_mountinfo(5).
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("cgroup2")).then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn remove_abandoned(mount_point: &Path) -> io::Result<()> {
    for entry in fs::read_dir(mount_point)? {
        let name = entry?.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(CGROUP_PREFIX));
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another bench may be doing the same.
            let _ = fs::remove_dir(mount_point.join(name));
        }
    }
    Ok(())
}
