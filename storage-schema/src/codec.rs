//! Encoding and decoding of what is stored: a schema version (u32, little endian), then an rkyv archive.
//!
//! The version comes first, outside the archive, so that a decoder knows which frozen module reads the rest before it
//! believes a byte of it. Archives are unaligned and are validated (bytecheck) on every read: bytes from a disk never
//! panic and never lead outside their buffer.

use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Portable, Serialize};

use crate::id::RecordHash;
use crate::record::{ArchivedRecord, Record};
use crate::resource::{ArchivedResource, Resource};
use crate::v1;

/// The version that this build writes.
pub const SCHEMA_VERSION: u32 = v1::VERSION;

const VERSION_LEN: usize = size_of::<u32>();

/// Why stored bytes could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than a version number has.
    #[error("{len} bytes are too few for a schema version")]
    TooShort {
        /// How many there were.
        len: usize,
    },
    /// Written by a build that is newer than this one, or not by Holdfast.
    #[error("schema version {found} is not known here (newest known: {SCHEMA_VERSION}): use a newer holdfast")]
    UnknownVersion {
        /// The version in front of the archive.
        found: u32,
    },
    /// The archive does not hold what it should.
    #[error("the archive is damaged: {source}")]
    Damaged {
        /// What bytecheck found.
        #[source]
        source: rancor::Error,
    },
}

/// Encodes a record.
pub fn encode_record(record: &Record) -> Vec<u8> {
    encode(record)
}

/// Reads a record where it lies, without copying it.
pub fn access_record(bytes: &[u8]) -> Result<&ArchivedRecord, DecodeError> {
    access(bytes)
}

/// Decodes a record.
pub fn decode_record(bytes: &[u8]) -> Result<Record, DecodeError> {
    rkyv::deserialize(access_record(bytes)?).map_err(|source| DecodeError::Damaged { source })
}

/// Encodes a resource.
pub fn encode_resource(resource: &Resource) -> Vec<u8> {
    encode(resource)
}

/// Reads a resource where it lies, without copying it.
pub fn access_resource(bytes: &[u8]) -> Result<&ArchivedResource, DecodeError> {
    access(bytes)
}

/// Decodes a resource.
pub fn decode_resource(bytes: &[u8]) -> Result<Resource, DecodeError> {
    rkyv::deserialize(access_resource(bytes)?).map_err(|source| DecodeError::Damaged { source })
}

/// The hash that chains a record to its successor.
pub fn hash_record(encoded: &[u8]) -> RecordHash {
    RecordHash(*blake3::hash(encoded).as_bytes())
}

fn encode<T>(value: &T) -> Vec<u8>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let archive = rkyv::to_bytes::<rancor::Error>(value).expect("memory is the only thing an encoder can run out of");
    let mut bytes = Vec::with_capacity(VERSION_LEN + archive.len());
    bytes.extend_from_slice(&SCHEMA_VERSION.to_le_bytes());
    bytes.extend_from_slice(&archive);
    bytes
}

fn access<T>(bytes: &[u8]) -> Result<&T, DecodeError>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    let (version, archive) = bytes.split_first_chunk().ok_or(DecodeError::TooShort { len: bytes.len() })?;
    match u32::from_le_bytes(*version) {
        v1::VERSION => rkyv::access(archive).map_err(|source| DecodeError::Damaged { source }),
        found => Err(DecodeError::UnknownVersion { found }),
    }
}

/// Asserts at compile time what [`access`] relies on: archives have no alignment of their own.
const _: () = assert!(align_of::<<Record as Archive>::Archived>() == 1);
