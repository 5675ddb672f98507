//! What can go wrong between the agent and the kernel, said so that one knows what to do.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;

/// Why the kernel's side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin root is not on a BPF file system.
    #[error("{path} is not on a BPF file system: mount one with `mount -t bpf bpf /sys/fs/bpf`", path = path.display())]
    NotBpffs {
        /// The pin root, or the nearest directory above it that exists.
        path: PathBuf,
    },
    /// The cgroup is not a cgroup v2 directory.
    #[error("{path} is not a directory of a cgroup v2 file system: name one with --cgroup", path = path.display())]
    NotCgroup2 {
        /// What was given.
        path: PathBuf,
    },
    /// The process may not do what is needed.
    #[error(
        "the kernel refuses {action}: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; if that is so, see what the \
         kernel's security modules forbid in /sys/kernel/security/lsm and lockdown ({source})"
    )]
    Privilege {
        /// What was refused.
        action: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file system operation failed.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A bpf(2) call failed.
    #[error("bpf(2) {command} failed for {what}: {source}")]
    Bpf {
        /// The command.
        command: &'static str,
        /// On what.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The object could not be loaded: most likely the kernel lacks a feature.
    #[error("the BPF object does not load on this kernel (`holdfast doctor` tells what is missing): {source}")]
    Object {
        /// aya's account.
        #[source]
        source: Box<EbpfError>,
    },
    /// The verifier or the kernel refused a program.
    #[error("the BPF program {program} is refused (`holdfast doctor` tells what is missing): {source}")]
    Program {
        /// Its name.
        program: &'static str,
        /// aya's account.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be used.
    #[error("the BPF map {map} cannot be used: {source}")]
    Map {
        /// Its name.
        map: String,
        /// aya's account.
        #[source]
        source: Box<MapError>,
    },
    /// A pin could not be made.
    #[error("cannot pin {path}: {source}", path = path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// aya's account.
        #[source]
        source: Box<PinError>,
    },
    /// The kernel keeps something elsewhere than this build knows.
    #[error(
        "the kernel's types, /sys/kernel/btf/vmlinux, have no {missing}: this build is too old or too new for the kernel"
    )]
    UnknownLayout {
        /// What was looked for.
        missing: &'static str,
    },
    /// The object lacks a program or map that this code expects: it was not built from this source.
    #[error("the BPF object has no {what}")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
}

impl LoadError {
    /// Whether the cause is a missing privilege.
    pub const fn is_privilege(&self) -> bool {
        matches!(self, Self::Privilege { .. })
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                Self::Privilege { action: format!("to {action} {}", path.display()), source }
            } else {
                Self::Io { action, path, source }
            }
        }
    }

    pub(crate) fn bpf(command: &'static str, what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                Self::Privilege { action: format!("bpf(2) {command} for {what}"), source }
            } else {
                Self::Bpf { command, what, source }
            }
        }
    }

    pub(crate) fn object(source: EbpfError) -> Self {
        match denied(&source) {
            Some(code) => Self::Privilege { action: "to load the BPF object".to_owned(), source: code },
            None => Self::Object { source: Box::new(source) },
        }
    }

    pub(crate) fn program(program: &'static str) -> impl FnOnce(ProgramError) -> Self {
        move |source| match denied(&source) {
            Some(code) => Self::Privilege { action: format!("to load the BPF program {program}"), source: code },
            None => Self::Program { program, source: Box::new(source) },
        }
    }

    pub(crate) fn map(map: impl Into<String>) -> impl FnOnce(MapError) -> Self {
        let map = map.into();
        move |source| match denied(&source) {
            Some(code) => Self::Privilege { action: format!("to use the BPF map {map}"), source: code },
            None => Self::Map { map, source: Box::new(source) },
        }
    }

    pub(crate) fn pin(path: impl Into<PathBuf>) -> impl FnOnce(PinError) -> Self {
        let path = path.into();
        move |source| Self::Pin { path, source: Box::new(source) }
    }
}

/// The `EPERM` or `EACCES` at the bottom of an error, if that is what it comes from. A verifier's refusal of a program
/// is `EACCES` too, but comes with a log, so only `EPERM` counts.
fn denied(error: &(dyn std::error::Error + 'static)) -> Option<io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && io.raw_os_error() == Some(libc::EPERM)
        {
            return Some(io::Error::from_raw_os_error(libc::EPERM));
        }
        cause = error.source();
    }
    None
}
