//! `holdfast journal` as it is typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use storage_schema::id::Lsn;
use storage_schema::resource::Kind;

use super::Output;
use crate::when::When;

/// What `journal` takes.
#[derive(Args, Clone, Debug)]
pub struct JournalArgs {
    /// Read or change this state directory, whose agent is stopped, instead of asking the running agent.
    #[arg(long, global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What to do with the journal.
    #[command(subcommand)]
    pub command: JournalCommand,
}

/// What can be done with a journal.
#[derive(Clone, Debug, Subcommand)]
pub enum JournalCommand {
    /// List records: when, by whom, and what they changed.
    #[command(
        after_help = "Examples:\n  holdfast journal log -n 20\n  holdfast journal log --since -10m --source istiod --kind workload\n  holdfast journal log --name shop/cart --follow -o json\n  holdfast journal log --state-dir ./copy-of-var-lib-holdfast --since '2026-11-22 14:00:00' --until 14:05:00"
    )]
    Log(LogArgs),
    /// Show one record whole.
    #[command(after_help = "Example:\n  holdfast journal show 812 -o yaml")]
    Show(ShowArgs),
    /// Read everything and check that it is as it was written: checksums, numbers, chain of hashes.
    #[command(after_help = "Example:\n  holdfast journal verify --state-dir /var/lib/holdfast")]
    Verify(VerifyArgs),
    /// Cut a stopped agent's damaged journal behind the last record that can be trusted; what is cut is kept in a file.
    #[command(after_help = "Example:\n  holdfast journal repair --state-dir /var/lib/holdfast --yes")]
    Repair(RepairArgs),
    /// Write the whole state to a file of its own, from which later states are computed.
    #[command(after_help = "Example:\n  holdfast journal checkpoint")]
    Checkpoint(PrintArgs),
    /// Let old records go, as the retention settings want it or as given here.
    #[command(after_help = "Example:\n  holdfast journal compact --keep-records 100000 --keep-age 7d")]
    Compact(CompactArgs),
    /// Write records to a file for other tools: JSON Lines, or Parquet for SQL engines.
    #[command(
        after_help = "Examples:\n  holdfast journal export --since -1h | jq .source\n  holdfast journal export --format parquet -f journal.parquet\n  duckdb -c \"select source, count(*) from 'journal.parquet' group by all\""
    )]
    Export(ExportArgs),
    /// Make a journal out of a whole JSON Lines export, in an empty state directory.
    #[command(after_help = "Example:\n  holdfast journal import journal.jsonl --state-dir ./elsewhere")]
    Import(ImportArgs),
    /// Save the whole journal to one file while the agent runs, or put it back into an empty state directory.
    #[command(subcommand, after_help = "Example:\n  holdfast journal snapshot save node-1.holdfast")]
    Snapshot(SnapshotCommand),
    /// Show how much there is, and how fast the disk is.
    #[command(after_help = "Example:\n  holdfast journal stats -o json")]
    Stats(PrintArgs),
}

/// Which records.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// From here: an LSN, a time (UTC: `2026-11-22 14:03:22`, `14:03:22` today) or `-10m` before now.
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub since: Option<When>,
    /// Up to here, itself included.
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub until: Option<When>,
    /// Only what this source pushed.
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,
    /// Only what changed a resource of this kind: service, workload or node.
    #[arg(long)]
    pub kind: Option<Kind>,
    /// Only what changed the resource of this name.
    #[arg(long)]
    pub name: Option<String>,
}

/// What `journal log` takes.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Which records.
    #[command(flatten)]
    pub which: Which,
    /// Only the last so many.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(api::journal::LAST_MAX)))]
    pub last: Option<u32>,
    /// Go on with what is appended from now on.
    #[arg(short, long, conflicts_with = "until")]
    pub follow: bool,
    /// How to print: a line for each record, JSON Lines, or YAML documents.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `journal show` takes.
#[derive(Args, Clone, Debug)]
pub struct ShowArgs {
    /// The record's number.
    #[arg(value_parser = |text: &str| text.parse().map(Lsn))]
    pub lsn: Lsn,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// How to print.
#[derive(Args, Clone, Debug)]
pub struct PrintArgs {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `journal verify` takes.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// How to print the report.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `journal repair` takes.
#[derive(Args, Clone, Debug)]
pub struct RepairArgs {
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}

/// What `journal compact` takes.
#[derive(Args, Clone, Debug)]
pub struct CompactArgs {
    /// Keep at least so many records.
    #[arg(long, value_name = "N")]
    pub keep_records: Option<u64>,
    /// Keep the log within so many bytes of disk.
    #[arg(long, value_name = "BYTES")]
    pub keep_bytes: Option<u64>,
    /// Keep at least what is younger than this.
    #[arg(long, value_parser = humantime::parse_duration, value_name = "TIME")]
    pub keep_age: Option<Duration>,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `journal export` takes.
#[derive(Args, Clone, Debug)]
pub struct ExportArgs {
    /// Which records.
    #[command(flatten)]
    pub which: Which,
    /// The file's format.
    #[arg(long, value_enum, default_value_t = ExportFormat::Jsonl)]
    pub format: ExportFormat,
    /// Where to; `-` is standard output. A file appears when it is complete.
    #[arg(short, long, default_value = "-", value_name = "FILE")]
    pub file: PathBuf,
}

/// An export's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// JSON Lines: a record a line, complete; `journal import` takes it.
    Jsonl,
    /// Parquet: a row for each change.
    Parquet,
}

/// What `journal import` takes.
#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// The export, `-` for standard input.
    pub file: PathBuf,
}

/// What can be done with snapshots.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save the whole journal to one file.
    #[command(after_help = "Example:\n  holdfast journal snapshot save node-1.holdfast")]
    Save(SnapshotArgs),
    /// Put a saved journal into an empty state directory.
    #[command(after_help = "Example:\n  holdfast journal snapshot restore node-1.holdfast --state-dir ./elsewhere")]
    Restore(SnapshotArgs),
}

/// What `journal snapshot save` and `restore` take.
#[derive(Args, Clone, Debug)]
pub struct SnapshotArgs {
    /// The snapshot's file, `-` for standard output or input.
    pub file: PathBuf,
}
