"""Groups of real members: joining is fast, leaving and dying rebalance, commits are where the next member goes on."""

import json
import os
import queue
import subprocess
import sys
import threading
import time

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

# Joining takes two round trips and 100 ms; the rest is a slow machine.
JOIN_SECONDS = 5
# The session time-out of a member is 6 s.
DEATH_SECONDS = 15


class Member:
    def __init__(self, address, group, topic):
        script = os.path.join(os.path.dirname(__file__), "group_member.py")
        command = [sys.executable, script, address, group, topic]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.lines = queue.Queue()
        self.owned, self.records = None, []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "assigned" in said:
                self.owned = said["assigned"]
            elif "revoked" in said:
                self.owned = []
            elif "value" in said:
                self.records.append((said["partition"], said["offset"], said["value"]))
            elif "error" in said:
                print("member:", said["error"], file=sys.stderr)

    def leave(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.wait(20) == 0

    def kill(self):
        self.process.kill()
        self.process.wait(10)


def until(what, seconds, test):
    begin = time.monotonic()
    while not test():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    took = time.monotonic() - begin
    print(f"{what}: {took:.2f} s", flush=True)
    return took


def produce(address, topic, first, count):
    producer = Producer({"bootstrap.servers": address})
    for n in range(first, first + count):
        producer.produce(topic, str(n), partition=n % 4)
    assert producer.flush(20) == 0


def main(address):
    admin = AdminClient({"bootstrap.servers": address})
    for future in admin.create_topics([NewTopic("shared", 4, 1)]).values():
        future.result(10)
    produce(address, "shared", 0, 40)

    one = Member(address, "team", "shared")
    until("the first member owns all", JOIN_SECONDS, lambda: one.owned == [0, 1, 2, 3])
    until("and reads all", JOIN_SECONDS, lambda: len(one.records) == 40)

    two = Member(address, "team", "shared")
    halves = lambda: sorted((one.owned or []) + (two.owned or [])) == [0, 1, 2, 3] and one.owned and two.owned
    until("a second member shares", 2 * JOIN_SECONDS, halves)
    produce(address, "shared", 40, 40)
    until("both read", JOIN_SECONDS, lambda: len(one.records) + len(two.records) == 80)
    assert two.records, "the second member reads"

    two.leave()
    until("the one that is left owns all", JOIN_SECONDS, lambda: one.owned == [0, 1, 2, 3])

    three = Member(address, "team", "shared")
    until("a third member shares", 2 * JOIN_SECONDS, lambda: three.owned and len(one.owned) == 2)
    one.kill()
    until("the survivor of a kill owns all", DEATH_SECONDS, lambda: three.owned == [0, 1, 2, 3])
    produce(address, "shared", 80, 40)
    until("and reads all that is new", JOIN_SECONDS, lambda: len(three.records) == 40)
    three.leave()

    produce(address, "shared", 120, 4)
    four = Member(address, "team", "shared")
    until("the next member goes on at the commits", JOIN_SECONDS, lambda: len(four.records) >= 4)
    four.leave()
    values = sorted(int(value) for member in (one, two, three, four) for _, _, value in member.records)
    assert values == list(range(124)), "each record once, as each was committed before the next"


if __name__ == "__main__":
    main(sys.argv[1])
    print("OK")
