#!/bin/sh
# Makes a Python environment with real Kafka clients in DIR, for tests/clients.rs:
#   tests/clients/setup.sh DIR && TRIPLINE_CLIENTS_PYTHON=DIR/bin/python3 cargo test --test clients
# As root it also installs kcat, where the package manager has it.
set -eu
dir=${1:?usage: setup.sh DIR}
[ -x "$dir/bin/python3" ] || python3 -m venv "$dir"
"$dir/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.15.0 kafka-python==3.0.12
if [ "$(id -u)" = 0 ] && ! command -v kcat >/dev/null && command -v apt-get >/dev/null; then
    apt-get install --yes --quiet --no-install-recommends kcat >/dev/null || echo "kcat not installed; its test is skipped" >&2
fi
