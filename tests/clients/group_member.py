"""One member of a group: prints a line of JSON for each assignment and each record, commits as it goes."""

import json
import sys

from confluent_kafka import Consumer


def say(**fields):
    print(json.dumps(fields), flush=True)


def main(address, group, topic):
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
        }
    )
    consumer.subscribe(
        [topic],
        on_assign=lambda _, partitions: say(assigned=sorted(p.partition for p in partitions)),
        on_revoke=lambda _, partitions: say(revoked=sorted(p.partition for p in partitions)),
    )
    while True:
        message = consumer.poll(0.1)
        # A line on standard input is the wish to leave.
        if message is None:
            import select

            if select.select([sys.stdin], [], [], 0)[0]:
                break
            continue
        if message.error():
            say(error=str(message.error()))
            continue
        consumer.commit(message, asynchronous=False)
        say(partition=message.partition(), offset=message.offset(), value=message.value().decode())
    consumer.close()
    say(closed=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
