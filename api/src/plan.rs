//! What a transaction would change: the answer to a dry run.

use storage_schema::id::Lsn;
use storage_schema::resource::ResourceKey;

use crate::convert::{Path, decode_key, encode_key};
use crate::proto;
use crate::rejection::Violations;

/// The most resources that a plan names.
pub const PLANNED_CHANGES_MAX: usize = 10_000;
/// And the most bytes of their names, so that a plan is a message that every client reads.
const NAME_BYTES_MAX: usize = 1 << 20;

/// What a transaction would change if it were applied now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The last record that had a number when the transaction was checked: the state that it fits.
    pub state_lsn: Lsn,
    /// Resources that are not there and would be.
    pub created: u64,
    /// Resources that would be different.
    pub updated: u64,
    /// Resources that are as the transaction says already.
    pub unchanged: u64,
    /// Resources that would be gone.
    pub removed: u64,
    /// Resources that are to be removed and are not there.
    pub absent: u64,
    /// The first resources that would be created, updated or removed.
    pub changes: Vec<PlannedChange>,
    /// How many more of these there are.
    pub more: u64,
    /// The record as which it was pushed before; then nothing would change.
    pub duplicate_lsn: Option<Lsn>,
}

/// What a transaction would do to a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedChange {
    /// Which.
    pub key: ResourceKey,
    /// What becomes of it.
    pub effect: Effect,
    /// The record that changed it last; 0: it is not there.
    pub changed_lsn: Lsn,
    /// The source that it belongs to; empty: nobody knows, or it is not there.
    pub owner: String,
}

/// What becomes of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is not there, and would be.
    Created,
    /// It would be different.
    Updated,
    /// It is as the transaction says.
    Unchanged,
    /// It would be gone.
    Removed,
    /// It is to be removed, and is not there.
    Absent,
}

impl Plan {
    /// The plan of a transaction that was pushed before.
    pub fn duplicate(lsn: Lsn) -> Self {
        Self { state_lsn: lsn, duplicate_lsn: Some(lsn), ..Self::default() }
    }

    /// A plan of what becomes of each resource.
    pub fn new(state_lsn: Lsn, changes: impl IntoIterator<Item = PlannedChange>) -> Self {
        let mut plan = Self { state_lsn, ..Self::default() };
        let mut bytes = 0;
        for change in changes {
            match change.effect {
                Effect::Created => plan.created += 1,
                Effect::Updated => plan.updated += 1,
                Effect::Removed => plan.removed += 1,
                Effect::Unchanged => plan.unchanged += 1,
                Effect::Absent => plan.absent += 1,
            }
            if matches!(change.effect, Effect::Unchanged | Effect::Absent) {
                continue;
            }
            bytes += change.key.name.len() + change.owner.len();
            if plan.changes.len() < PLANNED_CHANGES_MAX && bytes <= NAME_BYTES_MAX {
                plan.changes.push(change);
            } else {
                plan.more += 1;
            }
        }
        plan
    }
}

pub(crate) fn encode_plan(plan: Plan) -> proto::Plan {
    let Plan { state_lsn, created, updated, unchanged, removed, absent, changes, more, duplicate_lsn } = plan;
    let change = |PlannedChange { key, effect, changed_lsn, owner }| proto::PlannedChange {
        key: Some(encode_key(&key)),
        effect: match effect {
            Effect::Created => proto::Effect::Created,
            Effect::Updated => proto::Effect::Updated,
            Effect::Removed => proto::Effect::Removed,
            Effect::Unchanged | Effect::Absent => proto::Effect::Unspecified,
        }
        .into(),
        changed_lsn: changed_lsn.0,
        owner,
    };
    proto::Plan {
        state_lsn: state_lsn.0,
        created,
        updated,
        unchanged,
        removed,
        absent,
        changes: changes.into_iter().map(change).collect(),
        more,
        duplicate_lsn: duplicate_lsn.map(|lsn| lsn.0),
    }
}

/// The plan, or what is wrong with it.
pub(crate) fn decode_plan(plan: Option<proto::Plan>) -> Result<Plan, &'static str> {
    let plan = plan.ok_or("it has no plan")?;
    let change = |change: proto::PlannedChange| {
        let key = change.key.and_then(|key| decode_key(&Path::root("key"), key, &mut Violations::default()));
        Ok(PlannedChange {
            key: key.ok_or("a planned change has no key")?,
            effect: match proto::Effect::try_from(change.effect) {
                Ok(proto::Effect::Created) => Effect::Created,
                Ok(proto::Effect::Updated) => Effect::Updated,
                Ok(proto::Effect::Removed) => Effect::Removed,
                Ok(proto::Effect::Unspecified) | Err(_) => return Err("a planned change's effect is unknown"),
            },
            changed_lsn: Lsn(change.changed_lsn),
            owner: change.owner,
        })
    };
    let changes: Result<Vec<_>, _> = plan.changes.into_iter().map(change).collect();
    Ok(Plan {
        state_lsn: Lsn(plan.state_lsn),
        created: plan.created,
        updated: plan.updated,
        unchanged: plan.unchanged,
        removed: plan.removed,
        absent: plan.absent,
        changes: changes?,
        more: plan.more,
        duplicate_lsn: plan.duplicate_lsn.map(Lsn),
    })
}

#[cfg(test)]
mod tests {
    use storage_schema::resource::Kind;

    use super::*;

    #[test]
    fn a_plan_counts_everything_and_names_what_would_change() {
        let change = |number: usize| PlannedChange {
            key: ResourceKey::new(Kind::Service, format!("shop/{number}")),
            effect: match number % 5 {
                0 => Effect::Created,
                1 => Effect::Updated,
                2 => Effect::Unchanged,
                3 => Effect::Removed,
                _ => Effect::Absent,
            },
            changed_lsn: Lsn(7),
            owner: "cp".to_owned(),
        };
        let plan = Plan::new(Lsn(9), (0..10).map(change));
        assert_eq!((plan.created, plan.updated, plan.unchanged, plan.removed, plan.absent), (2, 2, 2, 2, 2));
        assert_eq!((plan.changes.len(), plan.more), (6, 0));
        assert_eq!(decode_plan(Some(encode_plan(plan.clone()))), Ok(plan));
        let created = |number| PlannedChange { effect: Effect::Created, ..change(number) };
        let plan = Plan::new(Lsn(9), (0..PLANNED_CHANGES_MAX + 3).map(created));
        assert_eq!((plan.created, plan.changes.len(), plan.more), (10_003, PLANNED_CHANGES_MAX, 3));
    }
}
