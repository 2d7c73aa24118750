"""An idempotent producer that goes on while its broker is killed and comes back; then everything is read and compared.

kills.py HOST:PORT TOPIC PARTITIONS
Prints a line when the first record is acknowledged, produces until it reads a line, then prints counts as JSON.
"""

import json
import sys
import threading

from confluent_kafka import Consumer, Producer, TopicPartition

# It would tell of every lost connection.
SETTINGS = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50, "log_level": 0}


class Load:
    def __init__(self, address, topic):
        self.topic, self.acknowledged, self.failed, self.sent = topic, [], [], 0
        self.stop, self.begun = threading.Event(), threading.Event()
        self.producer = Producer(
            {
                "bootstrap.servers": address,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 2,
                "retry.backoff.ms": 20,
                "queue.buffering.max.messages": 5000,
                "error_cb": lambda error: self.failed.append(str(error)) if error.fatal() else None,
                **SETTINGS,
            }
        )

    def delivered(self, error, message):
        if error:
            self.failed.append(str(error))
        else:
            self.acknowledged.append((message.partition(), message.offset(), int(message.value()[:12])))
            self.begun.set()

    def run(self):
        while not self.stop.is_set():
            for _ in range(50):
                try:
                    self.producer.produce(self.topic, b"%012d" % self.sent + b"x" * 100, on_delivery=self.delivered)
                    self.sent += 1
                except BufferError:
                    break
            self.producer.poll(0.005)
        assert self.producer.flush(30) == 0, "records are still waiting"


def read_all(address, topic, partitions):
    consumer = Consumer({"bootstrap.servers": address, "group.id": "kills", "enable.auto.commit": False, **SETTINGS})
    found = {}
    for partition in range(partitions):
        place = TopicPartition(topic, partition, 0)
        begin, end = consumer.get_watermark_offsets(place, timeout=20)
        assert begin == 0, (partition, begin)
        consumer.assign([place])
        records = []
        while len(records) < end:
            messages = consumer.consume(5000, 20)
            assert messages, f"partition {partition} stands still at {len(records)} of {end}"
            for message in messages:
                assert not message.error(), message.error()
                records.append((message.offset(), int(message.value()[:12])))
        assert [offset for offset, _ in records] == list(range(end)), f"partition {partition} has gaps"
        found[partition] = [value for _, value in records]
    consumer.close()
    return found


def compare(load, found):
    for partition, offset, value in load.acknowledged:
        assert offset < len(found[partition]), f"lost: {value}, acknowledged at {partition}/{offset}"
        assert found[partition][offset] == value, f"{partition}/{offset}: {found[partition][offset]} instead of {value}"
    for partition, values in found.items():
        assert all(a < b for a, b in zip(values, values[1:])), f"partition {partition} is out of order or has a value twice"
    total = [value for values in found.values() for value in values]
    assert len(set(total)) == len(total), "a value is in two partitions"


def main(address, topic, partitions):
    load = Load(address, topic)
    thread = threading.Thread(target=load.run)
    thread.start()
    assert load.begun.wait(30), "nothing is acknowledged"
    print("producing", flush=True)
    sys.stdin.readline()
    load.stop.set()
    thread.join()
    assert not load.failed, load.failed[:10]
    assert len(load.acknowledged) == load.sent, (len(load.acknowledged), load.sent)
    found = read_all(address, topic, int(partitions))
    compare(load, found)
    print(json.dumps({"acknowledged": len(load.acknowledged), "found": sum(map(len, found.values()))}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
