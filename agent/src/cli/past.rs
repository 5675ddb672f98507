//! The commands that look into the past, as they are typed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use storage_schema::id::Lsn;
use storage_schema::resource::Kind;

use super::Output;
use crate::when::When;

/// Whose past.
#[derive(Args, Clone, Debug)]
pub struct Whose {
    /// Read this state directory, whose agent is stopped, or a copy of one, instead of asking the running agent.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// What `get` takes.
#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// The kind: services, workloads or node.
    pub kind: Kind,
    /// Only the one of this name.
    #[arg(conflicts_with_all = ["prefix", "owner", "changed_after"])]
    pub name: Option<String>,
    /// Only those whose names begin so.
    #[arg(long, value_name = "TEXT")]
    pub prefix: Option<String>,
    /// Only those that belong to this source.
    #[arg(long, value_name = "NAME")]
    pub owner: Option<String>,
    /// Only those that were changed after this record.
    #[arg(long, value_name = "LSN", value_parser = |text: &str| text.parse().map(Lsn))]
    pub changed_after: Option<Lsn>,
    /// As they were then: after an LSN, at a time (UTC: `2026-11-22 14:03:22`, `14:03:22` today), or `-10m` before now.
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub at: Option<When>,
    /// Whose.
    #[command(flatten)]
    pub whose: Whose,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `diff` takes.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// The one moment: an LSN, a time (UTC: `2026-11-22 14:03:22`, `14:03:22` today), or `-10m` before now.
    #[arg(value_name = "FROM", allow_hyphen_values = true)]
    pub from: When,
    /// The other one, which may be the earlier [default: now].
    #[arg(value_name = "TO", allow_hyphen_values = true)]
    pub to: Option<When>,
    /// Only resources of this kind: service, workload or node.
    #[arg(long)]
    pub kind: Option<Kind>,
    /// Only the resource of this name.
    #[arg(long)]
    pub name: Option<String>,
    /// The table entries that follow from them as well.
    #[arg(long)]
    pub maps: bool,
    /// Whose.
    #[command(flatten)]
    pub whose: Whose,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `history` takes.
#[derive(Args, Clone, Debug)]
pub struct HistoryArgs {
    /// The kind: service, workload or node.
    pub kind: Kind,
    /// The name.
    pub name: String,
    /// From here: an LSN, a time (UTC: `2026-11-22 14:03:22`, `14:03:22` today), or `-10m` before now.
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub since: Option<When>,
    /// Up to here, itself included.
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub until: Option<When>,
    /// Only the last so many changes.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub last: Option<u32>,
    /// Whose.
    #[command(flatten)]
    pub whose: Whose,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// What `why` takes.
#[derive(Args, Clone, Debug)]
pub struct WhyArgs {
    /// What is dialled: address and port, as `10.96.0.20:80` or `[fd00:96::20]:80`.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub to: SocketAddr,
    /// Who dials.
    #[arg(long, value_name = "ADDRESS")]
    pub from: Option<IpAddr>,
    /// Over which protocol.
    #[arg(long, value_enum, default_value_t = TransportName::Tcp, value_name = "PROTOCOL")]
    pub protocol: TransportName,
    /// When: an LSN, a time (UTC: `2026-11-22 14:03:22`, `14:03:22` today), or `-10m` before now [default: now].
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub at: Option<When>,
    /// Of a connection that was made: the epoch in its stamp. With --at, what was known by then and not yet seen is listed.
    #[arg(long, value_name = "LSN", value_parser = |text: &str| text.parse().map(Lsn))]
    pub epoch: Option<Lsn>,
    /// Of a connection that was made: the random word in its stamp, from which the same choice is made again.
    #[arg(long, value_name = "WORD")]
    pub entropy: Option<u32>,
    /// Whose.
    #[command(flatten)]
    pub whose: Whose,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub output: Output,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TransportName {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl TransportName {
    /// Its IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}
