//! Why a transaction was not accepted, and how that travels: as a gRPC status with google.rpc error details.
//!
//! | rejection | code | details |
//! |---|---|---|
//! | refused, `Invalid` | `INVALID_ARGUMENT` | `ErrorInfo`, `BadRequest`, `ResourceInfo` |
//! | owned by others | `FAILED_PRECONDITION` | the same; `ResourceInfo` names the owner |
//! | preconditions do not hold | `ABORTED` | `ErrorInfo`, `PreconditionFailure`, `ResourceInfo` |
//! | refused, `Conflict` or `Stale` | `FAILED_PRECONDITION` | the same |
//! | refused, `Capacity` | `RESOURCE_EXHAUSTED` | the same |
//! | busy | `RESOURCE_EXHAUSTED` | `ErrorInfo`, `RetryInfo` |
//! | unavailable | `UNAVAILABLE` | `ErrorInfo` |
//! | outcome unknown | `UNKNOWN` | `ErrorInfo` |
//!
//! `ErrorInfo` has the domain `holdfast` and a reason from [`Reason`]; that is what programs should look at.
//! Of preconditions, `PreconditionFailure` has a violation of the type `CHANGED_LSN` for each, whose subject is kind and name with a
//! space between; the metadata of `ErrorInfo` has `expected_lsn_0` and `actual_lsn_0` of the first, and so on. The code is that of a
//! failed test-and-set: read again, and decide again.
//! What is sent is bounded, as the details travel in a header: [`VIOLATIONS_MAX`] violations, each cut to
//! [`DESCRIPTION_BYTES_MAX`]; how many more there were is in `ErrorInfo`'s metadata as `more`.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use storage_schema::id::Lsn;
use storage_schema::precondition::Unmet;
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, ResourceKey};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, ErrorInfo, FieldViolation, PreconditionViolation, StatusExt as _};

/// The most violations that are reported at once.
pub const VIOLATIONS_MAX: usize = 8;
/// The most bytes of one description.
pub const DESCRIPTION_BYTES_MAX: usize = 256;

pub(crate) const DOMAIN: &str = "holdfast";
const MORE: &str = "more";

/// Why a transaction was not accepted. Unless said otherwise nothing was journaled and nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Something is wrong with the transaction itself. Pushed again it will be refused again.
    #[error("{violations}")]
    Refused {
        /// What kind of wrong.
        reason: Reason,
        /// What exactly.
        violations: Violations,
    },
    /// Resources belong to another source, and nothing was said about taking them over.
    #[error("{violations}")]
    Owned {
        /// Whose they are.
        owner: String,
        /// Which they are.
        violations: Violations,
    },
    /// Preconditions do not hold: somebody else was faster.
    #[error("{}{}", display_unmet(unmet), display_more(*more))]
    Unmet {
        /// The first of them.
        unmet: Vec<Unmet>,
        /// How many more there are.
        more: usize,
    },
    /// Too much is waiting to be written.
    #[error("the agent is busy: try again in {retry_after:?}")]
    Busy {
        /// When another attempt makes sense.
        retry_after: Duration,
    },
    /// The agent takes no transactions now.
    #[error("the agent takes no transactions: {cause}")]
    Unavailable {
        /// Why not.
        cause: String,
    },
    /// The journal failed while the transaction was being written: whether it is in there shows after a restart.
    #[error("it is not known whether the transaction was written: {cause}; push it again with the same version")]
    OutcomeUnknown {
        /// What failed.
        cause: String,
    },
}

/// What is wrong with a refused transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A field is malformed, whatever the state is.
    Invalid,
    /// It contradicts the state: a reference to nothing, an address that is taken.
    Conflict,
    /// A table would overflow.
    Capacity,
    /// The source has already pushed something newer.
    Stale,
}

impl Reason {
    const ALL: [Self; 4] = [Self::Invalid, Self::Conflict, Self::Capacity, Self::Stale];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Invalid => "INVALID",
            Self::Conflict => "CONFLICT",
            Self::Capacity => "CAPACITY",
            Self::Stale => "STALE",
        }
    }

    const fn code(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::Conflict | Self::Stale => Code::FailedPrecondition,
            Self::Capacity => Code::ResourceExhausted,
        }
    }
}

