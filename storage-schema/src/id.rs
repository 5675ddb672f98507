//! Newtypes for identifiers: each has one meaning, one unit and one way to be written.

use core::fmt;

use rkyv::{Archive, Deserialize, Serialize};

use crate::resource::{Kind, ResourceKey};

/// Number of a journal record: dense, the first is 1. `Lsn::ZERO` stands for "before the first record".
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Archive,
    Serialize,
    Deserialize,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Before the first record: an empty journal, an empty state.
    pub const ZERO: Self = Self(0);
    /// The first record's number.
    pub const FIRST: Self = Self(1);
    /// The highest number that a record may have: it has a next one, as an exclusive end.
    pub const LAST: Self = Self(u64::MAX - 1);

    /// Whether a record may have this number.
    pub const fn is_of_record(self) -> bool {
        Self::FIRST.0 <= self.0 && self.0 <= Self::LAST.0
    }

    /// The number that follows.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The LSN whose state the kernel shows. `Epoch(0)` is the empty state of freshly created maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl From<Lsn> for Epoch {
    fn from(lsn: Lsn) -> Self {
        Self(lsn.0)
    }
}

impl From<Epoch> for Lsn {
    fn from(epoch: Epoch) -> Self {
        Self(epoch.0)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A resource's number in maps, stamps and flow records: the first eight bytes of BLAKE3 over kind and name.
///
/// It needs no allocation and no table, so a stamp written on one node means the same on every other and in every copy
/// of the journal. Two live resources with the same number are refused when the second one is pushed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId(pub u64);

impl ResourceId {
    /// The number of the resource with this key.
    pub fn of(key: &ResourceKey) -> Self {
        Self::named(key.kind, &key.name)
    }

    /// The number of the resource of this kind and name.
    pub fn named(kind: Kind, name: &str) -> Self {
        // Names are short, and hashing one piece of memory costs half of what a hasher does.
        let mut piece = [0; 128];
        let length = 1 + name.len();
        let hash = if let Some(piece) = piece.get_mut(..length) {
            piece[0] = kind as u8;
            piece[1..].copy_from_slice(name.as_bytes());
            blake3::hash(piece)
        } else {
            blake3::Hasher::new().update(&[kind as u8]).update(name.as_bytes()).finalize()
        };
        let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        Self(u64::from_le_bytes(*first))
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Archive, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

bytes_id! {
    /// Which journal this is: random, chosen when the state directory is created.
    StoreId, 16
}
bytes_id! {
    /// The kernel's boot id (`/proc/sys/kernel/random/boot_id`): monotonic times of different boots do not compare.
    BootId, 16
}
bytes_id! {
    /// BLAKE3 over a record's encoded body, which holds its predecessor's hash: the link of the journal's chain.
    RecordHash, 32
}
