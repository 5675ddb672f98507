//! Why the applier or the journal did not take a push, in the API's terms: which delta, which field, what kind of wrong.

use std::time::Duration;

use api::rejection::{DeltaName, Reason, Rejection, Violation};
use applier::{Foreign, PushError, Rejection as Unfit, port_of};
use journal::{AppendError, OriginError};
use storage_schema::resource::{Kind, ResourceKey};

const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A push that was not taken.
pub(super) fn not_pushed(error: PushError, deltas: &[DeltaName]) -> Rejection {
    match error {
        PushError::Rejected(unfit) => unfit_for_the_state(&unfit, deltas),
        PushError::Origin(error) | PushError::Journal(AppendError::Origin(error)) => of_origin(&error),
        PushError::Journal(error @ AppendError::TooLarge { .. }) => {
            refused(Reason::Invalid, whole("transaction", &error))
        }
        PushError::Journal(error @ AppendError::Repeated { .. }) => {
            refused(Reason::Stale, whole("transaction.origin.version", &error))
        }
        PushError::Journal(AppendError::QueueFull { .. }) => Rejection::Busy { retry_after: RETRY_AFTER },
        PushError::Journal(error @ (AppendError::Failed(_) | AppendError::Closed)) => {
            Rejection::Unavailable { cause: error.to_string() }
        }
        PushError::Stopped(error) => Rejection::Unavailable { cause: error.to_string() },
    }
}

/// A push that was taken, and of which it is not known whether it was written.
pub(super) fn not_durable(error: &AppendError) -> Rejection {
    Rejection::OutcomeUnknown { cause: error.to_string() }
}

fn of_origin(error: &OriginError) -> Rejection {
    match error {
        OriginError::Stale { .. } => refused(Reason::Stale, whole("transaction.origin.version", error)),
        OriginError::Fenced { .. } => refused(Reason::Stale, whole("transaction.origin.incarnation", error)),
        OriginError::Unreadable { .. } => Rejection::Unavailable { cause: error.to_string() },
    }
}

fn unfit_for_the_state(unfit: &Unfit, deltas: &[DeltaName]) -> Rejection {
    let service = |name: &str| ResourceKey::new(Kind::Service, name);
    let workload = |name: &str| ResourceKey::new(Kind::Workload, name);
    let conflict = |key: ResourceKey, field: &str, description: String| {
        refused(Reason::Conflict, of_resource(&key, field, description, deltas))
    };
    match unfit {
        Unfit::Empty | Unfit::EventWithDeltas => refused(Reason::Invalid, whole("transaction.deltas", unfit)),
        Unfit::Invalid { resource, index, violation } => {
            let field = snake_case(&violation.field);
            let violation = match deltas.get(*index) {
                Some(delta) => Violation::of_delta(*index, delta.clone(), &field, &violation.reason),
                None => of_resource(resource, &field, violation.reason.clone(), deltas),
            };
            refused(Reason::Invalid, violation)
        }
        Unfit::Owned(foreign) => {
            let violation = |foreign: &Foreign| {
                let description =
                    format!("belongs to source `{}`: take it over explicitly, or remove it there", foreign.owner);
                match deltas.get(foreign.index) {
                    Some(delta) => Violation::of_delta(foreign.index, delta.clone(), "", description),
                    None => of_resource(&foreign.resource, "", description, deltas),
                }
            };
            let owner = foreign.first().map(|foreign| foreign.owner.clone()).unwrap_or_default();
            // What belongs to yet others is said when these are put right.
            let violations = foreign.iter().filter(|foreign| foreign.owner == owner).map(violation).collect();
            Rejection::Owned { owner, violations }
        }
        Unfit::Unmet(unmet) => Rejection::unmet(unmet.iter().cloned()),
        Unfit::DanglingService { workload: uid, field, service } => {
            let description = format!("there is no Service {service}: push it before, or in the same transaction");
            conflict(workload(uid), field, description)
        }
        Unfit::DanglingPort { workload: uid, field, service, port } => {
            conflict(workload(uid), field, format!("Service {service} has no port {port}"))
        }
        Unfit::StillBacked { service: name, workload } => {
            let description =
                format!("Workload {workload} backs it: remove or change that one before, or in the same transaction");
            conflict(service(name), "", description)
        }
        Unfit::DuplicateFrontend { resource, field, address, port, owner } => {
            conflict(resource.clone(), field, format!("{address} {} belongs to {owner}", port_of(*port)))
        }
        Unfit::SecondNode { name, configured } => {
            let description =
                format!("this node is configured as {configured}: remove that one before, or in the same transaction");
            conflict(ResourceKey::new(Kind::Node, name), "name", description)
        }
        Unfit::NumberTaken { resource, other } => {
            conflict(resource.clone(), "", format!("its number is that of {other}: choose another name"))
        }
        Unfit::OverCapacity { .. } => refused(Reason::Capacity, whole("transaction", unfit)),
    }
}

fn refused(reason: Reason, violation: Violation) -> Rejection {
    Rejection::Refused { reason, violations: violation.into() }
}

fn whole(path: &str, error: &impl ToString) -> Violation {
    Violation { path: path.to_owned(), resource: None, description: error.to_string() }
}

/// A violation of a resource that is known by name: the last delta of that name is the one that holds. A resource that
/// the transaction does not touch itself may still be what it breaks.
fn of_resource(key: &ResourceKey, field: &str, description: String, deltas: &[DeltaName]) -> Violation {
    match deltas.iter().enumerate().rev().find(|(_, delta)| delta.resource == *key) {
        Some((index, delta)) => Violation::of_delta(index, delta.clone(), &snake_case(field), description),
        None => Violation { path: "transaction".to_owned(), resource: Some(key.clone()), description },
    }
}

/// The manifest's spelling of a field to the proto's: `ports[0].targetPort` to `ports[0].target_port`.
fn snake_case(field: &str) -> String {
    let mut snake = String::with_capacity(field.len() + 4);
    for c in field.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deltas() -> Vec<DeltaName> {
        let name = |kind, name, is_removal| DeltaName { resource: ResourceKey::new(kind, name), is_removal };
        vec![
            name(Kind::Workload, "w", false),
            name(Kind::Service, "a/b", true),
            name(Kind::Service, "a/b", false),
            name(Kind::Workload, "w", false),
        ]
    }

    fn path(unfit: &Unfit) -> (Reason, String) {
        match unfit_for_the_state(unfit, &deltas()) {
            Rejection::Refused { reason, violations } => (reason, violations.iter().next().unwrap().path.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_field_is_named_as_the_proto_spells_it() {
        let dangling = Unfit::DanglingPort {
            workload: "w".to_owned(),
            field: "services[0].ports[1].servicePort".to_owned(),
            service: "a/b".to_owned(),
            port: 80,
        };
        let expected = "transaction.deltas[3].upsert.workload.services[0].ports[1].service_port";
        assert_eq!(path(&dangling), (Reason::Conflict, expected.to_owned()));
    }

    #[test]
    fn what_the_transaction_does_not_touch_is_named_too() {
        let backed = Unfit::StillBacked { service: "c/d".to_owned(), workload: "w".to_owned() };
        assert_eq!(path(&backed), (Reason::Conflict, "transaction".to_owned()));
    }

    #[test]
    fn a_full_table_is_a_matter_of_capacity() {
        let full = Unfit::OverCapacity { table: "backends", needed: 10, capacity: 9 };
        assert_eq!(path(&full), (Reason::Capacity, "transaction".to_owned()));
    }
}
