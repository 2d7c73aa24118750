"""kafka-python: every codec, idempotence, administration, offsets by time."""

import sys
import time

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic


def main(address):
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic("python", 2, 1)])
    assert "python" in admin.list_topics()
    for codec in (None, "gzip", "snappy", "lz4", "zstd"):
        topic = f"python-{codec}"
        producer = KafkaProducer(bootstrap_servers=address, compression_type=codec, enable_idempotence=True, acks="all")
        sent = [producer.send(topic, f"value {n}".encode(), headers=[("n", b"1")]) for n in range(200)]
        producer.flush(20)
        assert [future.get(10).offset for future in sent] == list(range(200))
        producer.close()
        consumer = KafkaConsumer(
            topic,
            bootstrap_servers=address,
            group_id=f"group-{topic}",
            auto_offset_reset="earliest",
            consumer_timeout_ms=10_000,
            enable_auto_commit=False,
        )
        values = []
        for record in consumer:
            values.append(record.value)
            if len(values) == 200:
                break
        assert values == [f"value {n}".encode() for n in range(200)], len(values)
        consumer.commit()
        partition = TopicPartition(topic, 0)
        assert consumer.committed(partition) == 200
        assert consumer.beginning_offsets([partition])[partition] == 0
        assert consumer.end_offsets([partition])[partition] == 200
        assert consumer.offsets_for_times({partition: 0})[partition].offset == 0
        assert consumer.offsets_for_times({partition: int(time.time() * 1000) + 10**8})[partition] is None
        consumer.close()
    admin.delete_topics(["python"])
    assert "python" not in admin.list_topics()
    admin.close()


if __name__ == "__main__":
    main(sys.argv[1])
    print("OK")
