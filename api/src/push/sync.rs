//! A sync while it is gathered: everything that a source has, until its end comes.
//!
//! It lies in memory: the journal takes one record for it, which is what makes it atomic, and a record has a limit anyway. What
//! is beyond that limit, or beyond [`SYNC_RESOURCES_MAX`], is refused at the end, and from then on nothing more is kept.

use std::collections::HashSet;
use std::sync::Arc;

use prost::Message as _;
use storage_schema::record::{Cause, Delta, Transaction};
use storage_schema::resource::ResourceKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::message::{Pushed, decode_level, decode_version};
use super::{Hello, JournalFacts, SYNC_RESOURCES_MAX};
use crate::convert::{Path, decode_resource};
use crate::rejection::{Reason, Rejection, Violation, Violations};
use crate::{Level, proto};

/// A sync that was begun.
pub(super) struct Gathering {
    version: u64,
    level: Level,
    take_over: bool,
    dry_run: bool,
    deltas: Vec<Delta>,
    seen: HashSet<ResourceKey>,
    /// How many resources were sent.
    sent: u64,
    bytes: u64,
    bytes_max: u64,
    found: Violations,
    /// Why it will be refused, if it is too large.
    too_large: Option<String>,
    permit: OwnedSemaphorePermit,
}

impl Gathering {
    /// Whether it is only to be checked.
    pub(super) const fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Begins, once there is room for one more.
    pub(super) async fn begin(
        hello: &Hello,
        begin: proto::SyncBegin,
        syncs: &Arc<Semaphore>,
        facts: JournalFacts,
    ) -> Self {
        let permit = Arc::clone(syncs).acquire_owned().await.expect("it is never closed");
        let proto::SyncBegin { version, level, take_over, dry_run } = begin;
        let path = Path::root("sync_begin");
        let mut found = Violations::default();
        decode_version(&path, version, &mut found);
        let level = decode_level(&path.field("level"), level, &mut found).unwrap_or(hello.level);
        Self {
            version,
            level,
            take_over,
            dry_run,
            deltas: Vec::new(),
            seen: HashSet::new(),
            sent: 0,
            bytes: 0,
            bytes_max: facts.record_bytes_max,
            found,
            too_large: None,
            permit,
        }
    }

    /// Takes a chunk in.
    pub(super) fn add(&mut self, chunk: proto::SyncChunk) {
        for resource in chunk.resources {
            let index = usize::try_from(self.sent).unwrap_or(usize::MAX);
            self.sent += 1;
            self.bytes += resource.encoded_len() as u64;
            if self.sent > SYNC_RESOURCES_MAX as u64 {
                self.give_up(format!("more than sync_resources_max = {SYNC_RESOURCES_MAX} resources"));
            } else if self.bytes > self.bytes_max {
                self.give_up(format!("more than record_bytes_max = {} bytes", self.bytes_max));
            }
            let path = Path::root("transaction");
            let path = path.field("deltas");
            let path = path.index(index);
            let Some(resource) = decode_resource(&path.field("upsert"), resource, &mut self.found) else { continue };
            let key = resource.key();
            if self.too_large.is_some() || !self.found.is_empty() {
                continue;
            }
            let delta = Delta::Upsert(resource);
            if self.seen.contains(&key) {
                self.found.push(Violation::of_delta(index, &delta, "", "is sent twice"));
                continue;
            }
            self.seen.insert(key);
            self.deltas.push(delta);
        }
    }

    fn give_up(&mut self, why: String) {
        self.too_large.get_or_insert(why);
        self.deltas = Vec::new();
        self.seen = HashSet::new();
    }

    /// The transaction that it has become, with what holds its memory's place.
    pub(super) fn end(
        mut self,
        hello: &Hello,
        end: proto::SyncEnd,
    ) -> (u64, Result<Pushed, Rejection>, OwnedSemaphorePermit) {
        let Self { version, level, take_over, .. } = self;
        if end.resources != self.sent {
            let description = format!("says {}, and {} were sent", end.resources, self.sent);
            self.found.say(&Path::root("sync_end").field("resources"), description);
        }
        let decoded = if let Some(why) = self.too_large {
            let description = format!("the sync has {why}: split the source, or send transactions");
            let violation = Violation { path: "sync_chunk.resources".to_owned(), resource: None, description };
            Err(Rejection::Refused { reason: Reason::Capacity, violations: violation.into() })
        } else if self.found.is_empty() {
            let transaction = Transaction::push(hello.origin(version), self.deltas);
            let transaction = Transaction { cause: Cause::Sync, take_over, ..transaction };
            Ok(Pushed { transaction, preconditions: Vec::new(), level })
        } else {
            Err(Rejection::invalid(self.found))
        };
        (version, decoded, self.permit)
    }
}