/// The reason of preconditions that do not hold.
pub(crate) const UNMET: &str = "PRECONDITION";
/// The type of a violated precondition, and where its two numbers are.
const CHANGED_LSN: &str = "CHANGED_LSN";
const EXPECTED_LSN: &str = "expected_lsn";
const ACTUAL_LSN: &str = "actual_lsn";
const OWNED: &str = "OWNED";
const BUSY: &str = "BUSY";
const UNAVAILABLE: &str = "UNAVAILABLE";
const OUTCOME_UNKNOWN: &str = "OUTCOME_UNKNOWN";

/// One thing that is wrong with a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where in the request: `transaction.deltas[2].upsert.service.ports[0].port`.
    pub path: String,
    /// The resource that is meant, if it is one that has a name. Only the first violation's is sent to the client.
    pub resource: Option<ResourceKey>,
    /// What is wrong: `must be 1 to 65535, not 0`.
    pub description: String,
}

/// What a delta changes and how: enough to say what is wrong with it after the delta itself was given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeltaName {
    /// The resource.
    pub resource: ResourceKey,
    /// Whether it is removed.
    pub is_removal: bool,
}

impl From<&Delta> for DeltaName {
    fn from(delta: &Delta) -> Self {
        Self { resource: delta.key(), is_removal: matches!(delta, Delta::Remove(_)) }
    }
}

impl Violation {
    /// Something wrong with the delta at `index`. `field` is a path within its resource (`ports[0].port`), or empty.
    pub fn of_delta(index: usize, delta: impl Into<DeltaName>, field: &str, description: impl Into<String>) -> Self {
        let DeltaName { resource, is_removal } = delta.into();
        let change = match resource.kind {
            _ if is_removal => "remove",
            Kind::Service => "upsert.service",
            Kind::Workload => "upsert.workload",
            Kind::Node => "upsert.node",
        };
        let dot = if field.is_empty() { "" } else { "." };
        Self {
            path: format!("transaction.deltas[{index}].{change}{dot}{field}"),
            resource: Some(resource),
            description: description.into(),
        }
    }

    /// Which delta is meant, if it is one.
    pub fn delta(&self) -> Option<usize> {
        self.split().map(|(index, _)| index)
    }

    /// The field: within the resource if a resource is meant, else within the request; empty for a resource as a whole.
    pub fn field(&self) -> &str {
        let Some((_, rest)) = self.split() else { return &self.path };
        ["upsert.service", "upsert.workload", "upsert.node", "upsert", "remove"]
            .into_iter()
            .find_map(|change| rest.strip_prefix(change).filter(|field| field.is_empty() || field.starts_with('.')))
            .map_or(rest, |field| field.trim_start_matches('.'))
    }

    fn split(&self) -> Option<(usize, &str)> {
        let (index, rest) = self.path.strip_prefix("transaction.deltas[")?.split_once(']')?;
        Some((index.parse().ok()?, rest.trim_start_matches('.')))
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        write!(f, "{}: {}", self.path, self.description)
    }
}

/// What is wrong with a transaction: the first few things, and how many more there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    kept: Vec<Violation>,
    more: usize,
}

impl Violations {
    /// Takes note of one more.
    pub fn push(&mut self, violation: Violation) {
        if self.kept.len() < VIOLATIONS_MAX {
            self.kept.push(violation);
        } else {
            self.more += 1;
        }
    }

    /// Those that are reported in full.
    pub fn iter(&self) -> impl Iterator<Item = &Violation> {
        self.kept.iter()
    }

    /// How many there are beyond those.
    pub const fn more(&self) -> usize {
        self.more
    }
}

impl Violations {
    /// What somebody else has counted.
    pub(crate) fn new(kept: Vec<Violation>, more: usize) -> Self {
        Self { kept, more }
    }

    /// Whether nothing is wrong.
    pub const fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }
}

impl From<Violation> for Violations {
    fn from(violation: Violation) -> Self {
        Self { kept: vec![violation], more: 0 }
    }
}

impl FromIterator<Violation> for Violations {
    fn from_iter<I: IntoIterator<Item = Violation>>(violations: I) -> Self {
        let mut all = Self::default();
        violations.into_iter().for_each(|violation| all.push(violation));
        all
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, violation) in self.kept.iter().enumerate() {
            write!(f, "{}{violation}", if i == 0 { "" } else { "; " })?;
        }
        if self.more > 0 {
            write!(f, "; and {} more", self.more)?;
        }
        Ok(())
    }
}

