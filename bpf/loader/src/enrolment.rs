//! Who is managed: the rules that the programs go by, and the network namespaces that are enrolled.
//!
//! By default everybody in the cgroup is. By namespace only those in enrolled network namespaces are. Whoever is in an exempt cgroup
//! never is: that is how what dials services on behalf of others, a proxy, is kept from being sent to itself.
//!
//! What is set here is pinned, and holds without the agent.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use rustix::net::{AddressFamily, SocketType};
use storage_schema::map::{self, EnrolledNamespace, name};

use crate::OBJECT;
use crate::cgroup::Cgroup;
use crate::error::LoadError;
use crate::{namespace, sys};

/// `BPF_NOEXIST` of linux/bpf.h.
const NOEXIST: u64 = 1;

/// Who is to be managed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Only processes in enrolled network namespaces are; else every one in the cgroup.
    pub by_namespace: bool,
    /// Root may enrol a namespace by a connection within it, as CNI plugins do ([`map::Enrolment::CALL_ADDRESS`]).
    pub by_call: bool,
    /// Cgroup v2 directories whose processes, at whatever depth, are not; up to [`map::Enrolment::EXEMPT_MAX`].
    pub exempt: Vec<PathBuf>,
}

/// A network namespace that is enrolled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Its cookie, which no other has before the next boot.
    pub cookie: u64,
    /// Its inode number; `None`: it was enrolled by a call.
    pub inode: Option<u32>,
    /// `CLOCK_BOOTTIME` when it was enrolled, nanoseconds.
    pub since_ns: u64,
}

/// Why a namespace was not enrolled or let go.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// It cannot be opened.
    #[error("cannot open the network namespace {path}: {source}", path = path.display())]
    Open {
        /// What was given.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is something else, or may not be entered.
    #[error("cannot enter {path}, which must be a network namespace (CAP_SYS_ADMIN): {source}", path = path.display())]
    Enter {
        /// What was given.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is no room.
    #[error(
        "{} network namespaces are enrolled, and more are not possible: let some go",
        map::Enrolment::NAMESPACES_MAX
    )]
    Full,
    /// The map cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// [`map::Enrolment`] as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct EnrolmentEntry(map::Enrolment);

// SAFETY: plain data without padding, which the ABI asserts.
unsafe impl aya::Pod for EnrolmentEntry {}

/// [`EnrolledNamespace`] as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct NamespaceEntry(EnrolledNamespace);

// SAFETY: as above.
unsafe impl aya::Pod for NamespaceEntry {}

/// The pinned maps.
pub struct Enrolment {
    rules: Array<MapData, EnrolmentEntry>,
    exempt: HashMap<MapData, u64, u32>,
    namespaces: HashMap<MapData, u64, NamespaceEntry>,
}

