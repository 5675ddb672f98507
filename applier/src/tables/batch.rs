//! Many entries of a hash in one bpf(2) call, which aya 0.14 does not offer.

// Talks to bpf(2); see the SAFETY comments.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `enum bpf_cmd` of linux/bpf.h; since 5.6.
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;

/// Entries in one call: what its buffers hold, and at least the longest chain of a bucket.
const ENTRIES: usize = 16_384;

/// `union bpf_attr`, as the batch commands read it; the rest counts as zeros.
#[repr(C)]
#[derive(Default)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Inserts entries, in the map's own types. On an error some of them may be there.
pub(super) fn insert<K: Copy, V: Copy>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "each key has a value");
    for (keys, values) in keys.chunks(ENTRIES).zip(values.chunks(ENTRIES)) {
        let mut attr = Attr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(keys.len()).expect("chunks are small"),
            map_fd: number(map),
            ..Attr::default()
        };
        call(MAP_UPDATE_BATCH, &mut attr)?;
    }
    Ok(())
}

/// All entries, in the map's own types. Whole only while nobody else writes.
pub(super) fn list<K: Copy, V: Copy>(map: BorrowedFd<'_>, zero: (K, V)) -> io::Result<Vec<(K, V)>> {
    let (mut keys, mut values) = (vec![zero.0; ENTRIES], vec![zero.1; ENTRIES]);
    let mut entries = Vec::new();
    // A hash says where it is by the number of a bucket.
    let (mut from, mut next) = (0_u32, 0_u32);
    let mut first = true;
    loop {
        let mut attr = Attr {
            in_batch: if first { 0 } else { (&raw const from) as u64 },
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(keys.len()).expect("the buffer is small"),
            map_fd: number(map),
            ..Attr::default()
        };
        let more = match call(MAP_LOOKUP_BATCH, &mut attr) {
            Ok(()) => true,
            // The last ones.
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        entries.extend(keys.iter().copied().zip(values.iter().copied()).take(attr.count as usize));
        if !more {
            return Ok(entries);
        }
        (from, first) = (next, false);
    }
}

fn number(map: BorrowedFd<'_>) -> u32 {
    u32::try_from(map.as_raw_fd()).expect("an open descriptor is not negative")
}

fn call(command: libc::c_int, attr: &mut Attr) -> io::Result<()> {
    // SAFETY: `attr` is the beginning of a bpf_attr, of the size that is given. Its buffers outlive the call and have room
    // for `count` entries of the map's own key and value types: plain data, of which the callers name the right ones.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
