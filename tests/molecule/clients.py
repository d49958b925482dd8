"""Clients of a cluster that remember every answer: what was acknowledged, and what was read when.

Writers have keys of their own and never repeat a request. The history is what tests/coherence
records, so that its checker finds stale reads and reads that go back.
"""

from __future__ import annotations

import http.client
import itertools
import random
import re
import select
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.coherence.history import ABSENT, NEVER, UNKNOWN, History, Read, Way, Write

BUCKET = "failover"
_TAG = re.compile(r'"(\d+)-')
_WAYS = {"HIT": Way.HIT, "MISS": Way.MISS}


@dataclass
class Seen:
    """All clients' answers so far. Times are nanoseconds of CLOCK_MONOTONIC."""

    history: History = field(default_factory=History)
    acknowledged: dict[str, int] = field(default_factory=dict)  # key: the greatest revision
    keys: dict[str, int] = field(default_factory=dict)  # key: its number in the history
    refused: int = 0
    unknown: int = 0
    not_read: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    cached: int = 0
    surprises: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def number_of(self, key: str) -> int:
        return self.keys.setdefault(key, len(self.keys) + 1)

    def gap(self, since: int) -> float:
        """Seconds from then to the end of the first write that began later and was acknowledged."""
        with self.lock:
            ends = [w.end for w in self.history.writes if w.start >= since and w.end != NEVER]
        return (min(ends) - since) / 1e9 if ends else float("inf")

    def longest_gap(self, since: int) -> float:
        """The longest time without an acknowledgement, in seconds."""
        with self.lock:
            ends = sorted(w.end for w in self.history.writes if w.end != NEVER and w.end >= since)
        pairs = itertools.pairwise([since, *ends, time.monotonic_ns()])
        return max(late - early for early, late in pairs) / 1e9


def _is_over(connection: http.client.HTTPConnection) -> bool:
    """Whether the server has closed it between two requests; clients look (RFC 9112, 9.5)."""
    return bool(select.select([connection.sock], [], [], 0)[0])


class Clients:
    """Writers and readers through every nginx, each a thread; a context manager."""

    def __init__(
        self, addresses: Sequence[str], *, writers: int = 10, readers: int = 8, pause: float = 0.05
    ) -> None:
        self.seen = Seen()
        self._addresses = list(addresses)
        self._pause = pause
        self._stop = threading.Event()
        self._slots = [f"{writer}.{slot}" for writer in range(writers) for slot in range(4)]
        self._generation = dict.fromkeys(self._slots, 0)
        runs: list[tuple[Callable[[int], None], int]] = [
            *((self._write, number) for number in range(writers)),
            *((self._read, number) for number in range(readers)),
            *((self._read_cached, number) for number in range(len(self._addresses))),
        ]
        self._threads = [
            threading.Thread(target=run, args=(number,), daemon=True) for run, number in runs
        ]

    def __enter__(self) -> Clients:
        for number, _ in enumerate(self._addresses):
            self._exchange([None], number, "PUT", "witness", b"I was here")
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def key(self, slot: str) -> str:
        return f"k{slot}-{self._generation[slot]}"

    def _exchange(
        self,
        kept: list[http.client.HTTPConnection | None],
        node: int,
        method: str,
        key: str,
        body: bytes | None = None,
    ) -> tuple[int, http.client.HTTPMessage | None, bytes]:
        """Send once, on the connection that is kept; status -1: not sent, 0: no answer."""
        try:
            if kept[0] is not None and _is_over(kept[0]):
                kept[0].close()
                kept[0] = None
            if kept[0] is None:
                kept[0] = http.client.HTTPConnection(self._addresses[node], timeout=60)
                kept[0].connect()
        except OSError:
            kept[0] = None
            return -1, None, b""
        try:
            kept[0].request(method, f"/kv/{BUCKET}/{key}", body)
            answer = kept[0].getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException):
            with suppress(OSError):
                kept[0].close()
            kept[0] = None
            return 0, None, b""
        if answer.getheader("Connection") == "close":
            kept[0] = None
        return answer.status, answer.headers, said

    def _write(self, writer: int) -> None:
        kept: list[http.client.HTTPConnection | None] = [None]
        mine = [slot for slot in self._slots if slot.split(".")[0] == str(writer)]
        for count in itertools.count():
            if self._stop.is_set():
                return
            slot = random.choice(mine)
            key = self.key(slot)
            start = time.monotonic_ns()
            status, headers, said = self._exchange(
                kept, writer % len(self._addresses), "PUT", key, f"{key} {count}".encode()
            )
            self._note_write(slot, key, start, status, headers, said)
            time.sleep(self._pause * random.random() * 2)

    def _note_write(
        self,
        slot: str,
        key: str,
        start: int,
        status: int,
        headers: http.client.HTTPMessage | None,
        said: bytes,
    ) -> None:
        seen, end = self.seen, time.monotonic_ns()
        with seen.lock:
            number = seen.number_of(key)
            tag = _TAG.match((headers and headers["ETag"]) or "")
            if status == 200 and tag:
                revision = int(tag[1])
                seen.history.writes.append(Write(number, start, end, 2 * revision, 0))
                if revision <= seen.acknowledged.get(key, 0):
                    seen.surprises.append(f"{key}: revision {revision} after a later one")
                seen.acknowledged[key] = max(revision, seen.acknowledged.get(key, 0))
                return
            is_refusal = status == -1 or (
                status == 503
                and headers is not None
                and headers.get_content_type() == "application/problem+json"
                and not headers["Poky-Outcome"]
            )
            if is_refusal:
                seen.refused += 1
            else:
                if status not in (0, 502, 503, 504):
                    seen.surprises.append(f"{key}: {status} {said[:200]!r}")
                seen.unknown += 1
                seen.history.writes.append(Write(number, start, NEVER, UNKNOWN, 0))
                self._generation[slot] += 1

    def _read(self, reader: int) -> None:
        kept: list[http.client.HTTPConnection | None] = [None]
        node = reader % len(self._addresses)
        while not self._stop.is_set():
            key = self.key(random.choice(self._slots))
            start = time.monotonic_ns()
            status, headers, said = self._exchange(kept, node, "GET", key)
            end = time.monotonic_ns()
            if status in (200, 404) and headers is not None:
                tag = _TAG.match(headers["ETag"] or "")
                number = 2 * int(tag[1]) if status == 200 and tag else ABSENT
                way = _WAYS.get(headers["X-Cache"] or "", Way.PASS)
                with self.seen.lock:
                    if status == 200 and not said.startswith(f"{key} ".encode()):
                        self.seen.surprises.append(f"{key}: read {said[:80]!r}")
                    self.seen.history.reads.append(
                        Read(self.seen.number_of(key), node, start, end, number, way)
                    )
            time.sleep(self._pause * random.random())

    def _read_cached(self, node: int) -> None:
        """An object that every cache has, four times a second: what readers see of an outage."""
        kept: list[http.client.HTTPConnection | None] = [None]
        while not self._stop.is_set():
            status, _, said = self._exchange(kept, node, "GET", "witness")
            with self.seen.lock:
                if status == 200:
                    self.seen.cached += 1
                    if said != b"I was here":
                        self.seen.surprises.append(f"witness: {said[:80]!r}")
                else:
                    self.seen.not_read[self._addresses[node]].append(time.monotonic_ns())
            time.sleep(0.25)
