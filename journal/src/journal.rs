//! The handle: what the rest of Holdfast sees of the journal.

mod open;

use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use storage_schema::id::{BootId, Lsn, StoreId};
use storage_schema::record::{Origin, Record};
use storage_schema::resource::{Kind, Resource, ResourceKey};
use tokio::sync::watch;

use crate::append::{Ack, End, Intake, LogEnd, Permit};
use crate::block_on::{block_on, block_on_until};
use crate::checkpoint::Checkpoint;
use crate::clock::boot_id;
use crate::config::Config;
use crate::durable::{Durable, Head};
use crate::error::{AppendError, OpenError, OriginError, ReadError, ResumeError, WriteFailure};
use crate::follow::{Bell, Stored};
use crate::gate::Gate;
use crate::keep::{Compacted, Keeper};
use crate::lock::{Lock, remove_state_dir};
use crate::read::{EncodedRecord, Library, Records};
use crate::reader::Reader;
use crate::resources::Resources;
use crate::retention::Retention;
use crate::segment::header::SegmentHeader;
use crate::segment::recovery::Damage;
use crate::segment::write::resume_log;
use crate::shelf::{CHECKPOINTS_DIR, Shelf};
use crate::snapshot::{Snapshot, SnapshotError, save};
use crate::sources::{Recollection, SourceState, Sources, Standing};
use crate::stats::{Activity, Stats};
use crate::store::{OwnedResource, Store, StoredResource};
use crate::verify::{VerifyProgress, VerifyReport, verify_log};
use crate::watch::RecordStream;
use crate::writer::{Preparer, Writer};

/// An open journal. Clones share it; the last one to go closes it: what was submitted is written and acknowledged, the
/// store is brought up to date, and the lock is released.
#[derive(Clone, Debug)]
pub struct Journal {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    report: OpenReport,
    /// The writer's current life.
    intake: RwLock<Arc<Intake>>,
    durable: Arc<watch::Sender<Durable<Head>>>,
    library: Library,
    shelf: Arc<Shelf>,
    bell: Arc<Bell>,
    gate: Arc<Gate>,
    stored: watch::Receiver<Stored>,
    keeper: Arc<Keeper>,
    activity: Arc<Activity>,
    threads: Mutex<Threads>,
    /// Held until everything above is gone.
    _lock: Lock,
}

#[derive(Debug)]
struct Threads {
    writer: Option<JoinHandle<()>>,
    follower: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<()>>,
}

/// What opening found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenReport {
    /// Whether the journal was created just now.
    pub created: bool,
    /// The oldest record that is kept; `durable_lsn + 1` when there is none.
    pub oldest_lsn: Lsn,
    /// The last record.
    pub durable_lsn: Lsn,
    /// Bytes of a torn, never acknowledged tail that were cut.
    pub cut_bytes: u64,
    /// Records that the store was behind. One that was rebuilt has them; into one that was believed they are folded from now on,
    /// while appends go on, and who reads it waits for that.
    pub folded: u64,
    /// Why the store was rebuilt, if it was.
    pub store_rebuilt: Option<String>,
    /// The record whose state the store showed when it was opened, before anything was folded; `None`: it was rebuilt, or a
    /// fold had been interrupted.
    pub shown_lsn: Option<Lsn>,
    /// The store had seen records up to this one, which the log no longer has: acknowledged records were lost.
    pub lost: Option<Lsn>,
}

/// How far the journal is. `appended_lsn ≥ durable_lsn ≥ store_lsn`, all inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The last record that has a number.
    pub appended_lsn: Lsn,
    /// The last record that is behind an fsync.
    pub durable_lsn: Lsn,
    /// The record whose state the store shows.
    pub store_lsn: Lsn,
    /// The oldest record that is kept; `durable_lsn + 1` when there is none.
    pub oldest_lsn: Lsn,
}

/// Resources of the store that were read together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcePage {
    /// The resources, in the order of their names.
    pub resources: Vec<OwnedResource>,
    /// The name after which to go on; `None`: that was all.
    pub next: Option<String>,
}

/// The most entries that a page looks at: the store stands still meanwhile.
pub const PAGE_VISITS_MAX: usize = 16_384;

/// What the journal knows about a push before it happens.
#[derive(Debug)]
pub enum OriginState {
    /// New: it may be submitted.
    Fresh,
    /// In the journal already, or on its way there: here is the first push's acknowledgement.
    Duplicate(Ack),
}

