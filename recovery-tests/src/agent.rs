//! The `holdfast` binary as a process, and what can be done to it.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use api::client::{Client, ClientError};
use api::journal::RecordsQuery;
use api::status::Status;
use api::{Level, Receipt};
use rustix::process::{Pid, Signal, kill_process};
use storage_schema::id::Lsn;
use storage_schema::map::Capacities;
use storage_schema::record::{Record, Transaction};
use storage_schema::resource::{Kind, Resource};
use tokio::runtime::Runtime;
use tokio_stream::StreamExt as _;

use crate::sandbox::{Process, Sandbox};

/// Tables that are large enough for [`crate::world`], and quick to make.
pub const SMALL: Capacities = Capacities { frontends: 256, services: 128, backends: 256, endpoints: 512 };

/// How long an agent may take to get ready, or to end. Only a hanging one takes that long.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Tables in the kernel or in memory.
    pub kernel: bool,
    /// Room in the tables.
    pub capacities: Capacities,
    /// Settings of the journal, as flags.
    pub journal: &'static [&'static str],
    /// Further flags.
    pub flags: Vec<String>,
    /// Where it is to die, and how many times it passes there before.
    pub failpoint: Option<(&'static str, u64)>,
    /// Where it is held up, and for how many milliseconds.
    pub pause: Option<(&'static str, u64)>,
    /// What it logs, as a tracing filter.
    pub log: &'static str,
    /// A capability that it does not get, as `setpriv(1)` writes it.
    pub lacks: Option<&'static str>,
}

impl Default for Settings {
    fn default() -> Self {
        let flags = Vec::new();
        Self {
            kernel: true,
            capacities: SMALL,
            journal: &[],
            flags,
            failpoint: None,
            pause: None,
            log: "info",
            lacks: None,
        }
    }
}

/// A running agent. Dropping it kills it; if the test panics, its log is printed.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    socket: PathBuf,
    log: PathBuf,
    runtime: Runtime,
}

/// Why an agent did not get ready.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it said.
    pub log: String,
}

impl Ended {
    /// Whether it was killed, and did not give up by itself.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(Signal::KILL.as_raw())
    }
}

impl Agent {
    /// Starts one; see [`Agent::wait_ready`].
    ///
    /// # Panics
    /// If the binary cannot be started.
    pub fn spawn(sandbox: &Sandbox, settings: &Settings) -> Self {
        let log = sandbox.directory().join("agent.log");
        let file = File::options().create(true).append(true).open(&log).expect("the log can be written");
        let mut command = Self::command(sandbox, settings);
        let output = file.try_clone().expect("a file's descriptor can be copied");
        command.stdin(Stdio::null()).stdout(output).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {}: {error}", binary().display()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        Self { process: Process(child), socket: sandbox.socket(), log, runtime }
    }

    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready.
    pub fn start(sandbox: &Sandbox, settings: &Settings) -> Self {
        let mut agent = Self::spawn(sandbox, settings);
        if let Err(ended) = agent.wait_ready() {
            panic!("the agent did not get ready: {}", ended.status);
        }
        agent
    }

    /// The command that runs an agent in a sandbox.
    pub fn command(sandbox: &Sandbox, settings: &Settings) -> Command {
        let mut command = match settings.lacks {
            None => holdfast(sandbox),
            Some(capability) => {
                let mut command = Command::new("setpriv");
                command.arg(format!("--bounding-set=-{capability}")).arg("--").arg(binary());
                with_socket(command, sandbox)
            }
        };
        let Capacities { frontends, services, backends, endpoints } = settings.capacities;
        command.arg("agent").arg("--state-dir").arg(sandbox.state_dir()).env("HOLDFAST_LOG", settings.log);
        for (table, entries) in
            [("frontends", frontends), ("services", services), ("backends", backends), ("endpoints", endpoints)]
        {
            command.arg(format!("--capacity-{table}")).arg(entries.to_string());
        }
        if settings.kernel {
            let cgroup = sandbox.cgroup().expect("a kernel datapath wants a whole sandbox");
            command.arg("--pin-root").arg(sandbox.pin_root()).arg("--cgroup").arg(cgroup);
        } else {
            command.args(["--datapath", "memory"]);
        }
        command.args(settings.journal).args(&settings.flags);
        let armed = settings.failpoint.map(|(name, skip)| format!("{name}={skip}"));
        let paused = settings.pause.map(|(name, milliseconds)| format!("{name}=pause:{milliseconds}"));
        let places: Vec<String> = armed.into_iter().chain(paused).collect();
        command.env("HOLDFAST_FAILPOINTS", places.join(","));
        command
    }

    /// Waits until it answers, has loaded its state, and shows everything that is durable; `Err` if it ends before that.
    ///
    /// # Panics
    /// If it does neither for a minute.
    pub fn wait_ready(&mut self) -> Result<Status, Ended> {
        self.wait_for(|status| !status.loading && status.applied_lsn == status.durable_lsn)
    }

    /// Waits until it answers; `Err` if it ends before that.
    ///
    /// # Panics
    /// If it does neither for a minute.
    pub fn wait_serving(&mut self) -> Result<Status, Ended> {
        self.wait_for(|_| true)
    }

