//! What the agent needs of this machine, looked at one by one: what is there, what is missing, how to get it.
//!
//! Nothing is changed, with one exception that is undone at once: whether the BPF programs load is found out by loading
//! them, without attaching them, under a pin root of its own.

use std::fs;
use std::path::{Path, PathBuf};

use loader::{Datapath as Loader, Options};
use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};
use storage_schema::map::Capacities;

use super::{BPFFS, HostError, MountTable, cgroup};
use crate::cli::Datapath;
use crate::config::Config;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// How to get what is missing; empty if nothing is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// How a thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, but could be better, or the agent will put it right itself.
    Warning,
    /// The agent cannot start.
    Missing,
}

/// The oldest kernel whose features are enough.
const KERNEL_MIN: (u32, u32) = (5, 15);

/// Looks at everything that the agent needs with these settings.
pub fn examine(config: &Config) -> Vec<Check> {
    let mut checks = Vec::new();
    if config.datapath == Datapath::Kernel {
        let mounts = MountTable::read().unwrap_or_default();
        let bpffs = bpffs(&config.pin_root, &mounts);
        let cgroup = cgroup_v2(config, &mounts);
        let capabilities = capabilities();
        let can_try = [&bpffs, &cgroup, &capabilities].iter().all(|check| check.outcome == Outcome::Ok);
        let programs = if can_try { programs(config, &mounts) } else { untried_programs() };
        checks.extend([kernel(), btf(), capabilities, memlock(), cgroup, bpffs, programs]);
        checks.push(directory("pin root", &config.pin_root));
    }
    checks.push(directory("state directory", &config.state_dir));
    if let Some(parent) = config.socket.parent() {
        checks.push(directory("socket directory", parent));
    }
    checks.push(agent(&config.socket));
    checks
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, outcome: Outcome::Ok, found: found.into(), remedy: String::new() }
}

fn warning(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, outcome: Outcome::Warning, found: found.into(), remedy: remedy.into() }
}

fn missing(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, outcome: Outcome::Missing, found: found.into(), remedy: remedy.into() }
}

fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let (major, minor) = KERNEL_MIN;
    match version(&release) {
        Some(version) if version < KERNEL_MIN => {
            missing("kernel", release, format!("use Linux {major}.{minor} or newer"))
        }
        _ => ok("kernel", release),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn btf() -> Check {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(BTF).exists() {
        ok("kernel BTF", BTF)
    } else {
        missing("kernel BTF", format!("no {BTF}"), "use a kernel built with CONFIG_DEBUG_INFO_BTF=y")
    }
}

/// Numbers of linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

/// The capabilities that the kernel datapath needs and this process lacks; `None` if that cannot be told.
pub(super) fn lacking_here() -> Option<Vec<&'static str>> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    Some(lacking_capabilities(u64::from_str_radix(effective.trim(), 16).ok()?))
}

fn capabilities() -> Check {
    let Some(lacking) = lacking_here() else {
        return warning("privileges", "cannot be read from /proc/self/status", "mount /proc");
    };
    if lacking.is_empty() {
        ok("privileges", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON")
    } else {
        missing(
            "privileges",
            format!("no {}", lacking.join(", ")),
            "run as root, or give the agent these capabilities (AmbientCapabilities= in a systemd unit)",
        )
    }
}

fn lacking_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    [("CAP_BPF", CAP_BPF, true), ("CAP_NET_ADMIN", CAP_NET_ADMIN, false), ("CAP_PERFMON", CAP_PERFMON, true)]
        .into_iter()
        .filter(|(_, capability, of_sys_admin)| !has(*capability) && (!*of_sys_admin || !has(CAP_SYS_ADMIN)))
        .map(|(name, _, _)| name)
        .collect()
}

fn memlock() -> Check {
    const NAME: &str = "locked memory";
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    // Since 5.11 BPF memory is charged to the memory cgroup and this limit means nothing to it.
    if version(&release).is_none_or(|version| version >= (5, 11)) {
        return ok(NAME, "charged to the memory cgroup");
    }
    match getrlimit(Resource::Memlock).current {
        None => ok(NAME, "unlimited"),
        Some(bytes) => missing(NAME, format!("{bytes} bytes"), "`ulimit -l unlimited`, or LimitMEMLOCK=infinity"),
    }
}

