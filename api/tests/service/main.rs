//! Client and server over a real unix socket, in front of a backend made of a map.

mod fake;

use std::time::Duration;

use api::client::{Client, ClientError, Server};
use api::filter::ResourceFilter;
use api::journal::{JournalError, Position, RecordsQuery};
use api::plan::Effect;
use api::proto::journal_service_client::JournalServiceClient;
use api::push::stream::How;
use api::push::{Answer, Hello};
use api::rejection::{Reason, Rejection, Violation};
use api::replay::{Question, StateQuery};
use api::server::Limits;
use api::watch::{RecordsStep, RecordsWatch, StateStep, StateWatch};
use api::{Level, proto};
use fake::{Running, record, sources, start, start_with, status, upsert};
use storage_schema::id::{Lsn, RecordHash};
use storage_schema::precondition::{Precondition, Unmet};
use storage_schema::record::Delta;
use storage_schema::resource::{Kind, Resource, ResourceKey, Service};
use tempfile::TempDir;
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_types::StatusExt as _;

const SOON: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn what_is_pushed_can_be_read() {
    let running = start().await;
    let receipt = running.client.apply(&upsert(["a/b".to_owned()]), Level::Durable, LONG).await.unwrap();
    assert_eq!((receipt.lsn, receipt.level, receipt.record_hash), (Lsn(1), Level::Durable, RecordHash([7; 32])));
    let key = ResourceKey::new(Kind::Service, "a/b");
    let read = running.client.get(&key).await.unwrap().unwrap();
    assert_eq!((read.value.resource.key(), read.value.changed_lsn, read.state_lsn), (key, Lsn(5), Lsn(1)));
    assert_eq!(running.client.get(&ResourceKey::new(Kind::Node, "a/b")).await.unwrap(), None);
}

#[tokio::test]
async fn a_push_says_whose_process_it_came_from() {
    let running = start().await;
    running.client.apply(&upsert(["a/b".to_owned()]), Level::Durable, LONG).await.unwrap();
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let expected = format!("uid={uid} gid={gid} pid={}", std::process::id());
    assert_eq!(running.backend.client.lock().unwrap().as_deref(), Some(&*expected));
}

#[tokio::test]
async fn a_list_comes_whole_however_many_pages_it_has() {
    let running = start().await;
    let names: Vec<String> = (0..2500).map(|i| format!("ns/{i:05}")).collect();
    running.client.apply(&upsert(names.clone()), Level::Durable, LONG).await.unwrap();
    let listed = running.client.list(Kind::Service).await.unwrap();
    let listed: Vec<&str> = listed.iter().map(|stored| stored.resource.name()).collect();
    assert_eq!(listed, names);
    assert_eq!(running.client.list(Kind::Workload).await.unwrap(), []);
}

#[tokio::test]
async fn sources_come_whole_however_many_pages_they_have() {
    let running = start().await;
    let listed = running.client.sources().await.unwrap();
    assert!(listed.iter().all(|listed| !listed.connected));
    assert_eq!(listed.into_iter().map(|listed| listed.source).collect::<Vec<_>>(), sources());
    // Who has a stream open is not gone.
    let _stream = running.client.push(&Hello::new("source-1234", 1234)).await.unwrap();
    let listed = running.client.sources().await.unwrap();
    let connected: Vec<_> = listed.iter().filter(|listed| listed.connected).map(|one| &*one.source.name).collect();
    assert_eq!(connected, ["source-1234"]);
}

