//! Where the running kernel keeps what the iterators read: offsets from its BTF (Documentation/bpf/btf.rst).
//!
//! The compiler of the programs emits no relocations against kernel types, so the offsets are looked up here and handed to
//! the programs as a constant. Only structures are read, and of these only names and offsets of members.

use std::fs;
use std::sync::OnceLock;

use storage_schema::map::{KernelLayout, TcpLayout};

use super::SocketError;
use crate::LoadError;

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const TYPE_LEN: usize = 12;
const MEMBER_LEN: usize = 12;

/// Reads the running kernel's layout.
pub(super) fn kernel_layout() -> Result<KernelLayout, SocketError> {
    let failed = |source| SocketError::KernelTypes { source };
    let bytes = fs::read(KERNEL_BTF).map_err(failed)?;
    layout(&bytes).map_err(|missing| SocketError::UnknownLayout { missing })
}

/// Reads where the running kernel keeps what tells whether anything was written to a TCP socket. Once: each generation asks.
pub(crate) fn tcp_layout() -> Result<TcpLayout, LoadError> {
    static KNOWN: OnceLock<TcpLayout> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let bytes = fs::read(KERNEL_BTF).map_err(LoadError::io("read", KERNEL_BTF))?;
    let types = Types::parse(&bytes).ok_or(LoadError::UnknownLayout { missing: "BTF that can be read" })?;
    let offset = |member| types.offset("tcp_sock", member).ok_or(LoadError::UnknownLayout { missing: member });
    let found =
        TcpLayout { write_seq: offset("write_seq")?, snd_una: offset("snd_una")?, bytes_acked: offset("bytes_acked")? };
    Ok(*KNOWN.get_or_init(|| found))
}

/// The layout that a kernel's BTF describes, or what it does not say.
fn layout(bytes: &[u8]) -> Result<KernelLayout, &'static str> {
    let types = Types::parse(bytes).ok_or("BTF that can be read")?;
    let offset = |structure: &'static str, member: &'static str| types.offset(structure, member).ok_or(member);
    let namespace_inode = offset("net", "ns")? + offset("ns_common", "inum")?;
    let family = offset("sock_common", "skc_family")?;
    Ok(KernelLayout {
        family,
        state: offset("sock_common", "skc_state")?,
        remote_v4: offset("sock_common", "skc_daddr")?,
        local_v4: offset("sock_common", "skc_rcv_saddr")?,
        // A kernel without IPv6 has no such sockets.
        remote_v6: offset("sock_common", "skc_v6_daddr").unwrap_or(family),
        local_v6: offset("sock_common", "skc_v6_rcv_saddr").unwrap_or(family),
        remote_port: offset("sock_common", "skc_dport")?,
        local_port: offset("sock_common", "skc_num")?,
        device: offset("sock_common", "skc_bound_dev_if")?,
        cookie: offset("sock_common", "skc_cookie")?,
        namespace: offset("sock_common", "skc_net")?,
        namespace_inode,
        protocol: offset("sock", "sk_protocol")?,
        socket: offset("socket", "sk")?,
        process: offset("task_struct", "tgid")?,
        reserved: 0,
    })
}

