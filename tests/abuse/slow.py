"""Slow clients and floods: others are served meanwhile, memory stays, and the slow ones end.

While a crowd does its worst, one client reads a small object again and again. How long that takes
is what others feel; on a machine that shares its processors with the crowd it has a wide limit.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tests.abuse.client import Broken, Connection, head, request
from tests.abuse.report import DIRECT, Row
from tests.support.chain import Chain
from tests.support.memory import MB

BUCKET = "abuse-slow"
VALUE = b"small"

Crowd = Callable[[int, float], list[Connection]]


@dataclass(frozen=True)
class Abuse:
    """A crowd, and what it may cost: the 99th percentile of others in ms, and memory in MB."""

    name: str
    crowd: Crowd
    p99: float
    megabytes: int


def _many(count: int, data: bytes, window: int = 0) -> Crowd:
    """So many connections that send this much and then nothing."""

    def crowd(port: int, end: float) -> list[Connection]:
        connections = []
        for _ in range(count):
            if time.monotonic() > end:
                break
            with suppress(OSError):
                connections.append(Connection(port, timeout=5, window=window))
                connections[-1].send(data)
        return connections

    return crowd


def _dripping(count: int, start: bytes) -> Crowd:
    """So many connections that go on with a byte now and then."""

    def crowd(port: int, end: float) -> list[Connection]:
        connections = _many(count, start)(port, end)
        while time.monotonic() < end:
            time.sleep(0.5)
            for connection in connections:
                with suppress(OSError):
                    connection.send(b"x")
        return connections

    return crowd


def _repeating(data: bytes, threads: int = 4) -> Crowd:
    """Clients that send a request after another as fast as they are answered."""

    def run(port: int, end: float) -> None:
        connection = None
        while time.monotonic() < end:
            try:
                connection = connection or Connection(port, timeout=5)
                connection.send(data)
                answer = connection.answer()
                if answer and answer.headers.get("connection") != "close":
                    continue
            except (Broken, OSError):
                pass
            if connection:
                connection.close()
            connection = None

    def crowd(port: int, end: float) -> list[Connection]:
        clients = [threading.Thread(target=run, args=(port, end)) for _ in range(threads)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        return []

    return crowd


_random = "".join(f"X-{n}: {'v' * 60}\r\n" for n in range(90))

ABUSES = (
    Abuse("200 slow heads", _dripping(200, b"GET /kv/b/k HTTP/1.1\r\nHost: poky\r\nX: "), 200, 20),
    Abuse(
        "200 slow bodies",
        _dripping(200, head("PUT", f"/kv/{BUCKET}/slow", 1000, host="poky")),
        200,
        20,
    ),
    Abuse(
        "200 slow readers of 1 MB",
        _many(200, head("GET", f"/kv/{BUCKET}/big"), window=4096),
        3000,  # 200 MB of values are fetched meanwhile
        300,
    ),
    Abuse("2,000 idle connections", _many(2000, b""), 200, 30),
    Abuse("heads of 15 kB", _repeating(head("GET", "/status")[:-2] + b"X: " + b"y" * 7000
          + b"\r\nZ: " + b"y" * 7000 + b"\r\n\r\n"), 400, 20),
    Abuse("heads of 90 fields", _repeating(head("GET", "/status")[:-2] + _random.encode()
          + b"\r\n"), 400, 20),
    Abuse("heads of 10,000 fields", _repeating(head("GET", "/status")[:-2]
          + b"".join(b"X%d: x\r\n" % n for n in range(10_000)) + b"\r\n"), 400, 20),
    Abuse("404 flood", _repeating(head("GET", f"/kv/{BUCKET}/none")), 400, 20),
    Abuse("unknown buckets", _repeating(head("GET", "/kv/no-such-bucket/none")), 400, 20),
    Abuse("garbage", _repeating(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), 400, 20),
)  # fmt: skip


def run(chain: Chain, door: str, *, short: bool = False, only: str = "") -> list[Row]:
    """Each crowd for its seconds."""
    chain.poky("bucket", "create", BUCKET)
    port = chain.instances[0].port
    assert request(port, "PUT", f"/kv/{BUCKET}/small", VALUE).status == 200
    assert request(port, "PUT", f"/kv/{BUCKET}/big", b"x" * MB).status == 200
    return [_run(chain, door, abuse, 2.5 if short else 8) for abuse in ABUSES if only in abuse.name]


def _run(chain: Chain, door: str, abuse: Abuse, seconds: float) -> Row:
    expected = f"others' p99 below {abuse.p99:.0f} ms, memory +{abuse.megabytes} MB at most"
    row = Row("slow", abuse.name, door, expected)
    deaths = chain.deaths
    for instance in chain.instances:
        instance.forget_peak()
    time.sleep(0.1)
    before = chain.peak
    end = time.monotonic() + seconds
    crowd: list[Connection] = []
    thread = threading.Thread(target=lambda: crowd.extend(abuse.crowd(chain.port, end)))
    thread.start()
    times = _others(chain.port, end, row)
    thread.join()
    for connection in crowd:
        connection.close()
    p99 = statistics.quantiles(times, n=100)[98] * 1000 if len(times) > 10 else float("inf")
    grown = (chain.peak - before) / MB
    row.count = len(times)
    row.seen = f"p99 {p99:.1f} ms of {len(times)}, memory +{grown:.0f} MB"
    if p99 > abuse.p99:
        row.violations.append(f"others waited {p99:.0f} ms (99th percentile)")
    if grown > abuse.megabytes:
        row.violations.append(f"{grown:.0f} MB more")
    if chain.deaths > deaths:
        row.violations.append("an instance ended")
    return row


def _others(port: int, end: float, row: Row) -> list[float]:
    """How long each GET of another client took; each must be right."""
    times = []
    connection = None
    while time.monotonic() < end:
        began = time.monotonic()
        try:
            connection = connection or Connection(port, timeout=10)
            connection.send(head("GET", f"/kv/{BUCKET}/small"))
            answer = connection.answer()
            assert answer
            if (answer.status, answer.body) == (200, VALUE):
                times.append(time.monotonic() - began)
            elif not (row.door != DIRECT and answer.status == 429):  # connections per address
                row.violations.append(f"another client got {answer.status}")
            if answer.headers.get("connection") == "close":
                connection.close()
                connection = None
        except (Broken, OSError) as error:
            row.violations.append(f"another client: {error}")
            connection = None
        time.sleep(0.005)
    return times
