//! Records for other tools: [`jsonl`] is complete and can be imported again, [`parquet`] is a table to ask questions of.

pub(crate) mod jsonl;
#[cfg(feature = "parquet")]
pub(crate) mod parquet;

use std::io;

use crate::error::ReadError;

/// Why an export or import ended early.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The journal could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The other side could not be read or written.
    #[error("the export cannot be transferred: {0}")]
    Transfer(#[from] io::Error),
    /// A line is not a record.
    #[error("line {line}: {reason}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
}
