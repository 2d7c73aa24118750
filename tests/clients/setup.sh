#!/bin/sh
# Makes an environment with real Kafka clients in DIR, for tests/clients.rs:
#   tests/clients/setup.sh DIR && TRIPLINE_CLIENTS_PYTHON=DIR/bin/python3 cargo test --test clients
# Python is needed. Clients for node, Go and Java are added where these are installed, kcat where the package manager has it and
# this runs as root. Tests of what is missing say that they are skipped.
set -eu
dir=${1:?usage: setup.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
[ -x "$dir/bin/python3" ] || python3 -m venv "$dir"
dir=$(cd "$dir" && pwd)
"$dir/bin/pip" install --quiet --disable-pip-version-check \
    confluent-kafka==2.15.0 kafka-python==3.0.12 aiokafka==0.14.0 lz4==4.4.4 python-snappy==0.7.3 zstandard==0.25.0

missing() {
    echo "$1 not installed; its test is skipped" >&2
}
if command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$dir/node" kafkajs@2.2.4 >/dev/null || missing kafkajs
fi
if command -v go >/dev/null; then
    (cd "$here/franz-go" && go build -o "$dir/franz-go" .) || missing franz-go
fi
if command -v mvn >/dev/null && command -v java >/dev/null; then
    mvn --quiet --batch-mode --file "$here/java/pom.xml" dependency:copy-dependencies "-DoutputDirectory=$dir/java" ||
        missing "the Java client"
    # Kafka itself: its tools read our files, and it writes what we import.
    mvn --quiet --batch-mode --file "$here/java/kafka.xml" dependency:copy-dependencies \
        -DincludeScope=runtime "-DoutputDirectory=$dir/kafka" || missing "Kafka"
fi
if [ "$(id -u)" = 0 ] && ! command -v kcat >/dev/null && command -v apt-get >/dev/null; then
    apt-get install --yes --quiet --no-install-recommends kcat >/dev/null || missing kcat
fi
