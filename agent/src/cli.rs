//! The command line as it is typed. What it means is decided in [`crate::config`] and in the commands.

mod api;
mod bpf;
mod journal;
mod namespace;
mod past;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use storage_schema::id::Lsn;
use storage_schema::precondition::Precondition;
use storage_schema::resource::{Kind, ResourceKey};

pub use self::api::{ApiSettings, Remote};
pub use self::bpf::{BpfArgs, BpfCommand, DumpArgs, PinnedArgs, TableName, VerifyTablesArgs};
pub use self::journal::{
    CompactArgs, ExportArgs, ExportFormat, ImportArgs, JournalArgs, JournalCommand, LogArgs, PrintArgs, RepairArgs,
    ShowArgs, SnapshotArgs, SnapshotCommand, VerifyArgs, Which,
};
pub use self::namespace::{ListNamespacesArgs, NamespaceArgs, NamespaceCommand, NamespaceNameArgs};
pub use self::past::{DiffArgs, GetArgs, HistoryArgs, TransportName, Whose, WhyArgs};
pub use self::watch::{WatchArgs, WatchCommand, WatchFormat, WatchRecordsArgs, WatchStateArgs};
use crate::exit::Exit;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default());

/// A restart-safe node agent for eBPF service networking, and its command line.
///
/// `holdfast agent` is the daemon; everything else talks to it over its socket or looks at this machine.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, styles = STYLES, propagate_version = true, after_help = Exit::table())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Settings that every command understands.
    #[command(flatten)]
    pub common: Common,
}

/// Settings that every command understands.
#[derive(Args, Clone, Debug, Default)]
pub struct Common {
    /// Settings file (TOML) [default: /etc/holdfast/agent.toml, if it is there].
    #[arg(long, global = true, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The agent's unix socket [default: /run/holdfast/holdfast.sock].
    #[arg(long, global = true, env = "HOLDFAST_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// An agent elsewhere.
    #[command(flatten)]
    pub remote: Remote,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent: take transactions, keep them durable, keep the kernel's tables in step.
    ///
    /// It stops on SIGTERM or SIGINT, after finishing what it has begun, and leaves maps, programs and links in the
    /// kernel: connections go on being balanced without it.
    #[command(after_help = "Example:\n  holdfast agent --state-dir /var/lib/holdfast --cgroup /sys/fs/cgroup")]
    Agent(Box<AgentArgs>),
    /// Push the resources of one or more manifests as one transaction.
    #[command(
        after_help = "Examples:\n  holdfast apply -f examples/bookinfo.yaml --wait applied\n  cat a.yaml | holdfast apply -f -\n  holdfast apply -f a.yaml --dry-run"
    )]
    Apply(ApplyArgs),
    /// Push manifests as all that a source has, as one transaction: what it had before and is not among them is removed.
    ///
    /// What belongs to other sources is left alone.
    #[command(
        after_help = "Examples:\n  holdfast sync -f /etc/mesh --source mesh\n  holdfast sync -f examples/bookinfo.yaml --source demo --wait applied"
    )]
    Sync(SyncArgs),
    /// Remove resources of one kind, as one transaction.
    #[command(after_help = "Example:\n  holdfast delete workload cluster1//Pod/bookinfo/reviews-v1")]
    Delete(DeleteArgs),
    /// Show resources: services, workloads or the node, as they are or as they were.
    #[command(
        after_help = "Examples:\n  holdfast get services\n  holdfast get workload cluster1//Pod/bookinfo/reviews-v1 -o yaml\n  holdfast get services --at -10m\n  holdfast get workloads --prefix cluster1//Pod/bookinfo/ --owner istiod --changed-after 812"
    )]
    Get(GetArgs),
    /// Show what happens, as it happens: records, or resources and what becomes of them.
    #[command(after_help = "Examples:\n  holdfast watch records\n  holdfast watch state --kind service")]
    Watch(WatchArgs),
    /// Show who pushes: each source's last version and record, what it owns, and whether it is connected.
    #[command(after_help = "Example:\n  holdfast sources")]
    Sources(PrintArgs),
    /// Compare two moments: which resources differ, field by field, and who changed them; with --maps the table entries too.
    #[command(
        after_help = "Examples:\n  holdfast diff -10m\n  holdfast diff 811 812 --maps\n  holdfast diff '2026-11-22 14:00:00' 14:05:00 --kind workload --state-dir ./copy"
    )]
    Diff(DiffArgs),
    /// Show every change of one resource: when, by whom, field by field.
    #[command(
        after_help = "Examples:\n  holdfast history workload cluster1//Pod/bookinfo/reviews-v1 -n 5\n  holdfast history service bookinfo/ratings --since -1h"
    )]
    History(HistoryArgs),
    /// Explain where a connection goes: each step and candidate, and the record that made it so.
    ///
    /// Without --entropy it tells which part of such connections each candidate gets; with it, and --epoch, which one a connection
    /// got whose stamp has these, and what has become of that backend. The decision is made by the code that the kernel runs.
    #[command(
        after_help = "Examples:\n  holdfast why --to 10.96.0.20:9080\n  holdfast why --from 10.1.0.7 --to 10.96.0.20:9080 --at 14:03:22\n  holdfast why --to 10.96.0.20:9080 --epoch 812 --entropy 2863311530 --at 14:03:22 --state-dir ./copy -o json"
    )]
    Why(WhyArgs),
    /// Show the agent's condition: how far it is, how full its tables are, what is in its way.
    #[command(after_help = "Example:\n  holdfast status --wait --timeout 30s")]
    Status(StatusArgs),
    /// Change what the agent logs, until it ends or this is used again; without a filter: back to what its settings say.
    #[command(
        after_help = "Examples:\n  holdfast log-level debug\n  holdfast log-level info,applier=debug\n  holdfast log-level"
    )]
    LogLevel(LogLevelArgs),
    /// Look into the journal: what happened on this node; verify, export, save and keep it.
    #[command(
        after_help = "Examples:\n  holdfast journal log --since -10m\n  holdfast journal verify --state-dir /var/lib/holdfast"
    )]
    Journal(JournalArgs),
    /// Look into the kernel: tables decoded, how full they are, whether they are as the journal says, generations.
    #[command(after_help = "Examples:\n  holdfast bpf dump services\n  holdfast bpf verify")]
    Bpf(BpfArgs),
    /// Say whose connections are balanced, by network namespace, where the agent manages by namespace.
    #[command(
        after_help = "Examples:\n  holdfast namespace enrol /run/netns/blue\n  holdfast namespace release --process 1234\n  holdfast namespace list"
    )]
    Namespace(NamespaceArgs),
    /// Look at this machine: what the agent needs, what is there, what is missing and how to get it.
    #[command(after_help = "Example:\n  sudo holdfast doctor")]
    Doctor(DoctorArgs),
    /// Detach the programs and remove the pins of a stopped agent; with --state its journal as well.
    #[command(after_help = "Example:\n  holdfast uninstall --state --yes")]
    Uninstall(UninstallArgs),
    /// List the places where a test can end the agent.
    #[cfg(feature = "failpoints")]
    #[command(hide = true)]
    Failpoints,
}

