//! Grace periods, off the hot path.

use std::thread::JoinHandle;

use storage_schema::id::Epoch;
use tokio::sync::mpsc;

use crate::pipeline::spawn;
use crate::start::StartError;

/// Grace periods, one at a time, on a thread of their own.
#[derive(Debug)]
pub(crate) struct GracePeriods {
    requests: std::sync::mpsc::Sender<Epoch>,
    results: mpsc::UnboundedReceiver<Result<Epoch, String>>,
    last_requested: Epoch,
    running: bool,
}

impl GracePeriods {
    pub(crate) fn start(
        wait_for_readers: impl Fn() -> Result<(), String> + Send + 'static,
    ) -> Result<(Self, JoinHandle<()>), StartError> {
        let (requests, requested) = std::sync::mpsc::channel::<Epoch>();
        let (finished, results) = mpsc::unbounded_channel();
        let thread = spawn("grace", move || {
            for epoch in requested {
                if finished.send(wait_for_readers().map(|()| epoch)).is_err() {
                    break;
                }
            }
        })?;
        Ok((Self { requests, results, last_requested: Epoch(0), running: false }, thread))
    }

    /// Begins to wait until no reader of an epoch before `epoch`, the active one, is left; one that runs is let finish.
    pub(crate) fn request(&mut self, epoch: Epoch) {
        if !self.running {
            self.running = true;
            self.last_requested = epoch;
            self.requests.send(epoch).expect("the grace thread lives as long as its requests' sender");
        }
    }

    pub(crate) async fn finished(&mut self) -> Result<Epoch, String> {
        let result = self.results.recv().await.expect("the grace thread lives as long as its requests' sender");
        self.running = false;
        result
    }

    pub(crate) const fn last_requested(&self) -> Epoch {
        self.last_requested
    }
}
