//! Recovery classification: what the end of a log looks like, what that means, and what is done about it.
//!
//! Pure: it sees evidence that [`super::scan`] gathered and returns a verdict. The table stands here twice, for people and
//! as [`TABLE`], and a test holds the two together.
//!
//! | finding | evidence | meaning | verdict |
//! |---|---|---|---|
//! | clean end | zeros to the end of the last segment | everything was written | accept |
//! | torn frame | a bad frame, no good frame after it | the last write was cut off; never acknowledged | cut |
//! | torn group | a bad frame or zeros, later good frames of the same group only | sectors of the last write came out of order; never acknowledged | cut |
//! | damaged record | a bad frame, a later good frame of a later group | an acknowledged record was altered | refuse |
//! | zeroed record | zeros, a later good frame of a later group | an acknowledged record was lost | refuse |
//! | gap | a good frame whose LSN is too high, or a segment is missing | acknowledged records were lost | refuse |
//! | repeated record | a good frame whose LSN is too low | the file was put together by something else | refuse |
//! | chain broken | a record or segment whose predecessor's hash is not its predecessor's | a record was replaced | refuse |
//! | truncated segment | a closed segment shorter than its successor says | acknowledged records were lost | refuse |
//! | damaged header | a segment without a valid header, or under a wrong name | acknowledged records may be behind it | refuse |
//! | foreign segment | a segment of another store id | files of two journals were mixed | refuse |
//! | newer format | a segment of a later format version | this build is too old | refuse |
//!
//! What cannot be told apart: a last group that was acknowledged and then damaged so that no frame of it is left whole looks
//! like a torn frame. The derived store remembers a higher LSN then, and opening says so (`OpenReport::lost`).

use std::fmt;

use storage_schema::id::{Lsn, StoreId};

/// What the scan of a log's last segment came to a stop at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Zeros where the next frame would begin.
    Zeros,
    /// Bytes that are no frame.
    Bad,
    /// A good frame with another number.
    Unexpected(Lsn),
}

/// What was seen at and behind the stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The record that should come next.
    pub expected: Lsn,
    /// What is there instead.
    pub stop: Stop,
    /// Whether all the bytes behind are zeros.
    pub rest_is_zero: bool,
    /// Of the good frames with a higher number behind the stop, the highest group: its LSN says what was durable before.
    pub later_group: Option<Lsn>,
}

/// The rows of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Everything was written.
    CleanEnd,
    /// The last write was cut off.
    TornFrame,
    /// Sectors of the last write came out of order.
    TornGroup,
    /// An acknowledged record was altered.
    DamagedRecord,
    /// An acknowledged record was zeroed.
    ZeroedRecord,
    /// Records are missing.
    Gap,
    /// A record comes again.
    RepeatedRecord,
    /// A record was replaced.
    ChainBroken,
    /// A closed segment is too short.
    TruncatedSegment,
    /// A segment has no valid header.
    DamagedHeader,
    /// A segment is of another store.
    ForeignSegment,
    /// A segment is of a later format.
    NewerFormat,
}

/// What recovery does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Accept,
    /// Cuts at the stop and goes on; nothing that was acknowledged is lost.
    Cut,
    /// Opens nothing and names the LSN.
    Refuse,
}

/// The table: finding, its name in the documentation, verdict.
pub const TABLE: [(Finding, &str, Verdict); 12] = [
    (Finding::CleanEnd, "clean end", Verdict::Accept),
    (Finding::TornFrame, "torn frame", Verdict::Cut),
    (Finding::TornGroup, "torn group", Verdict::Cut),
    (Finding::DamagedRecord, "damaged record", Verdict::Refuse),
    (Finding::ZeroedRecord, "zeroed record", Verdict::Refuse),
    (Finding::Gap, "gap", Verdict::Refuse),
    (Finding::RepeatedRecord, "repeated record", Verdict::Refuse),
    (Finding::ChainBroken, "chain broken", Verdict::Refuse),
    (Finding::TruncatedSegment, "truncated segment", Verdict::Refuse),
    (Finding::DamagedHeader, "damaged header", Verdict::Refuse),
    (Finding::ForeignSegment, "foreign segment", Verdict::Refuse),
    (Finding::NewerFormat, "newer format", Verdict::Refuse),
];

impl Finding {
    /// What is done about it.
    pub fn verdict(self) -> Verdict {
        TABLE.iter().find(|row| row.0 == self).expect("every finding has a row").2
    }

    /// Its name in the table.
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|row| row.0 == self).expect("every finding has a row").1
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Classifies the end of a log's last segment.
pub fn classify(evidence: &Evidence) -> Finding {
    let acknowledged = evidence.later_group.is_some_and(|group| group > evidence.expected);
    match evidence.stop {
        Stop::Unexpected(found) if found < evidence.expected => Finding::RepeatedRecord,
        Stop::Unexpected(_) => Finding::Gap,
        Stop::Zeros if evidence.rest_is_zero => Finding::CleanEnd,
        Stop::Zeros if acknowledged => Finding::ZeroedRecord,
        Stop::Bad if acknowledged => Finding::DamagedRecord,
        Stop::Zeros | Stop::Bad if evidence.later_group.is_some() => Finding::TornGroup,
        Stop::Zeros | Stop::Bad => Finding::TornFrame,
    }
}

