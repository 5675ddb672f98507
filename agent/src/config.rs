//! Settings: from arguments as typed to a validated [`Config`], before anything is opened.
//!
//! For each setting the first of these that says something holds: the flag, the environment (`HOLDFAST_*`), the
//! settings file, the default. A file that is named must be there; the default one may be missing. A key that is not
//! known is refused, because a misspelt setting that is silently ignored is found on the worst day.

mod serving;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use api::client::Server;
use journal::{CheckpointPolicy, Retention};
use serde::Deserialize;
use storage_schema::map::{Capacities, Enrolment};
use tracing_subscriber::EnvFilter;

pub use self::serving::{Listen, Serving};
use crate::cli::{AgentArgs, ApiSettings, Common, Datapath, JournalSettings, LogFormat, Managed, Places};

/// Read if it is there and no other file is named.
pub const CONFIG_FILE: &str = "/etc/holdfast/agent.toml";

const STATE_DIR: &str = "/var/lib/holdfast";
const PIN_ROOT: &str = "/sys/fs/bpf/holdfast";
const SOCKET: &str = "/run/holdfast/holdfast.sock";
const LOG_FILTER: &str = "info";
/// A comparison reads the journal's whole state: not all the time.
const VERIFY_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The entries that one table may have at most: one map of this many 64-byte cells takes 4 GiB.
const CAPACITY_MAX: u32 = 1 << 26;

/// Validated settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Directory of the journal.
    pub state_dir: PathBuf,
    /// Directory for the pins.
    pub pin_root: PathBuf,
    /// The cgroup whose processes are balanced; `None`: the root of the cgroup v2 mount, wherever that is.
    pub cgroup: Option<PathBuf>,
    /// The agent's socket.
    pub socket: PathBuf,
    /// Which processes in the cgroup are managed.
    pub managed: Managed,
    /// Cgroups whose processes are not.
    pub exempt_cgroups: Vec<PathBuf>,
    /// Where the tables are.
    pub datapath: Datapath,
    /// The most entries that are admitted to the tables.
    pub capacities: Capacities,
    /// How often the tables are compared with the journal.
    pub verify_interval: Duration,
    /// Where metrics are served for Prometheus; `None`: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How the API is offered.
    pub api: Serving,
    /// How the journal is written and kept.
    pub journal: Journaling,
    /// What to log.
    pub log_filter: String,
    /// How to log.
    pub log_format: LogFormat,
}

