//! What the store shows, and the digest of its entries.

use storage_schema::codec::RESOURCE_VERSION;
use storage_schema::id::StoreId;

use super::bytes::Fields;
use crate::durable::Head;

/// Changes with the table in [`super`].
const LAYOUT: u32 = 3;
const DIGEST_BYTES: usize = size_of::<u128>();

/// What the store shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) store_id: StoreId,
    pub(super) head: Head,
    /// The last record that may have left something here: beyond the head in the middle of a batch.
    pub(super) touched: Head,
    /// Sum over all entries of a hash of each: it does not depend on their order.
    pub(super) digest: u128,
    pub(super) resources: u64,
}

/// Which tree an entry is in, for the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum TreeTag {
    Resources = 1,
    Overflow = 2,
    Sources = 3,
    Receipts = 4,
}

impl State {
    pub(super) fn empty(store_id: StoreId) -> Self {
        Self { store_id, head: Head::EMPTY, touched: Head::EMPTY, digest: 0, resources: 0 }
    }

    /// As it is stored: with what each of the writes to come will add to the digest.
    pub(super) fn announce(&self, deltas: &[u128]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(128 + DIGEST_BYTES * deltas.len());
        bytes.extend_from_slice(&LAYOUT.to_le_bytes());
        bytes.extend_from_slice(&RESOURCE_VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.store_id.0);
        for head in [self.head, self.touched] {
            bytes.extend_from_slice(&head.lsn.0.to_le_bytes());
            bytes.extend_from_slice(&head.hash.0);
        }
        bytes.extend_from_slice(&self.digest.to_le_bytes());
        bytes.extend_from_slice(&self.resources.to_le_bytes());
        for delta in deltas {
            bytes.extend_from_slice(&delta.to_le_bytes());
        }
        bytes
    }

    /// Reads that, and what was announced. `None` if the bytes are of another layout or schema, or damaged.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, Vec<u128>)> {
        let mut fields = Fields(bytes);
        if u32::from_le_bytes(fields.take()?) != LAYOUT || u32::from_le_bytes(fields.take()?) != RESOURCE_VERSION {
            return None;
        }
        let store_id = StoreId(fields.take()?);
        let (head, touched) = (fields.head()?, fields.head()?);
        let digest = u128::from_le_bytes(fields.take()?);
        let resources = fields.u64()?;
        let (deltas, rest) = fields.0.as_chunks::<DIGEST_BYTES>();
        let deltas = deltas.iter().map(|delta| u128::from_le_bytes(*delta)).collect();
        rest.is_empty().then_some((Self { store_id, head, touched, digest, resources }, deltas))
    }

    /// The state with `sum` as its digest, if that is what it was after some of the announced writes.
    pub(super) fn proven(self, deltas: &[u128], sum: u128) -> Option<Self> {
        let mut digest = self.digest;
        let after_each = deltas.iter().map(|delta| {
            digest = digest.wrapping_add(*delta);
            digest
        });
        let proven = self.digest == sum || after_each.into_iter().any(|digest| digest == sum);
        proven.then_some(Self { digest: sum, ..self })
    }
}

/// An entry's part of the digest.
pub(super) fn digest(tag: TreeTag, key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[tag as u8]);
    hasher.update(&(key.len() as u64).to_le_bytes());
    hasher.update(key);
    hasher.update(value);
    let hash = hasher.finalize();
    u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}
