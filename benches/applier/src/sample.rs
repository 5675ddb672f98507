//! The state that is measured: services with one address and one port, workloads that back one service each.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use journal::{Config, Journal};
use storage_schema::id::Lsn;
use storage_schema::map::Capacities;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Locality, Resource, Service, ServicePort, Workload, WorkloadStatus};

/// Resources in one transaction of [`fill`].
const BATCH: u32 = 2_000;

/// How much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) services: u32,
    pub(crate) endpoints: u32,
}

impl Size {
    /// Room for it, and a little more.
    pub(crate) fn capacities(self) -> Capacities {
        let room = |entries: u32| (entries + entries / 16).max(1024);
        Capacities {
            frontends: room(self.services),
            services: room(self.services),
            backends: room(self.endpoints),
            endpoints: room(self.endpoints),
        }
    }

    fn resources(self) -> impl Iterator<Item = Resource> {
        let workloads = (0..self.endpoints)
            .map(move |number| workload(number, number % self.services.max(1), WorkloadStatus::Healthy));
        (0..self.services).map(service).chain(workloads)
    }
}

/// The service with this number.
pub(crate) fn service(number: u32) -> Resource {
    Resource::Service(Service {
        name: service_name(number),
        hostname: format!("reviews-{number:06}.bookinfo-{:03}.svc.cluster.local", number % 512),
        vips: vec![Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number).into()],
        ports: vec![ServicePort { name: "http".to_owned(), port: 9080, target_port: 9080, ..ServicePort::default() }],
        ..Service::default()
    })
}

/// The workload with this number.
pub(crate) fn workload(number: u32, service: u32, status: WorkloadStatus) -> Resource {
    let namespace = service % 512;
    Resource::Workload(Workload {
        uid: format!("cluster1//Pod/bookinfo-{namespace:03}/reviews-{number:07}"),
        name: format!("reviews-{number:07}"),
        namespace: format!("bookinfo-{namespace:03}"),
        addresses: vec![Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + number).into()],
        locality: Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), subzone: String::new() },
        node: format!("node-{:04}", number % 5_000),
        network: "network-1".to_owned(),
        cluster: "cluster1".to_owned(),
        service_account: "bookinfo-reviews".to_owned(),
        status,
        weight: 1,
        waypoint: None,
        services: vec![Backing { service: service_name(service), ports: vec![] }],
    })
}

fn service_name(number: u32) -> String {
    format!("bookinfo-{:03}/reviews-{number:06}", number % 512)
}

/// Who pushes what a journal is filled with, one version a record.
pub(crate) const FILLER: &str = "filler";

/// A transaction of these resources.
pub(crate) fn transaction(source: &str, version: u64, resources: impl IntoIterator<Item = Resource>) -> Transaction {
    let origin = Origin { source: source.to_owned(), incarnation: 1, version: Some(version) };
    Transaction::push(origin, resources.into_iter().map(Delta::Upsert).collect())
}

/// A journal that holds a state of this size, with the store up to date.
pub(crate) fn fill(state: &Path, size: Size) -> Journal {
    let journal = Journal::open(Config::new(state)).expect("a journal");
    let mut resources = size.resources().peekable();
    let mut records = 0;
    while resources.peek().is_some() {
        records += 1;
        let batch = resources.by_ref().take(BATCH as usize);
        let permit = journal.blocking_reserve().expect("the journal accepts");
        permit.submit(transaction(FILLER, records, batch)).expect("the journal accepts");
    }
    let mut durable = journal.durable();
    durable.blocking_past(Lsn(records - 1), Duration::from_mins(10)).expect("the disk works");
    journal.blocking_wait_stored(Lsn(records)).expect("the store follows");
    journal
}
