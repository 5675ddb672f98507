//! The decision: given these tables and this `connect()`, where does it go?
//!
//! The crate is compiled twice, into the BPF programs and into the host (replay, simulation, `why`), so that what
//! explains a connection is the code that made it. It is `no_std`, allocates nothing, and its one loop, over a run that has
//! changed ([`decide_keeping`]), is the tables' ([`Tables::position`]).
//!
//! What it relies on, and the applier guarantees ([`storage_schema::map::cell`]): the version that is visible at a
//! reader's epoch, and the run it points at, do not change while a program that loaded that epoch runs.
//!
//! Which backends may be chosen, and with which odds, is in the service's run: the applier has worked it out from health,
//! locality and weights, so that a decision is a few array reads whatever the policy.
//!
//! Architecture invariant: no randomness, no clock and no table access but through [`Tables`] and the arguments: the
//! same tables, epoch, destination and word give the same verdict, wherever it runs.

#![no_std]
// Table entries are shared with a writer; reading them takes raw pointers. See `read_epoch` and `visible`.
#![allow(unsafe_code)]

use storage_schema::map::cell::{self, Payload};
use storage_schema::map::{Backend, Cell, Frontend, FrontendKey, Node, Service, Stamp, key};

/// The tables as a reader sees them. Pointers are to entries of live tables; `None` means out of range.
pub trait Tables {
    /// The cell number that `frontend_index` has for a destination.
    fn frontend_index(&self, key: &FrontendKey) -> Option<u32>;
    /// A cell of `frontends`.
    fn frontend(&self, cell: u32) -> Option<*const Cell<Frontend>>;
    /// A cell of `services`.
    fn service(&self, cell: u32) -> Option<*const Cell<Service>>;
    /// A slot of `endpoints`.
    fn endpoint(&self, slot: u32) -> Option<*const u32>;
    /// A cell of `backends`.
    fn backend(&self, cell: u32) -> Option<*const Cell<Backend>>;
    /// The cell of `node`.
    fn node(&self) -> Option<*const Cell<Node>>;

    /// The first of so many slots from that of `sought` on that leads to what is sought, counted from 0. The kernel's tables
    /// have their own loop, which the verifier goes through once.
    #[inline(always)]
    fn position(&self, sought: &Sought, slots: u32) -> Option<u32>
    where
        Self: Sized,
    {
        (0..slots).find(|position| sought.is_at(self, *position))
    }
}

/// A backend that is looked for in a run.
#[derive(Clone, Copy, Debug)]
pub struct Sought {
    epoch: u64,
    /// Slot of `endpoints` from which on.
    first: u32,
    id: u64,
    address: [u32; 4],
    port_be: u16,
    dialled_port_be: u16,
}

impl Sought {
    /// Whether the slot at a position leads there.
    #[inline(always)]
    pub fn is_at<T: Tables>(&self, tables: &T, position: u32) -> bool {
        let Some(cell) = slot(tables, self.first.wrapping_add(position)) else { return false };
        let Some(backend) = visible(tables.backend(cell), self.epoch) else { return false };
        backend.id == self.id
            && same_address(&backend.address, &self.address)
            && port_or(backend.port_be, self.dialled_port_be) == self.port_be
    }
}

/// Where the words come from that choose a backend. Each is asked for only if it is needed.
pub trait Words {
    /// A random word.
    fn random(&self) -> u32;
    /// A word that is the same for all connections of a client: see [`client_word`].
    fn client(&self) -> u32;
    /// Where the client's last connection to the service went, if that was no longer ago than the service's affinity lasts.
    fn earlier(&self, _service: &Service) -> Option<Earlier> {
        None
    }
    /// Whether the client is the waypoint that serves at this address and port: what it dials does not come back to it.
    fn is_waypoint(&self, _address: &[u32; 4], _port_be: u16) -> bool {
        false
    }
}

/// Where an earlier connection went.
#[derive(Clone, Copy, Debug)]
pub struct Earlier {
    /// The workload's `ResourceId`.
    pub backend: u64,
    /// The address, as in [`FrontendKey::address`].
    pub address: [u32; 4],
    /// The port in network order.
    pub port_be: u16,
    /// The word that chose it.
    pub entropy: u32,
}