#[tokio::test]
async fn a_filtered_list_goes_on_behind_pages_of_which_nothing_is_admitted() {
    let running = start().await;
    let names = (0..2500).map(|i| format!("ns/{i:05}")).chain(["zz/last".to_owned()]);
    running.client.apply(&upsert(names), Level::Durable, LONG).await.unwrap();
    let list = async |filter: ResourceFilter| {
        let listed = running.client.list_some(Kind::Service, &filter).await.unwrap();
        listed.into_iter().map(|stored| stored.resource.name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list(ResourceFilter { name_prefix: "zz/".to_owned(), ..Default::default() }).await, ["zz/last"]);
    let prefix = ResourceFilter { name_prefix: "ns/0001".to_owned(), ..Default::default() };
    assert_eq!(list(prefix.clone()).await.len(), 10);
    assert_eq!(list(ResourceFilter { owner: Some("test".to_owned()), ..prefix.clone() }).await.len(), 10);
    assert!(list(ResourceFilter { owner: Some("other".to_owned()), ..prefix.clone() }).await.is_empty());
    assert!(list(ResourceFilter { changed_after_lsn: Lsn(5), ..prefix }).await.is_empty());
    let broken = ResourceFilter { name_prefix: "a\nb".to_owned(), ..Default::default() };
    let Err(ClientError::Rejected(rejection)) = running.client.list_some(Kind::Service, &broken).await else {
        panic!("it has no meaning");
    };
    assert!(rejection.to_string().contains("filter.name_prefix"), "{rejection}");
}

#[tokio::test]
async fn a_dry_run_is_answered_with_a_plan() {
    let running = start().await;
    let plan = running.client.plan(&upsert(["a/b".to_owned()]), &[]).await.unwrap();
    assert_eq!((plan.created, plan.changes.len(), plan.changes[0].effect), (1, 1, Effect::Created));
    assert_eq!(*running.backend.pushed.lock().unwrap(), 0, "nothing was pushed");
    let mut stream = running.client.push(&Hello::new("test", 1)).await.unwrap();
    assert!(stream.welcome().capabilities.iter().any(|known| known == "dry_run"));
    let dry_run = How { dry_run: true, ..How::default() };
    let resources = [Resource::Service(Service { name: "a/b".to_owned(), ..Service::default() })];
    stream.sync(1, &resources, dry_run).await.unwrap();
    stream.send(1, &upsert(["c/d".to_owned()]).deltas, dry_run).await.unwrap();
    for name in ["a/b", "c/d"] {
        let Some(Answer::Planned { version: 1, plan }) = stream.next().await.unwrap() else { panic!("no plan") };
        assert_eq!(plan.changes[0].key.name, name);
    }
    assert_eq!(*running.backend.pushed.lock().unwrap(), 0, "nothing was pushed");
}

#[tokio::test]
async fn large_resources_do_not_make_a_page_too_large_to_read() {
    let running = start().await;
    for i in 0..4 {
        let mut transaction = upsert([format!("ns/{i}")]);
        let Delta::Upsert(Resource::Service(service)) = &mut transaction.deltas[0] else { unreachable!() };
        service.vips = (0..600_000u32).map(|n| std::net::Ipv4Addr::from(n).into()).collect();
        running.client.apply(&transaction, Level::Durable, LONG).await.unwrap();
    }
    assert_eq!(running.client.list(Kind::Service).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_wait_for_applied_ends_when_it_is_applied() {
    let running = start().await;
    let client = running.client.clone();
    let push =
        tokio::spawn(async move { client.apply(&upsert(["a/b".to_owned()]), Level::Applied, LONG).await.unwrap() });
    tokio::time::sleep(SOON).await;
    assert!(!push.is_finished());
    running.backend.applied.send_replace(1);
    assert_eq!(push.await.unwrap().level, Level::Applied);
}

#[tokio::test]
async fn a_wait_that_is_too_short_still_ends_with_a_receipt() {
    let running = start().await;
    let receipt = running.client.apply(&upsert(["a/b".to_owned()]), Level::Applied, SOON).await.unwrap();
    assert_eq!((receipt.lsn, receipt.level), (Lsn(1), Level::Durable));
    assert_eq!(receipt.blocked_reason, "the kernel says EBUSY");
}

#[tokio::test]
async fn rejections_arrive_as_they_were_made() {
    let running = start().await;
    let transaction = upsert(["a/b".to_owned()]);
    let violation =
        Violation::of_delta(0, &transaction.deltas[0], "vips[0]", "10.96.0.20 belongs to Service a/c already");
    let refused = |reason| Rejection::Refused { reason, violations: violation.clone().into() };
    for rejection in [
        refused(Reason::Invalid),
        refused(Reason::Conflict),
        refused(Reason::Capacity),
        refused(Reason::Stale),
        Rejection::Owned { owner: "istiod".to_owned(), violations: violation.clone().into() },
        Rejection::Busy { retry_after: Duration::from_millis(250) },
        Rejection::Unavailable { cause: "the disk is full".to_owned() },
        Rejection::OutcomeUnknown { cause: "fdatasync: I/O error".to_owned() },
    ] {
        *running.backend.answer.lock().unwrap() = Some(rejection.clone());
        let answer = running.client.apply(&transaction, Level::Durable, LONG).await;
        assert!(matches!(&answer, Err(ClientError::Rejected(got)) if *got == rejection), "{answer:?}, {rejection:?}");
    }
    assert_eq!(violation.delta(), Some(0));
    assert_eq!(violation.field(), "vips[0]");
}

#[tokio::test]
async fn more_violations_than_fit_are_counted() {
    let running = start().await;
    let transaction = upsert(["a/b".to_owned()]);
    let violations =
        (0..500).map(|_| Violation::of_delta(0, &transaction.deltas[0], "name", "é".repeat(4000))).collect();
    *running.backend.answer.lock().unwrap() = Some(Rejection::Refused { reason: Reason::Conflict, violations });
    let answer = running.client.apply(&transaction, Level::Durable, LONG).await;
    let Err(ClientError::Rejected(Rejection::Refused { violations, .. })) = answer else { panic!("{answer:?}") };
    assert_eq!(violations.iter().count() + violations.more(), 500);
}

/// What a client in another language uses.
async fn channel(running: &Running) -> tonic::transport::Channel {
    let path = running.path.clone();
    tonic::transport::Endpoint::from_static("http://holdfast")
        .connect_with_connector(tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
        }))
        .await
        .unwrap()
}

/// What a client in another language sees.
#[tokio::test]
async fn a_malformed_request_is_an_invalid_argument_with_field_violations() {
    let running = start().await;
    let channel = channel(&running).await;
    let mut push = proto::push_service_client::PushServiceClient::new(channel.clone());
    let mut transaction = api::convert::encode_transaction(&upsert(["a/b".to_owned()]));
    transaction.deltas[0].change = None;
    let request = proto::ApplyRequest { transaction: Some(transaction), ..proto::ApplyRequest::default() };
    let status = push.apply(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "transaction.deltas[0]: must hold an upsert or a removal");
    let details = status.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "transaction.deltas[0]");
    assert_eq!(details.error_info().unwrap().reason, "INVALID");

    let bad_wait = proto::ApplyRequest {
        wait: 9,
        wait_timeout: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        ..proto::ApplyRequest::default()
    };
    let fields: Vec<String> = push
        .apply(bad_wait)
        .await
        .unwrap_err()
        .get_error_details()
        .bad_request()
        .unwrap()
        .field_violations
        .iter()
        .map(|violation| violation.field.clone())
        .collect();
    assert_eq!(fields, ["wait", "wait_timeout"]);

    let mut resources = proto::resource_service_client::ResourceServiceClient::new(channel);
    let key = proto::ResourceKey { kind: proto::Kind::Service.into(), name: "no/such".to_owned() };
    let status = resources.get_resource(proto::GetResourceRequest { key: Some(key) }).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "Service no/such does not exist"));
    assert_eq!(status.get_error_details().resource_info().unwrap().resource_name, "no/such");
    assert_eq!(*running.backend.pushed.lock().unwrap(), 0);
}