/// Where the agent keeps its things.
#[derive(Args, Clone, Debug, Default)]
pub struct Places {
    /// Directory of the journal [default: /var/lib/holdfast].
    #[arg(long, env = "HOLDFAST_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory on a BPF file system for maps, programs and links [default: /sys/fs/bpf/holdfast].
    #[arg(long, env = "HOLDFAST_PIN_ROOT", value_name = "DIR")]
    pub pin_root: Option<PathBuf>,
    /// The cgroup v2 directory whose processes are balanced [default: the root of the cgroup v2 mount].
    #[arg(long, env = "HOLDFAST_CGROUP", value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where the tables are: in the kernel, or in memory, which needs no privilege and balances nothing
    /// [default: kernel].
    #[arg(long, env = "HOLDFAST_DATAPATH", value_name = "WHERE")]
    pub datapath: Option<Datapath>,
}

/// Where the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// In pinned BPF maps.
    Kernel,
    /// In the agent's memory.
    Memory,
}

/// Which processes in the cgroup are managed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Managed {
    /// All of them.
    #[default]
    Cgroup,
    /// Those in network namespaces that are enrolled through the API.
    Namespace,
    /// The same, and root may enrol a namespace by a connection to `0.0.0.2` or `::2` within it, as Kmesh's CNI plugin does: port
    /// 929, or 930 to end it.
    Cni,
}

