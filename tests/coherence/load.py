"""Writers and readers: processes with raw sockets, as fast as Python can, recording all of it.

A *slot* is a key that is written again and again. Each slot belongs to one lane, which writes its
keys one after the other; a few belong to all lanes, which race for them. A write of unknown outcome
may take effect at any time, so its key is left alone for ever and the slot gets another. *Lookers*
make writes that can only be refused, and record what the refusal tells.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import multiprocessing
import random
import re
import select
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

from tests.coherence.history import ABSENT, NEVER, PRESENT, UNKNOWN, Recorder, Way

AROUND = 100  # added to a path for what Varnish passes by: spellings that must not be cached
ANY_NODE = 0  # the path of a connection to nginx; the answer tells which node it came from
NOT_SENT = -1  # the status where there was no connection
_GENERATIONS = 1 << 16
_NS = 1_000_000_000

_ETAG = re.compile(rb'\r\nETag: "(\d+)-([0-9a-f]{8})"', re.IGNORECASE)
_READABLE = {b"200", b"304", b"404"}
_NODE = re.compile(rb"\r\nX-Served-By: n(\d)\r\n")
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)", re.IGNORECASE)

processes = multiprocessing.get_context("spawn")


class Count(IntEnum):
    """What the processes count together, for the progress line and the table."""

    STOP = 0
    READS = 1
    HITS = 2
    READ_ERRORS = 3
    WRITES = 4
    REFUSED = 5  # nothing was written
    UNCONFIRMED = 6  # outcome unknown
    SURPRISES = 7  # an answer that contradicts what was acknowledged before
    MIXED = 8  # a body that does not belong to its key, or not to its ETag
    TOLD = 9  # refusals that tell of the object


@dataclass(frozen=True)
class Plan:
    """A load: against which ports, with how many keys."""

    bucket: str
    folder: Path
    write_ports: Sequence[int]  # one lane each
    read_ports: Sequence[tuple[int, int]]  # (path, port), one connection each
    readers: int = 2
    slots: int = 24
    contested: int = 2
    lookers: int = 2
    pause: float = 0.004
    ttl: int = 0  # seconds that half of what one lane writes lives, 0: all of it for ever


class Load:
    """Running writers and readers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        workers = 1 + plan.readers
        self._counts = [RawArray(ctypes.c_int64, len(Count)) for _ in range(workers)]
        generations = RawArray(ctypes.c_int64, plan.slots)
        self._processes = [
            processes.Process(
                target=target, args=(plan, self._counts[n], generations, n), daemon=True
            )
            for n, target in enumerate([_write, *[_read] * plan.readers])
        ]
        for process in self._processes:
            process.start()

    def count(self, which: Count) -> int:
        return sum(int(counts[which]) for counts in self._counts)

    def stop(self) -> None:
        """Stop; every answered request is in the plan's folder then."""
        for counts in self._counts:
            counts[Count.STOP] = 1
        for process in self._processes:
            process.join(60)
            assert process.exitcode == 0, f"a load process failed: {process.exitcode}"

    def kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()


def key_of(slot: int, generation: int) -> int:
    """The number by which a history has a key."""
    return slot * _GENERATIONS + generation


def _name(slot: int, generation: int) -> str:
    return f"k{slot}-{generation}"


def name_of(key: int) -> str:
    """The name of a key that a history has by its number."""
    return _name(*divmod(key, _GENERATIONS))


# Readers: one epoll loop, one request at a time per connection.


class _Connection:
    def __init__(self, path: int, port: int) -> None:
        self.path = path
        self.port = port
        self.socket: socket.socket | None = None
        self.buffer = b""
        self.key = 0
        self.name = b""
        self.start = 0
        self.around = 0

    def open(self) -> int:
        self.close()
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=2)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        return self.socket.fileno()

    def close(self) -> None:
        if self.socket:
            self.socket.close()
            self.socket = None


