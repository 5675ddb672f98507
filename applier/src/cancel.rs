//! Giving up long work: looked at between its steps, so that a stop need not wait for its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::start::StartError;

/// Whether the work of a pipeline is given up. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// From now on every check fails.
    pub(crate) fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on, or not.
    pub(crate) fn check(&self) -> Result<(), StartError> {
        if self.is_cancelled() { Err(StartError::Cancelled) } else { Ok(()) }
    }
}
