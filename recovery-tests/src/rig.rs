//! Everything that a crash test needs, put together: a sandbox, servers, a client process with live connections, an
//! oracle, and a seed.
//!
//! ```text
//!   foundation → live connections → transactions … † … look at what is visible → restart → settle → check → again
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use api::Level;
use api::client::ClientError;
use api::status::Status;
use journal::Journal;
use rand::Rng;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;
use storage_schema::id::Lsn;
use storage_schema::record::Transaction;
use storage_schema::resource::Kind;

use crate::agent::{Agent, Settings};
use crate::connection::Greeting;
use crate::echo::EchoServer;
use crate::oracle::{Expected, Oracle};
use crate::pinned;
use crate::requirements::kernel_is_usable;
use crate::sandbox::Sandbox;
use crate::seed::Seed;
use crate::worker::{Outcome, Worker};
use crate::world::{self, BACKEND_PORTS};

/// Who pushes.
const SOURCE: &str = "recovery-tests";

/// Checked connections to each destination that is opened to.
const LIVE_CONNECTIONS: u32 = 4;

/// Connections to each destination that only ask whether it leads where it may.
const PROBES: u32 = 3;

/// Connections for each backend when every backend must be seen: missing one has a chance below e^-40.
const PROBES_PER_BACKEND: u32 = 40;

/// A crash test's equipment.
#[derive(Debug)]
pub struct Rig {
    // The worker goes first, so that its connections end before the servers do.
    worker: Worker,
    _servers: EchoServer,
    oracle: Oracle,
    random: ChaCha8Rng,
    sandbox: Sandbox,
}

impl Rig {
    /// Enters a sandbox and starts servers and the client process.
    pub fn new(seed: &Seed) -> Self {
        let sandbox = Sandbox::enter();
        let servers = EchoServer::start(&BACKEND_PORTS).expect("a fresh network namespace has all ports free");
        let worker = Worker::start(&sandbox);
        Self { worker, _servers: servers, oracle: Oracle::new(), random: seed.generator(0), sandbox }
    }

    /// A rig with a mesh and live connections, whose agent is still running; `None` where the kernel cannot be used and need not
    /// be. The seed is for as long as the test runs.
    pub fn started(suite: &'static str, test: &str, settings: &Settings) -> Option<(Seed, Self, Agent)> {
        if !kernel_is_usable() {
            return None;
        }
        let seed = Seed::from_environment(suite, test);
        let mut rig = Self::new(&seed);
        let agent = Agent::start(rig.sandbox(), settings);
        rig.lay_foundation(&agent);
        rig.open_live_connections();
        Some((seed, rig, agent))
    }

    /// Its sandbox.
    pub const fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// What must be true.
    pub const fn oracle(&self) -> &Oracle {
        &self.oracle
    }

