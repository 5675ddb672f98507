//! A place of its own for each test: network, BPF file system, cgroup, directory.
//!
//! The thread that opens a sandbox moves into new network and mount namespaces, and so do the threads and processes
//! that it starts afterwards. The BPF file system in there is private: pins vanish with the last process, also when the
//! test itself was killed. The cgroup is removed on drop, after whatever still runs in it has been killed.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::requirements::cgroup2_mount;

/// Every address in here is this machine's, inside a sandbox; `127.0.0.0/8` is as well.
pub const LOCAL_NET_V6: &str = "fd00:a::/64";

const BPF_FS: &str = "/sys/fs/bpf";

/// Names of cgroups: this, the test's process id, and a number.
const CGROUP_PREFIX: &str = "holdfast-test-";

/// A test's own place. Open it before starting threads or processes that are to live in it.
#[derive(Debug)]
pub struct Sandbox {
    directory: TempDir,
    cgroup: Option<Cgroup>,
}

impl Sandbox {
    /// A sandbox for agents with a kernel datapath. The calling thread moves into it for good.
    ///
    /// # Panics
    /// If the machine does not allow it; see [`crate::requirements`].
    pub fn enter() -> Self {
        let cgroup = Cgroup::create().expect("a cgroup can be created where cgroup v2 is mounted");
        let sandbox = Self { directory: temporary_directory(), cgroup: Some(cgroup) };
        enter_namespaces().expect("root may make namespaces");
        configure_loopback(&[]).expect("`ip` sets up a new network namespace");
        sandbox
    }

    /// A directory and nothing else, for agents with tables in memory. Needs no privilege.
    pub fn plain() -> Self {
        Self { directory: temporary_directory(), cgroup: None }
    }

    /// A directory on disk for whatever the test wants to keep.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Where agents keep their journal.
    pub fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    /// Where agents listen.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("holdfast.sock")
    }

    /// Where agents pin their maps.
    pub fn pin_root(&self) -> PathBuf {
        Path::new(BPF_FS).join("holdfast")
    }

    /// The cgroup whose processes are balanced; `None` in a plain sandbox.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(|cgroup| cgroup.path.as_path())
    }

    /// A command that runs in the cgroup: its connections are balanced.
    pub fn command_in_cgroup(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let Some(cgroup) = &self.cgroup else { return Command::new(program) };
        let mut command = Command::new("/bin/sh");
        // The shell moves itself and becomes the program, which so never runs anywhere else.
        command.args(["-c", r#"echo 0 > "$0" && exec "$@""#]).arg(cgroup.path.join("cgroup.procs")).arg(program);
        command
    }

    /// Gives the loopback device more addresses, in `ip`'s notation, for servers that bind to one of their own.
    pub fn add_addresses<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        configure_loopback(&addresses.into_iter().collect::<Vec<_>>())
    }
}

/// Moves the calling thread into a network namespace of its own, for good. It is gone with its last thread and socket.
///
/// # Panics
/// If the machine does not allow it.
pub fn enter_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may make namespaces");
    configure_loopback(&[]).expect("`ip` sets up a new network namespace");
}

fn temporary_directory() -> TempDir {
    tempfile::Builder::new().prefix("holdfast-test-").tempdir().expect("a temporary directory can be created")
}

fn enter_namespaces() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)?;
    // Else mounts would show in the namespace that we come from.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(mount("bpf", BPF_FS, "bpf", MountFlags::empty(), c"mode=700")?)
}

fn configure_loopback(addresses: &[&str]) -> io::Result<()> {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    let mut commands = format!("link set lo up\nroute replace local {LOCAL_NET_V6} dev lo\n");
    for address in addresses {
        commands.extend(["address replace ", address, " dev lo\n"]);
    }
    ip.stdin.take().expect("it is piped").write_all(commands.as_bytes())?;
    let status = ip.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip ended with {status}"))) }
}

/// A cgroup v2 directory, emptied and removed on drop.
#[derive(Debug)]
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn create() -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mount = cgroup2_mount().ok_or_else(|| io::Error::other("no cgroup v2 file system is mounted"))?;
        remove_abandoned(&mount)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("{CGROUP_PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path })
    }
}

/// Removes a cgroup, with those in it, and kills what runs there: nothing but what the sandbox was asked to start.
fn remove(cgroup: &Path) -> io::Result<()> {
    for line in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
        if let Some(pid) = line.parse().ok().and_then(Pid::from_raw) {
            // It may have ended by itself by now.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}

/// Removes empty cgroups of tests that were killed, and could not do it themselves.
fn remove_abandoned(mount: &Path) -> io::Result<()> {
    for entry in fs::read_dir(mount)? {
        let name = entry?.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(CGROUP_PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test may be doing the same.
            let _ = fs::remove_dir(mount.join(name));
        }
    }
    Ok(())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = remove(&self.path) {
            if Instant::now() > deadline {
                eprintln!("cannot remove {}: {error}", self.path.display());
                return;
            }
            // A killed process leaves its cgroup a moment later.
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A child process that is killed when it is dropped.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail when it has ended and been waited for, which is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
