//! The derived store: current state, sources and their receipts, as of one record of the journal.
//!
//! It is kept in sled, and this is the only file that names sled. Everything in it can be computed from the journal, so it
//! is never synced and never believed without proof: a transaction over all its trees moves it from the state at one
//! record to the state at a later one, together with that record's number and hash and a digest of all entries. Opening adds
//! the digest up again; a store that is missing, does not open, is of another layout, or whose digest does not fit is
//! deleted and rebuilt. That covers damaged files and writes that a power cut lost or reordered.
//!
//! sled 0.34.7's hazards, and what is done here: a leftover `snap.*.generating` makes it unopenable (deleted before opening);
//! `flush_async` can deadlock (never called; the background flusher is off); its flush is no fsync (nothing relies on one);
//! two batches are not one atomic unit (one multi-tree transaction); it can panic on its own files (opened on a thread of its
//! own); large values are slow (values are kept below 4 KiB, larger resources continue in a tree of their own).
//!
//! | tree | key | value (integers little endian) |
//! |---|---|---|
//! | `resources` | kind, name | LSN of the last change (8), length (4), the first 4096 bytes of the encoded resource |
//! | `overflow` | kind, name, `0xff`, number (2, big endian) | the following 4096 bytes |
//! | `sources` | name | incarnation (8), has a version (1), last version (8), last LSN (8), receipts kept (8) |
//! | `receipts` | source, `0xff`, first version (8, big endian) | up to 64 of: version (8), LSN (8), hash (32), wall clock at the append (8) |
//! | `meta` | `state` | layout (4), schema of the resources (4), store id (16), LSN (8), hash (32), digest (16), number of resources (8) |

mod bytes;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use sled::transaction::{ConflictableTransactionError, TransactionError, Transactional, TransactionalTree};
use sled::{Db, IVec, Tree};
use storage_schema::codec::{RESOURCE_VERSION, decode_resource};
use storage_schema::id::{Lsn, RecordHash, StoreId};
use storage_schema::resource::{Kind, Resource, ResourceKey};

use self::bytes::{
    Fields, PIECE_BYTES, RECEIPT_BYTES, decode_receipts, decode_source, encode_receipts, encode_source, overflow_key,
    pieces_behind, receipts_key, split_receipts_key, split_value,
};
use crate::append::Receipt;
use crate::checkpoint::{CheckpointError, Entry};
use crate::durable::Head;
use crate::error::{ReadError, StoreError};
use crate::fold::{Batch, SourceBatch, resource_key, split_key};
use crate::lock::wait_for_lock;
use crate::sources::SourceState;

/// Changes with the table above.
const LAYOUT: u32 = 1;
const STATE_KEY: &[u8] = b"state";
/// How many receipts share a value: one each would be most of what the store does.
const RECEIPTS_PER_PAGE: usize = 64;

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

/// What the store shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    store_id: StoreId,
    head: Head,
    /// Sum over all entries of a hash of each: it does not depend on their order.
    digest: u128,
    resources: u64,
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
    /// The encoded resource: for `storage_schema::codec::access_resource`.
    pub encoded: &'a [u8],
}

/// Shown by a store that is being loaded: no journal has that record, so an interrupted load is never believed.
pub(crate) const LOADING: Head = Head { lsn: Lsn(u64::MAX), hash: RecordHash([0; 32]) };

/// An entry of a checkpoint, as it goes into the trees.
#[derive(Debug)]
pub(crate) enum OwnedEntry {
    Resource { key: Vec<u8>, change: (Lsn, Vec<u8>) },
    Source { key: Vec<u8>, value: Vec<u8> },
    Receipts { key: Vec<u8>, value: Vec<u8> },
}

impl From<Entry<'_>> for OwnedEntry {
    fn from(entry: Entry<'_>) -> Self {
        match entry {
            Entry::Resource { kind, name, changed_lsn, encoded } => {
                Self::Resource { key: resource_key(kind, name), change: (changed_lsn, encoded.to_vec()) }
            }
            Entry::Source { name, value } => Self::Source { key: name.as_bytes().to_vec(), value: value.to_vec() },
            Entry::Receipts { source, first_version, page } => {
                Self::Receipts { key: receipts_key(source, first_version), value: page.to_vec() }
            }
        }
    }
}

