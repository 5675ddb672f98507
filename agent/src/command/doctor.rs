//! `holdfast doctor`: this machine, seen with the agent's eyes.

use comfy_table::{Cell, Color};

use crate::cli::{Common, DoctorArgs, Output};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::host::{Check, Outcome, examine};
use crate::output;

pub(super) fn run(common: &Common, args: &DoctorArgs) -> Result<(), Failure> {
    let config = Config::for_places(common, &args.places)?;
    let checks = examine(&config);
    output::print(&match args.output {
        Output::Table => output::table(["", "CHECK", "FOUND", "WHAT TO DO"], checks.iter().map(row)),
        Output::Json => output::json(&checks),
        Output::Yaml => output::yaml(&checks),
    })?;
    let missing: Vec<&str> =
        checks.iter().filter(|check| check.outcome == Outcome::Missing).map(|check| check.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::new(Exit::Unsupported, format!("the agent cannot run here: {}", missing.join(", "))))
}

fn row(check: &Check) -> [Cell; 4] {
    let mark = match check.outcome {
        Outcome::Ok => Cell::new("ok").fg(Color::Green),
        Outcome::Warning => Cell::new("warn").fg(Color::Yellow),
        Outcome::Missing => Cell::new("MISS").fg(Color::Red),
    };
    [mark, Cell::new(check.name), Cell::new(&check.found), Cell::new(&check.remedy)]
}
