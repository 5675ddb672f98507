//! What the iterator programs need to know, and what they write: stamped sockets, and which process holds a socket.
//!
//! The dumps go to the agent that has loaded the programs and to nobody else, so their layout is in no fingerprint.

use super::fingerprint::abi_struct;
use super::stamp::Stamp;

abi_struct! {
    /// Where the running kernel keeps what the iterators read, as byte offsets into its structures. The agent takes them from
    /// the kernel's BTF when it loads the iterators.
    pub struct KernelLayout[64] {
        /// `sock_common.skc_family`.
        pub family: u32,
        /// `sock_common.skc_state`.
        pub state: u32,
        /// `sock_common.skc_daddr`.
        pub remote_v4: u32,
        /// `sock_common.skc_rcv_saddr`.
        pub local_v4: u32,
        /// `sock_common.skc_v6_daddr`.
        pub remote_v6: u32,
        /// `sock_common.skc_v6_rcv_saddr`.
        pub local_v6: u32,
        /// `sock_common.skc_dport`.
        pub remote_port: u32,
        /// `sock_common.skc_num`.
        pub local_port: u32,
        /// `sock_common.skc_bound_dev_if`.
        pub device: u32,
        /// `sock_common.skc_cookie`.
        pub cookie: u32,
        /// `sock_common.skc_net`.
        pub namespace: u32,
        /// `net.ns`, and in it `ns_common.inum`.
        pub namespace_inode: u32,
        /// `sock.sk_protocol`.
        pub protocol: u32,
        /// `socket.sk`.
        pub socket: u32,
        /// `task_struct.tgid`.
        pub process: u32,
        /// Zero.
        pub reserved: u32,
    }
}

impl KernelLayout {
    /// Before it is known.
    pub const UNKNOWN: Self = Self {
        family: 0,
        state: 0,
        remote_v4: 0,
        local_v4: 0,
        remote_v6: 0,
        local_v6: 0,
        remote_port: 0,
        local_port: 0,
        device: 0,
        cookie: 0,
        namespace: 0,
        namespace_inode: 0,
        protocol: 0,
        socket: 0,
        process: 0,
        reserved: 0,
    };
}

abi_struct! {
    /// Where the running kernel keeps what tells whether anything was written to a TCP socket, as byte offsets into `tcp_sock`.
    /// The agent takes them from the kernel's BTF when it loads the programs.
    pub struct TcpLayout[12] {
        /// `tcp_sock.write_seq`.
        pub write_seq: u32,
        /// `tcp_sock.snd_una`.
        pub snd_una: u32,
        /// `tcp_sock.bytes_acked`.
        pub bytes_acked: u32,
    }
}

impl TcpLayout {
    /// Before it is known.
    pub const UNKNOWN: Self = Self { write_seq: 0, snd_una: 0, bytes_acked: 0 };
}

abi_struct! {
    /// A connected socket that was balanced to a backend.
    pub struct StampedSocket[136] {
        /// Why it is connected to where it is.
        pub stamp: Stamp,
        /// The kernel's number of the socket, never given twice in one boot.
        pub cookie: u64,
        /// Inode number of its network namespace, as in `/proc/<pid>/ns/net`.
        pub namespace: u32,
        /// The network device it is bound to; 0: none.
        pub device: u32,
        /// Its own address, as in [`FrontendKey::address`](super::FrontendKey::address).
        pub local_address: [u32; 4],
        /// The backend's address, likewise.
        pub remote_address: [u32; 4],
        /// Its own port.
        pub local_port: u16,
        /// The backend's port in network order.
        pub remote_port_be: u16,
        /// [`StampedSocket::INET`] or [`StampedSocket::INET6`]; the latter also with IPv4-mapped addresses.
        pub family: u8,
        /// `TCP_ESTABLISHED` and so on (`include/net/tcp_states.h`); connected UDP sockets are in the state 1 as well.
        pub state: u8,
        /// IANA protocol number.
        pub protocol: u8,
        /// Zero.
        pub reserved: u8,
    }
}

impl StampedSocket {
    /// `AF_INET`.
    pub const INET: u8 = 2;
    /// `AF_INET6`.
    pub const INET6: u8 = 10;
    /// `TCP_CLOSE`: not connected.
    pub const CLOSE: u8 = 7;
    /// `TCP_LISTEN`.
    pub const LISTEN: u8 = 10;
}

abi_struct! {
    /// A process that has a socket open.
    pub struct SocketHolder[16] {
        /// The socket.
        pub cookie: u64,
        /// The process, as the initial process namespace numbers it.
        pub process: u32,
        /// The descriptor in the process.
        pub descriptor: u32,
    }
}
