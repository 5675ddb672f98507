//! The API's contract, as a file: a change to a name, a number or a type shows up in review as a changed line.
//!
//! Compatibility rule: lines are added; a line that is there neither changes nor goes. After an addition run the test
//! with `UPDATE_EXPECT=1`.

use std::fmt::Write as _;

use expect_test::expect_file;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

#[test]
fn the_contract_is_the_one_on_file() {
    let set = FileDescriptorSet::decode(api::proto::DESCRIPTORS).expect("our own descriptors are readable");
    let mut text = String::new();
    for file in set.file.iter().filter(|file| file.package() == "holdfast.v1") {
        for service in &file.service {
            for method in &service.method {
                let stream = |streaming: bool| if streaming { "stream " } else { "" };
                writeln!(
                    text,
                    "rpc {}.{}({}{}) returns ({}{})",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    short(method.input_type()),
                    stream(method.server_streaming()),
                    short(method.output_type()),
                )
                .unwrap();
            }
        }
        file.message_type.iter().for_each(|message| describe_message(message, &mut text));
        file.enum_type.iter().for_each(|values| describe_enum(values, &mut text));
    }
    expect_file!["../golden/holdfast.v1.txt"].assert_eq(&text);
}

/// Every service, method, message and enum says what it is for; what wraps a call is described by its method.
#[test]
fn everything_in_the_contract_is_commented() {
    let set = FileDescriptorSet::decode(api::proto::DESCRIPTORS).expect("our own descriptors are readable");
    for file in set.file.iter().filter(|file| file.package() == "holdfast.v1") {
        let locations = &file.source_code_info.as_ref().expect("comments are kept").location;
        let commented = |path: &[i32]| {
            locations.iter().any(|location| location.path == path && !location.leading_comments().is_empty())
        };
        for (s, service) in file.service.iter().enumerate() {
            assert!(commented(&[6, index(s)]), "{}", service.name());
            for (m, method) in service.method.iter().enumerate() {
                assert!(commented(&[6, index(s), 2, index(m)]), "{}.{}", service.name(), method.name());
            }
        }
        for (m, message) in file.message_type.iter().enumerate() {
            let wraps_a_call = message.name().ends_with("Request") || message.name().ends_with("Response");
            assert!(wraps_a_call || commented(&[4, index(m)]), "{}", message.name());
        }
        for (e, values) in file.enum_type.iter().enumerate() {
            assert!(commented(&[5, index(e)]), "{}", values.name());
        }
    }
}

fn index(i: usize) -> i32 {
    i32::try_from(i).expect("a proto file is small")
}

fn describe_message(message: &DescriptorProto, text: &mut String) {
    assert!(message.nested_type.is_empty(), "nested messages are not described here: {}", message.name());
    for field in &message.field {
        writeln!(text, "{}.{} = {}: {}", message.name(), field.name(), field.number(), field_type(message, field))
            .unwrap();
    }
}

fn field_type(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let scalar = match field.r#type() {
        Type::Message | Type::Enum => short(field.type_name()).to_owned(),
        other => other.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let oneof = field.oneof_index.filter(|_| !field.proto3_optional()).map(|i| {
        let index = usize::try_from(i).expect("an index is not negative");
        message.oneof_decl[index].name()
    });
    match (field.label(), oneof) {
        (Label::Repeated, _) => format!("repeated {scalar}"),
        (_, Some(oneof)) => format!("oneof {oneof} {scalar}"),
        _ if field.proto3_optional() => format!("optional {scalar}"),
        _ => scalar,
    }
}

fn describe_enum(values: &EnumDescriptorProto, text: &mut String) {
    for value in &values.value {
        writeln!(text, "{}.{} = {}", values.name(), value.name(), value.number()).unwrap();
    }
}

fn short(name: &str) -> &str {
    name.trim_start_matches(".holdfast.v1.").trim_start_matches('.')
}
