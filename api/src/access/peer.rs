//! The other end of a connection: where it is, who it is, and what that one may do.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use tonic::{Code, Extensions, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::method::Need;
use super::rule::{Role, Rule, Sources, Who};
use crate::layers::Client;
use crate::rejection::DOMAIN;

/// Where a connection comes from, and what vouches for that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The unix socket, and what the kernel noted of the process when it connected.
    Unix {
        /// Its user.
        uid: u32,
        /// Its primary group.
        gid: u32,
        /// Its number then; it may be another process by now, or gone.
        pid: Option<i32>,
    },
    /// TCP with TLS, and the names in the client's certificate.
    Tls {
        /// Its address.
        address: SocketAddr,
        /// DNS names, in lower case.
        dns: Vec<String>,
        /// URIs; SPIFFE identities are such.
        uris: Vec<String>,
    },
    /// TCP without TLS from this machine: anybody on it.
    Loopback {
        /// Its address.
        address: SocketAddr,
    },
}

/// Who calls, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Whom the limits are counted for, and what messages call them: `uid:0`, `spiffe://example.org/istiod`.
    pub name: String,
    /// What they may do; empty: the agent does not know them.
    pub roles: BTreeSet<Role>,
    /// Which sources they may push as.
    pub sources: Sources,
}

/// The other end of a connection; each request has it among its extensions.
#[derive(Clone, Debug)]
pub struct Peer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    origin: Origin,
    caller: Caller,
    client: Arc<Client>,
}

impl Peer {
    pub(super) fn new(origin: Origin, caller: Caller, client: Arc<Client>) -> Self {
        Self(Arc::new(Inner { origin, caller, client }))
    }

    /// The one who sent a request; `None` for a request that came past the server's own listeners.
    pub fn of(request: &Extensions) -> Option<Self> {
        request.get::<Self>().cloned()
    }

    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.0.caller
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.0.client
    }
}

/// What the journal notes of a record's client: `uid=0 gid=0 pid=4711`, `spiffe://example.org/istiod address=10.0.0.7:4711`.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.origin {
            Origin::Unix { uid, gid, pid } => {
                write!(f, "uid={uid} gid={gid}")?;
                pid.map_or(Ok(()), |pid| write!(f, " pid={pid}"))
            }
            Origin::Tls { address, .. } => write!(f, "{} address={address}", self.0.caller.name),
            Origin::Loopback { address } => write!(f, "loopback address={address}"),
        }
    }
}

impl Origin {
    fn is(&self, who: &Who) -> bool {
        match (self, who) {
            (Self::Unix { uid, .. }, Who::Uid(meant)) => uid == meant,
            (Self::Unix { gid, .. }, Who::Gid(meant)) => gid == meant,
            (Self::Unix { .. }, Who::Socket) => true,
            (Self::Tls { dns, .. }, Who::Dns(meant)) => dns.contains(meant),
            (Self::Tls { uris, .. }, Who::Uri(meant)) => uris.contains(meant),
            (Self::Tls { uris, .. }, Who::UrisBelow(above)) => {
                uris.iter().any(|uri| uri.len() > above.len() && uri.starts_with(above.as_str()))
            }
            _ => false,
        }
    }

    /// The name that stands for it: of several in a certificate the first, URIs before DNS names.
    fn name(&self) -> String {
        match self {
            Self::Unix { uid, .. } => format!("uid:{uid}"),
            Self::Tls { address, dns, uris } => match (uris.first(), dns.first()) {
                (Some(uri), _) => uri.clone(),
                (None, Some(name)) => format!("dns:{name}"),
                (None, None) => format!("nameless:{}", address.ip()),
            },
            Self::Loopback { .. } => "loopback".to_owned(),
        }
    }
}

impl Caller {
    /// What the rules say of one who comes from there. `own_uid` is the agent's.
    pub fn new(origin: &Origin, rules: &[Rule], own_uid: u32) -> Self {
        let mut caller = Self { name: origin.name(), roles: BTreeSet::new(), sources: Sources::default() };
        let unrestricted = match origin {
            Origin::Unix { uid, .. } => *uid == 0 || *uid == own_uid,
            Origin::Tls { .. } => false,
            Origin::Loopback { .. } => true,
        };
        if unrestricted {
            caller.roles = Role::ALL.into();
            caller.sources = Sources::All;
        }
        for rule in rules.iter().filter(|rule| origin.is(&rule.who)) {
            caller.roles.extend(&rule.roles);
            caller.sources.add(&rule.sources);
        }
        caller
    }