/// What `agent` takes.
#[derive(Args, Clone, Debug, Default)]
pub struct AgentArgs {
    /// Where the agent keeps its things.
    #[command(flatten)]
    pub places: Places,
    /// The most service ports, counted once for each address family.
    #[arg(long, env = "HOLDFAST_CAPACITY_SERVICES", value_name = "N")]
    pub capacity_services: Option<u32>,
    /// The most frontends: virtual address, port and protocol.
    #[arg(long, env = "HOLDFAST_CAPACITY_FRONTENDS", value_name = "N")]
    pub capacity_frontends: Option<u32>,
    /// The most socket addresses of workloads.
    #[arg(long, env = "HOLDFAST_CAPACITY_BACKENDS", value_name = "N")]
    pub capacity_backends: Option<u32>,
    /// The most endpoints: the sum of the sizes of all service ports' backend sets.
    #[arg(long, env = "HOLDFAST_CAPACITY_ENDPOINTS", value_name = "N")]
    pub capacity_endpoints: Option<u32>,
    /// Which processes in the cgroup are managed: all, or those in network namespaces that are enrolled [default: cgroup].
    #[arg(long, env = "HOLDFAST_MANAGED", value_name = "WHICH")]
    pub managed: Option<Managed>,
    /// A cgroup v2 directory whose processes, at whatever depth, are not managed: of a proxy that dials services for others, of a
    /// control plane. May be given more than once, in the environment with `:` between.
    #[arg(long = "exempt-cgroup", env = "HOLDFAST_EXEMPT_CGROUPS", value_name = "DIR", value_delimiter = ':')]
    pub exempt_cgroups: Option<Vec<PathBuf>>,
    /// How often the tables are compared with the journal, cell by cell [default: 5m].
    #[arg(long, env = "HOLDFAST_VERIFY_INTERVAL", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub verify_interval: Option<Duration>,
    /// Serve metrics for Prometheus at this loopback address, as 127.0.0.1:9464 [default: nowhere].
    #[arg(long, env = "HOLDFAST_METRICS", value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,
    /// Where and to whom the API is offered.
    #[command(flatten)]
    pub api: ApiSettings,
    /// How the journal is written and kept.
    #[command(flatten)]
    pub journal: JournalSettings,
    /// What to log, as a tracing filter: `info`, `warn,applier=debug` [default: info].
    #[arg(long, env = "HOLDFAST_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// How to log [default: text].
    #[arg(long, env = "HOLDFAST_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// What `log-level` takes.
#[derive(Args, Clone, Debug)]
pub struct LogLevelArgs {
    /// A tracing filter: a level, or levels by part.
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,
}

/// How the journal is written and kept.
#[derive(Args, Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JournalSettings {
    /// Size of a journal segment in bytes, preallocated; a multiple of 4096 [default: 64 MiB].
    #[arg(long = "journal-segment-bytes", env = "HOLDFAST_JOURNAL_SEGMENT_BYTES", value_name = "BYTES")]
    pub segment_bytes: Option<u64>,
    /// The most bytes that share one fdatasync [default: 4 MiB].
    #[arg(long = "journal-group-bytes", env = "HOLDFAST_JOURNAL_GROUP_BYTES", value_name = "BYTES")]
    pub group_bytes: Option<usize>,
    /// How long an idle writer lets transactions gather that then share one fdatasync, at most 1s [default: 0s].
    #[arg(long = "journal-group-wait", env = "HOLDFAST_JOURNAL_GROUP_WAIT", value_name = "TIME", value_parser = humantime::parse_duration)]
    #[serde(default, deserialize_with = "duration")]
    pub group_wait: Option<Duration>,
    /// A checkpoint after so many records [default: 100000].
    #[arg(long = "journal-checkpoint-records", env = "HOLDFAST_JOURNAL_CHECKPOINT_RECORDS", value_name = "N")]
    pub checkpoint_records: Option<u64>,
    /// Or after so many bytes of journal [default: 32 MiB].
    #[arg(long = "journal-checkpoint-bytes", env = "HOLDFAST_JOURNAL_CHECKPOINT_BYTES", value_name = "BYTES")]
    pub checkpoint_bytes: Option<u64>,
    /// Keep at least so many records, and not many more [default: no limit].
    #[arg(long = "journal-keep-records", env = "HOLDFAST_JOURNAL_KEEP_RECORDS", value_name = "N")]
    pub keep_records: Option<u64>,
    /// Keep the journal within so many bytes of disk, give or take three segments [default: 4 GiB].
    #[arg(long = "journal-keep-bytes", env = "HOLDFAST_JOURNAL_KEEP_BYTES", value_name = "BYTES")]
    pub keep_bytes: Option<u64>,
    /// Keep at least what is younger than this [default: no limit].
    #[arg(long = "journal-keep-age", env = "HOLDFAST_JOURNAL_KEEP_AGE", value_name = "TIME", value_parser = humantime::parse_duration)]
    #[serde(default, deserialize_with = "duration")]
    pub keep_age: Option<Duration>,
}

