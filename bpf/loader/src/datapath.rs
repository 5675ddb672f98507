//! The pin root: generations, links, and what to do with them at start.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError, MapInfo, SkStorage};
use aya::programs::ProgramInfo;
use storage_schema::map::{self, Affinity, Capacities, Enrolment, FLOW_FINGERPRINT, Peers, Stamp};

use crate::cgroup::Cgroup;
use crate::error::LoadError;
use crate::generation::Generation;
use crate::hook::{HOOKS, Hook, MESSAGES};
use crate::sys;

/// What sockets carry, what is remembered of clients, and who is managed: it outlives generations, while its layout is the same.
const FLOW: [(&str, u64); 7] = [
    (map::name::STAMPS, FLOW_FINGERPRINT),
    // What acts on its sockets reads their stamps.
    (map::name::WAYPOINT_SOCKETS, FLOW_FINGERPRINT),
    (map::name::PEERS, FLOW_FINGERPRINT),
    (map::name::AFFINITIES, Affinity::FINGERPRINT),
    (map::name::ENROLMENT, Enrolment::FINGERPRINT),
    (map::name::EXEMPT_CGROUPS, Enrolment::FINGERPRINT),
    (map::name::NAMESPACES, Enrolment::FINGERPRINT),
];

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
    /// Held open, so that a link whose pin somebody removes is not gone with it.
    links: HashMap<&'static str, OwnedFd>,
    /// Held open likewise, by their pins: what sockets carry outlives generations.
    flow: HashMap<PathBuf, OwnedFd>,
    /// What the active generation consists of, as it was when it was activated.
    objects: BTreeMap<PathBuf, Option<u32>>,
}

/// Something in the kernel that is not as this agent has left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A link's pin was removed; the link was pinned again.
    LinkUnpinned {
        /// The hook.
        hook: &'static str,
    },
    /// A link was detached, or belonged to another cgroup; the hook was attached again.
    LinkDetached {
        /// The hook.
        hook: &'static str,
    },
    /// A link ran another program; it runs the right one again.
    LinkReplaced {
        /// The hook.
        hook: &'static str,
    },
    /// What is written to connections to waypoints passed another program, or none; it passes the right one again.
    MessagesReplaced,
    /// A pinned map or program is gone, or is another one. A new generation puts that right.
    PinChanged {
        /// Where.
        path: PathBuf,
    },
}

impl Change {
    /// Whether a new generation is needed to put it right.
    pub const fn needs_generation(&self) -> bool {
        matches!(self, Self::PinChanged { .. })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LinkUnpinned { hook } => write!(f, "the pin of the link of {hook} was removed"),
            Self::LinkDetached { hook } => write!(f, "the link of {hook} was detached"),
            Self::LinkReplaced { hook } => write!(f, "the link of {hook} ran another program"),
            Self::MessagesReplaced => write!(f, "{} had another program or none", map::name::WAYPOINT_SOCKETS),
            Self::PinChanged { path } => write!(f, "the pin {} is gone or is another object", path.display()),
        }
    }
}

impl Datapath {
    /// Checks the cgroup and the pin root, and creates the latter (mode 0700) if it is not there.
    pub fn open(options: Options) -> Result<Self, LoadError> {
        let cgroup = Cgroup::open(&options.cgroup)?;
        let datapath = Self {
            pin_root: options.pin_root,
            cgroup,
            links: HashMap::new(),
            flow: HashMap::new(),
            objects: BTreeMap::new(),
        };
        datapath.create_folders()?;
        Ok(datapath)
    }

    fn create_folders(&self) -> Result<(), LoadError> {
        require_bpffs(&self.pin_root)?;
        for folder in [self.pin_root.clone(), self.links(), self.pin_root.join("flow")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .map_err(LoadError::io("create", folder.clone()))?;
        }
        for (pin, storage) in &self.flow {
            if !pin.exists() {
                sys::obj_pin(storage.as_fd(), pin).map_err(LoadError::bpf("BPF_OBJ_PIN", pin.display().to_string()))?;
            }
        }
        Ok(())
    }

