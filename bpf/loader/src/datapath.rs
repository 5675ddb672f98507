//! The pin root: generations, links, and what to do with them at start.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError, SkStorage};
use aya::programs::CgroupAttachMode;
use aya::programs::cgroup_sock_addr::CgroupSockAddr;
use aya::programs::links::FdLink;
use storage_schema::map::{self, Capacities, FLOW_FINGERPRINT, Stamp};

use crate::cgroup::Cgroup;
use crate::error::LoadError;
use crate::generation::Generation;
use crate::hook::{HOOKS, Hook};
use crate::sys;

/// What the kernel's side needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A directory on a BPF file system; created if it is not there.
    pub pin_root: PathBuf,
    /// The cgroup v2 directory whose processes are balanced.
    pub cgroup: PathBuf,
}

/// An open pin root.
#[derive(Debug)]
pub struct Datapath {
    pin_root: PathBuf,
    cgroup: Cgroup,
}

impl Datapath {
    /// Checks the cgroup and the pin root, and creates the latter (mode 0700) if it is not there.
    pub fn open(options: Options) -> Result<Self, LoadError> {
        let cgroup = Cgroup::open(&options.cgroup)?;
        require_bpffs(&options.pin_root)?;
        let datapath = Self { pin_root: options.pin_root, cgroup };
        for folder in [datapath.pin_root.clone(), datapath.links(), datapath.pin_root.join("flow")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(LoadError::io("create", folder.clone()))?;
        }
        Ok(datapath)
    }

    /// Complete generations, newest first.
    pub fn complete_generations(&self) -> Result<Vec<Generation>, LoadError> {
        let mut generations = Generation::list(&self.pin_root)?;
        generations.retain(Generation::is_complete);
        generations.reverse();
        Ok(generations)
    }

    /// Creates a generation with empty maps. It is not attached, and not complete until its `control` entry says so.
    pub fn create_generation(&self, capacities: &Capacities) -> Result<Generation, LoadError> {
        let newest = Generation::list(&self.pin_root)?.last().map_or(0, Generation::number);
        Generation::at(&self.pin_root, newest + 1).create(&self.stamps_path(), capacities)
    }

    /// Makes every link run this generation's programs, then discards all other generations. What is as it should be is
    /// not touched. Returns how many links were made or changed.
    pub fn activate(&self, generation: &Generation) -> Result<usize, LoadError> {
        let mut changed = 0;
        for hook in &HOOKS {
            changed += usize::from(self.link(hook, generation)?);
        }
        for other in Generation::list(&self.pin_root)? {
            if other != *generation {
                tracing::info!(generation = other.number(), "discarding a generation that is no longer attached");
                other.discard()?;
            }
        }
        Ok(changed)
    }

    /// The stamp of a socket; `None` if it was not balanced.
    pub fn stamp(&self, socket: &impl AsRawFd) -> Result<Option<Stamp>, LoadError> {
        let failed = || LoadError::map(map::name::STAMPS);
        let data = MapData::from_pin(self.stamps_path()).map_err(failed())?;
        let stamps: SkStorage<_, StampEntry> = SkStorage::try_from(Map::SkStorage(data)).map_err(failed())?;
        match stamps.get(socket, 0) {
            Ok(StampEntry(stamp)) => Ok(Some(stamp).filter(|stamp| stamp.outcome != Stamp::NONE)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed()(error)),
        }
    }

    /// Links `hook` to the generation's program: whether anything had to be done.
    fn link(&self, hook: &Hook, generation: &Generation) -> Result<bool, LoadError> {
        let pin = self.links().join(hook.name);
        let program = CgroupSockAddr::from_pin(generation.program(hook), hook.attach_type)
            .map_err(LoadError::program(hook.program))?;
        let program_id = program.info().map_err(LoadError::program(hook.program))?.id();
        if pin.exists() {
            let link = sys::obj_get(&pin).map_err(LoadError::bpf("BPF_OBJ_GET", pin.display().to_string()))?;
            let current = sys::cgroup_link(link.as_fd())
                .map_err(LoadError::bpf("BPF_OBJ_GET_INFO_BY_FD", pin.display().to_string()))?;
            if current.cgroup_id == self.cgroup.id {
                if current.program_id == program_id {
                    return Ok(false);
                }
                fail::fail_point!("loader.before_link");
                let program = program.fd().map_err(LoadError::program(hook.program))?;
                sys::link_update(link.as_fd(), program.as_fd())
                    .map_err(LoadError::bpf("BPF_LINK_UPDATE", hook.name))?;
                fail::fail_point!("loader.after_link");
                return Ok(true);
            }
            // It belongs to a cgroup that is gone, or that is no longer the one to balance.
            fs::remove_file(&pin).map_err(LoadError::io("remove", pin.clone()))?;
        }
        fail::fail_point!("loader.before_link");
        self.attach(hook, program)?.pin(&pin).map_err(LoadError::pin(pin))?;
        fail::fail_point!("loader.after_link");
        Ok(true)
    }

    fn attach(&self, hook: &Hook, mut program: CgroupSockAddr) -> Result<FdLink, LoadError> {
        let id = program
            .attach(&self.cgroup.directory, CgroupAttachMode::Single)
            .map_err(LoadError::program(hook.program))?;
        let link = program.take_link(id).map_err(LoadError::program(hook.program))?;
        FdLink::try_from(link)
            .map_err(|source| LoadError::Link { path: self.links().join(hook.name), source: Box::new(source) })
    }

    fn links(&self) -> PathBuf {
        self.pin_root.join("links")
    }

    fn stamps_path(&self) -> PathBuf {
        self.pin_root.join("flow").join(format!("stamps-{FLOW_FINGERPRINT:016x}"))
    }
}

/// [`Stamp`] as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct StampEntry(Stamp);

// SAFETY: plain data without padding, which the ABI asserts.
unsafe impl aya::Pod for StampEntry {}

/// Detaches and unpins everything under a pin root: connections stay, new ones are no longer balanced. Returns whether
/// there was anything.
pub fn uninstall(pin_root: &Path) -> Result<bool, LoadError> {
    if !pin_root.exists() {
        return Ok(false);
    }
    require_bpffs(pin_root)?;
    // Links go first, so that no program runs on maps that are half gone.
    let links = pin_root.join("links");
    if links.exists() {
        fs::remove_dir_all(&links).map_err(LoadError::io("remove", links.clone()))?;
    }
    fs::remove_dir_all(pin_root).map_err(LoadError::io("remove", pin_root))?;
    Ok(true)
}

fn require_bpffs(pin_root: &Path) -> Result<(), LoadError> {
    /// `BPF_FS_MAGIC` of linux/magic.h.
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let existing = pin_root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let file_system = rustix::fs::statfs(existing).map_err(|errno| LoadError::io("examine", existing)(errno.into()))?;
    if file_system.f_type == BPF_FS_MAGIC { Ok(()) } else { Err(LoadError::NotBpffs { path: existing.to_path_buf() }) }
}
