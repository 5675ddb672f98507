//! Compare-and-set: a transaction may name the records that must have changed resources last.
//!
//! The model knows these of everything that was submitted, durable or not, so that of two transactions that expect the same the
//! second is refused even if both are on their way to the disk.

use storage_schema::id::{Lsn, ResourceId};
use storage_schema::precondition::{Precondition, Unmet};
use storage_schema::resource::{Kind, ResourceKey};

use crate::model::{Model, Rejection};

/// So many preconditions that do not hold are named at most.
const UNMET_MAX: usize = 64;

impl Model {
    /// The record that changed a resource last; zero: it does not exist.
    pub fn changed_lsn(&self, key: &ResourceKey) -> Lsn {
        let id = ResourceId::of(key);
        let changed_lsn = match key.kind {
            Kind::Service => self.services.get(&id).map(|service| service.changed_lsn),
            Kind::Workload => self.workloads.get(&id).map(|workload| workload.changed_lsn),
            Kind::Node => self.node.as_ref().filter(|node| *node.name == *key.name).map(|node| node.changed_lsn),
        };
        changed_lsn.unwrap_or_default()
    }

    /// Refuses a transaction of which one of the preconditions does not hold.
    pub fn check_preconditions(&self, preconditions: &[Precondition]) -> Result<(), Rejection> {
        let unmet = preconditions.iter().filter_map(|Precondition { resource, changed_lsn: expected_lsn }| {
            let actual_lsn = self.changed_lsn(resource);
            let unmet = || Unmet { resource: resource.clone(), expected_lsn: *expected_lsn, actual_lsn };
            (actual_lsn != *expected_lsn).then(unmet)
        });
        let unmet: Vec<Unmet> = unmet.take(UNMET_MAX).collect();
        if unmet.is_empty() { Ok(()) } else { Err(Rejection::Unmet(unmet)) }
    }
}

#[cfg(test)]
mod tests {
    use storage_schema::map::Capacities;
    use storage_schema::record::{Delta, Origin, Transaction};
    use storage_schema::resource::{Resource, Service};

    use super::*;

    fn change(deltas: Vec<Delta>) -> Transaction {
        Transaction::push(Origin { source: "cp".to_owned(), incarnation: 0, version: None }, deltas)
    }

    #[test]
    fn the_last_record_is_known_through_changes_removals_and_reverts() {
        let mut model = Model::default();
        let capacities = Capacities::default();
        let service = Service { name: "shop/cart".to_owned(), ..Service::default() };
        let key = ResourceKey::new(Kind::Service, "shop/cart");
        let upsert = change(vec![Delta::Upsert(Resource::Service(service))]);
        let expect = |changed_lsn| vec![Precondition { resource: key.clone(), changed_lsn: Lsn(changed_lsn) }];
        assert_eq!(model.check_preconditions(&expect(0)), Ok(()));
        for lsn in [3, 4] {
            let admitted = model.admit(&upsert, &capacities).unwrap();
            model.journaled(&admitted, Lsn(lsn));
            assert_eq!(model.changed_lsn(&key), Lsn(lsn));
        }
        let unmet = Unmet { resource: key.clone(), expected_lsn: Lsn(3), actual_lsn: Lsn(4) };
        assert_eq!(model.check_preconditions(&expect(3)), Err(Rejection::Unmet(vec![unmet])));
        assert_eq!(model.check_preconditions(&expect(4)), Ok(()));
        let removal = change(vec![Delta::Remove(key.clone())]);
        let admitted = model.admit(&removal, &capacities).unwrap();
        assert_eq!(model.changed_lsn(&key), Lsn::ZERO);
        model.revert(admitted);
        assert_eq!(model.changed_lsn(&key), Lsn(4), "what was taken back has changed nothing");
        model.replay(&upsert, Lsn(9));
        assert_eq!(model.changed_lsn(&key), Lsn(9));
    }
}
