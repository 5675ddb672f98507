//! One look at all balanced sockets, and what is done to those whose backend is gone.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use applier::{Departed, Gone, Lead};
use journal::{Clock as _, ReadError, SystemClock};
use loader::{Closer, Grace, LoadError, Reselected, SocketError, Sockets};
use storage_schema::id::{BootId, Epoch, Lsn};
use storage_schema::map::{Stamp, StampedSocket};
use storage_schema::record::Drained;
use storage_schema::resource::{DrainMode, Protocol};

use super::Counts;
use crate::daemon::backend::Node;

/// After so many failures the sockets of a network namespace are left for the next sweep: looking for a namespace takes long.
const FAILURES_MAX: u32 = 8;

/// What a sweep has left.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// When the next socket's time is over.
    pub(super) due_in: Option<Duration>,
    /// How many sockets' time is not.
    pub(super) waiting: u64,
    /// What could not be done.
    pub(super) failures: u64,
    /// The first of it.
    pub(super) trouble: Option<String>,
}

impl Swept {
    fn failed(&mut self, error: &dyn std::error::Error) {
        self.failures += 1;
        self.trouble.get_or_insert_with(|| error.to_string());
    }
}

/// Why no socket could be looked at.
#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Sockets(#[from] SocketError),
    #[error(transparent)]
    Journal(#[from] ReadError),
}

/// What sweeps.
pub(super) struct Sweeper {
    node: Arc<Node>,
    pin_root: PathBuf,
    /// Made when it is first needed: the stamps' map is there once the state is loaded.
    tools: Option<Tools>,
    departed: Departed,
}

struct Tools {
    grace: Grace,
    sockets: Sockets,
}

impl Sweeper {
    pub(super) fn new(node: Arc<Node>, pin_root: PathBuf) -> Self {
        Self { node, pin_root, tools: None, departed: Departed::default() }
    }

    /// Looks at all balanced sockets, and deals with those whose backend is gone for as long as their service says. What was done
    /// is added to `done`.
    pub(super) fn sweep(&mut self, done: &mut Vec<Drained>) -> Swept {
        let mut swept = Swept::default();
        if let Err(error) = self.try_sweep(done, &mut swept) {
            swept.failed(&error);
        }
        swept
    }

    fn try_sweep(&mut self, done: &mut Vec<Drained>, swept: &mut Swept) -> Result<(), SweepError> {
        let tools = match &mut self.tools {
            Some(tools) => tools,
            tools @ None => tools.insert(Tools { grace: Grace::new()?, sockets: open(&self.pin_root) }),
        };
        let pipeline = self.node.pipeline();
        let visible = pipeline.applied_lsn();
        // Whoever decided by an earlier state has stamped his socket after this.
        tools.grace.wait()?;
        let mut found: HashMap<Lead, Option<Vec<StampedSocket>>> = HashMap::new();
        let listed = tools.sockets.for_each(|socket| {
            if socket.stamp.flags & Stamp::DNS != 0 {
                return;
            }
            let lead = Lead::from(&socket.stamp);
            let sockets = found.entry(lead).or_insert_with(|| pipeline.may_drain(&lead).then(Vec::new));
            if let Some(sockets) = sockets {
                sockets.push(socket);
            }
        });
        // Those that were shown can be dealt with all the same.
        listed.unwrap_or_else(|error| swept.failed(&error));
        let found = found.into_iter().filter_map(|(lead, sockets)| {
            let sockets = sockets?;
            let epoch = sockets.iter().map(|socket| socket.stamp.epoch).max()?;
            // One that was decided behind that shows that it was a backend then.
            (Lsn(epoch) <= visible).then_some(((lead, Epoch(epoch)), sockets))
        });
        // In the order of services and workloads.
        let found: BTreeMap<(Lead, Epoch), Vec<StampedSocket>> = found.collect();
        let leads: Vec<(Lead, Epoch)> = found.keys().copied().collect();
        let departed = self.departed.look(pipeline, &leads, visible)?;
        let clock = Now { monotonic_ns: SystemClock.now().monotonic_ns, boot_id: self.node.journal().boot_id() };
        let mut hands = Hands { sockets: &tools.sockets, closer: tools.sockets.closer(), failed: HashMap::new() };
        for (lead, sockets) in &found {
            let Some(gone) = departed.get(lead) else { continue };
            let Some(drain) = gone.drain.filter(|drain| drain.mode != DrainMode::Keep) else { continue };
            if let Some(left) = clock.left_of(gone, Duration::from_secs(drain.timeout_seconds.into())) {
                swept.waiting += sockets.len() as u64;
                swept.due_in = Some(swept.due_in.map_or(left, |due_in| due_in.min(left)));
                continue;
            }
            let (closed, reselected) = hands.deal_with(sockets, drain.mode, swept);
            if (closed, reselected) == (0, 0) {
                continue;
            }
            let Gone { service, workload, since, .. } = gone.clone();
            let mode = drain.mode;
            tracing::info!(service, workload, %mode, removed_lsn = %since, closed, reselected, "drained a removed backend");
            note(Drained { service, workload, mode, closed, reselected }, self.node.drained(), done);
        }
        Ok(())
    }
}