pub(crate) fn duration<'de, D: serde::Deserializer<'de>>(text: D) -> Result<Option<Duration>, D::Error> {
    let text = <String as serde::Deserialize>::deserialize(text)?;
    humantime::parse_duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn precondition(text: &str) -> Result<Precondition, String> {
    let parsed = || {
        let (resource, lsn) = text.rsplit_once('=')?;
        let (kind, name) = resource.split_once(':').filter(|(_, name)| !name.is_empty())?;
        let resource = ResourceKey::new(kind.parse::<Kind>().ok()?, name);
        Some(Precondition { resource, changed_lsn: Lsn(lsn.parse().ok()?) })
    };
    parsed().ok_or_else(|| "must be a kind, a name and a record's number: service:shop/cart=812".to_owned())
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Who pushes.
#[derive(Args, Clone, Debug)]
pub struct Source {
    /// Name of the source that the transaction is recorded under.
    #[arg(long, env = "HOLDFAST_SOURCE", default_value = "cli", value_name = "NAME")]
    pub source: String,
    /// The source's own version of this transaction: pushed again, it changes nothing.
    #[arg(long, value_name = "N")]
    pub source_version: Option<u64>,
    /// Which life of the source: a newer one supersedes the older ones.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub source_incarnation: u64,
    /// Change and remove resources of other sources as well; they belong to this source from then on.
    #[arg(long)]
    pub take_over: bool,
}

/// How long to wait for a transaction.
#[derive(Args, Clone, Debug)]
pub struct Waiting {
    /// How far the transaction must have come before the command ends.
    #[arg(long, value_enum, default_value_t = Wait::Durable)]
    pub wait: Wait,
    /// How long to wait for it, at most 1m.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s", value_name = "TIME")]
    pub timeout: Duration,
    /// How to print the receipt.
    #[arg(short, long, value_enum, default_value_t = ReceiptFormat::Text, value_name = "FORMAT")]
    pub output: ReceiptFormat,
}

/// How far a transaction must have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wait {
    /// In the journal, after an fsync.
    Durable,
    /// Seen by every connection that starts from now on.
    Applied,
}

/// How to print a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReceiptFormat {
    /// A line for people.
    Text,
    /// A JSON object.
    Json,
}

/// What `apply` takes.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// A manifest (YAML or JSON, any number of documents), `-` for standard input; may be given more than once.
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Who pushes.
    #[command(flatten)]
    pub source: Source,
    /// Refuse it unless this record changed that resource last, as in `service:shop/cart=812`; 0: unless it does not exist. May be
    /// given more than once.
    #[arg(long, value_name = "KIND:NAME=LSN", value_parser = precondition)]
    pub expect: Vec<Precondition>,
    /// Only say what would change, or why the agent would refuse it.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// What `sync` takes.
#[derive(Args, Clone, Debug)]
pub struct SyncArgs {
    /// A manifest, `-` for standard input, or a directory, of which all *.yaml, *.yml and *.json are read, those in
    /// directories below it included; may be given more than once.
    #[arg(short, long = "file", required = true, value_name = "PATH")]
    pub files: Vec<PathBuf>,
    /// Accept that there is no resource: all that the source has is removed.
    #[arg(long)]
    pub allow_empty: bool,
    /// Who pushes. Without --source-version the version after the source's last one is taken.
    #[command(flatten)]
    pub source: Source,
    /// Only say what would change, or why the agent would refuse it.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// What `delete` takes.
#[derive(Args, Clone, Debug)]
pub struct DeleteArgs {
    /// The kind: service, workload or node.
    pub kind: Kind,
    /// Their names: a service's namespace/name, a workload's uid, the node's name.
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
    /// Do not fail if there is no such resource.
    #[arg(long)]
    pub ignore_missing: bool,
    /// Who pushes.
    #[command(flatten)]
    pub source: Source,
    /// Refuse it unless this record changed that resource last, as in `service:shop/cart=812`; 0: unless it does not exist. May be
    /// given more than once.
    #[arg(long, value_name = "KIND:NAME=LSN", value_parser = precondition)]
    pub expect: Vec<Precondition>,
    /// Only say what would change, or why the agent would refuse it.
    #[arg(long)]
    pub dry_run: bool,
    /// How long to wait.
    #[command(flatten)]
    pub waiting: Waiting,
}

/// How to print what is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people.
    Table,
    /// JSON.
    Json,
    /// YAML; of resources, a manifest that `apply` takes.
    Yaml,
}

/// What `status` takes.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Wait until the agent answers and everything durable is applied.
    #[arg(long)]
    pub wait: bool,
    /// How long to wait.
    #[arg(long, value_parser = humantime::parse_duration, default_value = "30s", value_name = "TIME")]
    pub timeout: Duration,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `doctor` takes.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Where the agent keeps its things.
    #[command(flatten)]
    pub places: Places,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `uninstall` takes.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// Where the agent keeps its things.
    #[command(flatten)]
    pub places: Places,
    /// Remove the state directory too: the journal, and with it everything that was pushed.
    #[arg(long)]
    pub state: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}
