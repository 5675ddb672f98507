//! Between the protocol and its messages.

use std::time::Duration;

use storage_schema::id::{Lsn, RecordHash, StoreId};
use storage_schema::precondition::{Precondition, Unmet};
use storage_schema::record::{Delta, Transaction};
use tonic::Code;

use super::lease::TTL_MAX;
use super::stream::How;
use super::{Answer, Hello, PROTOCOL_VERSION, Resync, SYNC_RESOURCES_MAX, UNANSWERED_MAX, Welcome};
use crate::convert::{
    Path, decode_deltas, decode_key, decode_preconditions, decode_source, encode_delta, encode_key,
    encode_preconditions,
};
use crate::rejection::{Rejection, UNMET, Violation, Violations};
use crate::{
    DELTAS_MAX, Level, MESSAGE_BYTES_MAX, Receipt, TEXT_BYTES_MAX, WAIT_TIMEOUT_DEFAULT, WAIT_TIMEOUT_MAX, proto,
};

pub(crate) fn encode_level(level: Level) -> proto::Level {
    match level {
        Level::Received => proto::Level::Received,
        Level::Durable => proto::Level::Durable,
        Level::Applied => proto::Level::Applied,
    }
}

/// A level; `None` if it is not given. What has no meaning is noted.
pub(crate) fn decode_level(path: &Path<'_>, level: i32, found: &mut Violations) -> Option<Level> {
    match proto::Level::try_from(level) {
        Ok(proto::Level::Unspecified) => None,
        Ok(proto::Level::Received) => Some(Level::Received),
        Ok(proto::Level::Durable) => Some(Level::Durable),
        Ok(proto::Level::Applied) => Some(Level::Applied),
        Err(_) => found.note(path, format!("{level} is not a level that this agent knows")),
    }
}

/// How long to wait for more than durable.
pub(crate) fn decode_timeout(
    path: &Path<'_>,
    timeout: Option<prost_types::Duration>,
    found: &mut Violations,
) -> Option<Duration> {
    match timeout.map(Duration::try_from) {
        None => Some(WAIT_TIMEOUT_DEFAULT),
        Some(Ok(timeout)) if timeout <= WAIT_TIMEOUT_MAX => Some(timeout),
        Some(_) => found.note(path, format!("must be 0 to {} seconds", WAIT_TIMEOUT_MAX.as_secs())),
    }
}

pub(super) fn encode_hello(hello: &Hello) -> proto::PushHello {
    proto::PushHello {
        source: hello.source.clone(),
        incarnation: hello.incarnation,
        protocol_version: hello.protocol_version,
        last_sent_version: hello.last_sent_version,
        last_acked_version: hello.last_acked_version,
        unanswered_versions: hello.unanswered_versions.clone(),
        level: encode_level(hello.level).into(),
        wait_timeout: hello.wait_timeout.min(WAIT_TIMEOUT_MAX).try_into().ok(),
        ttl: hello.ttl.and_then(|ttl| ttl.try_into().ok()),
    }
}

/// A lease, which is kept in whole seconds; `None` if it is not given. What has no meaning is noted.
fn decode_ttl(path: &Path<'_>, ttl: Option<prost_types::Duration>, found: &mut Violations) -> Option<Duration> {
    match ttl.map(Duration::try_from)? {
        Ok(ttl) if ttl <= TTL_MAX && ttl.subsec_nanos() == 0 => Some(ttl),
        _ => {
            let max = TTL_MAX.as_secs();
            found.note(path, format!("must be at most {max} whole seconds, or 0: what the source owns stays for ever"))
        }
    }
}

pub(super) fn decode_hello(message: proto::PushHello) -> Result<Hello, Rejection> {
    let path = Path::root("hello");
    let mut found = Violations::default();
    let unanswered_versions = message.unanswered_versions;
    let unanswered_path = path.field("unanswered_versions");
    if unanswered_versions.len() > UNANSWERED_MAX {
        let count = unanswered_versions.len();
        found.say(&unanswered_path, format!("{count} are too many: at most {UNANSWERED_MAX}"));
    } else if !unanswered_versions.is_sorted_by(|one, next| one < next) {
        found.say(&unanswered_path, "must ascend");
    }
    let source = decode_source(&path.field("source"), message.source, &mut found);
    let level = decode_level(&path.field("level"), message.level, &mut found).unwrap_or_default();
    let wait_timeout = decode_timeout(&path.field("wait_timeout"), message.wait_timeout, &mut found);
    let ttl = decode_ttl(&path.field("ttl"), message.ttl, &mut found);
    match (source, wait_timeout) {
        (Some(source), Some(wait_timeout)) if found.is_empty() => Ok(Hello {
            source,
            incarnation: message.incarnation,
            protocol_version: match message.protocol_version {
                0 => 1,
                version => version,
            },
            last_sent_version: message.last_sent_version,
            last_acked_version: message.last_acked_version,
            unanswered_versions,
            level,
            wait_timeout,
            ttl,
        }),
        _ => Err(Rejection::invalid(found)),
    }
}

