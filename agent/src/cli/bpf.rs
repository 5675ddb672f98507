//! `holdfast bpf` as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::Output;

/// What `bpf` takes.
#[derive(Args, Clone, Debug)]
pub struct BpfArgs {
    /// What to do with what is in the kernel.
    #[command(subcommand)]
    pub command: BpfCommand,
}

/// What can be done with what is in the kernel.
#[derive(Clone, Debug, Subcommand)]
pub enum BpfCommand {
    /// Show what the pinned tables hold, decoded: each version, its epoch, and whether connections see it.
    ///
    /// Reads the pins themselves; works without an agent.
    #[command(after_help = "Examples:\n  holdfast bpf dump\n  holdfast bpf dump services -o json")]
    Dump(DumpArgs),
    /// Show how full the pinned tables are, and how much memory they take.
    ///
    /// Reads the pins themselves; works without an agent. A table grows before it is full, by a new generation.
    #[command(after_help = "Example:\n  holdfast bpf pressure")]
    Pressure(PinnedArgs),
    /// Compare the tables with the journal, cell by cell, while connections go on.
    ///
    /// A running agent makes a new generation if anything differs. With --state-dir a stopped agent's pins are compared
    /// with its journal, and nothing is changed. Exit code 1 if anything differs.
    #[command(
        after_help = "Examples:\n  holdfast bpf verify\n  holdfast bpf verify --state-dir /var/lib/holdfast -o json"
    )]
    Verify(VerifyTablesArgs),
    /// Show the generations of maps and programs: which one connections run, and what each belongs to.
    #[command(after_help = "Example:\n  holdfast bpf generations -o yaml")]
    Generations(PinnedArgs),
    /// Have the agent build a new generation from the journal and switch connections to it. Live connections go on.
    #[command(after_help = "Example:\n  holdfast bpf renew")]
    Renew,
}

/// Where to look, and how to print what is found.
#[derive(Args, Clone, Debug)]
pub struct PinnedArgs {
    /// Directory of the pins [default: /sys/fs/bpf/holdfast].
    #[arg(long, env = "HOLDFAST_PIN_ROOT", value_name = "DIR")]
    pub pin_root: Option<PathBuf>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `dump` takes.
#[derive(Args, Clone, Debug)]
pub struct DumpArgs {
    /// Which table; without it: all.
    pub table: Option<TableName>,
    /// Of which generation; without it: the one that connections run.
    #[arg(long, value_name = "N")]
    pub generation: Option<u64>,
    /// Where to look.
    #[command(flatten)]
    pub pinned: PinnedArgs,
}

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum TableName {
    /// What the generation is, and the active epoch.
    Control,
    /// Destination to cell of `frontends`.
    FrontendIndex,
    /// Destinations.
    Frontends,
    /// Service ports.
    Services,
    /// Runs of backend cells.
    Endpoints,
    /// Socket addresses of workloads.
    Backends,
    /// The node's settings.
    Node,
}

/// What `verify` takes.
#[derive(Args, Clone, Debug)]
pub struct VerifyTablesArgs {
    /// Compare with the journal in this state directory, whose agent is stopped, instead of asking the running agent.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where to look.
    #[command(flatten)]
    pub pinned: PinnedArgs,
}
