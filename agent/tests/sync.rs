//! Syncs and ownership, over the real socket, with the real agent and its command line.

mod running;

use std::fs;

use api::client::{Client, ClientError};
use api::push::stream::{How, PushStream};
use api::push::{Answer, Hello};
use api::rejection::Rejection;
use api::{Level, Receipt};
use expect_test::expect;
use running::{Place, SERVICE, WORKLOAD};
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Kind, Resource, ResourceKey, Service, Workload};

fn service(name: &str) -> Resource {
    Resource::Service(Service { name: format!("shop/{name}"), ..Service::default() })
}

fn workload(uid: &str, service: &str) -> Resource {
    let backing = Backing { service: format!("shop/{service}"), ports: Vec::new() };
    Resource::Workload(Workload {
        uid: uid.to_owned(),
        addresses: vec!["127.1.1.1".parse().unwrap()],
        services: vec![backing],
        ..Workload::default()
    })
}

async fn client(place: &Place) -> Client {
    Client::connect(place.socket()).await.unwrap()
}

async fn open(place: &Place, source: &str) -> PushStream {
    client(place).await.push(&Hello::new(source, 1)).await.unwrap()
}

async fn sync(place: &Place, source: &str, version: u64, resources: &[Resource]) -> Answer {
    let mut stream = open(place, source).await;
    stream.sync(version, resources, None).await.unwrap();
    stream.next().await.unwrap().unwrap()
}

fn receipt(answer: Answer) -> Receipt {
    match answer {
        Answer::Acked { receipt, .. } => receipt,
        other => panic!("{other:?}"),
    }
}

/// What there is, with its owner.
async fn owned(place: &Place) -> Vec<(String, String)> {
    let client = client(place).await;
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let listed = client.list(kind).await.unwrap();
        all.extend(listed.into_iter().map(|stored| (stored.resource.name().to_owned(), stored.owner)));
    }
    all
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, owner)| ((*name).to_owned(), (*owner).to_owned())).collect()
}

#[tokio::test]
async fn a_sync_is_one_transaction_and_removes_what_it_does_not_name() {
    let place = Place::new();
    let mut agent = place.start();
    let first = receipt(sync(&place, "a", 1, &[workload("w", "1"), service("1"), service("2"), service("3")]).await);
    assert_eq!((first.lsn.0, first.removed), (1, 0));
    receipt(sync(&place, "b", 1, &[service("4")]).await);
    let second = receipt(sync(&place, "a", 2, &[service("2"), service("5")]).await);
    assert_eq!((second.lsn.0, second.removed), (3, 3));
    let expected = pairs(&[("shop/2", "a"), ("shop/4", "b"), ("shop/5", "a")]);
    assert_eq!(owned(&place).await, expected);
    // It is not the memory of the agent that knows whose they are.
    agent.kill();
    let _agent = place.start();
    assert_eq!(owned(&place).await, expected);
    let third = receipt(sync(&place, "a", 3, &[]).await);
    assert_eq!((third.lsn.0, third.removed), (4, 2));
    let fourth = receipt(sync(&place, "a", 4, &[]).await);
    assert_eq!((fourth.lsn.0, fourth.removed), (5, 0), "nothing is a state as well");
    assert_eq!(owned(&place).await, pairs(&[("shop/4", "b")]));
    let again = receipt(sync(&place, "a", 4, &[service("9")]).await);
    assert_eq!((again.lsn.0, again.duplicate), (5, true));
    assert_eq!(owned(&place).await, pairs(&[("shop/4", "b")]));
}

/// The whole of a large source, in many chunks.
#[tokio::test]
async fn a_large_sync_comes_in_chunks() {
    let place = Place::new();
    let _agent = place.start();
    let many: Vec<Resource> = (0..20_000).map(|number| service(&format!("service-number-{number}"))).collect();
    assert_eq!(receipt(sync(&place, "a", 1, &many).await).removed, 0);
    assert_eq!(receipt(sync(&place, "a", 2, &many[5_000..]).await).removed, 5_000);
    let counts = client(&place).await.status().await.unwrap().resources;
    assert_eq!(counts[0], (Kind::Service, 15_000));
}