    /// The clients.
    pub const fn worker(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// The test's randomness.
    pub const fn random(&mut self) -> &mut ChaCha8Rng {
        &mut self.random
    }

    /// Pushes the whole mesh and waits until it is visible.
    pub fn lay_foundation(&mut self, agent: &Agent) {
        let foundation = world::foundation(SOURCE);
        assert!(self.push(agent, &foundation), "a running agent takes the foundation");
        agent.wait_applied(self.oracle.acknowledged());
    }

    /// Opens checked connections to some destinations of both families, through the hooks.
    pub fn open_live_connections(&mut self) {
        for v4 in [true, false] {
            let reachable = world::destinations()
                .filter(|destination| destination.is_ipv4() == v4)
                .filter(|destination| matches!(self.oracle.latest().expected(*destination), Expected::OneOf(_)));
            for destination in reachable.choose_multiple(&mut self.random, 3) {
                let reached = self.worker.open(destination, Greeting::None, LIVE_CONNECTIONS, self.random.random());
                let Expected::OneOf(backends) = self.oracle.latest().expected(destination) else { unreachable!() };
                assert!(reached.iter().all(|address| backends.contains(address)), "{destination}: {reached:?}");
            }
        }
    }

    /// Pushes random transactions, one after the other, at most `count`: whether the agent took all of them.
    pub fn push_random(&mut self, agent: &Agent, count: u64) -> bool {
        (0..count).all(|_| {
            let version = self.oracle.transactions().len() as u64 + 1;
            let transaction = world::transaction(self.oracle.latest(), &mut self.random, SOURCE, version);
            self.push(agent, &transaction)
        })
    }

    /// Pushes a transaction with so many changes, none of which changes anything; returns whether it was acknowledged.
    pub fn push_crowd(&mut self, agent: &Agent, count: usize) -> bool {
        let version = self.oracle.transactions().len() as u64 + 1;
        self.push(agent, &world::crowd(SOURCE, version, count))
    }

    /// Fills the journal's segment, of this length, until only so many bytes are free. No agent may run.
    pub fn fill_segment(&mut self, segment_bytes: u64, bytes_free: usize) {
        const BYTES: usize = 4 << 20;
        const BYTES_MIN: usize = 128 << 10;
        let config = journal::Config { segment_bytes, ..journal::Config::new(self.sandbox.state_dir()) };
        let mut left = usize::try_from(config.segment_bytes).expect("a segment fits into memory") - bytes_free;
        let journal = Journal::open(config).expect("the journal opens");
        let encoded_bytes = |lsn| journal.encoded_record(lsn).expect("a durable record can be read").encoded.len();
        left -= (1..=self.oracle.acknowledged().0).map(|lsn| encoded_bytes(Lsn(lsn))).sum::<usize>();
        while left > BYTES_MIN {
            let version = self.oracle.transactions().len() as u64 + 1;
            // A record is a little longer than the names in it.
            let transaction = world::bulk(SOURCE, version, BYTES.min(left - BYTES_MIN));
            self.oracle.pushing(&transaction);
            let submitted = journal.blocking_reserve().and_then(|permit| permit.submit(transaction));
            let receipt = submitted.and_then(|submitted| submitted.ack.blocking_wait()).expect("it is valid");
            self.oracle.acknowledge(receipt.lsn);
            left = left.saturating_sub(encoded_bytes(receipt.lsn));
        }
    }

    /// Checks new connections while no agent runs: each one sees the state of a record that was pushed, as a whole.
    pub fn check_abandoned(&mut self) {
        self.worker.expect_progress();
        let epochs = pinned::visible_epochs(&self.sandbox);
        let states: Vec<_> = epochs.iter().map(|epoch| self.oracle.at(Lsn::from(*epoch)).clone()).collect();
        assert!(!states.is_empty(), "links and a complete generation stay when the agent is gone");
        for destination in world::destinations() {
            for outcome in self.worker.probe(destination, PROBES).into_keys() {
                let allowed = states.iter().any(|state| state.expected(destination).allows(&outcome));
                assert!(allowed, "{destination} at epochs {epochs:?}: {outcome:?}");
            }
        }
        // While links are being switched to a new generation, either may decide.
        if let [state] = &states[..] {
            let state = state.clone();
            self.check_balance(|destination| state.expected(destination));
        }
    }

    /// Checks that a start has written what its tables show, and gone on with none. A random state may be one that needs no
    /// entry, or only the node's, which no table counts.
    pub fn check_rebuilt(ready: &Status) {
        let written = ready.restart.entries_rewritten;
        if ready.tables.iter().any(|table| table.used > 0) {
            assert!(written > 0, "{ready:#?}");
        } else {
            let node = ready.resources.iter().any(|(kind, count)| *kind == Kind::Node && *count > 0);
            assert!(written <= u64::from(node), "{ready:#?}");
        }
    }

    /// Checks an agent that has come back, pushes again what was in doubt, and checks once more.
    pub fn check_recovered(&mut self, agent: &Agent, ready: &Status) {
        self.worker.expect_progress();
        self.oracle.check_durable(ready.durable_lsn);
        let was_durable = ready.durable_lsn > self.oracle.acknowledged();
        if let Some(duplicate) = self.push_in_doubt(agent).expect("an agent that is not killed answers") {
            assert_eq!(duplicate, was_durable, "a version is taken once");
        }
        let status = agent.wait_applied(self.oracle.acknowledged());
        assert_eq!(status.durable_lsn, self.oracle.acknowledged(), "nothing is there that was not pushed");
        let wanted: Vec<_> = self.oracle.latest().resources().cloned().collect();
        let served = agent.resources();
        assert!(served == wanted, "the agent has {served:#?}, pushed was {wanted:#?}");
        self.check_destinations();
    }

    /// Pushes again what was not acknowledged, as a control plane does after a reconnect: whether it had been taken before,
    /// if there was anything in doubt.
    pub fn push_in_doubt(&mut self, agent: &Agent) -> Result<Option<bool>, ClientError> {
        let Some(in_doubt) = self.oracle.in_doubt().cloned() else { return Ok(None) };
        let receipt = agent.apply(&in_doubt, Level::Durable)?;
        self.oracle.acknowledge(receipt.lsn);
        Ok(Some(receipt.duplicate))
    }

    /// Checks new connections to every destination against the latest state, which must be visible.
    pub fn check_destinations(&mut self) {
        for destination in world::destinations() {
            let expected = self.oracle.latest().expected(destination);
            for outcome in self.worker.probe(destination, PROBES).into_keys() {
                assert!(expected.allows(&outcome), "{destination}: {outcome:?}, not {expected:?}");
            }
        }
        let state = self.oracle.latest().clone();
        self.check_balance(|destination| state.expected(destination));
    }

    /// Compares journal and pinned tables with the oracle. No agent may run.
    pub fn check_pinned(&self) {
        pinned::check(&self.sandbox, &self.oracle);
    }

    /// From here on nothing counts as pushed: the journal was taken away.
    pub fn forget_everything(&mut self) {
        self.oracle = Oracle::new();
    }

    /// From here on what counts is what an earlier oracle knew: the journal was replaced by an earlier copy.
    pub fn restore(&mut self, earlier: Oracle) {
        self.oracle = earlier;
    }

    /// Ends the live connections and checks that nothing ever happened to them.
    pub fn finish(self) {
        let traffic = self.worker.finish();
        assert!(traffic.is_intact(), "live connections were harmed: {traffic:#?}");
        eprintln!(
            "{} live connections: {} frames, {} bytes, 0 resets, 0 bytes lost or altered; {} records",
            traffic.connections,
            traffic.frames,
            traffic.bytes,
            self.oracle.transactions().len()
        );
    }

    /// Takes note of a transaction that somebody else has pushed.
    pub fn note_pushed(&mut self, transaction: &Transaction, lsn: Lsn) {
        self.oracle.pushing(transaction);
        self.oracle.acknowledge(lsn);
    }

    /// Connects to every destination, over and over, while `busy` says so: each connection must lead where the latest state
    /// allows. Returns how many connections that were.
    pub fn connect_while(&mut self, mut busy: impl FnMut() -> bool) -> u32 {
        let mut connections = 0;
        while busy() {
            for destination in world::destinations() {
                let expected = self.oracle.latest().expected(destination);
                for (outcome, count) in self.worker.probe(destination, PROBES) {
                    assert!(expected.allows(&outcome), "{destination}: {outcome:?}, not {expected:?}");
                    connections += count;
                }
            }
        }
        self.worker.expect_progress();
        connections
    }

    /// Whether the agent took it. If it did not, it must be dead or dying.
    fn push(&mut self, agent: &Agent, transaction: &Transaction) -> bool {
        self.oracle.pushing(transaction);
        match agent.apply(transaction, Level::Durable) {
            Ok(receipt) => {
                assert!(!receipt.duplicate, "it was pushed for the first time");
                self.oracle.acknowledge(receipt.lsn);
                true
            }
            Err(ClientError::Rejected(rejection)) => {
                panic!("a valid transaction was refused: {rejection}: {transaction:#?}")
            }
            Err(_) => false,
        }
    }

    /// One destination of each family that leads to several backends leads to every one of them.
    fn check_balance(&mut self, expected: impl Fn(SocketAddr) -> Expected) {
        for v4 in [true, false] {
            let several =
                world::destinations().filter(|destination| destination.is_ipv4() == v4).filter_map(
                    |d| match expected(d) {
                        Expected::OneOf(backends) if backends.len() > 1 => Some((d, backends)),
                        _ => None,
                    },
                );
            let Some((destination, backends)) = several.choose(&mut self.random) else { continue };
            let probes = PROBES_PER_BACKEND * u32::try_from(backends.len()).expect("the mesh is small");
            let outcomes: BTreeMap<Outcome, u32> = self.worker.probe(destination, probes);
            let wanted: Vec<Outcome> = backends.into_iter().map(Outcome::Reached).collect();
            let reached: Vec<Outcome> = outcomes.keys().cloned().collect();
            assert_eq!(reached, wanted, "{destination} is balanced over all its backends: {outcomes:?}");
        }
    }
}

/// A pause of a random length.
pub fn random_pause(random: &mut ChaCha8Rng, ms_max: u64) {
    std::thread::sleep(Duration::from_micros(random.random_range(0..=ms_max * 1000)));
}
