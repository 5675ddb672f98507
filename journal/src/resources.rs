//! Resources of the store, decoded, in pages: the store is not held still for a slow reader.

use std::ops::Bound;
use std::sync::Arc;

use storage_schema::codec::decode_resource;
use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, Resource, ResourceKey};

use crate::error::ReadError;
use crate::shelf::Shelf;

/// Resources in the order of kind and name.
#[derive(Debug)]
pub struct Resources {
    shelf: Arc<Shelf>,
    kind: Option<Kind>,
    page: std::vec::IntoIter<(Resource, Lsn)>,
    after: Option<ResourceKey>,
    ended: bool,
}

impl Resources {
    const PAGE: usize = 256;

    pub(crate) fn new(shelf: Arc<Shelf>, kind: Option<Kind>, after: Option<ResourceKey>) -> Self {
        Self { shelf, kind, page: Vec::new().into_iter(), after, ended: false }
    }

    fn next_page(&mut self) -> Result<(), ReadError> {
        let mut page = Vec::with_capacity(Self::PAGE);
        let mut failed = None;
        self.shelf.with(|store| {
            store.visit(self.kind, self.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded), |stored| {
                match decode_resource(stored.encoded) {
                    Ok(resource) => page.push((resource, stored.changed_lsn)),
                    Err(source) => {
                        let key = ResourceKey::new(stored.kind, stored.name);
                        failed = Some(ReadError::UndecodableResource { key, source });
                    }
                }
                failed.is_none() && page.len() < Self::PAGE
            })
        })?;
        self.ended = page.len() < Self::PAGE;
        self.after = page.last().map(|(resource, _)| resource.key());
        self.page = page.into_iter();
        failed.map_or(Ok(()), Err)
    }
}

impl Iterator for Resources {
    type Item = Result<(Resource, Lsn), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(resource) = self.page.next() {
                return Some(Ok(resource));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.next_page() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}
