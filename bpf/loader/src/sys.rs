//! bpf(2), for the few commands that aya 0.14 does not offer, and one ioctl. The only file of this crate that is unsafe.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_type};

/// Opens what is pinned at `path`.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    descriptor(bpf_cmd::BPF_OBJ_GET, &mut attr)
}

/// Pins what `fd` stands for at `path`.
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = empty();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd_number(fd.as_raw_fd());
    call(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Exchanges the program of a link: every run of the hook sees the old one or the new one.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.link_update.link_fd = fd_number(link.as_raw_fd());
    attr.link_update.__bindgen_anon_1.new_prog_fd = fd_number(program.as_raw_fd());
    call(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Attaches a program to a cgroup: until nothing holds the link any more.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program.as_raw_fd());
    attr.link_create.__bindgen_anon_2.target_fd = fd_number(cgroup.as_raw_fd());
    attr.link_create.attach_type = attach_type as u32;
    descriptor(bpf_cmd::BPF_LINK_CREATE, &mut attr)
}

/// Has what is written to sockets that come into a socket map from now on pass a program: as long as there is the map.
pub(crate) fn attach_message_program(map: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = empty();
    attr.__bindgen_anon_5.__bindgen_anon_1.target_fd = fd_number(map.as_raw_fd());
    attr.__bindgen_anon_5.attach_bpf_fd = fd_number(program.as_raw_fd());
    attr.__bindgen_anon_5.attach_type = bpf_attach_type::BPF_SK_MSG_VERDICT as u32;
    call(bpf_cmd::BPF_PROG_ATTACH, &mut attr).map(drop)
}

/// The kernel's number of that program, if there is one.
pub(crate) fn message_program(map: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    let mut program_id = 0_u32;
    let mut attr = empty();
    // SAFETY: the fields belong to the union member that BPF_PROG_QUERY reads.
    let query = unsafe { &mut attr.query };
    query.__bindgen_anon_1.target_fd = fd_number(map.as_raw_fd());
    query.attach_type = bpf_attach_type::BPF_SK_MSG_VERDICT as u32;
    query.prog_ids = (&raw mut program_id) as u64;
    query.__bindgen_anon_2.prog_cnt = 1;
    call(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    Ok((program_id != 0).then_some(program_id))
}

/// What a cgroup link connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CgroupLink {
    pub(crate) program_id: u32,
    /// 0: the cgroup is gone and the link is detached.
    pub(crate) cgroup_id: u64,
}

/// What a pinned cgroup link connects.
pub(crate) fn cgroup_link(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    // SAFETY: the structure is plain data, for which zeros are valid.
    let mut info: bpf_link_info = unsafe { std::mem::zeroed() };
    let mut attr = empty();
    attr.info.bpf_fd = fd_number(link.as_raw_fd());
    attr.info.info = (&raw mut info) as u64;
    attr.info.info_len = u32::try_from(size_of::<bpf_link_info>()).expect("the structure is small");
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: the kernel has filled the union member of cgroup links, or left zeros.
    let cgroup_id = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    Ok(CgroupLink { program_id: info.prog_id, cgroup_id })
}

/// Creates an array of one map, of maps like `inner`.
pub(crate) fn create_array_of_maps(inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: the fields belong to the union member that BPF_MAP_CREATE reads.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32;
    create.key_size = 4;
    create.value_size = 4;
    create.max_entries = 1;
    create.inner_map_fd = fd_number(inner.as_raw_fd());
    descriptor(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Creates an array of one word.
pub(crate) fn create_small_array() -> io::Result<OwnedFd> {
    let mut attr = empty();
    // SAFETY: as above.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    create.key_size = 4;
    create.value_size = 4;
    create.max_entries = 1;
    descriptor(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Stores `inner` in the one entry of an array of maps.
pub(crate) fn update_array_of_maps(outer: BorrowedFd<'_>, inner: BorrowedFd<'_>) -> io::Result<()> {
    let key = 0_u32;
    let value = fd_number(inner.as_raw_fd());
    let mut attr = empty();
    attr.__bindgen_anon_2.map_fd = fd_number(outer.as_raw_fd());
    attr.__bindgen_anon_2.key = (&raw const key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = (&raw const value) as u64;
    call(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// The output of an iterator program, over a map's elements if one is given. The link that is made for it goes with the file.
pub(crate) fn iterate(program: BorrowedFd<'_>, map: Option<BorrowedFd<'_>>) -> io::Result<File> {
    // `union bpf_iter_link_info`, of which only the map's descriptor is given.
    let target = [map.map_or(0, |map| fd_number(map.as_raw_fd())), 0, 0, 0];
    let mut attr = empty();
    attr.link_create.__bindgen_anon_1.prog_fd = fd_number(program.as_raw_fd());
    attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    if map.is_some() {
        // SAFETY: the fields belong to the union member that BPF_LINK_CREATE reads for iterators.
        let info = unsafe { &mut attr.link_create.__bindgen_anon_3.__bindgen_anon_1 };
        info.iter_info = target.as_ptr() as u64;
        info.iter_info_len = u32::try_from(size_of_val(&target)).expect("the array is small");
    }
    let link = descriptor(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    let mut attr = empty();
    attr.iter_create.link_fd = fd_number(link.as_raw_fd());
    descriptor(bpf_cmd::BPF_ITER_CREATE, &mut attr).map(File::from)
}

/// The network namespace of a socket (`SIOCGSKNS`, linux/sockios.h).
pub(crate) fn socket_namespace(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: libc::c_ulong = 0x894C;
    // SAFETY: the request takes no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a namespace is one of a network (`NS_GET_NSTYPE`, linux/nsfs.h).
pub(crate) fn is_network_namespace(namespace: BorrowedFd<'_>) -> bool {
    const NS_GET_NSTYPE: libc::c_ulong = 0xB703;
    // SAFETY: the request takes no argument and returns a number.
    let kind = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_NSTYPE as _) };
    kind == libc::CLONE_NEWNET
}

/// The cookie of the network namespace that a socket is in (`SO_NETNS_COOKIE`).
pub(crate) fn namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of_val(&cookie)).expect("a word is short");
    // SAFETY: the option's value is a word, and that is what the pointers are to.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

fn empty() -> bpf_attr {
    // SAFETY: the union is plain data, for which zeros are valid and mean "not given".
    unsafe { std::mem::zeroed() }
}

fn fd_number(fd: RawFd) -> u32 {
    u32::try_from(fd).expect("an open descriptor is not negative")
}

fn descriptor(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(call(command, attr)?).expect("the kernel returns descriptors as int");
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn call(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: `attr` is a bpf_attr of the size that is given, and what it points at outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_int, std::ptr::from_mut(attr), size_of::<bpf_attr>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
