//! Resources and transactions for tests.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::fs;
use std::path::Path;

use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Resource, Service, ServicePort};

/// A service with a name and a port.
pub(crate) fn service(name: &str) -> Service {
    let port = ServicePort { port: 80, target_port: 8080, ..ServicePort::default() };
    Service {
        name: name.to_owned(),
        vips: vec!["10.96.0.1".parse().expect("an address")],
        ports: vec![port],
        ..Service::default()
    }
}

/// The delta that makes it so.
pub(crate) fn upsert(service: Service) -> Delta {
    Delta::Upsert(Resource::Service(service))
}

/// Who pushes.
pub(crate) fn origin(source: &str, incarnation: u64, version: u64) -> Origin {
    Origin { source: source.to_owned(), incarnation, version: Some(version) }
}

/// A transaction of a source's first incarnation.
pub(crate) fn transaction(source: &str, version: Option<u64>, deltas: Vec<Delta>) -> Transaction {
    Transaction::push(Origin { source: source.to_owned(), incarnation: 1, version }, deltas)
}

/// A copy of a directory.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}
