//! What is mounted where, from `/proc/self/mountinfo` (format: `proc_pid_mountinfo(5)`).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::HostError;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which directory of its file system is mounted there.
    pub root: PathBuf,
    /// The type of its file system.
    pub file_system: String,
}

/// All mounts, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// The mounts that this process sees.
    pub fn read() -> Result<Self, HostError> {
        let text = fs::read("/proc/self/mountinfo").map_err(|source| HostError::MountInfo { source })?;
        Ok(Self::parse(&text))
    }

    /// Reads the kernel's table. Lines that cannot be read are left out: they are of no use to anybody here.
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
    }

    /// The mount point of the cgroup v2 hierarchy. A mount of its root is preferred to one of a part of it.
    pub fn cgroup2_root(&self) -> Option<&Path> {
        let cgroup2 = || self.0.iter().filter(|mount| mount.file_system == "cgroup2");
        let whole = cgroup2().find(|mount| mount.root == Path::new("/"));
        whole.or_else(|| cgroup2().next()).map(|mount| mount.point.as_path())
    }

    /// Whether there are cgroup v1 hierarchies beside.
    pub fn has_cgroup1(&self) -> bool {
        self.0.iter().any(|mount| mount.file_system == "cgroup")
    }

    /// Whether a path, or the nearest directory above it that is a mount point, is on a BPF file system.
    pub fn is_bpffs(&self, path: &Path) -> bool {
        self.holding(path).is_some_and(|mount| mount.file_system == "bpf")
    }

    /// Whether a path is on a cgroup v2 file system.
    pub fn is_cgroup2(&self, path: &Path) -> bool {
        self.holding(path).is_some_and(|mount| mount.file_system == "cgroup2")
    }

    /// The mount that a path is on: the one with the longest matching mount point, and of two the later one.
    fn holding(&self, path: &Path) -> Option<&Mount> {
        self.0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.components().count())
    }
}

/// `36 35 98:0 /root /point options optional... - type source options`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let point = unescape(fields.next()?);
    let file_system = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { point, root, file_system: String::from_utf8_lossy(file_system).into_owned() })
}

/// Space, tab, newline and backslash are written as three octal digits after a backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            let value = digits.iter().try_fold(0u32, |value, digit| Some(value * 8 + char::from(*digit).to_digit(8)?));
            value.and_then(|value| u8::try_from(value).ok())
        });
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"\
        22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 22 0:27 / /sys rw - sysfs sysfs rw\n\
        31 30 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
        50 22 0:40 / /mnt/with\\040space rw master:3 propagate_from:2 - bpf none rw\n";

    #[test]
    fn cgroup2_is_found_on_hybrid_hosts() {
        let mounts = MountTable::parse(HYBRID);
        assert_eq!(mounts.cgroup2_root(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert!(mounts.has_cgroup1());
        assert!(mounts.is_cgroup2(Path::new("/sys/fs/cgroup/unified/demo")));
        assert!(!mounts.is_cgroup2(Path::new("/sys/fs/cgroup/cpu")));
    }

    #[test]
    fn cgroup2_is_found_on_unified_hosts_and_a_whole_one_is_preferred() {
        let mounts = MountTable::parse(
            b"35 30 0:29 /kubepods /run/part rw - cgroup2 cgroup2 rw\n36 30 0:29 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(mounts.cgroup2_root(), Some(Path::new("/sys/fs/cgroup")));
        assert!(!mounts.has_cgroup1());
    }

    #[test]
    fn a_host_without_cgroup2_says_so() {
        let mounts = MountTable::parse(b"32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n");
        assert!(matches!(super::super::cgroup(None, &mounts), Err(HostError::NoCgroup2)));
        let named = super::super::cgroup(Some(Path::new("/proc")), &mounts);
        assert!(matches!(named, Err(HostError::NotCgroup2 { .. })));
    }

    #[test]
    fn mount_points_are_unescaped_and_nested_mounts_told_apart() {
        let mounts = MountTable::parse(HYBRID);
        assert!(mounts.is_bpffs(Path::new("/mnt/with space/holdfast")));
        assert!(!mounts.is_bpffs(Path::new("/mnt/with spaces")));
        assert!(!mounts.is_bpffs(Path::new("/sys/fs/bpf/holdfast")));
    }

    #[test]
    fn lines_that_make_no_sense_are_left_out() {
        assert_eq!(MountTable::parse(b"\n1 2\n1 2 3 / /x\n\\\n1 2 3 / \\9 rw - \n").0.len(), 1);
    }

    #[test]
    fn bpffs_is_not_mounted_in_surprising_places() {
        let error =
            super::super::ensure_bpffs(Path::new("/srv/pins/holdfast"), &MountTable::parse(HYBRID)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/srv/pins/holdfast is not on a BPF file system: mount one with `mount -t bpf bpf /srv/pins`"
        );
    }
}
