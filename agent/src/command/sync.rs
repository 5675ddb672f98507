//! `holdfast sync`: manifests are all that a source has, as one transaction.

use std::fs;
use std::path::{Path, PathBuf};

use api::client::{Client, ClientError};
use api::push::stream::{How, SendError};
use api::push::{Answer, Hello};
use api::rejection::Rejection;
use api::{Level, Receipt};
use storage_schema::resource::Resource;

use super::{apply, block_on, connect, push};
use crate::cli::{Common, ReceiptFormat, SyncArgs, Wait};
use crate::exit::{Exit, Failure};
use crate::manifest::Document;
use crate::output;

/// The capability of an agent that does not take a dry run for the real thing.
const DRY_RUN: &str = "dry_run";

pub(super) fn run(common: &Common, args: &SyncArgs) -> Result<(), Failure> {
    push::check_timeout(&args.waiting)?;
    let mut files = Vec::new();
    for path in &args.files {
        find_manifests(path, &mut files)?;
    }
    let documents = apply::read_documents(&files)?;
    if documents.is_empty() && !args.allow_empty {
        let message = "there is no resource in what was given: with --allow-empty, all that the source has is removed";
        return Err(Failure::new(Exit::Usage, message));
    }
    let resources: Vec<Resource> = documents.iter().map(|document| document.resource.clone()).collect();
    let answer = block_on(async {
        let client = connect(common).await?;
        let spinner = push::spinner("waiting for the sync");
        let answer = sync(&client, args, &resources).await;
        spinner.finish_and_clear();
        answer
    })?;
    match answer {
        Answer::Acked { version, receipt } => report(args, version, resources.len(), &receipt),
        Answer::Planned { plan, .. } => push::report_plan(&plan, args.waiting.output),
        Answer::Nacked { rejection, .. } => Err(refused(&rejection, &documents)),
    }
}

/// Manifests in a directory and the directories in it, in the order of their names; a file is taken whatever it is called.
fn find_manifests(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Failure> {
    if path != Path::new("-") && path.is_dir() {
        let unreadable = |error| Failure::new(Exit::Usage, format!("cannot read {}: {error}", path.display()));
        let entries: Result<Vec<_>, _> = fs::read_dir(path).map_err(unreadable)?.collect();
        let mut entries: Vec<PathBuf> = entries.map_err(unreadable)?.into_iter().map(|entry| entry.path()).collect();
        entries.sort();
        for entry in entries {
            let is_manifest = entry.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            if entry.is_dir() || is_manifest {
                find_manifests(&entry, files)?;
            }
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}

async fn sync(client: &Client, args: &SyncArgs, resources: &[Resource]) -> Result<Answer, Failure> {
    let source = &args.source;
    let hello = Hello {
        level: match args.waiting.wait {
            Wait::Durable => Level::Durable,
            Wait::Applied => Level::Applied,
        },
        wait_timeout: args.waiting.timeout,
        ..Hello::new(&source.source, source.source_incarnation)
    };
    let mut stream = client.push(&hello).await?;
    let version = source.source_version.unwrap_or_else(|| stream.welcome().last_version.map_or(1, |last| last + 1));
    let capabilities = &stream.welcome().capabilities;
    if args.dry_run && !capabilities.iter().any(|known| known == DRY_RUN) {
        return Err(ClientError::MissingFeature { feature: DRY_RUN }.into());
    }
    let how = How { level: None, take_over: source.take_over, dry_run: args.dry_run };
    match stream.sync(version, resources, how).await {
        // Why it ended is what the answers end with.
        Ok(()) | Err(SendError::Ended(_)) => {}
        Err(error @ SendError::TooLarge { .. }) => return Err(Failure::new(Exit::Refused, error)),
    }
    let answer = stream.next().await?;
    answer.ok_or_else(|| ClientError::UnreadableAnswer { what: "the stream ended without one".to_owned() }.into())
}

fn report(args: &SyncArgs, version: u64, resources: usize, receipt: &Receipt) -> Result<(), Failure> {
    let (lsn, removed, level) = (receipt.lsn, receipt.removed, push::level(receipt.level));
    output::print(&match args.waiting.output {
        ReceiptFormat::Text if receipt.duplicate => {
            format!("LSN {lsn}: {level}; version {version} had been pushed before\n")
        }
        ReceiptFormat::Text => {
            let source = &args.source.source;
            format!("LSN {lsn}: version {version} of {source}, {resources} resources, {removed} removed, {level}\n")
        }
        ReceiptFormat::Json => output::json(&serde_json::json!({
            "lsn": lsn,
            "version": version,
            "level": level,
            "resources": resources,
            "removed": removed,
            "duplicate": receipt.duplicate,
            "recordHash": receipt.record_hash.to_string(),
        })),
    })?;
    push::check_level(receipt, &args.waiting)
}

fn refused(rejection: &Rejection, documents: &[Document]) -> Failure {
    match rejection.violations() {
        Some(violations) => apply::refused(violations, documents),
        None => Failure::new(Exit::Refused, rejection),
    }
}
