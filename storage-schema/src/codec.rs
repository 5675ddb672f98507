//! Encoding and decoding of what is stored: a schema version (u32, little endian), then an rkyv archive.
//!
//! The version comes first, outside the archive, so that a decoder knows which frozen module reads the rest before it
//! believes a byte of it. Archives are unaligned and are validated (bytecheck) on every read: bytes from a disk never
//! panic and never lead outside their buffer.
//!
//! # Versions
//!
//! Each type is written in the version that changed it last, and read in every version from its first one on:
//!
//! | version | record | resource |
//! |---|---|---|
//! | [`v1`] | read, upcast | read, upcast |
//! | [`v2`] | read, upcast | read, upcast: it is the type of [`v1`] |
//! | [`v3`] | **written**, read | **written**, read |
//!
//! What is in the current version is read where it lies. What is older is made current first ([`upcast_record`],
//! [`upcast_resource`]), so that readers know one type only; a record's hash stays that of the bytes as they were written,
//! whatever their version.
//!
//! A new version is a new module with the types that change, re-exports of the others, and the conversions from and to the
//! version before; then the constants and the `match`es on a version here. Golden files of all versions stay.

use std::mem::offset_of;

use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Portable, Serialize};

use crate::id::{Lsn, RecordHash};
use crate::record::{ArchivedRecord, Record};
use crate::resource::{ArchivedResource, Resource};
use crate::{v1, v2, v3};

/// The newest version, in which records are written.
pub const SCHEMA_VERSION: u32 = v3::VERSION;

/// The version in which resources are written: the last one that changed them.
pub const RESOURCE_VERSION: u32 = v3::VERSION;

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
    /// Written in a version before the current one, where only the current one is expected.
    #[error("schema version {found} is not the current one ({SCHEMA_VERSION}): it has to be upcast first")]
    NotCurrent {
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

/// Why a record cannot be encoded in a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// There is no such version here.
    #[error("schema version {version} is not known here (newest known: {SCHEMA_VERSION}): use a newer holdfast")]
    UnknownVersion {
        /// The version.
        version: u32,
    },
    /// It says something that the version has no field for.
    #[error("a record of schema version {version} has no {field}")]
    NoSuchField {
        /// The version.
        version: u32,
        /// The field that is set.
        field: &'static str,
    },
}

/// A record's place in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub lsn: Lsn,
    /// The hash of the record before it.
    pub previous_hash: RecordHash,
}

/// Encodes a record.
pub fn encode_record(record: &Record) -> Vec<u8> {
    encode(SCHEMA_VERSION, record)
}

/// Gives an encoded record of the current version its place in the chain and the times of its append, which are not known
/// before its turn has come: that way only this has to be done when it has.
pub fn stamp_record(bytes: &mut [u8], link: Link, wall_ns: u64, monotonic_ns: u64) {
    // An archive ends with its root.
    let root = bytes.len() - size_of::<ArchivedRecord>();
    let mut put = |offset: usize, field: &[u8]| bytes[root + offset..][..field.len()].copy_from_slice(field);
    put(offset_of!(ArchivedRecord, lsn), &link.lsn.0.to_le_bytes());
    put(offset_of!(ArchivedRecord, previous_hash), &link.previous_hash.0);
    put(offset_of!(ArchivedRecord, wall_ns), &wall_ns.to_le_bytes());
    put(offset_of!(ArchivedRecord, monotonic_ns), &monotonic_ns.to_le_bytes());
}

/// Encodes a record as it was encoded when `version` was the current one: an old record has its old hash only then.
pub fn encode_record_in(version: u32, record: Record) -> Result<Vec<u8>, EncodeError> {
    let no_such_field = |field| EncodeError::NoSuchField { version, field };
    match version {
        v1::VERSION => {
            let record = v2::record::Record::try_from(record).map_err(no_such_field)?;
            let record = v1::record::Record::try_from(record).map_err(no_such_field)?;
            Ok(encode(version, &record))
        }
        v2::VERSION => Ok(encode(version, &v2::record::Record::try_from(record).map_err(no_such_field)?)),
        v3::VERSION => Ok(encode(version, &record)),
        version => Err(EncodeError::UnknownVersion { version }),
    }
}

/// The version in which something was encoded.
pub fn version_of(bytes: &[u8]) -> Result<u32, DecodeError> {
    split(bytes).map(|(version, _)| version)
}

/// A record that was encoded in an older version, encoded in the current one; `None` if it is in the current one already, or in
/// one that is not known here.
pub fn upcast_record(bytes: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    match version_of(bytes)? {
        v1::VERSION | v2::VERSION => Ok(Some(encode_record(&decode_record(bytes)?))),
        _ => Ok(None),
    }
}

