#!/usr/bin/env python3
"""Runs Tripline and other brokers in turn on this machine and prints what each does, and at what cost.

Every server is started by this program, on free loopback ports and with its data under TMPDIR, and stays up for all rounds of
one durability; a round before the first is not counted, so that a virtual machine is warm. In each round a load goes to one
server after the other (A B C, B C A, ...), behind a sync, so that nobody pays for another's write-back.

Durability `cache` answers before the disk has the records, as is usual (Tripline acks=1; Kafka acks=1, to which acks=all adds
nothing on one node; Redis appendfsync everysec; NATS fsync every 2 min; Tansu in memory). `disk` answers behind an fsync
(Tripline acks=all; Kafka acks=all and log.flush.interval.messages=1; Redis appendfsync always; NATS sync_interval always;
Tansu on SQLite).

Client `thin` sends prepared bytes a few requests ahead of the answers and only counts what comes back, so that the server is
what is measured: tripline-bench for all that speak Kafka's protocol, a few lines below for Redis and NATS. `librdkafka`, from
Python, is what an application uses: it is itself the limit, so that the server's CPU time is the figure to look at.
"""

import argparse
import collections
import datetime
import os
import pathlib
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from compare_servers import ROOT, SERVERS, TICKS_PER_SECOND, Failed, Missing, Tripline, output, until

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
EXAMPLES = """examples (tests/clients/setup.sh DIR fetches Kafka and librdkafka):
  cargo build --release -p tripline -p tripline-tools && python3 tools/compare.py --quick
  python3 tools/compare.py --rounds 5 --python DIR/bin/python --kafka-jars DIR/kafka
  python3 tools/compare.py --only tripline,redis --durability disk --scale 0.1
"""
# Records of a load at --scale 1, by size; few for the disk, where a slow server does some ten thousand a second.
COUNTS = {
    ("cache", "thin"): {1024: 500_000, 100: 3_000_000},
    ("cache", "librdkafka"): {1024: 500_000, 100: 2_000_000},
    ("disk", "thin"): {1024: 300_000, 100: 500_000},
    ("disk", "librdkafka"): {1024: 100_000, 100: 300_000},
}
COUNT_MIN = 10_000
COLUMNS = "load | server | k records/s | MB/s | CPU s per million | Tripline : it, records/s | Tripline : it, CPU | others busy"
# What may go wrong with a server or a client.
FAILURES = (OSError, Failed, subprocess.SubprocessError)
Sample = collections.namedtuple("Sample", "rate cpu others")


def machine_busy():
    """Seconds that all processors together have been busy."""
    user, nice, system, _idle, _wait, *interrupts = map(int, pathlib.Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts)) / TICKS_PER_SECOND


def measure(server, client, verb, topic, size, count):
    """Behind a sync, so that what others wrote is not written back meanwhile."""
    os.sync()
    begun, cpu, busy, own = time.monotonic(), server.cpu(), machine_busy(), sum(os.times()[:4])
    records, seconds = server.run(client, verb, topic, size, count)
    cpu = server.cpu() - cpu
    others = machine_busy() - busy - cpu - (sum(os.times()[:4]) - own)
    return Sample(records / seconds, cpu * 1e6 / records, max(0, others) / (time.monotonic() - begun))


class Comparison:
    """Samples of all rounds, by durability, client, verb, size and server."""

    def __init__(self, options, classes):
        self.options, self.classes = options, classes
        self.samples, self.commands, self.broken = {}, {}, {}

    def run(self, durability):
        """All rounds of one durability, with all servers up."""
        servers = {}
        with tempfile.TemporaryDirectory(prefix="tripline-compare-") as directory:
            try:
                for name, kind in self.classes.items():
                    try:
                        servers[name] = kind(self.options, durability == "disk", pathlib.Path(directory, name))
                    except FAILURES as error:
                        self.broken[kind.name] = f"start: {error}"
                        continue
                    self.commands[durability, kind.name] = shlex.join(servers[name].command).replace(directory, "DIR")
                for name, server in servers.items():
                    self.attempt(server, "start", lambda server=server: until("listening", server.look))
                for number in range(0 if self.options.warm else 1, self.options.rounds + 1):
                    for client in self.options.clients:
                        self.round(durability, number, client, [one for one in servers.values() if client in one.clients])
            finally:
                # To the last, whoever is impatient.
                impatient = signal.signal(signal.SIGTERM, signal.SIG_IGN), signal.signal(signal.SIGINT, signal.SIG_IGN)
                for server in servers.values():
                    try:
                        server.stop()
                    except FAILURES as error:
                        self.broken.setdefault(server.name, f"stop: {error}")
                signal.signal(signal.SIGTERM, impatient[0])
                signal.signal(signal.SIGINT, impatient[1])

    def round(self, durability, number, client, servers):
        if not servers:
            return
        verbs = ("produce", "consume") if durability == "cache" else ("produce",)
        for size, count in COUNTS[durability, client].items():
            topic, count = f"{client}-{size}-{number}", max(COUNT_MIN, int(count * self.options.scale))
            loads = {verb: (client, verb, topic, size, count) for verb in verbs}
            for key in [(durability, client, verb, size, server.name) for verb in verbs for server in servers]:
                self.samples.setdefault(key, [])  # in the order of the table
            # Who comes first may find memory that is cheaper to get.
            turn = number % len(servers)
            in_turn = servers[turn:] + servers[:turn]
            for server in in_turn:
                self.attempt(server, f"make {topic}", lambda server=server: server.make(topic, size))
            for verb, load in loads.items():
                for server in in_turn:
                    sample = self.attempt(server, f"{verb} {topic}", lambda server=server, load=load: measure(server, *load))
                    if number and sample:
                        self.samples[durability, client, verb, size, server.name].append(sample)
            for server in in_turn:
                self.attempt(server, f"drop {topic}", lambda server=server: server.drop(topic))
        print(f"{durability}, {client}: round {number} of {self.options.rounds} done", file=sys.stderr, flush=True)

    def attempt(self, server, what, act):
        """A server that fails is left alone from then on; the others go on."""
        if server.name in self.broken:
            return None
        try:
            return act()
        except FAILURES as error:
            self.broken[server.name] = f"{what}: {error}; its log ends with {server.log.read_text(errors='replace')[-300:]!r}"
            return None

    def table(self):
        yield f"| {COLUMNS} |"
        yield "|" + "---|" * (COLUMNS.count("|") + 1)
        for (durability, client, verb, size, name), found in self.samples.items():
            if not found:
                continue
            ours = self.samples[durability, client, verb, size, Tripline.name] if name != Tripline.name else []
            pairs = list(zip(ours, found))
            cells = [
                f"{verb} {size} B, {durability}, {client}",
                name,
                spread([one.rate / 1e3 for one in found]),
                spread([one.rate * size / 1e6 for one in found]),
                spread([one.cpu for one in found]),
                spread([us.rate / it.rate for us, it in pairs]),
                spread([us.cpu / it.cpu for us, it in pairs]),
                spread([one.others for one in found]),
            ]
            yield f"| {' | '.join(cells)} |"


