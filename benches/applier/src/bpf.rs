//! bpf(2) without anything around it: what the floor is made of, and what the kernel says a map takes.

// The floor is the bare call.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `enum bpf_cmd` of linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const OBJ_GET: libc::c_int = 7;

/// Kinds of map, by their numbers in `enum bpf_map_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Hash = 1,
    Array = 2,
}

/// The beginning of `union bpf_attr`, as `BPF_MAP_CREATE` reads it; the rest counts as zeros.
#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The same, as `BPF_MAP_UPDATE_ELEM` reads it.
#[repr(C)]
struct UpdateAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The same, as `BPF_OBJ_GET` reads it.
#[repr(C)]
struct PathAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// A map that is not pinned.
#[derive(Debug)]
pub(crate) struct RawMap(OwnedFd);

impl RawMap {
    pub(crate) fn create(kind: Kind, key: usize, value: usize, entries: u32) -> io::Result<Self> {
        let size = |bytes: usize| u32::try_from(bytes).expect("entries are small");
        let attr =
            CreateAttr { map_type: kind as u32, key_size: size(key), value_size: size(value), max_entries: entries };
        call(MAP_CREATE, &attr).map(Self)
    }

    /// One entry, one call.
    pub(crate) fn update<K, V>(&self, key: &K, value: &V) -> io::Result<()> {
        let attr = UpdateAttr {
            map_fd: number(self.0.as_raw_fd()),
            padding: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: 0,
        };
        // SAFETY: key and value outlive the call, and the callers create maps for exactly these types.
        match unsafe { libc::syscall(libc::SYS_bpf, MAP_UPDATE_ELEM, &raw const attr, size_of::<UpdateAttr>()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Bytes of kernel memory that a pinned map is charged with (`memlock` of its fdinfo).
pub(crate) fn pinned_bytes(pin: &Path) -> io::Result<u64> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let map = call(OBJ_GET, &PathAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 })?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|bytes| bytes.trim().parse().ok()).ok_or_else(|| io::Error::other("fdinfo without memlock"))
}

fn call<A>(command: libc::c_int, attr: &A) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is the beginning of a bpf_attr, of the size that is given; what it points at outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<A>()) };
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn number(fd: RawFd) -> u32 {
    u32::try_from(fd).expect("an open descriptor is not negative")
}
