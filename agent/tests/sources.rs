//! `holdfast sources` and the list behind it, with the real agent.

mod running;

use std::time::{Duration, Instant};

use api::Level;
use api::client::Client;
use api::push::Hello;
use running::Place;
use serde_json::{Value, json};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Kind, Resource, ResourceKey, Service, Workload};

const SOON: Duration = Duration::from_secs(20);

fn service(name: &str) -> Delta {
    Delta::Upsert(Resource::Service(Service { name: name.to_owned(), ..Service::default() }))
}

fn workload(uid: &str, service: &str) -> Delta {
    Delta::Upsert(Resource::Workload(Workload {
        uid: uid.to_owned(),
        addresses: vec!["127.1.1.1".parse().unwrap()],
        services: vec![Backing { service: service.to_owned(), ports: Vec::new() }],
        ..Workload::default()
    }))
}

async fn push(client: &Client, (source, incarnation): (&str, u64), take_over: bool, deltas: Vec<Delta>) {
    let origin = Origin { source: source.to_owned(), incarnation, version: None };
    let transaction = Transaction { take_over, ..Transaction::push(origin, deltas) };
    client.apply(&transaction, Level::Durable, SOON).await.unwrap();
}

/// What the command says, without what no two runs have in common.
fn listed(place: &Place) -> Vec<Value> {
    let mut listed: Vec<Value> =
        serde_json::from_str(&place.run(&["sources", "-o", "json"]).succeeded().stdout).unwrap();
    for source in &mut listed {
        let time = source.as_object_mut().unwrap().remove("lastTime").unwrap();
        assert!(time.as_str().unwrap().ends_with('Z'), "{time}");
    }
    listed
}

fn expected(
    name: &str,
    connected: bool,
    version: Option<u64>,
    [incarnation, lsn, services, workloads]: [u64; 4],
) -> Value {
    json!({
        "name": name, "connected": connected, "lastVersion": version, "incarnation": incarnation, "lastLsn": lsn,
        "services": services, "workloads": workloads, "nodes": 0,
        "ttlSeconds": null, "expiresInSeconds": null, "expired": false,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_source_is_told_with_what_it_has() {
    let place = Place::new();
    let agent = place.start();
    assert_eq!(place.run(&["sources"]).succeeded().stderr, "nobody has pushed anything\n");

    let client = Client::connect(place.socket()).await.unwrap();
    push(&client, ("batch", 0), false, vec![service("shop/a"), service("shop/b"), workload("w", "shop/a")]).await;
    let mut stream = client.push(&Hello::new("mesh", 7)).await.unwrap();
    stream.send(41, &[service("shop/c")], None).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let mesh_before = expected("mesh", true, Some(41), [7, 2, 1, 0]);
    assert_eq!(listed(&place), [expected("batch", false, None, [0, 1, 2, 1]), mesh_before]);

    // One takes over what was another's; one that owns nothing any more is still known.
    push(&client, ("mesh", 7), true, vec![service("shop/b")]).await;
    drop(stream);
    push(&client, ("batch", 0), false, vec![Delta::Remove(ResourceKey::new(Kind::Workload, "w"))]).await;
    let after = [expected("batch", false, None, [0, 4, 1, 0]), expected("mesh", false, Some(41), [7, 3, 2, 0])];
    let begun = Instant::now();
    while listed(&place) != after {
        assert!(begun.elapsed() < SOON, "the stream has ended: {:?}", listed(&place));
    }

    let table = place.run(&["sources"]).succeeded().stdout;
    assert!(table.starts_with("NAME    CONNECTED   VERSION   INCARNATION   LSN   TIME"), "{table}");
    drop(agent);
}
