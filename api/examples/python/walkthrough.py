"""What a control plane does, once through: hello, transactions, a refusal, a sync, a watch.

    python walkthrough.py unix:/run/holdfast/holdfast.sock

It pushes as the source "walkthrough" and removes at its end what it has pushed.
"""

import sys

import grpc
from holdfast.v1 import resource_pb2, push_pb2, state_pb2, state_pb2_grpc
from push_client import Outbox, PushStream, connect

SOURCE = "walkthrough"


def service(name, vip):
    ports = [resource_pb2.ServicePort(name="http", port=80, target_port=8080)]
    return resource_pb2.Resource(service=resource_pb2.Service(name=name, vips=[vip], ports=ports))


def workload(uid, address, of):
    services = [resource_pb2.Backing(service=of)]
    return resource_pb2.Resource(workload=resource_pb2.Workload(uid=uid, addresses=[address], services=services))


def upserts(*resources):
    return [push_pb2.Delta(upsert=resource) for resource in resources]


def named(resource):
    return resource.service.name if resource.HasField("service") else resource.workload.uid


def watch(channel):
    """The steps of a watch of all that the source has: what there is, a mark, and what comes of it."""
    request = state_pb2.WatchStateRequest(owner=SOURCE)
    return state_pb2_grpc.ResourceServiceStub(channel).WatchState(request)


def until_complete(steps):
    found = []
    for step in steps:
        if step.HasField("complete"):
            return sorted(found)
        found.extend(named(stored.resource) for stored in step.initial.resources)


def next_changes(steps):
    return next(step.changes for step in steps if step.HasField("changes"))


def main(target):
    with connect(target) as channel:
        outbox = Outbox(SOURCE, incarnation=1)
        with PushStream(channel, outbox) as stream:
            print(f"welcome: window {stream.window}, {'sync' in stream.welcome.capabilities and 'syncs'}")

            # Both are under way before the first answer, and share an fsync.
            cart = service("shop/cart", "10.96.0.1")
            for deltas in [upserts(cart), upserts(workload("cart-1", "127.1.1.1", "shop/cart"))]:
                stream.send(outbox.transaction(deltas))
            for _ in range(2):
                ack = stream.answer().ack
                print(f"version {ack.version}: in the journal, {len(ack.record_hash)} bytes of hash")

            # What contradicts the state is refused as a whole, and the stream goes on.
            stream.send(outbox.transaction(upserts(workload("lost", "127.1.1.2", "shop/none"))))
            nack = stream.answer().nack
            code = next(code.name for code in grpc.StatusCode if code.value[0] == nack.code)
            print(f"version {nack.version}: {code} {nack.reason} {nack.errors[0].field}")

            steps = watch(channel)
            print(f"watch: {until_complete(steps)}")

            # All that there is from now on; what is not named goes, in the same transaction.
            stream.send(outbox.sync([cart, service("shop/web", "10.96.0.2")], level=push_pb2.LEVEL_APPLIED))
            ack = stream.answer().ack
            print(f"version {ack.version}: a sync, {ack.removed} removed, {push_pb2.Level.Name(ack.level)}")
            changes = next_changes(steps)
            changed = sorted(named(stored.resource) for stored in changes.changed)
            print(f"watch: {changed} as they are, {[key.name for key in changes.removed]} gone")
            steps.cancel()

            stream.send(outbox.sync([]))
            removed = [answer.ack.removed for answer in stream.finish()]
            print(f"left nothing behind: {removed} removed")


if __name__ == "__main__":
    main(sys.argv[1])
