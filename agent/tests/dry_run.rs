//! Dry runs: what would change is said, and nothing does.

mod running;

use expect_test::expect;
use running::{Place, SERVICE, WORKLOAD, check};
use serde_json::Value;

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let place = Place::new();
    let _agent = place.start();
    let apply = |arguments: &[&str], manifest: &str| {
        place.run_with_stdin(&[&["apply", "-f", "-"], arguments].concat(), manifest)
    };
    check(
        &place,
        &apply(&["--dry-run"], SERVICE),
        &expect![[r"
            exit 0
            + Service shop/cart
            dry run at LSN 0: 1 created; nothing was changed
        "]],
    );
    apply(&["--source-version", "7"], SERVICE).succeeded();
    check(
        &place,
        &apply(&["--dry-run", "--source-version", "7"], SERVICE),
        &expect![[r"
            exit 0
            dry run: it was pushed before as LSN 1, and would change nothing
        "]],
    );
    let changed = SERVICE.replace("8080", "8081");
    check(
        &place,
        &apply(&["--dry-run"], &format!("{changed}---\n{WORKLOAD}")),
        &expect![[r"
            exit 0
            ~ Service shop/cart, of cli, LSN 1
            + Workload cart-1
            dry run at LSN 1: 1 created, 1 updated; nothing was changed
        "]],
    );
    // What would be refused is, with the same words and code.
    let dangling = WORKLOAD.replace("shop/cart", "shop/none");
    let (planned, pushed) = (apply(&["--dry-run"], &dangling), apply(&[], &dangling));
    assert_eq!((planned.code, &planned.stderr), (3, &pushed.stderr));
    let foreign = apply(&["--dry-run", "--source", "other"], SERVICE);
    assert!(foreign.code == 3 && foreign.stderr.contains("belongs to source `cli`"), "{foreign:?}");
    let stale = apply(&["--dry-run", "--source-version", "6"], SERVICE);
    assert_eq!(stale.code, 3, "{stale:?}");
    let planned = place.run(&["delete", "service", "shop/cart", "--dry-run", "-o", "json"]).succeeded();
    let planned: Value = serde_json::from_str(&planned.stdout).unwrap();
    assert_eq!(planned["changes"][0]["effect"], "removed");
    assert_eq!((&planned["removed"], &planned["stateLsn"], &planned["dryRun"]), (&1.into(), &1.into(), &true.into()));
    assert_eq!(place.status()["appendedLsn"], 1, "{}", place.status());
}

#[test]
fn what_would_not_fit_is_refused_by_a_dry_run_too() {
    let place = Place::new();
    let _agent = place.start_with(&["--capacity-services", "1"], &[]);
    place.run_with_stdin(&["apply", "-f", "-"], SERVICE).succeeded();
    let second = SERVICE.replace("shop/cart", "shop/pay").replace("10.96.0.1", "10.96.0.2");
    for _ in 0..2 {
        let refused = place.run_with_stdin(&["apply", "-f", "-", "--dry-run"], &second);
        assert!(refused.code == 3 && refused.stderr.contains("services"), "{refused:?}");
    }
    place.run_with_stdin(&["apply", "-f", "-"], &SERVICE.replace("8080", "8081")).succeeded();
}
