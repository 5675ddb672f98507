//! The way in: numbers, encodes and queues transactions, and lets their pushers wait for the disk.
//!
//! [`Intake`] is one life of the writer. Under its lock a transaction gets its LSN, is chained to the record before it and
//! becomes a frame at a place in a segment that is already decided; the writer thread only carries groups out. A write that
//! fails ends that life: everything queued learns the cause, nothing more is accepted.
//!
//! Invariant (dense): LSNs are given out without gaps, in the order of `submit`.
//! Invariant (bounded): at most `queue_records_max` records have a place in the queue; at most `queue_bytes_max` bytes and one
//! record for each permit that was already out wait in it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use storage_schema::codec::{Link, encode_record, hash_record, stamp_record};
use storage_schema::id::{BootId, Lsn, RecordHash, StoreId};
use storage_schema::record::{ArchivedRecord, Record, Transaction};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::block_on::block_on;
use crate::clock::Clock;
use crate::config::Config;
use crate::durable::Head;
use crate::error::{AppendError, WriteFailure};
use crate::follow::Stored;
use crate::gate::Gate;
use crate::segment::frame::{frame_bytes, push_frame};
use crate::segment::header::{SEGMENT_HEADER_BYTES, SegmentHeader};
use crate::segment::open::OpenLog;
use crate::segment::write::{Group, NewSegment};
use crate::sources::{Known, Sources};

/// A transaction that has its number and waits for the disk.
#[derive(Clone, Debug)]
pub struct Submitted {
    /// Its number.
    pub lsn: Lsn,
    /// Its acknowledgement to come.
    pub ack: Ack,
}

/// Proof of a durable record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The record.
    pub lsn: Lsn,
    /// Its hash.
    pub hash: RecordHash,
    /// When it was first known to be durable, nanoseconds since 1970-01-01 UTC. The moment of a sync is not kept on disk: the
    /// receipt of a push that is repeated much later says when the record was appended instead.
    pub durable_wall_ns: u64,
}

/// An acknowledgement to come. Clones wait for the same one.
#[derive(Clone, Debug)]
pub struct Ack {
    lsn: Lsn,
    hash: RecordHash,
    state: AckState,
}

#[derive(Clone, Debug)]
enum AckState {
    /// Durable since long ago.
    Known { durable_wall_ns: u64 },
    /// To be seen. Each group has an outcome of its own, so that only those are woken whom it concerns.
    Pending(watch::Receiver<Outcome>),
}

/// What became of a group.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// It waits, or is being written.
    Pending,
    /// It is durable.
    Durable { wall_ns: u64 },
    /// It was given up.
    GivenUp(End),
}

/// How a life of the writer ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Failed(Arc<WriteFailure>),
    Closed,
}

impl From<End> for AppendError {
    fn from(end: End) -> Self {
        match end {
            End::Failed(failure) => Self::Failed(failure),
            End::Closed => Self::Closed,
        }
    }
}

impl Ack {
    /// The acknowledgement of a record on its way.
    pub(crate) fn pending(known: Known) -> Self {
        Self { lsn: known.lsn, hash: known.hash, state: AckState::Pending(known.outcome) }
    }

    /// The acknowledgement of a record that is durable already.
    pub(crate) fn known(receipt: Receipt) -> Self {
        let state = AckState::Known { durable_wall_ns: receipt.durable_wall_ns };
        Self { lsn: receipt.lsn, hash: receipt.hash, state }
    }

    /// The record's number.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// The record's hash.
    pub fn hash(&self) -> RecordHash {
        self.hash
    }

