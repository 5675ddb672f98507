//! `holdfast journal export`, `import` and `snapshot`: out of this journal, and into another one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, IsTerminal as _, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};
use journal::{EncodedRecord, ExportError, ParquetExport};
use storage_schema::id::StoreId;
use tokio_stream::StreamExt as _;

use super::source::{Place, query};
use crate::cli::{ExportArgs, ExportFormat, ImportArgs, SnapshotArgs};
use crate::command::block_on;
use crate::exit::{Exit, Failure};

pub(super) fn export(place: &Place<'_>, args: &ExportArgs) -> Result<(), Failure> {
    if args.format == ExportFormat::Parquet && is_standard(&args.file) && io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Usage, "--file: Parquet is not for a terminal; name a file"));
    }
    let mut target = Target::create(&args.file)?;
    let mut export = match args.format {
        ExportFormat::Jsonl => Export::Jsonl(&mut target),
        ExportFormat::Parquet => {
            let store_id = StoreId(place.stats()?.store_id.try_into().unwrap_or_default());
            Export::Parquet(Box::new(ParquetExport::new(store_id, &mut target)?))
        }
    };
    let mut records = 0_u64;
    place.for_each(&query(&args.which), |record| {
        records += 1;
        match export.push(&record) {
            // Who reads has seen enough.
            Err(ExportError::Transfer(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                Ok(ControlFlow::Break(()))
            }
            pushed => Ok(ControlFlow::Continue(pushed?)),
        }
    })?;
    export.finish()?;
    target.finish(&format!("{records} records"))
}

/// An export that is being written.
enum Export<'a> {
    Jsonl(&'a mut Target),
    Parquet(Box<ParquetExport<&'a mut Target>>),
}

impl Export<'_> {
    fn push(&mut self, record: &EncodedRecord) -> Result<(), ExportError> {
        match self {
            Self::Jsonl(target) => journal::write_line(record, *target),
            Self::Parquet(table) => table.push(record),
        }
    }

    fn finish(self) -> Result<(), ExportError> {
        match self {
            Self::Jsonl(_) => Ok(()),
            Self::Parquet(table) => table.finish(),
        }
    }
}

pub(super) fn import(place: &Place<'_>, args: &ImportArgs) -> Result<(), Failure> {
    let config = place.config()?;
    let from = source(&args.file)?;
    let imported = journal::import_jsonl(&config.journal(), BufReader::new(from))?;
    say(&format!("{imported} records imported into {}", config.state_dir.display()));
    Ok(())
}

pub(super) fn save(place: &Place<'_>, args: &SnapshotArgs) -> Result<(), Failure> {
    if is_standard(&args.file) && io::stdout().is_terminal() {
        return Err(Failure::new(Exit::Usage, "a snapshot is not for a terminal; name a file"));
    }
    let mut target = Target::create(&args.file)?;
    if place.state_dir.is_some() {
        place.open()?.snapshot(&mut target)?;
    } else {
        block_on(async {
            let chunks = place.agent().await?.save_snapshot().await?;
            tokio::pin!(chunks);
            while let Some(chunk) = chunks.next().await {
                target.write_all(&chunk?).map_err(|error| cannot("write", &args.file, &error))?;
            }
            Ok(())
        })?;
    }
    let bytes = target.bytes;
    target.finish(&format!("a snapshot of {bytes} bytes"))
}

pub(super) fn restore(place: &Place<'_>, args: &SnapshotArgs) -> Result<(), Failure> {
    let config = place.config()?;
    let store_id = journal::restore(&config.state_dir, &mut source(&args.file)?)?;
    say(&format!("journal {store_id} restored into {}", config.state_dir.display()));
    Ok(())
}

fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn cannot(action: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("cannot {action} {}: {error}", path.display()))
}

/// Standard output may be the export itself.
fn say(text: &str) {
    eprintln!("{text}");
}

fn bar(length: Option<u64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (ProgressBar::new(length), "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {bytes_per_sec}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("our own template"))
}

fn source(path: &Path) -> Result<Box<dyn Read>, Failure> {
    if is_standard(path) {
        return Ok(Box::new(bar(None).wrap_read(io::stdin())));
    }
    let file = File::open(path).map_err(|error| cannot("open", path, &error))?;
    let length = file.metadata().ok().map(|metadata| metadata.len());
    Ok(Box::new(bar(length).wrap_read(file)))
}

/// Where an export or a snapshot goes: standard output, or a file that gets its name when it is complete.
struct Target {
    out: BufWriter<Box<dyn Write + Send>>,
    bytes: u64,
    bar: ProgressBar,
    /// The file's name, and the one it has until then.
    named: Option<(PathBuf, PathBuf)>,
}

impl Target {
    fn create(path: &Path) -> Result<Self, Failure> {
        let (out, named): (Box<dyn Write + Send>, _) = if is_standard(path) {
            (Box::new(io::stdout()), None)
        } else {
            let mut unnamed = path.as_os_str().to_owned();
            unnamed.push(".part");
            let unnamed = PathBuf::from(unnamed);
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            let file = options.open(&unnamed).map_err(|error| cannot("create", &unnamed, &error))?;
            (Box::new(file), Some((path.to_owned(), unnamed)))
        };
        Ok(Self { out: BufWriter::new(out), bytes: 0, bar: bar(None), named })
    }

    fn finish(mut self, what: &str) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        match self.named.take() {
            None => match self.out.flush() {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    Err(cannot("write to", Path::new("standard output"), &error))
                }
                _ => Ok(()),
            },
            Some((path, unnamed)) => {
                let synced = self.out.flush().and_then(|()| File::open(&unnamed)?.sync_all());
                let placed = synced.and_then(|()| fs::rename(&unnamed, &path));
                placed.map_err(|error| cannot("write", &path, &error))?;
                say(&format!("{what} in {}", path.display()));
                Ok(())
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some((_, unnamed)) = self.named.take() {
            // It is not complete and never will be.
            let _ = fs::remove_file(unnamed);
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        self.bar.inc(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
