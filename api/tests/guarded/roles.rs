//! The table of methods is complete, and holds.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Mutex;

use api::access::{METHODS, Shape};
use api::client::{Client, ClientError};
use api::proto;
use api::proto::push_service_client::PushServiceClient;
use api::proto::resource_service_client::ResourceServiceClient;
use api::proto::status_service_client::StatusServiceClient;
use api::server::Limits;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use rustix::process::{Gid, Uid};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

use crate::node::{apply_request, over, start};

/// A user without a name, and a group likewise.
const STRANGER: (u32, u32) = (54_321, 54_322);

/// Every method that is served, and whether it streams.
fn served() -> BTreeMap<String, bool> {
    let sets = [
        api::proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.into_iter().flat_map(|set| FileDescriptorSet::decode(set).unwrap().file);
    let mut methods = BTreeMap::new();
    for file in files {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                methods.insert(path, method.client_streaming() || method.server_streaming());
            }
        }
    }
    methods
}

#[test]
fn every_method_has_its_entry_and_no_entry_is_of_none() {
    let entries: BTreeMap<String, bool> =
        METHODS.iter().map(|method| (method.path.to_owned(), method.shape != Shape::Unary)).collect();
    assert_eq!(entries, served());
    assert_eq!(entries.len(), METHODS.len(), "one entry for each");
}

/// A connection of a thread that is another user. The kernel's answer at the other end is that user.
fn connection_of((uid, gid): (u32, u32), path: &std::path::Path) -> std::os::unix::net::UnixStream {
    let path = path.to_owned();
    let thread = std::thread::spawn(move || {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        std::os::unix::net::UnixStream::connect(path).unwrap()
    });
    let stream = thread.join().unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

/// Whether this process may be another user; where tests must not be left out it must be.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    assert!(is_root || std::env::var("CI").as_deref() != Ok("true"), "this test needs root");
    is_root
}

/// A channel of a stranger to a server with these rules.
async fn stranger(rules: &[&str]) -> (crate::node::Running, Channel) {
    let running = start(Limits::default(), rules).await;
    for path in [running.directory.path(), &running.path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let stream = Mutex::new(Some(connection_of(STRANGER, &running.path)));
    let channel = over(move || {
        let stream = stream.lock().unwrap().take();
        async { UnixStream::from_std(stream.ok_or(std::io::ErrorKind::ConnectionRefused)?) }
    })
    .await;
    (running, channel)
}

#[tokio::test]
async fn another_user_is_told_that_it_is_nobody() {
    if !is_root() {
        return;
    }
    let (running, channel) = stranger(&["uid:1 read", "gid:1 admin"]).await;
    let status = PushServiceClient::new(channel.clone()).apply(apply_request(proto::Level::Durable)).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "uid:54321 is nobody that the agent's settings know");
    assert_eq!(status.get_error_details().error_info().unwrap().reason, "NOT_ALLOWED");
    let asked = StatusServiceClient::new(channel).get_capabilities(proto::GetCapabilitiesRequest {}).await;
    assert_eq!(asked.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(running.counts.calls("/holdfast.v1.PushService/Apply", "PERMISSION_DENIED"), 1);
    assert_eq!(running.node.pushed.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test]
async fn another_user_may_do_what_rules_say_and_nothing_else() {
    if !is_root() {
        return;
    }
    let (running, channel) = stranger(&["uid:54321 push test,other", "gid:54322 read"]).await;
    let mut push = PushServiceClient::new(channel.clone());
    push.apply(apply_request(proto::Level::Durable)).await.unwrap();
    let client = running.node.client.lock().unwrap().clone().unwrap();
    assert!(client.starts_with("uid=54321 gid=54322 pid="), "{client}");

    let mut foreign = apply_request(proto::Level::Durable);
    foreign.transaction.as_mut().unwrap().origin.as_mut().unwrap().source = "cli".to_owned();
    let status = push.apply(foreign).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "uid:54321 may not push as the source `cli`");

    let hello = |source: &str| proto::PushRequest {
        step: Some(proto::push_request::Step::Hello(proto::PushHello {
            source: source.to_owned(),
            protocol_version: 1,
            ..Default::default()
        })),
    };
    let mut answers = push.push(tokio_stream::iter([hello("other")])).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some(), "a welcome");
    let mut answers = push.push(tokio_stream::iter([hello("cli")])).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::PermissionDenied);

    let request = proto::ListResourcesRequest { kind: proto::Kind::Service.into(), ..Default::default() };
    ResourceServiceClient::new(channel.clone()).list_resources(request).await.unwrap();
    let mut journal = proto::journal_service_client::JournalServiceClient::new(channel.clone());
    let status = journal.create_checkpoint(proto::CreateCheckpointRequest {}).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "uid:54321 has not the role admin"));

    let mut about = StatusServiceClient::new(channel);
    let answer = about.get_capabilities(proto::GetCapabilitiesRequest {}).await.unwrap().into_inner();
    let caller = answer.caller.unwrap();
    assert_eq!(
        (caller.name.as_str(), caller.roles, caller.sources),
        ("uid:54321", vec!["push".to_owned(), "read".to_owned()], vec!["other".to_owned(), "test".to_owned()],)
    );
}

#[tokio::test]
async fn a_socket_that_is_given_to_a_group_has_its_mode() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("holdfast.sock");
    let socket = api::socket::Socket::bind(&path).unwrap();
    let gid = if rustix::process::geteuid().is_root() { STRANGER.1 } else { rustix::process::getegid().as_raw() };
    socket.give_to_group(gid).unwrap();
    let metadata = std::fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o660);
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&metadata), gid);
}

#[tokio::test]
async fn a_method_that_is_none_never_reaches_a_service() {
    let running = start(Limits::default(), &[]).await;
    let mut grpc = tonic::client::Grpc::new(running.channel().await);
    for path in ["/holdfast.v1.PushService/Wipe", "/other.Service/Method", "/"] {
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<proto::GetStatusRequest, proto::GetStatusResponse>::default();
        let request = tonic::Request::new(proto::GetStatusRequest {});
        let answer = grpc.unary(request, path.parse().unwrap(), codec).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
    }
    assert_eq!(running.counts.calls("unknown", "UNIMPLEMENTED"), 3, "names that were made up are no metrics");
}

#[tokio::test]
async fn a_client_of_ours_tells_a_refusal_from_a_failure() {
    if !is_root() {
        return;
    }
    let running = start(Limits::default(), &[]).await;
    let client: Client = running.client().await;
    assert!(client.status().await.is_ok(), "root needs no rule");
    let answer = client.capabilities().await.unwrap();
    assert_eq!((answer.server_version.as_str(), answer.protocols), ("1.2.3", vec!["holdfast.v1".to_owned()]));
    let caller = answer.caller.unwrap();
    assert_eq!((caller.name.as_str(), caller.roles.len(), caller.sources), ("uid:0", 3, vec!["*".to_owned()]));
    assert_eq!(answer.limits.unwrap().message_bytes, 16 << 20);
    let missing = Client::connect(&running.directory.path().join("none")).await.unwrap_err();
    assert!(matches!(missing, ClientError::Unreachable { .. }));
}
