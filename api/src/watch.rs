//! Watching: what is journaled, and what the state becomes, told as it happens.
//!
//! A watch holds a place in the journal and no queue: the server reads on when the client has read what was sent. A client that is
//! too slow for the journal's retention is told so ([`JournalError::Compacted`]) and begins anew.

use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, ResourceKey};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status as RpcStatus;

use crate::client::{Client, ClientError, decode_answer};
use crate::convert::{Path, decode_key, encode_key};
use crate::journal::{EncodedRecord, JournalError, encode_record};
use crate::proto::watch_records_response::Step as RecordsSaid;
use crate::proto::watch_state_response::Step as StateSaid;
use crate::rejection::{Rejection, Violations};
use crate::replay::{decode_some_kind, encode_some_kind, given};
use crate::server::encode_stored;
use crate::{Stored, proto};

/// Which records are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordsWatch {
    /// The first one, `None`: the next that is appended.
    pub from_lsn: Option<Lsn>,
    /// Only what this source pushed.
    pub source: Option<String>,
    /// Only what changed a resource of this kind.
    pub kind: Option<Kind>,
    /// Only what changed a resource of this name.
    pub name: Option<String>,
}

/// What a watch of records tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordsStep {
    /// The next records.
    Records(Vec<EncodedRecord>),
    /// Everything up to this record was told, or was not asked for.
    Progress(Lsn),
}

/// Which resources are watched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateWatch {
    /// Only resources of this kind.
    pub kind: Option<Kind>,
    /// Only those whose names begin so.
    pub name_prefix: String,
    /// Only those that belong to this source.
    pub owner: Option<String>,
    /// Goes on after this record, whose state the client has: nothing initial is told. `None`: begins with the present state.
    pub after_lsn: Option<Lsn>,
}

/// What a watch of the state tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateStep {
    /// Some resources of the initial state.
    Initial(Vec<Stored>),
    /// What was told until here is the state after this record.
    Complete(Lsn),
    /// What a record has changed.
    Changes(StateChanges),
    /// Everything up to this record was told, or was not asked for.
    Progress(Lsn),
}

/// What a record has changed, each resource once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChanges {
    /// The record.
    pub lsn: Lsn,
    /// Resources that are so from then on.
    pub changed: Vec<Stored>,
    /// Resources that are gone, or are no longer among those that are watched.
    pub removed: Vec<ResourceKey>,
}

fn encode_records_watch(watch: &RecordsWatch) -> proto::WatchRecordsRequest {
    let RecordsWatch { from_lsn, source, kind, name } = watch.clone();
    proto::WatchRecordsRequest {
        from_lsn: from_lsn.map(|lsn| lsn.0),
        source: source.unwrap_or_default(),
        kind: encode_some_kind(kind),
        name: name.unwrap_or_default(),
        encoded: true,
    }
}

/// The watch, and whether records are wanted as they are stored.
pub(crate) fn decode_records_watch(request: proto::WatchRecordsRequest) -> Result<(RecordsWatch, bool), Rejection> {
    let proto::WatchRecordsRequest { from_lsn, source, kind, name, encoded } = request;
    let mut found = Violations::default();
    let kind = decode_some_kind("kind", kind, &mut found);
    let source = found.text(&Path::root("source"), source);
    let name = found.text(&Path::root("name"), name);
    let (Some(source), Some(name), true) = (source, name, found.is_empty()) else {
        return Err(Rejection::invalid(found));
    };
    let watch = RecordsWatch { from_lsn: from_lsn.map(Lsn), source: given(source), kind, name: given(name) };
    Ok((watch, encoded))
}

fn encode_state_watch(watch: &StateWatch) -> proto::WatchStateRequest {
    let StateWatch { kind, name_prefix, owner, after_lsn } = watch.clone();
    proto::WatchStateRequest {
        kind: encode_some_kind(kind),
        name_prefix,
        owner: owner.unwrap_or_default(),
        after_lsn: after_lsn.map(|lsn| lsn.0),
    }
}