/// How the journal is written and kept; the fields are those of [`journal::Config`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are documented there")]
pub struct Journaling {
    pub segment_bytes: u64,
    pub group_bytes_max: usize,
    pub group_wait: Duration,
    pub checkpoint: CheckpointPolicy,
    pub retention: Retention,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings file cannot be read.
    #[error("cannot read the settings file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The settings file has no meaning.
    #[error("{}:{line}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A setting has a value that cannot be used.
    #[error("{setting}: {reason}")]
    Invalid {
        /// The setting, as the file spells it.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

/// The settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: Option<PathBuf>,
    pin_root: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    socket: Option<PathBuf>,
    datapath: Option<Datapath>,
    managed: Option<Managed>,
    exempt_cgroups: Option<Vec<PathBuf>>,
    #[serde(default, deserialize_with = "crate::cli::duration")]
    verify_interval: Option<Duration>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    capacities: FileCapacities,
    #[serde(default)]
    api: ApiSettings,
    #[serde(default)]
    journal: JournalSettings,
    #[serde(default)]
    log: FileLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCapacities {
    services: Option<u32>,
    frontends: Option<u32>,
    backends: Option<u32>,
    endpoints: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLog {
    filter: Option<String>,
    format: Option<LogFormat>,
}

impl Config {
    /// All settings, for the agent.
    pub fn for_agent(common: &Common, args: &AgentArgs) -> Result<Self, ConfigError> {
        let file = File::read(common)?;
        let places = args.places.clone();
        let defaults = Capacities::default();
        let room = |flag: Option<u32>, file: Option<u32>, default| flag.or(file).unwrap_or(default);
        let config = Self {
            state_dir: places.state_dir.or(file.state_dir).unwrap_or_else(|| STATE_DIR.into()),
            pin_root: places.pin_root.or(file.pin_root).unwrap_or_else(|| PIN_ROOT.into()),
            cgroup: places.cgroup.or(file.cgroup),
            managed: args.managed.or(file.managed).unwrap_or_default(),
            exempt_cgroups: args.exempt_cgroups.clone().or(file.exempt_cgroups).unwrap_or_default(),
            socket: common.socket.clone().or(file.socket).unwrap_or_else(|| SOCKET.into()),
            datapath: places.datapath.or(file.datapath).unwrap_or(Datapath::Kernel),
            capacities: Capacities {
                services: room(args.capacity_services, file.capacities.services, defaults.services),
                frontends: room(args.capacity_frontends, file.capacities.frontends, defaults.frontends),
                backends: room(args.capacity_backends, file.capacities.backends, defaults.backends),
                endpoints: room(args.capacity_endpoints, file.capacities.endpoints, defaults.endpoints),
            },
            verify_interval: args.verify_interval.or(file.verify_interval).unwrap_or(applier::Options::VERIFY_INTERVAL),
            metrics: args.metrics.or(file.metrics),
            api: Serving::new(args.api.clone().or(file.api))?,
            journal: Journaling::from(args.journal.clone().or(&file.journal)),
            log_filter: args.log.clone().or(file.log.filter).unwrap_or_else(|| LOG_FILTER.to_owned()),
            log_format: args.log_format.or(file.log.format).unwrap_or(LogFormat::Text),
        };
        config.validate()?;
        Ok(config)
    }

    /// The settings of commands that look at the agent's places.
    pub fn for_places(common: &Common, places: &Places) -> Result<Self, ConfigError> {
        Self::for_agent(common, &AgentArgs { places: places.clone(), ..AgentArgs::default() })
    }

    /// How the journal is opened.
    pub fn journal(&self) -> journal::Config {
        let Journaling { segment_bytes, group_bytes_max, group_wait, checkpoint, retention } = self.journal;
        let defaults = journal::Config::new(&self.state_dir);
        journal::Config { segment_bytes, group_bytes_max, group_wait, checkpoint, retention, ..defaults }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |setting, reason: String| Err(ConfigError::Invalid { setting, reason });
        let paths = [("state_dir", &self.state_dir), ("pin_root", &self.pin_root), ("socket", &self.socket)];
        let cgroups = self.cgroup.iter().map(|path| ("cgroup", path));
        let exempt = self.exempt_cgroups.iter().map(|path| ("exempt_cgroups", path));
        for (setting, path) in paths.into_iter().chain(cgroups).chain(exempt) {
            if !path.is_absolute() {
                return invalid(setting, format!("must be an absolute path, not `{}`", path.display()));
            }
        }
        let (exempt, most) = (self.exempt_cgroups.len(), Enrolment::EXEMPT_MAX);
        if exempt > most as usize {
            return invalid("exempt_cgroups", format!("there can be {most}, not {exempt}: exempt a cgroup above them"));
        }
        let Capacities { frontends, services, backends, endpoints } = self.capacities;
        let capacities = [
            ("capacities.services", services),
            ("capacities.frontends", frontends),
            ("capacities.backends", backends),
            ("capacities.endpoints", endpoints),
        ];
        for (setting, capacity) in capacities {
            if !(1..=CAPACITY_MAX).contains(&capacity) {
                return invalid(setting, format!("must be 1 to {CAPACITY_MAX}, not {capacity}"));
            }
        }
        if self.verify_interval < VERIFY_INTERVAL_MIN {
            let given = humantime::format_duration(self.verify_interval);
            return invalid("verify_interval", format!("must be at least 1s, not {given}"));
        }
        if let Some(address) = self.metrics.filter(|address| !address.ip().is_loopback()) {
            return invalid(
                "metrics",
                format!("{address} is not a loopback address, and metrics are served unencrypted"),
            );
        }
        if let Err(error) = EnvFilter::try_new(&self.log_filter) {
            return invalid("log.filter", format!("`{}` is not a log filter: {error}", self.log_filter));
        }
        Ok(())
    }
}

/// The socket of client commands, which need no other setting.
pub fn socket(common: &Common) -> Result<PathBuf, ConfigError> {
    match &common.socket {
        Some(socket) => Ok(socket.clone()),
        None => Ok(File::read(common)?.socket.unwrap_or_else(|| SOCKET.into())),
    }
}

/// The agent that a client command talks to.
pub fn server(common: &Common) -> Result<Server, ConfigError> {
    serving::server(&common.remote, || socket(common))
}

impl From<JournalSettings> for Journaling {
    fn from(settings: JournalSettings) -> Self {
        let defaults = journal::Config::new(STATE_DIR);
        let CheckpointPolicy { records, bytes } = defaults.checkpoint;
        Self {
            segment_bytes: settings.segment_bytes.unwrap_or(defaults.segment_bytes),
            group_bytes_max: settings.group_bytes.unwrap_or(defaults.group_bytes_max),
            group_wait: settings.group_wait.unwrap_or(defaults.group_wait),
            checkpoint: CheckpointPolicy {
                records: settings.checkpoint_records.unwrap_or(records),
                bytes: settings.checkpoint_bytes.unwrap_or(bytes),
            },
            retention: Retention {
                records: settings.keep_records.or(defaults.retention.records),
                bytes: settings.keep_bytes.or(defaults.retention.bytes),
                age: settings.keep_age.or(defaults.retention.age),
            },
        }
    }
}

impl ApiSettings {
    /// For each setting this one's value, or the other's.
    fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            tls_cert: self.tls_cert.or(other.tls_cert),
            tls_key: self.tls_key.or(other.tls_key),
            tls_client_ca: self.tls_client_ca.or(other.tls_client_ca),
            insecure_loopback: self.insecure_loopback.or(other.insecure_loopback),
            socket_group: self.socket_group.or(other.socket_group),
            clients: self.clients.or(other.clients),
            requests: self.requests.or(other.requests),
            requests_per_client: self.requests_per_client.or(other.requests_per_client),
            requests_per_second: self.requests_per_second.or(other.requests_per_second),
            streams: self.streams.or(other.streams),
            streams_per_client: self.streams_per_client.or(other.streams_per_client),
            readers: self.readers.or(other.readers),
            readers_per_client: self.readers_per_client.or(other.readers_per_client),
            push_streams: self.push_streams.or(other.push_streams),
            push_streams_per_client: self.push_streams_per_client.or(other.push_streams_per_client),
            connections: self.connections.or(other.connections),
            connections_per_client: self.connections_per_client.or(other.connections_per_client),
            request_bytes: self.request_bytes.or(other.request_bytes),
            request_bytes_per_client: self.request_bytes_per_client.or(other.request_bytes_per_client),
            request_timeout: self.request_timeout.or(other.request_timeout),
        }
    }
}

impl JournalSettings {
    /// For each setting this one's value, or the other's.
    fn or(self, other: &Self) -> Self {
        Self {
            segment_bytes: self.segment_bytes.or(other.segment_bytes),
            group_bytes: self.group_bytes.or(other.group_bytes),
            group_wait: self.group_wait.or(other.group_wait),
            checkpoint_records: self.checkpoint_records.or(other.checkpoint_records),
            checkpoint_bytes: self.checkpoint_bytes.or(other.checkpoint_bytes),
            keep_records: self.keep_records.or(other.keep_records),
            keep_bytes: self.keep_bytes.or(other.keep_bytes),
            keep_age: self.keep_age.or(other.keep_age),
        }
    }
}

impl File {
    fn read(common: &Common) -> Result<Self, ConfigError> {
        let path = common.config.as_deref().unwrap_or(Path::new(CONFIG_FILE));
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if common.config.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = text.get(..start).unwrap_or_default().matches('\n').count() + 1;
            ConfigError::Parse { path: path.to_owned(), line, message: error.message().replace('\n', ": ") }
        })
    }
}
