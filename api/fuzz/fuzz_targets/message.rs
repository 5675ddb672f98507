//! Requests as they come from the wire, and the resources in them: decoded, or refused field by field, and what was decoded is
//! said again and comes back as it was.
#![no_main]

use api::convert::{
    Path, decode_key, decode_resource, decode_transaction, encode_key, encode_resource, encode_transaction,
};
use api::proto::push_request::Step;
use api::proto::{self, delta::Change};
use api::rejection::Violations;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use prost::Message;

#[path = "../../tests/sample/mod.rs"]
mod sample;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// Nothing that we know.
    Raw(&'a [u8]),
    /// Everything that there is, some bytes of it changed, a piece of it replaced.
    Edited { edits: Vec<(u16, u8)>, at: u16, taken: u8, put: &'a [u8] },
}

impl Input<'_> {
    fn bytes(&self, valid: &[u8]) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.to_vec(),
            Self::Edited { edits, at, taken, put } => {
                let mut bytes = valid.to_vec();
                for (at, byte) in edits {
                    let at = usize::from(*at) % bytes.len();
                    bytes[at] = *byte;
                }
                let at = usize::from(*at) % bytes.len();
                let end = (at + usize::from(*taken)).min(bytes.len());
                bytes.splice(at..end, put.iter().copied());
                bytes
            }
        }
    }
}

fuzz_target!(|input: Input| {
    let transaction = encode_transaction(&sample::everything());
    let deltas = transaction.deltas.clone();
    let apply = proto::ApplyRequest { transaction: Some(transaction), ..Default::default() };
    if let Ok(request) = proto::ApplyRequest::decode(&input.bytes(&apply.encode_to_vec())[..]) {
        if let Ok(transaction) = decode_transaction(request.transaction) {
            assert_eq!(decode_transaction(Some(encode_transaction(&transaction))), Ok(transaction));
        }
        for precondition in request.preconditions {
            precondition.key.into_iter().for_each(key);
        }
    }
    let pushed = proto::PushTransaction { version: 1, deltas, ..Default::default() };
    let pushed = proto::PushRequest { step: Some(Step::Transaction(pushed)) };
    match proto::PushRequest::decode(&input.bytes(&pushed.encode_to_vec())[..]).ok().and_then(|request| request.step) {
        Some(Step::Transaction(pushed)) => {
            for delta in pushed.deltas {
                match delta.change {
                    Some(Change::Upsert(message)) => resource(message),
                    Some(Change::Remove(message)) => key(message),
                    None => {}
                }
            }
        }
        Some(Step::SyncChunk(chunk)) => chunk.resources.into_iter().for_each(resource),
        Some(Step::Hello(_) | Step::SyncBegin(_) | Step::SyncEnd(_)) | None => {}
    }
});

fn resource(message: proto::Resource) {
    let mut found = Violations::default();
    match decode_resource(&Path::root("resource"), message, &mut found) {
        Some(resource) => {
            assert!(found.is_empty());
            let again = decode_resource(&Path::root("resource"), encode_resource(&resource), &mut found);
            assert_eq!(again, Some(resource));
        }
        None => assert!(!found.is_empty(), "whoever is refused is told why"),
    }
}

fn key(message: proto::ResourceKey) {
    let mut found = Violations::default();
    match decode_key(&Path::root("key"), message, &mut found) {
        Some(decoded) => assert_eq!(decode_key(&Path::root("key"), encode_key(&decoded), &mut found), Some(decoded)),
        None => assert!(!found.is_empty(), "whoever is refused is told why"),
    }
}
