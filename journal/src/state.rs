//! The state at any record: the nearest checkpoint before it, and the log from there on.

use std::collections::BTreeMap;

use storage_schema::codec::decode_resource;
use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, Resource, ResourceKey};

use crate::checkpoint::{Checkpoint, Entry, read_checkpoint, verify_checkpoint};
use crate::durable::{Durable, Head};
use crate::error::ReadError;
use crate::fold::{Batch, join_owner, resource_key, split_key, split_owner};
use crate::read::Library;
use crate::shelf::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX};
use crate::store::StoredResource;

/// All resources as they were after one record. It stands on its own: nothing that happens to the journal changes it.
#[derive(Clone, Debug)]
pub struct State {
    head: Head,
    /// Kind and name → the record that changed it last, and its owner with the encoded resource.
    resources: BTreeMap<Vec<u8>, (Lsn, Vec<u8>)>,
}

impl State {
    /// Before the first record.
    fn empty() -> Self {
        Self { head: Head::EMPTY, resources: BTreeMap::new() }
    }

    /// The record after which it was so.
    pub fn head(&self) -> Head {
        self.head
    }

    /// The same: all of the state was read from below the durable LSN.
    pub fn durable_head(&self) -> Durable<Head> {
        Durable::vouch(self.head)
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// The resources in the order of kind and name, not decoded.
    pub fn iter(&self) -> impl Iterator<Item = StoredResource<'_>> {
        self.resources.iter().map(|(key, (changed_lsn, stored))| {
            let (kind, name) = split_key(key).expect("keys are put in by kind and name");
            let (owner, encoded) = split_owner(stored).expect("resources are put in with their owners");
            StoredResource { kind, name, changed_lsn: *changed_lsn, owner, encoded }
        })
    }

    /// The resources of one kind, in the order of their names, not decoded.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = StoredResource<'_>> {
        self.iter().filter(move |resource| resource.kind == kind)
    }

    /// A resource, and the record that changed it last.
    pub fn get(&self, key: &ResourceKey) -> Result<Option<(Resource, Lsn)>, ReadError> {
        let Some((changed_lsn, stored)) = self.resources.get(&resource_key(key.kind, &key.name)) else {
            return Ok(None);
        };
        let (_, encoded) = split_owner(stored).expect("resources are put in with their owners");
        let resource =
            decode_resource(encoded).map_err(|source| ReadError::UndecodableResource { key: key.clone(), source })?;
        Ok(Some((resource, *changed_lsn)))
    }
}

/// Computes the state at `lsn` from the newest checkpoint at or before it.
pub(crate) fn state_at(
    library: &Library,
    checkpoints: &[Checkpoint],
    lsn: Lsn,
    go_on: &dyn Fn() -> bool,
) -> Result<State, ReadError> {
    let durable_lsn = library.durable_lsn();
    if lsn > durable_lsn {
        return Err(ReadError::NotThere { wanted: lsn, durable_lsn });
    }
    let mut state = base(library, checkpoints, lsn, go_on)?;
    let mut records = library.read_from(state.head.lsn.next())?;
    while state.head.lsn < lsn {
        if !go_on() {
            return Err(ReadError::Closed);
        }
        let mut batch = Batch::default();
        while batch.records() < BATCH_RECORDS_MAX && batch.bytes < BATCH_BYTES_MAX && records.next_lsn() <= lsn {
            let Some(record) = records.next_encoded() else { break };
            batch.add(record?.into_inner(), 1)?;
        }
        state.head = batch.seal();
        batch.changes::<ReadError>(|key, change| {
            match change {
                Some(change) => state.resources.insert(key.to_vec(), change),
                None => state.resources.remove(key),
            };
            Ok(())
        })?;
    }
    Ok(state)
}

/// Where to start from: the newest usable checkpoint at or before `lsn`, or the beginning.
fn base(library: &Library, checkpoints: &[Checkpoint], lsn: Lsn, go_on: &dyn Fn() -> bool) -> Result<State, ReadError> {
    let oldest_lsn = library.catalogue.oldest_lsn();
    let usable = |checkpoint: &&Checkpoint| checkpoint.lsn <= lsn && checkpoint.lsn.next() >= oldest_lsn;
    for checkpoint in checkpoints.iter().rev().filter(usable) {
        if let Err(error) = verify_checkpoint(&checkpoint.path, library.store_id) {
            tracing::error!(%error, "a checkpoint cannot be used; trying an older one");
            continue;
        }
        let mut state = State::empty();
        state.head = read_checkpoint::<ReadError>(&checkpoint.path, library.store_id, |entry| {
            if let Entry::Resource { kind, name, changed_lsn, owner, encoded } = entry {
                state.resources.insert(resource_key(kind, name), (changed_lsn, join_owner(owner, encoded)));
            }
            if go_on() { Ok(()) } else { Err(ReadError::Closed) }
        })?;
        return Ok(state);
    }
    if oldest_lsn == Lsn::FIRST {
        return Ok(State::empty());
    }
    let oldest = checkpoints.iter().find(|checkpoint| checkpoint.lsn.next() >= oldest_lsn);
    Err(ReadError::NoState { wanted: lsn, oldest_lsn: oldest.map_or(Lsn(u64::MAX), |checkpoint| checkpoint.lsn) })
}
