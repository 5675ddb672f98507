//! Questions about the past over the API: messages, the service behind [`Backend`], the client's side.
//!
//! Answers are JSON documents that pass through here unread: what they say is the business of who asks and who answers.

use std::net::{IpAddr, SocketAddr};

use storage_schema::id::Lsn;
use storage_schema::resource::{Kind, ResourceKey};
use tonic::{Request, Response, Status as RpcStatus};

use crate::client::{Client, ClientError, decode_answer};
use crate::convert::{Path, decode_key, decode_kind, encode_key, encode_kind};
use crate::filter::{ResourceFilter, decode_filter, encode_filter};
use crate::journal::{Position, decode_position, encode_position};
use crate::proto::replay_service_server::ReplayService;
use crate::rejection::{Rejection, Violation, Violations};
use crate::server::{Backend, Handler, Messages, Read, encode_stored, passed_on};
use crate::{Stored, proto};

/// Which resources, at which moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateQuery {
    /// The moment, `None`: now; of a time: after the last record that was there.
    pub at: Option<Position>,
    /// Only resources of this kind.
    pub kind: Option<Kind>,
    /// Only resources of this name.
    pub name: Option<String>,
    /// Only these.
    pub filter: ResourceFilter,
}

/// A question about the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What differs between two moments?
    Diff {
        /// The one, `None`: now.
        from: Option<Position>,
        /// The other one, `None`: now.
        to: Option<Position>,
        /// Only resources of this kind.
        kind: Option<Kind>,
        /// Only resources of this name.
        name: Option<String>,
        /// The table entries as well.
        maps: bool,
    },
    /// How did a resource become what it is?
    History {
        /// Which.
        key: ResourceKey,
        /// From this record on, or after this time, `None`: all that is kept.
        since: Option<Position>,
        /// Up to here, `None`: now.
        until: Option<Position>,
        /// Only the last so many changes.
        last: Option<u32>,
    },
    /// Why does a connection go where it goes?
    Why {
        /// What is dialled.
        to: SocketAddr,
        /// IANA protocol number.
        protocol: u8,
        /// Who dials, if that is known.
        from: Option<IpAddr>,
        /// When, `None`: now.
        at: Option<Position>,
        /// Of a connection that was made: the epoch in its stamp.
        epoch: Option<Lsn>,
        /// Of a connection that was made: the random word in its stamp.
        entropy: Option<u32>,
    },
}

/// The protocol when none is given.
const TCP: u8 = 6;

fn encode_state_query(query: &StateQuery) -> proto::ReadStateRequest {
    proto::ReadStateRequest {
        at: query.at.map(encode_position),
        kind: encode_some_kind(query.kind),
        name: query.name.clone().unwrap_or_default(),
        filter: Some(encode_filter(&query.filter)),
    }
}

fn decode_state_query(request: proto::ReadStateRequest) -> Result<StateQuery, Rejection> {
    let proto::ReadStateRequest { at, kind, name, filter } = request;
    let mut found = Violations::default();
    let at = decode_position("at", at, &mut found);
    let kind = decode_some_kind("kind", kind, &mut found);
    match decode_filter(&Path::root("filter"), filter, &mut found) {
        Some(filter) => checked(found, StateQuery { at, kind, name: given(name), filter }),
        None => Err(Rejection::invalid(found)),
    }
}

fn encode_question(question: &Question) -> proto::explain_request::Question {
    use proto::explain_request::Question as Encoded;
    match question {
        Question::Diff { from, to, kind, name, maps } => Encoded::Diff(proto::DiffQuestion {
            from: from.map(encode_position),
            to: to.map(encode_position),
            kind: encode_some_kind(*kind),
            name: name.clone().unwrap_or_default(),
            maps: *maps,
        }),
        Question::History { key, since, until, last } => Encoded::History(proto::HistoryQuestion {
            key: Some(encode_key(key)),
            since: since.map(encode_position),
            until: until.map(encode_position),
            last: last.unwrap_or_default(),
        }),
        Question::Why { to, protocol, from, at, epoch, entropy } => Encoded::Why(proto::WhyQuestion {
            address: to.ip().to_string(),
            port: to.port().into(),
            protocol: (*protocol).into(),
            from: from.map(|from| from.to_string()).unwrap_or_default(),
            at: at.map(encode_position),
            epoch: epoch.map(|epoch| epoch.0),
            entropy: *entropy,
        }),
    }
}