    /// Waits until the record is durable, or known not to be acknowledged.
    pub async fn wait(&self) -> Result<Receipt, AppendError> {
        let Self { lsn, hash, state } = self.clone();
        let durable_wall_ns = match state {
            AckState::Known { durable_wall_ns } => durable_wall_ns,
            AckState::Pending(mut outcome) => {
                let seen = outcome.wait_for(|outcome| !matches!(outcome, Outcome::Pending)).await;
                match seen.as_deref() {
                    Ok(Outcome::Durable { wall_ns }) => *wall_ns,
                    Ok(Outcome::GivenUp(end)) => return Err(end.clone().into()),
                    Ok(Outcome::Pending) | Err(_) => return Err(AppendError::Closed),
                }
            }
        };
        Ok(Receipt { lsn, hash, durable_wall_ns })
    }

    /// [`Ack::wait`] for threads that run no async code.
    pub fn blocking_wait(&self) -> Result<Receipt, AppendError> {
        block_on(self.wait())
    }
}

/// A place in the queue.
#[derive(Debug)]
pub struct Permit {
    intake: Arc<Intake>,
    slot: OwnedSemaphorePermit,
    /// Wall clock when it was asked for.
    received_wall_ns: u64,
    client: Option<String>,
}

impl Permit {
    /// Has the record say who pushed it, as the transport knows it: see [`Record::client`].
    #[must_use]
    pub fn client(self, client: Option<String>) -> Self {
        Self { client, ..self }
    }

    /// Gives the transaction the next LSN and queues it for the disk. Brief: it encodes and hashes, but does no I/O.
    pub fn submit(self, transaction: Transaction) -> Result<Submitted, AppendError> {
        let submitted = self.intake.submit(transaction, self.received_wall_ns, self.client)?;
        // The writer gives the slot back when the record has left the queue.
        self.slot.forget();
        Ok(submitted)
    }
}

/// One life of the writer, seen from its pushers.
#[derive(Debug)]
pub(crate) struct Intake {
    limits: Limits,
    store_id: StoreId,
    boot_id: BootId,
    clock: Arc<dyn Clock>,
    queue: Mutex<Queue>,
    work: Condvar,
    slots: Arc<Semaphore>,
    room: Notify,
    queued_bytes: AtomicU64,
    /// Bytes of all records, counted as [`Stored::bytes`] is.
    appended_bytes: AtomicU64,
    stored: watch::Receiver<Stored>,
    gate: Arc<Gate>,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    segment_bytes: u64,
    record_bytes_max: u64,
    queue_records_max: usize,
    queue_bytes_max: u64,
    store_lag_bytes_max: u64,
    group_bytes_max: usize,
    group_wait: Duration,
    receipts_per_source: usize,
}

/// Where a log goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogEnd {
    pub(crate) store_id: StoreId,
    pub(crate) head: Head,
    pub(crate) segment_first: Lsn,
    pub(crate) segment_bytes: u64,
    pub(crate) offset: u64,
}

impl From<&OpenLog> for LogEnd {
    fn from(log: &OpenLog) -> Self {
        Self {
            store_id: log.header.store_id,
            head: log.head,
            segment_first: log.header.first_lsn,
            segment_bytes: log.segment_bytes,
            offset: log.catalogue.last().end(),
        }
    }
}

/// A group, and where its pushers look.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) group: Group,
    outcome: watch::Sender<Outcome>,
}

/// What the writer sleeps for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleep {
    /// A record.
    Work,
    /// The end of `group_wait`, or of the group if that comes first.
    FullGroup,
}

#[derive(Debug)]
struct Queue {
    /// The last record that has a number.
    head: Head,
    /// The segment that the next record goes into, its preallocated length, and where in it.
    segment_first: Lsn,
    segment_bytes: u64,
    offset: u64,
    groups: VecDeque<Queued>,
    /// What the writer sleeps for, if it does.
    sleep: Option<Sleep>,
    sources: Sources,
    end: Option<End>,
}

