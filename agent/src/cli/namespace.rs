//! `holdfast namespace` as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Output;

/// What `namespace` takes.
#[derive(Args, Clone, Debug)]
pub struct NamespaceArgs {
    /// What to do with network namespaces.
    #[command(subcommand)]
    pub command: NamespaceCommand,
}

/// What can be done with network namespaces.
#[derive(Clone, Debug, Subcommand)]
pub enum NamespaceCommand {
    /// Have the processes in a network namespace managed, until it is released or gone.
    ///
    /// Connections that they have already are left alone.
    #[command(after_help = "Example:\n  holdfast namespace enrol /run/netns/blue")]
    Enrol(NamespaceNameArgs),
    /// End that: their connections go where they dial. Those that were balanced go on as they are.
    #[command(after_help = "Example:\n  holdfast namespace release --process 1234")]
    Release(NamespaceNameArgs),
    /// Show which are enrolled.
    #[command(after_help = "Example:\n  holdfast namespace list -o json")]
    List(ListNamespacesArgs),
}

/// Which network namespace.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
pub struct NamespaceNameArgs {
    /// A file that stands for it, as in /run/netns/blue, on the agent's machine.
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// That of a process, by its number on the agent's machine.
    #[arg(long, value_name = "PID")]
    pub process: Option<u32>,
}

/// How to print them.
#[derive(Args, Clone, Debug)]
pub struct ListNamespacesArgs {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}
