//! Runs: what a service port's slots in `endpoints` hold, by policy. Pure.
//!
//! * random: each backend once;
//! * weighted: an alias table (Vose, "A Linear Algorithm For Generating Random Numbers With a Given Distribution", 1991), exact
//!   to 2^-32: three slots for each backend, whatever the weights;
//! * Maglev: a lookup table of a prime number of slots (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load
//!   Balancer", 2016, 3.4). Backends fill it in turns, each in an order of its own that depends on nothing but its name, so
//!   that few slots change hands when a backend comes or goes.

use storage_schema::id::ResourceId;
use storage_schema::map;
use storage_schema::resource::{Kind, Policy};

use crate::entry::{BackendKey, ServiceEntry};

/// Sizes of Maglev tables, primes, and up to how many members of a service each serves. The number of slots is four times the
/// square of that: then a member that goes takes no more than twice its own share of clients along. Members count whether or
/// not they are usable, so that health never changes a table's size; where membership does, all clients may move.
const TABLES: [(usize, u32); 5] = [(32, 4_093), (64, 16_381), (128, 65_521), (256, 262_139), (512, 1_048_573)];

/// The number of a policy in the tables.
pub(crate) const fn policy_number(policy: Policy) -> u8 {
    match policy {
        Policy::Random => map::Service::RANDOM,
        Policy::Weighted => map::Service::WEIGHTED,
        Policy::Maglev => map::Service::MAGLEV,
    }
}

/// Slots of the Maglev table of a service with this many members.
pub(crate) fn table_slots(members: usize) -> u32 {
    let fitting = TABLES.iter().find(|(members_max, _)| members <= *members_max);
    fitting.unwrap_or(&TABLES[TABLES.len() - 1]).1
}

/// The most slots that a service port with this many members takes.
pub(crate) fn slots_max(policy: Policy, members: usize) -> u64 {
    match policy {
        _ if members == 0 => 0,
        Policy::Random => members as u64,
        Policy::Weighted => 3 * members as u64,
        Policy::Maglev => table_slots(members).into(),
    }
}

/// The run of a service port; `cells` are those of its [backends](ServiceEntry::backends).
pub(crate) fn run(entry: &ServiceEntry, cells: &[u32]) -> Vec<u32> {
    let (waypoint, members) = cells.split_at(usize::from(entry.waypoint.is_some()));
    let run = members_run(entry, members);
    if waypoint.is_empty() { run } else { [waypoint, &run].concat() }
}

fn members_run(entry: &ServiceEntry, cells: &[u32]) -> Vec<u32> {
    match entry.policy {
        _ if cells.is_empty() => Vec::new(),
        map::Service::WEIGHTED => alias_table(&entry.weights, cells),
        map::Service::MAGLEV => maglev_table(&entry.endpoints, entry.table_slots, cells),
        _ => cells.to_vec(),
    }
}

/// Thresholds, own cells, alias cells. Weights are above 0.
fn alias_table(weights: &[u32], cells: &[u32]) -> Vec<u32> {
    assert_eq!(weights.len(), cells.len(), "a plan has a weight for each endpoint");
    let count = cells.len() as u128;
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    // What is left of each entry's own share, where `total` is the share of a whole entry.
    let mut shares: Vec<u128> = weights.iter().map(|weight| u128::from(*weight) * count).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..cells.len()).partition(|entry| shares[*entry] < total);
    let mut thresholds = vec![u32::MAX; cells.len()];
    let mut aliases = cells.to_vec();
    while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
        thresholds[poor] = u32::try_from((shares[poor] << 32) / total).expect("a small share is below a whole one");
        aliases[poor] = cells[rich];
        shares[rich] -= total - shares[poor];
        if shares[rich] < total {
            large.pop();
            small.push(rich);
        }
    }
    [&thresholds[..], cells, &aliases].concat()
}

fn maglev_table(endpoints: &[BackendKey], slots: u32, cells: &[u32]) -> Vec<u32> {
    let mut orders: Vec<Order> = endpoints.iter().map(|endpoint| Order::of(*endpoint, slots)).collect();
    let mut table = vec![None; slots as usize];
    let mut filled = 0;
    'filling: loop {
        for (order, cell) in orders.iter_mut().zip(cells) {
            if filled == slots {
                break 'filling;
            }
            let slot = order.find(|slot| table[*slot].is_none());
            table[slot.expect("an order visits each slot, and one is free")] = Some(*cell);
            filled += 1;
        }
    }
    table.into_iter().map(|cell| cell.expect("it was filled")).collect()
}

/// The order in which a backend wants slots: each once, as the number of slots is prime.
struct Order {
    next: u64,
    skip: u64,
    slots: u64,
}

impl Order {
    fn of(endpoint: BackendKey, slots: u32) -> Self {
        let BackendKey { workload, port, .. } = endpoint;
        let word = |what: &str| ResourceId::named(Kind::Workload, &format!("{workload}/{port}/{what}")).0;
        let slots = u64::from(slots);
        Self { next: word("offset") % slots, skip: word("skip") % (slots - 1) + 1, slots }
    }
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let slot = self.next;
        self.next = (self.next + self.skip) % self.slots;
        Some(usize::try_from(slot).expect("it is below a u32"))
    }
}

#[cfg(test)]
mod tests {
    use decision::{fraction, scale};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::entry::Family;

