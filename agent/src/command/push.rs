//! What `apply` and `delete` have in common: a transaction, the wait for it, and the receipt.

use std::time::Duration;

use api::client::{Client, ClientError};
use api::plan::{Effect, Plan, PlannedChange};
use api::rejection::{Violation, Violations};
use api::{Level, Receipt, WAIT_TIMEOUT_MAX};
use indicatif::ProgressBar;
use storage_schema::precondition::Precondition;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::Kind;

use crate::cli::{ReceiptFormat, Source, Wait, Waiting};
use crate::exit::{Exit, Failure};
use crate::output;

pub(super) fn transaction(source: &Source, deltas: Vec<Delta>) -> Transaction {
    let Source { source, source_version: version, source_incarnation: incarnation, take_over } = source.clone();
    Transaction { take_over, ..Transaction::push(Origin { source, incarnation, version }, deltas) }
}

pub(super) fn check_timeout(waiting: &Waiting) -> Result<(), Failure> {
    if waiting.timeout > WAIT_TIMEOUT_MAX {
        return Err(Failure::new(Exit::Usage, "--timeout: at most 1m; `holdfast status --wait` waits longer"));
    }
    Ok(())
}

/// A spinner on standard error while something is waited for; nothing where that is no terminal.
pub(super) fn spinner(message: impl Into<String>) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message.into());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

/// What a transaction has come to.
pub(super) enum Outcome {
    /// It was accepted.
    Pushed(Receipt),
    /// It would be.
    Planned(Plan),
}

/// Pushes, and returns the receipt of a transaction that was accepted, however far it has come; or only asks what it would change.
pub(super) async fn push_or_plan(
    client: &Client,
    transaction: &Transaction,
    preconditions: &[Precondition],
    waiting: &Waiting,
    dry_run: bool,
) -> Result<Outcome, ClientError> {
    if dry_run {
        return client.plan(transaction, preconditions).await.map(Outcome::Planned);
    }
    push(client, transaction, preconditions, waiting).await.map(Outcome::Pushed)
}

async fn push(
    client: &Client,
    transaction: &Transaction,
    preconditions: &[Precondition],
    waiting: &Waiting,
) -> Result<Receipt, ClientError> {
    let level = match waiting.wait {
        Wait::Durable => Level::Durable,
        Wait::Applied => Level::Applied,
    };
    let spinner = spinner("waiting for the transaction");
    let receipt = client.apply_if(transaction, preconditions, level, waiting.timeout).await;
    spinner.finish_and_clear();
    receipt
}

/// Prints what a transaction would change.
pub(super) fn report_plan(plan: &Plan, format: ReceiptFormat) -> Result<(), Failure> {
    output::print(&match format {
        ReceiptFormat::Text => plan_text(plan),
        ReceiptFormat::Json => output::json(&plan_value(plan)),
    })
}

