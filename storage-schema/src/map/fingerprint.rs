//! The ABI fingerprint, computed at compile time from the layout itself, and the macro that declares ABI structures.

/// A structure whose layout is part of the ABI.
pub trait Abi {
    /// Hash of its name, size, alignment and each field's name, offset and size.
    const LAYOUT: u64;
}

/// FNV-1a (64 bit), which a `const fn` can compute. It tells layouts apart; it protects against nothing.
#[derive(Clone, Copy)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// A fingerprint that begins with a number.
    pub const fn seeded(seed: u64) -> Self {
        Self(0xcbf2_9ce4_8422_2325).number(seed)
    }

    /// Adds a number.
    #[must_use]
    pub const fn number(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    /// Adds a name.
    #[must_use]
    pub const fn name(self, name: &str) -> Self {
        self.bytes(name.as_bytes()).number(name.len() as u64)
    }

    /// Adds a structure's layout.
    #[must_use]
    pub const fn abi<T: Abi>(self) -> Self {
        self.number(T::LAYOUT)
    }

    /// The fingerprint.
    pub const fn finish(self) -> u64 {
        self.0
    }

    const fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut index = 0;
        while index < bytes.len() {
            self.0 = (self.0 ^ bytes[index] as u64).wrapping_mul(0x0000_0100_0000_01b3);
            index += 1;
        }
        self
    }
}

/// Declares a `#[repr(C)]` structure of the ABI: asserts its size, that it has no padding, and derives its layout hash.
macro_rules! abi_struct {
    (
        $(#[$meta:meta])*
        pub struct $name:ident[$size:literal] {
            $( $(#[$field_meta:meta])* pub $field:ident: $type:ty, )*
        }
    ) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(
            feature = "std",
            derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)
        )]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size, "the size is part of the ABI");
            assert!(0 $( + size_of::<$type>() )* == $size, "padding must be spelled out");
        };

        impl $crate::map::fingerprint::Abi for $name {
            const LAYOUT: u64 = $crate::map::fingerprint::Fingerprint::seeded($size)
                .name(stringify!($name))
                .number(align_of::<$name>() as u64)
                $(
                    .name(stringify!($field))
                    .name(stringify!($type))
                    .number(core::mem::offset_of!($name, $field) as u64)
                    .number(size_of::<$type>() as u64)
                )*
                .finish();
        }
    };
}

pub(crate) use abi_struct;