impl Enrolment {
    /// Opens the maps among these pins, and makes all that are not there.
    pub(crate) fn open(pins: &[(&'static str, PathBuf)]) -> Result<Self, LoadError> {
        if pins.iter().any(|(_, pin)| !pin.exists()) {
            let mut settings = EbpfLoader::new();
            for (name, pin) in pins {
                settings.map_pin_path(name, pin);
            }
            settings.load(OBJECT).map_err(LoadError::object)?;
        }
        let pinned = |wanted: &'static str| {
            let pin = pins.iter().find(|(name, _)| *name == wanted).ok_or(LoadError::Incomplete { what: wanted })?;
            MapData::from_pin(&pin.1).map_err(LoadError::map(wanted))
        };
        let (rules, exempt, namespaces) =
            (pinned(name::ENROLMENT)?, pinned(name::EXEMPT_CGROUPS)?, pinned(name::NAMESPACES)?);
        Ok(Self {
            rules: Array::try_from(Map::Array(rules)).map_err(LoadError::map(name::ENROLMENT))?,
            exempt: HashMap::try_from(Map::HashMap(exempt)).map_err(LoadError::map(name::EXEMPT_CGROUPS))?,
            namespaces: HashMap::try_from(Map::HashMap(namespaces)).map_err(LoadError::map(name::NAMESPACES))?,
        })
    }

    /// Has the programs go by these rules. A cgroup is exempt as it is now: one that is made anew must be set again. Those that are
    /// not there are returned.
    pub fn set(&mut self, rules: &Rules) -> Result<Vec<PathBuf>, LoadError> {
        let (mut exempt, mut missing) = (HashSet::new(), Vec::new());
        for path in &rules.exempt {
            match Cgroup::open(path) {
                Ok(cgroup) => drop(exempt.insert(cgroup.id)),
                Err(LoadError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    missing.push(path.clone());
                }
                Err(error) => return Err(error),
            }
        }
        // Who is exempt before and after is so all the time.
        let before: HashSet<u64> =
            self.exempt.keys().collect::<Result<_, _>>().map_err(LoadError::map(name::EXEMPT_CGROUPS))?;
        for gone in before.difference(&exempt) {
            self.exempt.remove(gone).map_err(LoadError::map(name::EXEMPT_CGROUPS))?;
        }
        for new in exempt.difference(&before) {
            self.exempt.insert(new, 0, 0).map_err(LoadError::map(name::EXEMPT_CGROUPS))?;
        }
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        let flags = flag(!exempt.is_empty(), map::Enrolment::EXEMPTIONS)
            | flag(rules.by_namespace, map::Enrolment::BY_NAMESPACE)
            | flag(rules.by_call, map::Enrolment::BY_CALL);
        let entry = EnrolmentEntry(map::Enrolment { flags });
        self.rules.set(0, entry, 0).map_err(LoadError::map(name::ENROLMENT))?;
        Ok(missing)
    }

    /// Enrols the network namespace at a path, as `/run/netns/blue` or `/proc/1234/ns/net`: its cookie, and whether it was not
    /// enrolled before.
    pub fn enrol(&mut self, path: &Path) -> Result<(u64, bool), EnrolmentError> {
        let (cookie, inode) = identify(path)?;
        let since_ns = boot_time_ns();
        let entry = NamespaceEntry(EnrolledNamespace { since_ns, inode, reserved: 0 });
        match self.namespaces.insert(cookie, entry, NOEXIST) {
            Ok(()) => Ok((cookie, true)),
            Err(error) => match code(&error) {
                Some(libc::EEXIST) => Ok((cookie, false)),
                Some(libc::E2BIG) => Err(EnrolmentError::Full),
                _ => Err(LoadError::map(name::NAMESPACES)(error).into()),
            },
        }
    }

    /// Lets go the network namespace at a path: its cookie, and whether it was enrolled.
    pub fn release(&mut self, path: &Path) -> Result<(u64, bool), EnrolmentError> {
        let (cookie, _) = identify(path)?;
        Ok((cookie, self.remove(cookie)?))
    }

    /// All that are enrolled, by their cookies.
    pub fn namespaces(&self) -> Result<Vec<Enrolled>, LoadError> {
        let mut enrolled: Vec<Enrolled> = Vec::new();
        for entry in &self.namespaces {
            let (cookie, NamespaceEntry(EnrolledNamespace { since_ns, inode, .. })) =
                entry.map_err(LoadError::map(name::NAMESPACES))?;
            enrolled.push(Enrolled { cookie, inode: (inode != 0).then_some(inode), since_ns });
        }
        enrolled.sort_unstable_by_key(|enrolled| enrolled.cookie);
        Ok(enrolled)
    }

    /// Lets go those that are gone: no process or thread is in them, and they are mounted nowhere. How many there were.
    pub fn release_gone(&mut self) -> Result<usize, LoadError> {
        // First what is enrolled: what comes and is enrolled meanwhile is not looked at.
        let enrolled = self.namespaces()?;
        if enrolled.is_empty() {
            return Ok(0);
        }
        // Of what may not be entered nothing is known: then nothing is let go.
        let mut there = HashSet::new();
        for namespace in namespace::all().values() {
            let Ok(cookie) = namespace::inside(namespace.as_fd(), cookie) else { return Ok(0) };
            there.insert(cookie);
        }
        let mut gone = 0;
        for Enrolled { cookie, .. } in enrolled.iter().filter(|enrolled| !there.contains(&enrolled.cookie)) {
            gone += usize::from(self.remove(*cookie)?);
        }
        Ok(gone)
    }

    fn remove(&mut self, cookie: u64) -> Result<bool, LoadError> {
        match self.namespaces.remove(&cookie) {
            Ok(()) => Ok(true),
            Err(error) if code(&error) == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(LoadError::map(name::NAMESPACES)(error)),
        }
    }
}

/// A namespace's cookie and inode number.
fn identify(path: &Path) -> Result<(u64, u32), EnrolmentError> {
    let open = |source| EnrolmentError::Open { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(open)?;
    let inode = file.metadata().map_err(open)?.ino();
    let cookie = namespace::inside(file.as_fd(), cookie)
        .map_err(|source| EnrolmentError::Enter { path: path.to_path_buf(), source })?;
    Ok((cookie, u32::try_from(inode).unwrap_or_default()))
}

/// The cookie of the network namespace that the calling thread is in.
fn cookie() -> io::Result<u64> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
    sys::namespace_cookie(socket.as_fd())
}

fn boot_time_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let part = |part: i64| u64::try_from(part).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// The kernel's answer.
fn code(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(error) => error.io_error.raw_os_error(),
        MapError::KeyNotFound => Some(libc::ENOENT),
        _ => None,
    }
}
