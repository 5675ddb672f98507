//! Tables in plain memory.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use storage_schema::map::{Capacities, FrontendKey, name};

use super::{Table, TableError, Tables};

/// Tables in plain memory: those of replay, of simulation and of an agent without a kernel datapath.
#[derive(Debug)]
pub struct MemoryTables {
    capacities: Capacities,
    words: [Box<[AtomicU64]>; Table::ALL.len()],
    index: Mutex<HashMap<FrontendKey, u32>>,
}

impl MemoryTables {
    /// Empty tables.
    pub fn new(capacities: Capacities) -> Self {
        let words = Table::ALL.map(|table| {
            let words = table.entries(&capacities) as usize * table.entry_bytes() / size_of::<u64>();
            std::iter::repeat_with(|| AtomicU64::new(0)).take(words).collect()
        });
        Self { capacities, words, index: Mutex::default() }
    }

    fn index(&self) -> MutexGuard<'_, HashMap<FrontendKey, u32>> {
        // Each operation on the map is whole, whoever panicked while holding the lock.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables for MemoryTables {
    fn capacities(&self) -> Capacities {
        self.capacities
    }

    fn load(&self, table: Table, word: usize) -> u64 {
        self.words[table as usize][word].load(Ordering::Acquire)
    }

    fn store(&self, table: Table, word: usize, value: u64) {
        self.words[table as usize][word].store(value, Ordering::Release);
    }

    fn pointer(&self, table: Table, word: usize) -> Option<*const u64> {
        self.words[table as usize].get(word).map(|word| word.as_ptr().cast_const())
    }

    fn index_get(&self, key: &FrontendKey) -> Result<Option<u32>, TableError> {
        Ok(self.index().get(key).copied())
    }

    fn index_insert(&self, key: &FrontendKey, cell: u32) -> Result<(), TableError> {
        let mut index = self.index();
        if index.len() >= self.capacities.frontend_cells() as usize && !index.contains_key(key) {
            return Err(TableError {
                call: "insertion into the index",
                table: name::FRONTEND_INDEX,
                source: io::Error::from(io::ErrorKind::StorageFull),
            });
        }
        index.insert(*key, cell);
        Ok(())
    }

    fn index_remove(&self, key: &FrontendKey) -> Result<(), TableError> {
        self.index().remove(key);
        Ok(())
    }

    fn index_entries(&self) -> Result<Vec<(FrontendKey, u32)>, TableError> {
        Ok(self.index().iter().map(|(key, cell)| (*key, *cell)).collect())
    }
}
