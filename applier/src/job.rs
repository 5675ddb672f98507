//! Work that takes too long for the applier thread: the journal's state read anew, and new generations built from it.
//!
//! A job begins at a durable record. What is applied while it runs is remembered, and made up for when it is done. A pipeline
//! that stops has its job given up at its next step.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use journal::{Durable, Head, Journal};
use storage_schema::map::Capacities;
use tokio::sync::oneshot;

use crate::cancel::Cancel;
use crate::entry::Changes;
use crate::home::Home;
use crate::pipeline::spawn;
use crate::plan;
use crate::start::{self, Built, StartError};

/// A job that runs, and what was applied since it began.
#[derive(Debug)]
pub(crate) struct Job<H: Home> {
    pub(crate) purpose: Purpose,
    pub(crate) since: Vec<(Changes, Durable<Head>)>,
    result: oneshot::Receiver<Result<Outcome<H>, StartError>>,
    thread: Option<JoinHandle<()>>,
}

/// What a job is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The journal's state, to compare the tables with.
    Compare,
    /// A new generation.
    Build {
        /// Why.
        reason: String,
        /// Of what size.
        capacities: Capacities,
    },
}

/// What comes of it.
#[derive(Debug)]
pub(crate) enum Outcome<H: Home> {
    /// What the tables must hold at a record.
    State(Changes, Durable<Head>),
    Built(Box<Built<H>>),
}

impl<H: Home> Job<H> {
    /// Begins one at `head`.
    pub(crate) fn begin(
        purpose: Purpose,
        journal: Journal,
        home: Arc<Mutex<H>>,
        head: Durable<Head>,
        cancel: Cancel,
    ) -> Result<Self, StartError> {
        let (sender, result) = oneshot::channel();
        let what = purpose.clone();
        let thread = spawn("generation", move || {
            // The applier may have stopped waiting.
            drop(sender.send(carry_out(&what, &journal, &home, head, &cancel)));
        })?;
        Ok(Self { purpose, since: Vec::new(), result, thread: Some(thread) })
    }

    /// Waits for its end. To be called again if it is cancelled, but not after it has returned.
    pub(crate) async fn finished(&mut self) -> Result<Outcome<H>, String> {
        let result = (&mut self.result).await;
        result.map_err(|_| "it panicked".to_owned())?.map_err(|error| error.to_string())
    }
}

impl<H: Home> Drop for Job<H> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // It holds the journal; a panic there has been reported by its own message.
            drop(thread.join());
        }
    }
}

fn carry_out<H: Home>(
    purpose: &Purpose,
    journal: &Journal,
    home: &Mutex<H>,
    head: Durable<Head>,
    cancel: &Cancel,
) -> Result<Outcome<H>, StartError> {
    let model = start::read_model_at(journal, head, cancel)?;
    match purpose {
        Purpose::Compare => Ok(Outcome::State(plan::everything(&model), head)),
        Purpose::Build { capacities, .. } => {
            let home = home.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Outcome::Built(Box::new(start::build(&*home, *capacities, &model, head, cancel)?)))
        }
    }
}
