//! How much memory a message takes once it is decoded, found out before it is.
//!
//! A repeated message costs two bytes on the wire and hundreds in memory, so the bytes of a request say little about what it
//! takes. The descriptors say how large each type is, and a walk over the wire's tags and lengths how many of each there are.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::proto::DESCRIPTORS;

/// What a `String`, a `Vec<u8>` or a `Vec` takes itself.
const CONTAINER_BYTES: usize = 24;
/// What a number takes, and the tag of an `Option` or an enum.
const WORD_BYTES: usize = 8;
/// As deep as prost goes.
const DEPTH_MAX: usize = 100;

static TYPES: LazyLock<Types> = LazyLock::new(Types::read);

/// The bytes that a message of this type (`holdfast.v1.ApplyRequest`) takes beyond its own value. `None`: the type is not of
/// this API. Bytes that are no message count up to where they cease to be one: the decoder refuses them. Once it is more than
/// `most` nobody counts on.
pub(super) fn of(type_name: &str, encoded: &[u8], most: usize) -> Option<usize> {
    let number = *TYPES.by_name.get(type_name)?;
    let mut weight = 0;
    TYPES.walk(number, encoded, DEPTH_MAX, most, &mut weight);
    Some(weight)
}

struct Types {
    by_name: HashMap<String, usize>,
    all: Vec<MessageType>,
}

#[derive(Default)]
struct MessageType {
    bytes: usize,
    fields: HashMap<u64, Field>,
}

#[derive(Clone, Copy)]
enum Field {
    /// Its bytes are in an allocation of their own; so is its container, if it is repeated.
    Text { is_repeated: bool },
    /// A message of this number.
    Message { number: usize, is_repeated: bool },
    /// Numbers, many of them in one run of bytes.
    Numbers,
}

impl Types {
    fn read() -> Self {
        let mut described: Vec<(String, DescriptorProto)> = Vec::new();
        // What was compiled in is readable; without it nothing is known, and nothing let in.
        let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
        for file in set.file {
            let package = file.package().to_owned();
            let mut waiting: Vec<(String, DescriptorProto)> = file
                .message_type
                .into_iter()
                .map(|message| (format!("{package}.{}", message.name()), message))
                .collect();
            while let Some((name, message)) = waiting.pop() {
                let nested =
                    message.nested_type.iter().map(|nested| (format!("{name}.{}", nested.name()), nested.clone()));
                waiting.extend(nested);
                described.push((name, message));
            }
        }
        let by_name: HashMap<String, usize> =
            described.iter().enumerate().map(|(number, (name, _))| (name.clone(), number)).collect();
        let all = described.iter().map(|(_, message)| MessageType {
            bytes: size(message, &described, &by_name, DEPTH_MAX),
            fields: message.field.iter().filter_map(|field| Some((tag(field), Field::of(field, &by_name)?))).collect(),
        });
        let all = all.collect();
        Self { by_name, all }
    }

    /// Adds up what is found; returns early where it is more than `most`, or where the bytes are no message any more.
    fn walk(&self, number: usize, mut bytes: &[u8], depth: usize, most: usize, weight: &mut usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        while !bytes.is_empty() {
            if *weight > most {
                return None;
            }
            let key = varint(&mut bytes)?;
            match key & 7 {
                0 => drop(varint(&mut bytes)?),
                1 => bytes = bytes.get(8..)?,
                5 => bytes = bytes.get(4..)?,
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (field, rest) = bytes.split_at_checked(length)?;
                    bytes = rest;
                    match self.all[number].fields.get(&(key >> 3)) {
                        Some(Field::Text { is_repeated }) => {
                            *weight += length + if *is_repeated { CONTAINER_BYTES } else { 0 };
                        }
                        Some(Field::Message { number, is_repeated }) => {
                            *weight += if *is_repeated { self.all[*number].bytes } else { 0 };
                            self.walk(*number, field, depth, most, weight)?;
                        }
                        Some(Field::Numbers) => *weight += length.saturating_mul(WORD_BYTES),
                        None => {}
                    }
                }
                _ => return None,
            }
        }
        Some(())
    }
}

impl Field {
    fn of(field: &FieldDescriptorProto, by_name: &HashMap<String, usize>) -> Option<Self> {
        let is_repeated = field.label() == Label::Repeated;
        match field.r#type() {
            Type::String | Type::Bytes => Some(Self::Text { is_repeated }),
            Type::Message => Some(Self::Message { number: *by_name.get(type_name(field))?, is_repeated }),
            _ if is_repeated => Some(Self::Numbers),
            _ => None,
        }
    }
}

/// A bound on the size of the type that prost makes of a message.
fn size(
    message: &DescriptorProto,
    described: &[(String, DescriptorProto)],
    by_name: &HashMap<String, usize>,
    depth: usize,
) -> usize {
    let of_field = |field: &FieldDescriptorProto| match (field.label(), field.r#type()) {
        (Label::Repeated, _) | (_, Type::String | Type::Bytes) => CONTAINER_BYTES + WORD_BYTES,
        (_, Type::Message) => {
            let inner = by_name.get(type_name(field)).map(|number| &described[*number].1);
            WORD_BYTES + inner.filter(|_| depth > 1).map_or(0, |inner| size(inner, described, by_name, depth - 1))
        }
        _ => 2 * WORD_BYTES,
    };
    message.field.iter().map(of_field).sum()
}

fn tag(field: &FieldDescriptorProto) -> u64 {
    u64::try_from(field.number()).unwrap_or(u64::MAX)
}

fn type_name(field: &FieldDescriptorProto) -> &str {
    field.type_name().trim_start_matches('.')
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ApplyRequest, Delta, Transaction};

    fn request(deltas: usize) -> Vec<u8> {
        let transaction = Transaction { deltas: vec![Delta::default(); deltas], ..Transaction::default() };
        ApplyRequest { transaction: Some(transaction), ..ApplyRequest::default() }.encode_to_vec()
    }

    #[test]
    fn two_bytes_on_the_wire_weigh_what_they_take_in_memory() {
        let encoded = request(1000);
        assert!(encoded.len() < 2100);
        let weight = of("holdfast.v1.ApplyRequest", &encoded, usize::MAX).unwrap();
        assert!(weight >= 1000 * size_of::<Delta>(), "{weight}, {}", size_of::<Delta>());
        assert!(weight <= 4000 * size_of::<Delta>(), "{weight}, {}", size_of::<Delta>());
        let given_up = of("holdfast.v1.ApplyRequest", &encoded, 10 * size_of::<Delta>()).unwrap();
        assert!(given_up > 10 * size_of::<Delta>() && given_up < weight / 10, "{given_up}");
    }

    #[test]
    fn garbage_weighs_something_or_nothing_and_never_fails() {
        let encoded = request(10);
        for end in 0..encoded.len() {
            assert!(of("holdfast.v1.ApplyRequest", &encoded[..end], usize::MAX).is_some());
        }
        for byte in 0..=255 {
            assert!(of("holdfast.v1.ApplyRequest", &[byte; 300], usize::MAX).is_some());
        }
        assert_eq!(of("holdfast.v1.NoSuch", &encoded, usize::MAX), None);
    }
}
