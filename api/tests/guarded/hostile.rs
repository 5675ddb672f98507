//! Clients that mean harm, or are broken: clear codes, and no effect on others.

use std::time::{Duration, Instant};

use api::proto;
use api::proto::journal_service_client::JournalServiceClient;
use api::proto::push_service_client::PushServiceClient;
use api::server::Limits;
use prost::bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::{Code, Status};

use crate::node::{start, until};

const APPLY: &str = "/holdfast.v1.PushService/Apply";

/// Sends bytes as they are, as if they were messages.
#[derive(Clone, Default)]
pub(crate) struct Raw;

impl tonic::codec::Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        use prost::bytes::Buf as _;
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

async fn apply_raw(
    channel: tonic::transport::Channel,
    messages: impl tokio_stream::Stream<Item = Bytes> + Send + 'static,
) -> Result<Bytes, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let answer = grpc.client_streaming(tonic::Request::new(messages), APPLY.parse().unwrap(), Raw).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_read() {
    let running = start(Limits::default(), &[]).await;
    let large = Bytes::from(vec![0; api::MESSAGE_BYTES_MAX + 1]);
    let status = apply_raw(running.channel().await, tokio_stream::once(large)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert!(status.message().contains("at most 16777216"), "{status:?}");
    let fits = Bytes::from(vec![0; api::MESSAGE_BYTES_MAX]);
    let status = apply_raw(running.channel().await, tokio_stream::once(fits)).await.unwrap_err();
    assert_ne!(status.code(), Code::ResourceExhausted, "{status:?}");
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    let running = start(Limits::default(), &[]).await;
    for garbage in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"\x0a\xff\xff\xff\x7f", b"\x0a\x02\x12\x7f"]
    {
        let status =
            apply_raw(running.channel().await, tokio_stream::once(Bytes::from_static(garbage))).await.unwrap_err();
        assert!(matches!(status.code(), Code::InvalidArgument | Code::Internal), "{status:?}");
    }
    assert!(running.client().await.status().await.is_ok());
}

#[tokio::test]
async fn bytes_that_are_no_http_end_their_own_connection_only() {
    let running = start(Limits::default(), &[]).await;
    let other = running.client().await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..50 {
        let mut bytes = BytesMut::new();
        for _ in 0..64 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            bytes.put_u64(seed);
        }
        let mut stream = UnixStream::connect(&running.path).await.unwrap();
        // It may be closed while this is written.
        drop(stream.write_all(&bytes).await);
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "the connection is closed");
    }
    other.status().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let running = start(Limits::default(), &[]).await;
    let mut silent = UnixStream::connect(&running.path).await.unwrap();
    let began = Instant::now();
    let mut slow = UnixStream::connect(&running.path).await.unwrap();
    slow.write_all(b"PRI * HTTP").await.unwrap();
    for stream in [&mut silent, &mut slow] {
        // The server's own preface, and then the end.
        let closed = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "it is closed in time");
    }
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_request_without_end_ends_in_time_and_others_are_answered() {
    let running = start(Limits { request_timeout: Duration::from_secs(1), ..Limits::default() }, &[]).await;
    let messages = endless(Bytes::from(vec![0x0a; 32 << 10]));
    let call = tokio::spawn(apply_raw(running.channel().await, messages));
    let other = running.client().await;
    let mut slowest = Duration::ZERO;
    while !call.is_finished() {
        let began = Instant::now();
        other.status().await.unwrap();
        slowest = slowest.max(began.elapsed());
    }
    let status = call.await.unwrap().unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Internal | Code::InvalidArgument), "{status:?}");
    assert!(slowest < Duration::from_millis(900), "another client waited {slowest:?}");
}

/// The same chunk for ever, from a task of its own, so that others run in between.
fn endless(chunk: Bytes) -> impl tokio_stream::Stream<Item = Bytes> + Send + 'static {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move { while sender.send(chunk.clone()).await.is_ok() {} });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

#[tokio::test]
async fn readers_that_do_not_read_hold_their_own_places_only() {
    let running = start(Limits { readers_max: 8, readers_per_client_max: 8, ..Limits::default() }, &[]).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut journal = JournalServiceClient::new(running.channel().await);
        let request = proto::ReadRecordsRequest { encoded: true, ..Default::default() };
        held.push(journal.read_records(request).await.unwrap());
    }
    until("all are open", || running.counts.streams() == 8).await;
    let mut push = PushServiceClient::new(running.channel().await);
    for _ in 0..50 {
        push.apply(crate::node::apply_request(proto::Level::Durable)).await.unwrap();
    }
    drop(held);
    until("they are let go", || running.counts.streams() == 0).await;
}

/// Two bytes for each of millions of empty deltas: a small message that would be gigabytes once decoded.
#[tokio::test]
async fn a_message_that_swells_is_refused_before_it_does() {
    let running = start(Limits::default(), &[]).await;
    let deltas = 4 << 20;
    let mut bytes = BytesMut::new();
    bytes.put_u8(0x0a);
    prost::encoding::encode_varint(deltas * 2, &mut bytes);
    for _ in 0..deltas {
        bytes.put_slice(&[0x12, 0x00]);
    }
    let bytes = bytes.freeze();
    let mut calls = Vec::new();
    for _ in 0..4 {
        let (channel, bytes) = (running.channel().await, bytes.clone());
        calls.push(tokio::spawn(apply_raw(channel, tokio_stream::once(bytes))));
    }
    for call in calls {
        let status = call.await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    }
    // All of it would have been a gigabyte for each.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 400 << 10, "{peak} KiB resident at most");
    running.client().await.status().await.unwrap();
}