/// A resource that was encoded in an older version, encoded in the current one; `None` as [`upcast_record`] says it.
pub fn upcast_resource(bytes: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
    match version_of(bytes)? {
        v1::VERSION | v2::VERSION => Ok(Some(encode_resource(&decode_resource(bytes)?))),
        _ => Ok(None),
    }
}

/// Reads a record of the current version where it lies, without copying it.
pub fn access_record(bytes: &[u8]) -> Result<&ArchivedRecord, DecodeError> {
    match split(bytes)? {
        (v3::VERSION, archive) => access(archive),
        (found @ (v1::VERSION | v2::VERSION), _) => Err(DecodeError::NotCurrent { found }),
        (found, _) => Err(DecodeError::UnknownVersion { found }),
    }
}

/// Reads a record's place in the chain and validates all of it, in any version, without copying it.
pub fn access_link(bytes: &[u8]) -> Result<Link, DecodeError> {
    let (lsn, previous_hash) = match split(bytes)? {
        (v1::VERSION, archive) => {
            let record: &v1::record::ArchivedRecord = access(archive)?;
            (record.lsn.0, record.previous_hash.0)
        }
        (v2::VERSION, archive) => {
            let record: &v2::record::ArchivedRecord = access(archive)?;
            (record.lsn.0, record.previous_hash.0)
        }
        _ => {
            let record = access_record(bytes)?;
            (record.lsn.0, record.previous_hash.0)
        }
    };
    Ok(Link { lsn: Lsn(lsn.to_native()), previous_hash: RecordHash(previous_hash) })
}

/// Decodes a record of any version.
pub fn decode_record(bytes: &[u8]) -> Result<Record, DecodeError> {
    let damaged = |source| DecodeError::Damaged { source };
    match split(bytes)? {
        (v1::VERSION, archive) => {
            let record: v1::record::Record =
                rkyv::deserialize(access::<v1::record::ArchivedRecord>(archive)?).map_err(damaged)?;
            Ok(v2::record::Record::from(record).into())
        }
        (v2::VERSION, archive) => {
            let record: v2::record::Record =
                rkyv::deserialize(access::<v2::record::ArchivedRecord>(archive)?).map_err(damaged)?;
            Ok(record.into())
        }
        _ => rkyv::deserialize(access_record(bytes)?).map_err(damaged),
    }
}

/// Encodes a resource.
pub fn encode_resource(resource: &Resource) -> Vec<u8> {
    encode(RESOURCE_VERSION, resource)
}

/// Reads a resource of the current version where it lies, without copying it.
pub fn access_resource(bytes: &[u8]) -> Result<&ArchivedResource, DecodeError> {
    match split(bytes)? {
        (v3::VERSION, archive) => access(archive),
        (found @ (v1::VERSION | v2::VERSION), _) => Err(DecodeError::NotCurrent { found }),
        (found, _) => Err(DecodeError::UnknownVersion { found }),
    }
}

/// Decodes a resource of any version.
pub fn decode_resource(bytes: &[u8]) -> Result<Resource, DecodeError> {
    let damaged = |source| DecodeError::Damaged { source };
    match split(bytes)? {
        (v1::VERSION | v2::VERSION, archive) => {
            let resource: v1::resource::Resource =
                rkyv::deserialize(access::<v1::resource::ArchivedResource>(archive)?).map_err(damaged)?;
            Ok(resource.into())
        }
        _ => rkyv::deserialize(access_resource(bytes)?).map_err(damaged),
    }
}

/// The hash that chains a record to its successor: of the bytes as they were written.
pub fn hash_record(encoded: &[u8]) -> RecordHash {
    RecordHash(*blake3::hash(encoded).as_bytes())
}

fn encode<T>(version: u32, value: &T) -> Vec<u8>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
{
    let archive = rkyv::to_bytes::<rancor::Error>(value).expect("memory is the only thing an encoder can run out of");
    let mut bytes = Vec::with_capacity(VERSION_LEN + archive.len());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&archive);
    bytes
}

/// The version, and the archive behind it.
fn split(bytes: &[u8]) -> Result<(u32, &[u8]), DecodeError> {
    let (version, archive) = bytes.split_first_chunk().ok_or(DecodeError::TooShort { len: bytes.len() })?;
    Ok((u32::from_le_bytes(*version), archive))
}

fn access<T>(archive: &[u8]) -> Result<&T, DecodeError>
where
    T: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>,
{
    rkyv::access(archive).map_err(|source| DecodeError::Damaged { source })
}

/// Asserts at compile time what [`access`] relies on: archives have no alignment of their own.
const _: () = assert!(
    align_of::<<Record as Archive>::Archived>() == 1
        && align_of::<<v2::record::Record as Archive>::Archived>() == 1
        && align_of::<<v1::record::Record as Archive>::Archived>() == 1
);