#[tokio::test]
async fn the_status_arrives_as_it_was_made() {
    let running = start().await;
    assert_eq!(running.client.status().await.unwrap(), status());
}

#[tokio::test]
async fn a_request_that_is_too_large_is_not_sent() {
    let running = start().await;
    let mut transaction = upsert(["a/b".to_owned()]);
    let Delta::Upsert(Resource::Service(service)) = &mut transaction.deltas[0] else { unreachable!() };
    service.hostname = "x".repeat(api::MESSAGE_BYTES_MAX);
    let answer = running.client.apply(&transaction, Level::Durable, LONG).await;
    assert!(matches!(answer, Err(ClientError::TooLarge { .. })), "{answer:?}");
}

#[tokio::test]
async fn nobody_listening_is_told_from_an_agent_that_went_away() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("none.sock");
    let error = Client::connect(&path).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Unreachable { server, source }
            if *server == Server::Unix(path) && source.kind() == std::io::ErrorKind::NotFound),
        "{error:?}"
    );

    let running = start().await;
    running.stop.send(()).unwrap();
    running.server.await.unwrap();
    assert!(!running.path.exists(), "the socket goes with the server");
    let error = running.client.status().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error:?}");
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_finish() {
    let running = start().await;
    let client = running.client.clone();
    let push = tokio::spawn(async move { client.apply(&upsert(["a/b".to_owned()]), Level::Applied, LONG).await });
    tokio::time::sleep(SOON).await;
    running.stop.send(()).unwrap();
    tokio::time::sleep(SOON).await;
    running.backend.applied.send_replace(1);
    assert_eq!(push.await.unwrap().unwrap().level, Level::Applied);
    running.server.await.unwrap();
}

