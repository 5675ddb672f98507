//! The derived store: current state, sources and their receipts, as of one record of the journal.
//!
//! It is kept in sled, and this file and those below `store/` are the only ones that name sled. Everything in it can be
//! computed from the journal, so it is never synced and never believed without proof: a digest of all entries is written
//! with what changes. Opening adds it up again; a store that is missing, does not open, is of another layout, or whose digest
//! does not fit is deleted and rebuilt. That covers damaged files and writes that a power cut lost or reordered.
//!
//! # How it goes from one record to a later one
//!
//! A batch of records, folded together, goes in by steps, so that none keeps a processor long (see [`crate::gate`]):
//!
//! ```text
//!   head a, touched a ─ step ─▶ head a, touched b ─ step ─▶ ... ─ transaction ─▶ head a, touched b ─ last one ─▶ head b, touched b
//!                      resources of (a..b], write by write      sources and receipts, a few sources at a time
//! ```
//!
//! Until the last transaction the store shows no record's state, and its *head* stays where it was. Nobody reads it meanwhile:
//! it is away from the shelf, and one that was interrupted there comes back only when it has been folded at least up to the
//! record that it was *touched* by. Folding again from the head is right, because
//!
//! * a resource is written whole, with its last change in the batch: however often, whatever was there;
//! * a source goes in with its receipts, in one transaction, and its value says up to which record they are there; what is
//!   there already is left out.
//!
//! A transaction costs sled two writes of its log to the file, so resources go in without one. A step announces what each of
//! its writes will add to the digest (`meta`), then makes them. sled recovers a beginning of what was written, in the order in
//! which one thread wrote it; so after a kill the digest is the one that was announced with, plus a beginning of what was
//! announced. Anything else is damage.
//!
//! Invariants:
//! * `HEAD`: if head and touched are one record, the store is the fold of the journal up to it.
//! * `TOUCHED`: nothing in it comes from a record behind touched. A store that is touched by a record which the journal does
//!   not have, or has otherwise, is rebuilt.
//! * `PROVEN`: the digest fits, with some beginning of the writes that were announced last.
//!
//! # What it is made of
//!
//! sled 0.34.7's hazards, and what is done here: a leftover `snap.*.generating` makes it unopenable (deleted before opening);
//! `flush_async` can deadlock (never called; the background flusher is off); its flush is no fsync (nothing relies on one);
//! two batches are not one atomic unit (one multi-tree transaction, or writes in an order that does not need one); it can
//! panic on its own files (opened on a thread of its own); large values are slow (values are kept below 4 KiB, larger resources
//! continue in a tree of their own).
//!
//! | tree | key | value (integers little endian) |
//! |---|---|---|
//! | `resources` | kind, name | LSN of the last change (8), length (4), the first 4096 bytes of what is stored: the length of the owner's name (2), the name, the encoded resource |
//! | `overflow` | kind, name, `0xff`, number (2, big endian) | the following 4096 bytes |
//! | `sources` | name | incarnation (8), has a version (1), last version (8), last LSN (8), receipts kept (8); and if it has ever said so what is known (1: bit 0, how long what it owns stays; bit 1, whether it has expired, which is bit 2), seconds that it stays (4) |
//! | `receipts` | source, `0xff`, first version (8, big endian) | up to 64 of: version (8), LSN (8), hash (32), wall clock at the append (8) |
//! | `meta` | `state` | layout (4), schema of the resources (4), store id (16), head: LSN (8), hash (32), touched: LSN (8), hash (32), digest (16), number of resources (8), and what each announced write adds to the digest (16) |
//!
//! This is layout 3. A store of an older one is rebuilt.

mod bytes;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod write;

use std::fs;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::thread;

use sled::{Db, IVec, Tree};
use storage_schema::codec::decode_resource;
use storage_schema::id::{Lsn, RecordHash, StoreId};
use storage_schema::resource::{Kind, Resource, ResourceKey};

use self::bytes::{
    decode_receipts, decode_source, overflow_key, pieces_behind, receipts_key, split_receipts_key, split_value,
};
use self::state::{State, TreeTag, digest};
pub(crate) use self::write::Put;
use crate::append::Receipt;
use crate::checkpoint::{CheckpointError, Entry};
use crate::durable::Head;
use crate::error::{ReadError, StoreError};
use crate::fold::{resource_key, split_key, split_owner};
use crate::lock::wait_for_lock;
use crate::sources::SourceState;

const STATE_KEY: &[u8] = b"state";

/// An open store.
#[derive(Debug)]
pub(crate) struct Store {
    path: PathBuf,
    db: Db,
    trees: Trees,
    state: State,
    receipts_per_source: usize,
}

