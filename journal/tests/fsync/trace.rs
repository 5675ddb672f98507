//! Reads what strace writes (`-f -y -o`) and checks in it that acknowledgements come last.
//!
//! strace stops a thread when a call begins and when it ends, and lets it go on only when it has noted that. The order of its
//! lines is therefore an order of events: a call that is one line began and ended there, with nothing between; any other
//! has two lines, `<unfinished ...>` and `<... resumed>`.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// All calls that put bytes into a file, or behind a sync.
pub(crate) const CALLS: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync";

/// Bytes of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Range<u64>,
}

/// A call that succeeded.
#[derive(Debug)]
pub(crate) struct Call {
    /// The lines on which it began and ended.
    began: usize,
    ended: usize,
    what: What,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Write(Place),
    Sync(PathBuf),
    /// The process says that it has the acknowledgement of this record.
    Ack(u64),
    /// It concerns neither.
    Other,
}

/// What was seen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Acked {
    pub(crate) acks: usize,
    pub(crate) syncs: usize,
}

/// Reads a trace; acknowledgements are what is written to the file `acks`. Calls that failed have done nothing that can be relied
/// on, and are left out.
pub(crate) fn read(trace: &str, acks: &Path) -> Result<Vec<Call>, String> {
    let mut calls = Vec::new();
    let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
    for (line, text) in trace.lines().enumerate() {
        let refuse = |what: &str| format!("line {} of the trace {what}: {text}", line + 1);
        let (thread, event) = text.split_once(' ').ok_or_else(|| refuse("has no thread"))?;
        let event = event.trim();
        if event.starts_with("+++") || event.starts_with("---") {
            continue;
        }
        if let Some(call) = event.strip_suffix("<unfinished ...>") {
            unfinished.insert(thread, (line, call));
            continue;
        }
        let (asked, answer) = event.rsplit_once(" = ").ok_or_else(|| refuse("has no answer"))?;
        let (began, asked) = if asked.starts_with("<... ") {
            unfinished.remove(thread).ok_or_else(|| refuse("ends what has not begun"))?
        } else {
            (line, asked)
        };
        let Ok(done) = answer.split(' ').next().unwrap_or_default().parse::<u64>() else { continue };
        let what = understand(asked, done, acks).ok_or_else(|| refuse("cannot be read"))?;
        calls.push(Call { began, ended: line, what });
    }
    Ok(calls)
}

/// What a call that returned `done` means; `None` if that cannot be told.
fn understand(asked: &str, done: u64, acks: &Path) -> Option<What> {
    let (name, rest) = asked.split_once('(')?;
    let (_, rest) = rest.split_once('<')?;
    let (path, rest) = rest.split_once('>')?;
    let path = Path::new(path);
    let in_segment = path.extension().is_some_and(|suffix| suffix == "seg");
    match name {
        "fsync" | "fdatasync" if in_segment => Some(What::Sync(path.to_owned())),
        "write" if path == acks => {
            let text = rest.strip_prefix(", \"")?.split_once("\\n\"")?.0;
            Some(What::Ack(text.parse().ok()?))
        }
        "pwrite64" if in_segment => {
            let offset: u64 = rest.trim_end().trim_end_matches(')').rsplit_once(", ")?.1.parse().ok()?;
            Some(What::Write(Place { path: path.to_owned(), bytes: offset..offset + done }))
        }
        _ => (!in_segment && path != acks).then_some(What::Other),
    }
}

/// For every acknowledgement: the last write to any byte of its record ended, then a sync of that very file began and
/// succeeded, then the acknowledgement was written.
pub(crate) fn check(calls: &[Call], places: &BTreeMap<u64, Place>) -> Result<Acked, String> {
    let mut acks = 0;
    for ack in calls {
        let What::Ack(lsn) = ack.what else { continue };
        acks += 1;
        let place = places.get(&lsn).ok_or_else(|| format!("record {lsn} was acknowledged and is in no segment"))?;
        let written = written(calls, place).ok_or_else(|| format!("record {lsn} was not written as a whole"))?;
        let synced = calls.iter().any(|call| {
            let of_its_file = matches!(&call.what, What::Sync(path) if *path == place.path);
            of_its_file && call.began > written && call.ended < ack.began
        });
        if !synced {
            return Err(format!(
                "record {lsn} was acknowledged on line {} without a sync of {} after its write, which ended on line {}",
                ack.began + 1,
                place.path.display(),
                written + 1,
            ));
        }
    }
    let syncs = calls.iter().filter(|call| matches!(call.what, What::Sync(_))).count();
    Ok(Acked { acks, syncs })
}

/// The line on which the last write to a place ended; `None` if writes do not cover it. The last one of all is what counts, even
/// if it came after an acknowledgement: it is the one that made what is in the file.
fn written(calls: &[Call], place: &Place) -> Option<usize> {
    let overlap = |call: &Call| match &call.what {
        What::Write(Place { path, bytes }) if *path == place.path => {
            let overlap = bytes.start.max(place.bytes.start)..bytes.end.min(place.bytes.end);
            (!overlap.is_empty()).then_some((overlap.start, overlap.end, call.ended))
        }
        _ => None,
    };
    let mut writes: Vec<_> = calls.iter().filter_map(overlap).collect();
    writes.sort_unstable();
    let mut covered = place.bytes.start;
    for (start, end, _) in &writes {
        if *start <= covered {
            covered = covered.max(*end);
        }
    }
    (covered == place.bytes.end).then(|| writes.iter().map(|write| write.2).max()).flatten()
}

