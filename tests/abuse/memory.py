"""Memory: mixtures of large requests, large answers and slow clients under the role's MemoryMax.

Nothing may end an instance. Every request is answered, with 503 and Retry-After where there is no
room; the table has the most memory that an instance had.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

from tests.abuse.client import Answer, Broken, Connection, head, request
from tests.abuse.report import Row
from tests.support.chain import Chain
from tests.support.memory import MB

BUCKET = "abuse-memory"
LARGEST = 16 * MB
OBJECTS = "application/vnd.poky.objects+json"
RIGHT = {200, 400, 406, 408, 413, 429, 431, 503}


@dataclass
class Tally:
    """What all clients of a mixture saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    given_up: int = 0  # slow clients that were cut off, as they may be

    def count(self, kind: str, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        if answer.status not in RIGHT:
            self.violations[f"{kind}: answered {answer.status} {answer.body[:120]!r}"] += 1
        if answer.status in (429, 503) and "retry-after" not in answer.headers:
            self.violations[f"{kind}: {answer.status} without Retry-After"] += 1
        if not answer.whole and answer.status == 200:
            self.violations[f"{kind}: 200 cut short"] += 1


@cache
def _text(kind: str) -> bytes:
    """Values of the largest size, each the worst for somebody."""
    return {
        "plain": lambda: b"Twelve bytes" * (LARGEST // 12),
        "quotes": lambda: b"'\\" * (LARGEST // 2),
        "controls": lambda: b"\x01" * (10 * MB),
        "wide": ("x" * (LARGEST - 4) + "\N{GRINNING FACE}").encode,
        "emoji": lambda: "\N{GRINNING FACE}".encode() * (LARGEST // 4),
        "binary": lambda: os.urandom(MB) * (LARGEST // MB),
    }[kind]()


@cache
def _batch(kind: str) -> bytes:
    """Bodies of PUT /multi, just below the limit."""
    room = LARGEST - 200
    if kind == "one":
        return b'[{"key": "m", "data": "' + b"x" * room + b'"}]'
    if kind == "escapes":
        return b'[{"key": "m", "data": "' + rb"\n" * (room // 2) + b'"}]'
    if kind == "wide":
        text = b"x" * room + "\N{GRINNING FACE}".encode()
        return b'[{"key": "m", "data": "' + text + b'"}]'
    if kind == "base64":
        data = base64.b64encode(os.urandom(room // 4 * 3 - 3))
        return b'[{"key": "m", "data_base64": "' + data + b'"}]'
    if kind == "many":
        data = "y" * (LARGEST // 9000 - 60)
        return json.dumps([{"key": f"m{n}", "data": data} for n in range(9000)]).encode()
    if kind == "too-many":
        return b"[" + b",".join([b'{"key":"a","data":""}'] * (LARGEST // 22 - 1)) + b"]"
    if kind == "long-key":
        return b'[{"data": "", "key": "' + b"x" * room + "\N{GRINNING FACE}".encode() + b'"}]'
    if kind == "deep":
        return b"[" * room
    raise KeyError(kind)


Client = Callable[[int, Tally, float], None]


def _repeat(kind: str, once: Callable[[int], Answer | None]) -> Client:
    def run(port: int, tally: Tally, end: float) -> None:
        while time.monotonic() < end:
            try:
                answer = once(port)
                if answer:
                    tally.count(kind, answer)
                    if answer.status == 503:
                        time.sleep(0.05)
            except (Broken, OSError) as error:
                tally.violations[f"{kind}: {error}"] += 1
                time.sleep(0.2)

    return run


_numbers = itertools.count()


def _put(text: str) -> Client:
    # Keys of their own: what a locked row costs is another matter.
    return _repeat(
        f"PUT {text}",
        lambda port: request(
            port, "PUT", f"/kv/{BUCKET}/put-{next(_numbers) % 32}", _text(text), timeout=60
        ),
    )


def _put_many(batch: str) -> Client:
    return _repeat(
        f"PUT /multi {batch}",
        lambda port: request(
            port,
            *("PUT", f"/multi/{BUCKET}", _batch(batch)),
            timeout=60,
            content_type="application/json",
        ),
    )


def _get_many(keys: Sequence[str], accept: str = "*/*") -> Client:
    body = json.dumps([{"key": key} for key in keys]).encode()
    return _repeat(
        f"POST /multi of {len(keys)}",
        lambda port: request(
            *(port, "POST", f"/multi/{BUCKET}", body),
            timeout=60,
            content_type="application/json",
            accept=accept,
        ),
    )


def _get(key: str, **headers: str) -> Client:
    # An unknown cookie or query changes nothing; ?a keeps a cache out of it.
    return _repeat(
        f"GET {key}",
        lambda port: request(port, "GET", f"/kv/{BUCKET}/{key}?a", timeout=60, **headers),
    )


def _slow(kind: str, session: Callable[[Connection, float], Answer | None]) -> Client:
    """A client that may be cut off, but never be answered falsely."""

    def run(port: int, tally: Tally, end: float) -> None:
        while time.monotonic() < end:
            connection = None
            try:
                connection = Connection(port, timeout=30, window=8192)
                answer = session(connection, end)
                if answer and (answer.whole or answer.status != 200):
                    tally.count(kind, answer)
            except (Broken, OSError):
                tally.given_up += 1
                time.sleep(0.1)
            finally:
                if connection:
                    connection.close()

    return run


def _slow_reader(path: str) -> Client:
    def session(connection: Connection, end: float) -> Answer | None:
        connection.send(head("GET", path))
        while time.monotonic() < end:  # a little now and then: alive, but hardly
            if not connection.receive(8192):
                break
            time.sleep(0.03)
        return None

    return _slow("slow reader", session)


def _slow_writer() -> Client:
    def session(connection: Connection, end: float) -> Answer | None:
        connection.send(head("PUT", f"/kv/{BUCKET}/slow", LARGEST))
        value = memoryview(_text("plain"))
        for start in range(0, LARGEST, 65536):
            connection.send(value[start : start + 65536])
            if time.monotonic() > end:
                return None
            time.sleep(0.15)
        return connection.answer()

    return _slow("slow writer", session)


def _heads(count: int, complete: bool) -> Client:
    """Connections that send a large head, and no more: of a request without its body, or half."""

    def run(port: int, tally: Tally, end: float) -> None:
        while time.monotonic() < end:
            connections = []
            try:
                fields = {f"x-{n}": "v" * 1000 for n in range(7)}
                data = head("PUT", f"/kv/{BUCKET}/head", 100, **fields)
                for _ in range(count):
                    connections.append(Connection(port, timeout=30))
                    connections[-1].send(data if complete else data[:-2])
            except OSError:
                tally.given_up += 1
            time.sleep(max(0.0, min(3, end - time.monotonic())))
            for connection in connections:
                connection.close()

    return run


@dataclass(frozen=True)
class Mixture:
    """Clients at once, and for how long (short form, long form)."""

    name: str
    clients: dict[str, int]
    seconds: tuple[float, float] = (4, 15)
    short: bool = True


CLIENTS: dict[str, Client] = {
    **{f"put-{kind}": _put(kind) for kind in ("plain", "quotes", "wide", "emoji", "binary")},
    **{
        f"batch-{kind}": _put_many(kind)
        for kind in ("one", "escapes", "wide", "base64", "many", "too-many", "long-key", "deep")
    },
    "multi-repeated": _get_many(["big-10"] * 20, OBJECTS),
    "multi-repeated-values": _get_many(["big-10"] * 20),
    "multi-distinct": _get_many([f"big-{n}" for n in range(10)], OBJECTS),
    "multi-one": _get_many(["big-0"], OBJECTS),
    "multi-controls": _get_many(["controls"], OBJECTS),
    "multi-binary": _get_many(["binary-8"] * 2, OBJECTS),
    "get-16": _get("big-16"),
    "get-binary": _get("binary-16"),
    "slow-reader": _slow_reader(f"/kv/{BUCKET}/big-16?a"),
    "slow-writer": _slow_writer(),
    "half-heads": _heads(500, complete=False),
    "no-bodies": _heads(500, complete=True),
}

MIXTURES = (
    Mixture("2 x PUT 16 MB text", {"put-plain": 2}),
    Mixture("4 x PUT 16 MB text", {"put-plain": 4}, short=False),
    Mixture("PUT 16 MB of all kinds", {"put-quotes": 1, "put-wide": 2, "put-emoji": 1}),
    Mixture("8 x PUT 16 MB binary", {"put-binary": 8}, short=False),
    Mixture(
        "PUT /multi of 16 MB",
        {"batch-one": 1, "batch-escapes": 1, "batch-wide": 1, "batch-base64": 1, "batch-many": 1},
    ),
    Mixture(
        "PUT /multi that is refused",
        {"batch-too-many": 2, "batch-long-key": 2, "batch-deep": 1},
    ),
    Mixture(
        "POST /multi, 20 x the same 10 MB",
        {"multi-repeated": 4, "multi-repeated-values": 2},
    ),
    Mixture("POST /multi, 10 x 1.5 MB", {"multi-distinct": 6, "multi-one": 2}, short=False),
    Mixture("POST /multi of controls", {"multi-controls": 4, "multi-binary": 4}),
    Mixture("8 x GET 16 MB", {"get-16": 4, "get-binary": 4}),
    Mixture("40 slow readers of 16 MB", {"slow-reader": 40, "get-16": 2}, (5, 20)),
    Mixture("30 slow writers of 16 MB", {"slow-writer": 30, "put-plain": 2}, (5, 20), short=False),
    Mixture("1,000 large heads", {"half-heads": 1, "no-bodies": 1}, (4, 8), short=False),
    Mixture(
        "everything at once",
        {
            **{"put-plain": 2, "put-quotes": 1, "put-wide": 1, "put-binary": 2},
            **{"batch-one": 1, "batch-escapes": 1, "batch-wide": 1, "batch-base64": 1},
            **{"batch-many": 1, "batch-too-many": 1, "multi-repeated": 2, "multi-distinct": 2},
            **{"multi-controls": 1, "multi-binary": 1, "get-16": 3, "get-binary": 2},
            **{"slow-reader": 20, "slow-writer": 10, "half-heads": 1, "no-bodies": 1},
        },
        (10, 60),
    ),
)


def prepare(chain: Chain) -> None:
    """The objects that are read."""
    chain.poky("bucket", "create", BUCKET)
    port = chain.instances[0].port
    values = {
        "big-16": _text("plain"),
        "binary-16": _text("binary"),
        "binary-8": _text("binary")[: 7 * MB],
        "big-10": _text("plain")[: 10 * MB],
        "controls": _text("controls"),
    }
    for key, value in values.items():
        answer = request(port, "PUT", f"/kv/{BUCKET}/{key}", value, timeout=60)
        assert answer.status == 200, (key, answer)
    for number in range(10):
        key = f"big-{number}"
        body = _text("plain")[: 3 * MB // 2]
        assert request(port, "PUT", f"/kv/{BUCKET}/{key}", body).status == 200


def run(
    chain: Chain, door: str, *, short: bool = False, only: str = "", seconds: float = 0
) -> list[Row]:
    """Each mixture for its seconds."""
    prepare(chain)
    rows = []
    for mixture in MIXTURES:
        if (short and not mixture.short) or only not in mixture.name:
            continue
        rows.append(_run(chain, door, mixture, seconds or mixture.seconds[0 if short else 1]))
    return rows


def _run(chain: Chain, door: str, mixture: Mixture, seconds: float) -> Row:
    tally = Tally()
    deaths = chain.deaths
    for instance in chain.instances:
        instance.forget_peak()
    end = time.monotonic() + seconds
    threads = [
        threading.Thread(target=CLIENTS[name], args=(chain.port, tally, end), daemon=True)
        for name, count in mixture.clients.items()
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 90)
    row = Row("memory", mixture.name, door, f"0 ended; below {chain.instances[0].how}")
    row.count = sum(tally.statuses.values()) + tally.given_up
    peaks = " ".join(f"{instance.peak // MB}" for instance in chain.instances)
    row.seen = f"peak {peaks} MB; " + ", ".join(
        f"{count} x {status}" for status, count in sorted(tally.statuses.items())
    )
    if tally.given_up:
        row.seen += f", {tally.given_up} slow ones cut off"
    if any(thread.is_alive() for thread in threads):
        row.violations.append("a client got no answer in 90 s")
    ended = chain.deaths - deaths
    if ended:
        row.violations.append(f"{ended} times an instance was killed")
    row.violations += [
        f"{sentence} ({count} times)" for sentence, count in tally.violations.items()
    ]
    return row
