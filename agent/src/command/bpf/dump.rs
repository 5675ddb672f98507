//! `holdfast bpf dump` and `pressure`: what the tables hold, and how full they are.

use std::fmt::Write as _;

use applier::dump::{self, Entry, Standing};
use applier::tables::{KernelTables, Table, Tables as _};
use comfy_table::Cell;
use serde_json::{Map, Value, json};
use storage_schema::map::{FrontendKey, name};

use super::{open, print_value};
use crate::cli::{Common, DumpArgs, PinnedArgs, TableName};
use crate::exit::Failure;
use crate::output;

/// What `dump` shows without a name, in the order in which a connection comes by.
const ALL: [TableName; 7] = [
    TableName::Control,
    TableName::FrontendIndex,
    TableName::Frontends,
    TableName::Services,
    TableName::Endpoints,
    TableName::Backends,
    TableName::Node,
];

pub(super) fn dump(common: &Common, args: &DumpArgs) -> Result<(), Failure> {
    let (generation, tables) = open(common, &args.pinned, args.generation)?;
    let names = args.table.map_or(ALL.to_vec(), |table| vec![table]);
    let mut value = Map::new();
    let mut text = String::new();
    for table in names {
        let entries = entries(&tables, table)?;
        let (title, generation) = (title_of(table), generation.number());
        writeln!(text, "{title} of gen-{generation}: {} entries\n{}", entries.len(), rows(&entries))
            .expect("a string takes everything");
        value.insert(title_of(table).to_owned(), entries.iter().map(entry_value).collect());
    }
    print_value(args.pinned.output, &Value::Object(value), || text)
}

pub(super) fn pressure(common: &Common, args: &PinnedArgs) -> Result<(), Failure> {
    let (generation, tables) = open(common, args, None)?;
    let capacities = tables.capacities();
    let index_used = dump::dump_index(&tables).map_err(applier::StartError::from)?.len() as u64;
    let index_bytes = u64::from(capacities.frontend_cells()) * size_of::<(FrontendKey, u32)>() as u64;
    let of = |table: Table, room: u32| {
        let bytes = u64::from(table.entries(&capacities)) * table.entry_bytes() as u64;
        (table.name(), dump::count_visible(&tables, table), u64::from(room), bytes)
    };
    let tables = [
        (name::FRONTEND_INDEX, index_used, u64::from(capacities.frontends), index_bytes),
        of(Table::Frontends, capacities.frontends),
        of(Table::Services, capacities.services),
        of(Table::Endpoints, capacities.endpoints),
        of(Table::Backends, capacities.backends),
    ];
    let values: Vec<Value> = tables
        .iter()
        .map(|(table, used, room, bytes)| json!({"table": table, "used": used, "room": room, "bytes": bytes}))
        .collect();
    let value = json!({"generation": generation.number(), "tables": values});
    print_value(args.output, &value, || {
        let rows = tables.map(|(table, used, room, bytes)| {
            let percent = used.saturating_mul(100).checked_div(room).unwrap_or(100);
            [Cell::new(table), Cell::new(used), Cell::new(room), Cell::new(format!("{percent} %")), Cell::new(bytes)]
        });
        output::table(["TABLE", "USED", "ROOM", "FULL", "BYTES"], rows)
    })
}

fn entries(tables: &KernelTables, table: TableName) -> Result<Vec<Entry>, Failure> {
    let table = match table {
        TableName::FrontendIndex => {
            let index = dump::dump_index(tables).map_err(applier::StartError::from)?;
            let entry = |(destination, cell): (String, u32)| Entry {
                number: cell,
                epoch: None,
                standing: Standing::Visible,
                fields: vec![("destination", destination)],
            };
            return Ok(index.into_iter().map(entry).collect());
        }
        TableName::Control => Table::Control,
        TableName::Frontends => Table::Frontends,
        TableName::Services => Table::Services,
        TableName::Endpoints => Table::Endpoints,
        TableName::Backends => Table::Backends,
        TableName::Node => Table::Node,
    };
    Ok(dump::dump(tables, table))
}

fn title_of(table: TableName) -> &'static str {
    match table {
        TableName::Control => name::CONTROL,
        TableName::FrontendIndex => name::FRONTEND_INDEX,
        TableName::Frontends => name::FRONTENDS,
        TableName::Services => name::SERVICES,
        TableName::Endpoints => name::ENDPOINTS,
        TableName::Backends => name::BACKENDS,
        TableName::Node => name::NODE,
    }
}

fn rows(entries: &[Entry]) -> String {
    let row = |entry: &Entry| {
        let epoch = entry.epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
        let mut fields: Vec<String> = entry.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if fields.is_empty() {
            fields.push("absent".to_owned());
        }
        [Cell::new(entry.number), Cell::new(epoch), Cell::new(entry.standing.as_str()), Cell::new(fields.join(" "))]
    };
    output::table(["CELL", "EPOCH", "VERSION", "ENTRY"], entries.iter().map(row))
}

fn entry_value(entry: &Entry) -> Value {
    let mut value = Map::new();
    value.insert("cell".to_owned(), json!(entry.number));
    value.insert("epoch".to_owned(), json!(entry.epoch.map(|epoch| epoch.0)));
    value.insert("version".to_owned(), json!(entry.standing.as_str()));
    for (name, field) in &entry.fields {
        value.insert((*name).to_owned(), json!(field));
    }
    Value::Object(value)
}