impl Rejection {
    /// A transaction with malformed fields.
    pub fn invalid(violations: impl Into<Violations>) -> Self {
        Self::Refused { reason: Reason::Invalid, violations: violations.into() }
    }

    /// A transaction of which these preconditions do not hold.
    pub fn unmet(unmet: impl IntoIterator<Item = Unmet>) -> Self {
        let mut unmet: Vec<Unmet> = unmet.into_iter().collect();
        let more = unmet.len().saturating_sub(VIOLATIONS_MAX);
        unmet.truncate(VIOLATIONS_MAX);
        Self::Unmet { unmet, more }
    }

    /// The code of the status that says this.
    pub const fn code(&self) -> Code {
        match self {
            Self::Refused { reason, .. } => reason.code(),
            Self::Owned { .. } => Code::FailedPrecondition,
            Self::Unmet { .. } => Code::Aborted,
            Self::Busy { .. } => Code::ResourceExhausted,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::OutcomeUnknown { .. } => Code::Unknown,
        }
    }

    /// The reason in `ErrorInfo`, for programs.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused { reason, .. } => reason.as_str(),
            Self::Owned { .. } => OWNED,
            Self::Unmet { .. } => UNMET,
            Self::Busy { .. } => BUSY,
            Self::Unavailable { .. } => UNAVAILABLE,
            Self::OutcomeUnknown { .. } => OUTCOME_UNKNOWN,
        }
    }

    /// What exactly is wrong with the transaction, if something is.
    pub const fn violations(&self) -> Option<&Violations> {
        match self {
            Self::Refused { violations, .. } | Self::Owned { violations, .. } => Some(violations),
            Self::Unmet { .. } | Self::Busy { .. } | Self::Unavailable { .. } | Self::OutcomeUnknown { .. } => None,
        }
    }

    /// Whether the same transaction would be refused again in the same state.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Owned { .. } | Self::Unmet { .. })
    }

    /// A refusal of which a server has named the reason. One that is not known here is judged by its code.
    pub(crate) fn refused_for(
        reason: &str,
        code: Code,
        message: String,
        owner: String,
        violations: Violations,
    ) -> Self {
        if reason == OWNED {
            return Self::Owned { owner, violations };
        }
        let known = Reason::ALL.into_iter().find(|known| known.as_str() == reason);
        let reason = known.unwrap_or(match code {
            Code::InvalidArgument => Reason::Invalid,
            Code::ResourceExhausted => Reason::Capacity,
            _ => Reason::Conflict,
        });
        if violations.is_empty() {
            let whole = Violation { path: "transaction".to_owned(), resource: None, description: message };
            return Self::Refused { reason, violations: whole.into() };
        }
        Self::Refused { reason, violations }
    }

    /// The status that says this to a client.
    pub fn to_status(&self) -> Status {
        let mut details = ErrorDetails::new();
        match self {
            Self::Refused { violations, .. } => describe(&mut details, violations, ""),
            Self::Owned { violations, owner } => describe(&mut details, violations, owner),
            Self::Unmet { unmet, .. } => describe_unmet(&mut details, unmet),
            Self::Busy { retry_after } => {
                details.set_retry_info(Some(*retry_after));
            }
            Self::Unavailable { .. } | Self::OutcomeUnknown { .. } => {}
        }
        let (code, reason) = (self.code(), self.reason());
        let (more, unmet) = match self {
            Self::Unmet { unmet, more } => (*more, unmet.as_slice()),
            _ => (self.violations().map_or(0, |violations| violations.more), &[][..]),
        };
        let mut metadata: HashMap<_, _> = (more > 0).then(|| (MORE.to_owned(), more.to_string())).into_iter().collect();
        for (number, unmet) in unmet.iter().enumerate() {
            metadata.insert(format!("{EXPECTED_LSN}_{number}"), unmet.expected_lsn.to_string());
            metadata.insert(format!("{ACTUAL_LSN}_{number}"), unmet.actual_lsn.to_string());
        }
        details.set_error_info(reason, DOMAIN, metadata);
        let message = match self {
            Self::Refused { violations, .. } | Self::Owned { violations, .. } => summary(violations),
            Self::Unavailable { cause } | Self::OutcomeUnknown { cause } => cut(cause),
            Self::Unmet { unmet, more } => {
                let first = unmet.first().map_or_else(String::new, |first| cut(&first.to_string()));
                first + &display_more(unmet.len().saturating_sub(1) + more)
            }
            Self::Busy { .. } => self.to_string(),
        };
        Status::with_error_details(code, message, details)
    }

    /// What a server of ours said, if the status is from one.
    pub fn from_status(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN)?;
        let cause = || status.message().to_owned();
        match info.reason.as_str() {
            BUSY => {
                let retry_after = details.retry_info().and_then(|retry| retry.retry_delay).unwrap_or_default();
                Some(Self::Busy { retry_after })
            }
            UNAVAILABLE => Some(Self::Unavailable { cause: cause() }),
            OUTCOME_UNKNOWN => Some(Self::OutcomeUnknown { cause: cause() }),
            UNMET => Some(Self::Unmet { unmet: read_unmet(&details, info)?, more: read_more(info) }),
            OWNED => {
                let owner = details.resource_info().map(|info| info.owner.clone()).unwrap_or_default();
                Some(Self::Owned { owner, violations: read_all_violations(&details, info) })
            }
            reason => {
                let reason = Reason::ALL.into_iter().find(|known| known.as_str() == reason)?;
                Some(Self::Refused { reason, violations: read_all_violations(&details, info) })
            }
        }
    }
}