/// A subscription to the durable head.
#[derive(Clone, Debug)]
pub struct DurableWatch {
    head: watch::Receiver<Durable<Head>>,
}

impl DurableWatch {
    /// The head as it is now.
    pub fn head(&self) -> Durable<Head> {
        *self.head.borrow()
    }

    /// Waits until the head is past `lsn`; `None` when the journal is closed before that.
    pub async fn past(&mut self, lsn: Lsn) -> Option<Durable<Head>> {
        self.head.wait_for(|head| head.lsn > lsn).await.ok().map(|head| *head)
    }

    /// [`DurableWatch::past`] for threads; `None` also when `timeout` is over.
    pub fn blocking_past(&mut self, lsn: Lsn, timeout: Duration) -> Option<Durable<Head>> {
        block_on_until(self.past(lsn), Instant::now().checked_add(timeout)).flatten()
    }
}

impl Journal {
    /// Removes a state directory with all that is in it. Refuses one that a process has open, or that is none.
    pub fn remove(state_dir: &Path) -> Result<(), OpenError> {
        remove_state_dir(state_dir)
    }

    /// What opening found and did.
    pub fn open_report(&self) -> &OpenReport {
        &self.inner.report
    }

    /// Which journal this is.
    pub fn store_id(&self) -> StoreId {
        self.inner.library.store_id
    }

    /// The present boot, as records name it; zeros where the kernel does not tell.
    pub fn boot_id(&self) -> BootId {
        boot_id()
    }

    /// How far it is.
    pub fn watermarks(&self) -> Watermarks {
        // From the lowest to the highest, so that a number read later is never below one read earlier.
        let oldest_lsn = self.inner.library.catalogue.oldest_lsn();
        let store_lsn = self.inner.stored.borrow().lsn;
        let durable_lsn = self.inner.library.durable_lsn();
        Watermarks {
            appended_lsn: self.inner.intake().appended_lsn().max(durable_lsn),
            durable_lsn,
            store_lsn,
            oldest_lsn,
        }
    }

    /// A subscription to the durable head.
    pub fn durable(&self) -> DurableWatch {
        DurableWatch { head: self.inner.library.durable.clone() }
    }

    /// Whether this push is new. Takes what is queued but not durable into account; call it under the lock that orders
    /// pushes, right before `submit`.
    pub fn origin(&self, origin: &Origin) -> Result<OriginState, OriginError> {
        let (intake, shelf) = (self.inner.intake(), &self.inner.shelf);
        let (standing, version) = match (intake.with_sources(|sources| sources.standing(origin))?, origin.version) {
            (Standing::AskStore { last }, Some(version)) => (last, version),
            (Standing::Known(known), _) => return Ok(OriginState::Duplicate(Ack::pending(known))),
            (Standing::Fresh | Standing::AskStore { .. }, _) => return Ok(OriginState::Fresh),
        };
        let receipt = shelf
            .with(|store| store.receipt(&origin.source, version))
            .map_err(|cause| OriginError::Unreadable { origin: origin.source.clone(), cause: Arc::new(cause) })?;
        match receipt {
            Some(receipt) => Ok(OriginState::Duplicate(Ack::known(receipt))),
            None => Err(OriginError::Stale { origin: origin.source.clone(), given: version, last: standing }),
        }
    }

    /// What became of a version that a source says it has pushed.
    pub fn recollect(&self, source: &str, version: u64) -> Result<Recollection, OriginError> {
        let Some(SourceState { incarnation, .. }) = self.source(source) else { return Ok(Recollection::NotThere) };
        let origin = Origin { source: source.to_owned(), incarnation, version: Some(version) };
        match self.origin(&origin) {
            Ok(OriginState::Fresh) => return Ok(Recollection::NotThere),
            Ok(OriginState::Duplicate(ack)) => return Ok(Recollection::Accepted(ack)),
            Err(OriginError::Stale { .. }) => {}
            Err(error) => return Err(error),
        }
        // It is among no receipts: they tell how far back they go, or that none was ever let go.
        let stored = self.inner.shelf.with(|store| store.receipts_kept(source));
        let (kept, oldest_stored) =
            stored.map_err(|cause| OriginError::Unreadable { origin: origin.source, cause: Arc::new(cause) })?;
        let (recent, oldest_recent) = self.inner.intake().with_sources(|sources| sources.recent(source));
        let complete = kept + (recent as u64) < self.inner.config.receipts_per_source as u64;
        let covered = oldest_stored.or(oldest_recent).is_some_and(|oldest| version > oldest);
        Ok(if complete || covered { Recollection::NotThere } else { Recollection::Forgotten })
    }