impl From<&Stamp> for Earlier {
    #[inline(always)]
    fn from(stamp: &Stamp) -> Self {
        let Stamp { backend, backend_address, backend_port_be, entropy, .. } = *stamp;
        Self { backend, address: backend_address, port_be: backend_port_be, entropy }
    }
}

/// The word of a decision that is made again, whatever kind it was.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    /// The word.
    pub entropy: u32,
    /// Whether the client was the waypoint of what it dialled.
    pub from_waypoint: bool,
}

impl Words for Again {
    fn random(&self) -> u32 {
        self.entropy
    }

    fn client(&self) -> u32 {
        self.entropy
    }

    fn is_waypoint(&self, _: &[u32; 4], _: u16) -> bool {
        self.from_waypoint
    }
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Where the client dialled: the destination is not a frontend, or connections without a backend are let pass.
    Pass,
    /// To this backend of this service, or, with [`Stamp::DNS`], to the node's DNS proxy.
    Forward {
        /// The `ResourceId` of the service, or of the workload that has a waypoint; 0 with [`Stamp::DNS`].
        service: u64,
        /// The workload's `ResourceId`, or, with [`Stamp::WAYPOINT`], what `service` is; 0 with [`Stamp::DNS`].
        backend: u64,
        /// The address, as in [`FrontendKey::address`].
        address: [u32; 4],
        /// The port in network order.
        port_be: u16,
        /// The word that chose it.
        entropy: u32,
        /// `Stamp::…` flags.
        flags: u16,
    },
    /// Nowhere: there is no usable backend.
    Refuse {
        /// As above.
        service: u64,
        /// As above.
        flags: u16,
    },
}

impl Verdict {
    /// What a socket carries of it, but for when: whoever has that can make the decision again.
    #[inline(always)]
    pub fn stamp(&self, epoch: u64, destination: &FrontendKey) -> Stamp {
        let mut stamp = Stamp {
            epoch,
            original_address: destination.address,
            original_port_be: destination.port_be,
            protocol: destination.protocol,
            ..Stamp::default()
        };
        match *self {
            Self::Pass => {}
            Self::Forward { service, backend, address, port_be, entropy, flags } => {
                stamp.service = service;
                stamp.backend = backend;
                stamp.backend_address = address;
                stamp.backend_port_be = port_be;
                stamp.entropy = entropy;
                stamp.flags = flags;
                stamp.outcome = Stamp::FORWARDED;
            }
            Self::Refuse { service, flags } => {
                stamp.service = service;
                stamp.flags = flags;
                stamp.outcome = Stamp::REFUSED;
            }
        }
        stamp
    }
}

/// The decision for a client that is no waypoint, with this word.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, epoch: u64, destination: &FrontendKey, entropy: u32) -> Verdict {
    decide_with(tables, epoch, destination, &Again { entropy, from_waypoint: false })
}

/// Makes the decision of a stamp again; the tables must show its epoch.
pub fn decide_again<T: Tables>(tables: &T, stamp: &Stamp) -> Verdict {
    let Stamp { epoch, original_address: address, original_port_be: port_be, protocol, entropy, flags, .. } = *stamp;
    let destination = FrontendKey { address, port_be, protocol, reserved: 0 };
    let from_waypoint = flags & Stamp::FROM_WAYPOINT != 0;
    decide_with(tables, epoch, &destination, &Again { entropy, from_waypoint })
}

/// Decides one connection.
///
/// `epoch` is `control.active_epoch`, loaded once by the caller. The caller keeps the word that chose the backend with the
/// connection, so that the decision can be made again.
#[inline(always)]
pub fn decide_with<T: Tables, W: Words>(tables: &T, epoch: u64, destination: &FrontendKey, words: &W) -> Verdict {
    decide_keeping(tables, epoch, destination, None, words)
}