class _Reader:
    def __init__(self, plan: Plan, counts: Any, generations: Any, number: int) -> None:
        self._plan = plan
        self._counts = counts
        self._generations = generations
        self._random = random.Random(number)
        self._recorder = Recorder()
        self._epoll = select.epoll()
        self._open: dict[int, _Connection] = {}
        self._closed: list[tuple[float, _Connection]] = []
        self._tags: dict[int, bytes] = {}

    def run(self) -> Recorder:
        self._closed = [(0.0, _Connection(path, port)) for path, port in self._plan.read_ports]
        while not self._counts[Count.STOP]:
            if self._closed:
                self._reopen()
            for descriptor, _ in self._epoll.poll(0.1):
                self._receive(self._open[descriptor])
        return self._recorder

    def _reopen(self) -> None:
        now = time.monotonic()
        closed, self._closed = self._closed, []
        for due, connection in closed:
            try:
                if due > now:
                    raise OSError
                descriptor = connection.open()
            except OSError:
                self._closed.append((max(due, now + 0.05), connection))
                continue
            self._open[descriptor] = connection
            self._epoll.register(descriptor, select.EPOLLIN)
            self._send(connection)

    def _send(self, connection: _Connection) -> None:
        chance = self._random.random()
        slots = self._plan.slots
        # Half of the reads fall on a quarter of the keys.
        slot = int(chance * 1000003 % (slots if chance < 0.5 else slots // 4))
        generation = self._generations[slot]
        connection.key = key = key_of(slot, generation)
        connection.name = name = _name(slot, generation).encode()
        more = b""
        connection.around = 0
        if chance < 0.01:
            name = b"%6B" + name[1:]  # decoded by Varnish: the same object
        elif chance < 0.03:
            name += b"?as=other"
            connection.around = AROUND
        elif 0.5 < chance < 0.54 and key in self._tags:
            more = b"If-None-Match: " + self._tags[key] + b"\r\n"
        request = b"GET /kv/%s/%s HTTP/1.1\r\nHost: poky\r\n%s\r\n" % (
            self._plan.bucket.encode(),
            name,
            more,
        )
        connection.start = time.monotonic_ns()
        try:
            connection.socket.send(request)
        except OSError:
            self._lose(connection)

    def _lose(self, connection: _Connection) -> None:
        self._counts[Count.READ_ERRORS] += 1
        with suppress(KeyError, OSError, ValueError):
            descriptor = connection.socket.fileno()
            del self._open[descriptor]
            self._epoll.unregister(descriptor)
        connection.close()
        self._closed.append((time.monotonic() + 0.05, connection))

    def _receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose(connection)
            return
        data = connection.buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            connection.buffer = data
            return
        head, body = data[: end + 2], data[end + 4 :]
        status = head[9:12]
        if status not in _READABLE:
            self._lose(connection)  # an error's body may come in any form
            return
        missing = 0 if status == b"304" else _length(head) - len(body)
        if missing > 0:
            connection.buffer = data
            return
        self._counts[Count.MIXED] += missing < 0
        self._record(connection, status, head, body, time.monotonic_ns())
        connection.buffer = b""
        if b"\r\nConnection: close" in head:
            self._lose(connection)
        else:
            self._send(connection)

    def _record(
        self, connection: _Connection, status: bytes, head: bytes, body: bytes, end: int
    ) -> None:
        if status in (b"200", b"304"):
            tag = _ETAG.search(head)
            if tag is None:
                self._counts[Count.MIXED] += 1
                return
            number = 2 * int(tag[1])
            if status == b"200":
                hashed = hashlib.sha256(body).hexdigest()[:8].encode()
                if hashed != tag[2] or not body.startswith(connection.name + b" "):
                    self._counts[Count.MIXED] += 1
                self._tags[connection.key] = b'"%s-%s"' % (tag[1], tag[2])
        else:
            number = ABSENT
        path = connection.path
        if path == ANY_NODE:
            node = _NODE.search(head)
            path = int(node[1]) if node else ANY_NODE
        way = _way(head)
        self._recorder.reads.extend(
            (connection.key, path + connection.around, connection.start, end, number, way)
        )
        self._counts[Count.READS] += 1
        self._counts[Count.HITS] += way == Way.HIT


def _way(head: bytes) -> int:
    if b"\r\nX-Cache: HIT" in head:
        return Way.HIT
    return Way.MISS if b"\r\nX-Cache: MISS" in head else Way.PASS


def _length(head: bytes) -> int:
    length = _LENGTH.search(head)
    return int(length[1]) if length else 0


def _read(plan: Plan, counts: Any, generations: Any, number: int) -> None:
    _Reader(plan, counts, generations, number).run().save(plan.folder, f"{number}")


# Writers: one thread per lane, one request at a time.


@dataclass(frozen=True)
class _Answer:
    status: int
    head: bytes
    body: bytes
    start: int
    end: int

    @property
    def number(self) -> int:
        tag = _ETAG.search(self.head)
        return 2 * int(tag[1]) if tag else UNKNOWN

    @property
    def is_refusal(self) -> bool:
        """Whether certainly nothing was changed: nothing was sent, or the service says so."""
        return self.status == NOT_SENT or (
            self.status == 503
            and b"application/problem+json" in self.head
            and b"Poky-Outcome" not in self.head
        )


class _Lane:
    """Writes its own slots, and now and then one that all lanes write."""

    def __init__(
        self, plan: Plan, counts: Any, generations: Any, recorder: Recorder, number: int
    ) -> None:
        self._plan = plan
        self._counts = counts
        self._generations = generations
        self._recorder = recorder
        self._random = random.Random(1000 + number)
        self._port = plan.write_ports[number % len(plan.write_ports)]
        self._socket: socket.socket | None = None
        lanes = len(plan.write_ports)
        self._own = [s for s in range(plan.contested, plan.slots) if s % lanes == number]
        self._shared = list(range(plan.contested))
        self._values = (f"{number}.{n}" for n in itertools.count())
        # The number of each of our objects, and its tag; ABSENT where there is none.
        self._numbers = dict.fromkeys(self._own, ABSENT)
        self._tags: dict[int, str] = {}
        # Of the objects of all lanes, what ours were when we wrote them.
        self._held: dict[int, tuple[int, str]] = {}
        # Of objects that expire: when that may be, and until when they are mostly left alone.
        self._expiring: dict[int, int] = {}
        self._resting: dict[int, int] = {}

    def run(self) -> None:
        while not self._counts[Count.STOP]:
            self._step()
            time.sleep(self._plan.pause * self._random.random() * 2)

    def _step(self) -> None:
        own = self._own
        if self._resting:
            now = time.monotonic_ns()
            own = [s for s in own if self._resting.get(s, 0) < now or self._random.random() < 0.02]
            if not own:
                return
        slot = self._random.choice(own)
        chance = self._random.random()
        if chance < 0.1 and self._shared:
            self._race(self._random.choice(self._shared))
        elif chance < 0.25:
            self._put_many(self._random.sample(own, min(4, len(own))))
        elif chance < 0.30:
            self._delete_many(self._random.sample(own, min(3, len(own))))
        elif chance < 0.42 and self._numbers[slot] != ABSENT:
            self._delete(slot)
        elif chance < 0.60:
            self._put(slot, self._condition(slot))
        else:
            self._put(slot)

    def _race(self, slot: int) -> None:
        """Write what all lanes write; mostly only if it is still what we wrote last."""
        number, tag = self._held.pop(slot, (0, ""))
        condition = f"If-Match: {tag}\r\n" if tag and self._random.random() < 0.7 else ""
        key, path = self._key(slot)
        answer = self._exchange("PUT", path, self._value(slot).encode(), condition)
        if answer.status == 200:
            self._record(key, answer, answer.number, is_delete=False)
            found = _ETAG.search(answer.head)
            assert found
            self._held[slot] = answer.number, f'"{found[1].decode()}-{found[2].decode()}"'
        elif answer.status == 412 and condition:
            self._tell(key, answer, number + 1)
        else:
            self._not_written([slot], answer)

    def look(self) -> None:
        """Ask for deletes where there is no object: refusals that tell of other lanes' writes."""
        while not self._counts[Count.STOP]:
            self._look(self._random.sample(range(self._plan.contested, self._plan.slots), 4))
            time.sleep(self._plan.pause * self._random.random() * 10)

    def _look(self, slots: Sequence[int]) -> None:
        keys = [self._key(slot) for slot in slots]
        if self._random.random() < 0.5:
            key, path = keys[0]
            answer = self._exchange("DELETE", path, condition="If-None-Match: *\r\n")
            if answer.status in (404, 412):
                self._tell(key, answer, ABSENT if answer.status == 404 else PRESENT)
            return
        names = [path.rpartition("/")[2] for _, path in keys]
        items = [{"key": name, "if_none_match": "*"} for name in names]
        answer = self._exchange("DELETE", f"/multi/{self._plan.bucket}", json.dumps(items).encode())
        if answer.status == 200:
            for (key, _), outcome in zip(keys, json.loads(answer.body), strict=True):
                is_missing = outcome["result"] == "missing"
                self._counts[Count.SURPRISES] += outcome["result"] == "deleted"
                self._tell(key, answer, ABSENT if is_missing else PRESENT)

    def _tell(self, key: int, answer: _Answer, number: int) -> None:
        self._recorder.told.extend((key, answer.start, answer.end, number))
        self._counts[Count.TOLD] += 1

    def _condition(self, slot: int) -> str:
        if self._numbers[slot] == ABSENT:
            return "If-None-Match: *\r\n"
        return f"If-Match: {self._tags[slot]}\r\n"

    def _put(self, slot: int, condition: str = "") -> None:
        key, path = self._key(slot)
        ttl = self._ttl() if slot in self._numbers else 0
        more = f"Poky-TTL: {ttl}\r\n" if ttl else ""
        answer = self._exchange("PUT", path, self._value(slot).encode(), condition + more)
        if answer.status == 200:
            self._record(key, answer, answer.number, is_delete=False, ttl=ttl)
            if slot in self._numbers:
                self._remember(slot, answer.number, answer.head)
                self._rest(slot, answer, ttl)
        elif answer.status == 412 and self._has_expired(slot, answer):
            self._numbers[slot] = ABSENT
        else:
            self._not_written([slot], answer)

    def _ttl(self) -> int:
        return self._plan.ttl if self._random.random() < 0.5 else 0

    def _rest(self, slot: int, answer: _Answer, ttl: int) -> None:
        """Let an object that expires do so, and be seen to be missing."""
        self._expiring.pop(slot, None)
        if ttl:
            self._expiring[slot] = answer.start + ttl * _NS
            self._resting[slot] = answer.end + int((ttl + self._random.random() / 2) * _NS)

    def _has_expired(self, slot: int, answer: _Answer) -> bool:
        """Whether it may be missing by itself."""
        return answer.end >= self._expiring.get(slot, NEVER)

    def _delete(self, slot: int) -> None:
        key, path = self._key(slot)
        answer = self._exchange("DELETE", path)
        if answer.status == 200:
            self._record(key, answer, self._numbers[slot] + 1, is_delete=True)
            self._numbers[slot] = ABSENT
        elif answer.status == 404 and self._has_expired(slot, answer):
            self._numbers[slot] = ABSENT
        else:
            self._not_written([slot], answer, is_delete=True)

    def _put_many(self, slots: Sequence[int]) -> None:
        ttls = [self._ttl() for _ in slots]
        items = [
            {
                "key": _name(slot, self._generations[slot]),
                "data": self._value(slot),
                **({"ttl": ttl} if ttl else {}),
            }
            for slot, ttl in zip(slots, ttls, strict=True)
        ]
        answer = self._exchange("PUT", f"/multi/{self._plan.bucket}", json.dumps(items).encode())
        if answer.status != 200:
            self._not_written(slots, answer)
            return
        for slot, ttl, outcome in zip(slots, ttls, json.loads(answer.body), strict=True):
            tag = outcome["etag"]
            number = 2 * int(tag.strip('"').split("-")[0])
            self._record(self._key(slot)[0], answer, number, is_delete=False, ttl=ttl)
            self._numbers[slot], self._tags[slot] = number, tag
            self._rest(slot, answer, ttl)

    def _delete_many(self, slots: Sequence[int]) -> None:
        slots = [slot for slot in slots if self._numbers[slot] != ABSENT]
        if not slots:
            return
        items = [{"key": _name(slot, self._generations[slot])} for slot in slots]
        answer = self._exchange("DELETE", f"/multi/{self._plan.bucket}", json.dumps(items).encode())
        if answer.status != 200:
            self._not_written(slots, answer, is_delete=True)
            return
        for slot, outcome in zip(slots, json.loads(answer.body), strict=True):
            if outcome["result"] == "deleted":
                self._record(self._key(slot)[0], answer, self._numbers[slot] + 1, is_delete=True)
            else:
                self._counts[Count.SURPRISES] += not self._has_expired(slot, answer)
            self._numbers[slot] = ABSENT

    def _value(self, slot: int) -> str:
        """Never the same twice, and it names its key."""
        return f"{_name(slot, self._generations[slot])} {next(self._values)}".ljust(60)

    def _key(self, slot: int) -> tuple[int, str]:
        generation = self._generations[slot]
        return key_of(slot, generation), f"/kv/{self._plan.bucket}/{_name(slot, generation)}"

    def _remember(self, slot: int, number: int, head: bytes) -> None:
        tag = _ETAG.search(head)
        assert tag
        self._numbers[slot] = number
        self._tags[slot] = f'"{tag[1].decode()}-{tag[2].decode()}"'

    def _record(
        self, key: int, answer: _Answer, number: int, *, is_delete: bool, ttl: int = 0
    ) -> None:
        self._recorder.writes.extend(
            (key, answer.start, answer.end, number, int(is_delete), ttl * _NS)
        )
        self._counts[Count.WRITES] += 1

    def _not_written(
        self, slots: Sequence[int], answer: _Answer, *, is_delete: bool = False
    ) -> None:
        """Certainly not, then the lane pauses; or who knows, then it leaves the keys alone."""
        if answer.is_refusal:
            self._counts[Count.REFUSED] += 1
            time.sleep(0.05)
            return
        if answer.status in (400, 404, 412):
            self._counts[Count.SURPRISES] += 1
        self._counts[Count.UNCONFIRMED] += 1
        for slot in slots:
            if slot not in self._numbers:
                continue  # never deleted, so its numbers stay in order whatever happens
            number = self._numbers[slot] + 1 if is_delete else UNKNOWN
            self._recorder.writes.extend(
                (self._key(slot)[0], answer.start, NEVER, number, int(is_delete), 0)
            )
            self._generations[slot] += 1
            self._numbers[slot] = ABSENT
            self._rest(slot, answer, 0)
            self._resting.pop(slot, None)
        time.sleep(0.05)

    def _exchange(self, method: str, path: str, body: bytes = b"", condition: str = "") -> _Answer:
        """Send a request once, never twice; status 0 if no complete answer came."""
        kind = "Content-Type: application/json\r\n" if path.startswith("/multi") else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: poky\r\n{kind}{condition}"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        start = time.monotonic_ns()
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=60)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            return _Answer(NOT_SENT, b"", b"", start, start)
        try:
            self._socket.sendall(request)
            status, answer_head, answer_body = self._answer()
        except OSError:
            status, answer_head, answer_body = 0, b"", b""
        if self._socket and (status == 0 or b"\r\nConnection: close" in answer_head):
            self._socket.close()
            self._socket = None
        return _Answer(status, answer_head, answer_body, start, time.monotonic_ns())

    def _answer(self) -> tuple[int, bytes, bytes]:
        assert self._socket
        data = b""
        while True:
            end = data.find(b"\r\n\r\n")
            if end >= 0 and len(data) >= end + 4 + _length(data[: end + 2]):
                return int(data[9:12]), data[: end + 2], data[end + 4 :]
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionResetError
            data += more


def _write(plan: Plan, counts: Any, generations: Any, number: int) -> None:
    writers = len(plan.write_ports)
    recorders = [Recorder() for _ in range(writers + plan.lookers)]
    lanes = [
        _Lane(plan, counts, generations, recorder, lane) for lane, recorder in enumerate(recorders)
    ]
    threads = [
        threading.Thread(target=lane.run if number < writers else lane.look, daemon=True)
        for number, lane in enumerate(lanes)
    ]
    for thread in threads:
        thread.start()
    for lane, (thread, recorder) in enumerate(zip(threads, recorders, strict=True)):
        thread.join()
        recorder.save(plan.folder, f"{number}-{lane}")