#[tokio::test]
async fn records_come_in_order_and_end_with_the_error() {
    let running = start().await;
    let client = &running.client;
    let query = RecordsQuery {
        from: Some(Position::Lsn(Lsn(5))),
        to: Some(Position::Time(1_700_000_000_123_456_789)),
        source: Some("istiod".to_owned()),
        kind: Some(Kind::Workload),
        name: Some("x".to_owned()),
        last: Some(3),
        follow: false,
    };
    let mut records = Box::pin(client.records(&query).await.unwrap());
    let mut lsns = Vec::new();
    let error = loop {
        match records.next().await.expect("the error comes first") {
            Ok(batch) => lsns.extend(batch.into_iter().map(|received| {
                assert_eq!(received, record(received.lsn.0), "byte for byte");
                received.lsn.0
            })),
            Err(error) => break error,
        }
    };
    assert_eq!(lsns, (1..=10).collect::<Vec<_>>());
    assert_eq!(error.to_string(), "record 11 is damaged");
    assert!(matches!(error, ClientError::Journal(JournalError::Damaged(_))));
    assert!(records.next().await.is_none());
    assert_eq!(*running.backend.query.lock().unwrap(), Some(query), "the query arrives as it was asked");

    let behind = RecordsQuery { from: Some(Position::Lsn(Lsn(1))), ..RecordsQuery::default() };
    let refused = client.records(&behind).await.err().unwrap();
    assert!(matches!(&refused, ClientError::Journal(JournalError::OutOfRange(why)) if why.contains("oldest one is 5")));
}

