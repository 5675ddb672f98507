//! What happens to what a source owns when the source is gone, with the real agent.

mod running;

use std::time::{Duration, Instant};

use api::Level;
use api::client::Client;
use api::journal::RecordsQuery;
use api::push::stream::PushStream;
use api::push::{Answer, Hello, Resync};
use api::rejection::Rejection;
use api::source::ListedSource;
use running::Place;
use storage_schema::record::{Cause, Delta, Event, Lease, Origin, Record, Transaction};
use storage_schema::resource::{Kind, Resource, ResourceKey, Service};
use tokio_stream::StreamExt as _;

/// Longer than anything here takes.
const SOON: Duration = Duration::from_mins(1);
const TTL: Duration = Duration::from_secs(1);

fn service(name: &str) -> Resource {
    Resource::Service(Service { name: name.to_owned(), ..Service::default() })
}

fn hello(source: &str, ttl: Option<Duration>) -> Hello {
    Hello { ttl, ..Hello::new(source, 3) }
}

async fn connect(place: &Place) -> Client {
    Client::connect(place.socket()).await.unwrap()
}

/// A stream of a source that owns one service of its name.
async fn open(client: &Client, source: &str, ttl: Option<Duration>) -> PushStream {
    let mut stream = client.push(&hello(source, ttl)).await.unwrap();
    let version = stream.welcome().last_version.map_or(1, |last| last + 1);
    stream.send(version, &[Delta::Upsert(service(&format!("of/{source}")))], None).await.unwrap();
    assert!(matches!(stream.next().await.unwrap(), Some(Answer::Acked { .. })));
    stream
}

async fn names(client: &Client) -> Vec<String> {
    let listed = client.list(Kind::Service).await.unwrap();
    listed.iter().map(|stored| stored.resource.name().to_owned()).collect()
}

async fn listed(client: &Client, source: &str) -> ListedSource {
    client.sources().await.unwrap().into_iter().find(|listed| listed.source.name == source).unwrap()
}

