//! `holdfast apply`: manifests become one transaction.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;
use std::{fs, io};

use api::client::ClientError;
use api::rejection::{Rejection, Violations};
use storage_schema::record::Delta;

use super::{block_on, connect, push};
use crate::cli::{ApplyArgs, Common};
use crate::exit::{Exit, Failure};
use crate::manifest::{self, Document, ManifestError};

pub(super) fn run(common: &Common, args: &ApplyArgs) -> Result<(), Failure> {
    push::check_timeout(&args.waiting)?;
    let documents = read_documents(&args.files)?;
    if documents.is_empty() {
        return Err(Failure::new(Exit::Usage, "there is no resource in what was given"));
    }
    let deltas = documents.iter().map(|document| Delta::Upsert(document.resource.clone())).collect();
    let transaction = push::transaction(&args.source, deltas);
    block_on(async {
        let client = connect(common).await?;
        match push::push_or_plan(&client, &transaction, &args.expect, &args.waiting, args.dry_run).await {
            Ok(outcome) => push::report_outcome(&outcome, &transaction, &args.waiting),
            Err(ClientError::Rejected(Rejection::Refused { violations, .. } | Rejection::Owned { violations, .. })) => {
                Err(refused(&violations, &documents))
            }
            Err(error) => Err(error.into()),
        }
    })
}

/// The documents of all files; each resource once.
pub(super) fn read_documents(files: &[impl AsRef<Path>]) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for file in files {
        let (name, text) = read(file.as_ref())?;
        match manifest::parse(&name, &text) {
            Ok(more) => documents.extend(more),
            Err(more) => errors.extend(more),
        }
    }
    errors.extend(repeated(&documents));
    if !errors.is_empty() {
        return Err(Failure { exit: Exit::Usage, messages: errors.iter().map(ManifestError::to_string).collect() });
    }
    Ok(documents)
}

fn read(file: &Path) -> Result<(String, String), Failure> {
    let (name, bytes) = if file == Path::new("-") {
        let mut bytes = Vec::new();
        ("<stdin>".to_owned(), io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (file.display().to_string(), fs::read(file))
    };
    let bytes = bytes.map_err(|error| Failure::new(Exit::Usage, format!("cannot read {name}: {error}")))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((name, text)),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.split(|byte| *byte == b'\n').count();
            Err(Failure::new(Exit::Usage, format!("{name}:{line}: is not UTF-8 text")))
        }
    }
}

/// In one transaction the later of two documents for one resource would win; in files that is a mistake.
fn repeated(documents: &[Document]) -> Vec<ManifestError> {
    let mut seen = HashMap::new();
    let mut errors = Vec::new();
    for document in documents {
        let key = document.resource.key();
        if let Some(first) = seen.get(&key) {
            errors.push(document.error("", format!("{key} is described twice, first at {first}")));
        } else {
            seen.insert(key, document.place());
        }
    }
    errors
}

/// What the agent says about deltas, said about the documents they came from.
pub(super) fn refused(violations: &Violations, documents: &[Document]) -> Failure {
    let mut messages: Vec<String> = violations
        .iter()
        .map(|violation| match violation.delta().and_then(|index| documents.get(index)) {
            Some(document) => document.error(&camel_case(violation.field()), &*violation.description).to_string(),
            None => push::describe(violation),
        })
        .collect();
    messages.extend(push::unsaid(violations));
    Failure { exit: Exit::Refused, messages }
}

/// The proto's spelling of a field to the manifest's: `ports[0].target_port` to `ports[0].targetPort`.
fn camel_case(field: &str) -> String {
    let mut upper = false;
    let mut camel = String::with_capacity(field.len());
    for c in field.chars() {
        if c == '_' {
            upper = true;
        } else {
            camel.push(if upper { c.to_ascii_uppercase() } else { c });
            upper = false;
        }
    }
    camel
}
