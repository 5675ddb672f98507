//! `holdfast namespace`: whose connections are balanced.

use api::namespace::Namespace;
use api::proto::EnrolledNamespace;
use comfy_table::Cell;
use serde_json::{Value, json};

use super::{block_on, connect};
use crate::cli::{Common, NamespaceArgs, NamespaceCommand, NamespaceNameArgs, Output};
use crate::exit::{Exit, Failure};
use crate::output;
use crate::when::format_wall_ns;

pub(super) fn run(common: &Common, args: &NamespaceArgs) -> Result<(), Failure> {
    match &args.command {
        NamespaceCommand::Enrol(args) => {
            let namespace = named(args)?;
            let (cookie, is_new) = block_on(async { Ok(connect(common).await?.enrol_namespace(&namespace).await?) })?;
            let already = if is_new { "" } else { " already" };
            output::print(&format!("{} is{already} enrolled (cookie {cookie})\n", namespace.path().display()))
        }
        NamespaceCommand::Release(args) => {
            let namespace = named(args)?;
            let (cookie, was) = block_on(async { Ok(connect(common).await?.release_namespace(&namespace).await?) })?;
            let said = if was { "is released" } else { "was not enrolled" };
            output::print(&format!("{} {said} (cookie {cookie})\n", namespace.path().display()))
        }
        NamespaceCommand::List(args) => {
            let namespaces = block_on(async { Ok(connect(common).await?.namespaces().await?) })?;
            let values = || namespaces.iter().map(value).collect::<Vec<_>>();
            output::print(&match args.output {
                Output::Table if namespaces.is_empty() => {
                    eprintln!("no network namespace is enrolled");
                    String::new()
                }
                Output::Table => output::table(["COOKIE", "INODE", "SINCE"], namespaces.iter().map(row)),
                Output::Json => output::json(&values()),
                Output::Yaml => output::yaml(&values()),
            })
        }
    }
}

/// Where it is, from the root: the agent has another working directory.
fn named(args: &NamespaceNameArgs) -> Result<Namespace, Failure> {
    match (&args.path, args.process) {
        (Some(path), _) => std::path::absolute(path)
            .map(Namespace::Path)
            .map_err(|error| Failure::new(Exit::Usage, format!("{}: {error}", path.display()))),
        (None, Some(process)) => Ok(Namespace::Process(process)),
        (None, None) => Err(Failure::new(Exit::Usage, "name a network namespace, by its path or by a process in it")),
    }
}

fn row(namespace: &EnrolledNamespace) -> [Cell; 3] {
    let EnrolledNamespace { cookie, inode, .. } = *namespace;
    let inode = if inode == 0 { "-".to_owned() } else { inode.to_string() };
    [Cell::new(cookie), Cell::new(inode), Cell::new(since(namespace).unwrap_or_else(|| "-".to_owned()))]
}

fn value(namespace: &EnrolledNamespace) -> Value {
    let EnrolledNamespace { cookie, inode, .. } = *namespace;
    json!({ "cookie": cookie, "inode": (inode != 0).then_some(inode), "since": since(namespace) })
}

fn since(namespace: &EnrolledNamespace) -> Option<String> {
    let since = namespace.since.as_ref()?;
    let seconds = u64::try_from(since.seconds).ok()?;
    Some(format_wall_ns(seconds * 1_000_000_000 + u64::try_from(since.nanos).ok()?))
}
