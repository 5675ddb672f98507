//! The first state of new tables: straight from the model to the cells.
//!
//! [`Applier::reconcile`] would lead to the same tables. It compares each entry with what is there, and collects what is to be
//! written; here nothing is there, and as nobody reads before the flip, entries are written as they are found, service by
//! service, while a second thread works out those that come next. With a million endpoints that is most of the time between a
//! reboot and tables that are ready.

use std::sync::mpsc::sync_channel;
use std::thread;

use journal::{Durable, Head};
use storage_schema::id::{Epoch, ResourceId};
use storage_schema::map::{self, Node, Service};
use storage_schema::resource::Kind;

use crate::apply::{Applier, ApplyError, backend_payload, frontend_payload, length, service_payload};
use crate::both::ENTRIES_MIN;
use crate::entry::{BackendKey, ServiceEntry, ServiceKey};
use crate::layout::Layout;
use crate::model::{self, Model};
use crate::tables::{Tables, Typed};
use crate::{direct, plan, selection};

/// So many services are handed over at once, ...
const BATCH: usize = 256;
/// ... and so many times that may wait.
const BATCHES_MAX: usize = 128;

/// What a service comes to, or a workload that has a waypoint.
pub(crate) struct Part {
    /// Those that its ports need, and maybe others' as well.
    backends: Vec<(BackendKey, [u32; 4])>,
    ports: Vec<(ServiceKey, ServiceEntry)>,
}

impl Part {
    fn of(model: &Model, id: ResourceId, service: &model::Service) -> Self {
        let ports = plan::service_keys(id, service).map(|key| (key, plan::service_entry(model, key, service)));
        Self { backends: plan::backends_of_service(model, id, service), ports: ports.collect() }
    }

    fn of_workload(id: ResourceId, workload: &model::Workload) -> Self {
        let ports = direct::service_keys(id, workload).map(|key| (key, direct::service_entry(key, workload)));
        Self { backends: direct::waypoint(id, workload).into_iter().collect(), ports: ports.collect() }
    }
}

/// Does `then` with the parts of a state, which are worked out from now on: also while it does something else first.
pub(crate) fn ahead<R>(model: &Model, then: impl FnOnce(&mut dyn Iterator<Item = Part>) -> R) -> R {
    let of_workloads = model.redirected().map(|(id, workload)| Part::of_workload(id, workload));
    let mut parts = model.services().map(|(id, service)| Part::of(model, id, service)).chain(of_workloads);
    if model.count(Kind::Workload) < ENTRIES_MIN {
        return then(&mut parts);
    }
    thread::scope(|scope| {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        scope.spawn(move || {
            loop {
                let batch: Vec<Part> = parts.by_ref().take(BATCH).collect();
                // Nobody takes it: filling has failed.
                if batch.is_empty() || sender.send(batch).is_err() {
                    return;
                }
            }
        });
        then(&mut batches.into_iter().flatten())
    })
}

impl<T: Tables> Applier<T> {
    /// Makes tables that [`Applier::create`] has begun with show the state of `head`. Returns how many entries were written.
    ///
    /// On an error they are of no use: some of it may be there.
    pub fn fill(&mut self, model: &Model, head: Durable<Head>) -> Result<u64, ApplyError> {
        ahead(model, |parts| self.fill_with(parts, model, head))
    }

    /// The same, with the [parts](ahead) of the model.
    pub(crate) fn fill_with(
        &mut self,
        parts: &mut dyn Iterator<Item = Part>,
        model: &Model,
        head: Durable<Head>,
    ) -> Result<u64, ApplyError> {
        assert_eq!((self.active, self.layout.backends.used()), (Epoch(0), 0), "only new tables are filled");
        let target = Epoch::from(head.lsn);
        if target == self.active {
            return Ok(0);
        }
        self.layout.reserve(&model.usage());
        fail::fail_point!("applier.before_stage");
        let mut entries = 0;
        for Part { backends, ports } in parts {
            entries += self.fill_backends(&backends, target)?;
            for (key, entry) in &ports {
                entries += self.fill_service(*key, entry, target)?;
            }
        }
        fail::fail_point!("applier.after_backends");
        fail::fail_point!("applier.after_services");
        entries += self.fill_frontends(model, target)?;
        let node = model.node_entry();
        if node != Node::default() {
            self.tables.stage(0, self.active, target, &node);
            entries += 1;
        }
        self.flip(target, &head);
        Ok(entries)
    }

    fn fill_backends(&mut self, backends: &[(BackendKey, [u32; 4])], target: Epoch) -> Result<u64, ApplyError> {
        let Self { tables, layout, active, .. } = self;
        let full = || ApplyError::Full { table: map::name::BACKENDS, capacity: tables.capacities().backend_cells() };
        let mut entries = 0;
        for (key, address) in backends {
            let (cell, new) = layout.backends.allocate(*key).ok_or_else(full)?;
            if new {
                tables.stage(cell, *active, target, &backend_payload(*key, *address));
                entries += 1;
            }
        }
        Ok(entries)
    }

    fn fill_service(&mut self, key: ServiceKey, entry: &ServiceEntry, target: Epoch) -> Result<u64, ApplyError> {
        let Self { tables, layout: Layout { services, backends, runs, .. }, active, .. } = self;
        let full = |table, capacity| move || ApplyError::Full { table, capacity };
        let (cell, _) = services.allocate(key).ok_or_else(full(map::name::SERVICES, services.capacity()))?;
        let cell_of = |key| backends.get(key).expect("a plan has an entry for each backend it names");
        let cells: Vec<u32> = entry.backends().map(cell_of).collect();
        let run = selection::run(entry, &cells);
        let payload = service_payload(key, entry);
        if run.is_empty() {
            tables.stage(cell, *active, target, &payload);
            return Ok(1);
        }
        let run_length = length(&run);
        let run_offset = runs.allocate(run_length).ok_or_else(full(map::name::ENDPOINTS, runs.half()))?;
        tables.write_run(run_offset, &run);
        tables.stage(cell, *active, target, &Service { run_offset, run_length, ..payload });
        Ok(2)
    }

    fn fill_frontends(&mut self, model: &Model, target: Epoch) -> Result<u64, ApplyError> {
        let Self { tables, layout, active, .. } = self;
        let full = || ApplyError::Full { table: map::name::FRONTENDS, capacity: tables.capacities().frontend_cells() };
        let mut index = Vec::new();
        let mut services = Vec::new();
        for (key, service) in plan::all_frontends(model) {
            let (cell, _) = layout.frontends.allocate(key).ok_or_else(full)?;
            index.push((key, cell));
            services.push(layout.services.get(&service).expect("a plan has an entry for each service port it names"));
        }
        tables.index_insert_all(&index).map_err(|partly| partly.error)?;
        for ((key, cell), service) in index.iter().zip(services) {
            tables.stage(*cell, *active, target, &frontend_payload(*key, service));
        }
        Ok(2 * index.len() as u64)
    }
}