    /// Refuses a call that needs more than the caller has.
    pub(crate) fn check(&self, need: Need) -> Result<(), Status> {
        let missing = match need {
            _ if self.roles.is_empty() => format!("{} is nobody that the agent's settings know", self.name),
            Need::Role(role) if !self.roles.contains(&role) => {
                format!("{} has not the role {}", self.name, role.as_str())
            }
            Need::Known | Need::Role(_) => return Ok(()),
        };
        Err(denied(missing, "NOT_ALLOWED"))
    }

    /// Refuses a push as a source that is not the caller's.
    pub fn check_source(&self, source: &str) -> Result<(), Status> {
        if self.sources.has(source) {
            return Ok(());
        }
        let source = &source[..source.floor_char_boundary(100)];
        Err(denied(format!("{} may not push as the source `{source}`", self.name), "NOT_ITS_SOURCE"))
    }
}

/// Refuses a push as a source that is not the caller's, and notes the source in the call's span.
pub fn check_source(peer: Option<&Peer>, source: &str) -> Result<(), Status> {
    tracing::Span::current().record("source", source);
    match peer {
        Some(peer) => peer.caller().check_source(source),
        None => Err(denied("nobody vouches for this request".to_owned(), "NOT_ALLOWED")),
    }
}

fn denied(message: String, reason: &str) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, DOMAIN, std::collections::HashMap::new());
    Status::with_error_details(Code::PermissionDenied, message, details)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: u32 = 500;

    fn caller(origin: &Origin, rules: &[&str]) -> Caller {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Caller::new(origin, &rules, OWN)
    }

    fn unix(uid: u32, gid: u32) -> Origin {
        Origin::Unix { uid, gid, pid: Some(1) }
    }

    fn tls(dns: &[&str], uris: &[&str]) -> Origin {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Origin::Tls { address: ([10, 0, 0, 1], 1).into(), dns: owned(dns), uris: owned(uris) }
    }

    fn may(caller: &Caller) -> Vec<Role> {
        Role::ALL.into_iter().filter(|role| caller.check(Need::Role(*role)).is_ok()).collect()
    }

    #[test]
    fn root_and_the_agent_s_own_user_need_no_rule_and_others_do() {
        assert_eq!(may(&caller(&unix(0, 0), &[])), Role::ALL);
        assert_eq!(may(&caller(&unix(OWN, 7), &["uid:500 read"])), Role::ALL);
        let stranger = caller(&unix(501, 7), &["uid:502 read", "gid:8 read", "dns:x read"]);
        assert_eq!(may(&stranger), []);
        assert_eq!(stranger.check(Need::Known).unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn rules_add_up() {
        let both = caller(&unix(501, 7), &["uid:501 push a", "gid:7 push,read b"]);
        assert_eq!(may(&both), [Role::Push, Role::Read]);
        assert!(both.check_source("a").is_ok() && both.check_source("b").is_ok());
        let refused = both.check_source("c").unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert_eq!(refused.message(), "uid:501 may not push as the source `c`");
        assert_eq!(both.check(Need::Role(Role::Admin)).unwrap_err().message(), "uid:501 has not the role admin");
    }

    #[test]
    fn names_of_certificates_are_matched_whole_or_below_a_path() {
        let rules = ["spiffe://td/ns/ops/* read", "spiffe://td/istiod push istiod", "dns:cp.example.org admin"];
        assert_eq!(may(&caller(&tls(&[], &["spiffe://td/ns/ops/anna"]), &rules)), [Role::Read]);
        assert_eq!(may(&caller(&tls(&["cp.example.org"], &["spiffe://td/istiod"]), &rules)), [Role::Push, Role::Admin]);
        for uri in ["spiffe://td/ns/ops", "spiffe://td/ns/ops/", "spiffe://td/ns/opsx/a", "spiffe://td/istiod2"] {
            assert_eq!(may(&caller(&tls(&["xcp.example.org"], &[uri]), &rules)), [], "{uri}");
        }
        assert_eq!(may(&caller(&tls(&[], &[]), &["uid:0 read"])), []);
    }
}