impl Intake {
    pub(crate) fn new(
        config: &Config,
        log: &LogEnd,
        boot_id: BootId,
        sources: Sources,
        stored: watch::Receiver<Stored>,
        behind_bytes: u64,
        gate: Arc<Gate>,
    ) -> Self {
        let queue = Queue {
            head: log.head,
            segment_first: log.segment_first,
            segment_bytes: log.segment_bytes,
            offset: log.offset,
            groups: VecDeque::new(),
            sleep: None,
            sources,
            end: None,
        };
        let appended_bytes = AtomicU64::new(stored.borrow().bytes + behind_bytes);
        Self {
            limits: Limits {
                segment_bytes: config.segment_bytes,
                record_bytes_max: config.record_bytes_max,
                queue_records_max: config.queue_records_max,
                queue_bytes_max: config.queue_bytes_max,
                store_lag_bytes_max: config.store_lag_bytes_max,
                group_bytes_max: config.group_bytes_max,
                group_wait: config.group_wait,
                receipts_per_source: config.receipts_per_source,
            },
            store_id: log.store_id,
            boot_id,
            clock: Arc::clone(&config.clock),
            queue: Mutex::new(queue),
            work: Condvar::new(),
            slots: Arc::new(Semaphore::new(config.queue_records_max)),
            room: Notify::new(),
            queued_bytes: AtomicU64::new(0),
            appended_bytes,
            stored,
            gate,
        }
    }

    /// Why nothing is accepted, if a failure is why.
    pub(crate) fn failure(&self) -> Option<Arc<WriteFailure>> {
        match &self.lock().end {
            Some(End::Failed(failure)) => Some(Arc::clone(failure)),
            _ => None,
        }
    }

    pub(crate) fn appended_lsn(&self) -> Lsn {
        self.lock().head.lsn
    }

    /// Runs `question` on the sources as they are with everything queued.
    pub(crate) fn with_sources<T>(&self, question: impl FnOnce(&Sources) -> T) -> T {
        question(&self.lock().sources)
    }

    pub(crate) async fn reserve(self: &Arc<Self>) -> Result<Permit, AppendError> {
        let received_wall_ns = self.clock.now().wall_ns;
        let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { return Err(self.ended()) };
        if self.has_room(&self.stored.borrow()) {
            return Ok(self.permit(slot, received_wall_ns));
        }
        let mut stored = self.stored.clone();
        loop {
            let freed = self.room.notified();
            if self.has_room(&stored.borrow_and_update()) {
                return Ok(self.permit(slot, received_wall_ns));
            }
            if self.slots.is_closed() {
                return Err(self.ended());
            }
            tokio::select! {
                () = freed => {}
                followed = stored.changed() => followed.map_err(|_| AppendError::Closed)?,
            }
        }
    }

    /// Whether one more may wait. A store that is stuck holds nobody up: it can be rebuilt.
    fn has_room(&self, stored: &Stored) -> bool {
        let lag = self.appended_bytes.load(Ordering::Acquire).saturating_sub(stored.bytes);
        let followed = lag < self.limits.store_lag_bytes_max || stored.stuck.is_some();
        followed && self.queued_bytes.load(Ordering::Acquire) < self.limits.queue_bytes_max
    }

    pub(crate) fn try_reserve(self: &Arc<Self>) -> Result<Permit, AppendError> {
        let received_wall_ns = self.clock.now().wall_ns;
        let bytes = self.queued_bytes.load(Ordering::Acquire);
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        match slot {
            Ok(slot) if self.has_room(&self.stored.borrow()) => Ok(self.permit(slot, received_wall_ns)),
            Err(tokio::sync::TryAcquireError::Closed) => Err(self.ended()),
            _ => {
                let records = self.limits.queue_records_max - self.slots.available_permits();
                Err(AppendError::QueueFull { records, bytes })
            }
        }
    }

    fn permit(self: &Arc<Self>, slot: OwnedSemaphorePermit, received_wall_ns: u64) -> Permit {
        Permit { intake: Arc::clone(self), slot, received_wall_ns, client: None }
    }

    fn ended(&self) -> AppendError {
        self.lock().end.clone().unwrap_or(End::Closed).into()
    }

