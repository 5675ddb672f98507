//! Whether a transaction may have taken backends from services whose connections are drained, so that somebody has to look.

use storage_schema::id::ResourceId;
use storage_schema::resource::DrainMode;

use super::{Before, Model, Service, Workload, same_addresses};
use crate::drain::Lead;

impl Model {
    /// Whether a socket is worth looking into: it leads to no backend, as of the last submitted record, and its service has such
    /// connections drained or is not there to say.
    pub(crate) fn may_drain(&self, lead: &Lead) -> bool {
        let service = self.services.get(&lead.service);
        if service.is_some_and(|service| service.drain.mode == DrainMode::Keep) {
            return false;
        }
        let workload = self.workloads.get(&lead.backend).map(|workload| &**workload);
        // To a workload's own waypoint no service has sent it.
        if lead.service == lead.backend && workload.is_some() {
            return false;
        }
        lead.reaches_backend(Some(service), Some(workload)) == Some(false)
    }

    /// Whether any service has connections drained.
    pub(crate) fn drains_any(&self) -> bool {
        self.services.values().any(|service| service.drain.mode != DrainMode::Keep)
    }

    /// Whether services that drain may have lost backends, or begin to drain, with what was touched. It may be said of too
    /// many transactions, but not of too few.
    pub(super) fn departs(&self, before: &Before) -> bool {
        let of_services = before.services.iter().any(|(id, previous)| {
            let (Some(previous), now) = (previous, self.services.get(id)) else { return false };
            let drain = now.map_or(previous.drain, |now| now.drain);
            let same = same_addresses(Some(previous), now)
                && now.is_some_and(|now| now.waypoint == previous.waypoint && now.drain == previous.drain);
            drain.mode != DrainMode::Keep && !same
        });
        of_services
            || before.workloads.iter().any(|(id, previous)| {
                let now = self.workloads.get(id).map(|workload| &**workload);
                previous.as_ref().is_some_and(|previous| self.leaves(before, previous, now))
            })
    }

    /// Whether a workload backs a service that drains no longer as it did.
    fn leaves(&self, before: &Before, previous: &Workload, now: Option<&Workload>) -> bool {
        let moved = now.is_none_or(|now| (now.v4, now.v6) != (previous.v4, previous.v6));
        previous.backings.iter().any(|(service, ports)| {
            let backs = || now.iter().flat_map(|now| now.backings.iter()).any(|backing| backing == (service, ports));
            self.drains(before, service) && (moved || !backs())
        })
    }

    fn drains(&self, before: &Before, service: ResourceId) -> bool {
        let previous = || before.services.get(&service).and_then(Option::as_ref);
        let service: Option<&Service> = self.services.get(&service).or_else(previous);
        service.is_some_and(|service| service.drain.mode != DrainMode::Keep)
    }
}
