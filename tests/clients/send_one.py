"""Sends one record through librdkafka.

send_one.py HOST:PORT TOPIC KEY VALUE TIMESTAMP_MS [NAME=VALUE | NAME]...
Characters below 256 stand for bytes; a header without = has no value.
"""

import sys

from confluent_kafka import Producer


def header(text):
    name, separator, value = text.partition("=")
    return name, value.encode("latin-1") if separator else None


def main(address, topic, key, value, timestamp_ms, *headers):
    failed = []
    producer = Producer({"bootstrap.servers": address, "acks": "all"})
    producer.produce(
        topic,
        key=key.encode("latin-1"),
        value=value.encode("latin-1"),
        timestamp=int(timestamp_ms),
        headers=[header(text) for text in headers],
        on_delivery=lambda error, _: failed.append(error) if error else None,
    )
    assert producer.flush(30) == 0
    assert not failed, failed


if __name__ == "__main__":
    main(*sys.argv[1:])
