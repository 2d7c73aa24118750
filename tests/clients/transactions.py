"""Writes transactions through librdkafka, as the lines of its input say; answers each with a line "done".

transactions.py HOST:PORT TOPIC

  send FROM TO   {"n":FROM} and so on, without TO, within a transaction that begins with the first of them
  commit         ends it; so does
  abort
"""

import sys

from confluent_kafka import Producer


def main(address, topic):
    producer = Producer({"bootstrap.servers": address, "transactional.id": "test", "transaction.timeout.ms": 600_000, "linger.ms": 0})
    producer.init_transactions(60)
    is_open = False
    print("done", flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "send":
            if not is_open:
                producer.begin_transaction()
                is_open = True
            for n in range(int(words[1]), int(words[2])):
                producer.produce(topic, b'{"n":%d}' % n, partition=0)
            # What is not sent would not be in an aborted transaction.
            assert producer.flush(60) == 0
        else:
            {"commit": producer.commit_transaction, "abort": producer.abort_transaction}[words[0]](60)
            is_open = False
        print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
