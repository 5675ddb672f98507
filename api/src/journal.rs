//! Reading the journal over the API: which records, and what can be in the way.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use storage_schema::codec::{DecodeError, decode_record, hash_record};
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::record::{Cause, Drained, Event, Lease, Record};
use storage_schema::resource::Kind;
use tonic::Code;
use tonic::codegen::Bytes;
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::convert::{Path, decode_kind, encode_drain_mode, encode_kind, encode_transaction};
use crate::proto;
use crate::rejection::{DOMAIN, Rejection, Violation, Violations};

/// The most records that [`RecordsQuery::last`] may ask for.
pub const LAST_MAX: u32 = 100_000;

/// The reason of what retention has let go, and where its numbers are.
const COMPACTED: &str = "COMPACTED";
const WANTED_LSN: &str = "wanted_lsn";
const OLDEST_LSN: &str = "oldest_lsn";

/// A place in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// A record.
    Lsn(Lsn),
    /// A time of the wall clock, nanoseconds since 1970-01-01 UTC.
    Time(u64),
}

/// Which records of the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordsQuery {
    /// The first one, `None`: the oldest; of a time: the first that is not older.
    pub from: Option<Position>,
    /// The last one, itself included, `None`: the last there is; of a time: the last that is not younger.
    pub to: Option<Position>,
    /// Only what this source pushed.
    pub source: Option<String>,
    /// Only what changed a resource of this kind.
    pub kind: Option<Kind>,
    /// Only what changed a resource of this name.
    pub name: Option<String>,
    /// Only the last so many, at most [`LAST_MAX`].
    pub last: Option<u32>,
    /// Goes on with what is appended from now on.
    pub follow: bool,
}

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRecord {
    /// Its number.
    pub lsn: Lsn,
    /// A schema version and an archive: for `storage_schema::codec`.
    pub encoded: Bytes,
}

impl EncodedRecord {
    /// The record.
    pub fn decode(&self) -> Result<Record, DecodeError> {
        decode_record(&self.encoded)
    }

    /// Its hash.
    pub fn hash(&self) -> RecordHash {
        hash_record(&self.encoded)
    }
}

/// Why the journal could not be read or kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// What was asked for is not there: let go by retention, or not appended yet.
    #[error("{0}")]
    OutOfRange(String),
    /// Retention has let it go.
    #[error("record {wanted_lsn} is no longer kept: the oldest one is {oldest_lsn}")]
    Compacted {
        /// The record asked for.
        wanted_lsn: Lsn,
        /// The oldest one that is still there.
        oldest_lsn: Lsn,
    },
    /// The request contradicts itself.
    #[error("{0}")]
    Invalid(String),
    /// It is read by too many already.
    #[error("{0}")]
    Busy(String),
    /// Something that was acknowledged cannot be read any more.
    #[error("{0}")]
    Damaged(String),
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

impl JournalError {
    pub(crate) fn to_status(&self) -> tonic::Status {
        let code = match self {
            Self::Compacted { wanted_lsn, oldest_lsn } => {
                let lsns = [(WANTED_LSN, wanted_lsn), (OLDEST_LSN, oldest_lsn)];
                let metadata = lsns.map(|(name, lsn)| (name.to_owned(), lsn.to_string()));
                let details = ErrorDetails::with_error_info(COMPACTED, DOMAIN, metadata);
                return tonic::Status::with_error_details(Code::OutOfRange, self.to_string(), details);
            }
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::Invalid(_) => Code::InvalidArgument,
            Self::Busy(_) => Code::ResourceExhausted,
            Self::Damaged(_) => Code::DataLoss,
            Self::Failed(_) => Code::Internal,
        };
        tonic::Status::new(code, self.to_string())
    }

    pub(crate) fn from_status(status: &tonic::Status) -> Option<Self> {
        let message = status.message().to_owned();
        match status.code() {
            Code::OutOfRange => Some(compacted(status).unwrap_or(Self::OutOfRange(message))),
            Code::DataLoss => Some(Self::Damaged(message)),
            Code::ResourceExhausted => Some(Self::Busy(message)),
            _ => None,
        }
    }
}

/// What retention has let go, if that is what the status says.
fn compacted(status: &tonic::Status) -> Option<JournalError> {
    let details = status.get_error_details();
    let info = details.error_info().filter(|info| info.domain == DOMAIN && info.reason == COMPACTED)?;
    let lsn = |name: &str| info.metadata.get(name)?.parse().ok().map(Lsn);
    Some(JournalError::Compacted { wanted_lsn: lsn(WANTED_LSN)?, oldest_lsn: lsn(OLDEST_LSN)? })
}

pub(crate) fn encode_query(query: &RecordsQuery) -> proto::ReadRecordsRequest {
    proto::ReadRecordsRequest {
        from: query.from.map(encode_position),
        to: query.to.map(encode_position),
        source: query.source.clone().unwrap_or_default(),
        kind: query.kind.map_or(proto::Kind::Unspecified, encode_kind).into(),
        name: query.name.clone().unwrap_or_default(),
        last: query.last.unwrap_or_default(),
        follow: query.follow,
        encoded: true,
    }
}

pub(crate) fn encode_position(position: Position) -> proto::Position {
    use proto::position::Position as Encoded;
    let encoded = match position {
        Position::Lsn(lsn) => Encoded::Lsn(lsn.0),
        Position::Time(wall_ns) => Encoded::Time(encode_time(wall_ns)),
    };
    proto::Position { position: Some(encoded) }
}