/// All types, and their names.
struct Types<'a> {
    /// Each type's bytes, itself and what follows it, by its number less one.
    types: Vec<&'a [u8]>,
    names: &'a [u8],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Structure,
    Union,
    Other,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = |index: usize| Some(word(bytes, 4 + 4 * index)? as usize);
        let body = bytes.get(header(0)?..)?;
        let mut rest = body.get(header(1)?..)?.get(..header(2)?)?;
        let names = body.get(header(3)?..)?.get(..header(4)?)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let length = TYPE_LEN + extra_len(word(rest, 4)?)?;
            types.push(rest.get(..length)?);
            rest = &rest[length..];
        }
        Some(Self { types, names })
    }

    /// Where a member begins in a structure, also one of a structure or union without a name in it.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let found = self.types.iter().find(|definition| {
            kind(definition) == Kind::Structure
                && word(definition, 0).is_some_and(|name| self.is_called(name, structure))
        })?;
        self.member_offset(found, member)
    }

    fn member_offset(&self, structure: &[u8], member: &str) -> Option<u32> {
        let has_bit_fields = word(structure, 4)? >> 31 == 1;
        structure[TYPE_LEN..].chunks_exact(MEMBER_LEN).find_map(|found| {
            let (name, number, bits) = (word(found, 0)?, word(found, 4)?, word(found, 8)?);
            let bytes = if has_bit_fields { bits & 0x00ff_ffff } else { bits } / 8;
            if name != 0 {
                return self.is_called(name, member).then_some(bytes);
            }
            let inner = self.types.get((number as usize).checked_sub(1)?)?;
            let is_nested = matches!(kind(inner), Kind::Structure | Kind::Union);
            is_nested.then(|| self.member_offset(inner, member)).flatten().map(|within| bytes + within)
        })
    }

    fn is_called(&self, name: u32, wanted: &str) -> bool {
        let rest = self.names.get(name as usize..).and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn kind(definition: &[u8]) -> Kind {
    match word(definition, 4).map(|info| info >> 24 & 0x1f) {
        Some(4) => Kind::Structure,
        Some(5) => Kind::Union,
        _ => Kind::Other,
    }
}

/// How many bytes follow a type of this kind; `None` if there is no such kind.
fn extra_len(info: u32) -> Option<usize> {
    let members = (info & 0xffff) as usize;
    match info >> 24 & 0x1f {
        // Integers, variables and declaration tags.
        1 | 14 | 17 => Some(4),
        // Pointers, forward declarations, qualifiers, functions, floats and type tags.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Arrays.
        3 => Some(12),
        // Structures, unions, sections and 64 bit enumerations.
        4 | 5 | 15 | 19 => Some(12 * members),
        // Enumerations and prototypes.
        6 | 13 => Some(8 * members),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A structure `s` with a union without a name at byte 8, in which `inner` is at byte 4.
    fn sample() -> Vec<u8> {
        let names = b"\0s\0outer\0inner\0";
        let structure = |info: u32, members: &[[u32; 3]], name: u32| {
            [[name, info, 16].as_slice(), &members.concat()].concat().into_iter().flat_map(u32::to_ne_bytes)
        };
        let types: Vec<u8> = structure(4 << 24 | 2, &[[3, 9, 0], [0, 2, 64]], 1)
            .chain(structure(5 << 24 | 1, &[[9, 9, 32]], 0))
            .collect();
        let lengths =
            [24, 0, types.len(), types.len(), names.len()].map(|number| u32::try_from(number).expect("small"));
        let magic = MAGIC.to_ne_bytes().into_iter().chain([1, 0]);
        magic.chain(lengths.into_iter().flat_map(u32::to_ne_bytes)).chain(types).chain(*names).collect()
    }

    #[test]
    fn members_are_found_also_in_unions_without_a_name() {
        let bytes = sample();
        let types = Types::parse(&bytes).expect("BTF");
        assert_eq!(types.offset("s", "outer"), Some(0));
        assert_eq!(types.offset("s", "inner"), Some(12));
        assert_eq!(types.offset("s", "in"), None);
        assert_eq!(types.offset("outer", "inner"), None);
    }

    #[test]
    fn what_is_no_btf_is_refused() {
        let bytes = sample();
        for length in 0..bytes.len() - 1 {
            // The last byte is the end of a name.
            assert!(Types::parse(&bytes[..length]).is_none(), "{length}");
        }
        assert_eq!(layout(&bytes), Err("ns"));
    }

    #[test]
    fn the_running_kernels_layout_is_found() {
        let Ok(bytes) = fs::read(KERNEL_BTF) else { return };
        let found = layout(&bytes).expect("every kernel has these");
        assert_eq!((found.remote_v4, found.local_v4), (0, 4), "the first members since the structure exists");
        assert!(found.remote_v6 != found.family && found.process > found.socket, "{found:?}");
    }
}
