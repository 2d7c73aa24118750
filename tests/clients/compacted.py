"""A compacted topic as real clients read it: records missing, empty batches in places, a start in the middle of a batch."""

import asyncio
import sys
import time

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as AioPartition
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaConsumer
from kafka import TopicPartition as PythonPartition

TOPIC = "compacted"
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]
ROUNDS, KEYS = 40, 10


def wait(futures):
    return {key: future.result(20) for key, future in futures.items()}


def newest():
    """Key, value and offset of what must be left: the last round, the tombstones, and what was written once."""
    last = {f"key {n}": (f"value {ROUNDS - 1} {n}", (ROUNDS - 1) * KEYS + n) for n in range(KEYS)}
    last["key 3"] = (None, ROUNDS * KEYS)
    return {**last, "once": ("only", ROUNDS * KEYS + 1)}


def produce(address):
    admin = AdminClient({"bootstrap.servers": address})
    config = {"cleanup.policy": "compact,delete", "segment.bytes": "2048", "min.cleanable.dirty.ratio": "0.01"}
    wait(admin.create_topics([NewTopic(TOPIC, 1, 1, config=config)]))
    for round in range(ROUNDS):
        codec, idempotent = CODECS[round % len(CODECS)], round % 2 == 0
        producer = Producer({"bootstrap.servers": address, "compression.type": codec, "enable.idempotence": idempotent})
        for n in range(KEYS):
            producer.produce(TOPIC, key=f"key {n}", value=f"value {round} {n}")
        assert producer.flush(30) == 0
    producer = Producer({"bootstrap.servers": address})
    producer.produce(TOPIC, key="key 3", value=None)
    producer.produce(TOPIC, key="once", value="only")
    # Enough behind them that they stand in a sealed segment.
    for n in range(40):
        producer.produce(TOPIC, key="filler", value="x" * 100)
        producer.flush(30)
    refused = []
    producer.produce(TOPIC, value="no key", on_delivery=lambda error, message: refused.append(error))
    assert producer.flush(30) == 0
    assert refused[0].code() == KafkaError.INVALID_RECORD, refused


def check(found, client):
    """Of (offset, key, value) in the order in which they came."""
    offsets = [offset for offset, _, _ in found]
    assert offsets == sorted(set(offsets)), f"{client}: {offsets}"
    assert len(found) < ROUNDS * KEYS / 2, f"{client}: nothing is compacted: {len(found)}"
    last = {key: (value, offset) for offset, key, value in found}
    expected = newest()
    assert {key: last.get(key) for key in expected} == expected, f"{client}: {last}"


def text(value):
    return None if value is None else value.decode()


def confluent(address, start, **settings):
    consumer = Consumer({"bootstrap.servers": address, "group.id": "c", "enable.partition.eof": True, **settings})
    consumer.assign([TopicPartition(TOPIC, 0, start)])
    found, deadline = [], time.monotonic() + 30
    while time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
            consumer.close()
            return found
        found.append((message.offset(), text(message.key()), text(message.value())))
    raise AssertionError(f"librdkafka does not come to the end: {len(found)} records")


def kafka_python(address, start, **settings):
    consumer = KafkaConsumer(bootstrap_servers=address, consumer_timeout_ms=30_000, **settings)
    partition = PythonPartition(TOPIC, 0)
    consumer.assign([partition])
    consumer.seek(partition, start)
    end, found = consumer.end_offsets([partition])[partition], []
    while consumer.position(partition) < end:
        for message in consumer.poll(1_000).get(partition, []):
            found.append((message.offset, text(message.key), text(message.value)))
    consumer.close()
    return found


async def aiokafka(address, start):
    consumer = AIOKafkaConsumer(bootstrap_servers=address)
    await consumer.start()
    partition = AioPartition(TOPIC, 0)
    consumer.assign([partition])
    consumer.seek(partition, start)
    end, found = (await consumer.end_offsets([partition]))[partition], []
    while await consumer.position(partition) < end:
        for messages in (await consumer.getmany(timeout_ms=1_000)).values():
            found += [(message.offset, text(message.key), text(message.value)) for message in messages]
    await consumer.stop()
    return found


def consume(address):
    read = {
        "librdkafka": confluent(address, 0),
        "kafka-python": kafka_python(address, 0),
        "aiokafka": asyncio.run(aiokafka(address, 0)),
    }
    for client, found in read.items():
        check(found, client)
        assert found == read["librdkafka"], client
    # Offsets of which most are gone.
    for start in (1, 77, ROUNDS * KEYS - 5):
        expected = [record for record in read["librdkafka"] if record[0] >= start]
        assert confluent(address, start) == expected, start
        assert kafka_python(address, start) == expected, start
    # One batch at a time, and some of them are empty.
    assert confluent(address, 0, **{"fetch.message.max.bytes": 1}) == read["librdkafka"]
    assert kafka_python(address, 0, max_partition_fetch_bytes=1) == read["librdkafka"]
    delete(address, read["librdkafka"])


def delete(address, before):
    admin = AdminClient({"bootstrap.servers": address})
    to = ROUNDS * KEYS - 5
    (result,) = wait(admin.delete_records([TopicPartition(TOPIC, 0, to)])).values()
    assert result.low_watermark == to, result
    consumer = Consumer({"bootstrap.servers": address, "group.id": "d"})
    assert consumer.get_watermark_offsets(TopicPartition(TOPIC, 0), timeout=10)[0] == to
    consumer.close()
    assert confluent(address, to) == [record for record in before if record[0] >= to]
    try:
        wait(admin.delete_records([TopicPartition(TOPIC, 0, 1_000_000)]))
        raise AssertionError("deleted beyond the end")
    except KafkaException as error:
        assert error.args[0].name() == "OFFSET_OUT_OF_RANGE", error


if __name__ == "__main__":
    {"produce": produce, "consume": consume}[sys.argv[2]](sys.argv[1])
    print("OK")
