//! Where a record's times come from. Behind a trait, because tests of time indexes need a wall clock that steps back.

use std::fmt;
use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use storage_schema::id::BootId;

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// Nanoseconds since 1970-01-01 UTC; may step back.
    pub wall_ns: u64,
    /// `CLOCK_BOOTTIME`, nanoseconds; never steps back within one boot.
    pub monotonic_ns: u64,
}

/// A source of time.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Both clocks, read together.
    fn now(&self) -> Instant;
}

/// The machine's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        // A wall clock before 1970 is a broken clock, not a reason to refuse a record: it reads as zero.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let monotonic = clock_gettime(ClockId::Boottime);
        Instant {
            wall_ns: u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX),
            monotonic_ns: u64::try_from(monotonic.tv_sec).unwrap_or_default() * 1_000_000_000
                + u64::try_from(monotonic.tv_nsec).unwrap_or_default(),
        }
    }
}

/// The kernel's boot id; zeros where there is none to be read, which equals no other boot's.
pub(crate) fn boot_id() -> BootId {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    BootId(u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes())
}
