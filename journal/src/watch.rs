//! Records from any LSN on, and then live: without gap, without repetition.

use std::time::Duration;

use storage_schema::id::Lsn;

use crate::durable::Durable;
use crate::error::ReadError;
use crate::journal::DurableWatch;
use crate::read::{EncodedRecord, Records};

/// A stream of records that does not end before the journal is closed. It holds a place, not records: a slow reader costs
/// nothing but may be left behind by retention, which it is told ([`ReadError::Compacted`]).
#[derive(Debug)]
pub struct RecordStream {
    records: Records,
    durable: DurableWatch,
}

impl RecordStream {
    pub(crate) fn new(records: Records, durable: DurableWatch) -> Self {
        Self { records, durable }
    }

    /// The number of the record that comes next.
    pub fn next_lsn(&self) -> Lsn {
        self.records.next_lsn()
    }

    /// The next record, waited for if it is not there yet; `None` when the journal is closed. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Durable<EncodedRecord>, ReadError>> {
        loop {
            if let Some(record) = self.records.next_encoded() {
                return Some(record);
            }
            self.durable.past(Lsn(self.records.next_lsn().0 - 1)).await?;
        }
    }

    /// [`RecordStream::next`] for threads; `None` also when `timeout` is over.
    pub fn blocking_next(&mut self, timeout: Duration) -> Option<Result<Durable<EncodedRecord>, ReadError>> {
        if let Some(record) = self.records.next_encoded() {
            return Some(record);
        }
        self.durable.blocking_past(Lsn(self.records.next_lsn().0 - 1), timeout)?;
        self.records.next_encoded()
    }
}
