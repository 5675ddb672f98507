//! The maps. Their sizes here are the least that loads; the loader sets the real ones for each generation.

use core::ffi::c_void;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_sk_storage_get};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, SockHash};
use decision::{Sought, Tables};
use storage_schema::map::{
    Affinity, AffinityKey, Backend, Cell, Control, EndpointPair, Frontend, FrontendKey, Node, Peers, Service, Stamp,
};

/// `BPF_F_MMAPABLE`: the applier maps the array into its memory and writes it with plain stores.
const MMAPABLE: u32 = 1 << 10;

#[map(name = "control")]
static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "frontend_index")]
static FRONTEND_INDEX: HashMap<FrontendKey, u32> = HashMap::with_max_entries(1, 0);
#[map(name = "frontends")]
static FRONTENDS: Array<Cell<Frontend>> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "services")]
static SERVICES: Array<Cell<Service>> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "endpoints")]
static ENDPOINTS: Array<EndpointPair> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "backends")]
static BACKENDS: Array<Cell<Backend>> = Array::with_max_entries(1, MMAPABLE);
#[map(name = "node")]
static NODE: Array<Cell<Node>> = Array::with_max_entries(1, MMAPABLE);

/// What each socket carries that was connected.
#[btf_map(name = "stamps")]
pub static STAMPS: SkStorage<Stamp> = SkStorage::new();

/// What each socket carries that sends datagrams without being connected. The kernel runs the hooks that use it with the
/// socket locked: for one socket, one at a time.
#[btf_map(name = "peers")]
pub static PEERS: SkStorage<Peers> = SkStorage::new();

/// Connections to waypoints that are still to be told where the client dialled, by their cookies.
#[map(name = "waypoint_sockets")]
pub static WAYPOINT_SOCKETS: SockHash<u64> = SockHash::with_max_entries(Stamp::WAYPOINT_SOCKETS_MAX, 0);

/// Where clients went.
#[map(name = "affinities")]
pub static AFFINITIES: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(Affinity::MAX, 0);

/// The stamp of a socket, which must not be null; null if it has none.
///
/// # Safety
/// `socket` must be a socket that the verifier knows as one.
#[inline(always)]
pub unsafe fn stamp_of(socket: *mut bpf_sock) -> *mut Stamp {
    let stamps = (&raw const STAMPS).cast_mut().cast();
    // SAFETY: as required of the caller.
    unsafe { bpf_sk_storage_get(stamps, socket.cast(), core::ptr::null_mut(), 0).cast() }
}

/// [`WAYPOINT_SOCKETS`] as helpers take it.
#[inline(always)]
pub fn waypoint_sockets() -> *mut c_void {
    (&raw const WAYPOINT_SOCKETS).cast_mut().cast()
}

/// The epoch that this program run reads at. Load it once.
#[inline(always)]
pub fn active_epoch() -> Option<u64> {
    let control = CONTROL.get_ptr(0)?;
    // SAFETY: the pointer is to the one entry of `control`, which lives as long as the program.
    Some(unsafe { decision::read_epoch(&raw const (*control).active_epoch) })
}

/// The pinned maps as [`decision`] reads them.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn frontend_index(&self, key: &FrontendKey) -> Option<u32> {
        // SAFETY: the value is a word, read at once; that it may belong to a recycled element is what the key in the
        // cell is compared for.
        FRONTEND_INDEX.get_ptr(key).map(|cell| unsafe { cell.read() })
    }

    #[inline(always)]
    fn frontend(&self, cell: u32) -> Option<*const Cell<Frontend>> {
        FRONTENDS.get_ptr(cell)
    }

    #[inline(always)]
    fn service(&self, cell: u32) -> Option<*const Cell<Service>> {
        SERVICES.get_ptr(cell)
    }

    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<*const u32> {
        let pair = ENDPOINTS.get_ptr(slot >> 1)?;
        // SAFETY: the offset is 0 or 1, within the entry.
        Some(unsafe { pair.cast::<u32>().add((slot & 1) as usize) })
    }

    #[inline(always)]
    fn backend(&self, cell: u32) -> Option<*const Cell<Backend>> {
        BACKENDS.get_ptr(cell)
    }

    #[inline(always)]
    fn node(&self) -> Option<*const Cell<Node>> {
        NODE.get_ptr(0)
    }

    #[inline(always)]
    fn position(&self, sought: &Sought, slots: u32) -> Option<u32> {
        let mut search = Search { sought: *sought, found: None };
        // SAFETY: the function takes what `bpf_loop` calls it with, and `search` outlives the loop.
        unsafe { bpf_loop(slots, look_at as *const () as *mut c_void, (&raw mut search).cast(), 0) };
        search.found
    }
}

/// A search for a backend in a run.
struct Search {
    sought: Sought,
    found: Option<u32>,
}

/// Looks at one slot of a run; 1 ends the loop.
unsafe extern "C" fn look_at(position: u32, search: *mut Search) -> i64 {
    // SAFETY: `position` of `Maps` hands over its own search, which nobody else uses.
    let search = unsafe { &mut *search };
    if search.sought.is_at(&Maps, position) {
        search.found = Some(position);
        return 1;
    }
    0
}