fn decode_question(request: proto::ExplainRequest) -> Result<Question, Rejection> {
    use proto::explain_request::Question as Encoded;
    let mut found = Violations::default();
    let question = match request.question {
        None => required("question", &mut found),
        Some(Encoded::Diff(proto::DiffQuestion { from, to, kind, name, maps })) => Some(Question::Diff {
            from: decode_position("diff.from", from, &mut found),
            to: decode_position("diff.to", to, &mut found),
            kind: decode_some_kind("diff.kind", kind, &mut found),
            name: given(name),
            maps,
        }),
        Some(Encoded::History(proto::HistoryQuestion { key, since, until, last })) => {
            let since = decode_position("history.since", since, &mut found);
            let until = decode_position("history.until", until, &mut found);
            let key = match key {
                Some(key) => decode_key(&Path::root("history.key"), key, &mut found),
                None => required("history.key", &mut found),
            };
            let last = (last > 0).then_some(last);
            key.map(|key| Question::History { key, since, until, last })
        }
        Some(Encoded::Why(why)) => decode_why(why, &mut found),
    };
    match question {
        Some(question) => checked(found, question),
        None => Err(Rejection::invalid(found)),
    }
}

fn decode_why(why: proto::WhyQuestion, found: &mut Violations) -> Option<Question> {
    let proto::WhyQuestion { address, port, protocol, from, at, epoch, entropy } = why;
    let at = decode_position("why.at", at, found);
    let mut parsed = |field: &str, text: &str| -> Option<IpAddr> {
        let refuse = |_| refuse(field, format!("`{text}` is no IP address"), found);
        text.parse().map_err(refuse).ok()
    };
    let from = given(from).map(|from| parsed("why.from", &from));
    let address = parsed("why.address", &address);
    let port = u16::try_from(port).ok().filter(|port| *port > 0);
    if port.is_none() {
        refuse("why.port", "must be 1 to 65535".to_owned(), found);
    }
    let protocol = u8::try_from(protocol).map_err(|_| refuse("why.protocol", "must be below 256".to_owned(), found));
    let protocol = protocol.ok().map(|protocol| if protocol == 0 { TCP } else { protocol });
    let from = match from {
        Some(from) => Some(from?),
        None => None,
    };
    Some(Question::Why {
        to: SocketAddr::new(address?, port?),
        protocol: protocol?,
        from,
        at,
        epoch: epoch.map(Lsn),
        entropy,
    })
}

fn refuse(path: &str, description: String, found: &mut Violations) {
    found.push(Violation { path: path.to_owned(), resource: None, description });
}

pub(crate) fn encode_some_kind(kind: Option<Kind>) -> i32 {
    kind.map_or(proto::Kind::Unspecified, encode_kind).into()
}

pub(crate) fn decode_some_kind(field: &'static str, kind: i32, found: &mut Violations) -> Option<Kind> {
    match proto::Kind::try_from(kind) {
        Ok(proto::Kind::Unspecified) => None,
        _ => decode_kind(&Path::root(field), kind, found),
    }
}

pub(crate) fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn required<T>(path: &str, found: &mut Violations) -> Option<T> {
    refuse(path, "is required".to_owned(), found);
    None
}

fn checked<T>(found: Violations, value: T) -> Result<T, Rejection> {
    if found.iter().next().is_some() { Err(Rejection::invalid(found)) } else { Ok(value) }
}

#[tonic::async_trait]
impl<B: Backend> ReplayService for Handler<B> {
    type ReadStateStream = Messages<proto::ReadStateResponse>;
    type ExplainStream = Messages<proto::ExplainResponse>;

