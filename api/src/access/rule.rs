//! Who may do what: rules, as they stand in the settings.
//!
//! A rule is one line of two or three words:
//!
//! ```text
//! uid:1000                              read
//! gid:987                               read,push  cli
//! socket                                read
//! spiffe://example.org/ns/mesh/istiod   push,read  istiod
//! dns:control.example.org               push       *
//! spiffe://example.org/ns/ops/*         read,admin
//! ```
//!
//! The first says who: a user or (primary) group of this machine at the unix socket; `socket` for everybody whom the kernel
//! lets open it, as the members of its group; or a name in the certificate that the other end has shown. `/*` at the end of a URI stands for everything below it. The second has the roles. The third, which
//! `push` asks for, has the sources that may be pushed as, `*` for any. Rules add up; what no rule allows is refused.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// What a caller may do. Roles are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Change state, as one of the sources that are the caller's.
    Push,
    /// Read state, status and journal.
    Read,
    /// Keep journal and tables: checkpoints, compaction, snapshots, verification, new generations.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Push, Self::Read, Self::Admin];

    /// Its name in rules and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or(())
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// A user of this machine.
    Uid(u32),
    /// A primary group of this machine.
    Gid(u32),
    /// Everybody who can open the unix socket.
    Socket,
    /// A DNS name in a certificate, in lower case.
    Dns(String),
    /// A URI in a certificate.
    Uri(String),
    /// Every URI in a certificate that begins with this, which ends in a slash.
    UrisBelow(String),
}

/// Which sources may be pushed as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Any.
    All,
    /// These; none if it is empty.
    Only(BTreeSet<String>),
}

impl Sources {
    /// Whether this one may be.
    pub fn has(&self, source: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(source),
        }
    }

    pub(super) fn add(&mut self, more: &Self) {
        match (&mut *self, more) {
            (Self::Only(names), Self::Only(more)) => names.extend(more.iter().cloned()),
            (_, Self::All) => *self = Self::All,
            (Self::All, Self::Only(_)) => {}
        }
    }
}

impl Default for Sources {
    fn default() -> Self {
        Self::Only(BTreeSet::new())
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whom it is about.
    pub who: Who,
    /// What they may do.
    pub roles: BTreeSet<Role>,
    /// Which sources they may push as.
    pub sources: Sources,
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It has too few or too many words.
    #[error("`{0}` is not a rule: WHO ROLES [SOURCES], as in `uid:1000 push,read cli`")]
    Words(String),
    /// It is about nobody.
    #[error(
        "`{0}` is nobody: uid:N, gid:N, socket, dns:NAME, or a URI as in spiffe://example.org/istiod or spiffe://example.org/ns/*"
    )]
    Who(String),
    /// A role is unknown.
    #[error("`{0}` is not a role: push, read or admin")]
    Role(String),
    /// `push` without sources, or sources without `push`.
    #[error("`{0}`: sources go with the role push, and push with sources (`*` for any)")]
    Sources(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (who, roles, sources) = match words[..] {
            [who, roles] => (who, roles, None),
            [who, roles, sources] => (who, roles, Some(sources)),
            _ => return Err(RuleError::Words(text.to_owned())),
        };
        let who = who.parse()?;
        let roles = roles
            .split(',')
            .map(|role| role.parse().map_err(|()| RuleError::Role(role.to_owned())))
            .collect::<Result<BTreeSet<Role>, _>>()?;
        if roles.contains(&Role::Push) != sources.is_some() {
            return Err(RuleError::Sources(text.to_owned()));
        }
        let sources = match sources {
            None => Sources::default(),
            Some("*") => Sources::All,
            Some(names) if names.split(',').any(str::is_empty) => return Err(RuleError::Sources(text.to_owned())),
            Some(names) => Sources::Only(names.split(',').map(str::to_owned).collect()),
        };
        Ok(Self { who, roles, sources })
    }
}

impl FromStr for Who {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let nobody = || RuleError::Who(text.to_owned());
        if text == "socket" {
            return Ok(Self::Socket);
        }
        let (scheme, rest) = text.split_once(':').filter(|(_, rest)| !rest.is_empty()).ok_or_else(nobody)?;
        match scheme {
            "uid" => rest.parse().map(Self::Uid).map_err(|_| nobody()),
            "gid" => rest.parse().map(Self::Gid).map_err(|_| nobody()),
            "dns" if !rest.contains(['*', '/', ':']) => Ok(Self::Dns(rest.to_ascii_lowercase())),
            "dns" => Err(nobody()),
            _ => match rest.strip_prefix("//") {
                Some(path) if !path.is_empty() => match text.strip_suffix("/*") {
                    // The whole of a trust domain is the least that a pattern may stand for.
                    Some(above) if !above.contains('*') && above.len() > scheme.len() + 3 => {
                        Ok(Self::UrisBelow(format!("{above}/")))
                    }
                    None if !text.contains('*') => Ok(Self::Uri(text.to_owned())),
                    _ => Err(nobody()),
                },
                _ => Err(nobody()),
            },
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "uid:{uid}"),
            Self::Gid(gid) => write!(f, "gid:{gid}"),
            Self::Socket => f.write_str("socket"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Uri(uri) => f.write_str(uri),
            Self::UrisBelow(above) => write!(f, "{above}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> RuleError {
        text.parse::<Rule>().expect_err(text)
    }

    #[test]
    fn rules_are_read() {
        let rule: Rule = "  spiffe://example.org/istiod  push,read\tistiod,mesh ".parse().unwrap();
        assert_eq!(rule.who, Who::Uri("spiffe://example.org/istiod".to_owned()));
        assert_eq!(rule.roles, [Role::Push, Role::Read].into());
        assert_eq!(rule.sources, Sources::Only(["istiod".to_owned(), "mesh".to_owned()].into()));
        let who = |text: &str| format!("{text} read").parse::<Rule>().unwrap().who;
        assert_eq!(who("uid:0"), Who::Uid(0));
        assert_eq!(who("gid:4294967295"), Who::Gid(u32::MAX));
        assert_eq!(who("dns:Control.example.ORG"), Who::Dns("control.example.org".to_owned()));
        assert_eq!(who("spiffe://td/*"), Who::UrisBelow("spiffe://td/".to_owned()));
        for text in ["uid:7", "gid:8", "socket", "dns:a.b", "spiffe://td/x", "spiffe://td/x/*"] {
            assert_eq!(who(text).to_string(), text);
        }
        assert_eq!("uid:1 push *".parse::<Rule>().unwrap().sources, Sources::All);
    }

    #[test]
    fn what_is_no_rule_says_why() {
        for text in ["", "uid:1", "uid:1 push a b"] {
            assert!(matches!(wrong(text), RuleError::Words(_)), "{text}");
        }
        for who in [
            "root",
            "uid:",
            "uid:-1",
            "uid:x",
            "dns:*.example.org",
            "spiffe:x",
            "spiffe://",
            "spiffe:///*",
            "spiffe://*",
            "spiffe://a*b",
            "spiffe://a/*/*",
        ] {
            assert!(matches!(wrong(&format!("{who} read")), RuleError::Who(_)), "{who}");
        }
        assert!(matches!(wrong("uid:1 write"), RuleError::Role(_)));
        assert!(matches!(wrong("uid:1 read,"), RuleError::Role(_)));
        for text in ["uid:1 push", "uid:1 read cli", "uid:1 push a,,b", "uid:1 push ,"] {
            assert!(matches!(wrong(text), RuleError::Sources(_)), "{text}");
        }
    }
}
