//! Simulated power cuts and disk errors: the log against a model, at every operation, repeatable by seed.
//!
//! One run is a sequence of lives. A life opens the log, compares it with the model, and appends groups until the disk fails.
//! Checked after every opening:
//! * `ACKED_IS_THERE`: every acknowledged record is in the log, with the bytes it was acknowledged with;
//! * `NOTHING_HALF`: what is in the log beyond that is a prefix of what was submitted, each record whole;
//! * `CHAIN`: each record holds its predecessor's hash;
//! * `REOPEN_IS_STABLE`: a second opening finds the same.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use storage_schema::id::{BootId, Lsn, RecordHash, StoreId};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Resource, Service};
use tokio::sync::watch;

use crate::append::{Intake, LogEnd};
use crate::config::Config;
use crate::disk::simulated::{Faults, SimulatedDisk};
use crate::durable::{Durable, Head};
use crate::error::OpenError;
use crate::follow::Stored;
use crate::read::Library;
use crate::segment::open::{LogConfig, OpenLog, open_log};
use crate::sources::Sources;

const STORE: StoreId = StoreId([5; 16]);

struct Simulation {
    disk: SimulatedDisk,
    config: Config,
    random: ChaCha8Rng,
    /// Hash of record `index + 1`, of all that are known to be in the log.
    log: Vec<RecordHash>,
    acked_lsn: Lsn,
    /// Hashes of what was submitted in this life beyond `log`.
    submitted: Vec<RecordHash>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let disk = SimulatedDisk::new(seed);
        let config = Config {
            segment_bytes: 64 << 10,
            group_bytes_max: 20 << 10,
            disk: Arc::new(disk.clone()),
            ..Config::new("/state")
        };
        let random = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
        Self { disk, config, random, log: Vec::new(), acked_lsn: Lsn::ZERO, submitted: Vec::new() }
    }

    /// Opens the log and checks it against the model. `None` if the disk failed meanwhile.
    fn open(&mut self) -> Option<OpenLog> {
        let config = LogConfig {
            disk: Arc::clone(&self.config.disk),
            dir: PathBuf::from("/state/journal"),
            store_id: STORE,
            segment_bytes: self.config.segment_bytes,
            clock: Arc::clone(&self.config.clock),
        };
        let log = match open_log(&config) {
            Ok(log) => log,
            Err(OpenError::Io { .. }) => return None,
            Err(error) => panic!("a log that only lost power was refused: {error}"),
        };
        self.check(&log);
        Some(log)
    }

    fn check(&mut self, log: &OpenLog) {
        let head = log.head;
        assert!(
            head.lsn >= self.acked_lsn,
            "ACKED_IS_THERE: {} acknowledged, the log ends at {}",
            self.acked_lsn,
            head.lsn
        );
        self.log.append(&mut self.submitted);
        let length = usize::try_from(head.lsn.0).unwrap();
        assert!(length <= self.log.len(), "NOTHING_HALF: record {} was never submitted", head.lsn);
        self.log.truncate(length);
        let (_sender, durable) = watch::channel(Durable::vouch(head));
        let library = Library {
            disk: Arc::clone(&self.config.disk),
            store_id: STORE,
            catalogue: Arc::clone(&log.catalogue),
            durable,
        };
        let mut records = library.read_from(Lsn::FIRST).unwrap();
        let mut previous = Head::EMPTY;
        for expected in &self.log {
            let record = records.next_encoded().expect("up to the head").expect("readable").into_inner();
            assert_eq!(record.hash(), *expected, "ACKED_IS_THERE, NOTHING_HALF: record {}", record.lsn);
            let decoded = record.decode().unwrap();
            assert_eq!((decoded.lsn, decoded.previous_hash), (previous.lsn.next(), previous.hash), "CHAIN");
            previous = Head { lsn: record.lsn, hash: *expected };
        }
        assert!(records.next_encoded().is_none());
        assert_eq!(previous, head, "CHAIN");
        // What recovery has accepted is durable from now on.
        self.acked_lsn = head.lsn;
    }

    /// One life: opens and appends `groups` groups, until the disk fails. Returns whether it did not.
    fn live(&mut self, groups: usize) -> bool {
        let Some(log) = self.open() else { return false };
        let (_stored_tx, stored) = watch::channel(Stored { lsn: Lsn::ZERO, bytes: 0, stuck: None });
        let intake = Arc::new(Intake::new(
            &self.config,
            &LogEnd::from(&log),
            BootId::default(),
            Sources::default(),
            stored,
            0,
            Arc::default(),
        ));
        let mut writer = log.writer;
        for _ in 0..groups {
            for _ in 0..self.random.random_range(1..6) {
                let transaction = self.transaction();
                let submitted = intake.try_reserve().unwrap().submit(transaction).unwrap();
                self.submitted.push(submitted.ack.hash());
            }
            while intake.queued_groups() > 0 {
                let queued = intake.next_group().expect("one is queued");
                if let Err(failure) = writer.write(&queued.group, None) {
                    intake.give_up(&queued, failure);
                    return false;
                }
                self.acked_lsn = queued.group.last_lsn;
                intake.acknowledge(&queued);
            }
        }
        true
    }

    fn transaction(&mut self) -> Transaction {
        // Mostly small, sometimes larger than several sectors, now and then more than a segment.
        let bytes = match self.random.random_range(0..40) {
            0 => self.random.random_range(60_000..90_000),
            1..10 => self.random.random_range(2_000..9_000),
            _ => self.random.random_range(0..600),
        };
        let service = Service { name: "shop/cart".to_owned(), hostname: "h".repeat(bytes), ..Service::default() };
        let origin = Origin { source: "simulation".to_owned(), incarnation: 1, version: None };
        Transaction::push(origin, vec![Delta::Upsert(Resource::Service(service))])
    }
}

