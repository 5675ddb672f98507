//! `holdfast sources`: who pushes, and what is theirs.

use api::push::SourceState;
use api::source::{ListedSource, Source};
use comfy_table::Cell;
use serde_json::{Value, json};

use super::{block_on, connect};
use crate::cli::{Common, Output, PrintArgs};
use crate::exit::Failure;
use crate::output;
use crate::when::format_wall_ns;

pub(super) fn run(common: &Common, args: &PrintArgs) -> Result<(), Failure> {
    let sources = block_on(async { Ok(connect(common).await?.sources().await?) })?;
    let values = || sources.iter().map(value).collect::<Vec<_>>();
    output::print(&match args.output {
        Output::Table if sources.is_empty() => {
            eprintln!("nobody has pushed anything");
            String::new()
        }
        Output::Table => output::table(
            ["NAME", "CONNECTED", "VERSION", "INCARNATION", "LSN", "TIME", "SERVICES", "WORKLOADS", "NODES", "EXPIRES"],
            sources.iter().map(row),
        ),
        Output::Json => output::json(&values()),
        Output::Yaml => output::yaml(&values()),
    })
}

fn row(ListedSource { source, connected, expires_in }: &ListedSource) -> [Cell; 10] {
    let Source { name, state, last_wall_ns, owned: [services, workloads, nodes] } = source;
    let SourceState { incarnation, last_version, last_lsn, ttl, expired } = state;
    let expires = match (ttl, expires_in) {
        _ if *expired => "expired".to_owned(),
        (_, Some(left)) => format!("in {} s", left.as_secs()),
        (Some(ttl), None) => format!("{} s after it is gone", ttl.as_secs()),
        (None, None) => "never".to_owned(),
    };
    let or_dash = |value: Option<String>| Cell::new(value.unwrap_or_else(|| "-".to_owned()));
    [
        Cell::new(name),
        Cell::new(if *connected { "yes" } else { "no" }),
        or_dash(last_version.map(|version| version.to_string())),
        Cell::new(incarnation),
        Cell::new(last_lsn),
        or_dash(last_wall_ns.map(format_wall_ns)),
        Cell::new(services),
        Cell::new(workloads),
        Cell::new(nodes),
        Cell::new(expires),
    ]
}

fn value(ListedSource { source, connected, expires_in }: &ListedSource) -> Value {
    let Source { name, state, last_wall_ns, owned: [services, workloads, nodes] } = source;
    let SourceState { incarnation, last_version, last_lsn, ttl, expired } = state;
    json!({
        "name": name,
        "connected": connected,
        "lastVersion": last_version,
        "incarnation": incarnation,
        "lastLsn": last_lsn.0,
        "lastTime": last_wall_ns.map(format_wall_ns),
        "services": services,
        "workloads": workloads,
        "nodes": nodes,
        "ttlSeconds": ttl.map(|ttl| ttl.as_secs()),
        "expiresInSeconds": expires_in.map(|left| left.as_secs()),
        "expired": expired,
    })
}
