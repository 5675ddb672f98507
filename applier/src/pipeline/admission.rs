//! What the lock that orders pushes protects, and how a transaction gets its number under it.

use std::collections::VecDeque;

use journal::{Ack, Permit};
use storage_schema::id::Lsn;
use storage_schema::map::Capacities;
use storage_schema::record::Transaction;
use tokio::sync::watch;

use super::PushError;
use crate::entry::Changes;
use crate::model::Model;

/// What the lock that orders pushes protects.
#[derive(Debug)]
pub(super) struct Admission {
    /// `None` while it is being loaded.
    pub(super) model: Option<Model>,
    /// Changes of submitted transactions that are not applied, in the order of their LSNs.
    pub(super) queue: VecDeque<Queued>,
    pub(super) applied: watch::Receiver<Lsn>,
}

/// What a submitted transaction is to do.
#[derive(Debug)]
pub(super) struct Queued {
    pub(super) lsn: Lsn,
    pub(super) changes: Changes,
    /// As [`Admitted::departs`](crate::model::Admitted::departs).
    pub(super) departs: bool,
}

impl Admission {
    /// Checks a transaction, gives it its number and queues its changes. Nothing has changed if that fails.
    pub(super) fn submit(
        &mut self,
        permit: Permit,
        transaction: Transaction,
        limits: &Capacities,
    ) -> Result<Ack, PushError> {
        let admitted = self.loaded().admit(&transaction, limits)?;
        match permit.submit(transaction) {
            Ok(submitted) => {
                self.loaded().journaled(&admitted, submitted.lsn);
                let (changes, departs) = (admitted.changes, admitted.departs);
                self.queue.push_back(Queued { lsn: submitted.lsn, changes, departs });
                Ok(submitted.ack)
            }
            Err(error) => {
                self.loaded().revert(admitted);
                Err(error.into())
            }
        }
    }

    /// The model, for those who have waited for it.
    pub(super) fn loaded(&mut self) -> &mut Model {
        self.model.as_mut().expect("nothing is admitted or applied before the state is loaded")
    }
}
