//! Who is managed: the rules of the settings, kept true while cgroups come and go, and what the API asks for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use api::namespace::{Namespace, NamespaceError};
use api::proto;
use loader::{Datapath, Enrolled, EnrolmentError, LoadError, Rules};
use rustix::time::{ClockId, clock_gettime};

use crate::cli::Managed;
use crate::config::Config;

/// How often it is looked whether an exempt cgroup was made anew, which gives it another number.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
/// How often namespaces that are gone are let go.
const RELEASE_INTERVAL: Duration = Duration::from_mins(10);

/// Who is managed.
#[derive(Clone)]
pub(super) struct Enrolment {
    pins: Arc<Mutex<loader::Enrolment>>,
    rules: Arc<Rules>,
}

impl Enrolment {
    /// Has the programs, those to come and those that are there, go by the settings.
    pub(super) fn begin(config: &Config, options: &loader::Options) -> Result<Self, LoadError> {
        let rules = Rules {
            by_namespace: config.managed != Managed::Cgroup,
            by_call: config.managed == Managed::Cni,
            exempt: config.exempt_cgroups.clone(),
        };
        let mut pins = Datapath::open(options.clone())?.enrolment()?;
        pins.set(&rules)?;
        Ok(Self { pins: Arc::new(Mutex::new(pins)), rules: Arc::new(rules) })
    }

    /// Keeps the rules true, for as long as the agent runs.
    pub(super) async fn keep(self) {
        if !self.rules.by_namespace && self.rules.exempt.is_empty() {
            return;
        }
        let mut missing = BTreeSet::new();
        let mut refused = false;
        let mut released: Option<Instant> = None;
        loop {
            let due = self.rules.by_namespace && released.is_none_or(|at| at.elapsed() >= RELEASE_INTERVAL);
            let now = self.blocking(move |pins, rules| {
                if due {
                    let gone = pins.release_gone()?;
                    if gone > 0 {
                        tracing::info!(gone, "enrolled network namespaces are gone");
                    }
                }
                if rules.exempt.is_empty() { Ok(Vec::new()) } else { pins.set(rules) }
            });
            match now.await {
                Ok(now) => {
                    missing = note_missing(&missing, now);
                    refused = false;
                }
                Err(error) if !refused => {
                    tracing::error!(%error, "who is managed cannot be kept up to date");
                    refused = true;
                }
                Err(_) => {}
            }
            if due {
                released = Some(Instant::now());
            }
            tokio::time::sleep(REFRESH_INTERVAL).await;
        }
    }

    pub(super) async fn enrol(&self, namespace: Namespace) -> Result<(u64, bool), NamespaceError> {
        self.by_namespace()?;
        self.blocking(move |pins, _| pins.enrol(&namespace.path())).await.map_err(refusal)
    }

    pub(super) async fn release(&self, namespace: Namespace) -> Result<(u64, bool), NamespaceError> {
        self.by_namespace()?;
        self.blocking(move |pins, _| pins.release(&namespace.path())).await.map_err(refusal)
    }

    pub(super) async fn namespaces(&self) -> Result<Vec<proto::EnrolledNamespace>, NamespaceError> {
        let enrolled = self.blocking(|pins, _| pins.namespaces().map_err(EnrolmentError::from)).await;
        let boot = boot_time();
        let message = |Enrolled { cookie, inode, since_ns }| {
            let since = boot.and_then(|boot| boot.checked_add(Duration::from_nanos(since_ns)));
            proto::EnrolledNamespace { cookie, inode: inode.unwrap_or_default(), since: since.map(Into::into) }
        };
        Ok(enrolled.map_err(refusal)?.into_iter().map(message).collect())
    }

    fn by_namespace(&self) -> Result<(), NamespaceError> {
        if self.rules.by_namespace {
            return Ok(());
        }
        Err(NamespaceError::NotByNamespace(
            "the agent manages every process in its cgroup: start it with --managed namespace (or cni)",
        ))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut loader::Enrolment, &Rules) -> T + Send + 'static,
    ) -> T {
        let Self { pins, rules } = self.clone();
        let done =
            tokio::task::spawn_blocking(move || work(&mut pins.lock().unwrap_or_else(PoisonError::into_inner), &rules));
        done.await.expect("the work does not panic")
    }
}

/// Says which exempt cgroups are not there, once each time.
fn note_missing(before: &BTreeSet<PathBuf>, missing: Vec<PathBuf>) -> BTreeSet<PathBuf> {
    let missing = BTreeSet::from_iter(missing);
    for path in missing.difference(before) {
        tracing::warn!(cgroup = %path.display(), "an exempt cgroup is not there; it is exempt once it is");
    }
    missing
}

fn refusal(error: EnrolmentError) -> NamespaceError {
    match error {
        EnrolmentError::Open { .. } | EnrolmentError::Enter { .. } => NamespaceError::Unusable(error.to_string()),
        EnrolmentError::Full => NamespaceError::Full(error.to_string()),
        EnrolmentError::Load(error) => NamespaceError::Failed(error.to_string()),
    }
}

/// When this machine booted, by the wall clock as it is now.
fn boot_time() -> Option<SystemTime> {
    let up = clock_gettime(ClockId::Boottime);
    let up = Duration::new(u64::try_from(up.tv_sec).ok()?, u32::try_from(up.tv_nsec).ok()?);
    SystemTime::now().checked_sub(up)
}