    /// Complete generations, newest first, whose programs use what is pinned in `flow/`: what was removed there comes back with a
    /// new generation.
    pub fn complete_generations(&self) -> Result<Vec<Generation>, LoadError> {
        let mut generations = Generation::list(&self.pin_root)?;
        generations.retain(|generation| generation.is_complete() && uses_flow(generation, &self.pin_root));
        generations.reverse();
        Ok(generations)
    }

    /// Who is managed, as it is pinned; if it is not, everybody is.
    pub fn enrolment(&self) -> Result<crate::Enrolment, LoadError> {
        self.create_folders()?;
        crate::Enrolment::open(&flow_pins(&self.pin_root))
    }

    /// Creates a generation with empty maps. It is not attached, and not complete until its `control` entry says so.
    pub fn create_generation(&self, capacities: &Capacities) -> Result<Generation, LoadError> {
        self.create_folders()?;
        let newest = Generation::list(&self.pin_root)?.last().map_or(0, Generation::number);
        Generation::at(&self.pin_root, newest + 1).create(&flow_pins(&self.pin_root), capacities)
    }

    /// Makes every link run this generation's programs, then discards all other generations. What is as it should be is
    /// not touched. Returns how many links were made or changed.
    pub fn activate(&mut self, generation: &Generation) -> Result<usize, LoadError> {
        let mut changed = 0;
        self.attach_messages(generation)?;
        for hook in &HOOKS {
            changed += usize::from(self.link(hook, generation)?.is_some());
        }
        self.objects = generation.objects();
        let pins = flow_pins(&self.pin_root).into_iter().map(|(_, pin)| pin);
        self.flow = pins.filter_map(|pin| sys::obj_get(&pin).ok().map(|storage| (pin, storage))).collect();
        for other in Generation::list(&self.pin_root)? {
            if other != *generation {
                tracing::info!(generation = other.number(), "discarding a generation that is no longer attached");
                other.discard()?;
            }
        }
        Ok(changed)
    }

    /// Looks whether links and pins are as [`Datapath::activate`] left them. Links are put right at once; what else has
    /// changed needs a new generation.
    pub fn inspect(&mut self, generation: &Generation) -> Result<Vec<Change>, LoadError> {
        let now = generation.objects();
        let mut changes: Vec<Change> = self
            .objects
            .iter()
            .filter(|(path, id)| now.get(*path).copied().flatten() != **id)
            .map(|(path, _)| Change::PinChanged { path: path.clone() })
            .collect();
        if changes.is_empty() {
            self.create_folders()?;
            changes.extend(self.attach_messages(generation)?);
            for hook in &HOOKS {
                changes.extend(self.link(hook, generation)?);
            }
        }
        Ok(changes)
    }

    /// The stamp of a socket; `None` if it was not balanced.
    pub fn stamp(&self, socket: &impl AsRawFd) -> Result<Option<Stamp>, LoadError> {
        read_stamp(&stamps_path(&self.pin_root), socket)
    }

    /// The stamps of what an unconnected UDP socket has sent, in no order.
    pub fn peers(&self, socket: &impl AsRawFd) -> Result<Vec<Stamp>, LoadError> {
        let pin = flow_path(&self.pin_root, map::name::PEERS, FLOW_FINGERPRINT);
        let carried = read_storage(&pin, map::name::PEERS, socket)?;
        let stamps = carried.map_or([Stamp::default(); Peers::MAX], |PeersEntry(peers)| peers.stamps);
        Ok(stamps.into_iter().filter(|stamp| stamp.outcome != Stamp::NONE).collect())
    }