fn open(pin_root: &Path) -> Sockets {
    let sockets = Sockets::open(pin_root);
    if let Some(why) = sockets.without_iterators() {
        tracing::info!(
            %why,
            "balanced sockets are listed by sock_diag(7): those in network namespaces without a process or a mount are not found"
        );
    }
    sockets
}

/// Adds what was done.
fn note(drained: Drained, counts: &Counts, done: &mut Vec<Drained>) {
    counts.closed.fetch_add(drained.closed.into(), Ordering::Relaxed);
    counts.reselected.fetch_add(drained.reselected.into(), Ordering::Relaxed);
    let Drained { service, workload, mode, .. } = &drained;
    let same = |told: &&mut Drained| (&told.service, &told.workload, &told.mode) == (service, workload, mode);
    match done.iter_mut().find(same) {
        Some(told) => {
            told.closed = told.closed.saturating_add(drained.closed);
            told.reselected = told.reselected.saturating_add(drained.reselected);
        }
        None => done.push(drained),
    }
}

/// The time of a sweep.
struct Now {
    monotonic_ns: u64,
    boot_id: BootId,
}

impl Now {
    /// How long sockets to a backend that is gone are to be left alone still.
    fn left_of(&self, gone: &Gone, timeout: Duration) -> Option<Duration> {
        // No socket is older than the boot; what went before it went long ago.
        let since = if gone.boot_id == self.boot_id { gone.since_monotonic_ns } else { return None };
        let passed = Duration::from_nanos(self.monotonic_ns.saturating_sub(since));
        timeout.checked_sub(passed).filter(|left| !left.is_zero())
    }
}

/// What touches sockets.
struct Hands<'s> {
    sockets: &'s Sockets,
    closer: Closer<'s>,
    /// How much has failed in each network namespace.
    failed: HashMap<u32, u32>,
}

impl Hands<'_> {
    /// How many were closed, and how many have another backend now.
    fn deal_with(&mut self, sockets: &[StampedSocket], mode: DrainMode, swept: &mut Swept) -> (u32, u32) {
        let moves = |socket: &&StampedSocket| mode == DrainMode::Reselect && socket.protocol == Protocol::Udp.number();
        let (to_move, mut to_close): (Vec<&StampedSocket>, Vec<&StampedSocket>) = sockets.iter().partition(moves);
        let to_move: Vec<StampedSocket> = to_move.into_iter().copied().collect();
        let (mut reselected, mut stuck) = (0, Vec::new());
        if !to_move.is_empty() {
            let moved = self.sockets.reselect(&to_move, |socket, outcome| match outcome {
                Ok(Reselected::Moved) => reselected += 1,
                // Its stamp says so by now, and the kernel has left it where it was.
                Ok(Reselected::Stuck) => stuck.push(*socket),
                Ok(Reselected::Gone) => {}
                Err(error) => swept.failed(&error),
            });
            moved.unwrap_or_else(|error| swept.failed(&error));
        }
        to_close.extend(&stuck);
        let closed = to_close.into_iter().filter(|socket| self.close(socket, swept)).count();
        (u32::try_from(closed).unwrap_or(u32::MAX), reselected)
    }

    fn close(&mut self, socket: &StampedSocket, swept: &mut Swept) -> bool {
        let failed = self.failed.entry(socket.namespace).or_default();
        if *failed >= FAILURES_MAX {
            swept.failures += 1;
            return false;
        }
        self.closer.destroy(socket).unwrap_or_else(|error| {
            *failed += 1;
            swept.failed(&error);
            false
        })
    }
}
