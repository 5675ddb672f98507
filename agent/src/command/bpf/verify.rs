//! `holdfast bpf verify`: do the tables show what the journal says?

use std::path::Path;

use api::proto;
use applier::compare::{Comparison, Staged};
use applier::{Applier, Difference, plan, start};
use comfy_table::Cell;
use journal::Reader;
use serde_json::{Value, json};
use storage_schema::id::Lsn;

use super::{open, print_value};
use crate::cli::{Common, PinnedArgs, VerifyTablesArgs};
use crate::command::{block_on, connect, push};
use crate::exit::{Exit, Failure};
use crate::output;

pub(super) fn run(common: &Common, args: &VerifyTablesArgs) -> Result<(), Failure> {
    let spinner = push::spinner("comparing the tables with the journal");
    let report = match &args.state_dir {
        None => block_on(async { Ok(connect(common).await?.verify_tables().await?) }),
        Some(state_dir) => of_stopped(common, &args.pinned, state_dir),
    };
    spinner.finish_and_clear();
    let report = report?;
    print_value(args.pinned.output, &value(&report), || text(&report))?;
    let proto::VerifyTablesResponse { entries_checked, entries_differing, repairing, .. } = report;
    if entries_differing == 0 {
        return Ok(());
    }
    let what_now = if repairing {
        "the agent is making a new generation"
    } else {
        "an agent that is started makes a new generation"
    };
    let message = format!("{entries_differing} of {entries_checked} entries are not as the journal says: {what_now}");
    Err(Failure::new(Exit::Failure, message))
}

fn of_stopped(common: &Common, pinned: &PinnedArgs, state_dir: &Path) -> Result<proto::VerifyTablesResponse, Failure> {
    let reader = Reader::open(state_dir)?;
    let (_, tables) = open(common, pinned, None)?;
    let applier = Applier::look(tables).map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
    let model = start::read_past(&reader, Lsn::from(applier.active()))?;
    let compared = applier.compare(&plan::everything(&model), Staged::Leftover);
    let Comparison { epoch, checked, differing, differences } = compared.map_err(applier::StartError::from)?;
    let difference = |Difference { table, entry, expected, found }| proto::TableDifference {
        table: str::to_owned(table),
        entry,
        expected,
        found,
    };
    Ok(proto::VerifyTablesResponse {
        epoch: epoch.0,
        entries_checked: checked,
        entries_differing: differing,
        differences: differences.into_iter().map(difference).collect(),
        repairing: false,
    })
}

fn text(report: &proto::VerifyTablesResponse) -> String {
    let proto::VerifyTablesResponse { epoch, entries_checked, entries_differing, differences, .. } = report;
    let summary = format!("epoch {epoch}: {entries_checked} entries compared, {entries_differing} differ\n");
    if differences.is_empty() {
        return summary;
    }
    let rows = differences.iter().map(|difference| {
        let proto::TableDifference { table, entry, expected, found } = difference;
        [table, entry, expected, found].map(Cell::new)
    });
    summary + "\n" + &output::table(["TABLE", "ENTRY", "JOURNAL", "TABLE HAS"], rows)
}

fn value(report: &proto::VerifyTablesResponse) -> Value {
    let difference = |difference: &proto::TableDifference| {
        let proto::TableDifference { table, entry, expected, found } = difference;
        json!({"table": table, "entry": entry, "expected": expected, "found": found})
    };
    json!({
        "epoch": report.epoch,
        "entriesChecked": report.entries_checked,
        "entriesDiffering": report.entries_differing,
        "differences": report.differences.iter().map(difference).collect::<Vec<_>>(),
        "repairing": report.repairing,
    })
}
