//! Folds records into changes: pure, the same for the store and for the state at any record.

use std::collections::{BTreeMap, HashMap, VecDeque};

use storage_schema::codec::{DecodeError, encode_resource};
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::{ArchivedDelta, ArchivedRecord};
use storage_schema::resource::{ArchivedKind, ArchivedResource, Kind, Resource};

use crate::append::Receipt;
use crate::durable::Head;
use crate::error::ReadError;
use crate::read::EncodedRecord;
use crate::sources::SourceState;

/// Records, folded together: of several changes of one key only the last is kept, and only that is decoded.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The records in order; `None` for one that holds no change which still counts.
    kept: Vec<Option<EncodedRecord>>,
    /// How many changes of each record still count.
    counting: Vec<usize>,
    /// Key in the `resources` tree → the record, by its place in `kept`, and the delta that changed it last.
    last: HashMap<Vec<u8>, (usize, usize)>,
    pub(crate) sources: BTreeMap<String, SourceBatch>,
    /// Whose receipt came last: its hash is not known before the next record.
    last_source: String,
    /// How many bytes the records had.
    pub(crate) bytes: usize,
}

/// What a batch does to a source.
#[derive(Debug)]
pub(crate) struct SourceBatch {
    pub(crate) state: SourceState,
    /// Newest last.
    pub(crate) receipts: VecDeque<(u64, Receipt)>,
}

/// What a key becomes: the record that made it so, and its owner with the encoded resource ([`join_owner`]); or nothing.
pub(crate) type Change = Option<(Lsn, Vec<u8>)>;

impl Batch {
    /// How many records it has.
    pub(crate) fn records(&self) -> usize {
        self.kept.len()
    }

    /// Adds the next record.
    pub(crate) fn add(&mut self, record: EncodedRecord, receipts_per_source: usize) -> Result<(), ReadError> {
        let archived = record.access().map_err(undecodable(record.lsn))?;
        let lsn = record.lsn;
        // A record names its predecessor's hash: computing one for each record would cost more than all the rest here.
        self.settle_hash(RecordHash(archived.previous_hash.0));
        self.note_origin(archived, lsn, receipts_per_source);
        let here = self.kept.len();
        let mut counting = 0;
        let mut key = Vec::new();
        for (number, delta) in archived.transaction.deltas.iter().enumerate() {
            let (kind, name) = key_of(delta);
            write_key(&mut key, kind, name);
            counting += 1;
            let Some(last) = self.last.get_mut(&key) else {
                self.last.insert(key.clone(), (here, number));
                continue;
            };
            let (outdated, _) = std::mem::replace(last, (here, number));
            if outdated == here {
                counting -= 1;
                continue;
            }
            self.counting[outdated] -= 1;
            if self.counting[outdated] == 0 {
                self.kept[outdated] = None;
            }
        }
        self.bytes += record.encoded.len();
        self.counting.push(counting);
        self.kept.push(Some(record));
        Ok(())
    }

    /// Notes who has pushed the record, and its receipt.
    fn note_origin(&mut self, archived: &ArchivedRecord, lsn: Lsn, receipts_per_source: usize) {
        let origin = &archived.transaction.origin;
        let state = SourceState::of_archived(&archived.transaction, lsn);
        let name = origin.source.as_str();
        if !self.sources.contains_key(name) {
            self.sources.insert(name.to_owned(), SourceBatch { state, receipts: VecDeque::new() });
        }
        let source = self.sources.get_mut(name).expect("one was there or was made");
        source.state = state.after(source.state);
        self.last_source.clear();
        if let Some(version) = state.last_version {
            if source.receipts.len() >= receipts_per_source {
                source.receipts.pop_front();
            }
            let hash = RecordHash::default();
            source.receipts.push_back((version, Receipt { lsn, hash, durable_wall_ns: archived.wall_ns.to_native() }));
            self.last_source.push_str(name);
        }
    }

    fn settle_hash(&mut self, hash: RecordHash) {
        if let Some((_, receipt)) =
            self.sources.get_mut(&self.last_source).and_then(|source| source.receipts.back_mut())
        {
            receipt.hash = hash;
        }
        self.last_source.clear();
    }

