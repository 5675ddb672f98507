//! The pinned maps of a generation, mapped into memory.

// Mapping memory is the one thing here that the compiler cannot check; see the SAFETY comments.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, MapInfo};
use loader::Generation;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use storage_schema::map::{Capacities, FrontendKey, name};

use super::{PartlyInserted, Table, TableError, Tables, batch};

/// The pinned maps of a generation.
#[derive(Debug)]
pub struct KernelTables {
    capacities: Capacities,
    words: [Mapping; Table::ALL.len()],
    index: Index,
    /// The same map, for calls on many entries.
    index_map: MapData,
}

impl KernelTables {
    /// Maps a generation's tables into memory.
    pub fn open(generation: &Generation, capacities: Capacities) -> Result<Self, TableError> {
        let words = Table::ALL
            .into_iter()
            .map(|table| Mapping::open(generation, table, &capacities))
            .collect::<Result<Vec<_>, _>>()?
            .try_into()
            .expect("each table gives one mapping");
        let failed = |source| table_error("opening", name::FRONTEND_INDEX, source);
        let open = || MapData::from_pin(generation.map(name::FRONTEND_INDEX)).map_err(failed);
        let index = HashMap::try_from(Map::HashMap(open()?)).map_err(failed)?;
        Ok(Self { capacities, words, index: Mutex::new(index), index_map: open()? })
    }

    fn index(&self) -> MutexGuard<'_, HashMap<MapData, IndexKey, u32>> {
        // Each call on the map is whole, whoever panicked while holding the lock.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables for KernelTables {
    fn capacities(&self) -> Capacities {
        self.capacities
    }

    fn load(&self, table: Table, word: usize) -> u64 {
        self.words[table as usize].words()[word].load(Ordering::Acquire)
    }

    fn store(&self, table: Table, word: usize, value: u64) {
        self.words[table as usize].words()[word].store(value, Ordering::Release);
    }

    fn pointer(&self, table: Table, word: usize) -> Option<*const u64> {
        self.words[table as usize].words().get(word).map(|word| word.as_ptr().cast_const())
    }

    fn index_get(&self, key: &FrontendKey) -> Result<Option<u32>, TableError> {
        match self.index().get(&IndexKey(*key), 0) {
            Ok(cell) => Ok(Some(cell)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(table_error("lookup", name::FRONTEND_INDEX, source)),
        }
    }

    fn index_insert(&self, key: &FrontendKey, cell: u32) -> Result<(), TableError> {
        self.index()
            .insert(IndexKey(*key), cell, 0)
            .map_err(|source| table_error("insertion", name::FRONTEND_INDEX, source))
    }

    fn index_insert_all(&self, entries: &[(FrontendKey, u32)]) -> Result<(), PartlyInserted> {
        if let [(key, cell)] = entries {
            return self.index_insert(key, *cell).map_err(|error| PartlyInserted { inserted: 0, error });
        }
        let (keys, cells): (Vec<_>, Vec<_>) = entries.iter().map(|(key, cell)| (IndexKey(*key), *cell)).unzip();
        batch::insert(self.index_map.fd().as_fd(), &keys, &cells).map_err(|source| {
            // The kernel goes through them in order. How far it came it tells since 6.8 only.
            let is_there = |(key, _): &&(FrontendKey, u32)| matches!(self.index_get(key), Ok(Some(_)));
            let inserted = entries.iter().take_while(is_there).count();
            PartlyInserted { inserted, error: TableError { call: "insertion", table: name::FRONTEND_INDEX, source } }
        })
    }

    fn index_remove(&self, key: &FrontendKey) -> Result<(), TableError> {
        match self.index().remove(&IndexKey(*key)) {
            Err(source) if !is_absent(&source) => Err(table_error("deletion", name::FRONTEND_INDEX, source)),
            _ => Ok(()),
        }
    }

    fn index_entries(&self) -> Result<Vec<(FrontendKey, u32)>, TableError> {
        let entries = batch::list(self.index_map.fd().as_fd(), (IndexKey(FrontendKey::default()), 0_u32));
        let entries = entries.map_err(|source| TableError { call: "listing", table: name::FRONTEND_INDEX, source })?;
        Ok(entries.into_iter().map(|(key, cell)| (key.0, cell)).collect())
    }
}

/// A map's memory. It belongs to the map, not to this process: it outlives the mapping, and programs read it.
#[derive(Debug)]
struct Mapping {
    start: ptr::NonNull<AtomicU64>,
    words: usize,
    bytes: usize,
}

// SAFETY: the memory is shared by design and only ever accessed through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn open(generation: &Generation, table: Table, capacities: &Capacities) -> Result<Self, TableError> {
        let failed = |source| table_error("opening", table.name(), source);
        let pin = generation.map(table.name());
        let info = MapInfo::from_pin(&pin).map_err(failed)?;
        let entries = table.entries(capacities);
        if info.max_entries() != entries || info.value_size() as usize != table.entry_bytes() {
            return Err(TableError {
                call: "opening",
                table: table.name(),
                source: io::Error::other(format!(
                    "it has {} entries of {} bytes, not {entries} of {}",
                    info.max_entries(),
                    info.value_size(),
                    table.entry_bytes()
                )),
            });
        }
        let data = MapData::from_pin(&pin).map_err(failed)?;
        let used = entries as usize * table.entry_bytes();
        // The kernel wants the whole map, in pages.
        let bytes = used.next_multiple_of(rustix::param::page_size());
        // SAFETY: a fresh mapping at an address of the kernel's choice. Its length is that of the map's memory, checked
        // against the map's own description above.
        let start = unsafe {
            mmap(ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, data.fd().as_fd(), 0)
        }
        .map_err(|errno| TableError { call: "mapping", table: table.name(), source: errno.into() })?;
        let start = ptr::NonNull::new(start.cast()).expect("the kernel maps nothing at address 0");
        Ok(Self { start, words: used / size_of::<u64>(), bytes })
    }

    const fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is page-aligned and valid for `words` words while `self` lives; all access is atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `open`, and no reference to it outlives `self`. Nothing can be done about an error.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// [`FrontendKey`] as aya wants it.
#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
struct IndexKey(FrontendKey);

// SAFETY: plain data without padding, which the ABI asserts.
unsafe impl Pod for IndexKey {}

/// The index. aya's hash wants `&mut` for its updates; the lock is never contended, as the applier is the one writer.
type Index = Mutex<HashMap<MapData, IndexKey, u32>>;

fn is_absent(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound | MapError::ElementNotFound => true,
        MapError::SyscallError(error) => error.io_error.kind() == io::ErrorKind::NotFound,
        _ => false,
    }
}

fn table_error(call: &'static str, table: &'static str, error: MapError) -> TableError {
    let source = match error {
        MapError::SyscallError(error) => error.io_error,
        other => io::Error::other(other),
    };
    TableError { call, table, source }
}