def figure(value):
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def spread(values):
    """Median, least and most."""
    if not values:
        return "–"
    median, least, most = (figure(value) for value in (statistics.median(values), min(values), max(values)))
    return median if len(values) == 1 else f"{median} ({least}–{most})"


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="Tripline alone, one short round: shows that this program works")
    add("--rounds", type=int, default=3, metavar="N", help="rounds that count (3)")
    add("--scale", type=float, default=1.0, metavar="X", help="records of each load, times X (1)")
    add("--only", default=",".join(SERVERS), metavar="NAMES", help=f"of {','.join(SERVERS)}; Tripline always runs")
    add("--durability", choices=("cache", "disk", "both"), default="both", help="both unless told otherwise")
    add("--seconds", type=float, default=10, metavar="S", help="end a load on Redis or NATS then, with what it did (10)")
    add("--timeout", type=float, default=300, metavar="S", help="seconds that one load may take (300)")
    add("--tripline", type=pathlib.Path, default=TARGET / "tripline", metavar="PATH", help="its release binary (%(default)s)")
    add("--bench", type=pathlib.Path, default=TARGET / "tripline-bench", metavar="PATH", help="the thin client (%(default)s)")
    add("--python", default=sys.executable, metavar="PATH", help="a Python with confluent_kafka, for librdkafka")
    add("--kafka-jars", default="kafka", metavar="DIR", help="the jars of Kafka 4 with what they need")
    add("--redis", default="redis-server", metavar="PATH", help="of redis-server")
    add("--nats", default="nats-server", metavar="PATH", help="of nats-server")
    add("--tansu", default="tansu", metavar="PATH", help="of tansu")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(SERVERS):
        parser.error(f"--only: found {','.join(sorted(unknown))}, allowed: {','.join(SERVERS)}")
    if min(options.rounds, options.scale, options.seconds, options.timeout) <= 0:
        parser.error("--rounds, --scale, --seconds and --timeout: allowed: more than 0")
    options.only = {"tripline", *options.only.split(",")}
    options.clients, options.warm = ["thin"], True
    if options.quick:
        options.only, options.rounds, options.scale, options.warm = {"tripline"}, 1, 0.02, False
    return options


def at_hand(options):
    """The servers that can run, and their versions; says what is missing of the others."""
    classes, versions = {}, {}
    for name in [name for name in SERVERS if name in options.only]:
        try:
            versions[SERVERS[name].name] = SERVERS[name].version(options)
            classes[name] = SERVERS[name]
        except (Missing, *FAILURES) as missing:
            print(f"SKIP {SERVERS[name].name}: {missing}")
    if not options.quick:
        try:
            told = output(options.python, "-c", "import confluent_kafka; print(confluent_kafka.libversion()[0])")
            options.clients.append("librdkafka")
            versions["librdkafka"] = told
        except FAILURES as error:
            print(f"SKIP librdkafka: --python names a Python that has confluent_kafka: {str(error).strip()[-300:]}")
    return classes, versions


def main():
    options = parse()
    # So that servers are ended then as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to end"))
    classes, versions = at_hand(options)
    if "tripline" not in classes:
        return 1
    comparison = Comparison(options, classes)
    for durability in ("cache", "disk") if options.durability == "both" else (options.durability,):
        try:
            comparison.run(durability)
        except FAILURES as error:
            # What was measured until then is worth its table.
            comparison.broken[durability] = str(error)
    print(*comparison.table(), "", sep="\n")
    print(f"Medians (least–most) of {options.rounds} rounds in turn. k: thousand. MB: 10^6 B of values. CPU: of the server.")
    print("Others busy: processors that neither server nor client used.")
    system = f"{platform.machine()}, {os.cpu_count()} processors, {platform.system()} {platform.release()}"
    print(f"{datetime.date.today()}; {system}; {', '.join(map(' '.join, versions.items()))}")
    print("Command:", shlex.join(sys.argv))
    for (durability, name), command in comparison.commands.items():
        print(f"{name}, {durability}: {command}")
    for name, why in comparison.broken.items():
        print(f"FAILED {name}: {why}")
    return 1 if comparison.broken else 0


if __name__ == "__main__":
    sys.exit(main())
