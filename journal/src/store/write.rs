//! How records and checkpoints go into the trees: see the protocol in [`super`].

use sled::transaction::{TransactionError, Transactional};
use storage_schema::id::Lsn;

use super::bytes::{
    PIECE_BYTES, RECEIPT_BYTES, decode_receipts, decode_source, encode_receipts, encode_source, overflow_key,
    pieces_behind, receipts_key, split_value, write_value,
};
use super::state::{State, TreeTag, digest};
use super::{STATE_KEY, Store, Trees, database};
use crate::checkpoint::Entry;
use crate::durable::Head;
use crate::error::{ReadError, StoreError};
use crate::fold::{Batch, Change, SourceBatch, join_owner, resource_key};

/// How many receipts share a value: one each would be most of what the store does.
const RECEIPTS_PER_PAGE: usize = 64;
/// So many writes, or so many bytes of them, are a step: about 100 µs of work.
const STEP_WRITES: usize = 8;
const STEP_BYTES: usize = 8 << 10;
/// So many writes, or so many bytes of them, are one transaction: sled writes its log to the file at each, which is not cheap.
const TOGETHER_WRITES: usize = 16;
const TOGETHER_BYTES: usize = 32 << 10;

/// An entry of a checkpoint, as it goes into the trees.
#[derive(Debug)]
pub(crate) enum Put {
    Resource { key: Vec<u8>, change: Change },
    Source { key: Vec<u8>, value: Vec<u8> },
    Receipts { key: Vec<u8>, value: Vec<u8> },
}

impl From<Entry<'_>> for Put {
    fn from(entry: Entry<'_>) -> Self {
        match entry {
            Entry::Resource { kind, name, changed_lsn, owner, encoded } => {
                let stored = join_owner(owner, encoded);
                Self::Resource { key: resource_key(kind, name), change: Some((changed_lsn, stored)) }
            }
            Entry::Source { name, value } => Self::Source { key: name.as_bytes().to_vec(), value: value.to_vec() },
            Entry::Receipts { source, first_version, page } => {
                Self::Receipts { key: receipts_key(source, first_version), value: page.to_vec() }
            }
        }
    }
}

/// A key that gets a value, or goes.
#[derive(Debug)]
struct Write {
    tag: TreeTag,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// Writes that are made one after the other, and what each adds to the digest.
#[derive(Debug, Default)]
struct Step {
    writes: Vec<Write>,
    deltas: Vec<u128>,
    bytes: usize,
}

impl Step {
    fn is_full(&self) -> bool {
        self.writes.len() >= STEP_WRITES || self.bytes >= STEP_BYTES
    }

    /// Adds a write in place of `old`.
    fn push(&mut self, tag: TreeTag, key: Vec<u8>, old: Option<&[u8]>, value: Option<Vec<u8>>) {
        let part = |value: Option<&[u8]>| value.map_or(0, |value| digest(tag, &key, value));
        self.deltas.push(part(value.as_deref()).wrapping_sub(part(old)));
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.writes.push(Write { tag, key, value });
    }
}

/// Writes that are made together.
#[derive(Debug, Default)]
struct Together {
    writes: Vec<Write>,
    bytes: usize,
}

impl Together {
    fn is_full(&self) -> bool {
        self.writes.len() >= TOGETHER_WRITES || self.bytes >= TOGETHER_BYTES
    }

