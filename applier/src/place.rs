//! Where a workload and the node are, and how well they match.
//!
//! A place is kept as one number for each scope, equal exactly if what is said is: there are as many workloads as there are
//! pods, and all that is ever asked is whether two of them say the same.

use std::hash::{DefaultHasher, Hash, Hasher};

use storage_schema::resource::{LocalityMode, LocalityPreference, LocalityScope};

/// A number for each scope; 0: nothing is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place([u64; LocalityScope::ALL.len()]);

/// What a place is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said<'a> {
    pub(crate) network: &'a str,
    pub(crate) region: &'a str,
    pub(crate) zone: &'a str,
    pub(crate) subzone: &'a str,
    pub(crate) node: &'a str,
    pub(crate) cluster: &'a str,
}

impl From<Said<'_>> for Place {
    fn from(said: Said<'_>) -> Self {
        let Said { network, region, zone, subzone, node, cluster } = said;
        Self(LocalityScope::ALL.map(|scope| match scope {
            LocalityScope::Network => number(&[network]),
            LocalityScope::Region => number(&[region]),
            // A zone is one of a region, a subzone one of a zone.
            LocalityScope::Zone => number(&[region, zone]),
            LocalityScope::Subzone => number(&[region, zone, subzone]),
            LocalityScope::Node => number(&[node]),
            LocalityScope::Cluster => number(&[cluster]),
        }))
    }
}

/// A number of 64 bits that names could share only by one chance in 2^64 for each pair. It is never stored.
fn number(names: &[&str]) -> u64 {
    if names.iter().all(|name| name.is_empty()) {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    names.hash(&mut hasher);
    hasher.finish() | 1
}

impl Place {
    /// How many of the scopes match, in order, until one does not. What neither says matches.
    fn rank(&self, other: &Self, scopes: &[LocalityScope]) -> usize {
        scopes.iter().take_while(|scope| self.0[**scope as usize] == other.0[**scope as usize]).count()
    }
}

/// Keeps those of `candidates` that a preference lets choose, seen from `here`.
pub(crate) fn prefer<T>(
    candidates: Vec<T>,
    preference: &LocalityPreference,
    here: &Place,
    place: impl Fn(&T) -> Place,
) -> Vec<T> {
    let scopes = &preference.routing_preference[..];
    let rank = |candidate: &T| here.rank(&place(candidate), scopes);
    let least = match preference.mode {
        LocalityMode::None => return candidates,
        LocalityMode::Strict => scopes.len(),
        LocalityMode::Failover => candidates.iter().map(rank).max().unwrap_or(0),
    };
    candidates.into_iter().filter(|candidate| rank(candidate) >= least).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `network/region/zone/subzone/node/cluster`.
    fn place(text: &str) -> Place {
        let parts: Vec<&str> = text.split('/').collect();
        let [network, region, zone, subzone, node, cluster] = parts[..] else { panic!("{text}") };
        Said { network, region, zone, subzone, node, cluster }.into()
    }

    /// Mode, scopes, members that there are, members that are chosen.
    type Case<'c> = (LocalityMode, &'c [LocalityScope], &'c [&'c str], &'c [&'c str]);

    /// The table of cases in ARCHITECTURE.md, line by line. The node is at `net/eu/eu-1/a/n1/c1`.
    #[test]
    fn preferences_choose_as_the_table_says() {
        use LocalityMode::{Failover, None, Strict};
        use LocalityScope::{Cluster, Network, Node, Region, Subzone, Zone};
        let here = place("net/eu/eu-1/a/n1/c1");
        let [same_node, same_subzone, same_zone, same_region, other_region, other_network] = [
            "net/eu/eu-1/a/n1/c1",
            "net/eu/eu-1/a/n2/c1",
            "net/eu/eu-1/b/n3/c1",
            "net/eu/eu-2/a/n4/c1",
            "net/us/eu-1/a/n5/c1",
            "far/eu/eu-1/a/n6/c2",
        ];
        let all = [same_node, same_subzone, same_zone, same_region, other_region, other_network];
        let hierarchy = [Network, Region, Zone, Subzone, Node, Cluster];
        let cases: [Case<'_>; 12] = [
            (None, &[], &all, &all),
            (Strict, &[Region], &all, &[same_node, same_subzone, same_zone, same_region, other_network]),
            (Strict, &[Network, Region, Zone], &all, &[same_node, same_subzone, same_zone]),
            (Strict, &[Zone], &[other_region], &[]),
            (Strict, &[Node], &[same_subzone, other_region], &[]),
            (Failover, &hierarchy, &all, &[same_node]),
            (Failover, &hierarchy, &all[1..], &[same_subzone]),
            (Failover, &hierarchy, &all[2..], &[same_zone]),
            (Failover, &hierarchy, &all[3..], &[same_region]),
            (Failover, &hierarchy, &all[4..], &[other_region]),
            (Failover, &hierarchy, &all[5..], &[other_network]),
            (Failover, &[Cluster, Region], &[same_region, other_region, other_network], &[same_region]),
        ];
        for (mode, scopes, candidates, expected) in cases {
            let preference = LocalityPreference { mode, routing_preference: scopes.to_vec() };
            let chosen = prefer(candidates.to_vec(), &preference, &here, |text| place(text));
            assert_eq!(chosen, expected, "{mode} {scopes:?} of {candidates:?}");
        }
    }

    #[test]
    fn what_neither_says_matches() {
        assert_eq!(place("/////").rank(&place("/////"), &LocalityScope::ALL), 6);
        assert_eq!(place("/////").rank(&place("/eu////"), &LocalityScope::ALL), 1);
        assert_eq!(place("/a/b///").rank(&place("/ab////"), &[LocalityScope::Zone]), 0);
    }
}
