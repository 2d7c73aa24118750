"""Reads records from the start of partition 0 and prints each as a line of JSON; values as text, headers as hexadecimal.

read.py HOST:PORT TOPIC COUNT
"""

import json
import sys

from confluent_kafka import Consumer, TopicPartition


def main(address, topic, count):
    consumer = Consumer({"bootstrap.servers": address, "group.id": "read", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    for _ in range(int(count)):
        message = consumer.poll(30)
        assert message is not None, "no record"
        assert not message.error(), message.error()
        headers = [[name, value.hex()] for name, value in message.headers() or []]
        record = {"offset": message.offset(), "value": message.value().decode(), "headers": headers}
        print(json.dumps(record), flush=True)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
