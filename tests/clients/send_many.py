"""Sends COUNT values of 100 bytes through librdkafka, in large batches: without keys, or with KEYS keys in turn.

send_many.py HOST:PORT TOPIC COUNT [KEYS]
"""

import sys

from confluent_kafka import Producer


def main(address, topic, count, keys="0"):
    keys = int(keys)
    failed = []
    producer = Producer(
        {"bootstrap.servers": address, "acks": "all", "linger.ms": 20, "batch.num.messages": 10000, "batch.size": 1000000}
    )
    for n in range(int(count)):
        while True:
            try:
                key = b"%d" % (n % keys) if keys else None
                done = lambda error, _: failed.append(error) if error else None
                producer.produce(topic, b"%0100d" % n, key=key, on_delivery=done)
                break
            except BufferError:
                producer.poll(0.05)
    assert producer.flush(120) == 0
    assert not failed, failed[:10]


if __name__ == "__main__":
    main(*sys.argv[1:])