/// Waits until these services are what there is.
async fn until(client: &Client, expected: &[&str]) {
    let begun = Instant::now();
    while names(client).await != expected {
        assert!(begun.elapsed() < SOON, "{:?}", names(client).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn records(client: &Client, source: &str) -> Vec<Record> {
    let query = RecordsQuery { source: Some(source.to_owned()), ..RecordsQuery::default() };
    let mut batches = Box::pin(client.records(&query).await.unwrap());
    let mut records = Vec::new();
    while let Some(batch) = batches.next().await {
        records.extend(batch.unwrap().iter().map(|record| record.decode().unwrap()));
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_owns_expires_if_it_has_said_so_and_is_gone() {
    let place = Place::new();
    let agent = place.start();
    let client = connect(&place).await;
    // All have had their second by the time that the one that is gone has: one stays connected, one has no lease, one has
    // given it up.
    let connected = open(&client, "connected", Some(TTL)).await;
    drop(open(&client, "kept", None).await);
    drop(open(&client, "kept-again", Some(TTL)).await);
    drop(open(&client, "kept-again", Some(Duration::ZERO)).await);
    let of_gone = open(&client, "gone", Some(TTL)).await;
    let described = listed(&client, "gone").await;
    assert_eq!((described.source.state.ttl, described.expires_in, described.connected), (Some(TTL), None, true));
    drop(of_gone);
    until(&client, &["of/connected", "of/kept", "of/kept-again"]).await;

    // One record, in the source's name, which says why.
    let told = records(&client, "gone").await;
    let [leased, _, expiry] = &told[..] else { panic!("{told:?}") };
    assert_eq!(leased.transaction.event, Some(Event::Leased(Lease { ttl_seconds: 1 })));
    let Transaction { origin, deltas, cause, .. } = &expiry.transaction;
    assert_eq!(*cause, Cause::Expiry);
    assert_eq!(*origin, Origin { source: "gone".to_owned(), incarnation: 3, version: None });
    assert_eq!(*deltas, [Delta::Remove(ResourceKey::new(Kind::Service, "of/gone"))]);
    assert!(expiry.lsn > records(&client, "connected").await.last().unwrap().lsn);
    assert!(listed(&client, "gone").await.source.state.expired);
    let table = place.run(&["sources"]).succeeded().stdout;
    for (source, expires) in [("connected", "1 s after it is gone"), ("gone", "expired"), ("kept", "never")] {
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(source)).unwrap();
        assert!(line.trim_end().ends_with(expires), "{table}");
    }
    drop((agent, connected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_comes_back_is_asked_for_a_sync_until_it_has_sent_one() {
    let place = Place::new();
    let mut agent = place.start();
    let mut client = connect(&place).await;
    drop(open(&client, "cp", Some(TTL)).await);
    until(&client, &[]).await;
    // It has sent version 1 and has its ack; without a word from the agent it would believe that all is well.
    let back = Hello { last_sent_version: Some(1), last_acked_version: Some(1), ..hello("cp", None) };
    let mut stream = client.push(&back).await.unwrap();
    assert_eq!(stream.welcome().resync, Some(Resync::Expired));
    stream.send(2, &[Delta::Upsert(service("of/cp"))], None).await.unwrap();
    assert!(matches!(stream.next().await.unwrap(), Some(Answer::Acked { .. })));
    drop(stream);

    // What the journal knows of it outlives the agent: the lease, and that a sync is missing.
    agent.kill();
    let agent = place.start();
    client = connect(&place).await;
    let back = Hello { last_sent_version: Some(2), last_acked_version: Some(2), ..back };
    let mut stream = client.push(&back).await.unwrap();
    assert_eq!(stream.welcome().resync, Some(Resync::Expired));
    assert_eq!(names(&client).await, ["of/cp"], "an agent that starts has seen everybody");
    stream.sync(3, &[service("of/cp"), service("of/cp-2")], None).await.unwrap();
    assert!(matches!(stream.next().await.unwrap(), Some(Answer::Acked { .. })));
    drop(stream);
    let back = Hello { last_sent_version: Some(3), last_acked_version: Some(3), ..back };
    assert_eq!(client.push(&back).await.unwrap().welcome().resync, None);
    until(&client, &[]).await;
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_gives_a_lease_anew_and_lets_nothing_expire() {
    let place = Place::new();
    let mut agent = place.start();
    let mut client = connect(&place).await;
    drop(open(&client, "gone", Some(TTL)).await);
    let of_cp = open(&client, "cp", Some(Duration::from_hours(1))).await;
    until(&client, &["of/cp"]).await;
    drop(of_cp);
    agent.kill();
    let agent = place.start();
    client = connect(&place).await;
    let source = listed(&client, "cp").await;
    assert_eq!(source.source.state.ttl, Some(Duration::from_hours(1)));
    assert!(source.expires_in.unwrap() > Duration::from_mins(59), "{source:?}");
    assert_eq!(names(&client).await, ["of/cp"]);
    assert!(listed(&client, "gone").await.source.state.expired);
    assert_eq!(records(&client, "gone").await.len(), 3, "what has expired does not expire again");

    // An `Apply` shows as well that a source is there.
    let origin = Origin { source: "cp".to_owned(), incarnation: 3, version: Some(9) };
    let transaction = Transaction::push(origin, vec![Delta::Upsert(service("of/cp"))]);
    client.apply(&transaction, Level::Durable, SOON).await.unwrap();
    assert!(listed(&client, "cp").await.expires_in.unwrap() > Duration::from_mins(59));

    let too_long = client.push(&hello("cp", Some(Duration::from_hours(24 * 8)))).await.unwrap_err();
    let api::client::ClientError::Rejected(rejection @ Rejection::Refused { .. }) = too_long else {
        panic!("{too_long:?}")
    };
    assert!(rejection.to_string().starts_with("hello.ttl: must be at most 604800 whole seconds"), "{rejection}");
    drop(agent);
}
