//! `holdfast bpf generations`: which sets of maps and programs there are, and which one connections run.

use comfy_table::Cell;
use loader::Generation;
use serde_json::{Value, json};
use storage_schema::id::{BootId, StoreId};
use storage_schema::map::{Capacities, Control, FINGERPRINT};

use super::{pin_root, print_value};
use crate::cli::{Common, PinnedArgs};
use crate::exit::Failure;
use crate::{host, output};

/// A generation, as far as this build can read it.
struct Found {
    name: String,
    hooks: Vec<&'static str>,
    control: Option<Control>,
    capacities: Option<Capacities>,
}

pub(super) fn run(common: &Common, args: &PinnedArgs) -> Result<(), Failure> {
    let pin_root = pin_root(common, args)?;
    host::require_privileges()?;
    let found: Vec<Found> =
        loader::generations(&pin_root)?.into_iter().map(|(gen_, hooks)| look(&gen_, hooks)).collect();
    let value = Value::Array(found.iter().map(value).collect());
    print_value(args.output, &value, || {
        if found.is_empty() {
            return format!("nothing is pinned under {}\n", pin_root.display());
        }
        output::table(["GENERATION", "STATE", "HOOKS", "EPOCH", "ABI", "STORE", "ROOM"], found.iter().map(row))
    })
}

/// What cannot be read was not finished, or is another build's.
fn look(generation: &Generation, hooks: Vec<&'static str>) -> Found {
    let control = generation.control().ok().flatten();
    let capacities = generation.capacities().ok();
    Found { name: format!("gen-{}", generation.number()), hooks, control, capacities }
}

impl Found {
    fn state(&self) -> &'static str {
        match self.control {
            Some(control) if control.magic == Control::MAGIC && self.hooks.is_empty() => "complete",
            Some(control) if control.magic == Control::MAGIC => "attached",
            Some(_) => "unfinished",
            None => "unreadable",
        }
    }
}

fn row(found: &Found) -> [Cell; 7] {
    let of_control = |tell: fn(&Control) -> String| Cell::new(found.control.as_ref().map_or("-".to_owned(), tell));
    let hooks = if found.hooks.is_empty() { "-".to_owned() } else { found.hooks.join(",") };
    let room = found.capacities.map_or("-".to_owned(), |capacities| {
        let Capacities { frontends, services, backends, endpoints } = capacities;
        format!("{frontends} frontends, {services} services, {backends} backends, {endpoints} endpoints")
    });
    [
        Cell::new(&found.name),
        Cell::new(found.state()),
        Cell::new(hooks),
        of_control(|control| control.active_epoch.to_string()),
        of_control(|control| if control.fingerprint == FINGERPRINT { "this" } else { "other" }.to_owned()),
        of_control(|control| StoreId(control.store_id).to_string()),
        Cell::new(room),
    ]
}

fn value(found: &Found) -> Value {
    let control = found.control.map(|control| {
        json!({
            "activeEpoch": control.active_epoch,
            "abi": format!("{:016x}", control.fingerprint),
            "storeId": StoreId(control.store_id).to_string(),
            "bootId": BootId(control.boot_id).to_string(),
        })
    });
    let room = found.capacities.map(|capacities| {
        let Capacities { frontends, services, backends, endpoints } = capacities;
        json!({"frontends": frontends, "services": services, "backends": backends, "endpoints": endpoints})
    });
    json!({"name": found.name, "state": found.state(), "hooks": found.hooks, "control": control, "room": room})
}
