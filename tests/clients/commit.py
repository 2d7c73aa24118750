"""Commits offsets as a consumer that reads no more: for each line of standard input, an offset, says whether it is committed.

commit.py HOST:PORT GROUP TOPIC
"""

import json
import sys

from confluent_kafka import Consumer, KafkaException, TopicPartition


def say(**fields):
    print(json.dumps(fields), flush=True)


def main(address, group, topic):
    consumer = Consumer({"bootstrap.servers": address, "group.id": group, "enable.auto.commit": False})
    for line in sys.stdin:
        wanted = TopicPartition(topic, 0, int(line))
        try:
            (done,) = consumer.commit(offsets=[wanted], asynchronous=False)
            (kept,) = consumer.committed([TopicPartition(topic, 0)], timeout=20)
            say(error=str(done.error) if done.error else None, committed=kept.offset)
        except KafkaException as error:
            say(error=error.args[0].name(), committed=None)
    consumer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
