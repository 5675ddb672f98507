//! `holdfast bpf`: what is in the kernel, decoded and checked.

mod dump;
mod generations;
mod verify;

use std::path::PathBuf;

use applier::tables::KernelTables;
use loader::Generation;
use serde_json::Value;
use storage_schema::map::FINGERPRINT;

use super::{block_on, connect};
use crate::cli::{BpfArgs, BpfCommand, Common, Output, PinnedArgs, Places};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::host;
use crate::output;

pub(super) fn run(common: &Common, args: &BpfArgs) -> Result<(), Failure> {
    match &args.command {
        BpfCommand::Dump(args) => dump::dump(common, args),
        BpfCommand::Pressure(args) => dump::pressure(common, args),
        BpfCommand::Verify(args) => verify::run(common, args),
        BpfCommand::Generations(args) => generations::run(common, args),
        BpfCommand::Renew => {
            let generation = block_on(async { Ok(connect(common).await?.renew_generation().await?) })?;
            let name = if generation.is_empty() { "new tables in memory" } else { generation.as_str() };
            output::print(&format!("connections are decided by {name}\n"))
        }
    }
}

fn pin_root(common: &Common, args: &PinnedArgs) -> Result<PathBuf, Failure> {
    let places = Places { pin_root: args.pin_root.clone(), ..Places::default() };
    Ok(Config::for_places(common, &places)?.pin_root)
}

/// The generation of this number, or else the one that connections run, with its tables.
fn open(common: &Common, args: &PinnedArgs, number: Option<u64>) -> Result<(Generation, KernelTables), Failure> {
    let pin_root = pin_root(common, args)?;
    host::require_privileges()?;
    let mut all = loader::generations(&pin_root)?;
    let missing = |what: String| Failure::new(Exit::NotFound, format!("{what} under {}", pin_root.display()));
    let generation = match number {
        Some(number) => {
            let found = all.into_iter().find(|(generation, _)| generation.number() == number);
            found.ok_or_else(|| missing(format!("there is no gen-{number}")))?.0
        }
        None => {
            // Stable: of several that are attached, or of several that are not, the newest is last.
            all.sort_by_key(|(generation, hooks)| (!hooks.is_empty(), generation.is_complete()));
            all.pop().ok_or_else(|| missing("nothing is pinned".to_owned()))?.0
        }
    };
    let readable = generation.control()?.is_some_and(|control| control.fingerprint == FINGERPRINT);
    if !readable {
        let number = generation.number();
        let message =
            format!("gen-{number} was made by another build, or was not finished: its tables cannot be decoded");
        return Err(Failure::new(Exit::Unsupported, message));
    }
    let tables = KernelTables::open(&generation, generation.capacities()?);
    Ok((generation, tables.map_err(applier::StartError::from)?))
}

fn print_value(format: Output, value: &Value, table: impl FnOnce() -> String) -> Result<(), Failure> {
    output::print(&match format {
        Output::Table => table(),
        Output::Json => output::json(value),
        Output::Yaml => output::yaml(value),
    })
}
