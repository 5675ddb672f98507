//! Makes a journal out of an export: the same records with the same numbers, times and hashes, under a store id of its own.

use std::io::BufRead;
use std::sync::Arc;

use storage_schema::id::Lsn;
use tokio::sync::watch;

use crate::append::{Intake, LogEnd};
use crate::clock::boot_id;
use crate::config::Config;
use crate::error::{AppendError, OpenError, ReadError};
use crate::export::ExportError;
use crate::export::jsonl::read_jsonl;
use crate::follow::Stored;
use crate::lock::{lock_state_dir, random_store_id, read_identity, write_identity};
use crate::segment::open::{LogConfig, open_log};
use crate::sources::Sources;

/// Why an import failed.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is a journal already.
    #[error("{path} holds a journal already: import into an empty directory", path = path.display())]
    Occupied {
        /// The state directory.
        path: std::path::PathBuf,
    },
    /// An export that begins later has no state to begin from.
    #[error("the export begins at record {first}; only a whole one (from record 1) can be imported; use a snapshot")]
    Partial {
        /// Its first record.
        first: Lsn,
    },
    /// The export cannot be read.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A record cannot be written.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The state directory cannot be prepared.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Imports an export into a state directory that has no journal; returns how many records it has now. Opening it builds the store.
/// An import that fails leaves an identity-less directory, which a repeated one may use once it is emptied.
pub fn import_jsonl(config: &Config, from: impl BufRead) -> Result<u64, ImportError> {
    config.validate()?;
    let state_dir = &config.state_dir;
    let _lock = lock_state_dir(state_dir)?;
    let dir = state_dir.join("journal");
    if read_identity(state_dir)?.is_some() || dir.exists() {
        return Err(ImportError::Occupied { path: state_dir.clone() });
    }
    let io_error = |action| {
        let path = dir.clone();
        move |source| OpenError::Io { action, path, source }
    };
    config.disk.create_dir(&dir).map_err(io_error("create"))?;
    let store_id = random_store_id().map_err(io_error("choose a store id for"))?;
    let mut log = open_log(&LogConfig {
        disk: Arc::clone(&config.disk),
        dir: dir.clone(),
        store_id,
        segment_bytes: config.segment_bytes,
        clock: Arc::clone(&config.clock),
    })?;
    let (_sender, stored) = watch::channel(Stored { lsn: Lsn::ZERO, bytes: 0, stuck: None });
    let intake = Intake::new(config, &LogEnd::from(&log), boot_id(), Sources::default(), stored, 0, Arc::default());
    let mut imported = 0;
    for record in read_jsonl(from) {
        let record = record?;
        if imported == 0 && record.lsn != Lsn::FIRST {
            return Err(ImportError::Partial { first: record.lsn });
        }
        let undecodable = |source| ExportError::from(ReadError::Undecodable { lsn: record.lsn, source });
        intake.append_as_is(record.access().map_err(undecodable)?, &record.encoded)?;
        imported += 1;
        while intake.queued_groups() > 1 {
            write_one(&intake, &mut log.writer)?;
        }
    }
    while intake.queued_groups() > 0 {
        write_one(&intake, &mut log.writer)?;
    }
    config.disk.sync_dir(state_dir).map_err(io_error("fsync the directory of"))?;
    // Last, so that half an import never passes for a journal that was closed.
    write_identity(state_dir, store_id)?;
    Ok(imported)
}

fn write_one(intake: &Intake, writer: &mut crate::segment::write::SegmentWriter) -> Result<(), ImportError> {
    let queued = intake.next_group().expect("one is queued");
    writer.write(&queued.group, None).map_err(|failure| AppendError::Failed(Arc::new(failure)))?;
    Ok(())
}