/// Decides one datagram of an unconnected socket: as [`decide_with`], but the backend of `last`, the stamp of the socket's
/// last datagram to that destination, is chosen again while it may be chosen.
///
/// For connections and datagrams alike: if the service has affinity, the backend of the client's last connection comes first
/// ([`Words::earlier`]). With [`Service::MAGLEV`] the client's word alone decides, and moves few clients when backends come and
/// go.
///
/// Either way the verdict's word is one that leads to its backend at `epoch`: this decision too can be made again with
/// [`decide_again`].
///
/// With [`Service::WAYPOINT`] all this is for the waypoint's own connections; all others go to the waypoint.
#[inline(always)]
pub fn decide_keeping<T: Tables, W: Words>(
    tables: &T,
    epoch: u64,
    destination: &FrontendKey,
    last: Option<&Stamp>,
    words: &W,
) -> Verdict {
    if destination.port_be == DNS_PORT_BE
        && let Some(verdict) = to_dns_proxy(tables, epoch, destination)
    {
        return verdict;
    }
    let Some(frontend) = find_frontend(tables, epoch, destination) else { return Verdict::Pass };
    let Some(service) = visible(tables.service(frontend.index), epoch) else { return Verdict::Pass };
    let behind;
    let (service, flags) = if service.flags & Service::WAYPOINT == 0 || service.run_length == 0 {
        (service, 0)
    } else {
        match at_waypoint(tables, epoch, service, words) {
            AtWaypoint::Ends(verdict) => return verdict,
            AtWaypoint::GoesOn(members) => {
                behind = members;
                (&behind, Stamp::FROM_WAYPOINT)
            }
        }
    };
    if service.run_length == 0 {
        return without_endpoints(tables, epoch, service, flags);
    }
    let entropy = if service.policy == Service::MAGLEV {
        words.client()
    } else {
        // Its client may have moved on since the socket's last datagram.
        let earlier = if service.affinity == 0 { None } else { words.earlier(service) };
        let earlier = earlier.or(last.map(Earlier::from));
        let kept = earlier.and_then(|earlier| word_of(tables, epoch, destination, service, &earlier));
        kept.unwrap_or_else(|| words.random())
    };
    forward(tables, epoch, destination, service, entropy, flags).unwrap_or(Verdict::Pass)
}

/// What becomes of a connection to a service, or to a workload, that has a waypoint.
enum AtWaypoint {
    Ends(Verdict),
    /// The waypoint's own goes to one of the service's members, which are all that is left of the run.
    GoesOn(Service),
}

#[inline(always)]
fn at_waypoint<T: Tables, W: Words>(tables: &T, epoch: u64, service: &Service, words: &W) -> AtWaypoint {
    let cell = slot(tables, service.run_offset);
    let Some(waypoint) = cell.and_then(|cell| visible(tables.backend(cell), epoch)) else {
        return AtWaypoint::Ends(Verdict::Pass);
    };
    let Backend { id: backend, address, port_be, .. } = *waypoint;
    if !words.is_waypoint(&address, port_be) {
        let accelerate = if service.flags & Service::ACCELERATE == 0 { 0 } else { Stamp::ACCELERATE };
        let flags = Stamp::WAYPOINT | accelerate;
        return AtWaypoint::Ends(Verdict::Forward {
            service: service.id,
            backend,
            address,
            port_be,
            entropy: 0,
            flags,
        });
    }
    if service.flags & Service::WORKLOAD != 0 {
        return AtWaypoint::Ends(Verdict::Pass);
    }
    let (run_offset, run_length) = (service.run_offset.wrapping_add(1), service.run_length.wrapping_sub(1));
    AtWaypoint::GoesOn(Service { run_offset, run_length, ..*service })
}

const DNS_PORT_BE: u16 = 53_u16.to_be();

/// To the node's DNS proxy, if it has one of the destination's family. The proxy itself is what it is.
#[inline(always)]
fn to_dns_proxy<T: Tables>(tables: &T, epoch: u64, destination: &FrontendKey) -> Option<Verdict> {
    let Node { flags, dns_address: address, dns_port_be: port_be, .. } = *visible(tables.node(), epoch)?;
    let is_for = flags & Node::DNS != 0
        && key::is_mapped(&address) == key::is_mapped(&destination.address)
        && !(port_be == DNS_PORT_BE && same_address(&address, &destination.address));
    is_for.then_some(Verdict::Forward { service: 0, backend: 0, address, port_be, entropy: 0, flags: Stamp::DNS })
}

