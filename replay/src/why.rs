//! Why a connection goes where it goes: each step, and the record that made it so.
//!
//! What is explained is found by asking: the decision is made for [`SAMPLES`] random words, spread evenly, and the shares of the
//! candidates are counted. No policy is known here, so none can be told wrongly.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use applier::entry::{BackendKey, Family};
use applier::{dump, plan};
use decision::Verdict;
use serde::{Deserialize, Serialize};
use storage_schema::id::{Lsn, ResourceId};
use storage_schema::map::{Stamp, key::address_from_words};
use storage_schema::resource::{Kind, NoEndpoints, ResourceKey, Service, Workload, WorkloadStatus};

use crate::asked::{Asked, Dialled};
use crate::blame::Blame;
use crate::slice::Slice;
use crate::tables::{PastTables, destination};
use crate::{Cause, HistoryStep, Moment, Past, ReplayError};

/// Random words that the decision is asked about.
const SAMPLES: u32 = 1 << 16;
/// What happened to a backend afterwards: so many steps at most.
const LATER_MAX: usize = 16;
/// Fields of a service on which it depends what leads to it.
const FRONTEND: [&str; 4] = ["vips", "externalAddresses", "ports", "allPorts"];
/// Fields of a workload on which it depends whether its own addresses lead to a waypoint.
const REDIRECT: [&str; 2] = ["addresses", "waypoint"];
/// Fields of a workload on which it depends whether it is a candidate.
const CANDIDACY: [&str; 6] = ["addresses", "status", "services", "weight", "locality", "network"];

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who dials, if that is known.
    pub from: Option<IpAddr>,
    /// What is dialled.
    pub to: SocketAddr,
    /// The IANA protocol number.
    pub protocol: u8,
    /// Of a connection that was made: the epoch that decided it, which its stamp has. Not given: that of the moment.
    pub epoch: Option<Lsn>,
    /// Of a connection that was made: the random word that chose, which its stamp has too.
    pub entropy: Option<u32>,
}

/// Where a connection goes, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Why {
    /// The record whose state decides.
    pub lsn: Lsn,
    /// What is dialled.
    pub to: String,
    /// `TCP`, `UDP` or a number.
    pub protocol: String,
    /// How it ends.
    pub outcome: Outcome,
    /// How that comes about, in order.
    pub steps: Vec<Step>,
    /// Where it may go, the most likely first.
    pub candidates: Vec<Candidate>,
    /// Who backs the service and gets nothing.
    pub excluded: Vec<Excluded>,
    /// The choice that was made, if the random word was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// What was durable by the moment that was asked about, and not yet visible to the connection: between its epoch and then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Unseen>,
}

/// A change that came too late for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unseen {
    /// The kind of the resource that changed.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The change.
    #[serde(flatten)]
    pub step: HistoryStep,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It goes to a backend, or to the node's DNS proxy.
    Forwarded,
    /// It is refused: there is no usable backend.
    Refused,
    /// It goes where the client dials.
    Passed,
}

/// One step towards the outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// `client`, `dns`, `frontend`, `waypoint`, `policy`, `backends`, `no backend`.
    pub step: String,
    /// What is the case.
    pub says: String,
    /// The record that made it so; not given: nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
}

/// Where a connection may go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Candidate {
    /// The workload.
    pub workload: String,
    /// Its socket address.
    pub address: String,
    /// `healthy`, `terminating`.
    pub status: String,
    /// Its share where a policy weighs.
    pub weight: u32,
    /// Region, zone and subzone, if it has them.
    pub locality: String,
    /// Which part of the connections it gets, 0 to 1.
    pub share: f64,
    /// The record that made it a candidate as it is.
    pub cause: Cause,
}

/// Who backs the service and gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Excluded {
    /// The workload.
    pub workload: String,
    /// Why.
    pub reason: String,
    /// The record that made it so.
    pub cause: Cause,
}

/// A choice that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// The random word.
    pub entropy: u32,
    /// The workload; not given: the connection went to none, or to a waypoint or the DNS proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Where it went.
    pub address: String,
    /// What became of the workload afterwards, up to now.
    pub later: Vec<HistoryStep>,
}

