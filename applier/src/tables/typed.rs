//! Words as cells: how a version is read, staged and scrubbed.

use storage_schema::id::Epoch;
use storage_schema::map::cell::{self, NEVER, Payload, VERSIONS};
use storage_schema::map::{Backend, Cell, Control, Frontend, FrontendKey, Head, Node, Service, Version};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Table, Tables};

const WORD: usize = size_of::<u64>();

/// A payload whose cells are a table.
pub(crate) trait CellTable: Payload + FromBytes + IntoBytes + Immutable {
    /// The table.
    const TABLE: Table;
    /// Words of a version.
    const VERSION_WORDS: usize = size_of::<Version<Self>>() / WORD;
    /// Words of a cell.
    const CELL_WORDS: usize = size_of::<Cell<Self>>() / WORD;
}

impl CellTable for Frontend {
    const TABLE: Table = Table::Frontends;
}
impl CellTable for Service {
    const TABLE: Table = Table::Services;
}
impl CellTable for Backend {
    const TABLE: Table = Table::Backends;
}
impl CellTable for Node {
    const TABLE: Table = Table::Node;
}

/// Typed access to [`Tables`].
pub(crate) trait Typed: Tables {
    /// The epochs of a cell's versions.
    fn epochs<P: CellTable>(&self, cell: u32) -> [u64; VERSIONS] {
        std::array::from_fn(|version| self.load(P::TABLE, version_word::<P>(cell, version)))
    }

    /// The payload that is visible at `epoch`, with the epoch from which on it is. `None` at the active epoch: somebody else
    /// has written to the table.
    fn visible<P: CellTable>(&self, cell: u32, epoch: Epoch) -> Option<(Epoch, P)> {
        let epochs = self.epochs::<P>(cell);
        let version = cell::visible(epochs, epoch.0)?;
        Some((Epoch(epochs[version]), self.payload(cell, version)))
    }

    /// A version's payload.
    fn payload<P: CellTable>(&self, cell: u32, version: usize) -> P {
        let mut payload = P::default();
        let first = version_word::<P>(cell, version) + 1;
        for (word, bytes) in payload.as_mut_bytes().chunks_exact_mut(WORD).enumerate() {
            bytes.copy_from_slice(&self.load(P::TABLE, first + word).to_ne_bytes());
        }
        payload
    }

    /// Writes the version that is not visible at `active`: epoch := never, payload, epoch := `target`.
    ///
    /// The caller has made sure that no reader can still select that version.
    fn stage<P: CellTable>(&self, cell: u32, active: Epoch, target: Epoch, payload: &P) {
        assert!(target > active, "a version is staged for an epoch that is not visible yet");
        let epochs = self.epochs::<P>(cell);
        let visible =
            cell::visible(epochs, active.0).expect("a cell has a version that is visible at the active epoch");
        let first = version_word::<P>(cell, 1 - visible);
        self.store(P::TABLE, first, NEVER);
        for (word, bytes) in payload.as_bytes().chunks_exact(WORD).enumerate() {
            self.store(P::TABLE, first + 1 + word, word_from(bytes));
        }
        self.store(P::TABLE, first, target.0);
    }

    /// Makes versions of a cell that are above `active` invisible for good. Returns how many there were.
    fn scrub<P: CellTable>(&self, cell: u32, active: Epoch) -> usize {
        let mut scrubbed = 0;
        for (version, epoch) in self.epochs::<P>(cell).into_iter().enumerate() {
            if epoch > active.0 && epoch != NEVER {
                self.store(P::TABLE, version_word::<P>(cell, version), NEVER);
                scrubbed += 1;
            }
        }
        scrubbed
    }