/// To the backend that a word falls on; `None` if the tables have none there.
#[inline(always)]
fn forward<T: Tables>(
    tables: &T,
    epoch: u64,
    destination: &FrontendKey,
    service: &Service,
    entropy: u32,
    flags: u16,
) -> Option<Verdict> {
    let backend = visible(tables.backend(choose(tables, service, entropy)?), epoch)?;
    let accelerate = if service.flags & Service::ACCELERATE == 0 { 0 } else { Stamp::ACCELERATE };
    let affinity = if service.affinity == 0 { 0 } else { Stamp::AFFINITY };
    Some(Verdict::Forward {
        service: service.id,
        backend: backend.id,
        address: backend.address,
        port_be: port_or(backend.port_be, destination.port_be),
        entropy,
        flags: flags | accelerate | affinity,
    })
}

/// A run that is longer is not searched: a change of a service with more backends than that may move a socket.
const SEARCHED_MAX: u32 = 4_096;

/// A word that leads to the backend of an earlier connection; `None` if it may no longer be chosen.
#[inline(always)]
fn word_of<T: Tables>(
    tables: &T,
    epoch: u64,
    destination: &FrontendKey,
    service: &Service,
    earlier: &Earlier,
) -> Option<u32> {
    let mut sought = Sought {
        epoch,
        first: 0,
        id: earlier.backend,
        address: earlier.address,
        port_be: earlier.port_be,
        dialled_port_be: destination.port_be,
    };
    // Nearly always nothing has changed.
    if leads_to(tables, service, earlier.entropy, &mut sought) {
        return Some(earlier.entropy);
    }
    let (offset, entries) = match service.policy {
        // An alias table names each backend once behind the thresholds.
        Service::WEIGHTED => (service.run_length / 3, service.run_length / 3),
        _ => (0, service.run_length),
    };
    if entries > SEARCHED_MAX {
        return None;
    }
    sought.first = service.run_offset.wrapping_add(offset);
    let word = first_word(tables.position(&sought, entries)?, entries)?;
    // In an alias table the word may fall on the alias, if the entry's own part of it is next to nothing.
    leads_to(tables, service, word, &mut sought).then_some(word)
}

#[inline(always)]
fn leads_to<T: Tables>(tables: &T, service: &Service, word: u32, sought: &mut Sought) -> bool {
    let Some(slot) = choose_slot(tables, service, word) else { return false };
    sought.first = slot;
    sought.is_at(tables, 0)
}

/// The lowest word that [`scale`]s to a number below `bound`; `None` if there are no such numbers.
#[inline(always)]
fn first_word(number: u32, bound: u32) -> Option<u32> {
    let bound = u64::from(bound);
    let reach = (u64::from(number) << 32) + bound.wrapping_sub(1);
    reach.checked_div(bound).and_then(|word| u32::try_from(word).ok())
}

#[inline(always)]
const fn port_or(port_be: u16, dialled_be: u16) -> u16 {
    if port_be == 0 { dialled_be } else { port_be }
}

/// The `backends` cell that a word falls on.
#[inline(always)]
fn choose<T: Tables>(tables: &T, service: &Service, word: u32) -> Option<u32> {
    slot(tables, choose_slot(tables, service, word)?)
}

/// The slot that has it.
#[inline(always)]
fn choose_slot<T: Tables>(tables: &T, service: &Service, word: u32) -> Option<u32> {
    if service.policy != Service::WEIGHTED {
        return Some(service.run_offset.wrapping_add(scale(word, service.run_length)));
    }
    let entries = service.run_length / 3;
    let entry = service.run_offset.wrapping_add(scale(word, entries));
    let threshold = slot(tables, entry)?;
    let taken = if fraction(word, entries) < threshold { entries } else { entries.wrapping_mul(2) };
    Some(entry.wrapping_add(taken))
}

#[inline(always)]
fn slot<T: Tables>(tables: &T, slot: u32) -> Option<u32> {
    // SAFETY: the pointer is to a slot of a live table. The run is immutable while this reader can reach it.
    tables.endpoint(slot).map(|word| unsafe { word.read() })
}

/// A number below `bound`, evenly from a random word: the high half of the product (Lemire, "Fast Random Integer
/// Generation in an Interval", 2019, without its rejection step: the bias is below `bound` / 2^32).
#[inline(always)]
#[must_use]
pub const fn scale(entropy: u32, bound: u32) -> u32 {
    ((entropy as u64 * bound as u64) >> 32) as u32
}

/// What [`scale`] leaves of the word, in 2^-32: evenly spread within each number, in steps of `bound`.
#[inline(always)]
#[must_use]
pub const fn fraction(entropy: u32, bound: u32) -> u32 {
    entropy.wrapping_mul(bound)
}

