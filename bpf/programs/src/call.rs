//! The calls that the hooks see: on which socket, with which address, and the words that choose a backend for it.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_addr, bpf_sock_tuple};
use aya_ebpf::helpers::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_set_retval, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
    bpf_sk_release,
};
use aya_ebpf::programs::SockAddrContext;
use decision::{Earlier, Verdict, Words};
use storage_schema::map::{Affinity, AffinityKey, FrontendKey, Service, Stamp, key, payload};

use crate::maps::AFFINITIES;

pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;

/// The hook's verdicts: the call goes on, or fails with what `bpf_set_retval` said.
pub const PROCEED: i32 = 1;
const FAIL: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// Where a hook's context has the addresses of one family. IPv4 addresses come and go as IPv4-mapped ones.
pub trait Family {
    /// The address that the call is about.
    fn address(context: *mut bpf_sock_addr) -> [u32; 4];
    /// Replaces it.
    fn replace(context: *mut bpf_sock_addr, address: &[u32; 4]);
    /// The address that a socket is bound to; zeros if it is not.
    fn bound(socket: *mut bpf_sock) -> [u32; 4];
}

pub enum V4 {}
pub enum V6 {}

impl Family for V4 {
    #[inline(always)]
    fn address(context: *mut bpf_sock_addr) -> [u32; 4] {
        // SAFETY: the verifier checks each access to the context; words are read one by one, as it wants them.
        unsafe { key::mapped((&raw const (*context).user_ip4).read_volatile()) }
    }

    #[inline(always)]
    fn replace(context: *mut bpf_sock_addr, address: &[u32; 4]) {
        // SAFETY: a context access, checked by the verifier.
        unsafe { (&raw mut (*context).user_ip4).write_volatile(address[3]) };
    }

    #[inline(always)]
    fn bound(socket: *mut bpf_sock) -> [u32; 4] {
        // SAFETY: as above.
        match unsafe { (&raw const (*socket).src_ip4).read_volatile() } {
            0 => [0; 4],
            address => key::mapped(address),
        }
    }
}

impl Family for V6 {
    #[inline(always)]
    fn address(context: *mut bpf_sock_addr) -> [u32; 4] {
        // SAFETY: context accesses, checked by the verifier.
        unsafe { words((&raw const (*context).user_ip6).cast()) }
    }

    #[inline(always)]
    fn replace(context: *mut bpf_sock_addr, address: &[u32; 4]) {
        // SAFETY: as above.
        unsafe {
            let words = (&raw mut (*context).user_ip6).cast::<u32>();
            words.write_volatile(address[0]);
            words.add(1).write_volatile(address[1]);
            words.add(2).write_volatile(address[2]);
            words.add(3).write_volatile(address[3]);
        }
    }

    /// A socket that is bound to an IPv4-mapped address is the client that an IPv4 socket bound to that address is.
    #[inline(always)]
    fn bound(socket: *mut bpf_sock) -> [u32; 4] {
        // SAFETY: as above.
        unsafe { words((&raw const (*socket).src_ip6).cast()) }
    }
}

#[inline(always)]
unsafe fn words(address: *const u32) -> [u32; 4] {
    // SAFETY: as required of the caller.
    unsafe {
        [
            address.read_volatile(),
            address.add(1).read_volatile(),
            address.add(2).read_volatile(),
            address.add(3).read_volatile(),
        ]
    }
}

/// IANA protocol number of the socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: a context access, checked by the verifier.
    unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() }
}

/// The address and port that the call is about.
#[inline(always)]
pub fn destination<F: Family>(ctx: &SockAddrContext, protocol: u32) -> FrontendKey {
    // SAFETY: a context access, checked by the verifier.
    let port_be = unsafe { (&raw const (*ctx.sock_addr).user_port).read_volatile() as u16 };
    FrontendKey { address: F::address(ctx.sock_addr), port_be, protocol: protocol as u8, reserved: 0 }
}

/// Replaces both.
#[inline(always)]
pub fn replace<F: Family>(ctx: &SockAddrContext, address: &[u32; 4], port_be: u16) {
    F::replace(ctx.sock_addr, address);
    // SAFETY: a context access, checked by the verifier.
    unsafe { (&raw mut (*ctx.sock_addr).user_port).write_volatile(u32::from(port_be)) };
}