pub(crate) fn decode_state_watch(request: proto::WatchStateRequest) -> Result<StateWatch, Rejection> {
    let proto::WatchStateRequest { kind, name_prefix, owner, after_lsn } = request;
    let mut found = Violations::default();
    let kind = decode_some_kind("kind", kind, &mut found);
    let name_prefix = found.text(&Path::root("name_prefix"), name_prefix);
    let owner = found.text(&Path::root("owner"), owner);
    match (name_prefix, owner) {
        (Some(name_prefix), Some(owner)) if found.is_empty() => {
            Ok(StateWatch { kind, name_prefix, owner: given(owner), after_lsn: after_lsn.map(Lsn) })
        }
        _ => Err(Rejection::invalid(found)),
    }
}

fn encode_progress(lsn: Lsn) -> proto::WatchProgress {
    proto::WatchProgress { lsn: lsn.0 }
}

pub(crate) fn encode_records_step(step: RecordsStep, encoded: bool) -> Result<proto::WatchRecordsResponse, RpcStatus> {
    let said = match step {
        RecordsStep::Progress(lsn) => RecordsSaid::Progress(encode_progress(lsn)),
        RecordsStep::Records(records) if encoded => {
            let raw = |record: EncodedRecord| proto::EncodedRecord { lsn: record.lsn.0, bytes: record.encoded.into() };
            let encoded = records.into_iter().map(raw).collect();
            RecordsSaid::Records(proto::RecordBatch { records: Vec::new(), encoded })
        }
        RecordsStep::Records(records) => {
            let decoded = records.iter().map(|record| {
                let damaged = |error| JournalError::Damaged(format!("record {}: {error}", record.lsn)).to_status();
                encode_record(record).map_err(damaged)
            });
            RecordsSaid::Records(proto::RecordBatch {
                records: decoded.collect::<Result<_, _>>()?,
                encoded: Vec::new(),
            })
        }
    };
    Ok(proto::WatchRecordsResponse { step: Some(said) })
}

pub(crate) fn encode_state_step(step: StateStep) -> proto::WatchStateResponse {
    let said = match step {
        StateStep::Initial(resources) => {
            StateSaid::Initial(proto::StateResources { resources: resources.iter().map(encode_stored).collect() })
        }
        StateStep::Complete(lsn) => StateSaid::Complete(proto::StateComplete { state_lsn: lsn.0 }),
        StateStep::Changes(StateChanges { lsn, changed, removed }) => StateSaid::Changes(proto::StateChanges {
            lsn: lsn.0,
            changed: changed.iter().map(encode_stored).collect(),
            removed: removed.iter().map(encode_key).collect(),
        }),
        StateStep::Progress(lsn) => StateSaid::Progress(encode_progress(lsn)),
    };
    proto::WatchStateResponse { step: Some(said) }
}

/// `None`: a step that a newer agent knows, and that may be passed over.
fn decode_records_step(message: proto::WatchRecordsResponse) -> Option<RecordsStep> {
    Some(match message.step? {
        RecordsSaid::Progress(proto::WatchProgress { lsn }) => RecordsStep::Progress(Lsn(lsn)),
        RecordsSaid::Records(batch) => {
            let record =
                |record: proto::EncodedRecord| EncodedRecord { lsn: Lsn(record.lsn), encoded: record.bytes.into() };
            RecordsStep::Records(batch.encoded.into_iter().map(record).collect())
        }
    })
}

fn decode_state_step(message: proto::WatchStateResponse) -> Result<Option<StateStep>, ClientError> {
    let resources = |resources: Vec<proto::StoredResource>| -> Result<Vec<Stored>, ClientError> {
        resources.into_iter().map(decode_answer).collect()
    };
    let Some(step) = message.step else { return Ok(None) };
    Ok(Some(match step {
        StateSaid::Initial(initial) => StateStep::Initial(resources(initial.resources)?),
        StateSaid::Complete(proto::StateComplete { state_lsn }) => StateStep::Complete(Lsn(state_lsn)),
        StateSaid::Changes(proto::StateChanges { lsn, changed, removed }) => {
            let mut found = Violations::default();
            let keys = removed.into_iter().map(|key| decode_key(&Path::root("removed"), key, &mut found));
            let removed: Option<Vec<ResourceKey>> = keys.collect();
            let removed = removed.ok_or_else(|| ClientError::UnreadableAnswer { what: found.to_string() })?;
            StateStep::Changes(StateChanges { lsn: Lsn(lsn), changed: resources(changed)?, removed })
        }
        StateSaid::Progress(proto::WatchProgress { lsn }) => StateStep::Progress(Lsn(lsn)),
    }))
}