    /// The last record. No record can be added after that.
    pub(crate) fn seal(&mut self) -> Head {
        // The last record is kept if it has deltas: one without changes nothing, but is the head all the same.
        let last = self.kept.last().and_then(Option::as_ref);
        let head = last.map_or(Head::EMPTY, |record| Head { lsn: record.lsn, hash: record.hash() });
        self.settle_hash(head.hash);
        head
    }

    /// Shows what becomes of each key, in the order of the records that made it so.
    pub(crate) fn changes<E: From<ReadError>>(
        &self,
        mut visit: impl FnMut(&[u8], Change) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut key = Vec::new();
        for (here, record) in self.kept.iter().enumerate().filter(|(here, _)| self.counting[*here] > 0) {
            let record = record.as_ref().expect("a record with changes that count is kept");
            let archived = record.access().map_err(undecodable(record.lsn))?;
            for (number, delta) in archived.transaction.deltas.iter().enumerate() {
                let (kind, name) = key_of(delta);
                write_key(&mut key, kind, name);
                if self.last.get(&key) == Some(&(here, number)) {
                    visit(&key, change_of(delta, record.lsn, &archived.transaction.origin.source)?)?;
                }
            }
        }
        Ok(())
    }
}

fn change_of(delta: &ArchivedDelta, lsn: Lsn, owner: &str) -> Result<Change, ReadError> {
    match delta {
        ArchivedDelta::Upsert(resource) => {
            let resource: Resource =
                rkyv::deserialize(resource).map_err(|source| undecodable(lsn)(DecodeError::Damaged { source }))?;
            Ok(Some((lsn, join_owner(owner, &encode_resource(&resource)))))
        }
        ArchivedDelta::Remove(_) => Ok(None),
    }
}

fn undecodable(lsn: Lsn) -> impl Fn(DecodeError) -> ReadError {
    move |source| ReadError::Undecodable { lsn, source }
}

/// The kind and name of what a delta changes.
pub(crate) fn key_of(delta: &ArchivedDelta) -> (Kind, &str) {
    match delta {
        ArchivedDelta::Upsert(ArchivedResource::Service(service)) => (Kind::Service, &service.name),
        ArchivedDelta::Upsert(ArchivedResource::Workload(workload)) => (Kind::Workload, &workload.uid),
        ArchivedDelta::Upsert(ArchivedResource::Node(node)) => (Kind::Node, &node.name),
        ArchivedDelta::Remove(key) => {
            let kind = match key.kind {
                ArchivedKind::Service => Kind::Service,
                ArchivedKind::Workload => Kind::Workload,
                ArchivedKind::Node => Kind::Node,
            };
            (kind, &key.name)
        }
    }
}

/// A resource's key where resources are kept in order: kind, then name.
pub(crate) fn resource_key(kind: Kind, name: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + name.len());
    write_key(&mut bytes, kind, name);
    bytes
}

/// The same, in place of what `key` holds.
fn write_key(key: &mut Vec<u8>, kind: Kind, name: &str) {
    key.clear();
    key.push(kind as u8);
    key.extend_from_slice(name.as_bytes());
}

/// Reads such a key.
pub(crate) fn split_key(key: &[u8]) -> Option<(Kind, &str)> {
    let (kind, name) = key.split_first()?;
    let kind = Kind::ALL.into_iter().find(|known| *known as u8 == *kind)?;
    Some((kind, std::str::from_utf8(name).ok()?))
}

/// A resource as it is stored: the source that changed it last (its length in 2 bytes, and its name), then the encoded resource.
pub(crate) fn join_owner(owner: &str, encoded: &[u8]) -> Vec<u8> {
    // A name that is longer than any that the API lets through is not remembered.
    let (length, owner) = u16::try_from(owner.len()).map_or((0, ""), |length| (length, owner));
    let mut bytes = Vec::with_capacity(2 + owner.len() + encoded.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(owner.as_bytes());
    bytes.extend_from_slice(encoded);
    bytes
}

/// Takes such bytes apart.
pub(crate) fn split_owner(stored: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = stored.split_first_chunk::<2>()?;
    let (owner, encoded) = rest.split_at_checked(u16::from_le_bytes(*length).into())?;
    Some((std::str::from_utf8(owner).ok()?, encoded))
}
