//! What tables hold, decoded, version by version: for people and programs that look into a generation. Only reads.

use std::net::SocketAddr;

use storage_schema::id::{BootId, Epoch, RecordHash, ResourceId, StoreId};
use storage_schema::map::cell::{self, Payload as _, VERSIONS};
use storage_schema::map::key::address_from_words;
use storage_schema::map::{Backend, Control, Frontend, FrontendKey, NEVER, Node, Service};

use crate::tables::{CellTable, Table, TableError, Tables, Typed};

/// One version of a cell, a slot of a run, or an entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its cell or slot.
    pub number: u32,
    /// From which epoch on it holds; `None`: for no reader.
    pub epoch: Option<Epoch>,
    /// What it is to a reader who begins now.
    pub standing: Standing,
    /// What it says, by name; nothing for a version that says "absent".
    pub fields: Vec<(&'static str, String)>,
}

/// What a version is to a reader who begins now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds.
    Visible,
    /// A later one holds.
    Superseded,
    /// It will hold after a flip.
    Staged,
    /// It was staged and abandoned.
    Abandoned,
}

impl Standing {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Visible => "visible",
            Self::Superseded => "superseded",
            Self::Staged => "staged",
            Self::Abandoned => "abandoned",
        }
    }
}

/// The entries of a table that were ever written.
pub fn dump(tables: &impl Tables, table: Table) -> Vec<Entry> {
    match table {
        Table::Control => vec![control(tables)],
        Table::Frontends => cells(tables, frontend),
        Table::Services => cells(tables, service),
        Table::Endpoints => endpoints(tables),
        Table::Backends => cells(tables, backend),
        Table::Node => cells(tables, |payload: &Node| node(*payload)),
    }
}

/// The entries of the index: destination and cell.
pub fn dump_index(tables: &impl Tables) -> Result<Vec<(String, u32)>, TableError> {
    let mut entries: Vec<_> =
        tables.index_entries()?.into_iter().map(|(key, cell)| (destination(&key), cell)).collect();
    entries.sort_unstable_by_key(|(_, cell)| *cell);
    Ok(entries)
}

/// How many entries of a table a reader who begins now can see; for `endpoints`, how many slots its runs have.
pub fn count_visible(tables: &impl Tables, table: Table) -> u64 {
    dump(tables, table).iter().filter(|entry| entry.standing == Standing::Visible && !entry.fields.is_empty()).count()
        as u64
}

/// A destination as people write it.
pub fn destination(key: &FrontendKey) -> String {
    format!("{}/{}", SocketAddr::new(key.ip(), u16::from_be(key.port_be)), protocol(key.protocol))
}

/// An IANA protocol number's name, where it has one here.
pub fn protocol(number: u8) -> String {
    match number {
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        other => other.to_string(),
    }
}

fn socket_address(backend: &Backend) -> SocketAddr {
    SocketAddr::new(address_from_words(backend.address), u16::from_be(backend.port_be))
}

/// A payload's fields, by name.
pub type Fields = Vec<(&'static str, String)>;

pub(crate) fn frontend(frontend: &Frontend) -> Fields {
    vec![("destination", destination(&frontend.key)), ("service_cell", frontend.index.to_string())]
}

pub(crate) fn backend(backend: &Backend) -> Fields {
    let kind = if backend.flags & Backend::WAYPOINT == 0 { "workload" } else { "waypoint_of" };
    vec![(kind, ResourceId(backend.id).to_string()), ("address", socket_address(backend).to_string())]
}

/// What the node's entry says.
pub fn node(node: Node) -> Fields {
    let passes = node.flags & Node::NO_ENDPOINTS_PASS != 0;
    let proxied = node.flags & Node::DNS != 0;
    let proxy = SocketAddr::new(address_from_words(node.dns_address), u16::from_be(node.dns_port_be));
    vec![
        ("no_endpoints", if passes { "pass" } else { "refuse" }.to_owned()),
        ("dns", if proxied { proxy.to_string() } else { "-".to_owned() }),
    ]
}

/// A policy's name.
pub fn policy(policy: u8) -> String {
    match policy {
        Service::RANDOM => "random".to_owned(),
        Service::WEIGHTED => "weighted".to_owned(),
        Service::MAGLEV => "maglev".to_owned(),
        other => other.to_string(),
    }
}

/// The flags of a service port by name; `-`: none.
pub fn service_flags(flags: u8) -> String {
    let named = [
        (Service::NO_ENDPOINTS_PASS, "no-endpoints-pass"),
        (Service::NO_ENDPOINTS_REFUSE, "no-endpoints-refuse"),
        (Service::WAYPOINT, "waypoint"),
        (Service::ACCELERATE, "accelerate"),
        (Service::WORKLOAD, "workload"),
    ];
    let set: Vec<&str> = named.into_iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| name).collect();
    if set.is_empty() { "-".to_owned() } else { set.join(",") }
}