    fn wait_for(&mut self, is_so: impl Fn(&Status) -> bool) -> Result<Status, Ended> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(status) = self.process.0.try_wait().expect("a child can be waited for") {
                return Err(Ended { status, log: self.log() });
            }
            match self.try_status() {
                Ok(status) if is_so(&status) => return Ok(status),
                last => assert!(Instant::now() < deadline, "the agent is not ready: {last:?}"),
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Its condition.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn status(&self) -> Status {
        self.try_status().expect("the agent answers")
    }

    /// Its condition, if it answers.
    pub fn try_status(&self) -> Result<Status, ClientError> {
        self.call(async |client| client.status().await)
    }

    /// Pushes a transaction.
    pub fn apply(&self, transaction: &Transaction, wait: Level) -> Result<Receipt, ClientError> {
        self.call(async |client| client.apply(transaction, wait, Duration::from_secs(30)).await)
    }

    /// All resources, in the order of kind and name.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn resources(&self) -> Vec<Resource> {
        let all = self.call(async |client| {
            let mut all = Vec::new();
            for kind in Kind::ALL {
                all.extend(client.list(kind).await?.into_iter().map(|stored| stored.resource));
            }
            Ok(all)
        });
        all.expect("the agent answers")
    }

    /// The records that a source has pushed, in order.
    ///
    /// # Panics
    /// If it does not answer, or with what is no record.
    pub fn records_of(&self, source: &str) -> Vec<Record> {
        let query = RecordsQuery { source: Some(source.to_owned()), ..RecordsQuery::default() };
        let records = self.call(async |client| {
            let mut batches = Box::pin(client.records(&query).await?);
            let mut records = Vec::new();
            while let Some(batch) = batches.next().await {
                records.extend(batch?.iter().map(|record| record.decode().expect("it is readable")));
            }
            Ok(records)
        });
        records.expect("the agent answers")
    }

    /// Waits until a record is applied.
    ///
    /// # Panics
    /// If that does not happen within a minute.
    pub fn wait_applied(&self, lsn: Lsn) -> Status {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let status = self.status();
            if status.applied_lsn >= lsn {
                return status;
            }
            assert!(Instant::now() < deadline, "record {lsn} is not applied: {status:#?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Has it compare its tables with the journal.
    pub fn verify_tables(&self) -> Result<api::proto::VerifyTablesResponse, ClientError> {
        self.call(async |client| client.verify_tables().await)
    }

    /// Kills it after a while, from a thread. Wait for the thread before waiting for the agent's end.
    pub fn kill_after(&self, life: Duration) -> thread::JoinHandle<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id is a positive int");
        thread::spawn(move || {
            thread::sleep(life);
            kill_process(pid, Signal::KILL).expect("it is not waited for before");
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What it has logged, and those before it in this sandbox.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("no log: {error}"))
    }

    /// `kill -9`.
    ///
    /// # Panics
    /// If it had ended by itself before.
    pub fn kill(mut self) {
        let child = &mut self.process.0;
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            panic!("the agent ended by itself: {status}");
        }
        child.kill().expect("a child may be killed");
        child.wait().expect("a child can be waited for");
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(mut self) -> ExitStatus {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a process id is a positive int");
        kill_process(pid, Signal::TERM).expect("a child may be told to stop");
        self.wait_end().expect("it stops when it is told to")
    }

    /// Waits until it has ended; `None` if it does not.
    pub fn wait_end(&mut self) -> Option<ExitStatus> {
        wait(&mut self.process.0, TIMEOUT)
    }

    /// Waits until it has ended, for a while.
    pub fn wait_end_for(&mut self, timeout: Duration) -> Option<ExitStatus> {
        wait(&mut self.process.0, timeout)
    }

    fn call<T>(&self, request: impl AsyncFnOnce(&Client) -> Result<T, ClientError>) -> Result<T, ClientError> {
        self.runtime.block_on(async {
            let client = Client::connect(&self.socket).await?;
            request(&client).await
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- the agent's log ----\n{}----", self.log());
        }
    }
}

/// The `holdfast` binary, with a sandbox's socket.
pub fn holdfast(sandbox: &Sandbox) -> Command {
    with_socket(Command::new(binary()), sandbox)
}

fn with_socket(mut command: Command, sandbox: &Sandbox) -> Command {
    for (variable, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HOLDFAST_")) {
        command.env_remove(variable);
    }
    command.arg("--socket").arg(sandbox.socket());
    command
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started or does not end.
pub fn run(mut command: Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = Process(child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")));
    let output = [
        process.0.stdout.take().map(read_on_a_thread).expect("it is piped"),
        process.0.stderr.take().map(read_on_a_thread).expect("it is piped"),
    ];
    let status = wait(&mut process.0, TIMEOUT).unwrap_or_else(|| panic!("{command:?} does not end"));
    let [stdout, stderr] = output.map(|thread| thread.join().expect("reading does not panic"));
    Output { status, stdout, stderr }
}

fn read_on_a_thread(mut from: impl io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        from.read_to_end(&mut all).expect("a pipe can be read");
        all
    })
}

fn wait(child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + timeout;
    loop {
        match child.try_wait().expect("a child can be waited for") {
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            ended => return ended,
        }
    }
}

/// `HOLDFAST_BIN`, or what the same build has made.
fn binary() -> PathBuf {
    if let Some(path) = env::var_os("HOLDFAST_BIN") {
        return path.into();
    }
    let own = env::current_exe().expect("a process knows its binary");
    let built = own.ancestors().skip(1).take(2).map(|directory| directory.join("holdfast")).find(|path| path.exists());
    built.unwrap_or_else(|| {
        let here = own.parent().unwrap_or(Path::new("/"));
        panic!("no `holdfast` near {}: build it (`make test` does) or set HOLDFAST_BIN", here.display())
    })
}