    /// The most bytes of one record.
    pub fn record_bytes_max(&self) -> u64 {
        self.inner.config.record_bytes_max
    }

    /// What is known about a source, with everything that is queued.
    pub fn source(&self, name: &str) -> Option<SourceState> {
        self.inner.intake().with_sources(|sources| sources.state(name))
    }

    /// All sources, in the order of their names.
    pub fn sources(&self) -> Vec<(String, SourceState)> {
        let mut all = self.inner.intake().with_sources(Sources::all);
        all.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        all
    }

    /// Why the journal accepts nothing, if the disk has refused a write or a sync. Reads go on.
    pub fn failure(&self) -> Option<Arc<WriteFailure>> {
        self.inner.intake().failure()
    }

    /// Tries to accept again after a failure, with what the disk really holds: the log goes on behind the last durable record,
    /// and what was submitted but not acknowledged is gone. Call it under the lock that orders pushes, and bring everything that
    /// was computed from unacknowledged submissions back to the head that is returned. It does nothing when there was no
    /// failure, and may be tried again when it fails.
    pub fn resume(&self) -> Result<Durable<Head>, ResumeError> {
        self.inner.resume()
    }

    /// A place in the queue, waited for while the queue is full.
    pub async fn reserve(&self) -> Result<Permit, AppendError> {
        self.inner.intake().reserve().await
    }

    /// [`Journal::reserve`] for threads.
    pub fn blocking_reserve(&self) -> Result<Permit, AppendError> {
        block_on(self.reserve())
    }

    /// A place in the queue, or [`AppendError::QueueFull`] at once.
    pub fn try_reserve(&self) -> Result<Permit, AppendError> {
        self.inner.intake().try_reserve()
    }

    /// The records from `first` on, up to the durable head at the time of each step.
    pub fn read_from(&self, first: Lsn) -> Result<Records, ReadError> {
        self.inner.library.read_from(first)
    }

    /// One record, as it is stored.
    pub fn encoded_record(&self, lsn: Lsn) -> Result<Durable<EncodedRecord>, ReadError> {
        self.inner.library.encoded_record(lsn)
    }

    /// One record.
    pub fn record(&self, lsn: Lsn) -> Result<Durable<Record>, ReadError> {
        let encoded = self.encoded_record(lsn)?.into_inner();
        encoded.decode().map(Durable::vouch).map_err(|source| ReadError::Undecodable { lsn, source })
    }

    /// The records from `first` on, and then live, without gap or repetition.
    pub fn watch(&self, first: Lsn) -> Result<RecordStream, ReadError> {
        Ok(RecordStream::new(self.read_from(first)?, self.durable()))
    }

    /// A reader of the same journal, which sees what becomes durable: records by time and by resource, and past states.
    pub fn reader(&self) -> Reader {
        Reader::of(self.inner.library.clone(), self.inner.config.state_dir.join(CHECKPOINTS_DIR))
    }

    /// Waits until the store shows at least `lsn`, so that one reads what one has written. Wait for its ack first: the store
    /// never shows what is not durable.
    pub async fn wait_stored(&self, lsn: Lsn) -> Result<(), ReadError> {
        let mut stored = self.inner.stored.clone();
        if stored.borrow().lsn >= lsn {
            return Ok(());
        }
        let _hurry = self.inner.gate.hurry();
        self.inner.bell.want(lsn);
        let seen = stored.wait_for(|stored| stored.lsn >= lsn || stored.stuck.is_some()).await;
        let Ok(seen) = seen else { return Err(ReadError::Closed) };
        match &seen.stuck {
            Some(cause) if seen.lsn < lsn => Err(ReadError::Stuck { store_lsn: seen.lsn, cause: Arc::clone(cause) }),
            _ => Ok(()),
        }
    }

    /// [`Journal::wait_stored`] for threads.
    pub fn blocking_wait_stored(&self, lsn: Lsn) -> Result<(), ReadError> {
        block_on(self.wait_stored(lsn))
    }

    /// A resource, with the record that changed it last, as of the store.
    pub fn resource(&self, key: &ResourceKey) -> Result<Option<(Resource, Lsn)>, ReadError> {
        Ok(self.owned_resource(key)?.map(|found| (found.resource, found.changed_lsn)))
    }

