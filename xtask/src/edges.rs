//! Which crate may depend on which: the architecture's picture as data.
//!
//! [`CRATES`] is the whole picture. A crate that is not in it fails the check, so that whoever adds one decides where it
//! stands. Development and build dependencies follow the same rules: a test that needs an upper floor belongs upstairs.

use crate::metadata::Package;

/// A crate of ours and the crates of ours that it may depend on, ground floor first.
const CRATES: &[(&str, &[&str])] = &[
    ("storage-schema", &[]),
    ("decision", &["storage-schema"]),
    ("programs", &["storage-schema", "decision"]),
    ("journal", &["storage-schema"]),
    ("loader", &["storage-schema", "decision"]),
    ("applier", &["storage-schema", "decision", "journal", "loader"]),
    ("replay", &["storage-schema", "decision", "journal", "applier"]),
    ("telemetry", &["storage-schema", "journal", "loader", "applier"]),
    ("api", &["storage-schema", "journal", "applier"]),
    ("agent", &["storage-schema", "decision", "journal", "loader", "applier", "replay", "telemetry", "api"]),
    (
        "recovery-tests",
        &["storage-schema", "decision", "journal", "loader", "applier", "replay", "telemetry", "api", "agent"],
    ),
    ("bench-api", &["storage-schema", "journal", "api", "agent"]),
    ("bench-journal", &["storage-schema", "journal"]),
    ("bench-applier", &["storage-schema", "journal", "loader", "applier"]),
    ("bench-datapath", &["storage-schema", "loader", "recovery-tests"]),
    ("xtask", &[]),
];

/// A crate of others (or a family of them, by prefix) and the crates of ours that alone may name it.
const EXTERNAL: &[(&str, &[&str])] = &[
    ("sled", &["journal"]),
    ("tonic", &["api"]),
    ("prost", &["api"]),
    ("protox", &["api"]),
    ("rustls", &["api"]),
    ("tokio-rustls", &["api"]),
    ("aya", &["loader", "applier"]),
    ("aya-obj", &["loader", "applier"]),
    ("aya-ebpf", &["programs"]),
    ("metrics", &["agent"]),
    ("metrics-exporter-prometheus", &["agent"]),
    // Errors without a type are for programs; the demo is one.
    ("anyhow", &["agent", "recovery-tests"]),
];

/// Every edge that the picture does not have, in words.
pub(crate) fn violations(packages: &[Package]) -> Vec<String> {
    packages.iter().flat_map(violations_of).collect()
}

fn violations_of(package: &Package) -> Vec<String> {
    let name = package.name.as_str();
    let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == name) else {
        return vec![format!("{name} has no place in the architecture: add it to CRATES in xtask/src/edges.rs")];
    };
    let mut found = Vec::new();
    for dependency in &package.dependencies {
        let (kind, to) = (dependency.kind.as_deref().unwrap_or("normal"), dependency.name.as_str());
        // A crate's tests may turn on features of the crate itself.
        if to == name {
            continue;
        }
        if CRATES.iter().any(|(ours, _)| *ours == to) && !allowed.contains(&to) {
            found.push(format!("{name} -> {to} ({kind}) points up or sideways; {name} may use {allowed:?}"));
        }
        if let Some((family, owners)) = owners(to).filter(|(_, owners)| !owners.contains(&name)) {
            found.push(format!("{name} -> {to} ({kind}): only {owners:?} may name {family}"));
        }
    }
    found
}

/// The most specific entry for a crate of others: `aya-obj` before `aya`, `tonic` for `tonic-types`.
fn owners(to: &str) -> Option<(&'static str, &'static [&'static str])> {
    let in_family = |family: &str| to == family || to.strip_prefix(family).is_some_and(|rest| rest.starts_with('-'));
    EXTERNAL.iter().copied().filter(|(family, _)| in_family(family)).max_by_key(|(family, _)| family.len())
}

#[cfg(test)]
mod tests {
    use super::{CRATES, violations};
    use crate::metadata::{Dependency, Package};

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependencies = dependencies
            .iter()
            .map(|(name, kind)| Dependency { name: (*name).to_owned(), kind: kind.map(str::to_owned) })
            .collect();
        Package { name: name.to_owned(), manifest_path: "Cargo.toml".into(), dependencies }
    }

    fn violation(name: &str, to: &str, kind: Option<&str>) -> Option<String> {
        violations(&[package(name, &[(to, kind)])]).pop()
    }

    #[test]
    fn an_edge_that_points_up_is_named() {
        let found = violation("journal", "applier", None).expect("the journal knows no applier");
        assert!(found.starts_with("journal -> applier (normal) points up"), "{found}");
        assert!(violation("storage-schema", "journal", Some("dev")).is_some());
        assert!(violation("api", "loader", None).is_some(), "the API knows no maps");
        assert!(violation("loader", "journal", Some("build")).is_some(), "the kernel's side knows no journal");
        assert!(violation("agent", "recovery-tests", Some("dev")).is_some());
    }

    #[test]
    fn only_its_owner_names_an_external_crate() {
        let found = violation("applier", "sled", None).expect("the store is the journal's");
        assert_eq!(found, r#"applier -> sled (normal): only ["journal"] may name sled"#);
        assert!(violation("agent", "tonic", None).is_some());
        assert!(violation("agent", "tonic-types", None).is_some(), "a family is guarded as a whole");
        assert!(violation("journal", "aya", None).is_some());
        assert!(violation("loader", "aya-ebpf", None).is_some(), "the longer name has rules of its own");
        assert!(violation("journal", "anyhow", None).is_some());
    }

    #[test]
    fn edges_of_the_picture_pass() {
        let edges = [("applier", "journal"), ("journal", "sled"), ("loader", "aya"), ("programs", "aya-ebpf")];
        for (from, to) in edges.into_iter().chain([("journal", "journal"), ("agent", "ayatana")]) {
            assert_eq!(violation(from, to, None), None);
        }
    }

    #[test]
    fn a_crate_without_a_place_is_named() {
        assert!(violations(&[package("cellar", &[])])[0].starts_with("cellar has no place"));
    }

    #[test]
    fn the_picture_itself_points_down() {
        for (floor, (name, allowed)) in CRATES.iter().enumerate() {
            for below in *allowed {
                assert!(CRATES[..floor].iter().any(|(known, _)| known == below), "{name} -> {below}");
            }
        }
    }
}
