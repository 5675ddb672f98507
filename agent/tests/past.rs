//! `holdfast get --at`, `diff`, `history` and `why` on the real binary: of a running agent, of what it left behind when it was
//! killed, and of a damaged copy of that.

mod running;

use std::fs;

use expect_test::{Expect, expect};
use running::{Agent, Place, Run, SERVICE, WORKLOAD};
use serde_json::Value;

/// Five records: a service, two workloads, one of them found unhealthy, and the other gone.
fn incident(place: &Place) -> Agent {
    let agent = place.start();
    let second = WORKLOAD.replace("cart-1", "cart-2").replace("127.1.1.1", "127.1.1.2");
    let sick = second.replace("addresses", "status: unhealthy\naddresses");
    let push = |source: &str, manifest: &str| {
        place
            .run_with_stdin(&["apply", "-f", "-", "--source", source, "--take-over", "--wait", "applied"], manifest)
            .succeeded();
    };
    push("istiod", SERVICE);
    push("istiod", WORKLOAD);
    push("istiod", &second);
    push("probe", &sick);
    place.run(&["delete", "workload", "cart-1", "--source", "intern", "--take-over"]).succeeded();
    agent
}

/// Each check twice: asking the agent, and reading what it left behind when it was killed.
fn online_and_offline(check: impl Fn(&dyn Fn(&[&str]) -> Run)) {
    let place = Place::new();
    let mut agent = incident(&place);
    check(&|arguments| place.run(arguments));
    agent.kill();
    let state = place.path("state").display().to_string();
    check(&|arguments| place.run(&[arguments, &["--state-dir", &state]].concat()));
}

fn json(run: Run) -> Value {
    serde_json::from_str(&run.succeeded().stdout).unwrap()
}

/// Without times, process numbers and waits, which differ from run to run.
fn normal(text: &str) -> String {
    let word = |word: &str| -> String {
        let bare = word.trim_matches(|c: char| "(),:".contains(c));
        if bare.starts_with("pid=") {
            return word.replace(bare, "pid=N");
        }
        let is_time = bare.len() == 24 && bare.ends_with('Z') && bare.contains('T');
        if is_time { word.replace(bare, "TIME") } else { word.to_owned() }
    };
    let line = |line: &str| {
        let line = line.split(", after ").next().unwrap_or(line);
        line.split(' ').map(word).collect::<Vec<_>>().join(" ").trim_end().to_owned() + "\n"
    };
    text.lines().map(line).collect()
}

fn check(run: Run, expected: &Expect) {
    expected.assert_eq(&normal(&run.succeeded().stdout));
}