pub(super) fn encode_welcome(welcome: &Welcome) -> proto::PushWelcome {
    proto::PushWelcome {
        protocol_version: welcome.protocol_version,
        last_version: welcome.last_version,
        last_lsn: welcome.last_lsn.0,
        accepted: welcome.accepted.iter().map(|(version, receipt)| encode_ack(*version, receipt)).collect(),
        resync: match welcome.resync {
            None => proto::Resync::Unspecified,
            Some(Resync::UnknownSource) => proto::Resync::UnknownSource,
            Some(Resync::JournalBehind) => proto::Resync::JournalBehind,
            Some(Resync::SourceBehind) => proto::Resync::SourceBehind,
            Some(Resync::Forgotten) => proto::Resync::Forgotten,
            Some(Resync::Expired) => proto::Resync::Expired,
        }
        .into(),
        window: welcome.window,
        limits: Some(proto::PushLimits {
            message_bytes_max: MESSAGE_BYTES_MAX as u64,
            deltas_max: u32::try_from(DELTAS_MAX).unwrap_or(u32::MAX),
            text_bytes_max: u32::try_from(TEXT_BYTES_MAX).unwrap_or(u32::MAX),
            record_bytes_max: welcome.record_bytes_max,
            unanswered_max: u32::try_from(UNANSWERED_MAX).unwrap_or(u32::MAX),
            sync_resources_max: u32::try_from(SYNC_RESOURCES_MAX).unwrap_or(u32::MAX),
        }),
        capabilities: welcome.capabilities.clone(),
        store_id: welcome.store_id.0.to_vec(),
    }
}

/// The welcome, or what is wrong with it.
pub(super) fn decode_welcome(message: proto::PushWelcome) -> Result<Welcome, &'static str> {
    let accepted: Result<Vec<_>, _> = message.accepted.into_iter().map(decode_ack).collect();
    Ok(Welcome {
        protocol_version: message.protocol_version.clamp(1, PROTOCOL_VERSION),
        last_version: message.last_version,
        last_lsn: Lsn(message.last_lsn),
        accepted: accepted?,
        resync: match proto::Resync::try_from(message.resync) {
            Ok(proto::Resync::Unspecified) => None,
            Ok(proto::Resync::UnknownSource) => Some(Resync::UnknownSource),
            Ok(proto::Resync::JournalBehind) => Some(Resync::JournalBehind),
            Ok(proto::Resync::SourceBehind) => Some(Resync::SourceBehind),
            Ok(proto::Resync::Expired) => Some(Resync::Expired),
            // A reason that a newer agent has is a reason all the same.
            Ok(proto::Resync::Forgotten) | Err(_) => Some(Resync::Forgotten),
        },
        window: message.window.max(1),
        record_bytes_max: message.limits.unwrap_or_default().record_bytes_max,
        capabilities: message.capabilities,
        store_id: StoreId(message.store_id.try_into().map_err(|_| "store_id has not 16 bytes")?),
    })
}

pub(super) fn encode_ack(version: u64, receipt: &Receipt) -> proto::PushAck {
    proto::PushAck {
        version,
        lsn: receipt.lsn.0,
        record_hash: receipt.record_hash.0.to_vec(),
        level: encode_level(receipt.level).into(),
        duplicate: receipt.duplicate,
        blocked_reason: receipt.blocked_reason.clone(),
        removed: receipt.removed,
    }
}

pub(super) fn decode_ack(ack: proto::PushAck) -> Result<(u64, Receipt), &'static str> {
    let receipt = Receipt {
        lsn: Lsn(ack.lsn),
        record_hash: RecordHash(ack.record_hash.try_into().map_err(|_| "record_hash has not 32 bytes")?),
        duplicate: ack.duplicate,
        level: match proto::Level::try_from(ack.level) {
            Ok(proto::Level::Received) => Level::Received,
            Ok(proto::Level::Unspecified | proto::Level::Durable) => Level::Durable,
            Ok(proto::Level::Applied) => Level::Applied,
            Err(_) => return Err("level is unknown"),
        },
        blocked_reason: ack.blocked_reason,
        removed: ack.removed,
    };
    Ok((ack.version, receipt))
}