fn cgroup_v2(config: &Config, mounts: &MountTable) -> Check {
    const NAME: &str = "cgroup v2";
    let Some(path) = config.cgroup.as_deref().or(mounts.cgroup2_root()) else {
        return missing(NAME, "not mounted", HostError::NoCgroup2.to_string());
    };
    let hierarchy = if mounts.has_cgroup1() { "hybrid" } else { "unified" };
    if !path.is_dir() {
        return missing(NAME, format!("{} is not there", path.display()), format!("mkdir {}", path.display()));
    }
    if !mounts.is_cgroup2(path) {
        let root = mounts.cgroup2_root().map_or("nowhere".to_owned(), |root| root.display().to_string());
        return missing(
            NAME,
            format!("{} is on another file system", path.display()),
            format!("name a directory of the cgroup v2 hierarchy (mounted on {root}) with --cgroup"),
        );
    }
    ok(NAME, format!("{} ({hierarchy})", path.display()))
}

fn bpffs(pin_root: &Path, mounts: &MountTable) -> Check {
    const NAME: &str = "BPF file system";
    if mounts.is_bpffs(pin_root) {
        return ok(NAME, format!("mounted above {}", pin_root.display()));
    }
    if pin_root.starts_with(BPFFS) && Path::new(BPFFS).is_dir() {
        return warning(
            NAME,
            format!("not mounted on {BPFFS}"),
            format!("the agent mounts it if it may (CAP_SYS_ADMIN); by hand: `mount -t bpf bpf {BPFFS}`"),
        );
    }
    let parent = pin_root.parent().unwrap_or(pin_root).display().to_string();
    missing(NAME, format!("{} is on another file system", pin_root.display()), format!("`mount -t bpf bpf {parent}`"))
}

const PROGRAMS: &str = "BPF programs";

fn untried_programs() -> Check {
    warning(PROGRAMS, "not tried", "put right what is above, then run this again")
}

/// Loads the programs and removes them again.
fn programs(config: &Config, mounts: &MountTable) -> Check {
    let Ok(cgroup) = cgroup(config.cgroup.as_deref(), mounts) else {
        return missing(PROGRAMS, "no cgroup", "see above");
    };
    let pin_root = PathBuf::from(format!("{}-doctor-{}", config.pin_root.display(), std::process::id()));
    let capacities = Capacities { frontends: 64, services: 64, backends: 64, endpoints: 64 };
    let loaded = Loader::open(Options { pin_root: pin_root.clone(), cgroup })
        .and_then(|datapath| datapath.create_generation(&capacities).map(drop));
    let removed = loader::uninstall(&pin_root);
    match (loaded, removed) {
        (Ok(()), Ok(_)) => ok(PROGRAMS, "the kernel's verifier accepts them"),
        (Err(error), _) => {
            missing(PROGRAMS, error.to_string().replace('\n', " "), "see the checks above, or use a newer kernel")
        }
        (Ok(()), Err(error)) => warning(PROGRAMS, error.to_string(), format!("remove {}", pin_root.display())),
    }
}

fn directory(name: &'static str, path: &Path) -> Check {
    let shown = path.display();
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !existing.is_dir() {
        return missing(name, format!("{} is not a directory", existing.display()), "choose another path");
    }
    if rustix::fs::access(existing, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return missing(
            name,
            format!("{} is not writable", existing.display()),
            "run as root, or choose a directory that is yours",
        );
    }
    let state = if existing == path { "writable" } else { "will be created" };
    ok(name, format!("{shown}: {state}"))
}

fn agent(socket: &Path) -> Check {
    const NAME: &str = "agent";
    match api::socket::is_listening(socket) {
        Ok(true) => ok(NAME, format!("running, on {}", socket.display())),
        Ok(false) => ok(NAME, "not running"),
        Err(error) => warning(NAME, format!("{}: {error}", socket.display()), "run as the agent's user"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.18.5-cloud-amd64"), Some((6, 18)));
        assert_eq!(version("5.4.0"), Some((5, 4)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn sys_admin_stands_for_what_was_once_a_part_of_it() {
        assert_eq!(lacking_capabilities(0), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        assert_eq!(lacking_capabilities(1 << CAP_SYS_ADMIN), ["CAP_NET_ADMIN"]);
        let three = (1 << CAP_BPF) | (1 << CAP_NET_ADMIN) | (1 << CAP_PERFMON);
        assert!(lacking_capabilities(three).is_empty());
    }

    #[test]
    fn a_directory_below_a_file_is_missing() {
        assert_eq!(directory("state directory", Path::new("/proc/version/state")).outcome, Outcome::Missing);
    }
}
