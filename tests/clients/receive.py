"""Reads the first COUNT records of a topic's partition 0 through librdkafka and prints each as a line of JSON.

receive.py HOST:PORT TOPIC COUNT
Bytes are printed as the characters of the same numbers.
"""

import json
import sys

from confluent_kafka import Consumer, TopicPartition


def text(value):
    return None if value is None else value.decode("latin-1")


def main(address, topic, count):
    consumer = Consumer({"bootstrap.servers": address, "group.id": "receive", "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 0)])
    for _ in range(int(count)):
        message = consumer.poll(30)
        assert message is not None, "nothing comes"
        assert not message.error(), message.error()
        headers = [[name, text(value)] for name, value in message.headers() or []]
        record = {"offset": message.offset(), "key": text(message.key()), "value": text(message.value()), "headers": headers}
        print(json.dumps(record), flush=True)
    assert consumer.poll(0.5) is None, "there are more"
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
