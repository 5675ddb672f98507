//! The `holdfast` binary: the node agent and its command line.
//!
//! [`cli`] is what is typed, [`config`] what it means, [`command`] does it; [`daemon`] puts journal, applier and API
//! together; [`host`] is the only place that looks at this machine's mounts, privileges and kernel. How everything ends
//! is in [`exit`]; moments of the journal are typed as [`when`] says.

#![forbid(unsafe_code)]

pub mod cli;
pub mod command;
pub mod config;
pub mod daemon;
pub mod exit;
#[cfg(feature = "failpoints")]
mod failpoints;
pub mod host;
mod journal_view;
pub mod manifest;
mod output;
mod past_view;
pub mod when;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;

use crate::exit::Exit;

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let started = Instant::now();
    let cli = cli::Cli::parse();
    match command::run(cli, started) {
        Ok(()) => Exit::Success.into(),
        Err(failure) => {
            for message in &failure.messages {
                eprintln!("holdfast: {message}");
            }
            failure.exit.into()
        }
    }
}