    fn submit(
        &self,
        transaction: Transaction,
        received_wall_ns: u64,
        client: Option<String>,
    ) -> Result<Submitted, AppendError> {
        // What can be done before its turn has come keeps nobody else waiting.
        let record = Record {
            lsn: Lsn::ZERO,
            transaction,
            wall_ns: 0,
            monotonic_ns: 0,
            boot_id: self.boot_id,
            previous_hash: RecordHash::default(),
            received_wall_ns: Some(received_wall_ns),
            client,
        };
        let mut body = encode_record(&record);
        self.check_size(&body)?;
        let mut queue = self.lock();
        if let Some(end) = &queue.end {
            return Err(end.clone().into());
        }
        queue.sources.admit(&record.transaction.origin)?;
        let now = self.clock.now();
        let link = Link { lsn: queue.head.lsn.next(), previous_hash: queue.head.hash };
        stamp_record(&mut body, link, now.wall_ns, now.monotonic_ns);
        let head = Head { lsn: link.lsn, hash: hash_record(&body) };
        let outcome = queue.enqueue(self, head, &body, now.wall_ns);
        let known = Known { lsn: head.lsn, hash: head.hash, outcome };
        let (stored_lsn, stored_bytes) = {
            let stored = self.stored.borrow();
            (stored.lsn, stored.bytes)
        };
        queue.sources.note(&record.transaction, &known, stored_lsn, self.limits.receipts_per_source);
        let appended_bytes = self.appended_bytes.fetch_add(body.len() as u64, Ordering::AcqRel) + body.len() as u64;
        // Well before anybody has to wait for it.
        let lag = appended_bytes.saturating_sub(stored_bytes);
        self.gate.set_behind(lag > self.limits.store_lag_bytes_max / 2);
        self.queued_bytes.fetch_add(frame_bytes(body.len()) as u64, Ordering::AcqRel);
        let wake = match queue.sleep {
            Some(Sleep::Work) => true,
            Some(Sleep::FullGroup) => queue.groups.len() > 1,
            None => false,
        };
        if wake {
            queue.sleep = None;
            self.gate.shut();
        }
        drop(queue);
        if wake {
            self.work.notify_one();
        }
        Ok(Submitted { lsn: head.lsn, ack: Ack::pending(known) })
    }

