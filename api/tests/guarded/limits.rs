//! What a call may cost, and what is told about it.

use std::time::{Duration, Instant};

use api::proto;
use api::proto::journal_service_client::JournalServiceClient;
use api::proto::push_service_client::PushServiceClient;
use api::proto::status_service_client::StatusServiceClient;
use api::server::Limits;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::node::{apply_request, start, until};

const APPLY: &str = "/holdfast.v1.PushService/Apply";
const STATUS: &str = "/holdfast.v1.StatusService/GetStatus";
const READ: &str = "/holdfast.v1.JournalService/ReadRecords";

fn limit_of(status: &Status) -> String {
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let details = status.get_error_details();
    assert!(details.retry_info().unwrap().retry_delay.unwrap() > Duration::ZERO);
    details.error_info().unwrap().metadata["limit"].clone()
}

#[tokio::test]
async fn a_request_id_goes_back_whether_it_came_or_not_and_also_with_errors() {
    let running = start(Limits::default(), &[]).await;
    let mut client = StatusServiceClient::new(running.channel().await);
    let mut ids = Vec::new();
    for id in [Some("mine-1"), None, Some("two words"), None] {
        let mut request = Request::new(proto::GetStatusRequest {});
        if let Some(id) = id {
            request.metadata_mut().insert("x-request-id", id.parse().unwrap());
        }
        let answer = client.get_status(request).await.unwrap();
        ids.push(answer.metadata().get("x-request-id").unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(ids[0], "mine-1");
    let new: std::collections::BTreeSet<&String> = ids[1..].iter().collect();
    assert_eq!(new.len(), 3, "each is a new one: {ids:?}");
    assert!(!new.contains(&"two words".to_owned()));

    let mut push = PushServiceClient::new(running.channel().await);
    let mut request = Request::new(proto::ApplyRequest::default());
    request.metadata_mut().insert("x-request-id", "bad-one".parse().unwrap());
    let status = push.apply(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.metadata().get("x-request-id").unwrap(), "bad-one");
}

#[tokio::test]
async fn every_call_is_told_with_its_method_and_code() {
    let running = start(Limits::default(), &[]).await;
    let channel = running.channel().await;
    StatusServiceClient::new(channel.clone()).get_status(proto::GetStatusRequest {}).await.unwrap();
    PushServiceClient::new(channel.clone()).apply(proto::ApplyRequest::default()).await.unwrap_err();
    let mut journal = JournalServiceClient::new(channel);
    let request = proto::ReadRecordsRequest { follow: true, ..Default::default() };
    let stream = journal.read_records(request).await.unwrap();
    let counts = &running.counts;
    until("one stream is open", || counts.streams() == 1).await;
    assert_eq!(counts.calls(READ, "CANCELLED"), 0);
    drop(stream);
    until("a stream whose client has gone", || counts.calls(READ, "CANCELLED") == 1).await;
    until("no stream is open", || counts.streams() == 0).await;
    until("a call", || counts.calls(STATUS, "OK") == 1).await;
    until("a refused one", || counts.calls(APPLY, "INVALID_ARGUMENT") == 1).await;
}

#[tokio::test]
async fn a_client_s_deadline_holds_and_the_server_s_holds_all() {
    let running = start(Limits { request_timeout: Duration::from_millis(300), ..Limits::default() }, &[]).await;
    let mut push = PushServiceClient::new(running.channel().await);
    let began = Instant::now();
    let status = push.apply(apply_request(proto::Level::Applied)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(began.elapsed() >= Duration::from_millis(300));
    until("it is told", || running.counts.calls(APPLY, "DEADLINE_EXCEEDED") == 1).await;

    let running = start(Limits::default(), &[]).await;
    // This client watches its deadline itself only until the answer begins: it is the server that ends the stream.
    let mut request = Request::new(proto::ReadRecordsRequest { follow: true, ..Default::default() });
    request.metadata_mut().insert("grpc-timeout", "100m".parse().unwrap());
    let mut journal = JournalServiceClient::new(running.channel().await);
    let mut stream = journal.read_records(request).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::DeadlineExceeded);
    until("it is told", || running.counts.calls(READ, "DEADLINE_EXCEEDED") == 1).await;
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_at_once_and_room_comes_back() {
    let limits = Limits {
        requests_per_client_max: 2,
        readers_per_client_max: 1,
        streams_per_client_max: 2,
        ..Limits::default()
    };
    let running = start(limits, &[]).await;
    let push = PushServiceClient::new(running.channel().await);
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let mut push = push.clone();
            tokio::spawn(async move { push.apply(apply_request(proto::Level::Applied)).await })
        })
        .collect();
    until("both are in flight", || running.node.pushed.load(std::sync::atomic::Ordering::Relaxed) == 2).await;
    // Another connection of the same user is the same client.
    let mut status = StatusServiceClient::new(running.channel().await);
    let refused = status.get_status(proto::GetStatusRequest {}).await.unwrap_err();
    assert_eq!(limit_of(&refused), "requests_per_client");
    running.node.applied.send_replace(2);
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    status.get_status(proto::GetStatusRequest {}).await.unwrap();

    let mut journal = JournalServiceClient::new(running.channel().await);
    let follow = || proto::ReadRecordsRequest { follow: true, ..Default::default() };
    let first = journal.read_records(follow()).await.unwrap();
    assert_eq!(limit_of(&journal.read_records(follow()).await.unwrap_err()), "readers_per_client");
    drop(first);
    while journal.read_records(follow()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn calls_come_at_the_rate_that_is_allowed() {
    // So few that a busy machine makes more as well.
    let running = start(Limits { requests_per_second_max: 5, ..Limits::default() }, &[]).await;
    let mut status = StatusServiceClient::new(running.channel().await);
    let began = Instant::now();
    let (mut answered, mut refused) = (0, 0);
    while began.elapsed() < Duration::from_secs(1) {
        match status.get_status(proto::GetStatusRequest {}).await {
            Ok(_) => answered += 1,
            Err(error) => {
                assert_eq!(limit_of(&error), "requests_per_second");
                refused += 1;
            }
        }
    }
    let most = 6 + began.elapsed().as_millis() / 200;
    assert!(answered >= 5 && answered <= most && refused > 0, "{answered} answered, at most {most}; {refused} refused");
}

#[tokio::test]
async fn connections_are_bounded() {
    let running = start(Limits { connections_per_client_max: 2, ..Limits::default() }, &[]).await;
    let (first, _second) = (running.client().await, running.client().await);
    first.status().await.unwrap();
    let third = async { api::client::Client::connect(&running.path).await?.status().await }.await;
    assert!(third.is_err(), "{third:?}");
    until("it is counted", || running.counts.refused("limit") >= 1).await;
    drop(first);
    until("a place is free", || running.counts.calls(STATUS, "OK") >= 1).await;
    while async { api::client::Client::connect(&running.path).await?.status().await }.await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