fn read_all_violations(details: &ErrorDetails, info: &ErrorInfo) -> Violations {
    Violations { kept: read_violations(details), more: read_more(info) }
}

fn read_more(info: &ErrorInfo) -> usize {
    info.metadata.get(MORE).and_then(|more| more.parse().ok()).unwrap_or(0)
}

fn describe_unmet(details: &mut ErrorDetails, unmet: &[Unmet]) {
    let violation =
        |unmet: &Unmet| PreconditionViolation::new(CHANGED_LSN, subject(&unmet.resource), cut(&unmet.to_string()));
    details.set_precondition_failure(unmet.iter().map(violation).collect::<Vec<_>>());
    if let Some(Unmet { resource, .. }) = unmet.first() {
        details.set_resource_info(resource.kind.as_str(), cut(&resource.name), "", "");
    }
}

fn subject(resource: &ResourceKey) -> String {
    format!("{} {}", resource.kind, cut(&resource.name))
}

fn read_unmet(details: &ErrorDetails, info: &ErrorInfo) -> Option<Vec<Unmet>> {
    let number = |name: &str, number: usize| info.metadata.get(&format!("{name}_{number}"))?.parse().ok().map(Lsn);
    let unmet = |(at, violation): (usize, &PreconditionViolation)| {
        let (kind, name) = violation.subject.split_once(' ')?;
        Some(Unmet {
            resource: ResourceKey::new(kind.parse::<Kind>().ok()?, name),
            expected_lsn: number(EXPECTED_LSN, at)?,
            actual_lsn: number(ACTUAL_LSN, at)?,
        })
    };
    details.precondition_failure()?.violations.iter().enumerate().map(unmet).collect()
}

fn display_unmet(unmet: &[Unmet]) -> String {
    unmet.iter().map(Unmet::to_string).collect::<Vec<_>>().join("; ")
}

fn display_more(more: usize) -> String {
    if more > 0 { format!("; and {more} more") } else { String::new() }
}

fn describe(details: &mut ErrorDetails, violations: &Violations, owner: &str) {
    let fields: Vec<FieldViolation> =
        violations.iter().map(|violation| FieldViolation::new(&violation.path, cut(&violation.description))).collect();
    details.set_bad_request(fields);
    if let Some(key) = violations.kept.first().and_then(|violation| violation.resource.as_ref()) {
        details.set_resource_info(key.kind.as_str(), cut(&key.name), cut(owner), "");
    }
}

fn read_violations(details: &ErrorDetails) -> Vec<Violation> {
    let mut resource = details
        .resource_info()
        .and_then(|info| Some(ResourceKey::new(info.resource_type.parse::<Kind>().ok()?, info.resource_name.clone())));
    let fields = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
    fields
        .iter()
        .map(|field| Violation {
            path: field.field.clone(),
            resource: resource.take(),
            description: field.description.clone(),
        })
        .collect()
}

fn summary(violations: &Violations) -> String {
    let first = violations.kept.first().map_or_else(String::new, |first| cut(&first.to_string()));
    match violations.kept.len().saturating_sub(1) + violations.more {
        0 => first,
        others => format!("{first}; and {others} more"),
    }
}

fn cut(text: &str) -> String {
    if text.len() <= DESCRIPTION_BYTES_MAX {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(DESCRIPTION_BYTES_MAX)])
}
