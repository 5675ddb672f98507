//! Settings of the API: where it is offered, to whom, and what clients may cost.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::{fs, io};

use api::access::tls::Files;
use api::access::{Rule, RuleError};
use api::client::Server;
use api::server::Limits;
use api::{MESSAGE_BYTES_MAX, WAIT_TIMEOUT_MAX};

use super::ConfigError;
use crate::cli::{ApiSettings, Remote};

const GROUPS: &str = "/etc/group";

/// How the API is offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// TCP, beside the unix socket.
    pub tcp: Option<Listen>,
    /// The number of the group that may open the unix socket.
    pub socket_gid: Option<u32>,
    /// Who may do what.
    pub rules: Vec<Rule>,
    /// What clients may cost.
    pub limits: Limits,
}

/// A TCP address, and what connections there need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The address.
    pub address: SocketAddr,
    /// The certificates; `None`: a loopback address without TLS.
    pub tls: Option<Files>,
}

impl Serving {
    pub(super) fn new(settings: ApiSettings) -> Result<Self, ConfigError> {
        let rule = |text: &String| text.parse().map_err(|error: RuleError| invalid("api.clients", error.to_string()));
        let rules = settings.clients.iter().flatten().map(rule).collect::<Result<Vec<Rule>, _>>()?;
        let socket_gid = settings.socket_group.as_deref().map(group).transpose()?;
        let limits = limits(&settings);
        validate(&limits)?;
        Ok(Self { tcp: listen(settings)?, socket_gid, rules, limits })
    }
}

fn invalid(setting: &'static str, reason: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { setting, reason: reason.into() }
}

fn limits(settings: &ApiSettings) -> Limits {
    let defaults = Limits::default();
    Limits {
        requests_max: settings.requests.unwrap_or(defaults.requests_max),
        requests_per_client_max: settings.requests_per_client.unwrap_or(defaults.requests_per_client_max),
        requests_per_second_max: settings.requests_per_second.unwrap_or(defaults.requests_per_second_max),
        streams_max: settings.streams.unwrap_or(defaults.streams_max),
        streams_per_client_max: settings.streams_per_client.unwrap_or(defaults.streams_per_client_max),
        readers_max: settings.readers.unwrap_or(defaults.readers_max),
        readers_per_client_max: settings.readers_per_client.unwrap_or(defaults.readers_per_client_max),
        push_streams_max: settings.push_streams.unwrap_or(defaults.push_streams_max),
        push_streams_per_client_max: settings.push_streams_per_client.unwrap_or(defaults.push_streams_per_client_max),
        connections_max: settings.connections.unwrap_or(defaults.connections_max),
        connections_per_client_max: settings.connections_per_client.unwrap_or(defaults.connections_per_client_max),
        request_bytes_max: settings.request_bytes.unwrap_or(defaults.request_bytes_max),
        request_bytes_per_client_max: settings
            .request_bytes_per_client
            .unwrap_or(defaults.request_bytes_per_client_max),
        request_timeout: settings.request_timeout.unwrap_or(defaults.request_timeout),
    }
}

/// The most of anything: what a semaphore can count on every machine.
const COUNT_MAX: usize = 1 << 28;

fn validate(limits: &Limits) -> Result<(), ConfigError> {
    let pairs = [
        ("api.requests_per_client", limits.requests_per_client_max, limits.requests_max),
        ("api.streams_per_client", limits.streams_per_client_max, limits.streams_max),
        ("api.readers_per_client", limits.readers_per_client_max, limits.readers_max),
        ("api.push_streams_per_client", limits.push_streams_per_client_max, limits.push_streams_max),
        ("api.connections_per_client", limits.connections_per_client_max, limits.connections_max),
    ];
    for (setting, own, all) in pairs {
        if !(1..=all.min(COUNT_MAX)).contains(&own) {
            return Err(invalid(
                setting,
                format!("must be 1 to {}, what all clients may have, not {own}", all.min(COUNT_MAX)),
            ));
        }
    }
    let (own, all) = (limits.request_bytes_per_client_max, limits.request_bytes_max.min(u32::MAX as usize));
    if !(MESSAGE_BYTES_MAX..=all).contains(&own) {
        let reason =
            format!("must be {MESSAGE_BYTES_MAX}, the largest message, to {all}, what all clients may have, not {own}");
        return Err(invalid("api.request_bytes_per_client", reason));
    }
    if limits.requests_per_second_max == 0 {
        return Err(invalid("api.requests_per_second", "must be at least 1"));
    }
    if limits.request_timeout <= WAIT_TIMEOUT_MAX {
        let given = humantime::format_duration(limits.request_timeout);
        return Err(invalid(
            "api.request_timeout",
            format!("must be longer than 1m, what a push may wait, not {given}"),
        ));
    }
    Ok(())
}

