//! The hooks: which program goes where. To add one, write the program and add a line here.

use aya_obj::generated::bpf_attach_type;

/// A place in the kernel and the program for it.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// The hook's name, also that of its pinned link.
    pub name: &'static str,
    /// The program's function in `bpf/programs`, also the name of its pin.
    pub program: &'static str,
    pub(crate) attach_type: bpf_attach_type,
}

/// All hooks.
///
/// What shows an application its frontend, or tells a waypoint what that is, comes before what leads it there: links are made and
/// switched in this order, and a socket that is answered before all are in place must be answered in full.
pub const HOOKS: [Hook; 9] = [
    Hook {
        name: "getpeername4",
        program: "hf_getpeername4",
        attach_type: bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
    },
    Hook {
        name: "getpeername6",
        program: "hf_getpeername6",
        attach_type: bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
    },
    Hook { name: "recvmsg4", program: "hf_recvmsg4", attach_type: bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG },
    Hook { name: "recvmsg6", program: "hf_recvmsg6", attach_type: bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG },
    Hook { name: "sendmsg4", program: "hf_sendmsg4", attach_type: bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG },
    Hook { name: "sendmsg6", program: "hf_sendmsg6", attach_type: bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG },
    Hook { name: "sock_ops", program: "hf_sock_ops", attach_type: bpf_attach_type::BPF_CGROUP_SOCK_OPS },
    Hook { name: "connect4", program: "hf_connect4", attach_type: bpf_attach_type::BPF_CGROUP_INET4_CONNECT },
    Hook { name: "connect6", program: "hf_connect6", attach_type: bpf_attach_type::BPF_CGROUP_INET6_CONNECT },
];

/// The program that everything passes that is written to a socket in `waypoint_sockets`. It is attached to that map, so it stays
/// while the map is pinned, and sockets in the map stay with the program that was attached when they came.
pub(crate) const MESSAGES: &str = "hf_sk_msg";

/// All programs of a generation.
pub(crate) fn programs() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.program).chain([MESSAGES])
}
