//! A disk in memory that fails as real ones do, repeatably by seed.
//!
//! Fault model:
//! * A power cut may come before, or in the middle of, any operation. Of the sectors (512 bytes) that were written since
//!   their file's last good sync, any subset survives, each whole: writes are torn and reordered at sector boundaries.
//! * A length that was changed and not synced is the old or the new one. Of the changes to a directory since its last sync, any
//!   prefix survives: directories are journaled, files are not.
//! * A sync may fail (EIO). Any subset of the unsynced sectors is on the disk then; the rest is lost, but reads show it until
//!   the cache is dropped, and the next sync says nothing (as Linux behaves).
//! * A write may fail (EIO) with any prefix of its sectors written; extending a file may fail for lack of space (ENOSPC).
//! * The file system may become read-only (EROFS), as some do by themselves after an error.
//! * Bits may flip at rest ([`SimulatedDisk::flip`]).
//! * A disk may lie: syncs that do nothing and say they did ([`Faults::lying_sync`]). Nothing can survive that; it is here so
//!   that a simulation can show it would notice.
//!
//! Not modelled: misdirected writes, sectors that cannot be read, a directory journal that is torn.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rustix::io::Errno;

use super::{Disk, DiskFile, SECTOR_BYTES};

/// What goes wrong, by the number of the operation (counted from 0 over all changing operations since the start).
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The power is cut in the middle of this operation.
    pub power_cut_at: Option<u64>,
    /// These operations fail with EIO, if they are writes or syncs.
    pub eio_at: BTreeSet<u64>,
    /// Bytes that all files together may take.
    pub capacity_bytes: Option<u64>,
    /// Everything that would change something fails with EROFS.
    pub read_only: bool,
    /// Syncs do nothing.
    pub lying_sync: bool,
}

/// The disk. Clones share it.
#[derive(Clone, Debug)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    random: ChaCha8Rng,
    faults: Faults,
    operations: u64,
    powered: bool,
    /// Handles from before a power cut are dead.
    boot: u64,
    next_inode: u64,
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    unsynced: Vec<Renaming>,
}

/// A change to a directory.
#[derive(Clone, Debug)]
struct Renaming {
    remove: Option<PathBuf>,
    insert: Option<(PathBuf, u64)>,
}

#[derive(Debug, Default)]
struct Inode {
    /// What reads show.
    cached: Vec<u8>,
    /// What survives.
    durable: Vec<u8>,
    /// Sectors that were written since the last sync.
    dirty: BTreeSet<usize>,
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        let state = State {
            random: ChaCha8Rng::seed_from_u64(seed),
            faults: Faults::default(),
            operations: 0,
            powered: true,
            boot: 0,
            next_inode: 1,
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Replaces what goes wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// How many changing operations there were.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Whether the power is on.
    pub fn powered(&self) -> bool {
        self.lock().powered
    }

    /// Cuts the power, if it is on, and switches it on again: what was not synced is decided now.
    pub fn power_cycle(&self) {
        let mut state = self.lock();
        state.cut_power();
        state.powered = true;
        state.boot += 1;
        state.faults.power_cut_at = None;
    }

    /// Flips one bit of a file, on the disk and in the cache.
    pub fn flip(&self, path: &Path, bit: u64) {
        let mut state = self.lock();
        let inode = state.names[path];
        let inode = state.inodes.get_mut(&inode).expect("named files exist");
        let (byte, mask) = (usize::try_from(bit / 8).expect("files are small"), 1 << (bit % 8));
        inode.cached[byte] ^= mask;
        if let Some(byte) = inode.durable.get_mut(byte) {
            *byte ^= mask;
        }
    }

    /// The files there are.
    pub fn files(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation; whether the power goes in its middle, and whether it fails.
    fn begin(&self) -> io::Result<(MutexGuard<'_, State>, bool, bool)> {
        let mut state = self.lock();
        if !state.powered {
            return Err(power_is_off());
        }
        if state.faults.read_only {
            return Err(Errno::ROFS.into());
        }
        let number = state.operations;
        state.operations += 1;
        let cut = state.faults.power_cut_at == Some(number);
        let eio = state.faults.eio_at.contains(&number);
        Ok((state, cut, eio))
    }

    fn change_names(&self, change: impl FnOnce(&mut State) -> io::Result<Renaming>) -> io::Result<()> {
        let (mut state, cut, _) = self.begin()?;
        let renaming = change(&mut state)?;
        apply(&mut state.names, &renaming);
        state.unsynced.push(renaming);
        state.cut_if(cut)
    }

    fn handle(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let state = self.lock();
        if !state.powered {
            return Err(power_is_off());
        }
        let inode = *state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode, boot: state.boot }))
    }
}

impl State {
    fn cut_if(&mut self, cut: bool) -> io::Result<()> {
        if cut {
            self.cut_power();
            return Err(power_is_off());
        }
        Ok(())
    }

    fn cut_power(&mut self) {
        if !self.powered {
            return;
        }
        self.powered = false;
        let survivors = self.random.random_range(0..=self.unsynced.len());
        let unsynced = std::mem::take(&mut self.unsynced);
        for renaming in &unsynced[..survivors] {
            apply(&mut self.durable_names, renaming);
        }
        self.names = self.durable_names.clone();
        // One probability for each cut, so that all, none and some are all likely.
        let survival = [0.0, 0.1, 0.5, 0.9, 1.0][self.random.random_range(0..5)];
        let Self { inodes, random, .. } = self;
        for inode in inodes.values_mut() {
            inode.write_back(random, survival);
            inode.cached.clone_from(&inode.durable);
        }
    }
}