impl Client {
    /// The records that a watch names, as they are appended, without end.
    pub async fn watch_records(
        &self,
        watch: &RecordsWatch,
    ) -> Result<impl Stream<Item = Result<RecordsStep, ClientError>> + Send + use<>, ClientError> {
        let answer = self.journal_client().watch_records(encode_records_watch(watch)).await;
        let client = self.clone();
        let messages = answer.map_err(|status| self.error(&status))?.into_inner();
        Ok(messages.filter_map(move |message| match message {
            Ok(message) => decode_records_step(message).map(Ok),
            Err(status) => Some(Err(client.error(&status))),
        }))
    }

    /// The resources that a watch names and what becomes of them, without end.
    ///
    /// What comes before [`StateStep::Complete`] is of no one moment: resources may be newer than changes that follow. Whoever
    /// takes each step in has the exact state at that mark, and after each later step.
    pub async fn watch_state(
        &self,
        watch: &StateWatch,
    ) -> Result<impl Stream<Item = Result<StateStep, ClientError>> + Send + use<>, ClientError> {
        let answer = self.watching_client().watch_state(encode_state_watch(watch)).await;
        let client = self.clone();
        let messages = answer.map_err(|status| self.error(&status))?.into_inner();
        Ok(messages.filter_map(move |message| match message {
            Ok(message) => decode_state_step(message).transpose(),
            Err(status) => Some(Err(client.error(&status))),
        }))
    }
}

#[cfg(test)]
mod tests {
    use storage_schema::resource::{Resource, Service};

    use super::*;

    #[test]
    fn watches_and_steps_arrive_as_they_were_sent() {
        let records = RecordsWatch {
            from_lsn: Some(Lsn(7)),
            source: Some("cp".to_owned()),
            kind: Some(Kind::Node),
            name: Some("n".to_owned()),
        };
        for watch in [records, RecordsWatch::default()] {
            assert_eq!(decode_records_watch(encode_records_watch(&watch)).unwrap(), (watch, true));
        }
        let state = StateWatch {
            kind: Some(Kind::Service),
            name_prefix: "shop/".to_owned(),
            owner: Some("cp".to_owned()),
            after_lsn: Some(Lsn(0)),
        };
        for watch in [state, StateWatch::default()] {
            assert_eq!(decode_state_watch(encode_state_watch(&watch)).unwrap(), watch);
        }
        let wrong = proto::WatchStateRequest { kind: 99, owner: "a\nb".to_owned(), ..Default::default() };
        let refused = decode_state_watch(wrong).unwrap_err().to_string();
        assert!(refused.contains("kind") && refused.contains("owner"), "{refused}");
        let resource = Resource::Service(Service { name: "shop/cart".to_owned(), ..Service::default() });
        let stored = Stored { resource, changed_lsn: Lsn(4), owner: "cp".to_owned() };
        let removed = vec![ResourceKey::new(Kind::Workload, "w")];
        for step in [
            StateStep::Initial(vec![stored.clone()]),
            StateStep::Complete(Lsn(5)),
            StateStep::Changes(StateChanges { lsn: Lsn(6), changed: vec![stored], removed }),
            StateStep::Progress(Lsn(9)),
        ] {
            assert_eq!(decode_state_step(encode_state_step(step.clone())).unwrap(), Some(step));
        }
        assert_eq!(decode_state_step(proto::WatchStateResponse { step: None }).unwrap(), None);
    }
}