/// Fails the call as if nobody listened there.
#[inline(always)]
pub fn refuse() -> i32 {
    // SAFETY: a helper whose argument is a number.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}

/// The words of a connection that is being made, or of a datagram that is being sent.
pub struct Fresh<'c, F> {
    ctx: &'c SockAddrContext,
    destination: &'c FrontendKey,
    family: core::marker::PhantomData<F>,
}

impl<'c, F: Family> Fresh<'c, F> {
    #[inline(always)]
    pub fn of(ctx: &'c SockAddrContext, destination: &'c FrontendKey) -> Self {
        Self { ctx, destination, family: core::marker::PhantomData }
    }

    /// Remembers where the client went, if the service wants that.
    #[inline(always)]
    pub fn remember(&self, verdict: &Verdict) {
        let Verdict::Forward { service, backend, address, port_be, entropy, flags } = *verdict else { return };
        if flags & Stamp::AFFINITY != 0 {
            // SAFETY: a helper without arguments.
            let seen_ns = unsafe { bpf_ktime_get_ns() };
            let affinity = Affinity { backend, seen_ns, address, entropy, port_be, reserved: [0; 2] };
            // Without memory for it the client is a new one next time.
            let _ = AFFINITIES.insert(&self.key(service), &affinity, 0);
        }
    }

    #[inline(always)]
    fn key(&self, service: u64) -> AffinityKey {
        let FrontendKey { address, port_be, protocol, .. } = *self.destination;
        let family = if key::is_mapped(&address) { payload::FAMILY_V4 } else { payload::FAMILY_V6 };
        AffinityKey { service, client: self.client(), port_be, protocol, family }
    }
}

impl<F: Family> Words for Fresh<'_, F> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn client(&self) -> u32 {
        // SAFETY: a helper, and a context access; the verifier checks both.
        let (namespace, socket) = unsafe {
            let socket = (&raw const (*self.ctx.sock_addr).__bindgen_anon_1.sk).read_volatile();
            (bpf_get_netns_cookie(self.ctx.as_ptr()), socket)
        };
        let bound = if socket.is_null() { [0; 4] } else { F::bound(socket) };
        decision::client_word(namespace, &bound)
    }

    #[inline(always)]
    fn earlier(&self, service: &Service) -> Option<Earlier> {
        // SAFETY: the entry may be given to another client meanwhile; whatever it says then, only a backend that may be
        // chosen now is.
        let affinity = unsafe { *AFFINITIES.get(&self.key(service.id))? };
        // SAFETY: a helper without arguments.
        let ago_ns = unsafe { bpf_ktime_get_ns() }.saturating_sub(affinity.seen_ns);
        let Affinity { backend, address, port_be, entropy, .. } = affinity;
        let lasts = ago_ns <= u64::from(service.affinity) * Service::AFFINITY_UNIT_NS;
        lasts.then_some(Earlier { backend, address, port_be, entropy })
    }

    /// Invariant `NO_LOOP`: nobody is sent to where somebody listens, at that address or at all addresses, in the network
    /// namespace that he dials from. A waypoint is a server in a namespace, so it is told from its clients by that; what it
    /// dials from there is never sent back to it. Connections of others in that namespace are taken for its own.
    #[inline(always)]
    fn is_waypoint(&self, address: &[u32; 4], port_be: u16) -> bool {
        // SAFETY: the union is plain data, for which zeros are valid.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let size = if key::is_mapped(address) {
            tuple.__bindgen_anon_1.ipv4.daddr = address[3];
            tuple.__bindgen_anon_1.ipv4.dport = port_be;
            // SAFETY: all members are plain data.
            size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv4 })
        } else {
            tuple.__bindgen_anon_1.ipv6.daddr = *address;
            tuple.__bindgen_anon_1.ipv6.dport = port_be;
            // SAFETY: as above.
            size_of_val(unsafe { &tuple.__bindgen_anon_1.ipv6 })
        };
        // SAFETY: helpers; the verifier checks the context, and that what is found is released. No connection has zeros for its
        // other end, so it is a listener.
        unsafe {
            let (ctx, size, own_namespace) = (self.ctx.as_ptr(), size as u32, BPF_F_CURRENT_NETNS as u64);
            let found = if u32::from(self.destination.protocol) == IPPROTO_TCP {
                bpf_sk_lookup_tcp(ctx, &raw mut tuple, size, own_namespace, 0)
            } else {
                bpf_sk_lookup_udp(ctx, &raw mut tuple, size, own_namespace, 0)
            };
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        }
        true
    }
}