#[derive(Clone, Debug)]
struct Trees {
    resources: Tree,
    overflow: Tree,
    sources: Tree,
    receipts: Tree,
    meta: Tree,
}

impl Trees {
    fn tagged(&self, tag: TreeTag) -> &Tree {
        match tag {
            TreeTag::Resources => &self.resources,
            TreeTag::Overflow => &self.overflow,
            TreeTag::Sources => &self.sources,
            TreeTag::Receipts => &self.receipts,
        }
    }
}

/// A store that was opened and is not proven to be whole.
#[derive(Debug)]
pub(crate) struct Unproven {
    store: Store,
    /// What the last step's writes add to the digest.
    announced: Vec<u128>,
}

/// A stored resource, not decoded.
#[derive(Clone, Copy, Debug)]
pub struct StoredResource<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: &'a str,
    /// The record that changed it last.
    pub changed_lsn: Lsn,
    /// The source that pushed that record; empty if that is not known any more.
    pub owner: &'a str,
    /// The encoded resource: for `storage_schema::codec::access_resource`.
    pub encoded: &'a [u8],
}

/// A stored resource, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedResource {
    /// The resource.
    pub resource: Resource,
    /// The record that changed it last.
    pub changed_lsn: Lsn,
    /// The source that pushed that record; empty if that is not known any more.
    pub owner: String,
}

impl StoredResource<'_> {
    /// The resource.
    pub(crate) fn decode(&self) -> Result<OwnedResource, ReadError> {
        let resource = decode_resource(self.encoded)
            .map_err(|source| ReadError::UndecodableResource { key: ResourceKey::new(self.kind, self.name), source })?;
        Ok(OwnedResource { resource, changed_lsn: self.changed_lsn, owner: self.owner.to_owned() })
    }
}

/// Who is shown the resources of a store while it is opened.
pub(crate) type Show<'s> = dyn FnMut(StoredResource<'_>) + Send + 's;

/// Shown by a store that is being loaded: no journal has that record, so an interrupted load is never believed.
pub(crate) const LOADING: Head = Head { lsn: Lsn(u64::MAX), hash: RecordHash([0; 32]) };

impl Store {
    /// Opens the store in `path`, or creates an empty one, and does `here` meanwhile.
    pub(crate) fn open<H>(
        path: &Path,
        store_id: StoreId,
        cache_bytes: u64,
        receipts_per_source: usize,
        here: impl FnOnce() -> H,
    ) -> (Result<Unproven, StoreError>, H) {
        let open = || {
            remove_generating(path).map_err(|source| StoreError::Io {
                action: "clean up",
                path: path.to_owned(),
                source,
            })?;
            let (db, trees, state, announced) = open_trees(path, store_id, cache_bytes)?;
            let store = Self { path: path.to_owned(), db, trees, state, receipts_per_source };
            Ok(Unproven { store, announced })
        };
        apart(path, open, here)
    }

    /// Adds the digest up again, and counts the resources; returns the state with both.
    fn prove(&self, announced: &[u128], show: &mut Show<'_>) -> Result<State, StoreError> {
        let (mut sum, mut resources) = (0u128, 0);
        let mut whole = Vec::new();
        for tag in [TreeTag::Resources, TreeTag::Overflow, TreeTag::Sources, TreeTag::Receipts] {
            for entry in self.trees.tagged(tag) {
                let (key, value) = entry.map_err(database(&self.path))?;
                sum = sum.wrapping_add(digest(tag, &key, &value));
                if tag == TreeTag::Resources {
                    resources += 1;
                    // Between two states a resource may be without its end, and nobody counts on what is shown.
                    if self.is_whole() {
                        show(self.stored(&key, &value, &mut whole)?);
                    }
                }
            }
        }
        let proven = self.state.proven(announced, sum);
        let state = proven.ok_or_else(|| self.damaged("its digest does not fit its entries"))?;
        Ok(State { resources, ..state })
    }

