//! The daemon: opens the journal, starts the applier over the tables, serves the API; and stops without a trace on any
//! connection.
//!
//! The order of the start is the order of what may go wrong without harm: the socket (is another agent here?), this
//! machine (may we, and is there what we need?), the journal (is it ours and whole?), and only then the kernel's tables. A stop is the same in reverse; pins and links stay.

mod backend;
mod drain;
mod enrolment;
mod logging;
mod metrics;
mod rejection;
mod streams;
mod watch;

use std::future::Future;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::access::tls::Certificates;
use api::access::{Listeners, Security, Tcp};
use api::server::{Terms, serve};
use api::socket::Socket;
use applier::{Loader, Options, Pipeline, Target};
use journal::Journal;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use self::backend::Node;
use self::drain::Drainer;
use self::enrolment::Enrolment;
use self::logging::Logging;
use crate::cli::Datapath;
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::host::{self, MountTable};

/// How long a stop waits for requests in flight. Waits for `applied` are cut off; their transactions are durable.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The reference page of the metrics, `deploy/METRICS.md`.
pub fn metrics_reference() -> String {
    metrics::reference()
}

/// Runs the agent until it is told to stop. `started` is when the process began.
pub fn run(config: &Config, started: Instant) -> Result<(), Failure> {
    let logging = Logging::begin(config);
    #[cfg(feature = "failpoints")]
    crate::failpoints::arm()?;
    let listeners = listen(config)?;
    let target = target(config)?;
    // Before the first program runs: whoever is exempt is so from the first connection on.
    let enrolment = match &target {
        Target::Kernel(options) => Some(Enrolment::begin(config, options)?),
        Target::Memory => None,
    };
    let mut shown = Loader::new(0);
    let journal = open_journal(config, &mut shown)?;
    let options =
        Options { target: target.clone(), limits: config.capacities, verify_interval: config.verify_interval };
    let pipeline = Pipeline::start_shown(journal.clone(), Some(shown), options)?;
    let ready_after = started.elapsed();
    let node =
        Arc::new(Node::new(journal, pipeline, &target, enrolment, logging, config.journal().retention, ready_after));
    let drainer = match &target {
        Target::Kernel(options) => Some(drain(&node, options)?),
        Target::Memory => None,
    };
    let runtime =
        Runtime::new().map_err(|error| Failure::new(Exit::Failure, format!("cannot start a runtime: {error}")))?;
    let outcome = runtime.block_on(serve_until_stopped(Arc::clone(&node), listeners, config));
    // First the requests that are left, then the applier, then the journal: each flushes what it was given.
    runtime.shutdown_timeout(Duration::from_secs(1));
    drop(drainer);
    drop(node);
    tracing::info!("stopped; what is pinned stays and balances on");
    outcome
}

fn drain(node: &Arc<Node>, options: &loader::Options) -> Result<Drainer, Failure> {
    Drainer::start(Arc::clone(node), options.pin_root.clone())
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot start a thread: {error}")))
}

/// Takes the places where the API is offered. Nothing is served there yet.
fn listen(config: &Config) -> Result<Listeners, Failure> {
    let socket = Socket::bind(&config.socket)?;
    if let Some(gid) = config.api.socket_gid {
        socket.give_to_group(gid)?;
    }
    let Some(listen) = &config.api.tcp else { return Ok(socket.into()) };
    let security = match &listen.tls {
        Some(files) => Security::Mutual(Certificates::read(files.clone())?),
        None => Security::InsecureLoopback,
    };
    let tcp = Tcp::bind(listen.address, security)?;
    if let Ok(address) = tcp.address() {
        let tls = listen.tls.is_some();
        tracing::info!(%address, tls, "the API is offered over TCP");
    }
    Ok(Listeners { socket, tcp: Some(tcp) })
}

fn open_journal(config: &Config, shown: &mut Loader) -> Result<Journal, Failure> {
    let journal = Journal::open_showing(config.journal(), |stored| shown.add(&stored))?;
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

async fn serve_until_stopped(node: Arc<Node>, listeners: Listeners, config: &Config) -> Result<(), Failure> {
    let stop_signal = stop_signal()?;
    let (stop, mut stopped) = tokio::sync::watch::channel(());
    // Before the first call: what is told to a recorder that is not there yet is lost.
    if let Some(address) = config.metrics {
        metrics::serve(address, Arc::clone(&node))?;
    }
    let terms =
        Terms { limits: config.api.limits, rules: config.api.rules.clone(), observer: Arc::new(metrics::OfCalls) };
    let server = serve(Arc::clone(&node), listeners, terms, async move {
        // The sender goes away, or sends: either way it is over.
        drop(stopped.changed().await);
    });
    tokio::pin!(server);
    let resuming = tokio::spawn(Arc::clone(&node).resume_whenever_refused());
    let enrolling = node.enrolment().cloned().map(|enrolment| tokio::spawn(enrolment.keep()));
    node.report_ready(config);
    notify_ready();
    tokio::select! {
        ended = &mut server => return ended.map_err(|error| Failure::new(Exit::Failure, error)),
        failure = node.applier_stopped() => return Err(failure),
        name = stop_signal => tracing::info!("{name}: stopping"),
    }
    resuming.abort();
    if let Some(enrolling) = enrolling {
        enrolling.abort();
    }
    node.give_up();
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

/// Tells a service manager that asked for it (`sd_notify(3)`); nobody asking is the usual case.
fn notify_ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the service manager that the agent is ready");
    }
}
