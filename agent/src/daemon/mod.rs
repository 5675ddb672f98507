//! The daemon: opens the journal, starts the applier over the tables, serves the API; and stops without a trace on any
//! connection.
//!
//! The order of the start is the order of what may go wrong without harm: the socket (is another agent here?), this
//! machine (may we, and is there what we need?), the journal (is it ours and whole?), and only then the kernel's tables. A stop is the same in reverse; pins and links stay.

mod backend;
mod metrics;
mod rejection;
mod streams;

use std::future::Future;
use std::io::{self, IsTerminal as _};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::server::{Limits, serve};
use api::socket::Socket;
use applier::{Options, Pipeline, Target};
use journal::Journal;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use self::backend::Node;
use crate::cli::{Datapath, LogFormat};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::host::{self, MountTable};

/// How long a stop waits for requests in flight. Waits for `applied` are cut off; their transactions are durable.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs the agent until it is told to stop. `started` is when the process began.
pub fn run(config: &Config, started: Instant) -> Result<(), Failure> {
    init_logging(config);
    #[cfg(feature = "failpoints")]
    crate::failpoints::arm()?;
    let socket = Socket::bind(&config.socket)?;
    let target = target(config)?;
    let journal = open_journal(config)?;
    let options =
        Options { target: target.clone(), limits: config.capacities, verify_interval: config.verify_interval };
    let pipeline = Pipeline::start(journal.clone(), options)?;
    let ready_after = started.elapsed();
    let node = Arc::new(Node::new(journal, pipeline, &target, config.journal().retention, ready_after));
    let runtime =
        Runtime::new().map_err(|error| Failure::new(Exit::Failure, format!("cannot start a runtime: {error}")))?;
    let outcome = runtime.block_on(serve_until_stopped(Arc::clone(&node), socket, config));
    // First the requests that are left, then the applier, then the journal: each flushes what it was given.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(node);
    tracing::info!("stopped; what is pinned stays and balances on");
    outcome
}

fn open_journal(config: &Config) -> Result<Journal, Failure> {
    let journal = Journal::open(config.journal())?;
    let report = journal.open_report();
    tracing::info!(
        store = %journal.store_id(),
        created = report.created,
        durable_lsn = %report.durable_lsn,
        cut_bytes = report.cut_bytes,
        folded = report.folded,
        "the journal is open"
    );
    if let Some(reason) = &report.store_rebuilt {
        tracing::warn!(reason, "the derived store was rebuilt from the journal");
    }
    Ok(journal)
}

fn target(config: &Config) -> Result<Target, Failure> {
    if config.datapath == Datapath::Memory {
        return Ok(Target::Memory);
    }
    host::require_privileges()?;
    let mounts = MountTable::read()?;
    let cgroup = host::cgroup(config.cgroup.as_deref(), &mounts)?;
    if host::ensure_bpffs(&config.pin_root, &mounts)? {
        tracing::info!("mounted a BPF file system on {}", host::BPFFS);
    }
    Ok(Target::Kernel(loader::Options { pin_root: config.pin_root.clone(), cgroup }))
}

async fn serve_until_stopped(node: Arc<Node>, socket: Socket, config: &Config) -> Result<(), Failure> {
    let stop_signal = stop_signal()?;
    let (stop, mut stopped) = tokio::sync::watch::channel(());
    let server = serve(Arc::clone(&node), socket, Limits::default(), async move {
        // The sender goes away, or sends: either way it is over.
        drop(stopped.changed().await);
    });
    tokio::pin!(server);
    let resuming = tokio::spawn(Arc::clone(&node).resume_whenever_refused());
    if let Some(address) = config.metrics {
        metrics::serve(address, Arc::clone(&node))?;
    }
    node.report_ready(config);
    notify_ready();
    tokio::select! {
        ended = &mut server => return ended.map_err(|error| Failure::new(Exit::Failure, error)),
        error = node.applier_stopped() => {
            return Err(Failure::new(Exit::Failure, format!("{error}: start the agent again; what is pinned balances on")));
        }
        name = stop_signal => tracing::info!("{name}: stopping"),
    }
    resuming.abort();
    drop(stop);
    match tokio::time::timeout(STOP_TIMEOUT, server).await {
        Ok(ended) => ended.map_err(|error| Failure::new(Exit::Failure, error)),
        Err(_) => {
            tracing::info!("requests that still wait are cut off; what was acknowledged is durable");
            Ok(())
        }
    }
}

fn stop_signal() -> Result<impl Future<Output = &'static str>, Failure> {
    let listen =
        |kind| signal(kind).map_err(|error| Failure::new(Exit::Failure, format!("cannot listen for signals: {error}")));
    let mut terminate = listen(SignalKind::terminate())?;
    let mut interrupt = listen(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

fn init_logging(config: &Config) {
    let filter = EnvFilter::new(&config.log_filter);
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => logging.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => logging.json().init(),
    }
}

/// Tells a service manager that asked for it (`sd_notify(3)`); nobody asking is the usual case.
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the service manager that the agent is ready");
    }
}
