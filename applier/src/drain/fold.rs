//! Pure: from what records say of a service and a workload to what became of a socket that led from one to the other.

use storage_schema::id::{BootId, Lsn};
use storage_schema::resource::Resource;

use super::{Gone, Known, Lead};
use crate::model::{Service, Workload};
use crate::owner::Owner;

/// When a record was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) lsn: Lsn,
    pub(super) monotonic_ns: u64,
    pub(super) boot_id: BootId,
}

/// What one record says of the service, and of the workload; `None`: nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Said<'r> {
    pub(super) written: Written,
    pub(super) service: Option<(&'r str, Option<&'r Resource>)>,
    pub(super) workload: Option<(&'r str, Option<&'r Resource>)>,
}

/// Service and workload, as far as they are known, while records go by.
#[derive(Clone, Debug)]
pub(super) struct Fold {
    lead: Lead,
    service: Known<Service>,
    workload: Known<Workload>,
    /// The service as it was last while it was there.
    last_service: Option<Service>,
    service_name: Option<String>,
    uid: Option<String>,
    /// Whether a record changed either.
    touched: bool,
    since: Option<Written>,
    /// Whether it may have been gone before that: a record before it left that open.
    open: bool,
    /// The last record, if it is not known whether it left the backend one.
    unsure: Option<Written>,
}

impl Fold {
    /// At an epoch at which it was a backend.
    pub(super) fn new(lead: Lead, service: Option<Service>, workload: Option<Workload>) -> Self {
        Self {
            lead,
            last_service: service.clone(),
            service: service.map(Some),
            workload: workload.map(Some),
            service_name: None,
            uid: None,
            touched: false,
            open: false,
            since: None,
            unsure: None,
        }
    }

    /// Takes in the next record.
    pub(super) fn add(&mut self, said: &Said<'_>) {
        self.learn(said);
        self.touched = true;
        let reaches = self
            .lead
            .reaches_backend(self.service.as_ref().map(Option::as_ref), self.workload.as_ref().map(Option::as_ref));
        match reaches {
            Some(false) => {
                self.since.get_or_insert(said.written);
                self.unsure = None;
            }
            Some(true) => (self.since, self.unsure, self.open) = (None, None, false),
            None => (self.since, self.unsure, self.open) = (None, Some(said.written), true),
        }
    }

    /// Takes in what a record says that was written before the epoch: how things were, and not that they changed.
    pub(super) fn learn(&mut self, said: &Said<'_>) {
        if let Some((name, resource)) = said.service {
            self.service_name = Some(name.to_owned());
            self.service = Some(match resource {
                Some(Resource::Service(service)) => Some(Service::project(service, Owner::UNKNOWN)),
                _ => None,
            });
        }
        if let Some(Some(service)) = &self.service {
            self.last_service = Some(service.clone());
        }
        if let Some((name, resource)) = said.workload {
            self.uid = Some(name.to_owned());
            self.workload = Some(match resource {
                Some(Resource::Workload(workload)) => Some(Workload::project(workload, Owner::UNKNOWN)),
                _ => None,
            });
        }
    }

    /// Whether records from before the epoch would say more.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.open || self.since.is_some() && self.last_service.is_none()
    }

    /// What became of it, if it is gone. `exact`: the model, which says that it is a backend no longer, is the state after the last record;
    /// then what cannot be told has happened, and is taken to have happened as late as it can have. `unseen`: records right
    /// behind the epoch are no longer kept; the oldest that is.
    pub(super) fn gone(self, exact: bool, unseen: Option<Written>) -> Option<Gone> {
        let untold = self.unsure.or(unseen.filter(|_| !self.touched)).filter(|_| exact);
        let since = self.since.or(untold)?;
        let Self { lead, last_service, service_name, workload, uid, .. } = self;
        let service = service_name.or_else(|| last_service.as_ref().map(|service| service.name.to_string()));
        let uid = uid.or_else(|| workload.flatten().map(|workload| workload.uid.to_string()));
        let to_waypoint = lead.service == lead.backend;
        Some(Gone {
            since: since.lsn,
            since_monotonic_ns: since.monotonic_ns,
            boot_id: since.boot_id,
            drain: last_service.map(|service| service.drain),
            service: service.unwrap_or_else(|| lead.service.to_string()),
            workload: if to_waypoint { String::new() } else { uid.unwrap_or_else(|| lead.backend.to_string()) },
        })
    }
}
