//! `holdfast journal verify` and `repair`: is it as it was written, and what to do if not.

use std::fmt::Write as _;

use api::proto;
use indicatif::{ProgressBar, ProgressStyle};
use journal::VerifyProgress;
use serde_json::json;

use super::source::Place;
use crate::cli::{Output, RepairArgs, VerifyArgs};
use crate::command::{block_on, confirm};
use crate::exit::{Exit, Failure};
use crate::journal_view;
use crate::output;

pub(super) fn verify(place: &Place<'_>, args: &VerifyArgs) -> Result<(), Failure> {
    let bar = bar();
    let show = |progress: proto::VerifyProgress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
    };
    let report = match place.state_dir {
        None => block_on(async { Ok(place.agent().await?.verify_journal(show).await?) }),
        Some(state_dir) => {
            let report = journal::verify(state_dir, |progress| show(journal_view::progress(progress)));
            report.map(|report| journal_view::report(&report)).map_err(Failure::from)
        }
    };
    bar.finish_and_clear();
    let report = report?;
    output::print(&match args.output {
        Output::Table => text(&report),
        Output::Json => output::json(&value(&report)),
        Output::Yaml => output::yaml(&value(&report)),
    })?;
    match report.damages.as_slice() {
        [] => Ok(()),
        damages => Err(Failure::new(
            Exit::Damaged,
            format!(
                "{} damage{}: records up to {} can be trusted; `holdfast journal repair` cuts the rest off and keeps it",
                damages.len(),
                if damages.len() == 1 { "" } else { "s" },
                report.trusted_lsn
            ),
        )),
    }
}

pub(super) fn repair(place: &Place<'_>, args: &RepairArgs) -> Result<(), Failure> {
    let Some(state_dir) = place.state_dir else {
        return Err(Failure::new(
            Exit::Usage,
            "--state-dir: say which stopped agent's directory is to be repaired; a running agent's journal is whole",
        ));
    };
    let bar = bar();
    let show = |progress: VerifyProgress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes);
    };
    let found = journal::verify(state_dir, show);
    bar.finish_and_clear();
    let found = found?;
    if found.wrong.is_empty() {
        return output::print(&format!("nothing is wrong: {} records, up to {}\n", found.records, found.trusted_lsn));
    }
    eprint!("{}", text(&journal_view::report(&found)));
    let trusted = (found.trusted_lsn.0 + 1).saturating_sub(found.oldest_lsn.0);
    let plan = [
        format!("cut the journal behind record {}", found.trusted_lsn),
        format!("lose {} good records that come after it, and what is damaged", found.records.saturating_sub(trusted)),
        format!("keep what is cut below {}", state_dir.join("cut").display()),
    ];
    if !args.yes && !confirm(&plan)? {
        return output::print("nothing was changed\n");
    }
    let done = journal::repair(state_dir, |_| {})?;
    let kept = done.cut_dir.map(|dir| format!("; what was cut is in {}", dir.display())).unwrap_or_default();
    output::print(&format!("the journal ends at record {} now{kept}\n", done.kept_lsn))
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("verifying {wide_bar} {bytes}/{total_bytes} {eta}");
    ProgressBar::new(0).with_style(style.expect("our own template"))
}

fn text(report: &proto::VerifyReport) -> String {
    let mut text = format!(
        "{} records from {}, {} bytes: everything up to record {} is as it was written\n",
        report.records, report.oldest_lsn, report.bytes, report.trusted_lsn
    );
    for damage in &report.damages {
        writeln!(text, "{} at {}: {}", damage.path, damage.offset, damage.description)
            .expect("a string takes everything");
    }
    text
}

fn value(report: &proto::VerifyReport) -> serde_json::Value {
    let damage = |damage: &proto::Damage| json!({ "path": damage.path, "offset": damage.offset, "description": damage.description });
    json!({
        "oldestLsn": report.oldest_lsn,
        "trustedLsn": report.trusted_lsn,
        "records": report.records,
        "bytes": report.bytes,
        "damages": report.damages.iter().map(damage).collect::<Vec<_>>(),
    })
}