fn plan_text(plan: &Plan) -> String {
    if let Some(lsn) = plan.duplicate_lsn {
        return format!("dry run: it was pushed before as LSN {lsn}, and would change nothing\n");
    }
    let line = |change: &PlannedChange| match change.effect {
        Effect::Created => format!("+ {}\n", change.key),
        Effect::Removed => format!("- {}, of {}, LSN {}\n", change.key, or_nobody(&change.owner), change.changed_lsn),
        _ => format!("~ {}, of {}, LSN {}\n", change.key, or_nobody(&change.owner), change.changed_lsn),
    };
    let more = (plan.more > 0).then(|| format!("… and {} more\n", plan.more));
    let counts = [
        (plan.created, "created"),
        (plan.updated, "updated"),
        (plan.removed, "removed"),
        (plan.unchanged, "unchanged"),
        (plan.absent, "not there"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let counts = if counts.is_empty() { "nothing to change".to_owned() } else { counts.join(", ") };
    let state_lsn = plan.state_lsn;
    let lines = plan.changes.iter().map(line).chain(more);
    lines.chain([format!("dry run at LSN {state_lsn}: {counts}; nothing was changed\n")]).collect()
}

fn or_nobody(owner: &str) -> &str {
    if owner.is_empty() { "nobody" } else { owner }
}

fn plan_value(plan: &Plan) -> serde_json::Value {
    let change = |change: &PlannedChange| {
        serde_json::json!({
            "kind": change.key.kind.as_str(),
            "name": change.key.name,
            "effect": match change.effect {
                Effect::Created => "created",
                Effect::Removed => "removed",
                _ => "updated",
            },
            "changedLsn": change.changed_lsn,
            "owner": change.owner,
        })
    };
    serde_json::json!({
        "dryRun": true,
        "stateLsn": plan.state_lsn,
        "created": plan.created,
        "updated": plan.updated,
        "unchanged": plan.unchanged,
        "removed": plan.removed,
        "absent": plan.absent,
        "changes": plan.changes.iter().map(change).collect::<Vec<_>>(),
        "more": plan.more,
        "duplicateLsn": plan.duplicate_lsn,
    })
}

/// Prints what a transaction has come to.
pub(super) fn report_outcome(outcome: &Outcome, transaction: &Transaction, waiting: &Waiting) -> Result<(), Failure> {
    match outcome {
        Outcome::Pushed(receipt) => report(receipt, transaction, waiting),
        Outcome::Planned(plan) => report_plan(plan, waiting.output),
    }
}

/// Prints a receipt; a transaction that has not come as far as was asked for is a failure, though it is accepted.
fn report(receipt: &Receipt, transaction: &Transaction, waiting: &Waiting) -> Result<(), Failure> {
    let (lsn, level) = (receipt.lsn, level(receipt.level));
    output::print(&match waiting.output {
        ReceiptFormat::Text if receipt.duplicate => format!("LSN {lsn}: {level}; it had been pushed before\n"),
        ReceiptFormat::Text => format!("LSN {lsn}: {}, {level}\n", contents(transaction)),
        ReceiptFormat::Json => output::json(&serde_json::json!({
            "lsn": lsn,
            "level": level,
            "duplicate": receipt.duplicate,
            "recordHash": receipt.record_hash.to_string(),
        })),
    })?;
    check_level(receipt, waiting)
}

/// How far a transaction has come, in a word.
pub(super) const fn level(level: Level) -> &'static str {
    match level {
        Level::Received => "received",
        Level::Durable => "durable",
        Level::Applied => "applied",
    }
}

/// Fails if a transaction has not come as far as was asked.
pub(super) fn check_level(receipt: &Receipt, waiting: &Waiting) -> Result<(), Failure> {
    let lsn = receipt.lsn;
    if waiting.wait == Wait::Applied && receipt.level == Level::Durable {
        let because = match receipt.blocked_reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        let timeout = humantime::format_duration(waiting.timeout);
        let message = format!("LSN {lsn} is durable, but not applied after {timeout}{because}");
        return Err(Failure::new(Exit::TimedOut, message));
    }
    Ok(())
}

/// What the agent says about a transaction that was typed, not written down: its resources are known by name.
pub(super) fn describe(violation: &Violation) -> String {
    let mut text = violation.description.clone();
    if violation.delta().is_some() && !violation.field().is_empty() {
        text = format!("{}: {text}", violation.field());
    }
    match &violation.resource {
        Some(resource) => format!("{resource}: {text}"),
        None => text,
    }
}

/// What is left to be said after the violations themselves.
pub(super) fn unsaid(violations: &Violations) -> impl Iterator<Item = String> + use<> {
    let more = (violations.more() > 0).then(|| format!("and {} more", violations.more()));
    more.into_iter().chain(["the agent refused the transaction: nothing was changed".to_owned()])
}

/// `3 services, 8 workloads`, or `2 removed`.
fn contents(transaction: &Transaction) -> String {
    let upserts = |kind| {
        transaction.deltas.iter().filter(|delta| matches!(delta, Delta::Upsert(_)) && delta.key().kind == kind).count()
    };
    let removals = transaction.deltas.iter().filter(|delta| matches!(delta, Delta::Remove(_))).count();
    let counts = Kind::ALL
        .map(|kind| (upserts(kind), kind.as_str().to_ascii_lowercase()))
        .into_iter()
        .map(|(count, kind)| (count, if count == 1 { kind } else { format!("{kind}s") }))
        .chain([(removals, "removed".to_owned())]);
    let parts: Vec<String> =
        counts.filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    parts.join(", ")
}