    async fn read_state(
        &self,
        request: Request<proto::ReadStateRequest>,
    ) -> Result<Response<Self::ReadStateStream>, RpcStatus> {
        let query = decode_state_query(request.into_inner()).map_err(|rejection| rejection.to_status())?;
        let flow = self.backend.state(query).await.map_err(|error| error.to_status())?;
        let message = |Read { value, state_lsn }: Read<Vec<Stored>>| {
            let resources = value.iter().map(encode_stored).collect();
            Ok(proto::ReadStateResponse { state_lsn: state_lsn.0, resources })
        };
        Ok(Response::new(passed_on(flow, message)))
    }

    async fn explain(
        &self,
        request: Request<proto::ExplainRequest>,
    ) -> Result<Response<Self::ExplainStream>, RpcStatus> {
        let question = decode_question(request.into_inner()).map_err(|rejection| rejection.to_status())?;
        let flow = self.backend.explain(question).await.map_err(|error| error.to_status())?;
        Ok(Response::new(passed_on(flow, |json| Ok(proto::ExplainResponse { json }))))
    }
}

impl Client {
    /// The resources that a query names, as they were, and the record after which they were so.
    pub async fn state(&self, query: &StateQuery) -> Result<Read<Vec<Stored>>, ClientError> {
        let answer = self.replay_client().read_state(encode_state_query(query)).await;
        let mut messages = answer.map_err(|status| self.error(&status))?.into_inner();
        let mut read = Read { value: Vec::new(), state_lsn: Lsn::ZERO };
        while let Some(message) = messages.message().await.map_err(|status| self.error(&status))? {
            read.state_lsn = Lsn(message.state_lsn);
            for resource in message.resources {
                read.value.push(decode_answer(resource)?);
            }
        }
        Ok(read)
    }

    /// The answer to a question about the past, as a JSON document.
    pub async fn explain(&self, question: &Question) -> Result<Vec<u8>, ClientError> {
        let request = proto::ExplainRequest { question: Some(encode_question(question)) };
        let answer = self.replay_client().explain(request).await;
        let mut messages = answer.map_err(|status| self.error(&status))?.into_inner();
        let mut document = Vec::new();
        while let Some(message) = messages.message().await.map_err(|status| self.error(&status))? {
            document.extend(message.json);
        }
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_arrive_as_they_were_asked() {
        let at = Some(Position::Time(1_700_000_000_000_000_000));
        let questions = [
            Question::Diff { from: Some(Position::Lsn(Lsn(3))), to: at, kind: None, name: None, maps: true },
            Question::Diff { from: None, to: None, kind: Some(Kind::Node), name: Some("n".into()), maps: false },
            Question::History { key: ResourceKey::new(Kind::Workload, "w"), since: at, until: None, last: Some(9) },
            Question::Why {
                to: "10.96.0.20:80".parse().unwrap(),
                protocol: 17,
                from: Some("fd00::7".parse().unwrap()),
                at,
                epoch: Some(Lsn(7)),
                entropy: Some(u32::MAX),
            },
        ];
        for question in questions {
            let request = proto::ExplainRequest { question: Some(encode_question(&question)) };
            assert_eq!(decode_question(request).unwrap(), question);
        }
        let filter = ResourceFilter { owner: Some("cp".into()), ..ResourceFilter::default() };
        let query = StateQuery { at, kind: Some(Kind::Service), name: Some("a/b".into()), filter };
        assert_eq!(decode_state_query(encode_state_query(&query)).unwrap(), query);
    }

    #[test]
    fn what_is_wrong_with_a_question_is_named() {
        let refused = |question| decode_question(proto::ExplainRequest { question }).unwrap_err().to_string();
        assert!(refused(None).contains("question: is required"), "{}", refused(None));
        let history = proto::explain_request::Question::History(proto::HistoryQuestion::default());
        assert!(refused(Some(history.clone())).contains("history.key"), "{}", refused(Some(history)));
        let why = refused(Some(proto::explain_request::Question::Why(proto::WhyQuestion {
            from: "nobody".to_owned(),
            port: 70_000,
            ..Default::default()
        })));
        assert!(["why.from", "why.address", "why.port"].iter().all(|field| why.contains(field)), "{why}");
        let kind = decode_state_query(proto::ReadStateRequest { kind: 99, ..Default::default() }).unwrap_err();
        assert!(kind.to_string().contains("kind"), "{kind}");
    }
}