/// A rejection that is final, as a nack.
pub(super) fn encode_nack(version: u64, rejection: &Rejection) -> proto::PushNack {
    let error = |violation: &Violation| proto::PushError {
        field: violation.path.clone(),
        resource: violation.resource.as_ref().map(encode_key),
        description: violation.description.clone(),
        owner: match rejection {
            Rejection::Owned { owner, .. } => owner.clone(),
            _ => String::new(),
        },
        ..Default::default()
    };
    let (unmet, unmet_more) = match rejection {
        Rejection::Unmet { unmet, more } => (unmet.as_slice(), *more),
        _ => (&[][..], 0),
    };
    let unmet = unmet.iter().map(|unmet| proto::PushError {
        field: "transaction.preconditions".to_owned(),
        resource: Some(encode_key(&unmet.resource)),
        description: unmet.to_string(),
        expected_lsn: Some(unmet.expected_lsn.0),
        actual_lsn: Some(unmet.actual_lsn.0),
        ..Default::default()
    });
    let violations = rejection.violations();
    let more = violations.map_or(unmet_more, Violations::more);
    proto::PushNack {
        version,
        code: rejection.code() as i32,
        reason: rejection.reason().to_owned(),
        message: rejection.to_string(),
        errors: violations.into_iter().flat_map(Violations::iter).map(error).chain(unmet).collect(),
        more: u32::try_from(more).unwrap_or(u32::MAX),
    }
}

pub(super) fn decode_nack(nack: proto::PushNack) -> Answer {
    let proto::PushNack { version, code, reason, message, errors, more } = nack;
    let key = |key: Option<proto::ResourceKey>| {
        key.and_then(|key| decode_key(&Path::root("key"), key, &mut Violations::default()))
    };
    if reason == UNMET {
        let unmet = |error: proto::PushError| {
            let (expected_lsn, actual_lsn) = (Lsn(error.expected_lsn?), Lsn(error.actual_lsn?));
            Some(Unmet { resource: key(error.resource)?, expected_lsn, actual_lsn })
        };
        let rejection = Rejection::Unmet { unmet: errors.into_iter().filter_map(unmet).collect(), more: more as usize };
        return Answer::Nacked { version, rejection };
    }
    let owner = errors.first().map(|error| error.owner.clone()).unwrap_or_default();
    let violation = |error: proto::PushError| Violation {
        path: error.field,
        resource: key(error.resource),
        description: error.description,
    };
    let violations = Violations::new(errors.into_iter().map(violation).collect(), more as usize);
    let rejection = Rejection::refused_for(&reason, Code::from_i32(code), message, owner, violations);
    Answer::Nacked { version, rejection }
}

/// A transaction that was read from a stream.
pub(super) struct Pushed {
    pub(super) transaction: Transaction,
    pub(super) preconditions: Vec<Precondition>,
    /// How far it is to come.
    pub(super) level: Level,
}

/// A transaction of a stream, as it is sent.
pub(super) fn encode_pushed(
    version: u64,
    deltas: &[Delta],
    preconditions: &[Precondition],
    how: How,
) -> proto::PushTransaction {
    let How { level, take_over, dry_run } = how;
    let level = level.map_or(proto::Level::Unspecified, encode_level).into();
    proto::PushTransaction {
        version,
        deltas: deltas.iter().map(encode_delta).collect(),
        level,
        take_over,
        dry_run,
        preconditions: encode_preconditions(preconditions),
    }
}

/// A transaction of a stream, and how far it is to come.
pub(super) fn decode_pushed(hello: &Hello, message: proto::PushTransaction) -> Result<Pushed, Rejection> {
    let path = Path::root("transaction");
    let mut found = Violations::default();
    let proto::PushTransaction { version, deltas, level, take_over, dry_run: _, preconditions } = message;
    decode_version(&path, version, &mut found);
    let level = decode_level(&path.field("level"), level, &mut found).unwrap_or(hello.level);
    let deltas = decode_deltas(&path.field("deltas"), deltas, &mut found);
    let preconditions = decode_preconditions(&path.field("preconditions"), preconditions, &mut found);
    match deltas.zip(preconditions) {
        Some((deltas, preconditions)) if found.is_empty() => {
            let transaction = Transaction { take_over, ..Transaction::push(hello.origin(version), deltas) };
            Ok(Pushed { transaction, preconditions, level })
        }
        _ => Err(Rejection::invalid(found)),
    }
}

pub(super) fn decode_version(path: &Path<'_>, version: u64, found: &mut Violations) {
    if version == 0 {
        found.say(&path.field("version"), "is required: versions begin with 1");
    }
}