fn listen(settings: ApiSettings) -> Result<Option<Listen>, ConfigError> {
    let ApiSettings { listen, tls_cert, tls_key, tls_client_ca, insecure_loopback, .. } = settings;
    let tls = [tls_cert, tls_key, tls_client_ca];
    let some_tls = tls.iter().any(Option::is_some);
    let Some(address) = listen else {
        return if some_tls {
            Err(invalid("api.listen", "certificates are given, and no address to listen on"))
        } else {
            Ok(None)
        };
    };
    let insecure = insecure_loopback.unwrap_or(false);
    let tls = match tls {
        [Some(_), Some(_), Some(_)] if insecure => {
            return Err(invalid("api.insecure_loopback", "certificates are given: it is one or the other"));
        }
        [Some(certificate), Some(key), Some(authorities)] => {
            for (setting, path) in
                [("api.tls_cert", &certificate), ("api.tls_key", &key), ("api.tls_client_ca", &authorities)]
            {
                if !path.is_absolute() {
                    return Err(invalid(setting, format!("must be an absolute path, not `{}`", path.display())));
                }
            }
            Some(Files { certificate, key, authorities })
        }
        _ if some_tls => return Err(invalid("api.listen", "TLS needs all of tls_cert, tls_key and tls_client_ca")),
        _ if !insecure => {
            let reason =
                "TCP needs TLS: tls_cert, tls_key and tls_client_ca (or, at a loopback address, insecure_loopback)";
            return Err(invalid("api.listen", reason));
        }
        _ if !address.ip().is_loopback() => {
            return Err(invalid("api.listen", format!("{address} is not a loopback address: it needs TLS")));
        }
        _ => None,
    };
    Ok(Some(Listen { address, tls }))
}

/// The number of a group that is given by name or by number.
fn group(name: &str) -> Result<u32, ConfigError> {
    if let Ok(gid) = name.parse() {
        return Ok(gid);
    }
    let groups = fs::read_to_string(GROUPS)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(String::new()) } else { Err(error) })
        .map_err(|source| ConfigError::Read { path: GROUPS.into(), source })?;
    let gid = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() == Some(name) { fields.nth(1)?.parse().ok() } else { None }
    });
    gid.ok_or_else(|| invalid("api.socket_group", format!("there is no group `{name}` in {GROUPS}")))
}

/// The agent that a client command talks to. `socket` is asked for where there is no address.
pub(super) fn server(
    remote: &Remote,
    socket: impl FnOnce() -> Result<PathBuf, ConfigError>,
) -> Result<Server, ConfigError> {
    let Remote { server, tls_ca, tls_cert, tls_key } = remote.clone();
    let Some(url) = server else { return Ok(Server::Unix(socket()?)) };
    if url.starts_with("https://") {
        return match (tls_cert, tls_key, tls_ca) {
            (Some(certificate), Some(key), Some(authorities)) => {
                Ok(Server::Tls { url, files: Files { certificate, key, authorities } })
            }
            _ => Err(invalid("--server", "https needs all of --tls-ca, --tls-cert and --tls-key")),
        };
    }
    let host = url.strip_prefix("http://").and_then(|rest| rest.split('/').next());
    match host.and_then(|host| host.parse::<SocketAddr>().ok()) {
        Some(address) if address.ip().is_loopback() => Ok(Server::Loopback { url }),
        _ => Err(invalid(
            "--server",
            format!("`{url}` is neither https://host:port nor http:// and a loopback address with its port"),
        )),
    }
}
