//! Push streams over the real socket, with the real agent.

mod running;

use std::time::Duration;

use api::client::{Client, ClientError};
use api::journal::RecordsQuery;
use api::push::outbox::Outbox;
use api::push::stream::{PushStream, SendError};
use api::push::{Answer, Hello, Resync, WINDOW};
use api::rejection::{Reason, Rejection};
use api::{Level, Receipt, Stored};
use running::Place;
use storage_schema::id::Lsn;
use storage_schema::precondition::Precondition;
use storage_schema::record::{Delta, Origin, Transaction};
use storage_schema::resource::{Backing, Kind, Resource, ResourceKey, Service, Workload};
use tokio_stream::StreamExt as _;

fn service(name: &str) -> Delta {
    Delta::Upsert(Resource::Service(Service { name: format!("shop/{name}"), ..Service::default() }))
}

/// Backs a service that nobody has pushed.
fn dangling() -> Delta {
    let backing = Backing { service: "shop/none".to_owned(), ports: Vec::new() };
    Delta::Upsert(Resource::Workload(Workload {
        uid: "w".to_owned(),
        addresses: vec!["127.1.1.1".parse().unwrap()],
        services: vec![backing],
        ..Workload::default()
    }))
}

async fn client(place: &Place) -> Client {
    Client::connect(place.socket()).await.unwrap()
}

async fn open(place: &Place, hello: &Hello) -> PushStream {
    client(place).await.push(hello).await.unwrap()
}

async fn acked(stream: &mut PushStream) -> (u64, Receipt) {
    match stream.next().await.unwrap().unwrap() {
        Answer::Acked { version, receipt } => (version, receipt),
        other => panic!("{other:?}"),
    }
}

/// Each version of a source in the journal, with its LSN, in order.
async fn journaled(place: &Place, source: &str) -> Vec<(u64, u64)> {
    let query = RecordsQuery { source: Some(source.to_owned()), ..RecordsQuery::default() };
    let mut batches = Box::pin(client(place).await.records(&query).await.unwrap());
    let mut versions = Vec::new();
    while let Some(batch) = batches.next().await {
        versions.extend(batch.unwrap().iter().map(|record| {
            let record = record.decode().unwrap();
            (record.transaction.origin.version.unwrap(), record.lsn.0)
        }));
    }
    versions
}

#[tokio::test]
async fn each_transaction_is_answered_in_order() {
    let place = Place::new();
    let _agent = place.start();
    let mut stream = open(&place, &Hello::new("cp", 1)).await;
    let welcome = stream.welcome();
    assert_eq!((welcome.last_version, welcome.last_lsn, welcome.resync), (None, Lsn::ZERO, None));
    assert_eq!((welcome.window, welcome.record_bytes_max), (WINDOW, 64 << 20));
    for (version, level) in [(1, None), (2, Some(Level::Applied)), (3, Some(Level::Received)), (5, None)] {
        stream.send(version, &[service(&version.to_string())], level).await.unwrap();
    }
    let mut answers = Vec::new();
    for _ in 0..4 {
        let (version, receipt) = acked(&mut stream).await;
        assert!(!receipt.duplicate);
        answers.push((version, receipt.lsn.0, receipt.level));
    }
    let expected = [(1, 1, Level::Durable), (2, 2, Level::Applied), (3, 3, Level::Received), (5, 4, Level::Durable)];
    assert_eq!(answers, expected);
    let (sender, mut rest) = stream.split();
    drop(sender);
    assert_eq!(rest.next().await.unwrap(), None, "it ends when the client has closed its half");
    assert_eq!(journaled(&place, "cp").await, [(1, 1), (2, 2), (3, 3), (5, 4)]);
}

#[tokio::test]
async fn a_nack_names_what_is_wrong_and_the_stream_goes_on() {
    let place = Place::new();
    let _agent = place.start();
    let mut stream = open(&place, &Hello::new("cp", 1)).await;
    for (version, delta) in [(1, service("a")), (2, dangling()), (3, service("b")), (0, service("c"))] {
        stream.send(version, &[service("x"), delta], None).await.unwrap();
    }
    assert_eq!(acked(&mut stream).await.0, 1);
    let Some(Answer::Nacked { version: 2, rejection: Rejection::Refused { reason, violations } }) =
        stream.next().await.unwrap()
    else {
        panic!("it is refused");
    };
    assert_eq!(reason, Reason::Conflict);
    let violation = violations.iter().next().unwrap();
    assert_eq!(violation.path, "transaction.deltas[1].upsert.workload.services[0].service");
    assert_eq!(violation.resource.as_ref().unwrap().to_string(), "Workload w");
    assert_eq!(acked(&mut stream).await.0, 3, "what is behind a nack is judged on its own");
    let Some(Answer::Nacked { version: 0, rejection }) = stream.next().await.unwrap() else { panic!("no version") };
    assert!(rejection.to_string().contains("transaction.version: is required"), "{rejection}");
    // What was refused is final: the next one up is taken, this one is not.
    stream.send(2, &[service("a")], None).await.unwrap();
    let Some(Answer::Nacked { version: 2, rejection: Rejection::Refused { reason: Reason::Stale, .. } }) =
        stream.next().await.unwrap()
    else {
        panic!("it is stale");
    };
    assert_eq!(journaled(&place, "cp").await, [(1, 1), (3, 2)]);
}

