"""Takes the place of grpcurl where that is not installed (Debian has no package of it): the part of its command line that
api/examples/grpcurl.sh uses, with the same means: the agent's reflection, and protobuf's JSON."""

import argparse
import json
import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def messages(text):
    """The JSON values of a text, one behind the other."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        yield value
        text = text[end:].lstrip()


def describe(pool, name):
    try:
        service = pool.FindServiceByName(name)
    except KeyError:
        message = pool.FindMessageTypeByName(name)
        print(f"{name} is a message:")
        for field in message.fields:
            print(f"  {field.name} = {field.number};")
        return
    print(f"{name} is a service:")
    for method in service.methods:
        print(f"  rpc {method.name} ( .{method.input_type.full_name} ) returns ( .{method.output_type.full_name} );")


def call(channel, pool, name, data):
    service, method = name.rsplit("/", 1)
    method = pool.FindServiceByName(service).FindMethodByName(method)
    asked, said = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    requests = [json_format.ParseDict(value, asked(), descriptor_pool=pool) for value in messages(data)]
    invoke = channel.stream_stream(f"/{name}", lambda m: m.SerializeToString(), said.FromString)
    for answer in invoke(iter(requests)):
        print(json_format.MessageToJson(answer, descriptor_pool=pool))


def main():
    parser = argparse.ArgumentParser(prog="grpcurl", allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-unix", action="store_true", required=True)
    parser.add_argument("-authority", required=True)
    parser.add_argument("-d")
    parser.add_argument("address")
    parser.add_argument("symbol")
    parser.add_argument("name", nargs="?")
    asked = parser.parse_args()
    with grpc.insecure_channel(f"unix:{asked.address}", [("grpc.default_authority", asked.authority)]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        try:
            if asked.symbol == "list":
                print("\n".join(database.get_services()))
            elif asked.symbol == "describe":
                describe(pool, asked.name)
            else:
                call(channel, pool, asked.symbol, sys.stdin.read() if asked.d == "@" else asked.d)
        except grpc.RpcError as error:
            # As grpcurl says it, and ends with.
            print(f"ERROR:\n  Code: {error.code().name}\n  Message: {error.details()}", file=sys.stderr)
            sys.exit(64 + error.code().value[0])


main()