    fn push(&mut self, tag: TreeTag, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.writes.push(Write { tag, key, value });
    }
}

impl Store {
    /// Moves the store to the state after `batch`, in steps; `pass` is called between them. When it fails, the store may be
    /// anywhere between the two states ([`Store::is_whole`]), and folding the same records again leads to the second one.
    pub(crate) fn fold(&mut self, mut batch: Batch, pass: &mut dyn FnMut()) -> Result<(), ReadError> {
        let head = batch.seal();
        let before = self.state.head;
        let again = !self.is_whole();
        let touched = if head.lsn > self.state.touched.lsn { head } else { self.state.touched };
        fail::fail_point!("journal.store.fold.before", |_| Err(self.damaged("a failpoint").into()));
        let mut step = Step::default();
        batch.changes::<ReadError>(|key, change| {
            self.plan_resource(key, change.as_ref(), again, &mut step)?;
            if step.is_full() {
                self.take_step(&std::mem::take(&mut step), touched)?;
                pass();
            }
            Ok(())
        })?;
        self.take_step(&step, touched)?;
        pass();
        let mut together = Together::default();
        for (name, source) in &batch.sources {
            if together.is_full() {
                self.write_together(&std::mem::take(&mut together), before, touched)?;
                pass();
            }
            self.plan_source(name, source, &mut together)?;
            pass();
        }
        self.write_together(&together, head, touched)?;
        fail::fail_point!("journal.store.fold.after");
        Ok(())
    }

    /// Puts entries of a checkpoint into a store that is being rebuilt. With `LOADING` it shows no record yet.
    pub(crate) fn load(&mut self, entries: Vec<Put>, head: Head) -> Result<(), StoreError> {
        let (mut step, mut together) = (Step::default(), Together::default());
        for entry in entries {
            match entry {
                Put::Resource { key, change } => self.plan_resource(&key, change.as_ref(), false, &mut step)?,
                Put::Source { key, value } => together.push(TreeTag::Sources, key, Some(value)),
                Put::Receipts { key, value } => together.push(TreeTag::Receipts, key, Some(value)),
            }
        }
        self.take_step(&step, self.state.touched)?;
        self.write_together(&together, head, head)
    }

    /// Makes writes one after the other, announced by what each adds to the digest: sled keeps them in this order, so a kill
    /// leaves a beginning of them, and opening knows the digest of each beginning.
    fn take_step(&mut self, step: &Step, touched: Head) -> Result<(), StoreError> {
        if step.writes.is_empty() {
            return Ok(());
        }
        let failed = database(&self.path);
        let announced = State { touched, ..self.state }.announce(&step.deltas);
        self.trees.meta.insert(STATE_KEY, announced).map_err(&failed)?;
        self.state.touched = touched;
        for (Write { tag, key, value }, delta) in step.writes.iter().zip(&step.deltas) {
            let tree = self.trees.tagged(*tag);
            let old = match value {
                Some(value) => tree.insert(key, &value[..]),
                None => tree.remove(key),
            };
            let was = old.map_err(&failed)?.is_some();
            self.state.digest = self.state.digest.wrapping_add(*delta);
            if *tag == TreeTag::Resources {
                self.state.resources = self.state.resources + u64::from(value.is_some()) - u64::from(was);
            }
            fail::fail_point!("journal.store.write.after");
        }
        fail::fail_point!("journal.store.step.after");
        Ok(())
    }

    /// One transaction, which moves the head. Invariant: what it leaves has the digest that is written with it.
    fn write_together(&mut self, together: &Together, head: Head, touched: Head) -> Result<(), StoreError> {
        let Trees { sources, receipts, meta, .. } = &self.trees;
        let before = self.state;
        let done = (sources, receipts, meta).transaction(|(sources, receipts, meta)| {
            let mut state = State { head, touched, ..before };
            for Write { tag, key, value } in &together.writes {
                let tree = if *tag == TreeTag::Sources { sources } else { receipts };
                let old = match value {
                    Some(value) => tree.insert(&key[..], &value[..])?,
                    None => tree.remove(&key[..])?,
                };
                let part = |value: Option<&[u8]>| value.map_or(0, |value| digest(*tag, key, value));
                state.digest = state.digest.wrapping_add(part(value.as_deref())).wrapping_sub(part(old.as_deref()));
            }
            meta.insert(STATE_KEY, state.announce(&[]))?;
            Ok(state)
        });
        self.state = done.map_err(|error: TransactionError<()>| match error {
            TransactionError::Abort(()) => self.damaged("an aborted transaction"),
            TransactionError::Storage(error) => database(&self.path)(error),
        })?;
        Ok(())
    }