mod tests {
    use super::*;

    /// Record 1 is bytes 4096..4400 of `/s/1.seg`, record 2 the 304 bytes behind it.
    fn checked(trace: &str) -> Result<Acked, String> {
        let place = |bytes| Place { path: "/s/1.seg".into(), bytes };
        let places = BTreeMap::from([(1, place(4096..4400)), (2, place(4400..4704))]);
        check(&read(trace, Path::new("/s/acks"))?, &places)
    }

    fn refused(trace: &str, why: &str) {
        let wrong = checked(trace).unwrap_err();
        assert!(wrong.contains(why), "{wrong}");
    }

    const WRITE: &str = r#"7  pwrite64(5</s/1.seg>, "\10\1\0, \" = 3"..., 304, 4096) = 304"#;
    const SYNC: &str = "7  fdatasync(5</s/1.seg>)            = 0";
    const ACK: &str = r#"8  write(9</s/acks>, "1\n", 2)       = 2"#;

    #[test]
    fn write_sync_ack_is_right() {
        assert_eq!(checked(&[WRITE, SYNC, ACK].join("\n")), Ok(Acked { acks: 1, syncs: 1 }));
        let fsync = SYNC.replace("fdatasync", "fsync");
        assert_eq!(
            checked(&[WRITE, &fsync, ACK, "8  +++ exited with 0 +++"].join("\n")),
            Ok(Acked { acks: 1, syncs: 1 })
        );
        // A short write that is continued, and calls that others interrupt.
        let trace = r#"7  pwrite64(5</s/1.seg>, "a"..., 608, 4096 <unfinished ...>
8  fsync(3</s>) = 0
7  <... pwrite64 resumed>)            = 400
7  pwrite64(5</s/1.seg>, "b"..., 208, 4496) = 208
7  fdatasync(5</s/1.seg> <unfinished ...>
9  write(1</dev/null>, "x", 1) = 1
7  <... fdatasync resumed>)           = 0
8  write(9</s/acks>, "2\n", 2 <unfinished ...>
9  write(9</s/acks>, "1\n", 2)        = 2
8  <... write resumed>)               = 2"#;
        assert_eq!(checked(trace), Ok(Acked { acks: 2, syncs: 1 }));
    }

    #[test]
    fn a_missing_sync_is_found() {
        refused(&[WRITE, ACK].join("\n"), "record 1 was acknowledged on line 2 without a sync of /s/1.seg");
    }

    #[test]
    fn a_sync_that_failed_is_none() {
        let failed = SYNC.replace("= 0", "= -1 EIO (Input/output error)");
        refused(&[WRITE, &failed, ACK].join("\n"), "without a sync");
    }

    #[test]
    fn a_sync_before_the_write_is_none() {
        refused(&[SYNC, WRITE, ACK].join("\n"), "without a sync");
    }

    #[test]
    fn a_sync_that_began_before_the_write_ended_is_none() {
        let trace = r#"7  pwrite64(5</s/1.seg>, "a"..., 304, 4096 <unfinished ...>
8  fdatasync(5</s/1.seg> <unfinished ...>
7  <... pwrite64 resumed>)            = 304
8  <... fdatasync resumed>)           = 0
8  write(9</s/acks>, "1\n", 2)        = 2"#;
        refused(trace, "without a sync");
    }

    #[test]
    fn a_sync_that_ends_after_the_ack_is_none() {
        let trace = [WRITE, "7  fdatasync(5</s/1.seg> <unfinished ...>", ACK, "7  <... fdatasync resumed>) = 0"];
        refused(&trace.join("\n"), "without a sync");
    }

    #[test]
    fn a_sync_of_another_file_is_none() {
        for other in ["/s/2.seg", "/s/1.seg-new", "/s"] {
            refused(&[WRITE, &SYNC.replace("/s/1.seg", other), ACK].join("\n"), "without a sync");
        }
    }

    #[test]
    fn zeros_that_were_synced_before_are_not_the_record() {
        refused(&[&WRITE.replace("304, ", "65536, "), SYNC, ACK, WRITE].join("\n"), "without a sync");
    }

    #[test]
    fn a_record_that_is_not_there_is_not_acknowledged() {
        refused(&[SYNC, ACK].join("\n"), "record 1 was not written as a whole");
        refused(&[&WRITE.replace("= 304", "= 303"), SYNC, ACK].join("\n"), "record 1 was not written as a whole");
        refused(
            &[&WRITE.replace("= 304", "= -1 ENOSPC (No space left on device)"), SYNC, ACK].join("\n"),
            "as a whole",
        );
        refused(&[WRITE, SYNC, &ACK.replace('1', "3")].join("\n"), "record 3 was acknowledged and is in no segment");
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        refused(r#"7  write(5</s/1.seg>, "a", 304) = 304"#, "cannot be read");
        refused("7  pwritev(5</s/1.seg>, [{iov_base=\"a\", iov_len=1}], 1, 0) = 1", "cannot be read");
        refused(r#"8  write(9</s/acks>, "what", 4) = 4"#, "cannot be read");
        refused("7  <... fdatasync resumed>) = 0", "ends what has not begun");
    }
}
