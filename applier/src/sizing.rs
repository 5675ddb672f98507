//! How large a generation's tables are: as large as the state needs, and up to the configured limits.
//!
//! Tables begin small and grow to twice their size before they are full, by a new generation; what is admitted is bounded
//! by the limits alone. Tables never shrink while the agent runs.

use storage_schema::map::Capacities;

use crate::model::Usage;

/// Where tables begin, unless the limit is lower.
const LEAST: Capacities = Capacities { frontends: 1024, services: 1024, backends: 4096, endpoints: 4096 };

/// The smallest tables within `limits` that leave a quarter free beside `usage`.
pub fn fitting(usage: &Usage, limits: &Capacities) -> Capacities {
    each(usage, limits, |used, limit, least| {
        let mut entries = least.min(limit);
        while entries < limit && is_tight(used, entries) {
            entries = entries.saturating_mul(2).min(limit);
        }
        entries
    })
}

/// The tables that should replace those of `current`, if one of them is about to be full.
pub fn growth(current: &Capacities, usage: &Usage, limits: &Capacities) -> Option<Capacities> {
    let wanted = fitting(usage, limits);
    let grown = Capacities {
        frontends: wanted.frontends.max(current.frontends),
        services: wanted.services.max(current.services),
        backends: wanted.backends.max(current.backends),
        endpoints: wanted.endpoints.max(current.endpoints),
    };
    (grown != *current).then_some(grown)
}

/// Whether less than a quarter of a table would be free.
const fn is_tight(used: u64, entries: u32) -> bool {
    used * 4 > entries as u64 * 3
}

fn each(usage: &Usage, limits: &Capacities, size: impl Fn(u64, u32, u32) -> u32) -> Capacities {
    Capacities {
        frontends: size(usage.frontends, limits.frontends, LEAST.frontends),
        services: size(usage.services, limits.services, LEAST.services),
        backends: size(usage.backends, limits.backends, LEAST.backends),
        endpoints: size(usage.endpoints, limits.endpoints, LEAST.endpoints),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Capacities = Capacities { frontends: 100, services: 10_000, backends: 100_000, endpoints: 1 << 26 };

    #[test]
    fn tables_begin_small_and_within_the_limits() {
        let empty = fitting(&Usage::default(), &LIMITS);
        assert_eq!(empty, Capacities { frontends: 100, services: 1024, backends: 4096, endpoints: 4096 });
        assert_eq!(growth(&empty, &Usage::default(), &LIMITS), None);
    }

    #[test]
    fn a_table_grows_to_twice_its_size_before_it_is_full() {
        let current = fitting(&Usage::default(), &LIMITS);
        let usage = Usage { services: 768, ..Usage::default() };
        assert_eq!(growth(&current, &usage, &LIMITS), None, "three quarters are not tight");
        let usage = Usage { services: 769, ..Usage::default() };
        assert_eq!(growth(&current, &usage, &LIMITS), Some(Capacities { services: 2048, ..current }));
    }

    #[test]
    fn a_full_limit_is_not_exceeded_and_nothing_shrinks() {
        let usage = Usage { frontends: 100, services: 10_000, backends: 100_000, endpoints: 1 << 26 };
        let full = fitting(&usage, &LIMITS);
        assert_eq!(full, LIMITS);
        assert_eq!(growth(&full, &usage, &LIMITS), None);
        assert_eq!(growth(&full, &Usage::default(), &LIMITS), None);
    }
}
