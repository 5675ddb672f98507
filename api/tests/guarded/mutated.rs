//! Messages whose bytes were changed, sent to every method that takes more than a name: each is answered with a clear code, what
//! is let through can be encoded again, and nobody else is affected.

use api::convert::{decode_transaction, encode_transaction};
use api::proto;
use api::server::Limits;
use prost::Message as _;
use prost::bytes::Bytes;
use tonic::{Code, Status};

use crate::hostile::Raw;
use crate::node::start;
use crate::sample::everything;

/// Messages; `HOLDFAST_MUTATED` says otherwise.
const MESSAGES: u64 = 4_000;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// Xorshift: the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// A method, and messages that it takes.
struct Valid {
    path: &'static str,
    messages: Vec<Vec<u8>>,
}

fn valid() -> Vec<Valid> {
    use proto::push_request::Step;
    let transaction = encode_transaction(&everything());
    let key = proto::ResourceKey { kind: proto::Kind::Service.into(), name: "shop/cart".to_owned() };
    let preconditions = vec![proto::Precondition { key: Some(key.clone()), changed_lsn: 7 }];
    let timeout = Some(prost_types::Duration { seconds: 1, nanos: 0 });
    let apply = proto::ApplyRequest {
        transaction: Some(transaction.clone()),
        wait_timeout: timeout,
        preconditions: preconditions.clone(),
        ..Default::default()
    };
    let resources = transaction.deltas.iter().filter_map(|delta| match &delta.change {
        Some(proto::delta::Change::Upsert(resource)) => Some(resource.clone()),
        _ => None,
    });
    let hello = proto::PushHello {
        source: "cp".to_owned(),
        unanswered_versions: vec![1, 2],
        wait_timeout: timeout,
        ttl: timeout,
        ..Default::default()
    };
    let chunk = proto::SyncChunk { resources: resources.collect() };
    let pushed = proto::PushTransaction { version: 3, deltas: transaction.deltas, preconditions, ..Default::default() };
    let begin = proto::SyncBegin { version: 4, ..Default::default() };
    let end = proto::SyncEnd { resources: 3 };
    let steps = [
        Step::Hello(hello),
        Step::Transaction(pushed),
        Step::SyncBegin(begin),
        Step::SyncChunk(chunk),
        Step::SyncEnd(end),
    ];
    let steps = steps.into_iter().map(|step| proto::PushRequest { step: Some(step) }.encode_to_vec());
    let filter = Some(proto::ResourceFilter { name_prefix: "shop/".to_owned(), ..Default::default() });
    let list = proto::ListResourcesRequest { kind: proto::Kind::Workload.into(), filter, ..Default::default() };
    let sources = proto::ListSourcesRequest { page_size: 7, page_token: "cp".to_owned() };
    let one = |path, message: Vec<u8>| Valid { path, messages: vec![message] };
    vec![
        one("/holdfast.v1.PushService/Apply", apply.encode_to_vec()),
        Valid { path: "/holdfast.v1.PushService/Push", messages: steps.collect() },
        one("/holdfast.v1.ResourceService/GetResource", proto::GetResourceRequest { key: Some(key) }.encode_to_vec()),
        one("/holdfast.v1.ResourceService/ListResources", list.encode_to_vec()),
        one("/holdfast.v1.PushService/ListSources", sources.encode_to_vec()),
    ]
}

/// Changes a few bytes: another value, one bit, a piece that is missing, doubled or from elsewhere, an end that is missing.
fn mutate(message: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if message.is_empty() {
            message.push(random.next().to_le_bytes()[0]);
        }
        let at = random.below(message.len());
        let end = at + random.below(message.len() - at);
        match random.below(6) {
            0 => message[at] = random.next().to_le_bytes()[0],
            1 => message[at] ^= 1 << random.below(8),
            2 => drop(message.drain(at..end)),
            3 => {
                let piece = message[at..end].to_vec();
                message.splice(at..at, piece);
            }
            4 => {
                let piece: Vec<u8> = (0..random.below(16)).map(|_| random.next().to_le_bytes()[0]).collect();
                message.splice(at..at, piece);
            }
            _ => message.truncate(at),
        }
    }
}

/// The first answer. Streams without an end are not waited for any longer.
async fn first_answer(
    channel: &tonic::transport::Channel,
    path: &'static str,
    messages: Vec<Vec<u8>>,
) -> Result<Option<Bytes>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let messages = tokio_stream::iter(messages.into_iter().map(Bytes::from));
    let answer = grpc.streaming(tonic::Request::new(messages), path.parse().unwrap(), Raw).await?;
    answer.into_inner().message().await
}

#[tokio::test]
async fn changed_messages_get_clear_codes_and_what_is_let_through_is_sound() {
    let count = std::env::var("HOLDFAST_MUTATED").map_or(MESSAGES, |count| count.parse().unwrap());
    let running = start(Limits::default(), &[]).await;
    running.node.applied.send_replace(u64::MAX);
    let (channel, other) = (running.channel().await, running.client().await);
    let valid = valid();
    for Valid { path, messages } in &valid {
        let answer = first_answer(&channel, path, messages.clone()).await;
        assert!(answer.is_ok() || answer.as_ref().is_err_and(|status| status.code() == Code::NotFound), "{answer:?}");
    }
    let mut random = Random(SEED);
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for number in 0..count {
        let Valid { path, messages } = &valid[random.below(valid.len())];
        let mut messages = messages.clone();
        let changed = random.below(messages.len());
        mutate(&mut messages[changed], &mut random);
        if path.ends_with("/Apply")
            && let Ok(request) = proto::ApplyRequest::decode(&messages[0][..])
            && let Ok(transaction) = decode_transaction(request.transaction)
        {
            assert_eq!(decode_transaction(Some(encode_transaction(&transaction))), Ok(transaction), "{messages:?}");
        }
        match first_answer(&channel, path, messages.clone()).await.map_err(|status| status.code()) {
            Ok(_) => accepted += 1,
            Err(Code::InvalidArgument | Code::NotFound | Code::OutOfRange | Code::ResourceExhausted) => refused += 1,
            Err(code) => panic!("message {number} to {path} is answered with {code:?}: {messages:?}"),
        }
        if number % 100 == 0 {
            other.status().await.unwrap();
        }
    }
    eprintln!("{accepted} accepted, {refused} refused");
    assert!(accepted > count / 10 && refused > count / 10, "{accepted} accepted, {refused} refused");
    for Valid { path, messages } in &valid {
        assert_ne!(
            first_answer(&channel, path, messages.clone()).await.map_err(|status| status.code()).err(),
            Some(Code::ResourceExhausted),
            "all room has come back"
        );
    }
}
