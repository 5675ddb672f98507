//! What is kept: when checkpoints are made, and which segments and checkpoints may go.
//!
//! [`plan`] is pure. It lets whole segments go that a limit wants gone and that lie behind a checkpoint which stays, so
//! that the state at every record that is still there can be computed. Invariant: the newest checkpoint and the segment that is
//! written to are never let go.

use std::time::Duration;

use storage_schema::id::Lsn;

/// When a checkpoint is made by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// After so many records.
    pub records: u64,
    /// Or after so many bytes of log.
    pub bytes: u64,
}

/// How much of the past is kept. What a limit wants gone goes with its whole segment, at the next checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Keep at least so many records, and not many more.
    pub records: Option<u64>,
    /// Keep the log's files within so many bytes of disk, preallocated ones included; until the next checkpoint they may take
    /// up to three segments more. The segment that is written to and the one that is prepared are never let go.
    pub bytes: Option<u64>,
    /// Keep at least what is younger than this.
    pub age: Option<Duration>,
}

/// A closed segment, as the plan sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClosedSegment {
    pub(crate) first_lsn: Lsn,
    pub(crate) last_lsn: Lsn,
    pub(crate) bytes: u64,
    /// When its successor was created: its last record is not younger.
    pub(crate) closed_wall_ns: u64,
}

/// What may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Segments that begin before this go.
    pub(crate) segments_before: Lsn,
    /// Checkpoints before this go.
    pub(crate) checkpoints_before: Lsn,
}

/// The last record that a limit wants gone, by the closed segments (oldest first), the bytes of
/// those that are not, and the last record.
pub(crate) fn unwanted(
    retention: &Retention,
    closed: &[ClosedSegment],
    open_bytes: u64,
    durable_lsn: Lsn,
    now_wall_ns: u64,
) -> Lsn {
    let mut unwanted = Lsn::ZERO;
    let mut bytes_behind = open_bytes;
    for segment in closed.iter().rev() {
        let too_many = retention.records.is_some_and(|records| durable_lsn.0 - segment.last_lsn.0 >= records);
        let too_much = retention.bytes.is_some_and(|bytes| bytes_behind >= bytes);
        let too_old = retention.age.is_some_and(|age| {
            let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
            now_wall_ns.saturating_sub(segment.closed_wall_ns) > age_ns
        });
        if too_many || too_much || too_old {
            unwanted = unwanted.max(segment.last_lsn);
        }
        bytes_behind += segment.bytes;
    }
    unwanted
}

/// What may go when nobody wants records up to `unwanted`, with checkpoints at these records (ascending).
pub(crate) fn plan(closed: &[ClosedSegment], checkpoints: &[Lsn], unwanted: Lsn) -> Plan {
    // The newest checkpoint that makes the unwanted part dispensable. Without one everything stays.
    let Some(base) = checkpoints.iter().rev().find(|checkpoint| **checkpoint <= unwanted) else {
        return Plan::default();
    };
    let gone = closed.iter().take_while(|segment| segment.last_lsn <= *base).last();
    Plan { segments_before: gone.map_or(Lsn::ZERO, |segment| segment.last_lsn.next()), checkpoints_before: *base }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment(first: u64, last: u64) -> ClosedSegment {
        ClosedSegment { first_lsn: Lsn(first), last_lsn: Lsn(last), bytes: 1000, closed_wall_ns: last * 1_000_000_000 }
    }

    #[test]
    fn limits_are_kept() {
        let closed = [segment(1, 100), segment(101, 200), segment(201, 300)];
        let ask = |retention| unwanted(&retention, &closed, 500, Lsn(350), 400_000_000_000);
        let none = Retention::default();
        assert_eq!(ask(none), Lsn(0));
        assert_eq!(ask(Retention { records: Some(150), ..none }), Lsn(200));
        assert_eq!(ask(Retention { records: Some(151), ..none }), Lsn(100));
        assert_eq!(ask(Retention { bytes: Some(500), ..none }), Lsn(300));
        assert_eq!(ask(Retention { bytes: Some(501), ..none }), Lsn(200));
        assert_eq!(ask(Retention { age: Some(Duration::from_secs(150)), ..none }), Lsn(200));
    }

    proptest! {
        #[test]
        fn every_kept_state_can_be_computed(
            lengths in proptest::collection::vec(1u64..50, 1..10),
            checkpoints in proptest::collection::btree_set(1u64..400, 0..10),
            wanted in 0u64..500,
        ) {
            let mut first = 1;
            let closed: Vec<_> = lengths.iter().map(|length| {
                let closed = segment(first, first + length - 1);
                first += length;
                closed
            }).collect();
            let checkpoints: Vec<Lsn> = checkpoints.into_iter().map(Lsn).collect();
            let plan = plan(&closed, &checkpoints, Lsn(wanted));
            let oldest = closed.iter().map(|segment| segment.first_lsn).find(|first| *first >= plan.segments_before);
            let oldest = oldest.unwrap_or(Lsn(first));
            let kept: Vec<Lsn> = checkpoints.iter().copied().filter(|lsn| *lsn >= plan.checkpoints_before).collect();
            prop_assert_eq!(checkpoints.last(), kept.last());
            if oldest > Lsn(1) {
                // A checkpoint is kept from which the oldest record can be reached.
                prop_assert!(kept.first().is_some_and(|checkpoint| checkpoint.next() >= oldest));
                prop_assert!(oldest.0 - 1 <= wanted);
            }
        }
    }
}
