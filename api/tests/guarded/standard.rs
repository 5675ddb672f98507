//! Health and reflection, as any gRPC tool uses them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use api::server::Limits;
use prost::Message as _;
use prost_types::FileDescriptorProto;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

use crate::node::start;

#[tokio::test]
async fn health_is_that_of_the_whole_and_of_each_service() {
    let running = start(Limits::default(), &[]).await;
    let mut health = HealthClient::new(running.channel().await);
    let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let services: BTreeSet<String> = api::access::METHODS
        .iter()
        .filter_map(|method| method.path.strip_prefix('/')?.split('/').next())
        .filter(|service| service.starts_with("holdfast."))
        .map(str::to_owned)
        .collect();
    for service in services.iter().map(String::as_str).chain([""]) {
        let answer = health.check(request(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(health.check(request("no.Such")).await.unwrap_err().code(), Code::NotFound);

    let mut watched = health.watch(request("")).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    running.node.refuses.store(true, Ordering::Relaxed);
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    let status = |answer: tonic::Response<tonic_health::pb::HealthCheckResponse>| answer.into_inner().status();
    assert_eq!(status(health.check(request("holdfast.v1.PushService")).await.unwrap()), ServingStatus::NotServing);
    assert_eq!(status(health.check(request("holdfast.v1.ResourceService")).await.unwrap()), ServingStatus::Serving);
    running.node.refuses.store(false, Ordering::Relaxed);
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn reflection_tells_every_service_and_every_file_in_both_versions() {
    let running = start(Limits::default(), &[]).await;
    let wanted: BTreeSet<String> = api::access::METHODS
        .iter()
        .filter_map(|method| method.path.strip_prefix('/')?.split('/').next())
        .filter(|service| !service.contains("reflection"))
        .map(str::to_owned)
        .collect();
    macro_rules! ask {
        ($version:ident) => {{
            use $version::server_reflection_client::ServerReflectionClient;
            use $version::server_reflection_request::MessageRequest;
            use $version::server_reflection_response::MessageResponse;
            let mut client = ServerReflectionClient::new(running.channel().await);
            let ask =
                |request| $version::ServerReflectionRequest { host: String::new(), message_request: Some(request) };
            let symbol = "holdfast.v1.PushService".to_owned();
            let asked =
                [ask(MessageRequest::ListServices(String::new())), ask(MessageRequest::FileContainingSymbol(symbol))];
            let mut answers = client.server_reflection_info(tokio_stream::iter(asked)).await.unwrap().into_inner();
            let Some(MessageResponse::ListServicesResponse(list)) =
                answers.message().await.unwrap().unwrap().message_response
            else {
                panic!("no list")
            };
            let names: BTreeSet<String> = list.service.into_iter().map(|service| service.name).collect();
            assert!(wanted.is_subset(&names), "{wanted:?} {names:?}");
            let Some(MessageResponse::FileDescriptorResponse(files)) =
                answers.message().await.unwrap().unwrap().message_response
            else {
                panic!("no file")
            };
            let file = FileDescriptorProto::decode(files.file_descriptor_proto[0].as_slice()).unwrap();
            assert_eq!(file.name(), "holdfast/v1/push.proto");
        }};
    }
    ask!(v1);
    ask!(v1alpha);
}