    /// Deletes the store in `path`.
    pub(crate) fn delete(path: &Path) -> Result<(), StoreError> {
        match fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { action: "delete", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// The record whose state it shows.
    pub(crate) fn head(&self) -> Head {
        self.state.head
    }

    /// The last record that may have left something in it; the head, unless a fold was interrupted.
    pub(crate) fn touched(&self) -> Head {
        self.state.touched
    }

    /// Whether it shows the state at its head, and nothing of a later record.
    pub(crate) fn is_whole(&self) -> bool {
        self.state.touched == self.state.head
    }

    /// How many resources there are.
    pub(crate) fn resources_count(&self) -> u64 {
        self.state.resources
    }

    /// Bytes on disk.
    pub(crate) fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(database(&self.path))
    }

    /// Shows everything as entries of a checkpoint.
    pub(crate) fn export(
        &self,
        push: &mut dyn FnMut(Entry<'_>) -> Result<(), CheckpointError>,
    ) -> Result<(), ReadError> {
        let mut failed = None;
        self.visit(None, Bound::Unbounded, |stored| {
            let StoredResource { kind, name, changed_lsn, owner, encoded } = stored;
            failed = push(Entry::Resource { kind, name, changed_lsn, owner, encoded }).err();
            failed.is_none()
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        for entry in &self.trees.sources {
            let (name, value) = entry.map_err(database(&self.path))?;
            let name = std::str::from_utf8(&name).map_err(|_| self.damaged("a source's name"))?;
            push(Entry::Source { name, value: &value })?;
        }
        for entry in &self.trees.receipts {
            let (key, page) = entry.map_err(database(&self.path))?;
            let (source, first_version) = split_receipts_key(&key).ok_or_else(|| self.damaged("receipts"))?;
            push(Entry::Receipts { source, first_version, page: &page })?;
        }
        Ok(())
    }

    /// Hands what is buffered to the operating system, so that a killed process leaves little to fold again. Not an fsync.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.db.flush().map(|_| ()).map_err(database(&self.path))
    }

    /// All sources.
    pub(crate) fn sources(&self) -> Result<Vec<(String, SourceState)>, StoreError> {
        self.trees
            .sources
            .iter()
            .map(|entry| {
                let (name, value) = entry.map_err(database(&self.path))?;
                let name = String::from_utf8(name.to_vec()).map_err(|_| self.damaged("a source's name"))?;
                let (state, _) = decode_source(&value).ok_or_else(|| self.damaged("a source"))?;
                Ok((name, state))
            })
            .collect()
    }

    /// The receipt of a source's version, if it is kept.
    pub(crate) fn receipt(&self, source: &str, version: u64) -> Result<Option<Receipt>, StoreError> {
        let range = receipts_key(source, 0)..=receipts_key(source, version);
        let Some(page) = self.trees.receipts.range(range).next_back() else { return Ok(None) };
        let (_, page) = page.map_err(database(&self.path))?;
        let page = decode_receipts(&page).ok_or_else(|| self.damaged("receipts"))?;
        Ok(page.binary_search_by_key(&version, |(version, _)| *version).ok().map(|at| page[at].1))
    }

    /// How many receipts of a source are kept, and its oldest version among them.
    pub(crate) fn receipts_kept(&self, source: &str) -> Result<(u64, Option<u64>), StoreError> {
        let value = self.trees.sources.get(source).map_err(database(&self.path))?;
        let value = value.map(|value| decode_source(&value).ok_or_else(|| self.damaged("a source"))).transpose()?;
        let first = self.trees.receipts.range(receipts_key(source, 0)..=receipts_key(source, u64::MAX)).next();
        let first = first.transpose().map_err(database(&self.path))?;
        let oldest = first.map(|(key, _)| {
            split_receipts_key(&key).map(|(_, version)| version).ok_or_else(|| self.damaged("receipts"))
        });
        Ok((value.map_or(0, |(_, kept)| kept), oldest.transpose()?))
    }

    /// A resource, with the record and the source that changed it last.
    pub(crate) fn resource(&self, key: &ResourceKey) -> Result<Option<OwnedResource>, ReadError> {
        let stored_key = resource_key(key.kind, &key.name);
        let Some(value) = self.trees.resources.get(&stored_key).map_err(database(&self.path))? else { return Ok(None) };
        let mut whole = Vec::new();
        self.stored(&stored_key, &value, &mut whole)?.decode().map(Some)
    }

    /// Shows resources to `visit` in the order of their keys, from `start` on, until it says no.
    pub(crate) fn visit(
        &self,
        kind: Option<Kind>,
        start: Bound<&ResourceKey>,
        mut visit: impl FnMut(StoredResource<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let prefix: Vec<u8> = kind.iter().map(|kind| *kind as u8).collect();
        let start = match start {
            Bound::Unbounded => prefix.clone(),
            Bound::Included(key) => resource_key(key.kind, &key.name),
            Bound::Excluded(key) => {
                let mut start = resource_key(key.kind, &key.name);
                start.push(0);
                start
            }
        };
        let mut whole = Vec::new();
        for entry in self.trees.resources.range(start..) {
            let (key, value) = entry.map_err(database(&self.path))?;
            if !key.starts_with(&prefix) {
                break;
            }
            if !visit(self.stored(&key, &value, &mut whole)?) {
                break;
            }
        }
        Ok(())
    }

    /// An entry of the `resources` tree; put together in `whole` if it has several pieces.
    fn stored<'a>(
        &self,
        key: &'a [u8],
        value: &'a IVec,
        whole: &'a mut Vec<u8>,
    ) -> Result<StoredResource<'a>, StoreError> {
        let (kind, name) = split_key(key).ok_or_else(|| self.damaged("a resource's key"))?;
        let (changed_lsn, stored) = self.assemble(key, value, whole)?;
        let (owner, encoded) = split_owner(stored).ok_or_else(|| self.damaged("a resource's owner"))?;
        Ok(StoredResource { kind, name, changed_lsn, owner, encoded })
    }

    /// The encoded resource behind a value of the `resources` tree, put together in `whole` if it has several pieces.
    fn assemble<'a>(&self, key: &[u8], value: &'a IVec, whole: &'a mut Vec<u8>) -> Result<(Lsn, &'a [u8]), StoreError> {
        let (lsn, total, first) = split_value(value).ok_or_else(|| self.damaged("a resource"))?;
        if first.len() == total {
            return Ok((lsn, first));
        }
        whole.clear();
        whole.extend_from_slice(first);
        for number in 0..pieces_behind(total) {
            let piece = self.trees.overflow.get(overflow_key(key, number)).map_err(database(&self.path))?;
            whole.extend_from_slice(&piece.ok_or_else(|| self.damaged("a large resource without its end"))?);
        }
        if whole.len() == total { Ok((lsn, whole)) } else { Err(self.damaged("a large resource")) }
    }

    fn damaged(&self, what: &'static str) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }
}

impl Unproven {
    /// The record whose state it shows, and the last one that may have left something in it.
    pub(crate) fn heads(&self) -> [Head; 2] {
        [self.store.head(), self.store.touched()]
    }

    /// Proves that the store is whole, and does `here` meanwhile. The proof visits every entry, and shows the resources to `show`
    /// on its way: they count only if the store does.
    pub(crate) fn prove<H>(self, show: &mut Show<'_>, here: impl FnOnce() -> H) -> (Result<Store, StoreError>, H) {
        let Self { store, announced } = self;
        let path = store.path.clone();
        let prove = || {
            let state = store.prove(&announced, show)?;
            Ok(Store { state, ..store })
        };
        apart(&path, prove, here)
    }
}

/// Does `work` on a thread of its own, as sled can panic on its own files, and `here` meanwhile.
fn apart<T: Send, H>(
    path: &Path,
    work: impl FnOnce() -> Result<T, StoreError> + Send,
    here: impl FnOnce() -> H,
) -> (Result<T, StoreError>, H) {
    thread::scope(|scope| {
        let working = thread::Builder::new().name("store-open".to_owned()).spawn_scoped(scope, work);
        let here = here();
        let outcome = match working {
            Ok(working) => working.join().unwrap_or_else(|panic| {
                Err(StoreError::Panicked { path: path.to_owned(), panic: panic_message(&*panic) })
            }),
            Err(source) => Err(StoreError::Io { action: "open", path: path.to_owned(), source }),
        };
        (outcome, here)
    })
}

fn open_trees(path: &Path, store_id: StoreId, cache_bytes: u64) -> Result<(Db, Trees, State, Vec<u128>), StoreError> {
    let failed = database(path);
    wait_for_lock(&path.join("db")).map_err(|source| StoreError::Io {
        action: "lock",
        path: path.to_owned(),
        source,
    })?;
    let damaged = |what| StoreError::Damaged { path: path.to_owned(), what };
    let db = sled::Config::new()
        .path(path)
        .cache_capacity(cache_bytes)
        .flush_every_ms(None)
        .use_compression(false)
        .open()
        .map_err(&failed)?;
    let tree = |name: &str| db.open_tree(name).map_err(database(path));
    let trees = Trees {
        resources: tree("resources")?,
        overflow: tree("overflow")?,
        sources: tree("sources")?,
        receipts: tree("receipts")?,
        meta: tree("meta")?,
    };
    let (state, announced) = match trees.meta.get(STATE_KEY).map_err(&failed)? {
        Some(bytes) => State::decode(&bytes).ok_or_else(|| damaged("another layout or schema"))?,
        None => (State::empty(store_id), Vec::new()),
    };
    if state.store_id != store_id {
        return Err(damaged("it belongs to another journal"));
    }
    Ok((db, trees, state, announced))
}

/// A kill while sled writes its snapshot leaves a file that makes the next open fail (spacejam/sled issues 1527, 1533).
fn remove_generating(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn database(path: &Path) -> impl Fn(sled::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Database { path: path.clone(), source: Box::new(source) }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}