/// The word of a client: the network namespace that it dials from (its cookie), and, if its socket is bound, the address that
/// it is bound to. Zeros: it is not bound. Mixed by `splitmix64`'s finalizer (Steele, Lea, Flood, 2014).
#[inline(always)]
#[must_use]
pub const fn client_word(namespace: u64, bound: &[u32; 4]) -> u32 {
    let high = (bound[0] as u64) << 32 | bound[1] as u64;
    let low = (bound[2] as u64) << 32 | bound[3] as u64;
    (mix(mix(mix(namespace) ^ high) ^ low) >> 32) as u32
}

#[inline(always)]
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The frontend of a destination, or else that of its address on every port.
#[inline(always)]
fn find_frontend<'t, T: Tables>(tables: &'t T, epoch: u64, destination: &FrontendKey) -> Option<&'t Frontend> {
    match find_key(tables, epoch, destination) {
        None => find_key(tables, epoch, &destination.any_port()),
        found => found,
    }
}

#[inline(always)]
fn find_key<'t, T: Tables>(tables: &'t T, epoch: u64, key: &FrontendKey) -> Option<&'t Frontend> {
    let cell = tables.frontend_index(key)?;
    let frontend = visible(tables.frontend(cell), epoch)?;
    // The index is a hint: its entry may belong to a cell that has since been recycled for another destination.
    (frontend.kind == Frontend::SERVICE && same_destination(&frontend.key, key)).then_some(frontend)
}

#[inline(always)]
fn same_destination(one: &FrontendKey, other: &FrontendKey) -> bool {
    one.port_be == other.port_be && one.protocol == other.protocol && same_address(&one.address, &other.address)
}

/// Word by word, the one that tells IPv4 addresses apart first: a call of `memcmp` is nothing that the kernel has.
#[inline(always)]
#[must_use]
pub fn same_address(one: &[u32; 4], other: &[u32; 4]) -> bool {
    one[3] == other[3] && one[0] == other[0] && one[1] == other[1] && one[2] == other[2]
}

#[inline(always)]
fn without_endpoints<T: Tables>(tables: &T, epoch: u64, service: &Service, flags: u16) -> Verdict {
    if service.flags & Service::NO_ENDPOINTS_PASS != 0 {
        return Verdict::Pass;
    }
    if service.flags & Service::NO_ENDPOINTS_REFUSE != 0 {
        return Verdict::Refuse { service: service.id, flags };
    }
    match visible(tables.node(), epoch) {
        Some(node) if node.flags & Node::NO_ENDPOINTS_PASS != 0 => Verdict::Pass,
        _ => Verdict::Refuse { service: service.id, flags },
    }
}

/// The payload that holds at `epoch`; `None` if there is none or it says "absent".
#[inline(always)]
fn visible<'t, P: Payload>(cell: Option<*const Cell<P>>, epoch: u64) -> Option<&'t P> {
    let cell = cell?;
    // SAFETY: the pointer is to a cell of a live table, which outlives the decision. The epochs are read as atomics;
    // the payload that holds at `epoch` is not written while a reader at `epoch` runs.
    let payload = unsafe {
        let versions = &raw const (*cell).versions;
        let epochs = [read_epoch(&raw const (*versions)[0].epoch), read_epoch(&raw const (*versions)[1].epoch)];
        match cell::visible(epochs, epoch)? {
            0 => &(*versions)[0].payload,
            _ => &(*versions)[1].payload,
        }
    };
    payload.is_present().then_some(payload)
}

/// Reads an epoch word that a writer may store at the same time, before anything that is read after it.
///
/// # Safety
/// `word` must be valid for reads and aligned.
#[inline(always)]
pub unsafe fn read_epoch(word: *const u64) -> u64 {
    // BPF has no acquire load before cpu v4, and LLVM refuses the Rust one. x86-64 orders loads itself, so keeping the
    // compiler in order is enough there; the build refuses other BPF hosts (bpf/programs).
    #[cfg(target_arch = "bpf")]
    // SAFETY: as required of the caller.
    unsafe {
        let value = word.read_volatile();
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: as required of the caller; all writers of live tables store epochs as atomics.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(word.cast_mut()).load(core::sync::atomic::Ordering::Acquire)
    }
}
