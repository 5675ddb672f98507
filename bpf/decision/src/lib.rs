//! The decision: given these tables and this `connect()`, where does it go?
//!
//! The crate is compiled twice, into the BPF programs and into the host (replay, simulation, `why`), so that what
//! explains a connection is the code that made it. It is `no_std`, allocates nothing and has no loop.
//!
//! What it relies on, and the applier guarantees ([`storage_schema::map::cell`]): the version that is visible at a
//! reader's epoch, and the run it points at, do not change while a program that loaded that epoch runs.
//!
//! Architecture invariant: no randomness, no clock and no table access but through [`Tables`] and the arguments: the
//! same tables, epoch, destination and entropy give the same verdict, wherever it runs.

#![no_std]
// Table entries are shared with a writer; reading them takes raw pointers. See `read_epoch` and `visible`.
#![allow(unsafe_code)]

use storage_schema::map::cell::{self, Payload};
use storage_schema::map::{Backend, Cell, Frontend, FrontendKey, Node, Service};

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
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Where the client dialled: the destination is not a frontend, or the node lets it pass.
    Pass,
    /// To this backend of this service.
    Forward {
        /// The service's `ResourceId`.
        service: u64,
        /// The workload's `ResourceId`.
        backend: u64,
        /// The address, as in [`FrontendKey::address`].
        address: [u32; 4],
        /// The port in network order.
        port_be: u16,
    },
    /// Nowhere: the service has no usable backend.
    Refuse {
        /// The service's `ResourceId`.
        service: u64,
    },
}

/// Decides one connection.
///
/// `epoch` is `control.active_epoch`, loaded once by the caller. `entropy` is a random word; the caller keeps it with
/// the connection, so that the decision can be made again.
#[inline(always)]
pub fn decide<T: Tables>(tables: &T, epoch: u64, destination: &FrontendKey, entropy: u32) -> Verdict {
    let Some(frontend) = find_frontend(tables, epoch, destination) else { return Verdict::Pass };
    let Some(service) = visible(tables.service(frontend.index), epoch) else { return Verdict::Pass };
    if service.run_length == 0 {
        return without_endpoints(tables, epoch, service);
    }
    let slot = service.run_offset.wrapping_add(scale(entropy, service.run_length));
    let Some(endpoint) = tables.endpoint(slot) else { return Verdict::Pass };
    // SAFETY: the pointer is to a slot of a live table. The run is immutable while this reader can reach it.
    let backend_cell = unsafe { endpoint.read() };
    let Some(backend) = visible(tables.backend(backend_cell), epoch) else { return Verdict::Pass };
    Verdict::Forward { service: service.id, backend: backend.id, address: backend.address, port_be: backend.port_be }
}

/// A number below `bound`, evenly from a random word: the high half of the product (Lemire, "Fast Random Integer
/// Generation in an Interval", 2019, without its rejection step: the bias is below `bound` / 2^32).
#[inline(always)]
#[must_use]
pub const fn scale(entropy: u32, bound: u32) -> u32 {
    ((entropy as u64 * bound as u64) >> 32) as u32
}

#[inline(always)]
fn find_frontend<'t, T: Tables>(tables: &'t T, epoch: u64, destination: &FrontendKey) -> Option<&'t Frontend> {
    let cell = tables.frontend_index(destination)?;
    let frontend = visible(tables.frontend(cell), epoch)?;
    // The index is a hint: its entry may belong to a cell that has since been recycled for another destination.
    (frontend.kind == Frontend::SERVICE && same_destination(&frontend.key, destination)).then_some(frontend)
}

#[inline(always)]
fn same_destination(one: &FrontendKey, other: &FrontendKey) -> bool {
    one.address[3] == other.address[3]
        && one.port_be == other.port_be
        && one.protocol == other.protocol
        && one.address[0] == other.address[0]
        && one.address[1] == other.address[1]
        && one.address[2] == other.address[2]
}

#[inline(always)]
fn without_endpoints<T: Tables>(tables: &T, epoch: u64, service: &Service) -> Verdict {
    match visible(tables.node(), epoch) {
        Some(node) if node.flags & Node::NO_ENDPOINTS_PASS != 0 => Verdict::Pass,
        _ => Verdict::Refuse { service: service.id },
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