#[tokio::test]
async fn a_record_is_a_message_too() {
    let running = start().await;
    let mut client = JournalServiceClient::new(channel(&running).await);
    let mut answer = client.read_records(proto::ReadRecordsRequest::default()).await.unwrap().into_inner();
    let first = answer.message().await.unwrap().unwrap().records.remove(0);
    assert_eq!((first.lsn, first.monotonic_ns, first.client.as_str()), (1, 42, "uid=0"));
    assert_eq!(first.hash, record(1).hash().0);
    assert_eq!((first.previous_hash, first.boot_id), (vec![4; 32], vec![3; 16]));
    let appended = first.appended_at.unwrap();
    assert_eq!((appended.seconds, appended.nanos), (1_700_000_000, 123_456_789));
    let transaction = first.transaction.unwrap();
    assert_eq!((transaction.origin.unwrap().version, transaction.deltas.len()), (Some(1), 1));
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_by_field() {
    let running = start().await;
    let mut client = JournalServiceClient::new(channel(&running).await);
    let time = |seconds| proto::Position {
        position: Some(proto::position::Position::Time(prost_types::Timestamp { seconds, nanos: 0 })),
    };
    for (request, field) in [
        (proto::ReadRecordsRequest { follow: true, to: Some(time(1)), ..Default::default() }, "follow"),
        (proto::ReadRecordsRequest { last: 100_001, ..Default::default() }, "last"),
        (proto::ReadRecordsRequest { kind: 77, ..Default::default() }, "kind"),
        (proto::ReadRecordsRequest { from: Some(time(-1)), ..Default::default() }, "from.time"),
        (proto::ReadRecordsRequest { to: Some(proto::Position::default()), ..Default::default() }, "to"),
    ] {
        let status = client.read_records(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations.iter().map(|violation| &*violation.field).collect::<Vec<_>>(), [field]);
    }
}

#[tokio::test]
async fn the_journal_is_kept_through_the_api() {
    let running = start().await;
    let client = &running.client;
    assert_eq!(client.journal_stats().await.unwrap().durable_lsn, 12);
    assert_eq!(client.create_checkpoint().await.unwrap().bytes, 345);
    let request = proto::CompactJournalRequest { keep_records: Some(8), ..Default::default() };
    assert_eq!(client.compact_journal(request).await.unwrap().oldest_lsn, 8);
    let mut seen = Vec::new();
    let report = client.verify_journal(|progress| seen.push(progress.bytes)).await.unwrap();
    assert_eq!((seen, report.records), (vec![1, 2], 7));
    let chunks: Vec<_> = client.save_snapshot().await.unwrap().collect().await;
    let text: Vec<String> = chunks
        .into_iter()
        .map(|chunk| chunk.map_or_else(|error| error.to_string(), |chunk| String::from_utf8(chunk).unwrap()))
        .collect();
    assert_eq!(text[..2], ["one", "two"]);
    assert!(text[2].contains("the disk said no"), "{text:?}");
}

#[tokio::test]
async fn questions_about_the_past_are_passed_on() {
    let running = start().await;
    let client = &running.client;
    client.apply(&upsert(["shop/a".to_owned()]), Level::Durable, Duration::ZERO).await.unwrap();
    let query = StateQuery { at: Some(Position::Lsn(Lsn(812))), ..StateQuery::default() };
    let read = client.state(&query).await.unwrap();
    assert_eq!((read.value.len(), read.state_lsn), (1, Lsn(812)));
    let refused = client.state(&StateQuery::default()).await.unwrap_err();
    assert!(matches!(refused, ClientError::Journal(JournalError::OutOfRange(_))), "{refused:?}");

    let key = ResourceKey::new(Kind::Service, "shop/a");
    let question = Question::History { key, since: None, until: Some(Position::Lsn(Lsn(7))), last: Some(2) };
    let document = client.explain(&question).await.unwrap();
    let answer: Vec<String> = serde_json::from_slice(&document).unwrap();
    assert_eq!(answer, [format!("{question:?}")]);
}

/// Streams are few and long: one more than there may be is told so at once, and room comes back.
#[tokio::test]
async fn streams_are_bounded() {
    let running = start_with(Limits { readers_max: 2, ..Limits::default() }).await;
    let client = &running.client;
    let query = RecordsQuery { follow: true, ..RecordsQuery::default() };
    let (first, _second) = (client.records(&query).await.unwrap(), client.records(&query).await.unwrap());
    let refused = client.records(&query).await.err().unwrap();
    assert!(matches!(refused, ClientError::Rejected(Rejection::Busy { .. })), "{refused:?}");
    drop(first);
    while client.records(&query).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_breaks_the_order_of_a_push_stream_ends_it_with_a_reason() {
    use proto::push_request::Step;
    let running = start().await;
    let hello = |hello| proto::PushRequest { step: Some(Step::Hello(hello)) };
    let cp = || proto::PushHello { source: "cp".to_owned(), ..proto::PushHello::default() };
    let transaction = proto::PushRequest { step: Some(Step::Transaction(proto::PushTransaction::default())) };
    for (requests, field) in [
        (vec![proto::PushRequest { step: None }], "step"),
        (vec![transaction], "step"),
        (vec![hello(proto::PushHello::default())], "hello.source"),
        (vec![hello(proto::PushHello { level: 77, ..cp() })], "hello.level"),
        (
            vec![hello(proto::PushHello { unanswered_versions: (1..=1025).collect(), ..cp() })],
            "hello.unanswered_versions",
        ),
        (vec![hello(proto::PushHello { unanswered_versions: vec![2, 2], ..cp() })], "hello.unanswered_versions"),
        (vec![hello(cp()), hello(cp())], "step"),
    ] {
        let status = end_of_stream(&running, requests).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations.iter().map(|violation| &*violation.field).collect::<Vec<_>>(), [field]);
    }
    let oversized = String::from_utf8(vec![b'x'; 17 << 20]).unwrap();
    let oversized = hello(proto::PushHello { source: oversized, ..cp() });
    assert_eq!(end_of_stream(&running, vec![oversized]).await.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(*running.backend.pushed.lock().unwrap(), 0);
}

/// How a stream ends whose client says all this, and then waits.
async fn end_of_stream(running: &Running, requests: Vec<proto::PushRequest>) -> Result<(), tonic::Status> {
    let mut client = proto::push_service_client::PushServiceClient::new(channel(running).await);
    let requests = tokio_stream::iter(requests).chain(tokio_stream::pending());
    let mut answers = client.push(requests).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn push_streams_are_bounded() {
    let running = start_with(Limits { push_streams_max: 1, ..Limits::default() }).await;
    let first = running.client.push(&Hello::new("a", 1)).await.unwrap();
    let refused = running.client.push(&Hello::new("b", 1)).await.unwrap_err();
    assert!(matches!(refused, ClientError::Rejected(Rejection::Busy { .. })), "{refused:?}");
    drop(first);
    while running.client.push(&Hello::new("b", 1)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn preconditions_that_do_not_hold_come_back_as_they_were_found() {
    let running = start().await;
    let key = |name: &str| ResourceKey::new(Kind::Workload, name);
    let unmet = (0..10).map(|number| Unmet {
        resource: key(&format!("cluster1//Pod/a b/{number}")),
        expected_lsn: Lsn(number),
        actual_lsn: Lsn(number + 1),
    });
    let rejection = Rejection::unmet(unmet);
    assert!(matches!(&rejection, Rejection::Unmet { unmet, more: 2 } if unmet.len() == 8), "{rejection:?}");
    *running.backend.answer.lock().unwrap() = Some(rejection.clone());
    let expected = [Precondition { resource: key("w"), changed_lsn: Lsn(3) }];
    let transaction = upsert(["a/b".to_owned()]);
    let Err(ClientError::Rejected(found)) =
        running.client.apply_if(&transaction, &expected, Level::Durable, LONG).await
    else {
        panic!("it is refused");
    };
    assert_eq!(found, rejection);
    let mut stream = running.client.push(&Hello::new("test", 1)).await.unwrap();
    stream.send_if(1, &transaction.deltas, &expected, None).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), Some(Answer::Nacked { version: 1, rejection: rejection.clone() }));
    let status = rejection.to_status();
    assert_eq!(status.code(), Code::Aborted);
    let details = status.get_error_details();
    let first = &details.precondition_failure().unwrap().violations[0];
    assert_eq!((&*first.r#type, &*first.subject), ("CHANGED_LSN", "Workload cluster1//Pod/a b/0"));
    let metadata = &details.error_info().unwrap().metadata;
    assert_eq!((&*metadata["expected_lsn_7"], &*metadata["actual_lsn_7"], &*metadata["more"]), ("7", "8", "2"));
}

#[tokio::test]
async fn a_watch_tells_steps_until_the_agent_stops() {
    let running = start().await;
    let mut steps = Box::pin(running.client.watch_records(&RecordsWatch::default()).await.unwrap());
    assert_eq!(steps.next().await.unwrap().unwrap(), RecordsStep::Progress(Lsn(6)));
    assert_eq!(steps.next().await.unwrap().unwrap(), RecordsStep::Records(vec![record(7)]));
    running.stop.send(()).unwrap();
    let Some(Err(ClientError::Rejected(Rejection::Unavailable { cause }))) = steps.next().await else {
        panic!("the agent says that it stops");
    };
    assert_eq!(cause, "the agent is stopping");
    running.server.await.unwrap();
}

#[tokio::test]
async fn who_is_too_late_for_a_watch_is_told_where_to_begin() {
    let running = start().await;
    running.client.apply(&upsert(["a/b".to_owned()]), Level::Durable, LONG).await.unwrap();
    let from_one = RecordsWatch { from_lsn: Some(Lsn(1)), ..RecordsWatch::default() };
    let Err(ClientError::Journal(error)) = running.client.watch_records(&from_one).await.map(drop) else {
        panic!("it is compacted");
    };
    assert_eq!(error, JournalError::Compacted { wanted_lsn: Lsn(1), oldest_lsn: Lsn(5) });
    let mut steps = Box::pin(running.client.watch_state(&StateWatch::default()).await.unwrap());
    assert!(matches!(steps.next().await, Some(Ok(StateStep::Initial(resources))) if resources.len() == 1));
    assert!(matches!(steps.next().await, Some(Ok(StateStep::Complete(Lsn(6))))));
    let Some(Err(ClientError::Journal(error))) = steps.next().await else { panic!("it is too late") };
    assert_eq!(error, JournalError::Compacted { wanted_lsn: Lsn(7), oldest_lsn: Lsn(9) });
    assert!(steps.next().await.is_none());
}