impl Past {
    /// Where a connection goes in the state of a moment, or of its epoch, and why.
    pub fn why(&self, connection: &Connection, at: Moment) -> Result<Why, ReplayError> {
        let at_lsn = self.lsn_of(at)?;
        let lsn = connection.epoch.unwrap_or(at_lsn);
        if lsn > at_lsn {
            return Err(ReplayError::EpochAhead { epoch: lsn, at_lsn });
        }
        let state = self.state(lsn)?;
        let slice = Slice::of(&state, connection.to.ip(), connection.from)?;
        let changes = plan::everything(&slice.model);
        let tables = PastTables::of(&state, &slice.model, changes.clone(), self.reader.store_id())?;
        let key = destination(connection.to, connection.protocol);
        let mut asked = Asked::of(&slice, &changes, &key, connection.from);
        let outcomes = sample(&tables, &asked);
        if outcomes.iter().any(|(verdict, _)| goes_to_dns_proxy(verdict)) {
            asked.goes_to_dns_proxy();
        }
        let outcome = outcome_of(&outcomes);
        let mut blame = Blame::of(&self.reader, asked.traced(), lsn)?;
        let (candidates, excluded) = asked.backends(&outcomes, &mut blame)?;
        let steps = asked.steps(connection, outcome, &candidates, &mut blame)?;
        let choice = connection.entropy.map(|entropy| self.choice(&tables, &asked, connection, entropy, lsn));
        Ok(Why {
            lsn,
            to: connection.to.to_string(),
            protocol: dump::protocol(connection.protocol),
            outcome,
            steps,
            candidates,
            excluded,
            choice: choice.transpose()?,
            unseen: self.unseen(&asked, lsn, at_lsn)?,
        })
    }

    /// The changes behind record `lsn`, up to `at_lsn`, of all that the connection depends on; oldest first.
    fn unseen(&self, asked: &Asked<'_>, lsn: Lsn, at_lsn: Lsn) -> Result<Vec<Unseen>, ReplayError> {
        if lsn == at_lsn {
            return Ok(Vec::new());
        }
        let keys = asked.traced();
        let changed = self.reader.histories(&keys, lsn.next(), at_lsn)?;
        let mut unseen = Vec::new();
        for (key, _) in keys.into_iter().zip(changed).filter(|(_, lsns)| !lsns.is_empty()) {
            let history = self.history(&key, Some(Moment::Lsn(lsn.next())), Moment::Lsn(at_lsn), None)?;
            let of_key = |step| Unseen { kind: key.kind, name: key.name.clone(), step };
            unseen.extend(history.steps.into_iter().map(of_key));
        }
        unseen.sort_by_key(|unseen| unseen.step.cause.lsn);
        Ok(unseen)
    }

    fn choice(
        &self,
        tables: &PastTables,
        asked: &Asked<'_>,
        connection: &Connection,
        entropy: u32,
        lsn: Lsn,
    ) -> Result<Choice, ReplayError> {
        let (workload, address, later) = match tables.decide(asked.key, asked.words(entropy)) {
            Verdict::Forward { address, port_be, .. } if asked.looks_up => {
                (None, socket_address(address, u16::from_be(port_be)), Vec::new())
            }
            Verdict::Forward { address, port_be, flags, .. } if flags & Stamp::WAYPOINT != 0 => {
                (None, format!("the waypoint {}", socket_address(address, u16::from_be(port_be))), Vec::new())
            }
            Verdict::Forward { backend, address, port_be, .. } => {
                let uid = asked.slice.names.get(ResourceId(backend));
                let key = ResourceKey::new(Kind::Workload, uid.clone());
                let mut later = self.history(&key, Some(Moment::Lsn(lsn.next())), Moment::Now, None)?.steps;
                later.truncate(LATER_MAX);
                (Some(uid), socket_address(address, u16::from_be(port_be)), later)
            }
            Verdict::Refuse { .. } => (None, "refused".to_owned(), Vec::new()),
            Verdict::Pass => (None, connection.to.to_string(), Vec::new()),
        };
        Ok(Choice { entropy, workload, address, later })
    }
}

/// How often each verdict comes, for random words that lie evenly in their high and, independently, in their low half (a Hammersley set).
fn sample(tables: &PastTables, asked: &Asked<'_>) -> Vec<(Verdict, u32)> {
    let mut forwards: BTreeMap<(u64, [u32; 4], u16), (Verdict, u32)> = BTreeMap::new();
    let (mut refused, mut passed): (Option<Verdict>, u32) = (None, 0);
    let mut refusals = 0;
    for number in 0..SAMPLES {
        let word = (number << 16) | (number.reverse_bits() >> 16);
        match tables.decide(asked.key, asked.words(word)) {
            verdict @ Verdict::Forward { backend, address, port_be, .. } => {
                forwards.entry((backend, address, port_be)).or_insert((verdict, 0)).1 += 1;
            }
            verdict @ Verdict::Refuse { .. } => {
                refused = Some(verdict);
                refusals += 1;
            }
            Verdict::Pass => passed += 1,
        }
    }
    let others = refused.map(|verdict| (verdict, refusals)).into_iter();
    forwards.into_values().chain(others).chain((passed > 0).then_some((Verdict::Pass, passed))).collect()
}