    /// [`Journal::resource`], with the source that it belongs to.
    pub fn owned_resource(&self, key: &ResourceKey) -> Result<Option<OwnedResource>, ReadError> {
        self.inner.shelf.with(|store| store.resource(key))
    }

    /// The resources of one kind whose names begin with `prefix` and come after `after`, and which `admits` does, with the
    /// sources that they belong to: at most `limit` of them, and those among at most [`PAGE_VISITS_MAX`] entries. They are of
    /// one state.
    pub fn owned_resources_page(
        &self,
        kind: Kind,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        mut admits: impl FnMut(&StoredResource<'_>) -> bool,
    ) -> Result<ResourcePage, ReadError> {
        let mut resources = Vec::new();
        let mut failed = None;
        let (mut visited, mut last, mut more) = (0, String::new(), false);
        let after = after.filter(|after| *after >= prefix).map(|after| ResourceKey::new(kind, after));
        let first = ResourceKey::new(kind, prefix);
        let start = after.as_ref().map_or(Bound::Included(&first), Bound::Excluded);
        self.inner.shelf.with(|store| {
            store.visit(Some(kind), start, |stored| {
                if !stored.name.starts_with(prefix) {
                    return false;
                }
                if resources.len() == limit || visited == PAGE_VISITS_MAX {
                    more = true;
                    return false;
                }
                visited += 1;
                last.clear();
                last.push_str(stored.name);
                if admits(&stored) {
                    match stored.decode() {
                        Ok(resource) => resources.push(resource),
                        Err(error) => failed = Some(error),
                    }
                }
                failed.is_none()
            })
        })?;
        failed.map_or(Ok(ResourcePage { resources, next: more.then_some(last) }), Err)
    }

    /// All resources of a kind (or of all), in the order of kind and name, with the record that changed each last. Read in
    /// pages: changes that are folded meanwhile may or may not show. [`Journal::for_each_encoded`] is exact.
    pub fn resources(&self, kind: Option<Kind>) -> Resources {
        Resources::new(Arc::clone(&self.inner.shelf), kind, None)
    }

    /// The resources of one kind whose names come after `name`, for those who read in pages of their own.
    pub fn resources_after(&self, kind: Kind, name: &str) -> Resources {
        let after = Some(ResourceKey::new(kind, name));
        Resources::new(Arc::clone(&self.inner.shelf), Some(kind), after)
    }

    /// Shows every stored resource to `visit` without decoding it, in the order of kind and name, as of the LSN that is
    /// returned. The store stands still meanwhile; appends go on.
    pub fn for_each_encoded(&self, mut visit: impl FnMut(StoredResource<'_>)) -> Result<Lsn, ReadError> {
        self.inner.shelf.with(|store| {
            store.visit(None, Bound::Unbounded, |resource| {
                visit(resource);
                true
            })?;
            Ok(store.head().lsn)
        })
    }

    /// Makes a checkpoint of the state at a record that is durable by now or later, and reads it back. Appends go on meanwhile.
    pub fn checkpoint(&self) -> Result<Checkpoint, ReadError> {
        let _hurry = self.inner.gate.hurry();
        self.blocking_wait_stored(self.inner.library.durable_lsn())?;
        self.inner.keeper.checkpoint()
    }

    /// Reads the whole log up to the durable head and says what can be trusted. Appends go on meanwhile.
    pub fn verify(&self, progress: impl FnMut(VerifyProgress)) -> Result<VerifyReport, OpenError> {
        let Library { disk, store_id, .. } = &self.inner.library;
        let durable_lsn = self.inner.library.durable_lsn();
        verify_log(&**disk, &self.inner.keeper.segments_dir, *store_id, Some(durable_lsn), progress)
    }

    /// Writes the whole journal, as it is now, into one file ([`crate::restore`] reads it). Appends go on meanwhile.
    pub fn snapshot(&self, out: &mut dyn io::Write) -> Result<Snapshot, SnapshotError> {
        let _hurry = self.inner.gate.hurry();
        save(&self.inner.keeper, out)
    }

    /// Makes a checkpoint, then lets go what `retention` does not want kept: whole segments behind the oldest checkpoint that
    /// stays, and older checkpoints. Their space comes back at once; readers behind it get [`ReadError::Compacted`].
    pub fn compact(&self, retention: &Retention) -> Result<Compacted, ReadError> {
        self.checkpoint()?;
        self.inner.keeper.compact(retention)
    }

    /// What there is, and what the writer has done since the journal was opened.
    pub fn stats(&self) -> Result<Stats, ReadError> {
        Ok(Stats { writing: Some(self.inner.activity.stats()), ..self.reader().stats()? })
    }

    /// Bytes that the store takes on disk.
    pub fn store_bytes(&self) -> Result<u64, ReadError> {
        self.inner.shelf.with(|store| Ok(store.size_on_disk()?))
    }

    /// How many resources the store has.
    pub fn resources_count(&self) -> Result<u64, ReadError> {
        self.inner.shelf.with(|store| Ok(store.resources_count()))
    }
}

impl Inner {
    fn intake(&self) -> Arc<Intake> {
        Arc::clone(&self.intake.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn resume(&self) -> Result<Durable<Head>, ResumeError> {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let head: Durable<Head> = *self.library.durable.borrow();
        if self.intake().failure().is_none() {
            return Ok(head);
        }
        if let Some(writer) = threads.writer.take() {
            // It has failed, so it is at its end.
            let _ = writer.join();
        }
        // What sources have written is what is durable: the rest was given up.
        let _hurry = self.gate.hurry();
        self.bell.want(head.lsn);
        let mut stored = self.stored.clone();
        let seen = block_on(stored.wait_for(|stored| stored.lsn >= head.lsn || stored.stuck.is_some()));
        match seen.as_deref() {
            Ok(Stored { lsn, stuck: Some(cause), .. }) if *lsn < head.lsn => {
                return Err(ReadError::Stuck { store_lsn: *lsn, cause: Arc::clone(cause) }.into());
            }
            Ok(_) => {}
            Err(_) => return Err(ReadError::Closed.into()),
        }
        let sources = Sources::new(self.shelf.with(Store::sources).map_err(ReadError::from)?);
        let Library { disk, store_id, catalogue, .. } = &self.library;
        let dir = &self.keeper.segments_dir;
        let failed = |source| ResumeError::Disk { path: dir.clone(), source };
        let header = SegmentHeader {
            store_id: *store_id,
            first_lsn: head.lsn.next(),
            previous_hash: head.hash,
            previous_first: Lsn::ZERO,
            previous_end: 0,
            created_wall_ns: self.config.clock.now().wall_ns,
        };
        let bytes = self.config.segment_bytes;
        let segments = resume_log(disk, dir, catalogue, header, bytes).map_err(failed)?;
        // The disk, not the cache, has to have the record that the log goes on from.
        if head.lsn > Lsn::ZERO && head.lsn >= catalogue.oldest_lsn() {
            let hash = self.library.encoded_record(head.lsn)?.hash();
            if hash != head.hash {
                return Err(
                    ReadError::Damaged { path: dir.clone(), damage: Damage::ChainBroken { lsn: head.lsn } }.into()
                );
            }
        }
        let last = catalogue.last();
        let end = LogEnd {
            store_id: *store_id,
            head: *head,
            segment_first: last.first_lsn,
            segment_bytes: bytes,
            offset: last.end(),
        };
        let (stored, gate) = (self.stored.clone(), Arc::clone(&self.gate));
        // The store has everything.
        let intake = Arc::new(Intake::new(&self.config, &end, boot_id(), sources, stored, 0, gate));
        let preparer = Preparer::start(Arc::clone(disk), dir.clone(), bytes).map_err(failed)?;
        let writer = Writer {
            intake: Arc::clone(&intake),
            segments,
            durable: Arc::clone(&self.durable),
            stored: self.stored.clone(),
            bell: Arc::clone(&self.bell),
            gate: Arc::clone(&self.gate),
            preparer,
            activity: Arc::clone(&self.activity),
        };
        let writer = thread::Builder::new().name("journal-write".to_owned()).spawn(move || writer.run());
        threads.writer = Some(writer.map_err(failed)?);
        *self.intake.write().unwrap_or_else(PoisonError::into_inner) = intake;
        tracing::info!(durable_lsn = head.lsn.0, "the journal accepts again");
        Ok(head)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _hurry = self.gate.hurry();
        self.intake().finish(&End::Closed);
        self.keeper.close();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        // First the writer, so that the follower sees the last record.
        if threads.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the journal's writer panicked");
        }
        if threads.keeper.take().is_some_and(|keeper| keeper.join().is_err()) {
            tracing::error!("the journal's keeper panicked");
        }
        self.bell.close();
        if threads.follower.take().is_some_and(|follower| follower.join().is_err()) {
            tracing::error!("the journal's follower panicked");
        }
    }
}
