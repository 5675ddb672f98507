//! `holdfast get`: resources as the journal has them, or had them.

use api::Stored;
use api::filter::ResourceFilter;
use api::replay::StateQuery;
use comfy_table::Cell;
use storage_schema::resource::{Kind, Locality, Node, Resource, ResourceKey, Service, Workload};

use super::{block_on, connect, past};
use crate::cli::{Common, GetArgs, Output};
use crate::exit::{Exit, Failure};
use crate::output::{self, few};

pub(super) fn run(common: &Common, args: &GetArgs) -> Result<(), Failure> {
    let filter = filter(args);
    let found = if args.at.is_none() && args.whose.state_dir.is_none() {
        present(common, args, &filter)?
    } else {
        let at = args.at.map(|when| when.0);
        let query = StateQuery { at, kind: Some(args.kind), name: args.name.clone(), filter };
        let read = past::state(common, &args.whose, &query)?;
        match &args.name {
            Some(name) if read.value.is_empty() => {
                let key = ResourceKey::new(args.kind, name);
                return Err(Failure::new(Exit::NotFound, format!("{key} did not exist at LSN {}", read.state_lsn)));
            }
            _ => read.value,
        }
    };
    let text = match args.output {
        Output::Table if found.is_empty() => {
            eprintln!("there is no {}", args.kind.as_str().to_ascii_lowercase());
            String::new()
        }
        Output::Table => table(args.kind, &found),
        Output::Yaml => found.iter().flat_map(|stored| ["---\n".to_owned(), output::yaml(&stored.resource)]).collect(),
        Output::Json => match (&args.name, found.as_slice()) {
            (Some(_), [one]) => output::json(&one.resource),
            _ => output::json(&found.iter().map(|stored| &stored.resource).collect::<Vec<&Resource>>()),
        },
    };
    output::print(&text)
}

fn filter(args: &GetArgs) -> ResourceFilter {
    ResourceFilter {
        name_prefix: args.prefix.clone().unwrap_or_default(),
        owner: args.owner.clone(),
        changed_after_lsn: args.changed_after.unwrap_or_default(),
    }
}

/// What the agent's store says now.
fn present(common: &Common, args: &GetArgs, filter: &ResourceFilter) -> Result<Vec<Stored>, Failure> {
    block_on(async {
        let client = connect(common).await?;
        match &args.name {
            None => Ok(client.list_some(args.kind, filter).await?),
            Some(name) => {
                let key = ResourceKey::new(args.kind, name);
                match client.get(&key).await? {
                    Some(read) => Ok(vec![read.value]),
                    None => Err(Failure::new(Exit::NotFound, format!("{key} does not exist"))),
                }
            }
        }
    })
}

fn table(kind: Kind, found: &[Stored]) -> String {
    match kind {
        Kind::Service => output::table(
            ["NAME", "VIPS", "PORTS", "POLICY", "OWNER", "LSN"],
            found.iter().filter_map(|stored| match &stored.resource {
                Resource::Service(service) => Some(service_row(service, stored)),
                _ => None,
            }),
        ),
        Kind::Workload => output::table(
            ["UID", "ADDRESSES", "STATUS", "SERVICES", "OWNER", "LSN"],
            found.iter().filter_map(|stored| match &stored.resource {
                Resource::Workload(workload) => Some(workload_row(workload, stored)),
                _ => None,
            }),
        ),
        Kind::Node => output::table(
            ["NAME", "NETWORK", "CLUSTER", "LOCALITY", "NO ENDPOINTS", "OWNER", "LSN"],
            found.iter().filter_map(|stored| match &stored.resource {
                Resource::Node(node) => Some(node_row(node, stored)),
                _ => None,
            }),
        ),
    }
}

fn service_row(service: &Service, stored: &Stored) -> [Cell; 6] {
    let ports = service.ports.iter().map(|port| {
        if port.port == port.target_port {
            format!("{}/{}", port.port, port.protocol)
        } else {
            format!("{}→{}/{}", port.port, port.target_port, port.protocol)
        }
    });
    [
        Cell::new(&service.name),
        Cell::new(few(service.vips.iter())),
        Cell::new(few(ports)),
        Cell::new(&service.load_balancing),
        or_dash(&stored.owner),
        Cell::new(stored.changed_lsn),
    ]
}

fn workload_row(workload: &Workload, stored: &Stored) -> [Cell; 6] {
    [
        Cell::new(&workload.uid),
        Cell::new(few(workload.addresses.iter())),
        Cell::new(workload.status),
        Cell::new(few(workload.services.iter().map(|backing| &backing.service))),
        or_dash(&stored.owner),
        Cell::new(stored.changed_lsn),
    ]
}

fn node_row(node: &Node, stored: &Stored) -> [Cell; 7] {
    let Locality { region, zone, subzone } = &node.locality;
    let locality: Vec<&str> =
        [region, zone, subzone].into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    [
        Cell::new(&node.name),
        or_dash(&node.network),
        or_dash(&node.cluster),
        or_dash(&locality.join("/")),
        Cell::new(format!("{:?}", node.no_endpoints).to_ascii_lowercase()),
        or_dash(&stored.owner),
        Cell::new(stored.changed_lsn),
    ]
}

fn or_dash(text: &str) -> Cell {
    Cell::new(if text.is_empty() { "-" } else { text })
}
