//! The commands. Each takes what was typed and returns when it is done, or a [`Failure`].

mod apply;
mod bpf;
mod delete;
mod doctor;
mod get;
mod journal;
mod log_level;
mod namespace;
mod past;
mod push;
mod sources;
mod status;
mod sync;
mod uninstall;
mod watch;

use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

use api::client::Client;

use crate::cli::{Cli, Command, Common};
use crate::config::{self, Config};
use crate::daemon;
use crate::exit::{Exit, Failure};

/// Runs a command. `started` is when the process began.
pub fn run(cli: Cli, started: Instant) -> Result<(), Failure> {
    let common = &cli.common;
    match cli.command {
        Command::Agent(args) => daemon::run(&Config::for_agent(common, &args)?, started),
        Command::Apply(args) => apply::run(common, &args),
        Command::Sync(args) => sync::run(common, &args),
        Command::Delete(args) => delete::run(common, &args),
        Command::Get(args) => get::run(common, &args),
        Command::Watch(args) => watch::run(common, &args),
        Command::Sources(args) => sources::run(common, &args),
        Command::Diff(args) => past::diff(common, &args),
        Command::History(args) => past::history(common, &args),
        Command::Why(args) => past::why(common, &args),
        Command::Status(args) => status::run(common, &args),
        Command::LogLevel(args) => log_level::run(common, &args),
        Command::Journal(args) => journal::run(common, &args),
        Command::Bpf(args) => bpf::run(common, &args),
        Command::Namespace(args) => namespace::run(common, &args),
        Command::Doctor(args) => doctor::run(common, &args),
        Command::Uninstall(args) => uninstall::run(common, &args),
        #[cfg(feature = "failpoints")]
        Command::Failpoints => crate::failpoints::all().try_for_each(|name| crate::output::print(&format!("{name}\n"))),
    }
}

/// Runs the async part of a client command.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot start the runtime: {error}")))?
        .block_on(future)
}

async fn connect(common: &Common) -> Result<Client, Failure> {
    Ok(Client::connect(config::server(common)?).await?)
}

/// Asks whether to go on with what cannot be undone.
fn confirm(plan: &[String]) -> Result<bool, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::new(Exit::Usage, "this asks before it goes on, and there is no terminal: use --yes"));
    }
    eprintln!("This will");
    for step in plan {
        eprintln!("  - {step}");
    }
    eprint!("Go on? [y/N] ");
    let mut answer = String::new();
    io::stderr()
        .flush()
        .and_then(|()| stdin.read_line(&mut answer))
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
