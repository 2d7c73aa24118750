#!/bin/bash
# Makes tests/golden/kafka anew with a real Kafka, from jars that tests/clients/setup.sh has fetched:
#   tests/clients/kafka_golden.sh DIR/kafka
set -eu
jars=$(cd "${1:?usage: kafka_golden.sh JARS}" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
golden=$here/../golden/kafka
work=$(mktemp -d)
trap 'kill "$broker" 2>/dev/null || true; rm -rf "$work"' EXIT
broker=
cat >"$work/server.properties" <<END
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:29193
listeners=PLAINTEXT://127.0.0.1:29192,CONTROLLER://127.0.0.1:29193
advertised.listeners=PLAINTEXT://127.0.0.1:29192
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$work/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
log.cleaner.backoff.ms=500
log.cleaner.dedupe.buffer.size=2097152
log.cleaner.io.buffer.size=65536
END
java -cp "$jars/*" kafka.tools.StorageTool format -t dHJpcGxpbmUtZ29sZGVuIQ -c "$work/server.properties" >/dev/null 2>&1
java -Xmx512m -cp "$jars/*" kafka.Kafka "$work/server.properties" >"$work/kafka.log" 2>&1 &
broker=$!
for _ in $(seq 60); do
    if (exec 3<>/dev/tcp/127.0.0.1/29192) 2>/dev/null; then break; fi
    sleep 1
done
java -cp "$jars/*" "$here/java/Golden.java" 127.0.0.1:29192
kill "$broker"
wait "$broker" || true
broker=
for partition in plain-0 plain-1 compacted-0 committed-0 aborted-0; do
    rm -rf "${golden:?}/$partition"
    mkdir -p "$golden/$partition"
    for file in "$work/data/$partition"/*; do
        case $file in *.deleted | *index) ;; *) cp "$file" "$golden/$partition/" ;; esac
    done
    logs=$(find "$golden/$partition" -name '*.log' | sort | paste -sd, -)
    java -cp "$jars/*" kafka.tools.DumpLogSegments --files "$logs" --deep-iteration --print-data-log 2>/dev/null |
        grep '^|' >"$golden/$partition.records"
done
echo OK