    /// Links `hook` to the generation's program: what had to be done, if anything.
    fn link(&mut self, hook: &Hook, generation: &Generation) -> Result<Option<Change>, LoadError> {
        let pin = self.links().join(hook.name);
        let hook_name = hook.name;
        let (program, program_id) = pinned_program(generation, hook.program)?;
        let pinned = pinned_link(&pin)?;
        let unpinned = pinned.is_none();
        if let Some(link) = pinned.or_else(|| self.links.remove(hook_name)) {
            let current = sys::cgroup_link(link.as_fd())
                .map_err(LoadError::bpf("BPF_OBJ_GET_INFO_BY_FD", pin.display().to_string()))?;
            if current.cgroup_id == self.cgroup.id {
                let mut change = None;
                if unpinned {
                    sys::obj_pin(link.as_fd(), &pin)
                        .map_err(LoadError::bpf("BPF_OBJ_PIN", pin.display().to_string()))?;
                    change = Some(Change::LinkUnpinned { hook: hook_name });
                }
                if current.program_id != program_id {
                    fail::fail_point!("loader.before_link");
                    sys::link_update(link.as_fd(), program.as_fd())
                        .map_err(LoadError::bpf("BPF_LINK_UPDATE", hook_name))?;
                    fail::fail_point!("loader.after_link");
                    change = Some(Change::LinkReplaced { hook: hook_name });
                }
                self.links.insert(hook_name, link);
                return Ok(change);
            }
            // It was detached, its cgroup is gone, or that is no longer the one to balance.
            if !unpinned {
                fs::remove_file(&pin).map_err(LoadError::io("remove", pin.clone()))?;
            }
        }
        fail::fail_point!("loader.before_link");
        let link = sys::link_create(program.as_fd(), self.cgroup.directory.as_fd(), hook.attach_type)
            .map_err(LoadError::bpf("BPF_LINK_CREATE", hook_name))?;
        sys::obj_pin(link.as_fd(), &pin).map_err(LoadError::bpf("BPF_OBJ_PIN", pin.display().to_string()))?;
        fail::fail_point!("loader.after_link");
        self.links.insert(hook_name, link);
        Ok(Some(Change::LinkDetached { hook: hook_name }))
    }

    /// Has what is written to connections to waypoints pass the generation's program, from those on that are established later.
    fn attach_messages(&self, generation: &Generation) -> Result<Option<Change>, LoadError> {
        let (program, program_id) = pinned_program(generation, MESSAGES)?;
        let pin = flow_path(&self.pin_root, map::name::WAYPOINT_SOCKETS, FLOW_FINGERPRINT);
        let sockets = sys::obj_get(&pin).map_err(LoadError::bpf("BPF_OBJ_GET", pin.display().to_string()))?;
        let attached = sys::message_program(sockets.as_fd())
            .map_err(LoadError::bpf("BPF_PROG_QUERY", pin.display().to_string()))?;
        if attached == Some(program_id) {
            return Ok(None);
        }
        sys::attach_message_program(sockets.as_fd(), program.as_fd())
            .map_err(LoadError::bpf("BPF_PROG_ATTACH", pin.display().to_string()))?;
        Ok(Some(Change::MessagesReplaced))
    }

    fn links(&self) -> PathBuf {
        self.pin_root.join("links")
    }
}

/// Where the sockets' stamps are pinned.
pub(crate) fn stamps_path(pin_root: &Path) -> PathBuf {
    flow_path(pin_root, map::name::STAMPS, FLOW_FINGERPRINT)
}

/// Whether a generation's programs use the very maps that are pinned in `flow/`.
pub fn uses_flow(generation: &Generation, pin_root: &Path) -> bool {
    let used = generation.used_maps();
    let pinned = |(_, pin): (&str, PathBuf)| MapInfo::from_pin(pin).ok().map(|info| info.id());
    flow_pins(pin_root).into_iter().map(pinned).all(|id| id.is_some_and(|id| used.contains(&id)))
}

