"""The servers that compare.py runs, and the clients that put load on them.

A server is a process of its own on free loopback ports, in a directory of its own, ended by its process id. Its class says
how it is started for a durability, and how a topic is made, filled, read and dropped.
"""

import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
START_SECONDS = 60
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Requests without an answer; tripline-bench has as many.
AHEAD = 4
# Of values in a request to Redis and NATS: both do less with ten times as much. NATS takes at most 10,000 records ahead.
REQUEST_BYTES = 100_000
# Ends the value of each record for Redis and NATS. It is nowhere else in their protocols: who counts it counts records.
MARK = b"!"
LIBRDKAFKA = """
import sys, time
sys.path.insert(0, sys.argv[1])
import throughput
verb, address, topic, count, size, acks = sys.argv[2:]
begun = time.monotonic()
rest = (int(size), acks) if verb == "produce" else ()
getattr(throughput, verb)(address, topic, int(count), *rest)
print(f"{verb}d {count} records: {int(count) / (time.monotonic() - begun):.0f} records/s")
"""


class Missing(Exception):
    """What a server or a client needs and this machine lacks."""


class Failed(Exception):
    """A server or a client did not do what it was asked."""


def found(program, option):
    if not shutil.which(program):
        raise Missing(f"no program {program}: {option} says where it is")
    return str(program)