#[tokio::test]
async fn a_sync_without_its_end_changes_nothing() {
    let place = Place::new();
    let mut agent = place.start();
    receipt(sync(&place, "a", 1, &[service("1"), service("2")]).await);
    let before = owned(&place).await;
    // The client goes away in the middle.
    let (sender, answers) = open(&place, "a").await.split();
    sender.begin_sync(2, How::default()).await.unwrap();
    sender.add_to_sync(&[service("3")]).await.unwrap();
    drop((sender, answers));
    assert_eq!(owned(&place).await, before);
    // The agent does.
    let (sender, mut answers) = open(&place, "a").await.split();
    sender.begin_sync(2, How::default()).await.unwrap();
    sender.add_to_sync(&[service("3")]).await.unwrap();
    assert_eq!(owned(&place).await, before);
    agent.kill();
    assert!(answers.next().await.is_err());
    let _agent = place.start();
    assert_eq!(owned(&place).await, before);
    // The client and the agent do not mean the same.
    let (sender, mut answers) = open(&place, "a").await.split();
    sender.begin_sync(2, How::default()).await.unwrap();
    sender.add_to_sync(&[service("3")]).await.unwrap();
    sender.end_sync(2).await.unwrap();
    let Answer::Nacked { version: 2, rejection } = answers.next().await.unwrap().unwrap() else { panic!("refused") };
    assert!(rejection.to_string().contains("sync_end.resources: says 2, and 1 were sent"), "{rejection}");
    // Nothing else may come between.
    sender.begin_sync(2, How::default()).await.unwrap();
    sender.send(3, &[Delta::Upsert(service("4"))], None).await.unwrap();
    let ended = answers.next().await.unwrap_err();
    assert!(ended.to_string().contains("a sync was begun and not ended"), "{ended}");
    assert_eq!(owned(&place).await, before);
}

#[tokio::test]
async fn what_is_wrong_with_a_sync_is_said_at_its_end() {
    let place = Place::new();
    let _agent = place.start();
    let nack = |answer| match answer {
        Answer::Nacked { rejection, .. } => rejection.to_string(),
        other => panic!("{other:?}"),
    };
    let dangling = nack(sync(&place, "a", 1, &[service("1"), workload("w", "none")]).await);
    assert!(dangling.contains("transaction.deltas[1].upsert.workload.services[0].service"), "{dangling}");
    let twice = nack(sync(&place, "a", 1, &[service("1"), service("2"), service("1")]).await);
    assert!(twice.contains("Service shop/1: transaction.deltas[2].upsert.service: is sent twice"), "{twice}");
    let many: Vec<Resource> = (0..=api::push::SYNC_RESOURCES_MAX).map(|number| service(&number.to_string())).collect();
    let large = nack(sync(&place, "a", 1, &many).await);
    assert!(large.contains("more than sync_resources_max = 262144 resources"), "{large}");
    assert_eq!(owned(&place).await, []);
    assert_eq!(receipt(sync(&place, "a", 1, &[service("1")]).await).lsn.0, 1);
}

/// What a source removes with a sync may be what another one builds on.
#[tokio::test]
async fn a_sync_does_not_pull_the_rug_from_under_others() {
    let place = Place::new();
    let _agent = place.start();
    receipt(sync(&place, "services", 1, &[service("1"), service("2")]).await);
    receipt(sync(&place, "workloads", 1, &[workload("w", "1")]).await);
    let Answer::Nacked { rejection, .. } = sync(&place, "services", 2, &[service("2")]).await else { panic!("backed") };
    assert!(rejection.to_string().contains("Workload w backs it"), "{rejection}");
    assert_eq!(owned(&place).await.len(), 3);
}

#[tokio::test]
async fn what_belongs_to_another_source_is_refused_unless_it_is_taken_over() {
    let place = Place::new();
    let mut agent = place.start();
    receipt(sync(&place, "a", 1, &[service("1"), service("2")]).await);
    let mut stream = open(&place, "b").await;
    let remove = Delta::Remove(ResourceKey::new(Kind::Service, "shop/2"));
    let deltas = [Delta::Upsert(service("3")), Delta::Upsert(service("1")), remove];
    stream.send(1, &deltas, None).await.unwrap();
    let Answer::Nacked { rejection: Rejection::Owned { owner, violations }, .. } =
        stream.next().await.unwrap().unwrap()
    else {
        panic!("it is another's");
    };
    assert_eq!(owner, "a");
    let fields: Vec<&str> = violations.iter().map(|violation| &*violation.path).collect();
    assert_eq!(fields, ["transaction.deltas[1].upsert.service", "transaction.deltas[2].remove"]);
    // The same by the unary call.
    let origin = Origin { source: "b".to_owned(), incarnation: 1, version: None };
    let transaction = Transaction::push(origin, deltas.to_vec());
    let refused = client(&place).await.apply(&transaction, Level::Durable, api::WAIT_TIMEOUT_DEFAULT).await;
    assert!(
        matches!(&refused, Err(ClientError::Rejected(Rejection::Owned { owner, .. })) if owner == "a"),
        "{refused:?}"
    );
    assert_eq!(owned(&place).await, pairs(&[("shop/1", "a"), ("shop/2", "a")]));

    stream.send(2, &deltas, How { take_over: true, ..How::default() }).await.unwrap();
    let lsn = receipt(stream.next().await.unwrap().unwrap()).lsn.0;
    let expected = pairs(&[("shop/1", "b"), ("shop/3", "b")]);
    assert_eq!(owned(&place).await, expected);
    let shown = place.run(&["journal", "show", &lsn.to_string(), "-o", "json"]).succeeded();
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    assert_eq!(shown["takeOver"], true, "{shown}");
    // A sync of the old owner takes nothing back.
    agent.kill();
    let _agent = place.start();
    assert_eq!(receipt(sync(&place, "a", 2, &[]).await).removed, 0);
    assert_eq!(owned(&place).await, expected);
}

