//! Transactions.

use storage_schema::id::Lsn;
use storage_schema::precondition::Precondition;
use storage_schema::record::{Delta, Origin, Transaction};

use super::{Path, decode_key, decode_resource, encode_key, encode_resource};
use crate::rejection::{Rejection, Violations};
use crate::{DELTAS_MAX, proto};

/// A transaction as a message.
pub fn encode_transaction(transaction: &Transaction) -> proto::Transaction {
    let Origin { source, incarnation, version } = transaction.origin.clone();
    proto::Transaction {
        origin: Some(proto::Origin { source, incarnation, version }),
        deltas: transaction.deltas.iter().map(encode_delta).collect(),
    }
}

/// A message's transaction, or every field of it that is wrong.
pub fn decode_transaction(message: Option<proto::Transaction>) -> Result<Transaction, Rejection> {
    let path = Path::root("transaction");
    let mut found = Violations::default();
    match decode(&path, message, &mut found) {
        Some(transaction) => Ok(transaction),
        None => Err(Rejection::invalid(found)),
    }
}

fn decode(path: &Path<'_>, message: Option<proto::Transaction>, found: &mut Violations) -> Option<Transaction> {
    let Some(proto::Transaction { origin, deltas }) = message else {
        return found.note(path, "is required");
    };
    let origin = match origin {
        None => found.note(&path.field("origin"), "is required"),
        Some(proto::Origin { source, incarnation, version }) => {
            decode_source(&path.field("origin").field("source"), source, found).map(|source| Origin {
                source,
                incarnation,
                version,
            })
        }
    };
    let deltas = decode_deltas(&path.field("deltas"), deltas, found);
    Some(Transaction::push(origin?, deltas?))
}

/// The name of a source.
pub(crate) fn decode_source(path: &Path<'_>, source: String, found: &mut Violations) -> Option<String> {
    found.required_text(path, source)
}

/// The deltas of one transaction.
pub(crate) fn decode_deltas(path: &Path<'_>, deltas: Vec<proto::Delta>, found: &mut Violations) -> Option<Vec<Delta>> {
    match deltas.len() {
        0 => found.note(path, "must hold at least one delta"),
        len if len > DELTAS_MAX => found.note(path, format!("{len} deltas are too many: at most {DELTAS_MAX}")),
        _ => found.list(path, deltas, decode_delta),
    }
}

/// What must be so for a transaction to be accepted.
pub(crate) fn decode_preconditions(
    path: &Path<'_>,
    preconditions: Vec<proto::Precondition>,
    found: &mut Violations,
) -> Option<Vec<Precondition>> {
    if preconditions.len() > DELTAS_MAX {
        return found.note(path, format!("{} are too many: at most {DELTAS_MAX}", preconditions.len()));
    }
    found.list(path, preconditions, |path, proto::Precondition { key, changed_lsn }, found| {
        let path = path.field("key");
        match key {
            Some(key) => {
                decode_key(&path, key, found).map(|resource| Precondition { resource, changed_lsn: Lsn(changed_lsn) })
            }
            None => found.note(&path, "is required"),
        }
    })
}

/// Preconditions as messages.
pub(crate) fn encode_preconditions(preconditions: &[Precondition]) -> Vec<proto::Precondition> {
    let encode = |Precondition { resource, changed_lsn }: &Precondition| proto::Precondition {
        key: Some(encode_key(resource)),
        changed_lsn: changed_lsn.0,
    };
    preconditions.iter().map(encode).collect()
}

/// A delta as a message.
pub(crate) fn encode_delta(delta: &Delta) -> proto::Delta {
    use proto::delta::Change;
    proto::Delta {
        change: Some(match delta {
            Delta::Upsert(resource) => Change::Upsert(encode_resource(resource)),
            Delta::Remove(key) => Change::Remove(encode_key(key)),
        }),
    }
}

fn decode_delta(path: &Path<'_>, delta: proto::Delta, found: &mut Violations) -> Option<Delta> {
    use proto::delta::Change;
    match delta.change {
        Some(Change::Upsert(resource)) => decode_resource(&path.field("upsert"), resource, found).map(Delta::Upsert),
        Some(Change::Remove(key)) => decode_key(&path.field("remove"), key, found).map(Delta::Remove),
        None => found.note(path, "must hold an upsert or a removal"),
    }
}
