//! The control table: one entry that says what a generation is and which epoch is visible.

use super::fingerprint::abi_struct;

abi_struct! {
    /// The journal record that an epoch stands for.
    pub struct Head[40] {
        /// The epoch.
        pub epoch: u64,
        /// The record's hash: pins of another store, or of one restored from a backup, do not match.
        pub record_hash: [u8; 32],
    }
}

abi_struct! {
    /// The one entry of `control`.
    pub struct Control[168] {
        /// **The commit point**: what readers load once, and the applier stores once for each flip.
        pub active_epoch: u64,
        /// [`Control::MAGIC`], written last when a generation is created: without it, the generation is not complete.
        pub magic: u64,
        /// [`FINGERPRINT`](super::FINGERPRINT) of the build that created the maps.
        pub fingerprint: u64,
        /// The journal that the state comes from.
        pub store_id: [u8; 16],
        /// Hash of the BPF object whose programs read the maps.
        pub programs_hash: [u8; 32],
        /// The boot in which the maps were made: pins never outlive it, and what claims to is not believed.
        pub boot_id: [u8; 16],
        /// Which records the active epoch and the one before (or after, during a flip) stand for.
        pub heads: [Head; 2],
    }
}

impl Control {
    /// `HOLDFAST` in ASCII.
    pub const MAGIC: u64 = u64::from_be_bytes(*b"HOLDFAST");
}