    /// The next group for the writer; `None` when the journal is being closed and nothing is left.
    pub(crate) fn next_group(&self) -> Option<Queued> {
        let mut queue = self.lock();
        while queue.groups.is_empty() {
            if queue.end.is_some() {
                return None;
            }
            queue.sleep = Some(Sleep::Work);
            self.gate.leave_open();
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if !self.limits.group_wait.is_zero() {
            let gathering = |queue: &mut Queue| queue.groups.len() == 1 && queue.end.is_none();
            queue.sleep = Some(Sleep::FullGroup);
            self.gate.open_for(self.limits.group_wait / 2);
            let waited = self.work.wait_timeout_while(queue, self.limits.group_wait, gathering);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.sleep = None;
        self.gate.shut();
        queue.groups.pop_front()
    }

    /// Queues a record as another journal wrote it (`encoded`), with its own times, boot and schema version. Invariant: it
    /// continues the record before it.
    pub(crate) fn append_as_is(&self, record: &ArchivedRecord, encoded: &[u8]) -> Result<(), AppendError> {
        let mut queue = self.lock();
        let (lsn, previous_hash) = (Lsn(record.lsn.0.to_native()), RecordHash(record.previous_hash.0));
        assert_eq!((lsn, previous_hash), (queue.head.lsn.next(), queue.head.hash), "it continues the log");
        self.check_size(encoded)?;
        queue.enqueue(self, Head { lsn, hash: hash_record(encoded) }, encoded, record.wall_ns.to_native());
        Ok(())
    }

    fn check_size(&self, body: &[u8]) -> Result<(), AppendError> {
        let (bytes, limit) = (body.len() as u64, self.limits.record_bytes_max);
        if bytes > limit { Err(AppendError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    /// How many groups wait.
    pub(crate) fn queued_groups(&self) -> usize {
        self.lock().groups.len()
    }

    /// A group is durable: acknowledges it and makes room. Invariant (acknowledged means durable): the writer calls it after
    /// the group's sync returned `Ok`, and nothing else does.
    pub(crate) fn acknowledge(&self, queued: &Queued) {
        let group = &queued.group;
        queued.outcome.send_replace(Outcome::Durable { wall_ns: self.clock.now().wall_ns });
        self.queued_bytes.fetch_sub(group.frames.len() as u64, Ordering::AcqRel);
        self.slots.add_permits(group.records);
        self.room.notify_waiters();
    }

    /// A group could not be made durable: ends this life. Whoever waits learns the cause.
    pub(crate) fn give_up(&self, queued: &Queued, failure: WriteFailure) {
        let end = End::Failed(Arc::new(failure));
        self.finish(&end);
        queued.outcome.send_replace(Outcome::GivenUp(end));
    }

    /// Ends this life: with `Failed` everything that is queued is given up; with `Closed` the writer still carries it out.
    pub(crate) fn finish(&self, end: &End) {
        let mut queue = self.lock();
        if queue.end.is_none() {
            queue.end = Some(end.clone());
        }
        if matches!(end, End::Failed(_)) {
            for queued in queue.groups.drain(..) {
                queued.outcome.send_replace(Outcome::GivenUp(end.clone()));
            }
        }
        drop(queue);
        self.slots.close();
        self.room.notify_waiters();
        self.work.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn enqueue(&mut self, intake: &Intake, head: Head, body: &[u8], wall_ns: u64) -> watch::Receiver<Outcome> {
        let bytes = frame_bytes(body.len());
        // An empty segment takes its first record whatever its size: a successor would begin with the same LSN.
        let empty = self.offset == SEGMENT_HEADER_BYTES as u64;
        let full = self.offset + bytes as u64 > self.segment_bytes && !empty;
        let opens = full.then(|| self.roll(intake, bytes, wall_ns));
        let fits = self.groups.back().is_some_and(|queued| {
            opens.is_none() && queued.group.frames.len() + bytes <= intake.limits.group_bytes_max
        });
        if !fits {
            let group = Group {
                opens,
                first_lsn: head.lsn,
                last_lsn: head.lsn,
                last_hash: head.hash,
                records: 0,
                offset: self.offset,
                frames: Vec::with_capacity(bytes),
            };
            self.groups.push_back(Queued { group, outcome: watch::Sender::new(Outcome::Pending) });
        }
        let Queued { group, outcome } = self.groups.back_mut().expect("one was there or was made");
        push_frame(&mut group.frames, intake.store_id, head.lsn, group.first_lsn, body);
        group.last_lsn = head.lsn;
        group.last_hash = head.hash;
        group.records += 1;
        self.offset += bytes as u64;
        self.head = head;
        outcome.subscribe()
    }

    /// Goes on in a new segment, which is made large enough for the record that opens it.
    fn roll(&mut self, intake: &Intake, frame_bytes: usize, wall_ns: u64) -> NewSegment {
        let header = SegmentHeader {
            store_id: intake.store_id,
            first_lsn: self.head.lsn.next(),
            previous_hash: self.head.hash,
            previous_first: self.segment_first,
            previous_end: self.offset,
            created_wall_ns: wall_ns,
        };
        let needed = (SEGMENT_HEADER_BYTES + frame_bytes).next_multiple_of(4096) as u64;
        self.segment_first = header.first_lsn;
        self.segment_bytes = intake.limits.segment_bytes.max(needed);
        self.offset = SEGMENT_HEADER_BYTES as u64;
        NewSegment { header, bytes: self.segment_bytes }
    }
}
