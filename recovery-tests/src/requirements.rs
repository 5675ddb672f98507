//! Whether this machine lets a test use the kernel.
//!
//! A test that needs the kernel is skipped where that is not possible, and says why; in CI (`CI=true`) it fails instead,
//! so that no green run has left out what matters.

use std::env;
use std::fs;
use std::path::PathBuf;

/// Capabilities that the agent and the sandbox need, with their numbers (linux/capability.h).
const CAPABILITIES: [(&str, u32); 4] =
    [("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Whether the kernel can be used. If not, prints why; fails if `CI` is `true`.
pub fn kernel_is_usable() -> bool {
    let Err(missing) = check_kernel() else { return true };
    assert!(
        env::var("CI").as_deref() != Ok("true"),
        "this test needs the kernel, and in CI nothing is skipped: {missing}"
    );
    eprintln!("skipped: this test needs the kernel: {missing}");
    false
}

/// What is missing to use the kernel, in words.
pub fn check_kernel() -> Result<(), String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .ok_or("/proc/self/status names no capabilities")?;
    let absent: Vec<&str> =
        CAPABILITIES.into_iter().filter(|(_, number)| effective & (1 << number) == 0).map(|(name, _)| name).collect();
    if !absent.is_empty() {
        return Err(format!("no {}: run as root", absent.join(", ")));
    }
    if !fs::exists("/sys/fs/bpf").unwrap_or_default() {
        return Err("there is no /sys/fs/bpf: the kernel has no BPF, or /sys is not mounted".to_owned());
    }
    cgroup2_mount().map(drop).ok_or_else(|| "no cgroup v2 file system is mounted".to_owned())
}

/// Where cgroup v2 is mounted, on unified hosts and on hybrid ones.
pub(crate) fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        // "36 35 98:0 /root /mount/point options ... - type source options", proc_pid_mountinfo(5).
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some("cgroup2")).then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}
