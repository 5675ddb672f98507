//! Counts what the server tells its observer.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::layers::Observer;

/// What was told so far.
#[derive(Default)]
pub(crate) struct Counts {
    calls: Mutex<BTreeMap<(&'static str, &'static str), usize>>,
    refused: Mutex<BTreeMap<&'static str, usize>>,
    certificates: Mutex<Vec<bool>>,
    streams: AtomicUsize,
}

impl Counts {
    pub(crate) fn calls(&self, method: &str, code: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|((m, c), _)| *m == method && *c == code).map(|(_, count)| count).sum()
    }

    pub(crate) fn refused(&self, reason: &str) -> usize {
        self.refused.lock().unwrap().get(reason).copied().unwrap_or_default()
    }

    pub(crate) fn certificates(&self) -> Vec<bool> {
        self.certificates.lock().unwrap().clone()
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }
}

impl Observer for Counts {
    fn call_ended(&self, method: &'static str, code: &'static str, _took: Duration) {
        *self.calls.lock().unwrap().entry((method, code)).or_default() += 1;
    }

    fn streams_open(&self, open: usize) {
        self.streams.store(open, Ordering::Relaxed);
    }

    fn connection_refused(&self, reason: &'static str) {
        *self.refused.lock().unwrap().entry(reason).or_default() += 1;
    }

    fn certificates_read(&self, in_use: bool) {
        self.certificates.lock().unwrap().push(in_use);
    }
}
