//! Moments as they are typed: an LSN, a time, or how long ago.

use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::journal::Position;
use storage_schema::id::Lsn;

/// A moment of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct When(pub Position);

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text, SystemTime::now()).ok_or_else(|| {
            "neither an LSN (812), nor a time in UTC (2026-11-22T14:03:22Z, '2026-11-22 14:03:22', 14:03:22), nor a time before \
             now (-10m)"
                .to_owned()
        })
    }
}

fn parse(text: &str, now: SystemTime) -> Option<When> {
    if let Ok(lsn) = text.parse() {
        return Some(When(Position::Lsn(Lsn(lsn))));
    }
    let time = match text.strip_prefix('-') {
        Some(ago) => now.checked_sub(humantime::parse_duration(ago).ok()?)?,
        None => {
            let today = humantime::format_rfc3339_seconds(now).to_string();
            let (date, _) = today.split_once('T')?;
            let on = |date: &str| humantime::parse_rfc3339_weak(&format!("{date} {text}"));
            humantime::parse_rfc3339_weak(text).or_else(|_| on(date)).ok()?
        }
    };
    let since_epoch = time.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since_epoch.as_nanos()).ok().map(|wall_ns| When(Position::Time(wall_ns)))
}

/// A time of the wall clock (nanoseconds since 1970-01-01 UTC) as it is printed; [`When`] reads it.
pub fn format_wall_ns(wall_ns: u64) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(wall_ns)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_700_000_000; // 2023-11-14T22:13:20Z

    fn time(text: &str) -> Option<u64> {
        match parse(text, UNIX_EPOCH + Duration::from_secs(NOW_S))?.0 {
            Position::Time(wall_ns) => Some(wall_ns / 1_000_000_000),
            Position::Lsn(_) => None,
        }
    }

    #[test]
    fn moments_are_read_as_they_are_typed() {
        assert_eq!(parse("812", UNIX_EPOCH), Some(When(Position::Lsn(Lsn(812)))));
        assert_eq!(time("-10m"), Some(NOW_S - 600));
        assert_eq!(time("2023-11-14T22:13:20Z"), Some(NOW_S));
        assert_eq!(time("2023-11-14 22:13:20"), Some(NOW_S));
        assert_eq!(time("22:13:20"), Some(NOW_S));
        assert_eq!(time("14:03:22.5"), Some(NOW_S - 29_398));
        for bad in ["", "-", "yesterday", "25:00:00", "-812", "2023-13-01 00:00:00", "1m", "99999999999999999999"] {
            assert_eq!(parse(bad, UNIX_EPOCH), None, "{bad}");
        }
    }

    #[test]
    fn what_is_printed_is_read_again() {
        assert_eq!(time(&format_wall_ns(NOW_S * 1_000_000_000)), Some(NOW_S));
    }
}