/// The query, and whether records are wanted as they are stored.
pub(crate) fn decode_query(request: proto::ReadRecordsRequest) -> Result<(RecordsQuery, bool), Rejection> {
    let proto::ReadRecordsRequest { from, to, source, kind, name, last, follow, encoded } = request;
    let mut found = Violations::default();
    let (from, to) = (decode_position("from", from, &mut found), decode_position("to", to, &mut found));
    let kind = match proto::Kind::try_from(kind) {
        Ok(proto::Kind::Unspecified) => None,
        _ => decode_kind(&Path::root("kind"), kind, &mut found),
    };
    let mut refuse =
        |path: &str, description| found.push(Violation { path: path.to_owned(), resource: None, description });
    if last > LAST_MAX {
        refuse("last", format!("{last} are too many: at most {LAST_MAX}"));
    }
    if follow && to.is_some() {
        refuse("follow", "an end (`to`) was given".to_owned());
    }
    if found.iter().next().is_some() {
        return Err(Rejection::invalid(found));
    }
    let given = |text: String| (!text.is_empty()).then_some(text);
    let last = (last > 0).then_some(last);
    Ok((RecordsQuery { from, to, source: given(source), kind, name: given(name), last, follow }, encoded))
}

pub(crate) fn decode_position(
    field: &'static str,
    message: Option<proto::Position>,
    found: &mut Violations,
) -> Option<Position> {
    use proto::position::Position as Encoded;
    let mut refuse = |path: String, description: &str| {
        found.push(Violation { path, resource: None, description: description.to_owned() });
    };
    match message?.position {
        Some(Encoded::Lsn(lsn)) => Some(Position::Lsn(Lsn(lsn))),
        Some(Encoded::Time(time)) => match decode_time(&time) {
            Some(wall_ns) => Some(Position::Time(wall_ns)),
            None => {
                refuse(format!("{field}.time"), "must be between 1970 and 2554");
                None
            }
        },
        None => {
            refuse(field.to_owned(), "must hold an lsn or a time");
            None
        }
    }
}

/// Nanoseconds since 1970-01-01 UTC as a message.
pub(crate) fn encode_time(wall_ns: u64) -> prost_types::Timestamp {
    (UNIX_EPOCH + Duration::from_nanos(wall_ns)).into()
}

/// Nanoseconds since 1970-01-01 UTC; `None` if the time is out of their range.
pub(crate) fn decode_time(time: &prost_types::Timestamp) -> Option<u64> {
    let time = SystemTime::try_from(*time).ok()?;
    u64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok()
}

/// A record as a message; `None` if it cannot be decoded.
pub(crate) fn encode_record(record: &EncodedRecord) -> Result<proto::JournalRecord, DecodeError> {
    let Record { lsn, transaction, wall_ns, monotonic_ns, boot_id, previous_hash, received_wall_ns, client } =
        record.decode()?;
    Ok(proto::JournalRecord {
        lsn: lsn.0,
        hash: record.hash().0.to_vec(),
        previous_hash: previous_hash.0.to_vec(),
        appended_at: Some(encode_time(wall_ns)),
        monotonic_ns,
        boot_id: boot_id.0.to_vec(),
        transaction: Some(encode_transaction(&transaction)),
        received_at: received_wall_ns.map(encode_time),
        client: client.unwrap_or_default(),
        cause: encode_cause(transaction.cause).into(),
        take_over: transaction.take_over,
        event: transaction.event.map(encode_event),
    })
}

fn encode_cause(cause: Cause) -> proto::Cause {
    match cause {
        Cause::Push => proto::Cause::Push,
        Cause::Sync => proto::Cause::Sync,
        Cause::Expiry => proto::Cause::Expiry,
        Cause::Agent => proto::Cause::Agent,
    }
}

fn encode_event(event: Event) -> proto::Event {
    let event = match event {
        Event::Drained(Drained { service, workload, mode, closed, reselected }) => {
            let mode = encode_drain_mode(mode).into();
            proto::event::Event::Drained(proto::Drained { service, workload, mode, closed, reselected })
        }
        Event::Leased(Lease { ttl_seconds }) => {
            let ttl = (ttl_seconds > 0).then(|| prost_types::Duration { seconds: ttl_seconds.into(), nanos: 0 });
            proto::event::Event::Leased(proto::Leased { ttl })
        }
    };
    proto::Event { event: Some(event) }
}

/// Gathers records into messages of a size that is worth sending.
pub(crate) fn encode_batch(
    records: Vec<EncodedRecord>,
    encoded: bool,
) -> Result<proto::ReadRecordsResponse, tonic::Status> {
    if encoded {
        let raw = |record: EncodedRecord| proto::EncodedRecord { lsn: record.lsn.0, bytes: record.encoded.into() };
        let encoded = records.into_iter().map(raw).collect();
        return Ok(proto::ReadRecordsResponse { records: Vec::new(), encoded });
    }
    let decoded = records.iter().map(|record| {
        encode_record(record)
            .map_err(|error| JournalError::Damaged(format!("record {}: {error}", record.lsn)).to_status())
    });
    Ok(proto::ReadRecordsResponse { records: decoded.collect::<Result<_, _>>()?, encoded: Vec::new() })
}