    /// Adds to `step` what gives a resource its new value, or removes it. Invariant: after each write the pieces behind a
    /// resource's first one have the numbers from 0 on without a gap. If a fold was interrupted (`again`), there may be more of
    /// them than the value says.
    fn plan_resource(
        &self,
        key: &[u8],
        change: Option<&(Lsn, Vec<u8>)>,
        again: bool,
        step: &mut Step,
    ) -> Result<(), StoreError> {
        let failed = database(&self.path);
        let Trees { resources, overflow, .. } = &self.trees;
        let old = resources.get(key).map_err(&failed)?;
        let old_total = old.as_ref().and_then(|old| split_value(old)).map_or(0, |(_, total, _)| total);
        let mut old_pieces = pieces_behind(old_total);
        while again && overflow.contains_key(overflow_key(key, old_pieces)).map_err(&failed)? {
            old_pieces += 1;
        }
        let stored = change.map_or(&[][..], |(_, stored)| stored);
        let (first, rest) = stored.split_at(stored.len().min(PIECE_BYTES));
        let pieces = pieces_behind(stored.len());
        for number in (pieces..old_pieces).rev() {
            let key = overflow_key(key, number);
            if let Some(old) = overflow.get(&key).map_err(&failed)? {
                step.push(TreeTag::Overflow, key, Some(&old), None);
            }
        }
        for (number, piece) in (0..pieces).zip(rest.chunks(PIECE_BYTES)) {
            let key = overflow_key(key, number);
            let old = if number < old_pieces { overflow.get(&key).map_err(&failed)? } else { None };
            step.push(TreeTag::Overflow, key, old.as_deref(), Some(piece.to_vec()));
        }
        let value = change.map(|(lsn, _)| write_value(*lsn, stored.len(), first));
        if value.is_some() || old.is_some() {
            step.push(TreeTag::Resources, key.to_vec(), old.as_deref(), value);
        }
        Ok(())
    }

    /// Adds to `together` what a batch does to a source. It is computed before the transaction, as that cannot read ranges, and
    /// is not divided: a source's value says up to which record its receipts are there.
    fn plan_source(&self, name: &str, source: &SourceBatch, together: &mut Together) -> Result<(), StoreError> {
        let old = self.trees.sources.get(name).map_err(database(&self.path))?;
        let old = old.map(|value| decode_source(&value).ok_or_else(|| self.damaged("a source"))).transpose()?;
        let mut kept = old.map_or(0, |(_, kept)| kept);
        let mut state = source.state;
        // A fold that was interrupted may have left the source as it was after a later record than the head.
        let folded_lsn = old.map_or(Lsn::ZERO, |(old, _)| old.last_lsn);
        if folded_lsn >= state.last_lsn {
            return Ok(());
        }
        if let Some((old, _)) = old {
            state = state.after(old);
        }

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
        let counted = open.len();
        open.extend(source.receipts.iter().filter(|(_, receipt)| receipt.lsn > folded_lsn));
        kept += (open.len() - counted) as u64;

        for page in pages() {
            let (key, page) = page.map_err(database(&self.path))?;
            let receipts = (page.len() / RECEIPT_BYTES) as u64;
            let needed = kept.saturating_sub(receipts) < self.receipts_per_source as u64;
            if needed || first_open.as_deref() == Some(&key[..]) {
                break;
            }
            kept -= receipts;
            together.push(TreeTag::Receipts, key.to_vec(), None);
        }
        for page in open.chunks(RECEIPTS_PER_PAGE) {
            together.push(TreeTag::Receipts, receipts_key(name, page[0].0), Some(encode_receipts(page)));
        }
        together.push(TreeTag::Sources, name.as_bytes().to_vec(), Some(encode_source(&state, kept)));
        Ok(())
    }
}
