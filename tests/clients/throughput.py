"""Produces and consumes through librdkafka and prints what it costs: messages/s, and CPU seconds of the broker per million.

throughput.py HOST:PORT PID [COUNT]
"""

import os
import sys
import time

from confluent_kafka import Consumer, Producer


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(what, pid, count, work):
    cpu, begin = cpu_seconds(pid), time.monotonic()
    work()
    took, cpu = time.monotonic() - begin, cpu_seconds(pid) - cpu
    print(f"{what}: {count / took:,.0f} messages/s, broker {cpu * 1e6 / count:.2f} CPU s per million", flush=True)


def produce(address, topic, count, size, acks):
    producer = Producer(
        {
            "bootstrap.servers": address,
            "acks": acks,
            "linger.ms": 5,
            "batch.num.messages": 10000,
            "queue.buffering.max.messages": 1000000,
            "queue.buffering.max.kbytes": 1000000,
        }
    )
    value = os.urandom(size)
    for _ in range(count):
        while True:
            try:
                producer.produce(topic, value)
                break
            except BufferError:
                producer.poll(0.01)
    assert producer.flush(120) == 0


def consume(address, topic, count):
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": f"measure-{topic}",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            # A client with 100,000 messages in its queue (the default) pauses for a second, which is all that would be measured.
            "queued.min.messages": 10_000_000,
            "queued.max.messages.kbytes": 1_000_000,
        }
    )
    consumer.subscribe([topic])
    found = 0
    while found < count:
        found += len(consumer.consume(2000, 0.1))
    consumer.close()


def main(address, pid, count=2_000_000):
    count = int(count)
    for size in (100, 1024):
        many = count if size == 100 else count // 4
        for acks in ("1", "all"):
            topic = f"measure-{size}-{acks}"
            what = f"produce {size} B, acks={acks}"
            measure(what, pid, many, lambda: produce(address, topic, many, size, acks))
        measure(f"consume {size} B", pid, many, lambda: consume(address, topic, many))


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("OK")
