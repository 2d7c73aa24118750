"""Measures the time from a produce call to the first line of a Python handler, through librdkafka.

trigger_latency.py HOST:PORT HTTP_URL [COUNT]
Makes topic, function and trigger `latency`; one record in 2 ms, windows of one record. librdkafka's own delay is in the
figures. Prints the percentiles in microseconds.
"""

import base64
import json
import sys
import time
import urllib.request

from confluent_kafka import Producer

CODE = """
import json
import time


def handler(event, context):
    now = time.time_ns()
    print(now - json.loads(event)[0]["data"])
"""


def call(method, url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read() or b"null")


def main(address, http, count="2000"):
    count = int(count)
    code = base64.b64encode(CODE.encode()).decode()
    call("PUT", f"{http}/v1/topics/latency", {"topic": "latency"})
    function = {"function": "latency", "runtime": "python3", "handler": "latency.handler", "code_base64": code}
    call("PUT", f"{http}/v1/functions/latency", function)
    trigger = {"trigger": "latency", "input": {"topic": "latency"}, "function": "latency", "window": {"count": 1}}
    call("PUT", f"{http}/v1/triggers/latency", trigger)
    producer = Producer({"bootstrap.servers": address, "acks": "1", "linger.ms": 0})
    for _ in range(count):
        producer.produce("latency", value=str(time.time_ns()).encode())
        producer.poll(0)
        time.sleep(0.002)
    assert producer.flush(30) == 0
    deadline = time.monotonic() + 30
    while True:
        lines = call("GET", f"{http}/v1/functions/latency/logs?limit={count}")["lines"]
        times = sorted(int(line["text"]) / 1000 for line in lines)
        if len(times) >= count or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert len(times) == count, f"{len(times)} of {count}"
    print(f"{count} records: p50 {times[count // 2]:.0f} us, p99 {times[count * 99 // 100]:.0f} us, max {times[-1]:.0f} us")


if __name__ == "__main__":
    main(*sys.argv[1:])