/// The maps that outlive generations, and where they are pinned.
fn flow_pins(pin_root: &Path) -> [(&'static str, PathBuf); FLOW.len()] {
    FLOW.map(|(name, fingerprint)| (name, flow_path(pin_root, name, fingerprint)))
}

/// Where a map that outlives generations is pinned.
fn flow_path(pin_root: &Path, name: &str, fingerprint: u64) -> PathBuf {
    pin_root.join("flow").join(format!("{name}-{fingerprint:016x}"))
}

/// A socket's stamp in the storage that is pinned there.
pub(crate) fn read_stamp(stamps: &Path, socket: &impl AsRawFd) -> Result<Option<Stamp>, LoadError> {
    let carried = read_storage(stamps, map::name::STAMPS, socket)?;
    Ok(carried.map(|StampEntry(stamp)| stamp).filter(|stamp| stamp.outcome != Stamp::NONE))
}

/// What a socket carries in the storage that is pinned there; `None`: nothing.
fn read_storage<E: aya::Pod>(pin: &Path, name: &'static str, socket: &impl AsRawFd) -> Result<Option<E>, LoadError> {
    let data = MapData::from_pin(pin).map_err(LoadError::map(name))?;
    let storage: SkStorage<_, E> = SkStorage::try_from(Map::SkStorage(data)).map_err(LoadError::map(name))?;
    match storage.get(socket, 0) {
        Ok(carried) => Ok(Some(carried)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(LoadError::map(name)(error)),
    }
}

/// The generations under a pin root, oldest first, and the hooks that run each. Only reads; none if there is no pin root.
pub fn generations(pin_root: &Path) -> Result<Vec<(Generation, Vec<&'static str>)>, LoadError> {
    if !pin_root.exists() {
        return Ok(Vec::new());
    }
    require_bpffs(pin_root)?;
    let mut attached = HashMap::new();
    for hook in &HOOKS {
        let pin = pin_root.join("links").join(hook.name);
        if let Some(link) = pinned_link(&pin)? {
            let current = sys::cgroup_link(link.as_fd())
                .map_err(LoadError::bpf("BPF_OBJ_GET_INFO_BY_FD", pin.display().to_string()))?;
            if current.cgroup_id != 0 {
                attached.insert(hook.name, current.program_id);
            }
        }
    }
    let with_hooks = |generation: Generation| {
        let objects = generation.objects();
        let runs = |hook: &&Hook| {
            let program = objects.get(&generation.program(hook.program)).copied().flatten();
            program.is_some() && attached.get(hook.name).copied() == program
        };
        let hooks = HOOKS.iter().filter(runs).map(|hook| hook.name).collect();
        (generation, hooks)
    };
    Ok(Generation::list(pin_root)?.into_iter().map(with_hooks).collect())
}

/// A generation's program, and the kernel's number of it.
fn pinned_program(generation: &Generation, name: &'static str) -> Result<(OwnedFd, u32), LoadError> {
    let pin = generation.program(name);
    let program = sys::obj_get(&pin).map_err(LoadError::bpf("BPF_OBJ_GET", pin.display().to_string()))?;
    let id = ProgramInfo::from_pin(&pin).map_err(LoadError::program(name))?.id();
    Ok((program, id))
}

fn pinned_link(pin: &Path) -> Result<Option<OwnedFd>, LoadError> {
    match sys::obj_get(pin) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LoadError::bpf("BPF_OBJ_GET", pin.display().to_string())(error)),
    }
}

/// [`Stamp`] as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct StampEntry(Stamp);

// SAFETY: plain data without padding, which the ABI asserts.
unsafe impl aya::Pod for StampEntry {}

/// [`Peers`] as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct PeersEntry(Peers);

// SAFETY: as above.
unsafe impl aya::Pod for PeersEntry {}

/// Detaches and unpins everything under a pin root: connections stay, new ones are no longer balanced. Returns whether
/// there was anything.
pub fn uninstall(pin_root: &Path) -> Result<bool, LoadError> {
    if !pin_root.exists() {
        return Ok(false);
    }
    require_bpffs(pin_root)?;
    // Links go first, so that no program runs on maps that are half gone; of these, what leads to a backend before what serves
    // those that were led there.
    let links = pin_root.join("links");
    for hook in HOOKS.iter().rev() {
        let link = links.join(hook.name);
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(LoadError::io("remove", link)(error)),
            _ => {}
        }
    }
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