/// Why a log cannot be trusted from some record on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// An acknowledged record is altered or lost; later ones are there.
    #[error(
        "{finding} at LSN {lsn}: it was acknowledged, and later records are there; `holdfast journal verify` shows the \
         extent, `holdfast journal repair` cuts the log before it"
    )]
    Record {
        /// Which row of the table.
        finding: Finding,
        /// The first record that cannot be trusted.
        lsn: Lsn,
    },
    /// Records are missing between two that are there.
    #[error(
        "gap: LSN {found} follows where {expected} should be; restore the missing files, or `holdfast journal repair`"
    )]
    Gap {
        /// The first record that is missing.
        expected: Lsn,
        /// What is there instead.
        found: Lsn,
    },
    /// A record does not continue the one before it.
    #[error(
        "chain broken at LSN {lsn}: it was not written after the record before it; `holdfast journal verify` shows more"
    )]
    ChainBroken {
        /// The record that does not fit.
        lsn: Lsn,
    },
    /// A closed segment is too short.
    #[error(
        "truncated segment: {bytes} of {bytes_expected} bytes, records from LSN {first_lsn} on are affected; restore the \
         file, or `holdfast journal repair`"
    )]
    Truncated {
        /// The segment's first record.
        first_lsn: Lsn,
        /// Its length.
        bytes: u64,
        /// What its successor says.
        bytes_expected: u64,
    },
    /// A segment without a valid header.
    #[error(
        "damaged header: no record from LSN {first_lsn} on can be trusted; restore the file, or `holdfast journal repair`"
    )]
    Header {
        /// The first record that cannot be trusted.
        first_lsn: Lsn,
    },
    /// A segment of another journal.
    #[error("foreign segment: it belongs to store {found}, this is store {expected}; move it away")]
    Foreign {
        /// Its store.
        found: StoreId,
        /// This store.
        expected: StoreId,
    },
    /// A segment of a later format.
    #[error("newer format: version {found} is not known here; use a newer holdfast")]
    NewerFormat {
        /// Its format version.
        found: u32,
    },
}

impl Damage {
    /// The row of the table.
    pub fn finding(&self) -> Finding {
        match self {
            Self::Record { finding, .. } => *finding,
            Self::Gap { .. } => Finding::Gap,
            Self::ChainBroken { .. } => Finding::ChainBroken,
            Self::Truncated { .. } => Finding::TruncatedSegment,
            Self::Header { .. } => Finding::DamagedHeader,
            Self::Foreign { .. } => Finding::ForeignSegment,
            Self::NewerFormat { .. } => Finding::NewerFormat,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table_is_the_table() {
        let rows: Vec<(&str, &str)> = include_str!("recovery.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("//! | "))
            .skip(1)
            .map(|row| {
                let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
                (cells[0], cells[3])
            })
            .collect();
        let data: Vec<(&str, &str)> = TABLE
            .iter()
            .map(|(_, name, verdict)| {
                (
                    *name,
                    match verdict {
                        Verdict::Accept => "accept",
                        Verdict::Cut => "cut",
                        Verdict::Refuse => "refuse",
                    },
                )
            })
            .collect();
        assert_eq!(rows, data);
    }

    #[test]
    fn classification_follows_the_table() {
        let evidence = |stop, rest_is_zero, later_group: Option<u64>| Evidence {
            expected: Lsn(10),
            stop,
            rest_is_zero,
            later_group: later_group.map(Lsn),
        };
        let cases = [
            (evidence(Stop::Zeros, true, None), Finding::CleanEnd),
            (evidence(Stop::Zeros, false, None), Finding::TornFrame),
            (evidence(Stop::Bad, false, None), Finding::TornFrame),
            (evidence(Stop::Bad, true, None), Finding::TornFrame),
            (evidence(Stop::Bad, false, Some(10)), Finding::TornGroup),
            (evidence(Stop::Bad, false, Some(4)), Finding::TornGroup),
            (evidence(Stop::Zeros, false, Some(10)), Finding::TornGroup),
            (evidence(Stop::Bad, false, Some(11)), Finding::DamagedRecord),
            (evidence(Stop::Zeros, false, Some(11)), Finding::ZeroedRecord),
            (evidence(Stop::Unexpected(Lsn(12)), false, None), Finding::Gap),
            (evidence(Stop::Unexpected(Lsn(9)), false, None), Finding::RepeatedRecord),
        ];
        for (evidence, finding) in cases {
            assert_eq!(classify(&evidence), finding, "{evidence:?}");
        }
    }
}
