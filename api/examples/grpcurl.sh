#!/bin/sh
# The API with grpcurl alone: the agent tells by reflection what it offers, so no proto file is needed.
#
#   api/examples/grpcurl.sh /run/holdfast/holdfast.sock
#
# Over TCP it is `grpcurl -cacert ca.pem -cert tls.pem -key tls.key node-1:9465 …`. The socket needs `-authority`: a path is no
# host name, and the agent's HTTP/2 refuses it as one. What is pushed here, as the source "grpcurl", is removed at the end.
set -eu

socket=${1:?usage: grpcurl.sh SOCKET}

agent() { grpcurl -plaintext -unix -authority localhost "$@"; }

# call Service/Method JSON: one call. JSON `@` reads the messages of a stream from standard input.
call() { agent -d "$2" "$socket" "holdfast.v1.$1"; }

echo "# What there is"
agent "$socket" list
agent "$socket" describe holdfast.v1.PushService
agent "$socket" describe holdfast.v1.ApplyRequest
call StatusService/GetCapabilities '{}'

echo "# One transaction: a service and a workload that backs it, visible to connections when the answer is there"
call PushService/Apply '{
  "transaction": {
    "origin": {"source": "grpcurl", "version": 1},
    "deltas": [
      {"upsert": {"service": {
        "name": "shop/cart", "vips": ["10.96.0.1", "fd00:96::1"],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}},
      {"upsert": {"workload": {
        "uid": "cart-1", "addresses": ["127.1.1.1", "fd00:10::1"], "services": [{"service": "shop/cart"}]}}}
    ]
  },
  "wait": "LEVEL_APPLIED"
}'

echo "# The same version again: the same receipt, and nothing changes"
call PushService/Apply '{
  "transaction": {
    "origin": {"source": "grpcurl", "version": 1},
    "deltas": [{"remove": {"kind": "KIND_WORKLOAD", "name": "cart-1"}}]
  }
}'

echo "# What a removal would do, without doing it"
call PushService/Apply '{
  "transaction": {
    "origin": {"source": "grpcurl"},
    "deltas": [{"remove": {"kind": "KIND_WORKLOAD", "name": "cart-1"}}]
  },
  "dryRun": true
}'

echo "# Compare-and-set: refused, as that service is there"
if call PushService/Apply '{
  "transaction": {
    "origin": {"source": "grpcurl"},
    "deltas": [{"upsert": {"service": {"name": "shop/cart"}}}]
  },
  "preconditions": [{"key": {"kind": "KIND_SERVICE", "name": "shop/cart"}, "changedLsn": 0}]
}'; then
    echo "it was not refused" >&2
    exit 1
fi

echo "# Reading"
call ResourceService/GetResource '{"key": {"kind": "KIND_SERVICE", "name": "shop/cart"}}'
call ResourceService/ListResources '{"kind": "KIND_WORKLOAD", "filter": {"owner": "grpcurl"}}'
call PushService/ListSources '{}'

echo "# A stream: hello, a transaction, and a sync, which removes the workload as it does not name it"
call PushService/Push @ <<'END'
{"hello": {"source": "grpcurl", "protocolVersion": 1, "lastSentVersion": 1, "lastAckedVersion": 1}}
{"transaction": {"version": 2, "deltas": [{"upsert": {"service": {"name": "shop/web"}}}]}}
{"syncBegin": {"version": 3}}
{"syncChunk": {"resources": [{"service": {"name": "shop/cart", "vips": ["10.96.0.1"]}}]}}
{"syncEnd": {"resources": 1}}
END

echo "# What the journal has of it; with \"follow\": true also what is yet to come, as WatchRecords and WatchState tell it"
call JournalService/ReadRecords '{"source": "grpcurl"}'

echo "# Nothing is left: a sync of nothing"
call PushService/Push @ <<'END'
{"hello": {"source": "grpcurl", "protocolVersion": 1, "lastSentVersion": 3, "lastAckedVersion": 3}}
{"syncBegin": {"version": 4}}
{"syncEnd": {}}
END
