"""A source that never stops: it pushes one transaction after the other, and goes on wherever it was when the agent is back.

    python pusher.py unix:/run/holdfast/holdfast.sock

It ends when its standard input does, once everything is answered, and says as JSON what it has seen: `acked` has a pair of
version and LSN for each ack.
"""

import json
import sys
import threading
import time

import grpc
from holdfast.v1 import push_pb2, resource_pb2
from push_client import Outbox, PushStream, connect

SOURCE = "pusher"
UNDER_WAY = 32


def deltas(version):
    """A few services, over and over: the version is what changes."""
    service = resource_pb2.Service(name=f"mesh/s{version % 13}", hostname=str(version))
    return [push_pb2.Delta(upsert=resource_pb2.Resource(service=service))]


class Seen:
    def __init__(self):
        self.acked = []
        self.streams = 0
        # Answers that got lost, and came with a welcome.
        self.recovered = 0
        self.again = 0

    def note(self, ack):
        self.acked.append((ack.version, ack.lsn))

    def welcomed(self, stream):
        self.streams += 1
        self.recovered += len(stream.resumed.accepted)
        self.again += len(stream.resumed.again)
        for ack in stream.resumed.accepted:
            self.note(ack)
        assert stream.welcome.resync == push_pb2.RESYNC_UNSPECIFIED, "nothing that was acked is lost"
        assert not stream.resumed.refused, "all of them are valid"


def push(channel, outbox, seen, ending):
    """Pushes over one stream until it breaks, or there is no more to push."""
    with PushStream(channel, outbox) as stream:
        seen.welcomed(stream)
        while outbox.unanswered or not ending.is_set():
            while len(outbox.unanswered) < min(UNDER_WAY, stream.window) and not ending.is_set():
                stream.send(outbox.transaction(deltas((outbox.last_sent or 0) + 1)))
            if outbox.unanswered:
                response = stream.answer()
                assert response.HasField("ack"), response
                seen.note(response.ack)


def main(target):
    outbox, seen, ending = Outbox(SOURCE, incarnation=1), Seen(), threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ending.set()), daemon=True).start()
    with connect(target) as channel:
        while outbox.unanswered or not ending.is_set():
            try:
                push(channel, outbox, seen, ending)
            except grpc.RpcError as error:
                # UNAVAILABLE: it is not there, or stops. Anything else would be a mistake of this program.
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
                time.sleep(0.01)
    json.dump(vars(seen) | {"last_sent": outbox.last_sent}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
