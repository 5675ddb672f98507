//! What the pipeline knows for those who deal with connections to removed backends ([`crate::drain`]).

use journal::Journal;
use storage_schema::id::{Epoch, Lsn};
use tokio::sync::watch;

use super::Pipeline;
use crate::drain::{Lead, Now};
use crate::model::Model;

impl Pipeline {
    /// The last record that became visible, by itself or with others, and may have taken a backend from a service that has its
    /// connections drained.
    pub fn departures(&self) -> watch::Receiver<Lsn> {
        self.departures.clone()
    }

    /// Whether a socket is worth asking [`Departed`](crate::Departed) about: it leads to no backend, as of the last submitted
    /// record, and its service has such connections drained or is not there to say. The state must be loaded.
    pub fn may_drain(&self, lead: &Lead) -> bool {
        self.shared.admission().loaded().may_drain(lead)
    }

    /// Whether any service has connections to removed backends drained. It looks at each, and no push is admitted meanwhile.
    pub fn drains_any(&self) -> bool {
        self.shared.admission().model.as_ref().is_some_and(Model::drains_any)
    }

    /// What the model has of these.
    pub(crate) fn known(&self, leads: &[(Lead, Epoch)]) -> Now {
        let mut admission = self.shared.admission();
        let model = admission.loaded();
        let mut now = Now::default();
        for (lead, _) in leads {
            now.services.extend(model.services.get(&lead.service).map(|service| (lead.service, service.clone())));
            now.workloads.extend(model.workloads.get(&lead.backend).map(|found| (lead.backend, (**found).clone())));
        }
        now.appended_lsn = self.shared.journal.watermarks().appended_lsn;
        now
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.shared.journal
    }
}