const GROUPS: usize = 25;

/// How many operations a life without faults takes.
fn operations(seed: u64) -> u64 {
    let mut simulation = Simulation::new(seed);
    assert!(simulation.live(GROUPS));
    simulation.disk.operations()
}

/// Cuts the power at `cut_at`, and again and again at random places while the log recovers.
fn cut_power(seed: u64, cut_at: u64) {
    let mut simulation = Simulation::new(seed);
    simulation.disk.set_faults(Faults { power_cut_at: Some(cut_at), ..Faults::default() });
    simulation.live(GROUPS);
    for life in 0..4 {
        simulation.disk.power_cycle();
        let cut_at = simulation.disk.operations() + simulation.random.random_range(0..8 << (2 * life));
        simulation.disk.set_faults(Faults { power_cut_at: Some(cut_at), ..Faults::default() });
        simulation.live(4);
    }
    simulation.disk.power_cycle();
    let head = simulation.open().expect("no faults any more").head;
    assert_eq!(simulation.open().expect("no faults any more").head, head, "REOPEN_IS_STABLE");
    assert!(simulation.live(3));
}

/// Fails operation `at` with EIO; then opens the log as a restarted process would, with and without a power cut.
fn fail_once(seed: u64, at: u64, then_cut: bool) {
    let mut simulation = Simulation::new(seed);
    simulation.disk.set_faults(Faults { eio_at: BTreeSet::from([at]), ..Faults::default() });
    if simulation.live(GROUPS) {
        // The operation was one that cannot fail this way.
        return;
    }
    let recovered = simulation.open().expect("the fault is over").head;
    if then_cut {
        simulation.disk.power_cycle();
        assert_eq!(simulation.open().expect("the fault is over").head, recovered, "what was accepted stays");
    }
    assert!(simulation.live(3));
}

#[test]
fn power_cuts_at_every_operation() {
    let mut cuts = 0;
    for seed in 0..9 {
        let operations = operations(seed);
        for cut_at in 0..operations {
            let run = std::panic::catch_unwind(|| cut_power(seed, cut_at));
            if let Err(panic) = run {
                eprintln!("failed at cut_power({seed}, {cut_at}): paste it into a test to see it again");
                std::panic::resume_unwind(panic);
            }
            cuts += 5;
        }
    }
    assert!(cuts >= 4_000, "{cuts} power cuts are too few to mean anything");
}

#[test]
fn disk_errors_at_every_operation() {
    for seed in 100..103 {
        for at in 0..operations(seed) {
            for then_cut in [false, true] {
                let run = std::panic::catch_unwind(|| fail_once(seed, at, then_cut));
                if let Err(panic) = run {
                    eprintln!("failed at fail_once({seed}, {at}, {then_cut}): paste it into a test to see it again");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

/// The simulation would notice: with syncs that do nothing it finds acknowledged records lost.
#[test]
fn a_disk_that_lies_is_found_out() {
    let found_out = (0..20).any(|seed| {
        std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed);
            simulation.live(2);
            simulation.disk.set_faults(Faults { lying_sync: true, ..Faults::default() });
            simulation.live(10);
            simulation.disk.power_cycle();
            simulation.open();
        })
        .is_err()
    });
    assert!(found_out);
}

/// Acknowledged records that are damaged later are never passed over in silence: opening refuses and names the first one, or
/// the damage is in a closed segment and reading says so. Only the last group cannot be told from a torn write.
#[test]
fn flipped_bits_are_found() {
    for seed in 0..300 {
        let mut simulation = Simulation::new(seed);
        assert!(simulation.live(GROUPS));
        let log = simulation.open().unwrap();
        let segments = log.catalogue.all();
        let segment = &segments[simulation.random.random_range(0..segments.len())];
        let last = segment.first_lsn == log.catalogue.last().first_lsn;
        let bit = simulation.random.random_range(0..segment.end() * 8);
        simulation.disk.flip(&segment.path, bit);
        let config = LogConfig {
            disk: Arc::clone(&simulation.config.disk),
            dir: PathBuf::from("/state/journal"),
            store_id: STORE,
            segment_bytes: simulation.config.segment_bytes,
            clock: Arc::clone(&simulation.config.clock),
        };
        match open_log(&config) {
            Err(OpenError::Damaged { path, .. }) => assert_eq!(path, segment.path),
            Err(other) => panic!("seed {seed}: {other}"),
            Ok(log) if last => {
                let group = simulation.log.len() as u64 - log.head.lsn.0;
                assert!(group < 6, "seed {seed}: {group} records vanished");
            }
            Ok(log) => {
                let (_sender, durable) = watch::channel(Durable::vouch(log.head));
                let library = Library { disk: config.disk, store_id: STORE, catalogue: log.catalogue, durable };
                let mut records = library.read_from(Lsn::FIRST).unwrap();
                let failed = std::iter::from_fn(|| records.next_encoded()).find_map(Result::err);
                assert!(failed.is_some(), "seed {seed}: a flipped bit went unnoticed");
            }
        }
    }
}