impl Inode {
    /// Writes some of the dirty sectors to the disk, and the length perhaps; all are clean then.
    fn write_back(&mut self, random: &mut ChaCha8Rng, survival: f64) {
        if random.random_bool(survival) {
            self.durable.resize(self.cached.len(), 0);
        }
        for sector in std::mem::take(&mut self.dirty) {
            if random.random_bool(survival) {
                self.write_sector_back(sector);
            }
        }
    }

    fn write_sector_back(&mut self, sector: usize) {
        let start = sector * SECTOR_BYTES;
        let end = (start + SECTOR_BYTES).min(self.cached.len()).min(self.durable.len());
        if start < end {
            self.durable[start..end].copy_from_slice(&self.cached[start..end]);
        }
    }

    fn write(&mut self, bytes: &[u8], offset: usize) {
        let end = offset + bytes.len();
        if self.cached.len() < end {
            self.cached.resize(end, 0);
        }
        self.cached[offset..end].copy_from_slice(bytes);
        if !bytes.is_empty() {
            self.dirty.extend(offset / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
        }
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.change_names(|state| {
            if state.names.contains_key(path) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let inode = state.next_inode;
            state.next_inode += 1;
            state.inodes.insert(inode, Inode::default());
            Ok(Renaming { remove: None, insert: Some((path.to_owned(), inode)) })
        })?;
        self.handle(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.handle(path)
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.handle(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.lock().names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change_names(|state| {
            let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            Ok(Renaming { remove: Some(from.to_owned()), insert: Some((to.to_owned(), inode)) })
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change_names(|state| {
            state.names.get(path).ok_or(io::ErrorKind::NotFound)?;
            Ok(Renaming { remove: Some(path.to_owned()), insert: None })
        })
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        let (mut state, cut, eio) = self.begin()?;
        state.cut_if(cut)?;
        if eio {
            return Err(Errno::IO.into());
        }
        if !state.faults.lying_sync {
            state.durable_names = state.names.clone();
            state.unsynced.clear();
        }
        Ok(())
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    inode: u64,
    boot: u64,
}

impl SimulatedFile {
    fn alive(&self, state: &State) -> io::Result<()> {
        if state.powered && state.boot == self.boot { Ok(()) } else { Err(power_is_off()) }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Inode) -> T) -> io::Result<T> {
        let mut state = self.disk.lock();
        self.alive(&state)?;
        Ok(look(state.inodes.get_mut(&self.inode).expect("inodes are never forgotten")))
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|inode| {
            let start = position(offset).min(inode.cached.len());
            let read = buffer.len().min(inode.cached.len() - start);
            buffer[..read].copy_from_slice(&inode.cached[start..start + read]);
            read
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut state, cut, eio) = self.disk.begin()?;
        self.alive(&state)?;
        let used: usize = state.inodes.values().map(|inode| inode.cached.len()).sum();
        let State { inodes, random, faults, .. } = &mut *state;
        let inode = inodes.get_mut(&self.inode).expect("inodes are never forgotten");
        let offset = position(offset);
        let growth = (offset + bytes.len()).saturating_sub(inode.cached.len());
        if faults.capacity_bytes.is_some_and(|capacity| (used + growth) as u64 > capacity) {
            return Err(Errno::NOSPC.into());
        }
        if eio {
            let written = random.random_range(0..=bytes.len()) / SECTOR_BYTES * SECTOR_BYTES;
            inode.write(&bytes[..written], offset);
            return Err(Errno::IO.into());
        }
        inode.write(bytes, offset);
        state.cut_if(cut)
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut state, cut, eio) = self.disk.begin()?;
        self.alive(&state)?;
        state.cut_if(cut)?;
        let State { inodes, random, faults, .. } = &mut *state;
        let inode = inodes.get_mut(&self.inode).expect("inodes are never forgotten");
        if eio {
            inode.write_back(random, 0.5);
            return Err(Errno::IO.into());
        }
        if !faults.lying_sync {
            inode.durable.resize(inode.cached.len(), 0);
            for sector in std::mem::take(&mut inode.dirty) {
                inode.write_sector_back(sector);
            }
        }
        Ok(())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let (mut state, cut, _) = self.disk.begin()?;
        self.alive(&state)?;
        let inode = state.inodes.get_mut(&self.inode).expect("inodes are never forgotten");
        inode.cached.resize(position(bytes), 0);
        state.cut_if(cut)
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|inode| inode.cached.len() as u64)
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.with(|inode| {
            let mut seen = inode.durable.clone();
            seen.resize(inode.cached.len(), 0);
            for sector in &inode.dirty {
                let start = sector * SECTOR_BYTES;
                let end = (start + SECTOR_BYTES).min(seen.len());
                if start < end {
                    seen[start..end].copy_from_slice(&inode.cached[start..end]);
                }
            }
            inode.cached = seen;
        })
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, renaming: &Renaming) {
    if let Some(path) = &renaming.remove {
        names.remove(path);
    }
    if let Some((path, inode)) = &renaming.insert {
        names.insert(path.clone(), *inode);
    }
}

fn position(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}

fn power_is_off() -> io::Error {
    io::Error::other("the power is off")
}
