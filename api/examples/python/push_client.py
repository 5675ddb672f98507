"""A source's end of the push protocol (`PushService.Push`): what it has to remember, and one stream of it.

The generated modules come from the proto files:

    python -m grpc_tools.protoc -I api/proto --python_out=OUT --grpc_python_out=OUT api/proto/holdfast/v1/*.proto

`Outbox` is the memory. Each transaction and each sync gets the next version, and is kept until it is answered. When a stream
breaks, its hello names what was not answered, the welcome says what of that is in the journal, and only the rest is sent
again: so each version is in the journal once, however often agent, connection or stream go away. A source that is to
survive its own restart keeps an outbox on disk, or forgets all and begins with a sync.

Acks are asked for at LEVEL_DURABLE here. Who asks for LEVEL_RECEIVED must keep what was acked until a later ack is durable.
"""

import queue
from collections import OrderedDict
from dataclasses import dataclass, field

import grpc
from holdfast.v1 import push_pb2, push_pb2_grpc

# A chunk of a sync ends with the resource that makes it this large.
CHUNK_BYTES = 256 << 10


def connect(target, **tls):
    """A channel to an agent: `unix:/run/holdfast/holdfast.sock`, or `node-1:9465` with `ca`, `cert` and `key` (PEM, bytes).

    It tries again soon after the agent went away: an agent is back within milliseconds.
    """
    options = [
        ("grpc.initial_reconnect_backoff_ms", 20),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.max_receive_message_length", 16 << 20),
    ]
    if not tls:
        # Else it is the socket's path in percent signs, which is no valid authority, and the agent's HTTP/2 refuses it.
        options.append(("grpc.default_authority", "localhost"))
        return grpc.insecure_channel(target, options)
    credentials = grpc.ssl_channel_credentials(tls["ca"], tls["key"], tls["cert"])
    return grpc.secure_channel(target, credentials, options)


@dataclass
class Resumed:
    """What a welcome says about what was not answered."""

    # In the journal: the acks.
    accepted: list = field(default_factory=list)
    # Refused, and the answer got lost: nothing was changed.
    refused: list = field(default_factory=list)
    # The versions that the agent has not seen: to be sent again, in this order.
    again: list = field(default_factory=list)


class Outbox:
    """What a source has sent and not seen answered. It does no I/O."""

    def __init__(self, source, incarnation):
        self.source = source
        self.incarnation = incarnation
        self.last_sent = None
        self.last_acked = None
        # Version -> the requests that say it: one of a transaction, several of a sync.
        self.unanswered = OrderedDict()

    def hello(self):
        """The hello that opens the next stream."""
        return push_pb2.PushHello(
            source=self.source,
            incarnation=self.incarnation,
            protocol_version=1,
            last_sent_version=self.last_sent,
            last_acked_version=self.last_acked,
            unanswered_versions=self.unanswered,
        )

    def transaction(self, deltas, **fields):
        """Notes a transaction that is about to be sent; its version."""
        version = self._next()
        message = push_pb2.PushTransaction(version=version, deltas=deltas, **fields)
        self.unanswered[version] = [push_pb2.PushRequest(transaction=message)]
        return version

    def sync(self, resources, **fields):
        """Notes a sync that is about to be sent: `resources` is all that the source has. Its version."""
        version = self._next()
        begin = push_pb2.SyncBegin(version=version, **fields)
        requests = [push_pb2.PushRequest(sync_begin=begin)]
        chunk, size, count = push_pb2.SyncChunk(), 0, 0
        for resource in resources:
            chunk.resources.append(resource)
            size, count = size + resource.ByteSize(), count + 1
            if size >= CHUNK_BYTES:
                requests.append(push_pb2.PushRequest(sync_chunk=chunk))
                chunk, size = push_pb2.SyncChunk(), 0
        if chunk.resources:
            requests.append(push_pb2.PushRequest(sync_chunk=chunk))
        requests.append(push_pb2.PushRequest(sync_end=push_pb2.SyncEnd(resources=count)))
        self.unanswered[version] = requests
        return version

    def answered(self, response):
        """Notes an ack or a nack."""
        if response.HasField("ack"):
            self._acked(response.ack.version)
        elif response.HasField("nack"):
            self.unanswered.pop(response.nack.version, None)

    def resume(self, welcome):
        """Notes what a welcome says, and works out what is to be sent again."""
        resumed = Resumed()
        accepted = {ack.version: ack for ack in welcome.accepted}
        last = welcome.last_version if welcome.HasField("last_version") else 0
        for version in list(self.unanswered):
            if version in accepted:
                resumed.accepted.append(accepted[version])
                self._acked(version)
            elif version <= last:
                resumed.refused.append(version)
                del self.unanswered[version]
            else:
                resumed.again.append(version)
        # Who has lost their memory goes on above what the journal has.
        self.last_sent = max(self.last_sent or 0, last) or None
        return resumed

    def _next(self):
        self.last_sent = (self.last_sent or 0) + 1
        return self.last_sent

    def _acked(self, version):
        self.unanswered.pop(version, None)
        self.last_acked = max(self.last_acked or 0, version)


class PushStream:
    """One stream: hello and welcome when it is made, and then requests and answers. Use it in a `with` statement.

    What the agent refuses for good is an answer (`nack`); whatever ends the stream is raised as `grpc.RpcError`.
    """

    def __init__(self, channel, outbox):
        self._outbox = outbox
        self._requests = queue.SimpleQueue()
        self._requests.put(push_pb2.PushRequest(hello=outbox.hello()))
        # None ends the iterator, and so the client's half of the stream.
        self._responses = push_pb2_grpc.PushServiceStub(channel).Push(iter(self._requests.get, None))
        try:
            self.welcome = next(self._responses).welcome
        except BaseException:
            self.close()
            raise
        # All that the agent asks for: `resync` says whether that is a sync of everything.
        self.resumed = outbox.resume(self.welcome)
        for version in self.resumed.again:
            self.send(version)

    def send(self, version):
        """Sends what the outbox has of a version. It waits for nothing: keep to `window` unanswered versions."""
        for request in self._outbox.unanswered[version]:
            self._requests.put(request)

    @property
    def window(self):
        """How many versions may be unanswered; the agent reads no further then."""
        return self.welcome.window

    def answer(self):
        """The next answer; `StopIteration` when the client's half is closed and everything is answered."""
        response = next(self._responses)
        self._outbox.answered(response)
        return response

    def finish(self):
        """Closes the client's half, and returns all answers that are left."""
        self._requests.put(None)
        answers = []
        for response in self._responses:
            self._outbox.answered(response)
            answers.append(response)
        return answers

    def close(self):
        """Gives the stream up. What was not answered is in doubt until the next welcome."""
        self._requests.put(None)
        self._responses.cancel()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