    /// The slots of a run.
    fn run(&self, offset: u32, length: u32) -> impl Iterator<Item = u32> {
        (offset..offset + length).map(|slot| {
            let pair = self.load(Table::Endpoints, slot as usize / 2).to_ne_bytes();
            let half =
                if slot % 2 == 0 { [pair[0], pair[1], pair[2], pair[3]] } else { [pair[4], pair[5], pair[6], pair[7]] };
            u32::from_ne_bytes(half)
        })
    }

    /// Writes a run at an even offset.
    fn write_run(&self, offset: u32, slots: &[u32]) {
        assert!(offset.is_multiple_of(2), "a pair of slots belongs to one run");
        for (pair, slots) in slots.chunks(2).enumerate() {
            let pair_of = [slots[0], slots.get(1).copied().unwrap_or(0)];
            self.store(Table::Endpoints, offset as usize / 2 + pair, word_from(pair_of.as_bytes()));
        }
    }

    /// The control entry.
    fn control(&self) -> Control {
        let mut control = Control::default();
        for (word, bytes) in control.as_mut_bytes().chunks_exact_mut(WORD).enumerate() {
            bytes.copy_from_slice(&self.load(Table::Control, word).to_ne_bytes());
        }
        control
    }

    /// Writes a part of the control entry.
    fn store_control(&self, offset: usize, bytes: &[u8]) {
        for (word, bytes) in bytes.chunks_exact(WORD).enumerate() {
            self.store(Table::Control, offset / WORD + word, word_from(bytes));
        }
    }

    /// Says which record `head.epoch` stands for, in the place that is not the active epoch's.
    fn store_head(&self, active: Epoch, head: &Head) {
        let place = usize::from(self.control().heads[0].epoch == active.0);
        let offset = std::mem::offset_of!(Control, heads) + place * size_of::<Head>();
        self.store_control(offset, head.as_bytes());
    }

    /// **The flip**: one store that makes everything staged for `target` visible.
    fn flip(&self, target: Epoch) {
        self.store(Table::Control, std::mem::offset_of!(Control, active_epoch) / WORD, target.0);
    }
}

impl<T: Tables + ?Sized> Typed for T {}

fn version_word<P: CellTable>(cell: u32, version: usize) -> usize {
    cell as usize * P::CELL_WORDS + version * P::VERSION_WORDS
}

fn word_from(bytes: &[u8]) -> u64 {
    u64::from_ne_bytes(bytes.try_into().expect("the ABI consists of whole words"))
}

/// Tables as [`decision`] reads them.
#[derive(Debug)]
pub struct View<'t, T: ?Sized>(pub &'t T);

impl<T: Tables + ?Sized> View<'_, T> {
    /// The epoch that a reader who begins now reads at.
    pub fn active_epoch(&self) -> Epoch {
        Epoch(self.0.load(Table::Control, std::mem::offset_of!(Control, active_epoch) / WORD))
    }

    fn cell<P: CellTable>(&self, cell: u32) -> Option<*const Cell<P>> {
        self.0.pointer(P::TABLE, version_word::<P>(cell, 0)).map(<*const u64>::cast)
    }
}

impl<T: Tables + ?Sized> decision::Tables for View<'_, T> {
    fn frontend_index(&self, key: &FrontendKey) -> Option<u32> {
        // A program cannot tell a failed lookup from an absent key either.
        self.0.index_get(key).ok().flatten()
    }

    fn frontend(&self, cell: u32) -> Option<*const Cell<Frontend>> {
        self.cell(cell)
    }

    fn service(&self, cell: u32) -> Option<*const Cell<Service>> {
        self.cell(cell)
    }

    fn endpoint(&self, slot: u32) -> Option<*const u32> {
        let pair = self.0.pointer(Table::Endpoints, slot as usize / 2)?;
        Some(pair.cast::<u32>().wrapping_add(slot as usize % 2))
    }

    fn backend(&self, cell: u32) -> Option<*const Cell<Backend>> {
        self.cell(cell)
    }

    fn node(&self) -> Option<*const Cell<Node>> {
        self.cell(0)
    }
}