def output(*command, patience=START_SECONDS):
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    if done.returncode:
        raise Failed(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout.strip()


def until(what, attempt):
    """Tries until it works: a server of others sends no event to wait for."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return attempt()
        except (OSError, Failed) as error:
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not within {START_SECONDS} s: {error}") from error
            time.sleep(0.02)


class Line:
    """A connection of the thin clients for Redis and NATS."""

    def __init__(self, port, patience=START_SECONDS):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer, self.marks = bytearray(1 << 20), 0

    def await_marks(self, mark, wanted):
        """Receives until so many more marks, of one byte, are there; answers what came last."""
        length = 0
        while self.marks < wanted:
            length = self.socket.recv_into(self.buffer)
            if not length:
                raise Failed("the server hung up")
            self.marks += self.buffer.count(mark, 0, length)
        self.marks -= wanted
        return self.buffer[:length].decode(errors="replace")

    def ask(self, request, mark=b"\n"):
        self.socket.sendall(request)
        answer = self.await_marks(mark, 1)
        self.marks = 0
        if answer.startswith("-") or '"error"' in answer:
            raise Failed(answer.strip())
        return answer

    def pipeline(self, request, times, mark, marks, seconds_max):
        """Sends a request so often, or so long, AHEAD of the answers, each of which has so many marks; answers how often it
        was sent and the seconds."""
        begun = time.monotonic()
        sent = answered = 0
        while answered < sent or sent < times:
            if sent == times or sent - answered == AHEAD:
                self.await_marks(mark, marks)
                answered += 1
            else:
                self.socket.sendall(request)
                sent += 1
                if time.monotonic() - begun > seconds_max:
                    times = sent
        return sent, time.monotonic() - begun


class Server:
    """A process of its own, in a directory of its own."""

    clients = ("thin",)

    @classmethod
    def version(cls, options):
        """Of the program that the option of its name tells."""
        program = getattr(options, cls.option)
        told = output(found(program, f"--{cls.option}"), "--version")
        if number := re.search(r"\d+\.\d+\.\d+( \(\w+\))?", told):
            return number[0]
        raise Missing(f"{program} --version tells no version: {told[:80]!r}")

    def __init__(self, options, disk, directory):
        self.options, self.disk, self.directory = options, disk, directory
        self.filled = {}
        directory.mkdir()
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            self.port, self.second_port = one.getsockname()[1], two.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.command = [str(word) for word in self.prepared_command()]
        self.log = directory / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def look(self):
        """That it listens."""
        if self.process.poll() is not None:
            raise subprocess.SubprocessError("it ended by itself")
        self.line()

    def line(self):
        socket.create_connection(("127.0.0.1", self.port), START_SECONDS).close()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu(self):
        """Seconds of the process, to the nanosecond, and of children that ended: Redis rewrites its file in one."""
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return time.clock_gettime((~self.process.pid << 3) | 2) + (int(stat[13]) + int(stat[14])) / TICKS_PER_SECOND


class KafkaApi(Server):
    """What speaks Kafka's protocol: the same clients measure all of them."""

    clients = ("thin", "librdkafka")

    def run(self, client, verb, topic, size, count):
        acks = "all" if self.disk else "1"
        command = [self.options.bench, verb, "--kafka", self.address, "--topic", topic]
        command += ["--count", count, "--size", size, "--acks", acks]
        if client == "librdkafka":
            command = [self.options.python, "-c", LIBRDKAFKA, ROOT / "tests/clients", verb, self.address]
            command += [topic, count, size, acks]
        said = output(*map(str, command), patience=self.options.timeout)
        records, rate = map(int, re.search(r"d (\d+) records.*: (\d+) records/s", said).groups())
        return records, records / rate

    def make(self, topic, size):
        """A first batch, which makes the topic, shows that it is ready; it is not measured."""
        until(f"topic {topic}", lambda: self.run("thin", "produce", topic, size, 1))

    def drop(self, topic):
        """DeleteTopics, version 1."""
        request = struct.pack(f">hhihih{len(topic)}si", 20, 1, 1, -1, 1, len(topic), topic.encode(), 30_000)
        with socket.create_connection(("127.0.0.1", self.port), START_SECONDS) as line, line.makefile("rb") as answers:
            line.sendall(struct.pack(">i", len(request)) + request)
            answer = answers.read(struct.unpack(">i", answers.read(4))[0])
        if answer[-2:] != b"\0\0":
            raise Failed(f"topic {topic} was not deleted: {answer!r}")


class Tripline(KafkaApi):
    name, option = "Tripline", "tripline"

    @classmethod
    def version(cls, options):
        found(options.bench, "--bench")
        return super().version(options)

    def prepared_command(self):
        return [self.options.tripline, "serve", "--data", "data", "--kafka", self.address, "--http", "127.0.0.1:0"]


class Kafka(KafkaApi):
    name, option = "Apache Kafka", "kafka"
    # As its own start script has it; the delay of new groups is Tripline's.
    JAVA = "java -Xms1G -Xmx1G -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35".split()
    PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{0.second_port}
listeners=PLAINTEXT://{0.address},CTL://127.0.0.1:{0.second_port}
controller.listener.names=CTL
listener.security.protocol.map=CTL:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={0.directory}/data
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=100
log.segment.delete.delay.ms=1000
"""

    @classmethod
    def version(cls, options):
        if not shutil.which("java"):
            raise Missing("no program java on the PATH of this shell")
        for jar in pathlib.Path(options.kafka_jars).glob("kafka-server-4*.jar"):
            return jar.stem.rsplit("-", 1)[1]
        raise Missing(f"no kafka-server-4*.jar in {options.kafka_jars}: tests/clients/setup.sh DIR fetches it to DIR/kafka where mvn is")

    def prepared_command(self):
        flush = "log.flush.interval.messages=1\n" if self.disk else ""
        settings = self.directory / "server.properties"
        settings.write_text(self.PROPERTIES.format(self) + flush)
        java = [*self.JAVA, "-cp", f"{self.options.kafka_jars}/*"]
        output(*java, "kafka.tools.StorageTool", "format", "-t", "dHJpcGxpbmUtZ29sZGVuIQ", "-c", str(settings))
        return [*java, "kafka.Kafka", settings]


class Tansu(KafkaApi):
    name, option = "Tansu", "tansu"

    def prepared_command(self):
        url, engine = f"tcp://{self.address}", "sqlite://tansu.db" if self.disk else "memory://tansu/"
        urls = ["--listener-url", url, "--advertised-listener-url", url]
        return [self.options.tansu, "broker", *urls, "--storage-engine", engine]


class Piped(Server):
    """What takes requests one behind the other: the client is a line."""

    def run(self, _client, verb, topic, size, count):
        line, each = self.line(), REQUEST_BYTES // size
        if verb == "consume":
            times, took = line.pipeline(self.consume(topic, each), self.filled[topic], MARK, each, self.options.seconds)
        else:
            request = self.produce(topic, b"x" * (size - 1) + MARK) * each
            times, took = line.pipeline(request, count // each, self.ack_mark, each, self.options.seconds)
            self.filled[topic] = times
            if (length := self.length(topic)) != times * each:
                raise Failed(f"{length} records are in {topic}, {times * each} were acknowledged")
        return times * each, took


class Redis(Piped):
    name, option, ack_mark = "Redis Streams", "redis", b"$"

    def prepared_command(self):
        sync = ["--appendonly", "yes", "--appendfsync", "always" if self.disk else "everysec", "--save", ""]
        return [self.options.redis, "--bind", "127.0.0.1", "--port", self.port, "--dir", self.directory, *sync]

    def line(self):
        line = Line(self.port, self.options.timeout)
        line.ask(self.words("PING"))
        return line

    @staticmethod
    def words(*words):
        words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)

    def make(self, topic, _size):
        """The first record makes it."""

    def consume(self, topic, each):
        self.line().ask(self.words("XGROUP", "CREATE", topic, "readers", 0))
        how = ("GROUP", "readers", "reader", "COUNT", each, "NOACK", "STREAMS", topic, ">")
        return self.words("XREADGROUP", *how)

    def produce(self, topic, value):
        return self.words("XADD", topic, "*", "v", value)

    def length(self, topic):
        return int(self.line().ask(self.words("XLEN", topic))[1:])

    def drop(self, topic):
        self.line().ask(self.words("DEL", topic))


class Nats(Piped):
    name, option, ack_mark = "NATS JetStream", "nats", b"}"

    def prepared_command(self):
        sync = ", sync_interval: always" if self.disk else ""
        settings = f'listen: "{self.address}"\njetstream {{ store_dir: "{self.directory}/data"{sync} }}\n'
        (self.directory / "nats.conf").write_text(settings)
        return [self.options.nats, "-c", self.directory / "nats.conf"]

    def line(self):
        line = Line(self.port, self.options.timeout)
        line.await_marks(b"\n", 1)
        line.ask(b'CONNECT {"verbose":false}\r\nSUB answers 1\r\nPING\r\n')
        return line

    @staticmethod
    def publish(subject, body):
        return b"PUB %b answers %d\r\n%b\r\n" % (subject.encode(), len(body), body)

    def api(self, subject, **body):
        return self.line().ask(self.publish(f"$JS.API.{subject}", json.dumps(body).encode()), b"}")

    def make(self, topic, _size):
        self.api(f"STREAM.CREATE.{topic}", name=topic, subjects=[topic], storage="file")

    def consume(self, topic, each):
        reader = {"durable_name": "reader", "ack_policy": "none"}
        self.api(f"CONSUMER.CREATE.{topic}.reader", stream_name=topic, config=reader)
        return self.publish(f"$JS.API.CONSUMER.MSG.NEXT.{topic}.reader", b'{"batch":%d}' % each)

    produce = publish

    def length(self, topic):
        return int(re.search(r'"messages":(\d+)', self.api(f"STREAM.INFO.{topic}"))[1])

    def drop(self, topic):
        self.api(f"STREAM.DELETE.{topic}")


SERVERS = {kind.option: kind for kind in (Tripline, Kafka, Redis, Nats, Tansu)}
