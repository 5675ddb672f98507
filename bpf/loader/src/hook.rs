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
///
/// What shows an application its frontend comes before what leads it to a backend: links are made and switched in this order,
/// and a socket that is answered before all are in place must be answered in full.
pub const HOOKS: [Hook; 8] = [
    Hook { name: "getpeername4", program: "hf_getpeername4", attach_type: CgroupSockAddrAttachType::GetPeerName4 },
    Hook { name: "getpeername6", program: "hf_getpeername6", attach_type: CgroupSockAddrAttachType::GetPeerName6 },
    Hook { name: "recvmsg4", program: "hf_recvmsg4", attach_type: CgroupSockAddrAttachType::UDPRecvMsg4 },
    Hook { name: "recvmsg6", program: "hf_recvmsg6", attach_type: CgroupSockAddrAttachType::UDPRecvMsg6 },
    Hook { name: "sendmsg4", program: "hf_sendmsg4", attach_type: CgroupSockAddrAttachType::UDPSendMsg4 },
    Hook { name: "sendmsg6", program: "hf_sendmsg6", attach_type: CgroupSockAddrAttachType::UDPSendMsg6 },
    Hook { name: "connect4", program: "hf_connect4", attach_type: CgroupSockAddrAttachType::Connect4 },
    Hook { name: "connect6", program: "hf_connect6", attach_type: CgroupSockAddrAttachType::Connect6 },
];