/// For how long a client goes where it went; `-`: it does not.
pub fn affinity(units: u16) -> String {
    match u64::from(units) * Service::AFFINITY_UNIT_NS / 1_000_000_000 {
        0 => "-".to_owned(),
        seconds => format!("{seconds} s"),
    }
}

pub(crate) fn service(service: &Service) -> Fields {
    let policy = policy(service.policy);
    let Service { id, port, family, run_offset, run_length, .. } = service;
    vec![
        ("service", ResourceId(*id).to_string()),
        ("port", format!("{port}/{}", protocol(service.protocol))),
        ("family", format!("IPv{family}")),
        ("policy", policy),
        ("flags", service_flags(service.flags)),
        ("affinity", affinity(service.affinity)),
        ("run_offset", run_offset.to_string()),
        ("run_length", run_length.to_string()),
    ]
}

fn control(tables: &impl Tables) -> Entry {
    let control = tables.control();
    let Control { active_epoch, magic, fingerprint, store_id, programs_hash, boot_id, heads } = control;
    let record = heads.iter().find(|head| head.epoch == active_epoch).map(|head| RecordHash(head.record_hash));
    let fields = vec![
        ("complete", (magic == Control::MAGIC).to_string()),
        ("abi", format!("{fingerprint:016x}")),
        ("store_id", StoreId(store_id).to_string()),
        ("boot_id", BootId(boot_id).to_string()),
        ("programs_hash", RecordHash(programs_hash).to_string()),
        ("record_hash", record.map_or_else(|| "-".to_owned(), |hash| hash.to_string())),
    ];
    Entry { number: 0, epoch: Some(Epoch(active_epoch)), standing: Standing::Visible, fields }
}

/// The versions of a table's cells. One that says "absent" has no fields.
fn cells<P: CellTable>(tables: &impl Tables, fields: impl Fn(&P) -> Fields) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (number, version, epoch, standing) in versions::<P>(tables) {
        let payload: P = tables.payload(number, version);
        if epoch == Some(Epoch(0)) && !payload.is_present() {
            continue;
        }
        let fields = if payload.is_present() { fields(&payload) } else { Vec::new() };
        entries.push(Entry { number, epoch, standing, fields });
    }
    entries
}

/// The slots of the runs that services point at.
fn endpoints(tables: &impl Tables) -> Vec<Entry> {
    let slots = tables.capacities().endpoint_slots();
    let mut entries = Vec::new();
    for (cell, version, epoch, standing) in versions::<Service>(tables) {
        let service: Service = tables.payload(cell, version);
        let end = service.run_offset.checked_add(service.run_length).filter(|end| *end <= slots);
        if end.is_none() || !service.is_present() {
            continue;
        }
        // An alias table begins with thresholds, after the waypoint.
        let first = service.run_offset + u32::from(service.flags & Service::WAYPOINT != 0);
        let thresholds = first..first + service.run_length / 3;
        for (slot, backend) in (service.run_offset..).zip(tables.run(service.run_offset, service.run_length)) {
            let is_threshold = service.policy == Service::WEIGHTED && thresholds.contains(&slot);
            let meaning = if is_threshold { "threshold" } else { "backend_cell" };
            let fields = vec![("service_cell", cell.to_string()), (meaning, backend.to_string())];
            entries.push(Entry { number: slot, epoch, standing, fields });
        }
    }
    entries.sort_by_key(|entry| entry.number);
    entries
}

fn versions<P: CellTable>(tables: &impl Tables) -> impl Iterator<Item = (u32, usize, Option<Epoch>, Standing)> {
    let active = tables.control().active_epoch;
    let written = (0..P::TABLE.entries(&tables.capacities())).map(|cell| (cell, tables.epochs::<P>(cell)));
    written.flat_map(move |(cell, epochs)| {
        let visible = cell::visible(epochs, active);
        let of_version = move |version: usize| {
            let standing = match epochs[version] {
                _ if visible == Some(version) => Standing::Visible,
                NEVER => Standing::Abandoned,
                epoch if epoch > active => Standing::Staged,
                _ => Standing::Superseded,
            };
            let epoch = Some(epochs[version]).filter(|epoch| *epoch != NEVER).map(Epoch);
            (cell, version, epoch, standing)
        };
        (0..VERSIONS).map(of_version)
    })
}
