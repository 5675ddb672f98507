//! Folds records into changes: pure, the same for the store and for the state at any record.

use std::collections::{BTreeMap, HashMap, VecDeque};

use storage_schema::codec::{DecodeError, encode_resource};
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::ArchivedDelta;
use storage_schema::resource::{ArchivedKind, ArchivedResource, Kind, Resource};

use crate::append::Receipt;
use crate::durable::Head;
use crate::error::ReadError;
use crate::read::EncodedRecord;
use crate::sources::SourceState;

/// Records, folded together: of several changes of one key only the last is kept, and only that is decoded.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Records that hold a change which counts, or did when they were added.
    kept: BTreeMap<Lsn, EncodedRecord>,
    /// Key in the `resources` tree → the record and the delta that changed it last.
    last: HashMap<Vec<u8>, (Lsn, usize)>,
    pub(crate) sources: BTreeMap<String, SourceBatch>,
    /// Whose receipt came last: its hash is not known before the next record.
    last_source: String,
    /// How many records.
    pub(crate) records: usize,
    /// How many bytes they had.
    pub(crate) bytes: usize,
}

/// What a batch does to a source.
#[derive(Debug)]
pub(crate) struct SourceBatch {
    pub(crate) state: SourceState,
    /// Newest last.
    pub(crate) receipts: VecDeque<(u64, Receipt)>,
}

/// What a key becomes: the encoded resource and the record that made it so, or nothing.
pub(crate) type Change = Option<(Lsn, Vec<u8>)>;

impl Batch {
    /// Adds the next record.
    pub(crate) fn add(&mut self, record: &EncodedRecord, receipts_per_source: usize) -> Result<(), ReadError> {
        let undecodable = |source| ReadError::Undecodable { lsn: record.lsn, source };
        let archived = record.access().map_err(undecodable)?;
        let lsn = record.lsn;
        // A record names its predecessor's hash: computing one for each record would cost more than all the rest here.
        self.settle_hash(RecordHash(archived.previous_hash.0));
        for (number, delta) in archived.transaction.deltas.iter().enumerate() {
            let (kind, name) = key_of(delta);
            self.last.insert(resource_key(kind, name), (lsn, number));
        }
        let origin = &archived.transaction.origin;
        let version = origin.version.as_ref().map(|version| version.to_native());
        let state = SourceState { incarnation: origin.incarnation.to_native(), last_version: version, last_lsn: lsn };
        let name = origin.source.as_str();
        if !self.sources.contains_key(name) {
            self.sources.insert(name.to_owned(), SourceBatch { state, receipts: VecDeque::new() });
        }
        let source = self.sources.get_mut(name).expect("one was there or was made");
        source.state = SourceState { last_version: version.or(source.state.last_version), ..state };
        self.last_source.clear();
        if let Some(version) = version {
            if source.receipts.len() >= receipts_per_source {
                source.receipts.pop_front();
            }
            let hash = RecordHash::default();
            source.receipts.push_back((version, Receipt { lsn, hash, durable_wall_ns: archived.wall_ns.to_native() }));
            self.last_source.push_str(name);
        }
        self.kept.insert(lsn, record.clone());
        self.records += 1;
        self.bytes += record.encoded.len();
        Ok(())
    }

    fn settle_hash(&mut self, hash: RecordHash) {
        if let Some((_, receipt)) =
            self.sources.get_mut(&self.last_source).and_then(|source| source.receipts.back_mut())
        {
            receipt.hash = hash;
        }
        self.last_source.clear();
    }

    /// The last record, and what becomes of each key, in order.
    pub(crate) fn seal(&mut self) -> Result<(Head, BTreeMap<Vec<u8>, Change>), ReadError> {
        let last = self.kept.last_key_value().map(|(_, record)| Head { lsn: record.lsn, hash: record.hash() });
        let head = last.unwrap_or(Head::EMPTY);
        self.settle_hash(head.hash);
        let mut changes: Vec<((Lsn, usize), Vec<u8>)> = self.last.drain().map(|(key, place)| (place, key)).collect();
        changes.sort_unstable();
        let mut becomes = BTreeMap::new();
        for of_record in changes.chunk_by_mut(|one, other| one.0.0 == other.0.0) {
            let lsn = of_record[0].0.0;
            let undecodable = |source| ReadError::Undecodable { lsn, source };
            let archived = self.kept[&lsn].access().map_err(undecodable)?;
            for ((_, number), key) in of_record {
                let change = match &archived.transaction.deltas[*number] {
                    ArchivedDelta::Upsert(resource) => {
                        let resource: Resource = rkyv::deserialize(resource)
                            .map_err(|source| undecodable(DecodeError::Damaged { source }))?;
                        Some((lsn, encode_resource(&resource)))
                    }
                    ArchivedDelta::Remove(_) => None,
                };
                becomes.insert(std::mem::take(key), change);
            }
        }
        Ok((head, becomes))
    }
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
    bytes.push(kind as u8);
    bytes.extend_from_slice(name.as_bytes());
    bytes
}

/// Reads such a key.
pub(crate) fn split_key(key: &[u8]) -> Option<(Kind, &str)> {
    let (kind, name) = key.split_first()?;
    let kind = Kind::ALL.into_iter().find(|known| *known as u8 == *kind)?;
    Some((kind, std::str::from_utf8(name).ok()?))
}
