//! Opening: from a directory to a log, a proven store, and threads that work.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::thread;

use tokio::sync::watch;

use super::{Inner, Journal, OpenReport, Threads};
use crate::append::{Intake, LogEnd};
use crate::clock::boot_id;
use crate::config::Config;
use crate::durable::{Durable, Head};
use crate::error::OpenError;
use crate::follow::{Bell, Follower, Stored};
use crate::gate::Gate;
use crate::keep::Keeper;
use crate::lock::{Lock, establish_identity, lock_state_dir};
use crate::read::Library;
use crate::segment::open::{LogConfig, OpenLog, open_log};
use crate::shelf::{Opened, Shelf};
use crate::sources::Sources;
use crate::stats::Activity;
use crate::store::{Store, StoredResource};
use crate::writer::{Preparer, Writer};

impl Journal {
    /// Opens the journal, creating it if it is not there: takes the lock, recovers the log, proves the store.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        Self::open_showing(config, |_| {})
    }

    /// [`Journal::open`], showing every stored resource on the way. To prove the store takes a visit to each of its entries
    /// anyway, and whoever needs them all has them by the time the journal is open.
    ///
    /// What was shown is the state at [`OpenReport::shown_lsn`]; without that it is nothing, as the store was not whole.
    pub fn open_showing(config: Config, mut show: impl FnMut(StoredResource<'_>) + Send) -> Result<Self, OpenError> {
        config.validate()?;
        let lock = lock_state_dir(&config.state_dir)?;
        let dir = config.state_dir.join("journal");
        config.disk.create_dir(&dir).map_err(io_error("create", &dir))?;
        let store_id = establish_identity(&config, &dir)?;
        let gate = Arc::new(Gate::default());
        let mut shelf = Shelf::new(&config, store_id, Arc::clone(&gate));
        let (found, log) = shelf.find(|| {
            open_log(&LogConfig {
                disk: Arc::clone(&config.disk),
                dir: dir.clone(),
                store_id,
                segment_bytes: config.segment_bytes,
                clock: Arc::clone(&config.clock),
            })
        });
        let log = log?;
        config.disk.sync_dir(&config.state_dir).map_err(io_error("sync", &config.state_dir))?;

        let (durable_tx, durable) = watch::channel(Durable::vouch(log.head));
        let library =
            Library { disk: Arc::clone(&config.disk), store_id, catalogue: Arc::clone(&log.catalogue), durable };
        let Opened { rebuilt, shown_lsn, folded, behind } = shelf.open(found, &library, &mut show)?;
        let mut sources = Sources::new(shelf.with(Store::sources)?);
        sources.follow(behind.sources);
        let lost = rebuilt.as_ref().and_then(|rebuilt| rebuilt.ahead_lsn);
        if let Some(lost) = lost {
            tracing::error!(
                durable_lsn = log.head.lsn.0,
                lost_lsn = lost.0,
                "acknowledged records are missing from the log"
            );
        }
        let report = OpenReport {
            created: log.created,
            oldest_lsn: log.catalogue.oldest_lsn(),
            durable_lsn: log.head.lsn,
            cut_bytes: log.cut_bytes,
            folded: folded + behind.records,
            store_rebuilt: rebuilt.map(|rebuilt| rebuilt.reason),
            shown_lsn,
            lost,
        };
        let durable_tx = Arc::new(durable_tx);
        let running = Running { library, shelf, sources, behind_bytes: behind.bytes, gate, durable_tx, report, lock };
        let inner = start(config, dir, log, running)?;
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// What opening has found.
struct Running {
    library: Library,
    shelf: Shelf,
    sources: Sources,
    /// Bytes of the records that the store is to be brought up to date with.
    behind_bytes: u64,
    gate: Arc<Gate>,
    durable_tx: Arc<watch::Sender<Durable<Head>>>,
    report: OpenReport,
    lock: Lock,
}

fn start(config: Config, dir: PathBuf, log: OpenLog, running: Running) -> Result<Inner, OpenError> {
    let Running { library, shelf, sources, behind_bytes, gate, durable_tx, report, lock } = running;
    let shelf = Arc::new(shelf);
    let bell = Arc::new(Bell::default());
    let (stored_tx, stored) = watch::channel(Stored { lsn: shelf.head(), bytes: 0, stuck: None });
    let end = LogEnd::from(&log);
    let intake = Intake::new(&config, &end, boot_id(), sources, stored.clone(), behind_bytes, Arc::clone(&gate));
    let intake = Arc::new(intake);
    let keeper = Arc::new(Keeper {
        library: library.clone(),
        shelf: Arc::clone(&shelf),
        gate: Arc::clone(&gate),
        segments_dir: dir.clone(),
        clock: Arc::clone(&config.clock),
        policy: config.checkpoint,
        retention: config.retention,
        segment_bytes: config.segment_bytes,
        stored: stored.clone(),
        busy: Mutex::new(()),
        closing: Default::default(),
    });
    let activity = Arc::new(Activity::default());
    let preparer = Preparer::start(Arc::clone(&config.disk), dir, config.segment_bytes)
        .map_err(io_error("start a thread for", &config.state_dir))?;
    let writer = Writer {
        intake: Arc::clone(&intake),
        segments: log.writer,
        durable: Arc::clone(&durable_tx),
        stored: stored.clone(),
        bell: Arc::clone(&bell),
        gate: Arc::clone(&gate),
        preparer,
        activity: Arc::clone(&activity),
    };
    let follower =
        Follower { library: library.clone(), shelf: Arc::clone(&shelf), bell: Arc::clone(&bell), stored: stored_tx };
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
        spawned.map_err(io_error("start a thread for", &config.state_dir))
    };
    let writer = spawn("journal-write", Box::new(move || writer.run()))?;
    let (begun, has_begun) = mpsc::channel();
    let follower = spawn("journal-follow", in_background(move || follower.run(|| drop(begun))))?;
    let keeping = Arc::clone(&keeper);
    let keeping = spawn("journal-keep", in_background(move || keeping.run()))?;
    // Nobody sees the store before the follower has it: it may be behind, or between two states.
    let _: Result<(), mpsc::RecvError> = has_begun.recv();
    let threads = Threads { writer: Some(writer), follower: Some(follower), keeper: Some(keeping) };
    let threads = Mutex::new(threads);
    let (intake, durable) = (RwLock::new(intake), durable_tx);
    Ok(Inner {
        config,
        report,
        intake,
        durable,
        library,
        shelf,
        bell,
        gate,
        stored,
        keeper,
        activity,
        threads,
        _lock: lock,
    })
}

/// Work that yields to whoever waits for an ack, but not so much that a busy machine starves it: pushes wait for a store that is
/// far behind.
fn in_background(work: impl FnOnce() + Send + 'static) -> Box<dyn FnOnce() + Send> {
    const NICENESS: i32 = 5;
    Box::new(move || {
        // On Linux this is the calling thread's own. Without it everything works, only less smoothly.
        let _ = rustix::process::setpriority_process(None, NICENESS);
        work();
    })
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OpenError + use<'a> {
    move |source| OpenError::Io { action, path: path.to_owned(), source }
}
