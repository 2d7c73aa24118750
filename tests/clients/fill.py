"""Fills partition 0 of a topic with records of 100 to 200 bytes through librdkafka.

fill.py HOST:PORT TOPIC COUNT
"""

import sys

from confluent_kafka import Producer


def main(address, topic, count):
    failed = []
    settings = {"bootstrap.servers": address, "acks": "all", "linger.ms": 5, "queue.buffering.max.messages": 100_000}
    producer = Producer({**settings, "error_cb": failed.append})
    for n in range(int(count)):
        while True:
            try:
                producer.produce(topic, b"x" * (100 + n % 101), partition=0)
                break
            except BufferError:
                producer.poll(0.01)
    assert producer.flush(120) == 0
    assert not failed, failed
    print("filled", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
