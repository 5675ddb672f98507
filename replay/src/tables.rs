//! The tables of a moment, in memory, and the decision over them.

use std::net::{IpAddr, SocketAddr};

use applier::entry::Changes;
use applier::recovery::Identity;
use applier::tables::{MemoryTables, View};
use applier::{Applier, Model, sizing};
use decision::{Again, Verdict};
use journal::State;
use storage_schema::id::{BootId, StoreId};
use storage_schema::map::{Capacities, FrontendKey};

use crate::ReplayError;

/// The tables may be as large as there are.
const LIMITS: Capacities = Capacities {
    frontends: Capacities::MAX,
    services: Capacities::MAX,
    backends: Capacities::MAX,
    endpoints: Capacities::MAX,
};

/// Tables that show one state.
#[derive(Debug)]
pub(crate) struct PastTables {
    applier: Applier<MemoryTables>,
}

impl PastTables {
    /// The tables as they showed `model`, which is (a part of) the state; `changes` are everything that follows from it.
    pub(crate) fn of(
        state: &State,
        model: &Model,
        mut changes: Changes,
        store_id: StoreId,
    ) -> Result<Self, ReplayError> {
        let tables = MemoryTables::new(sizing::fitting(&model.usage(), &LIMITS));
        let identity = Identity { store_id, programs_hash: [0; 32], boot_id: BootId::default() };
        let mut applier = Applier::create(tables, &identity);
        applier.reconcile(&mut changes, state.durable_head())?;
        Ok(Self { applier })
    }

    /// Where a connection to `destination` goes.
    pub(crate) fn decide(&self, destination: &FrontendKey, words: Again) -> Verdict {
        decision::decide_with(&View(self.applier.tables()), self.applier.active().0, destination, &words)
    }
}

/// A connection's destination as the tables know it.
pub(crate) fn destination(to: SocketAddr, protocol: u8) -> FrontendKey {
    FrontendKey::new(canonical(to.ip()), to.port(), protocol)
}

/// An IPv4-mapped address is the IPv4 one.
pub(crate) const fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