#[tokio::test]
async fn what_is_sent_again_is_in_the_journal_once() {
    let place = Place::new();
    let _agent = place.start();
    let mut stream = open(&place, &Hello::new("cp", 1)).await;
    for _ in 0..3 {
        stream.send(1, &[service("a")], None).await.unwrap();
    }
    let mut receipts = Vec::new();
    for _ in 0..3 {
        receipts.push(acked(&mut stream).await.1);
    }
    assert_eq!(receipts.iter().map(|receipt| receipt.duplicate).collect::<Vec<_>>(), [false, true, true]);
    assert!(receipts.iter().all(|receipt| (receipt.lsn, receipt.record_hash) == (Lsn(1), receipts[0].record_hash)));
}

/// More than a window of them, of which nobody reads an answer for a while.
#[tokio::test]
async fn many_may_be_under_way_and_share_fsyncs() {
    const COUNT: u64 = 2000;
    let place = Place::new();
    // However fast the disk and slow the client: what comes within this time is one group.
    let _agent = place.start_with(&["--journal-group-wait", "20ms"], &[]);
    let (sender, mut answers) = open(&place, &Hello::new("cp", 1)).await.split();
    let sending = tokio::spawn(async move {
        for version in 1..=COUNT {
            sender.send(version, &[service(&format!("{}", version % 7))], None).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    for expected in 1..=COUNT {
        let answer = answers.next().await.unwrap().unwrap();
        assert!(matches!(answer, Answer::Acked { version, .. } if version == expected), "{answer:?}");
    }
    sending.await.unwrap();
    assert_eq!(answers.next().await.unwrap(), None);
    let stats = client(&place).await.journal_stats().await.unwrap();
    assert_eq!(stats.group_records, COUNT);
    assert!(stats.groups <= COUNT / 4, "{} fsyncs for {COUNT} transactions", stats.groups);
}

#[tokio::test]
async fn after_a_kill_only_what_is_missing_is_sent() {
    let place = Place::new();
    let mut agent = place.start();
    let mut outbox = Outbox::new(Hello::new("cp", 1));
    let mut stream = open(&place, &outbox.hello()).await;
    for name in ["a", "b"] {
        let next = outbox.add(vec![service(name)]);
        stream.send(next.version, &next.deltas, None).await.unwrap();
    }
    let Answer::Acked { version: 1, .. } = stream.next().await.unwrap().unwrap() else { panic!("it is valid") };
    // It knows nothing of the ack of 2, and sends 3 into the void.
    outbox.answered(&Answer::Acked { version: 1, receipt: acked_as(1) });
    assert_eq!(acked(&mut stream).await.0, 2);
    agent.kill();
    outbox.add(vec![dangling()]);
    outbox.add(vec![service("d")]);
    while stream.next().await.is_ok() {}

    let _agent = place.start();
    let mut stream = open(&place, &outbox.hello()).await;
    assert_eq!((stream.welcome().last_version, stream.welcome().resync), (Some(2), None));
    let resumed = outbox.resume(stream.welcome());
    assert_eq!(
        resumed.accepted.iter().map(|(version, receipt)| (*version, receipt.lsn.0)).collect::<Vec<_>>(),
        [(2, 2)]
    );
    assert_eq!(resumed.refused, [0; 0]);
    assert_eq!(resumed.again.iter().map(|again| again.version).collect::<Vec<_>>(), [3, 4]);
    for again in &resumed.again {
        stream.send(again.version, &again.deltas, None).await.unwrap();
    }
    assert!(matches!(stream.next().await.unwrap().unwrap(), Answer::Nacked { version: 3, .. }));
    assert_eq!(acked(&mut stream).await.0, 4);
    drop(stream);

    // The answers to 3 and 4 got lost as well: 3 was refused, which is told from 4 being there.
    let stream = open(&place, &outbox.hello()).await;
    let resumed = outbox.resume(stream.welcome());
    assert_eq!((resumed.accepted.len(), resumed.refused, resumed.again.len()), (1, vec![3], 0));
    assert!(outbox.is_empty());
}

fn acked_as(lsn: u64) -> Receipt {
    Receipt {
        lsn: Lsn(lsn),
        record_hash: storage_schema::id::RecordHash([0; 32]),
        duplicate: false,
        level: Level::Durable,
        blocked_reason: String::new(),
        removed: 0,
    }
}

#[tokio::test]
async fn a_journal_that_cannot_tell_asks_for_everything() {
    let place = Place::new();
    let _agent = place.start();
    let remembering = Hello { last_sent_version: Some(9), last_acked_version: Some(9), ..Hello::new("cp", 1) };
    assert_eq!(open(&place, &remembering).await.welcome().resync, Some(Resync::UnknownSource));
    let mut stream = open(&place, &Hello::new("cp", 1)).await;
    stream.send(7, &[service("a")], None).await.unwrap();
    acked(&mut stream).await;
    assert_eq!(open(&place, &remembering).await.welcome().resync, Some(Resync::JournalBehind));
    assert_eq!(open(&place, &Hello::new("cp", 1)).await.welcome().resync, Some(Resync::SourceBehind));
    let told = Hello { last_sent_version: Some(7), last_acked_version: Some(7), ..Hello::new("cp", 1) };
    assert_eq!(open(&place, &told).await.welcome().resync, None);
}

#[tokio::test]
async fn the_newest_stream_of_a_source_ends_the_older_one() {
    let place = Place::new();
    let _agent = place.start();
    let mut first = open(&place, &Hello::new("cp", 1)).await;
    let mut second = open(&place, &Hello::new("cp", 2)).await;
    let ended = first.next().await.unwrap_err();
    assert!(ended.to_string().contains("a newer stream of this source took over"), "{ended:?}");
    // An older life may neither sit there nor write.
    let refused = client(&place).await.push(&Hello::new("cp", 1)).await.unwrap_err();
    let stale =
        |error: &ClientError| matches!(error, ClientError::Rejected(Rejection::Refused { reason: Reason::Stale, .. }));
    assert!(stale(&refused), "{refused:?}");
    second.send(1, &[service("a")], None).await.unwrap();
    assert_eq!(acked(&mut second).await.0, 1);
    drop(second);
    let refused = client(&place).await.push(&Hello::new("cp", 1)).await.unwrap_err();
    assert!(stale(&refused), "{refused:?}");
}

#[tokio::test]
async fn a_stop_answers_what_was_taken_and_ends_the_stream() {
    let place = Place::new();
    let mut agent = place.start();
    let mut stream = open(&place, &Hello::new("cp", 1)).await;
    stream.send(1, &[service("a")], None).await.unwrap();
    assert_eq!(acked(&mut stream).await.0, 1);
    let stopped = tokio::task::spawn_blocking(move || {
        let begin = std::time::Instant::now();
        (agent.terminate(), begin.elapsed())
    });
    let ended = stream.next().await.unwrap_err();
    assert!(matches!(ended, ClientError::Rejected(Rejection::Unavailable { .. })), "{ended:?}");
    drop(stream);
    let (code, took) = stopped.await.unwrap();
    assert_eq!(code, 0);
    // Else it would be cut off after three seconds.
    assert!(took < Duration::from_millis(2500), "an idle stream holds up no stop: {took:?}");
}

#[tokio::test]
async fn what_is_too_large_is_not_sent() {
    let place = Place::new();
    let _agent = place.start();
    let mut stream = open(&place, &Hello::new("cp", 1)).await;
    let large = Service {
        name: "shop/large".to_owned(),
        vips: (0..2_000_000u32).map(|n| std::net::Ipv4Addr::from(n).into()).collect(),
        ..Service::default()
    };
    let large = Delta::Upsert(Resource::Service(large));
    assert!(matches!(stream.send(1, &[large], None).await, Err(SendError::TooLarge { .. })));
    stream.send(1, &[service("a")], None).await.unwrap();
    assert_eq!(acked(&mut stream).await.0, 1);
}

fn expect(name: &str, changed_lsn: u64) -> Precondition {
    let resource = ResourceKey::new(Kind::Service, format!("shop/{name}"));
    Precondition { resource, changed_lsn: Lsn(changed_lsn) }
}

fn unmet(rejection: &Rejection) -> Vec<(&str, u64, u64)> {
    let Rejection::Unmet { unmet, more: 0 } = rejection else { panic!("{rejection:?}") };
    unmet.iter().map(|one| (&*one.resource.name, one.expected_lsn.0, one.actual_lsn.0)).collect()
}

#[tokio::test]
async fn of_two_that_expect_the_same_the_second_is_refused_though_neither_is_durable() {
    let place = Place::new();
    let mut agent = place.start();
    let mut stream = open(&place, &Hello::new("cp", 1)).await;
    // All of them are under way at once.
    stream.send_if(1, &[service("a")], &[expect("a", 0)], None).await.unwrap();
    stream.send_if(2, &[service("a"), service("b")], &[expect("a", 0), expect("b", 7)], None).await.unwrap();
    stream.send_if(3, &[service("b")], &[expect("a", 1), expect("b", 0)], None).await.unwrap();
    stream.send_if(4, &[service("a")], &[expect("b", 2)], None).await.unwrap();
    assert_eq!(acked(&mut stream).await.1.lsn, Lsn(1));
    let Some(Answer::Nacked { version: 2, rejection }) = stream.next().await.unwrap() else { panic!("refused") };
    assert_eq!(unmet(&rejection), [("shop/a", 0, 1), ("shop/b", 7, 0)], "as a whole, with each of them");
    assert_eq!(acked(&mut stream).await.1.lsn, Lsn(2));
    assert_eq!(acked(&mut stream).await.1.lsn, Lsn(3), "what is compared need not be what is changed");
    agent.kill();
    let _agent = place.start();
    let client = client(&place).await;
    let change =
        |name| Transaction::push(Origin { source: "cp".into(), incarnation: 1, version: None }, vec![service(name)]);
    let apply = async |name, expected: Precondition| {
        client.apply_if(&change(name), &[expected], Level::Durable, Duration::from_secs(10)).await
    };
    let Err(ClientError::Rejected(rejection)) = apply("a", expect("a", 1)).await else { panic!("refused") };
    assert_eq!(unmet(&rejection), [("shop/a", 1, 3)], "known after a restart as well");
    let Err(ClientError::Rejected(rejection)) = client.plan(&change("b"), &[expect("b", 0)]).await else {
        panic!("refused");
    };
    assert_eq!(unmet(&rejection), [("shop/b", 0, 2)]);
    assert_eq!(apply("a", expect("a", 3)).await.unwrap().lsn, Lsn(4));
    let stored = client.get(&expect("a", 0).resource).await.unwrap().unwrap();
    assert_eq!(stored.value.changed_lsn, Lsn(4), "what is compared with is what is read");
}

#[tokio::test]
async fn who_compares_and_sets_loses_no_change_of_others() {
    const CHANGES: u32 = 20;
    let place = Place::new();
    let _agent = place.start();
    let counter = |count: u32| {
        let vip = std::net::Ipv4Addr::from(0x0a60_0000 + count).into();
        Delta::Upsert(Resource::Service(Service { name: "shop/n".into(), vips: vec![vip], ..Service::default() }))
    };
    let count_up = async |client: Client| {
        let key = expect("n", 0).resource;
        let mut done = 0;
        while done < CHANGES {
            let read = client.get(&key).await.unwrap().map(|read| read.value);
            let (count, changed_lsn) = match read {
                Some(Stored { resource: Resource::Service(service), changed_lsn, .. }) => match service.vips[0] {
                    std::net::IpAddr::V4(vip) => (u32::from(vip) - 0x0a60_0000, changed_lsn),
                    vip @ std::net::IpAddr::V6(_) => panic!("{vip}"),
                },
                _ => (0, Lsn::ZERO),
            };
            let origin = Origin { source: "cp".into(), incarnation: 1, version: None };
            let next = Transaction::push(origin, vec![counter(count + 1)]);
            let expected = [Precondition { resource: key.clone(), changed_lsn }];
            match client.apply_if(&next, &expected, Level::Durable, Duration::from_secs(10)).await {
                Ok(_) => done += 1,
                Err(ClientError::Rejected(Rejection::Unmet { .. })) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::join!(count_up(client(&place).await), count_up(client(&place).await), count_up(client(&place).await));
    let read = client(&place).await.get(&expect("n", 0).resource).await.unwrap().unwrap().value;
    assert_eq!(read.changed_lsn, Lsn(u64::from(3 * CHANGES)), "each change is a record, and none was made twice");
    let Resource::Service(service) = read.resource else { panic!("it is a service") };
    assert_eq!(service.vips, [std::net::IpAddr::from(std::net::Ipv4Addr::from(0x0a60_0000 + 3 * CHANGES))]);
}

#[test]
fn the_command_line_compares_and_sets() {
    let place = Place::new();
    let _agent = place.start();
    let apply = |expected: &str| place.run_with_stdin(&["apply", "-f", "-", "--expect", expected], running::SERVICE);
    apply("service:shop/cart=0").succeeded();
    let refused = apply("service:shop/cart=0");
    assert_eq!(refused.code, 3);
    assert_eq!(refused.stderr, "holdfast: Service shop/cart: exists, changed by record 1: it must not\n");
    let refused = place.run(&["delete", "service", "shop/cart", "--expect", "service:shop/cart=7"]);
    assert_eq!((refused.code, place.status()["appendedLsn"].as_u64()), (3, Some(1)));
    place.run(&["delete", "service", "shop/cart", "--expect", "service:shop/cart=1"]).succeeded();
    assert_eq!(apply("shop/cart").code, 2);
}
