//! `holdfast watch` as it is typed.

use clap::{Args, Subcommand, ValueEnum};
use storage_schema::id::Lsn;
use storage_schema::resource::Kind;

/// What `watch` takes.
#[derive(Args, Clone, Debug)]
pub struct WatchArgs {
    /// What to watch.
    #[command(subcommand)]
    pub command: WatchCommand,
}

/// What can be watched.
#[derive(Clone, Debug, Subcommand)]
pub enum WatchCommand {
    /// Records as they become durable.
    #[command(
        after_help = "Examples:\n  holdfast watch records --source istiod\n  holdfast watch records --from 812 -o json"
    )]
    Records(WatchRecordsArgs),
    /// Resources as they are, and then what becomes of them.
    #[command(
        after_help = "Examples:\n  holdfast watch state --kind service --prefix shop/\n  holdfast watch state --after 812 -o json"
    )]
    State(WatchStateArgs),
}

/// What `watch records` takes.
#[derive(Args, Clone, Debug)]
pub struct WatchRecordsArgs {
    /// The first record [default: the next that is appended].
    #[arg(long, value_name = "LSN", value_parser = |text: &str| text.parse().map(Lsn))]
    pub from: Option<Lsn>,
    /// Only what this source pushed.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Only what changed a resource of this kind: service, workload or node.
    #[arg(long)]
    pub kind: Option<Kind>,
    /// Only what changed the resource of this name.
    #[arg(long)]
    pub name: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = WatchFormat::Text, value_name = "FORMAT")]
    pub output: WatchFormat,
}

/// What `watch state` takes.
#[derive(Args, Clone, Debug)]
pub struct WatchStateArgs {
    /// Only resources of this kind: service, workload or node.
    #[arg(long)]
    pub kind: Option<Kind>,
    /// Only those whose names begin so.
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
    /// Only those that belong to this source.
    #[arg(long, value_name = "NAME")]
    pub owner: Option<String>,
    /// Go on after this record, without what there is already.
    #[arg(long, value_name = "LSN", value_parser = |text: &str| text.parse().map(Lsn))]
    pub after: Option<Lsn>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = WatchFormat::Text, value_name = "FORMAT")]
    pub output: WatchFormat,
}

/// How to print what is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WatchFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line, progress included.
    Json,
}
