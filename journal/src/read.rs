//! The way out (skeleton).

use storage_schema::id::Lsn;
use storage_schema::record::Record;

use crate::durable::Durable;
use crate::error::ReadError;

/// A record as it is stored.
#[derive(Clone, Debug)]
pub struct EncodedRecord {
    /// Its number.
    pub lsn: Lsn,
    /// The encoded record: for `storage_schema::codec::access_record`.
    pub encoded: bytes::Bytes,
}

/// Records in order, up to the durable head; `None` there, and again records once the head has moved.
#[derive(Debug)]
pub struct Records {}

impl Records {
    /// The next record, not decoded.
    pub fn next_encoded(&mut self) -> Option<Result<Durable<EncodedRecord>, ReadError>> {
        todo!()
    }
}

impl Iterator for Records {
    type Item = Result<Durable<Record>, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        todo!()
    }
}
