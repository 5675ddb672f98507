//! The maps. Their sizes here are the least that loads; the loader sets the real ones for each generation.

use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap};
use decision::Tables;
use storage_schema::map::{Backend, Cell, Control, EndpointPair, Frontend, FrontendKey, Node, Service, Stamp};

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

/// What each balanced socket carries.
#[btf_map(name = "stamps")]
pub static STAMPS: SkStorage<Stamp> = SkStorage::new();

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
}