impl Store {
    /// Opens the store in `path` and proves that it is whole, or creates an empty one.
    pub(crate) fn open(
        path: &Path,
        store_id: StoreId,
        cache_bytes: u64,
        receipts_per_source: usize,
    ) -> Result<Self, StoreError> {
        remove_generating(path).map_err(|source| StoreError::Io {
            action: "clean up",
            path: path.to_owned(),
            source,
        })?;
        let owned = path.to_owned();
        let opening = thread::Builder::new()
            .name("store-open".to_owned())
            .spawn(move || open_and_prove(&owned, store_id, cache_bytes));
        let opening = opening.map_err(|source| StoreError::Io { action: "open", path: path.to_owned(), source })?;
        let (db, trees, state) = opening
            .join()
            .map_err(|panic| StoreError::Panicked { path: path.to_owned(), panic: panic_message(&*panic) })??;
        Ok(Self { path: path.to_owned(), db, trees, state, receipts_per_source })
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

    /// How many resources there are.
    pub(crate) fn resources_count(&self) -> u64 {
        self.state.resources
    }

    /// Bytes on disk.
    pub(crate) fn size_on_disk(&self) -> Result<u64, StoreError> {
        self.db.size_on_disk().map_err(database(&self.path))
    }

    /// Moves the store to the state after `batch`. All of it, or nothing.
    pub(crate) fn fold(&mut self, mut batch: Batch) -> Result<(), ReadError> {
        let (head, changes) = batch.seal()?;
        let sources = self.plan_sources(&batch)?;
        fail::fail_point!("journal.store.fold.before");
        let Trees { resources, overflow, sources: source_tree, receipts, meta } = &self.trees;
        let before = self.state;
        let folded = (resources, overflow, source_tree, receipts, meta).transaction(
            |(resources, overflow, source_tree, receipts, meta)| {
                let mut state = State { head, ..before };
                for (key, change) in &changes {
                    fold_resource(&mut state, resources, overflow, key, change.as_ref())?;
                }
                for plan in &sources {
                    for key in &plan.expired {
                        state.remove(TreeTag::Receipts, receipts, key)?;
                    }
                    for (key, value) in &plan.written {
                        state.insert(TreeTag::Receipts, receipts, key, value)?;
                    }
                    state.insert(TreeTag::Sources, source_tree, plan.name.as_bytes(), &plan.value)?;
                }
                meta.insert(STATE_KEY, &state.encode()[..])?;
                Ok(state)
            },
        );
        self.state = folded.map_err(|error: TransactionError<()>| match error {
            TransactionError::Abort(()) => self.damaged("an aborted transaction"),
            TransactionError::Storage(error) => database(&self.path)(error),
        })?;
        fail::fail_point!("journal.store.fold.after");
        Ok(())
    }

    /// Puts entries of a checkpoint into a store that is being rebuilt. With `LOADING` it shows no record yet.
    pub(crate) fn load(&mut self, entries: &[OwnedEntry], head: Head) -> Result<(), StoreError> {
        let Trees { resources, overflow, sources, receipts, meta } = &self.trees;
        let before = self.state;
        let loaded = (resources, overflow, sources, receipts, meta).transaction(
            |(resources, overflow, sources, receipts, meta)| {
                let mut state = State { head, ..before };
                for entry in entries {
                    match entry {
                        OwnedEntry::Resource { key, change } => {
                            fold_resource(&mut state, resources, overflow, key, Some(change))?;
                        }
                        OwnedEntry::Source { key, value } => {
                            state.insert(TreeTag::Sources, sources, key, value)?;
                        }
                        OwnedEntry::Receipts { key, value } => {
                            state.insert(TreeTag::Receipts, receipts, key, value)?;
                        }
                    }
                }
                meta.insert(STATE_KEY, &state.encode()[..])?;
                Ok(state)
            },
        );
        self.state = loaded.map_err(|error: TransactionError<()>| match error {
            TransactionError::Abort(()) => self.damaged("an aborted transaction"),
            TransactionError::Storage(error) => database(&self.path)(error),
        })?;
        Ok(())
    }

    /// Shows everything as entries of a checkpoint.
    pub(crate) fn export(
        &self,
        push: &mut dyn FnMut(Entry<'_>) -> Result<(), CheckpointError>,
    ) -> Result<(), ReadError> {
        let mut failed = None;
        self.visit(None, None, |stored| {
            let StoredResource { kind, name, changed_lsn, encoded } = stored;
            failed = push(Entry::Resource { kind, name, changed_lsn, encoded }).err();
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

    /// A resource and the record that changed it last.
    pub(crate) fn resource(&self, key: &ResourceKey) -> Result<Option<(Resource, Lsn)>, ReadError> {
        let stored_key = resource_key(key.kind, &key.name);
        let Some(value) = self.trees.resources.get(&stored_key).map_err(database(&self.path))? else { return Ok(None) };
        let mut whole = Vec::new();
        let (changed_lsn, encoded) = self.assemble(&stored_key, &value, &mut whole)?;
        let resource =
            decode_resource(encoded).map_err(|source| ReadError::UndecodableResource { key: key.clone(), source })?;
        Ok(Some((resource, changed_lsn)))
    }

    /// Shows resources to `visit` in the order of their keys, from behind `after` on, until it says no.
    pub(crate) fn visit(
        &self,
        kind: Option<Kind>,
        after: Option<&ResourceKey>,
        mut visit: impl FnMut(StoredResource<'_>) -> bool,
    ) -> Result<(), StoreError> {
        let prefix: Vec<u8> = kind.iter().map(|kind| *kind as u8).collect();
        let start = after.map_or(prefix.clone(), |key| {
            let mut start = resource_key(key.kind, &key.name);
            start.push(0);
            start
        });
        let mut whole = Vec::new();
        for entry in self.trees.resources.range(start..) {
            let (key, value) = entry.map_err(database(&self.path))?;
            if !key.starts_with(&prefix) {
                break;
            }
            let (kind, name) = split_key(&key).ok_or_else(|| self.damaged("a resource's key"))?;
            let (changed_lsn, encoded) = self.assemble(&key, &value, &mut whole)?;
            if !visit(StoredResource { kind, name, changed_lsn, encoded }) {
                break;
            }
        }
        Ok(())
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

    /// What a batch does to sources: computed before the transaction, as that cannot read ranges.
    fn plan_sources(&self, batch: &Batch) -> Result<Vec<SourcePlan>, StoreError> {
        batch.sources.iter().map(|(name, source)| self.plan_source(name, source)).collect()
    }

    fn plan_source(&self, name: &str, source: &SourceBatch) -> Result<SourcePlan, StoreError> {
        let old = self.trees.sources.get(name).map_err(database(&self.path))?;
        let old = old.map(|value| decode_source(&value).ok_or_else(|| self.damaged("a source"))).transpose()?;
        let mut kept = old.map_or(0, |(_, kept)| kept);
        let mut state = source.state;
        state.last_version = state.last_version.or(old.and_then(|(state, _)| state.last_version));

        // The last page is filled up before another one begins.
        let pages = || self.trees.receipts.range(receipts_key(name, 0)..=receipts_key(name, u64::MAX));
        let mut open = Vec::new();
        if let Some(last) = pages().next_back().transpose().map_err(database(&self.path))? {
            let last = decode_receipts(&last.1).ok_or_else(|| self.damaged("receipts"))?;
            if last.len() < RECEIPTS_PER_PAGE && !source.receipts.is_empty() {
                open = last;
            }
        }
        let first_open = open.first().map(|(version, _)| receipts_key(name, *version));
        open.extend(&source.receipts);
        kept += source.receipts.len() as u64;
        let written =
            open.chunks(RECEIPTS_PER_PAGE).map(|page| (receipts_key(name, page[0].0), encode_receipts(page))).collect();

        let mut expired = Vec::new();
        for page in pages() {
            let (key, page) = page.map_err(database(&self.path))?;
            let receipts = (page.len() / RECEIPT_BYTES) as u64;
            let needed = kept.saturating_sub(receipts) < self.receipts_per_source as u64;
            if needed || first_open.as_deref() == Some(&key[..]) {
                break;
            }
            kept -= receipts;
            expired.push(key);
        }
        Ok(SourcePlan { name: name.to_owned(), value: encode_source(&state, kept), expired, written })
    }

    fn damaged(&self, what: &'static str) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }
}

struct SourcePlan {
    name: String,
    value: Vec<u8>,
    expired: Vec<IVec>,
    written: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Which tree an entry is in, for the digest.
#[derive(Clone, Copy)]
#[repr(u8)]
enum TreeTag {
    Resources = 1,
    Overflow = 2,
    Sources = 3,
    Receipts = 4,
}

type Changed<T> = Result<T, ConflictableTransactionError<()>>;

impl State {
    fn empty(store_id: StoreId) -> Self {
        Self { store_id, head: Head::EMPTY, digest: 0, resources: 0 }
    }

    fn insert(&mut self, tag: TreeTag, tree: &TransactionalTree, key: &[u8], value: &[u8]) -> Changed<Option<IVec>> {
        let old = tree.insert(key, value)?;
        self.forget(tag, key, old.as_ref());
        self.digest = self.digest.wrapping_add(digest(tag, key, value));
        Ok(old)
    }

    fn remove(&mut self, tag: TreeTag, tree: &TransactionalTree, key: &[u8]) -> Changed<Option<IVec>> {
        let old = tree.remove(key)?;
        self.forget(tag, key, old.as_ref());
        Ok(old)
    }

    fn forget(&mut self, tag: TreeTag, key: &[u8], old: Option<&IVec>) {
        if let Some(old) = old {
            self.digest = self.digest.wrapping_sub(digest(tag, key, old));
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(88);
        bytes.extend_from_slice(&LAYOUT.to_le_bytes());
        bytes.extend_from_slice(&RESOURCE_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.store_id.0);
        bytes.extend_from_slice(&self.head.lsn.0.to_le_bytes());
        bytes.extend_from_slice(&self.head.hash.0);
        bytes.extend_from_slice(&self.digest.to_le_bytes());
        bytes.extend_from_slice(&self.resources.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are of another layout or schema, or damaged.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if u32::from_le_bytes(fields.take()?) != LAYOUT || u32::from_le_bytes(fields.take()?) != RESOURCE_VERSION {
            return None;
        }
        let store_id = StoreId(fields.take()?);
        let head = Head { lsn: Lsn(fields.u64()?), hash: RecordHash(fields.take()?) };
        let digest = u128::from_le_bytes(fields.take()?);
        let resources = fields.u64()?;
        fields.0.is_empty().then_some(Self { store_id, head, digest, resources })
    }
}

fn fold_resource(
    state: &mut State,
    resources: &TransactionalTree,
    overflow: &TransactionalTree,
    key: &[u8],
    change: Option<&(Lsn, Vec<u8>)>,
) -> Changed<()> {
    let (old, pieces) = match change {
        Some((lsn, encoded)) => {
            let (first, rest) = encoded.split_at(encoded.len().min(PIECE_BYTES));
            let mut value = Vec::with_capacity(12 + first.len());
            value.extend_from_slice(&lsn.0.to_le_bytes());
            value.extend_from_slice(&u32::try_from(encoded.len()).expect("a record is below 4 GiB").to_le_bytes());
            value.extend_from_slice(first);
            let old = state.insert(TreeTag::Resources, resources, key, &value)?;
            let mut pieces = 0;
            for piece in rest.chunks(PIECE_BYTES) {
                state.insert(TreeTag::Overflow, overflow, &overflow_key(key, pieces), piece)?;
                pieces += 1;
            }
            state.resources += u64::from(old.is_none());
            (old, pieces)
        }
        None => {
            let old = state.remove(TreeTag::Resources, resources, key)?;
            state.resources -= u64::from(old.is_some());
            (old, 0)
        }
    };
    let old_total = old.as_ref().and_then(|old| split_value(old)).map_or(0, |(_, total, _)| total);
    for number in pieces..pieces_behind(old_total) {
        state.remove(TreeTag::Overflow, overflow, &overflow_key(key, number))?;
    }
    Ok(())
}

fn open_and_prove(path: &Path, store_id: StoreId, cache_bytes: u64) -> Result<(Db, Trees, State), StoreError> {
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
    let state = match trees.meta.get(STATE_KEY).map_err(&failed)? {
        Some(bytes) => State::decode(&bytes).ok_or_else(|| damaged("another layout or schema"))?,
        None => State::empty(store_id),
    };
    if state.store_id != store_id {
        return Err(damaged("it belongs to another journal"));
    }
    let mut sum = 0u128;
    let tagged = [
        (TreeTag::Resources, &trees.resources),
        (TreeTag::Overflow, &trees.overflow),
        (TreeTag::Sources, &trees.sources),
        (TreeTag::Receipts, &trees.receipts),
    ];
    for (tag, tree) in tagged {
        for entry in tree {
            let (key, value) = entry.map_err(&failed)?;
            sum = sum.wrapping_add(digest(tag, &key, &value));
        }
    }
    if sum != state.digest {
        return Err(damaged("its digest does not fit its entries"));
    }
    Ok((db, trees, state))
}

fn digest(tag: TreeTag, key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[tag as u8]);
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let hash = hasher.finalize();
    u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
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
