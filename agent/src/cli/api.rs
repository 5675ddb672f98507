//! Settings of the API as they are typed, at the agent and at its clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::duration;

/// Where and to whom the agent offers its API, and what clients may cost.
#[derive(Args, Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiSettings {
    /// Serve the API over TCP as well, at this address, with certificates at both ends [default: nowhere].
    #[arg(long = "api-listen", env = "HOLDFAST_API_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// The agent's certificate (PEM), and those between it and the authority. Read again when it changes.
    #[arg(long = "api-tls-cert", env = "HOLDFAST_API_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long = "api-tls-key", env = "HOLDFAST_API_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The authorities that clients' certificates come from (PEM).
    #[arg(long = "api-tls-client-ca", env = "HOLDFAST_API_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,
    /// Do without TLS at a loopback address: anybody on this machine may then do everything.
    #[arg(long = "insecure-loopback", env = "HOLDFAST_INSECURE_LOOPBACK", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub insecure_loopback: Option<bool>,
    /// Let this group open the unix socket (mode 0660): a name in /etc/group, or a number [default: mode 0600].
    #[arg(long = "api-socket-group", env = "HOLDFAST_API_SOCKET_GROUP", value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Who may do what, beside root and the agent's own user: `WHO ROLES [SOURCES]`, as in `uid:1000 read`, `socket read`,
    /// `spiffe://example.org/istiod push,read istiod`; may be given more than once, in the environment with `;` between.
    #[arg(long = "api-client", env = "HOLDFAST_API_CLIENTS", value_name = "RULE", value_delimiter = ';')]
    pub clients: Option<Vec<String>>,
    /// Requests in flight, of all clients [default: 1024].
    #[arg(long = "api-requests", env = "HOLDFAST_API_REQUESTS", value_name = "N")]
    pub requests: Option<usize>,
    /// And of one [default: 512].
    #[arg(long = "api-requests-per-client", env = "HOLDFAST_API_REQUESTS_PER_CLIENT", value_name = "N")]
    pub requests_per_client: Option<usize>,
    /// Calls that one client may begin in a second [default: 20000].
    #[arg(long = "api-requests-per-second", env = "HOLDFAST_API_REQUESTS_PER_SECOND", value_name = "N")]
    pub requests_per_second: Option<u32>,
    /// Streams that are open, of all clients [default: 8192].
    #[arg(long = "api-streams", env = "HOLDFAST_API_STREAMS", value_name = "N")]
    pub streams: Option<usize>,
    /// And of one [default: 6144].
    #[arg(long = "api-streams-per-client", env = "HOLDFAST_API_STREAMS_PER_CLIENT", value_name = "N")]
    pub streams_per_client: Option<usize>,
    /// Streams that read the journal, each with a thread, of all clients [default: 64].
    #[arg(long = "api-readers", env = "HOLDFAST_API_READERS", value_name = "N")]
    pub readers: Option<usize>,
    /// And of one [default: 48].
    #[arg(long = "api-readers-per-client", env = "HOLDFAST_API_READERS_PER_CLIENT", value_name = "N")]
    pub readers_per_client: Option<usize>,
    /// Push streams, of all clients [default: 256].
    #[arg(long = "api-push-streams", env = "HOLDFAST_API_PUSH_STREAMS", value_name = "N")]
    pub push_streams: Option<usize>,
    /// And of one [default: 192].
    #[arg(long = "api-push-streams-per-client", env = "HOLDFAST_API_PUSH_STREAMS_PER_CLIENT", value_name = "N")]
    pub push_streams_per_client: Option<usize>,
    /// Connections, of all clients [default: 1024].
    #[arg(long = "api-connections", env = "HOLDFAST_API_CONNECTIONS", value_name = "N")]
    pub connections: Option<usize>,
    /// And of one [default: 256].
    #[arg(long = "api-connections-per-client", env = "HOLDFAST_API_CONNECTIONS_PER_CLIENT", value_name = "N")]
    pub connections_per_client: Option<usize>,
    /// Bytes of requests that are being read or answered, of all clients [default: 256 MiB].
    #[arg(long = "api-request-bytes", env = "HOLDFAST_API_REQUEST_BYTES", value_name = "BYTES")]
    pub request_bytes: Option<usize>,
    /// And of one [default: 64 MiB].
    #[arg(long = "api-request-bytes-per-client", env = "HOLDFAST_API_REQUEST_BYTES_PER_CLIENT", value_name = "BYTES")]
    pub request_bytes_per_client: Option<usize>,
    /// How long a call may take, of a stream until its answer begins [default: 70s].
    #[arg(long = "api-request-timeout", env = "HOLDFAST_API_REQUEST_TIMEOUT", value_name = "TIME", value_parser = humantime::parse_duration)]
    #[serde(default, deserialize_with = "duration")]
    pub request_timeout: Option<Duration>,
}

/// An agent that is not at a unix socket of this machine.
#[derive(Args, Clone, Debug, Default)]
pub struct Remote {
    /// The agent's address instead of its socket: https://host:port, or http://127.0.0.1:port without TLS.
    #[arg(long, global = true, env = "HOLDFAST_SERVER", value_name = "URL", conflicts_with = "socket")]
    pub server: Option<String>,
    /// The authorities that the agent's certificate comes from (PEM).
    #[arg(long, global = true, env = "HOLDFAST_TLS_CA", value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The certificate to show to the agent (PEM).
    #[arg(long, global = true, env = "HOLDFAST_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, global = true, env = "HOLDFAST_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
}
