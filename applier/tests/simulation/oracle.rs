//! What a reader must see: the decision, made from the plan of a whole state instead of from tables.

use applier::entry::Changes;
use applier::{Model, plan};
use decision::Verdict;
use storage_schema::map::{FrontendKey, Node};

/// The whole state at one epoch.
#[derive(Clone, Debug)]
pub(crate) struct State(Changes);

impl State {
    pub(crate) fn of(model: &Model) -> Self {
        Self(plan::everything(model))
    }

    /// The entries that tables with this state hold: frontends, services, backends.
    pub(crate) fn sizes(&self) -> [usize; 3] {
        [self.0.frontends.len(), self.0.services.len(), self.0.backends.len()]
    }

    pub(crate) fn destinations(&self) -> impl Iterator<Item = FrontendKey> + '_ {
        self.0.frontends.keys().copied()
    }

    /// The only verdict that this state allows.
    pub(crate) fn decide(&self, destination: &FrontendKey, entropy: u32) -> Verdict {
        let Some(Some(key)) = self.0.frontends.get(destination) else { return Verdict::Pass };
        let entry = self.0.services[key].as_ref().expect("a whole state removes nothing");
        let Ok(length) = u32::try_from(entry.endpoints.len()) else { unreachable!("capacities are u32") };
        if length == 0 {
            let pass = self.0.node.is_some_and(|node| node.flags & Node::NO_ENDPOINTS_PASS != 0);
            return if pass { Verdict::Pass } else { Verdict::Refuse { service: key.service.0 } };
        }
        let backend = entry.endpoints[decision::scale(entropy, length) as usize];
        Verdict::Forward {
            service: key.service.0,
            backend: backend.workload.0,
            address: self.0.backends[&backend].expect("a whole state removes nothing"),
            port_be: backend.port.to_be(),
        }
    }
}
