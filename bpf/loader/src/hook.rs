//! The hooks: which program goes where. To add one, write the program and add a line here.

use aya::programs::cgroup_sock_addr::CgroupSockAddrAttachType;

/// A place in the kernel and the program for it.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// The hook's name, also that of its pinned link.
    pub name: &'static str,
    /// The program's function in `bpf/programs`, also the name of its pin.
    pub program: &'static str,
    pub(crate) attach_type: CgroupSockAddrAttachType,
}

/// All hooks.
pub const HOOKS: [Hook; 2] = [
    Hook { name: "connect4", program: "hf_connect4", attach_type: CgroupSockAddrAttachType::Connect4 },
    Hook { name: "connect6", program: "hf_connect6", attach_type: CgroupSockAddrAttachType::Connect6 },
];
