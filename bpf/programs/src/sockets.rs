//! Iterators: they dump what no hook sees, to whoever reads their file. Nothing here runs for a connection.
//!
//! * `bpf_sk_storage_map` over the stamps: every balanced socket of every network namespace.
//! * `task_file`: which process has a socket open, under which descriptor.
//!
//! Kernel structures are read at offsets that the loader has taken from the kernel's BTF (`KERNEL_LAYOUT`), with a helper
//! that copes with any address: the compiler knows no relocations for them.

use core::ffi::c_void;

use aya_ebpf::bindings::{file, seq_file};
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_seq_write, bpf_sock_from_file};
use storage_schema::map::{KernelLayout, SocketHolder, Stamp, StampedSocket, key};

/// Filled in by the loader before the programs are loaded.
#[unsafe(no_mangle)]
static KERNEL_LAYOUT: KernelLayout = KernelLayout::UNKNOWN;

/// Structures are smaller than this; the verifier wants to see a bound.
const OFFSET_MAX: u32 = 0xffff;

/// `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    file: *mut seq_file,
}

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct StampContext {
    meta: *const Meta,
    map: *const c_void,
    socket: *const c_void,
    stamp: *const Stamp,
}

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub struct FileContext {
    meta: *const Meta,
    task: *const c_void,
    descriptor: u32,
    padding: u32,
    file: *mut file,
}

#[unsafe(link_section = "iter/bpf_sk_storage_map")]
#[unsafe(no_mangle)]
pub extern "C" fn hf_stamped_sockets(context: *const StampContext) -> i32 {
    // SAFETY: context accesses, checked by the verifier; both pointers are null at the end of the iteration.
    let (socket, stamp, out) = unsafe {
        let socket = (&raw const (*context).socket).read_volatile();
        let stamp = (&raw const (*context).stamp).read_volatile();
        if socket.is_null() || stamp.is_null() {
            return 0;
        }
        (socket, stamp.read_volatile(), (*(&raw const (*context).meta).read_volatile()).file)
    };
    if stamp.outcome != Stamp::FORWARDED {
        return 0;
    }
    let layout = layout();
    let mut dumped = StampedSocket {
        stamp,
        cookie: read(socket, layout.cookie),
        device: read(socket, layout.device),
        local_port: read(socket, layout.local_port),
        remote_port_be: read(socket, layout.remote_port),
        family: read::<u16>(socket, layout.family) as u8,
        state: read(socket, layout.state),
        protocol: read::<u16>(socket, layout.protocol) as u8,
        ..StampedSocket::default()
    };
    if dumped.state == StampedSocket::CLOSE || dumped.state == StampedSocket::LISTEN {
        return 0;
    }
    if dumped.family == StampedSocket::INET {
        dumped.local_address = key::mapped(read(socket, layout.local_v4));
        dumped.remote_address = key::mapped(read(socket, layout.remote_v4));
    } else {
        dumped.local_address = read(socket, layout.local_v6);
        dumped.remote_address = read(socket, layout.remote_v6);
    }
    let namespace: u64 = read(socket, layout.namespace);
    dumped.namespace = read(namespace as *const c_void, layout.namespace_inode);
    write(out, &dumped)
}

#[unsafe(link_section = "iter/task_file")]
#[unsafe(no_mangle)]
pub extern "C" fn hf_socket_holders(context: *const FileContext) -> i32 {
    // SAFETY: context accesses and a helper, checked by the verifier; pointers are null at the end of the iteration.
    let (task, descriptor, socket, out) = unsafe {
        let task = (&raw const (*context).task).read_volatile();
        let file = (&raw const (*context).file).read_volatile();
        if task.is_null() || file.is_null() {
            return 0;
        }
        let socket = bpf_sock_from_file(file).cast::<c_void>();
        if socket.is_null() {
            return 0;
        }
        let descriptor = (&raw const (*context).descriptor).read_volatile();
        (task, descriptor, socket, (*(&raw const (*context).meta).read_volatile()).file)
    };
    let layout = layout();
    let connection: u64 = read(socket, layout.socket);
    let cookie = read(connection as *const c_void, layout.cookie);
    // A balanced socket has had a cookie since it was stamped.
    if cookie == 0 {
        return 0;
    }
    write(out, &SocketHolder { cookie, process: read(task, layout.process), descriptor })
}

#[inline(always)]
fn layout() -> KernelLayout {
    // SAFETY: a static of ours; volatile, as the loader has changed it since it was compiled.
    unsafe { (&raw const KERNEL_LAYOUT).read_volatile() }
}

/// What is at an offset in a structure of the kernel; zeros if that cannot be read.
#[inline(always)]
fn read<T: Copy + Default>(structure: *const c_void, offset: u32) -> T {
    let mut value = T::default();
    // SAFETY: the helper checks the address, and `value` has the size that it is told.
    unsafe {
        let from = structure.byte_add((offset & OFFSET_MAX) as usize);
        bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from);
    }
    value
}

/// Writes a record; the kernel makes room and calls again if there is none.
#[inline(always)]
fn write<T>(out: *mut seq_file, record: &T) -> i32 {
    // SAFETY: the verifier checks the file, and that the record is initialised.
    unsafe { bpf_seq_write(out, core::ptr::from_ref(record).cast(), size_of::<T>() as u32) };
    0
}
