"""aiokafka, which speaks old versions: every codec, idempotence, a group that commits."""

import asyncio
import sys

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition


async def round_trip(address, codec, idempotent):
    topic = f"aio-{codec}-{idempotent}"
    producer = AIOKafkaProducer(bootstrap_servers=address, compression_type=codec, enable_idempotence=idempotent)
    await producer.start()
    sent = [await producer.send(topic, f"value {n}".encode(), key=b"k") for n in range(200)]
    assert [(await future).offset for future in sent] == list(range(200))
    await producer.stop()

    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=address,
        group_id=f"group-{topic}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    for n in range(200):
        record = await asyncio.wait_for(consumer.getone(), 20)
        assert (record.offset, record.value) == (n, f"value {n}".encode())
    await consumer.commit()
    assert await consumer.committed(TopicPartition(topic, 0)) == 200
    await consumer.stop()


async def main(address):
    for codec in (None, "gzip", "snappy", "lz4", "zstd"):
        for idempotent in (False, True):
            await round_trip(address, codec, idempotent)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
    print("OK")