    fn endpoints(count: u64) -> Vec<BackendKey> {
        let key = |number: u64| BackendKey {
            workload: ResourceId(number * 77),
            port: 8080,
            family: Family::V4,
            is_waypoint: false,
        };
        (0..count).map(key).collect()
    }

    fn cells(count: usize) -> Vec<u32> {
        (0..u32::try_from(count).unwrap()).collect()
    }

    /// The shares that an alias table gives, exactly: counted in 2^-32 of an entry.
    fn shares(table: &[u32], count: usize) -> Vec<u64> {
        let mut shares = vec![0_u64; count];
        for entry in 0..count {
            let threshold = u64::from(table[entry]);
            shares[table[count + entry] as usize] += threshold;
            shares[table[2 * count + entry] as usize] += (1 << 32) - threshold;
        }
        shares
    }

    #[test]
    fn an_alias_table_gives_each_its_share() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for count in 1..60 {
            let weights: Vec<u32> = (0..count)
                .map(|_| match random.random_range(0..4) {
                    0 => 1,
                    1 => u32::MAX,
                    _ => random.random_range(1..1000),
                })
                .collect();
            let entry =
                ServiceEntry { policy: map::Service::WEIGHTED, weights: weights.clone(), ..ServiceEntry::default() };
            let table = run(&entry, &cells(count));
            assert_eq!(table.len(), 3 * count);
            let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (share, weight) in shares(&table, count).iter().zip(&weights) {
                let exact = (u128::from(*weight) * count as u128) << 32;
                let off = (u128::from(*share) * total).abs_diff(exact) / total;
                assert!(off <= count as u128, "{share} is off by {off} in 2^-32 for {weight} of {total}");
            }
        }
    }

    /// Chi-square with 99.9 % quantiles (NIST, "Engineering Statistics Handbook", 1.3.6.7.4), on draws of a fixed seed.
    #[test]
    fn draws_are_spread_by_weight() {
        for (weights, quantile) in
            [(vec![1; 8], 24.322), (vec![1, 2, 3, 4, 5, 6, 7, 8], 24.322), (vec![1, 1000], 10.828)]
        {
            let count = weights.len();
            let entry =
                ServiceEntry { policy: map::Service::WEIGHTED, weights: weights.clone(), ..ServiceEntry::default() };
            let table = run(&entry, &cells(count));
            let draws = 400_000_u32;
            let mut found = vec![0_u32; count];
            let mut random = ChaCha8Rng::seed_from_u64(11);
            let entries = u32::try_from(count).unwrap();
            for _ in 0..draws {
                let word = random.random();
                let at = scale(word, entries) as usize;
                let taken = if fraction(word, entries) < table[at] { count } else { 2 * count };
                found[table[taken + at] as usize] += 1;
            }
            let total: u32 = weights.iter().sum();
            let chi_square: f64 = found
                .iter()
                .zip(&weights)
                .map(|(found, weight)| {
                    let expected = f64::from(draws) * f64::from(*weight) / f64::from(total);
                    (f64::from(*found) - expected).powi(2) / expected
                })
                .sum();
            assert!(chi_square < quantile, "{weights:?}: {found:?} has {chi_square}");
        }
    }

    fn maglev(endpoints: Vec<BackendKey>, table_slots: u32, names: &[u32]) -> Vec<u32> {
        let entry = ServiceEntry { policy: map::Service::MAGLEV, endpoints, table_slots, ..ServiceEntry::default() };
        run(&entry, names)
    }

    #[test]
    fn a_maglev_table_is_even_and_prime() {
        for (_, slots) in TABLES {
            assert!((2..slots).take_while(|divisor| divisor * divisor <= slots).all(|divisor| slots % divisor != 0));
        }
        for count in [1, 2, 7, 100, 400] {
            let table = maglev(endpoints(count as u64), 4093, &cells(count));
            assert_eq!(table.len(), 4093);
            let mut found = vec![0_u32; count];
            for cell in table {
                found[cell as usize] += 1;
            }
            let (least, most) = (found.iter().min().unwrap(), found.iter().max().unwrap());
            assert!(most - least <= 1, "backends take turns: {least} to {most}");
        }
    }

    #[test]
    fn few_clients_move_when_a_backend_goes() {
        for count in [2, 3, 10, 20, 32, 33, 64, 65, 128] {
            let (all, slots) = (endpoints(count as u64), table_slots(count));
            let before = maglev(all.clone(), slots, &cells(count));
            for gone in [0, count / 2, count - 1] {
                let mut left = all.clone();
                left.remove(gone);
                let mut names = cells(count);
                names.remove(gone);
                let after = maglev(left, slots, &names);
                let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
                assert!(moved * count <= 2 * before.len(), "{moved} of {} moved with {count} backends", before.len());
            }
        }
    }

    #[test]
    fn clients_are_spread_evenly() {
        let mut found = [0_u32; 16];
        for namespace in 0..160_000 {
            found[scale(decision::client_word(namespace, &[0; 4]), 16) as usize] += 1;
        }
        let chi_square: f64 = found.iter().map(|found| (f64::from(*found) - 10_000.0).powi(2) / 10_000.0).sum();
        assert!(chi_square < 37.697, "{found:?}");
        let bound = |last| decision::client_word(1, &[0, 0, map::key::MAPPED_WORD, last]);
        assert_ne!(bound(1), bound(2));
    }
}
