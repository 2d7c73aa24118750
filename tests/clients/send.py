"""Sends values through librdkafka and prints when the last one was acknowledged.

send.py HOST:PORT TOPIC VALUE...
"""

import json
import sys
import time

from confluent_kafka import Producer


def main(address, topic, *values):
    failed = []
    producer = Producer({"bootstrap.servers": address, "acks": "all"})
    for value in values:
        producer.produce(topic, value, on_delivery=lambda error, _: failed.append(error) if error else None)
    assert producer.flush(30) == 0
    assert not failed, failed
    print(json.dumps({"acknowledged_ms": int(time.time() * 1000)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
