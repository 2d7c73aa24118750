"""librdkafka through confluent-kafka: every codec, idempotence, administration, offsets by time."""

import sys
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def wait(futures):
    return {key: future.result(20) for key, future in futures.items()}


def produce(address, topic, count, **settings):
    failed = []
    producer = Producer({"bootstrap.servers": address, "linger.ms": 5, **settings})
    for n in range(count):
        producer.produce(
            topic,
            key=f"key {n % 7}",
            value=f"value {n} " + "x" * 100,
            headers=[("n", str(n)), ("n", "again"), ("none", None)],
            on_delivery=lambda error, message: failed.append(error) if error else None,
        )
        producer.poll(0)
    assert producer.flush(30) == 0
    assert not failed, failed


def consume_all(address, topic, count, group):
    consumer = Consumer(
        {"bootstrap.servers": address, "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )
    consumer.subscribe([topic])
    found, deadline = [], time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        assert not message.error(), message.error()
        found.append(message)
    consumer.close()
    assert len(found) == count, f"{len(found)} of {count} records of {topic}"
    return found


def main(address):
    admin = AdminClient({"bootstrap.servers": address})
    wait(admin.create_topics([NewTopic("basic", 3, 1, config={"retention.ms": "3600000"})]))
    try:
        wait(admin.create_topics([NewTopic("basic", 3, 1)]))
        raise AssertionError("made twice")
    except KafkaException as error:
        assert error.args[0].name() == "TOPIC_ALREADY_EXISTS", error
    try:
        wait(admin.create_topics([NewTopic("wrong", 1, 1, config={"retention.ms": "soon"})]))
        raise AssertionError("a wrong setting was taken")
    except KafkaException as error:
        assert error.args[0].name() == "INVALID_CONFIG" and "retention.ms" in str(error), error

    metadata = admin.list_topics(timeout=10)
    assert len(metadata.topics["basic"].partitions) == 3, metadata.topics
    assert len(metadata.brokers) == 1

    settings = wait(admin.describe_configs([ConfigResource(ConfigResource.Type.TOPIC, "basic")]))
    (settings,) = settings.values()
    assert settings["retention.ms"].value == "3600000" and not settings["retention.ms"].is_default
    assert settings["segment.bytes"].is_default

    for codec in CODECS:
        for idempotent in (False, True):
            topic = f"codec-{codec}-{idempotent}"
            produce(address, topic, 500, **{"compression.type": codec, "enable.idempotence": idempotent})
            found = consume_all(address, topic, 500, f"group-{topic}")
            assert [message.offset() for message in found] == list(range(500))
            assert found[17].value().startswith(b"value 17 ") and found[17].key() == b"key 3"
            assert found[17].headers() == [("n", b"17"), ("n", b"again"), ("none", None)]
    for acks in ("0", "1", "all"):
        produce(address, f"acks-{acks}", 100, acks=acks)
        consume_all(address, f"acks-{acks}", 100, f"group-acks-{acks}")

    produce(address, "times", 10)
    between = int(time.time() * 1000) + 1
    time.sleep(0.01)
    produce(address, "times", 10)
    partition = TopicPartition("times", 0)
    for spec, expected in [
        (OffsetSpec.earliest(), 0),
        (OffsetSpec.latest(), 20),
        (OffsetSpec.for_timestamp(between), 10),
        (OffsetSpec.for_timestamp(between + 10**9), -1),
    ]:
        (found,) = wait(admin.list_offsets({partition: spec})).values()
        assert found.offset == expected, (spec, found.offset, expected)
    (found,) = wait(admin.list_offsets({partition: OffsetSpec.max_timestamp()})).values()
    assert 10 <= found.offset < 20, found.offset

    groups = admin.list_consumer_groups(request_timeout=10).result(10)
    assert any(group.group_id == "group-acks-all" for group in groups.valid), groups.valid
    (described,) = wait(admin.describe_consumer_groups(["group-acks-all"])).values()
    assert described.state.name in ("EMPTY", "DEAD"), described.state

    wait(admin.delete_topics(["basic"]))
    assert "basic" not in admin.list_topics(timeout=10).topics


if __name__ == "__main__":
    main(sys.argv[1])
    print("OK")
