//! Questions about the past and their answers, the same whether an agent is asked or a directory is read.

use api::Stored;
use api::journal::{JournalError, Position};
use api::replay::{Question, StateQuery};
use api::server::Read;
use journal::OwnedResource;
use replay::{Connection, Moment, Past, ReplayError, Which};
use serde::Serialize;

use crate::journal_view::refused;

/// The resources that a query names, as they were.
pub(crate) fn state(past: &Past, query: &StateQuery) -> Result<Read<Vec<Stored>>, JournalError> {
    let which = Which { kind: query.kind, name: query.name.clone() };
    let (state_lsn, found) = past.resources(moment(query.at), &which).map_err(unanswered)?;
    let value = found
        .into_iter()
        .filter(|found| query.filter.admits(found.resource.name(), &found.owner, found.changed_lsn))
        .map(|OwnedResource { resource, changed_lsn, owner }| Stored { resource, changed_lsn, owner })
        .collect();
    Ok(Read { value, state_lsn })
}

/// The answer to a question, as a JSON document.
pub(crate) fn answer(past: &Past, question: Question) -> Result<Vec<u8>, JournalError> {
    match question {
        Question::Diff { from, to, kind, name, maps } => {
            document(past.diff(moment(from), moment(to), &Which { kind, name }, maps))
        }
        Question::History { key, since, until, last } => {
            let last = last.map(|last| usize::try_from(last).unwrap_or(usize::MAX));
            document(past.history(&key, since.map(|at| moment(Some(at))), moment(until), last))
        }
        Question::Why { to, protocol, from, at, epoch, entropy } => {
            document(past.why(&Connection { from, to, protocol, epoch, entropy }, moment(at)))
        }
    }
}

fn document(answer: Result<impl Serialize, ReplayError>) -> Result<Vec<u8>, JournalError> {
    let answer = answer.map_err(unanswered)?;
    Ok(serde_json::to_vec(&answer).expect("our own values have string keys"))
}

fn moment(position: Option<Position>) -> Moment {
    match position {
        None => Moment::Now,
        Some(Position::Lsn(lsn)) => Moment::Lsn(lsn),
        Some(Position::Time(wall_ns)) => Moment::Time(wall_ns),
    }
}

fn unanswered(error: ReplayError) -> JournalError {
    match error {
        ReplayError::Journal(error) => refused(error),
        error @ ReplayError::BeforeOldest { .. } => JournalError::OutOfRange(error.to_string()),
        error @ ReplayError::EpochAhead { .. } => JournalError::Invalid(error.to_string()),
        error @ ReplayError::Tables(_) => JournalError::Failed(error.to_string()),
    }
}