/// The store is derived: who owns what is found again in the journal.
#[tokio::test]
async fn owners_are_found_again_when_the_store_is_rebuilt() {
    let place = Place::new();
    let mut agent = place.start();
    receipt(sync(&place, "a", 1, &[service("1")]).await);
    place.run(&["journal", "checkpoint"]).succeeded();
    receipt(sync(&place, "b", 1, &[service("2")]).await);
    assert_eq!(agent.terminate(), 0);
    fs::remove_dir_all(place.path("state").join("store")).unwrap();
    let _agent = place.start();
    assert_eq!(owned(&place).await, pairs(&[("shop/1", "a"), ("shop/2", "b")]));
    assert_eq!(receipt(sync(&place, "a", 2, &[]).await).removed, 1);
}

#[test]
fn the_command_line_syncs_a_directory() {
    let place = Place::new();
    let _agent = place.start();
    let directory = place.path("mesh");
    fs::create_dir_all(directory.join("more")).unwrap();
    let (service, workload) = (directory.join("service.yaml"), directory.join("more/workload.yml"));
    fs::write(&service, SERVICE).unwrap();
    fs::write(&workload, WORKLOAD).unwrap();
    fs::write(directory.join("README.md"), "# not a manifest").unwrap();
    let path = directory.to_str().unwrap();
    let synced = place.run(&["sync", "-f", path, "--source", "mesh", "--wait", "applied"]);
    expect![[r"
        LSN 1: version 1 of mesh, 2 resources, 0 removed, applied
    "]]
    .assert_eq(&synced.succeeded().stdout);
    fs::remove_file(&workload).unwrap();
    let planned = place.run(&["sync", "-f", path, "--source", "mesh", "--dry-run"]);
    expect![[r"
        - Workload cart-1, of mesh, LSN 1
        dry run at LSN 1: 1 removed, 1 unchanged; nothing was changed
    "]]
    .assert_eq(&planned.succeeded().stdout);
    let synced = place.run(&["sync", "-f", path, "--source", "mesh"]);
    expect![[r"
        LSN 2: version 2 of mesh, 1 resources, 1 removed, durable
    "]]
    .assert_eq(&synced.succeeded().stdout);
    let refused = place.run(&["apply", "-f", service.to_str().unwrap()]);
    expect![[r"
        holdfast: DIR/mesh/service.yaml:1: document 1: belongs to source `mesh`: take it over explicitly, or remove it there
        holdfast: the agent refused the transaction: nothing was changed
    "]]
    .assert_eq(&place.normal(&refused.stderr));
    assert_eq!(refused.code, 3);
    let got = place.run(&["get", "services"]).succeeded();
    expect![[r"
        NAME        VIPS        PORTS         POLICY   OWNER   LSN
        shop/cart   10.96.0.1   80→8080/tcp   random   mesh    2
    "]]
    .assert_eq(&got.stdout);
    place.run(&["apply", "-f", service.to_str().unwrap(), "--take-over"]).succeeded();
    fs::remove_file(&service).unwrap();
    let empty = place.run(&["sync", "-f", path, "--source", "mesh"]);
    assert_eq!(empty.code, 2, "{empty:?}");
    let emptied = place.run(&["sync", "-f", path, "--source", "cli", "--allow-empty", "-o", "json"]).succeeded();
    let emptied: serde_json::Value = serde_json::from_str(&emptied.stdout).unwrap();
    assert_eq!((&emptied["removed"], &emptied["version"]), (&1.into(), &1.into()));
    assert_eq!(place.run(&["get", "services"]).succeeded().stdout, "");
}