fn outcome_of(outcomes: &[(Verdict, u32)]) -> Outcome {
    match outcomes.first() {
        Some((Verdict::Forward { .. }, _)) => Outcome::Forwarded,
        Some((Verdict::Refuse { .. }, _)) => Outcome::Refused,
        _ => Outcome::Passed,
    }
}

fn goes_to_dns_proxy(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Forward { flags, .. } if flags & Stamp::DNS != 0)
}

impl Asked<'_> {
    fn backends(
        &self,
        outcomes: &[(Verdict, u32)],
        blame: &mut Blame<'_>,
    ) -> Result<(Vec<Candidate>, Vec<Excluded>), ReplayError> {
        let (mut candidates, mut excluded) = (Vec::new(), Vec::new());
        if self.dialled.as_ref().is_some_and(|dialled| dialled.waypoint.is_some()) && !self.from_waypoint {
            return Ok((candidates, excluded));
        }
        let mut shares: BTreeMap<u64, Vec<([u32; 4], u16, u32)>> = BTreeMap::new();
        for (verdict, count) in outcomes {
            if let Verdict::Forward { backend, address, port_be, .. } = verdict {
                shares.entry(*backend).or_default().push((*address, u16::from_be(*port_be), *count));
            }
        }
        for (uid, (workload, changed_lsn)) in self.members() {
            let key = ResourceKey::new(Kind::Workload, uid.clone());
            let found = shares.remove(&ResourceId::of(&key).0).unwrap_or_default();
            if found.is_empty() {
                let (reason, fields) = self.why_not(workload);
                let cause = blame.of_fields(&key, fields, *changed_lsn)?;
                excluded.push(Excluded { workload: uid.clone(), reason, cause });
            }
            for (address, port, count) in found {
                candidates.push(Candidate {
                    workload: uid.clone(),
                    address: socket_address(address, port),
                    status: workload.status.to_string(),
                    weight: workload.weight,
                    locality: locality(workload),
                    share: f64::from(count) / f64::from(SAMPLES),
                    cause: blame.of_fields(&key, &CANDIDACY, *changed_lsn)?,
                });
            }
        }
        candidates.sort_by(|one, other| other.share.total_cmp(&one.share));
        Ok((candidates, excluded))
    }

    /// Why a workload of the service gets nothing, and the fields that say so.
    fn why_not(&self, workload: &Workload) -> (String, &'static [&'static str]) {
        let Some(Dialled { port, .. }) = &self.dialled else {
            return ("it backs no service here".to_owned(), &["services"]);
        };
        let of_family = |address: &IpAddr| Family::of(*address) == port.family;
        let family = match port.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let id = ResourceId::named(Kind::Workload, &workload.uid);
        let listens = |key: &BackendKey| key.workload == id && key.family == port.family && !key.is_waypoint;
        match workload.status {
            WorkloadStatus::Unhealthy => ("it is unhealthy".to_owned(), &["status"]),
            _ if !workload.addresses.iter().any(of_family) => (format!("it has no {family} address"), &["addresses"]),
            _ if !self.changes.backends.keys().any(listens) => ("it serves no such port".to_owned(), &["services"]),
            WorkloadStatus::Terminating => ("it is terminating, and there are others".to_owned(), &["status"]),
            WorkloadStatus::Healthy => ("the policy prefers others".to_owned(), &CANDIDACY),
        }
    }

    fn steps(
        &self,
        connection: &Connection,
        outcome: Outcome,
        candidates: &[Candidate],
        blame: &mut Blame<'_>,
    ) -> Result<Vec<Step>, ReplayError> {
        let mut steps = Vec::new();
        let mut add = |step: &str, says: String, cause| steps.push(Step { step: step.to_owned(), says, cause });
        if let Some(from) = connection.from {
            let (says, cause) = match &self.slice.client {
                Some((client, changed_lsn)) => {
                    let key = ResourceKey::new(Kind::Workload, client.uid.clone());
                    let cause = blame.of_fields(&key, &["addresses"], *changed_lsn)?;
                    (format!("{from} is {key}"), Some(cause))
                }
                None => (format!("{from} is no workload's address"), None),
            };
            add("client", says, cause);
        }
        if let (true, Some((node, changed_lsn))) = (self.looks_up, &self.slice.node) {
            let key = ResourceKey::new(Kind::Node, node.name.clone());
            let cause = blame.of_fields(&key, &["dns"], *changed_lsn)?;
            let proxy = node.dns.map(|dns| SocketAddr::new(dns.proxy, dns.port).to_string()).unwrap_or_default();
            add("dns", format!("what is sent to port 53 goes to {key}'s DNS proxy {proxy}"), Some(cause));
            return Ok(steps);
        }
        let Some(Dialled { owner: key, changed_lsn, port, service, waypoint }) = &self.dialled else {
            let (says, cause) = self.no_frontend(blame)?;
            add("frontend", says, cause);
            return Ok(steps);
        };
        let destination = dump::destination(self.key);
        let (says, fields) = match service {
            Some(_) => (format!("{destination} is {key}, port {}", port.port), &FRONTEND[..]),
            None => (format!("{destination} is {key} itself"), &REDIRECT[..]),
        };
        add("frontend", says, Some(blame.of_fields(key, fields, *changed_lsn)?));
        if let Some(waypoint) = waypoint {
            let address = SocketAddr::new(waypoint.address, waypoint.port);
            let says = if self.from_waypoint {
                format!("the client is its waypoint {address}, which connections of its own do not go back to")
            } else {
                format!("it has the waypoint {address}, which all connections of that address family go to")
            };
            add("waypoint", says, Some(blame.of_fields(key, &["waypoint"], *changed_lsn)?));
        }
        let chooses = service.filter(|_| waypoint.is_none() || self.from_waypoint);
        if let Some(service) = chooses {
            let policy = blame.of_fields(key, &["loadBalancing"], *changed_lsn)?;
            add("policy", policy_of(service), Some(policy));
            let (members, distinct) = (self.members().count(), candidates.len());
            let newest = candidates.iter().map(|candidate| &candidate.cause).max_by_key(|cause| cause.lsn).cloned();
            add("backends", format!("{distinct} of {members} workloads that back it may be chosen"), newest);
        }
        let goes_itself = service.is_none() && self.from_waypoint;
        if outcome != Outcome::Forwarded && !goes_itself {
            let (verb, said) = match outcome {
                Outcome::Refused => ("refused", NoEndpoints::Refuse),
                _ => ("passed on", NoEndpoints::Pass),
            };
            let cause = match &self.slice.node {
                // The service has the last word.
                _ if service.is_some_and(|service| service.no_endpoints == Some(said)) => {
                    Some(blame.of_fields(key, &["noEndpoints"], *changed_lsn)?)
                }
                Some((node, changed_lsn)) => {
                    let key = ResourceKey::new(Kind::Node, node.name.clone());
                    Some(blame.of_fields(&key, &["noEndpoints"], *changed_lsn)?)
                }
                None => None,
            };
            add("no backend", format!("without a backend, a connection is {verb}"), cause);
        }
        Ok(steps)
    }

    /// Why a destination is no frontend.
    fn no_frontend(&self, blame: &mut Blame<'_>) -> Result<(String, Option<Cause>), ReplayError> {
        let destination = dump::destination(self.key);
        let Some((name, (_, changed_lsn))) = self.slice.services.first_key_value() else {
            return Ok((format!("{destination} is no service's: it goes where the client dials"), None));
        };
        let key = ResourceKey::new(Kind::Service, name.clone());
        let cause = blame.of_fields(&key, &FRONTEND, *changed_lsn)?;
        Ok((format!("{key} has the address, and no such port: it goes where the client dials"), Some(cause)))
    }
}

fn policy_of(service: &Service) -> String {
    format!("one is chosen by the policy {}", service.load_balancing)
}

fn locality(workload: &Workload) -> String {
    let place = &workload.locality;
    let parts = [&place.region, &place.zone, &place.subzone];
    parts.into_iter().filter(|part| !part.is_empty()).map(String::as_str).collect::<Vec<_>>().join("/")
}

fn socket_address(words: [u32; 4], port: u16) -> String {
    SocketAddr::new(address_from_words(words), port).to_string()
}
