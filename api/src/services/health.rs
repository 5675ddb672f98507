//! gRPC's health service: for the server as a whole (the empty name) and for each service.
//!
//! The push service serves while transactions are taken, and the whole with it: not while the agent still loads its state, nor
//! while the disk refuses writes. The others serve as long as the agent listens.

use std::sync::Arc;
use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::server::Backend;

/// How often it is looked whether transactions are taken.
const INTERVAL: Duration = Duration::from_millis(250);

/// The services whose health is that of the journal's end.
const PUSHING: [&str; 2] = ["", "holdfast.v1.PushService"];
const OTHERS: [&str; 5] = [
    "holdfast.v1.ResourceService",
    "holdfast.v1.StatusService",
    "holdfast.v1.JournalService",
    "holdfast.v1.DatapathService",
    "holdfast.v1.ReplayService",
];

/// Says how everything is before the first connection is taken.
pub(crate) async fn begin<B: Backend>(reporter: &HealthReporter, backend: &B) {
    for service in OTHERS {
        reporter.set_service_status(service, ServingStatus::Serving).await;
    }
    report(reporter, backend.takes_transactions()).await;
}

/// Keeps it up to date, and never returns.
pub(crate) async fn keep_up_to_date<B: Backend>(reporter: HealthReporter, backend: Arc<B>) {
    let mut told = None;
    loop {
        let takes = backend.takes_transactions();
        if told.replace(takes) != Some(takes) {
            report(&reporter, takes).await;
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

async fn report(reporter: &HealthReporter, takes_transactions: bool) {
    let status = if takes_transactions { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in PUSHING {
        reporter.set_service_status(service, status).await;
    }
}