#[test]
fn resources_are_shown_as_they_were() {
    online_and_offline(|holdfast| {
        let uids = |at: &str| -> Vec<String> {
            let found = json(holdfast(&["get", "workloads", "-o", "json", "--at", at]));
            found.as_array().unwrap().iter().map(|w| w["uid"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(uids("0"), [""; 0]);
        assert_eq!(uids("2"), ["cart-1"]);
        assert_eq!(uids("4"), ["cart-1", "cart-2"]);
        assert_eq!(uids("-0s"), ["cart-2"]);
        assert_eq!(json(holdfast(&["get", "workload", "cart-2", "--at", "3", "-o", "json"]))["status"], "healthy");
        let gone = holdfast(&["get", "workload", "cart-1", "--at", "5"]);
        assert_eq!(gone.code, 8, "{gone:?}");
        assert!(gone.stderr.contains("Workload cart-1 did not exist at LSN 5"), "{gone:?}");
        let ahead = holdfast(&["get", "workloads", "--at", "6"]);
        assert_eq!(ahead.code, 8, "{ahead:?}");
        let manifest = holdfast(&["get", "workload", "cart-1", "--at", "4", "-o", "yaml"]).succeeded().stdout;
        assert!(manifest.contains("uid: cart-1\n"), "{manifest}");
    });
}

#[test]
fn a_diff_names_who_did_it() {
    online_and_offline(|holdfast| {
        check(
            holdfast(&["diff", "3", "5", "--maps"]),
            &expect![[r"
                from LSN 3 to LSN 5

                Workload cart-1 removed   LSN 5, TIME, intern (uid=0 gid=0 pid=N)
                    - addresses: [127.1.1.1]
                    - services[shop/cart].service: shop/cart
                    - status: healthy
                    - uid: cart-1
                    - weight: 1

                Workload cart-2 changed   LSN 4, TIME, probe (uid=0 gid=0 pid=N)
                    status: healthy → unhealthy

                backends cart-1:8080 IPv4 removed
                    - address: 127.1.1.1:8080

                services shop/cart 80/TCP IPv4 changed
                    - endpoints[cart-1:8080 IPv4]: 127.1.1.1:8080
                    - endpoints[cart-2:8080 IPv4]: 127.1.1.2:8080
            "]],
        );
        let diff = json(holdfast(&["diff", "-1h", "--kind", "service", "-o", "json"]));
        assert_eq!((&diff["fromLsn"], &diff["toLsn"]), (&0.into(), &5.into()));
        assert_eq!(diff["resources"][0]["cause"]["source"], "istiod");
        assert_eq!(diff["entries"], Value::Null);
        let none = holdfast(&["diff", "5", "5"]).succeeded().stdout;
        assert!(none.ends_with("nothing differs\n"), "{none}");
    });
}

#[test]
fn a_history_tells_each_change() {
    online_and_offline(|holdfast| {
        check(
            holdfast(&["history", "workload", "cart-2"]),
            &expect![[r"
                LSN 3, TIME, istiod (uid=0 gid=0 pid=N): added
                    + addresses: [127.1.1.2]
                    + services[shop/cart].service: shop/cart
                    + status: healthy
                    + uid: cart-2
                    + weight: 1
                LSN 4, TIME, probe (uid=0 gid=0 pid=N): changed
                    status: healthy → unhealthy
            "]],
        );
        let last = json(holdfast(&["history", "workload", "cart-1", "-n", "1", "-o", "json"]));
        assert_eq!((&last["steps"][0]["change"], &last["steps"][0]["cause"]["lsn"]), (&"removed".into(), &5.into()));
        let none = holdfast(&["history", "service", "shop/none"]);
        assert_eq!(none.code, 8, "{none:?}");
        assert!(holdfast(&["history", "workload", "cart-2", "-o", "yaml"]).succeeded().stdout.contains("lsn: 3"));
    });
}

#[test]
fn a_connection_is_explained() {
    online_and_offline(|holdfast| {
        check(
            holdfast(&["why", "--from", "127.1.1.2", "--to", "10.96.0.1:80", "--at", "4"]),
            &expect![[r"
                a connection to 10.96.0.1:80/TCP at LSN 4 goes to a backend

                client        127.1.1.2 is Workload cart-2
                              LSN 3, TIME, istiod (uid=0 gid=0 pid=N)
                frontend      10.96.0.1:80/TCP is Service shop/cart, port 80
                              LSN 1, TIME, istiod (uid=0 gid=0 pid=N)
                policy        one is chosen by the policy random
                              LSN 1, TIME, istiod (uid=0 gid=0 pid=N)
                backends      1 of 2 workloads that back it may be chosen
                              LSN 2, TIME, istiod (uid=0 gid=0 pid=N)

                CANDIDATE   ADDRESS          SHARE      STATUS    WEIGHT   LOCALITY   BECAUSE OF
                cart-1      127.1.1.1:8080   100.00 %   healthy   1        -          LSN 2, TIME, istiod (uid=0 gid=0 pid=N)

                EXCLUDED   REASON            BECAUSE OF
                cart-2     it is unhealthy   LSN 4, TIME, probe (uid=0 gid=0 pid=N)
            "]],
        );
        let refused = json(holdfast(&["why", "--to", "10.96.0.1:80", "-o", "json"]));
        assert_eq!((&refused["outcome"], &refused["lsn"]), (&"refused".into(), &5.into()));
        let made = ["why", "--to", "10.96.0.1:80", "--epoch", "3", "--entropy", "0", "--at", "4", "-o", "json"];
        let made = json(holdfast(&made));
        assert_eq!(made["choice"]["workload"], "cart-2", "the lowest word chooses the first one, by number");
        assert_eq!(made["choice"]["later"][0]["cause"]["source"], "probe");
        assert_eq!((&made["unseen"][0]["name"], &made["unseen"][0]["cause"]["lsn"]), (&"cart-2".into(), &4.into()));
        let passed = holdfast(&["why", "--to", "[fd00::1]:80"]).succeeded().stdout;
        assert!(passed.contains("goes where the client dials"), "{passed}");
        let wrong = holdfast(&["why", "--to", "10.96.0.1"]);
        assert_eq!(wrong.code, 2, "{wrong:?}");
    });
}

#[test]
fn what_a_damaged_copy_still_knows_is_told() {
    let place = Place::new();
    incident(&place).kill();
    let state = place.path("state");
    let segment = fs::read_dir(state.join("journal")).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.into_iter().find(|path| path.extension().is_some_and(|suffix| suffix == "seg")).unwrap();
    let bytes = fs::read(&segment).unwrap();
    let place_of = |needle: &[u8]| bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    let ask = |arguments: &[&str]| place.run(&[arguments, &["--state-dir", state.to_str().unwrap()]].concat());

    // Cut off within the last record, as a copy of a running agent's file may be.
    fs::write(&segment, &bytes[..place_of(b"intern") + 2]).unwrap();
    let found = json(ask(&["history", "workload", "cart-2", "-o", "json"]));
    assert_eq!(found["toLsn"], 4);

    // Altered in the middle: what is before it is used, and what is wrong is told.
    let mut altered = bytes.clone();
    altered[place_of(b"probe")] ^= 1;
    fs::write(&segment, &altered).unwrap();
    let before = ask(&["history", "workload", "cart-2", "-o", "json"]);
    assert!(before.stderr.contains("damaged record at LSN 4") && before.stderr.contains("up to 3"), "{before:?}");
    assert_eq!(json(before)["steps"].as_array().unwrap().len(), 1);
    let behind = ask(&["get", "workloads", "--at", "5"]);
    assert_eq!(behind.code, 8, "{behind:?}");

    let foreign = place.path("foreign");
    fs::create_dir(&foreign).unwrap();
    let refused = place.run(&["diff", "1", "2", "--state-dir", foreign.to_str().unwrap()]);
    assert_eq!(refused.code, 6, "{refused:?}");
    assert!(refused.stderr.contains("foreign"), "{refused:?}");
}

#[test]
fn lists_are_filtered_now_and_then() {
    let place = Place::new();
    let mut agent = incident(&place);
    let names = |arguments: &[&str]| -> Vec<String> {
        let got = json(place.run(&[&["get", "workloads", "-o", "json"], arguments].concat()));
        got.as_array().unwrap().iter().map(|one| one["uid"].as_str().unwrap().to_owned()).collect()
    };
    let check = |more: &[&str]| {
        let then = |arguments: &[&str]| names(&[arguments, &["--at", "4"], more].concat());
        assert_eq!(then(&[]), ["cart-1", "cart-2"]);
        assert_eq!(then(&["--prefix", "cart-2"]), ["cart-2"]);
        assert_eq!(then(&["--owner", "istiod"]), ["cart-1"]);
        assert_eq!(then(&["--owner", "probe", "--prefix", "cart-"]), ["cart-2"]);
        assert_eq!(then(&["--changed-after", "2"]), ["cart-2"]);
        assert!(then(&["--changed-after", "4"]).is_empty());
    };
    check(&[]);
    for (arguments, expected) in [
        (["--prefix", "cart"], &["cart-2"][..]),
        (["--prefix", "cart-1"], &[]),
        (["--owner", "probe"], &["cart-2"]),
        (["--owner", "istiod"], &[]),
        (["--changed-after", "3"], &["cart-2"]),
        (["--changed-after", "4"], &[]),
    ] {
        assert_eq!(names(&arguments), expected, "{arguments:?}");
    }
    let both = place.run(&["get", "workload", "cart-2", "--owner", "probe"]);
    assert_eq!(both.code, 2, "{both:?}");
    agent.kill();
    check(&["--state-dir", &place.path("state").display().to_string()]);
}
