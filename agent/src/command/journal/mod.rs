//! `holdfast journal`: the same commands for the journal of a running agent and for a stopped agent's directory.

mod keep;
pub(super) mod log;
pub(super) mod source;
mod transfer;
mod verify;

use crate::cli::{Common, JournalArgs, JournalCommand, SnapshotCommand};
use crate::exit::Failure;

pub(super) fn run(common: &Common, args: &JournalArgs) -> Result<(), Failure> {
    let place = source::Place { common, state_dir: args.state_dir.as_deref() };
    match &args.command {
        JournalCommand::Log(args) => log::log(&place, args),
        JournalCommand::Show(args) => log::show(&place, args),
        JournalCommand::Verify(args) => verify::verify(&place, args),
        JournalCommand::Repair(args) => verify::repair(&place, args),
        JournalCommand::Checkpoint(args) => keep::checkpoint(&place, args),
        JournalCommand::Compact(args) => keep::compact(&place, args),
        JournalCommand::Export(args) => transfer::export(&place, args),
        JournalCommand::Import(args) => transfer::import(&place, args),
        JournalCommand::Snapshot(SnapshotCommand::Save(args)) => transfer::save(&place, args),
        JournalCommand::Snapshot(SnapshotCommand::Restore(args)) => transfer::restore(&place, args),
        JournalCommand::Stats(args) => keep::stats(&place, args),
    }
}
