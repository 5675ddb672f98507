//! Where a journal is read from: an agent, or a directory.

use std::ops::ControlFlow;
use std::path::Path;

use api::client::Client;
use api::journal::RecordsQuery;
use api::proto;
use journal::{EncodedRecord, Journal, ReadError, Reader};
use tokio_stream::StreamExt as _;

use crate::cli::{Common, Places, Which};
use crate::command::{block_on, connect};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::journal_view;

/// Where the journal is, as it was typed.
pub(in crate::command) struct Place<'a> {
    pub(in crate::command) common: &'a Common,
    pub(in crate::command) state_dir: Option<&'a Path>,
}

impl Place<'_> {
    /// Settings, with the directory that was named.
    pub(super) fn config(&self) -> Result<Config, Failure> {
        let state_dir = self.state_dir.map(std::path::absolute).transpose();
        let state_dir = state_dir.map_err(|error| Failure::new(Exit::Usage, format!("--state-dir: {error}")))?;
        let places = Places { state_dir, ..Places::default() };
        Ok(Config::for_places(self.common, &places)?)
    }

    /// The running agent.
    pub(in crate::command) async fn agent(&self) -> Result<Client, Failure> {
        connect(self.common).await.map_err(|mut failure| {
            if failure.exit == Exit::Unreachable {
                failure.messages.push("of a stopped agent, name the directory: --state-dir DIR".to_owned());
            }
            failure
        })
    }

    /// The journal in a stopped agent's directory, to be written to. It must be there.
    pub(super) fn open(&self) -> Result<Journal, Failure> {
        let config = self.config()?;
        // Opening would make a journal where there is none.
        drop(Reader::open(&config.state_dir)?);
        Ok(Journal::open(config.journal())?)
    }

    /// Shows the records of a query to `visit`, in order, until it has seen enough.
    pub(super) fn for_each(
        &self,
        query: &RecordsQuery,
        mut visit: impl FnMut(EncodedRecord) -> Result<ControlFlow<()>, Failure>,
    ) -> Result<(), Failure> {
        let Some(state_dir) = self.state_dir else {
            return block_on(async {
                let batches = self.agent().await?.records(query).await?;
                tokio::pin!(batches);
                while let Some(batch) = batches.next().await {
                    for record in batch? {
                        let undecodable = |source| ReadError::Undecodable { lsn: record.lsn, source };
                        let record = EncodedRecord::new(record.lsn, record.encoded).map_err(undecodable)?;
                        if visit(record)?.is_break() {
                            return Ok(());
                        }
                    }
                }
                Ok(())
            });
        };
        if query.follow {
            return Err(Failure::new(Exit::Usage, "--follow: nothing is appended to a stopped agent's directory"));
        }
        let (selection, _) = journal_view::select(&Reader::open(state_dir)?, query)?;
        for record in selection {
            if visit(record?)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// How much there is.
    pub(super) fn stats(&self) -> Result<proto::GetJournalStatsResponse, Failure> {
        match self.state_dir {
            None => block_on(async { Ok(self.agent().await?.journal_stats().await?) }),
            Some(state_dir) => Ok(journal_view::stats(Reader::open(state_dir)?.stats()?)),
        }
    }
}

/// What was typed as a query.
pub(super) fn query(which: &Which) -> RecordsQuery {
    let Which { since, until, source, kind, name } = which.clone();
    RecordsQuery {
        from: since.map(|when| when.0),
        to: until.map(|when| when.0),
        source,
        kind,
        name,
        ..RecordsQuery::default()
    }
}
