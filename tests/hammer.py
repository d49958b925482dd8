"""Steady traffic that knows the right answer to everything it asks, and reports what was not right.

    python tests/hammer.py http://10.89.0.20 --bucket hammer --report report.json

Every client keeps one connection alive and mixes GET, PUT, DELETE and batches. The keys that it
writes are its own, so it knows what each of them holds: the last value that was acknowledged. Its
counter is read by all clients: an answer must lie between what had been acknowledged when the read
began and what had been sent when it ended. Every run uses new keys, and leaves them behind.

*Failed* is a request without the status that is right, and a connection that ends without
``Connection: close``; with --reopen, a request that finds its kept connection closed is sent once
more on a new one, as clients do (RFC 9112, 9.3.1). *Wrong* is an answer with a value that is not
right. The report is replaced twice a second, so it can be read meanwhile. SIGTERM ends the run, or
--seconds, or --requests; the exit status is 1 if anything failed or was wrong. The standard library
only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
KEPT = 20  # how many failures, and how many wrong answers, the report describes


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Failed(Exception):
    """A request was not answered as it must be; the outcome of a write is in doubt."""


@dataclass
class Tally:
    """What all clients saw. Times are Unix seconds, durations milliseconds."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    started: float = field(default_factory=time.time)
    requests: Counter[str] = field(default_factory=Counter)
    cache: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    reopened: int = 0
    failed: int = 0
    wrong: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    lies: list[dict[str, Any]] = field(default_factory=list)
    slowest: dict[str, Any] = field(default_factory=lambda: {"ms": 0.0})

    def answered(self, what: str, began: float, answer: Answer | None) -> None:
        ms = round((time.time() - began) * 1000, 1)
        with self.lock:
            self.requests[what.partition(" ")[0]] += 1
            self.cache[(answer and answer.headers.get("X-Cache")) or "none"] += 1
            if ms > self.slowest["ms"]:
                self.slowest = {"ms": ms, "at": _clock(began), "request": what}

    def fail(self, what: str, began: float, kind: str) -> None:
        with self.lock:
            self.failed += 1
            if len(self.failures) < KEPT:
                self.failures.append({**self._when(began), "request": what, "kind": kind})

    def lie(self, what: str, began: float, got: str, right: str) -> None:
        with self.lock:
            self.wrong += 1
            if len(self.lies) < KEPT:
                told = {"request": what, "got": got, "right": right}
                self.lies.append({**self._when(began), **told})

    def _when(self, began: float) -> dict[str, Any]:
        return {"began": _clock(began), "seen": _clock(time.time())}

    def report(self, clients: int, finished: bool) -> dict[str, Any]:
        with self.lock:
            return {
                "clients": clients,
                "seconds": round(time.time() - self.started, 1),
                "finished": finished,
                "requests": sum(self.requests.values()),
                "failed": self.failed,
                "wrong": self.wrong,
                "kinds": dict(self.requests),
                "cache": dict(self.cache),
                "connections": self.connections,
                "reopened": self.reopened,
                "slowest": self.slowest,
                "failures": self.failures,
                "lies": self.lies,
            }


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at * 1000) % 1000:03d}Z"


def _short(value: bytes | None) -> str:
    return "nothing" if value is None else f"{len(value)} bytes, {value[:40].decode('latin-1')!r}"


@dataclass
class Counters:
    """One number per client: what it has sent, and what of that was acknowledged."""

    run: str
    sent: list[int]
    acknowledged: list[int]

    def name(self, whose: int) -> str:
        return f"{self.run}-counter-{whose}"


class Client:
    """One client with its connection, its keys, and what it knows of them."""

    def __init__(
        self,
        number: int,
        url: str,
        bucket: str,
        rate: float,
        host: str,
        reopens: bool,
        tally: Tally,
        counters: Counters,
        stop: threading.Event,
    ) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=20)
        self._headers = {"Host": host} if host else {}
        self._number, self._bucket, self._pause = number, bucket, 1 / rate
        self._reopens = reopens
        self._tally, self._counters, self._stop_asked = tally, counters, stop
        self._random = random.Random(number)
        self._held: dict[str, bytes | None] = {}
        self._tags: dict[str, str] = {}
        self._written = 0
        self._names = 0
        self._singles = [self._new_name() for _ in range(4)]
        self._batch = [self._new_name() for _ in range(5)]
        self._counter_lives = True

    def run(self) -> None:
        """Ask, each time something else, until told to stop."""
        verbs = {
            self._read: 30,
            self._read_counter: 25,
            self._write: 15,
            self._count: 8,
            self._delete: 4,
            self._compare_and_set: 4,
            self._write_late: 3,
            self._read_batch: 5,
            self._write_batch: 4,
            self._delete_batch: 2,
        }
        self._stop_asked.wait(self._random.random() * self._pause)
        while not self._stop_asked.is_set():
            (verb,) = self._random.choices(list(verbs), list(verbs.values()))
            began = time.monotonic()
            try:
                verb()
            except Failed:
                self._connection.close()
            except Exception as error:  # an answer that makes no sense is not to go unnoticed
                self._tally.fail(verb.__name__, time.time(), repr(error))
                self._connection.close()
            left = self._pause * self._random.uniform(0.5, 1.5) - (time.monotonic() - began)
            self._stop_asked.wait(max(left, 0))
        self._connection.close()

    # What a client does.

    def _read(self) -> None:
        name = self._random.choice(self._singles)
        right = self._held.get(name)
        began = time.time()
        answer = self._ask("GET", f"kv/{self._bucket}/{name}", 404 if right is None else 200)
        if right is not None and answer.body != right:
            self._tally.lie(f"GET {name}", began, _short(answer.body), _short(right))

    def _read_counter(self) -> None:
        whose = self._random.randrange(len(self._counters.sent))
        least = self._counters.acknowledged[whose]
        if not least:
            return
        began = time.time()
        name = self._counters.name(whose)
        answer = self._ask("GET", f"kv/{self._bucket}/{name}", 200)
        most = self._counters.sent[whose]
        got = int(answer.body) if answer.body.isdigit() else -1
        if not least <= got <= most:
            self._tally.lie(f"GET {name}", began, _short(answer.body), f"{least} to {most}")

    def _count(self) -> None:
        if not self._counter_lives:
            return
        value = self._counters.sent[self._number] + 1
        self._counters.sent[self._number] = value
        try:
            name = self._counters.name(self._number)
            self._ask("PUT", f"kv/{self._bucket}/{name}", 200, b"%d" % value)
        except Failed:
            self._counter_lives = False  # a late write could still take it back
            raise
        self._counters.acknowledged[self._number] = value

    def _write(self) -> None:
        name = self._random.choice(self._singles)
        self._put(name, self._value(name), {})

    def _compare_and_set(self) -> None:
        name = self._random.choice(self._singles)
        if self._held.get(name) is not None and name in self._tags:
            self._put(name, self._value(name), {"If-Match": self._tags[name]})

    def _write_late(self) -> None:
        name = self._random.choice(self._singles)
        if self._held.get(name) is None:
            return
        path = f"kv/{self._bucket}/{name}"
        self._ask("PUT", path, 412, b"refused", {"If-Match": '"0-late"'}, doubtful=name)

    def _delete(self) -> None:
        name = self._random.choice(self._singles)
        expected = 404 if self._held.get(name) is None else 200
        self._ask("DELETE", f"kv/{self._bucket}/{name}", expected, doubtful=name)
        self._held[name] = None

    def _put(self, name: str, value: bytes, headers: dict[str, str]) -> None:
        path = f"kv/{self._bucket}/{name}"
        answer = self._ask("PUT", path, 200, value, headers, doubtful=name)
        self._held[name] = value
        self._tags[name] = answer.headers.get("ETag", "")

    def _write_batch(self) -> None:
        values = {name: self._value(name) for name in self._some()}
        items = [{"key": name, "data": value.decode()} for name, value in values.items()]
        results = self._ask_batch("PUT", items)
        right = ["updated" if self._held.get(name) is not None else "inserted" for name in values]
        self._compare_results("PUT", results, right)
        self._held.update(values)

    def _delete_batch(self) -> None:
        names = self._some()
        results = self._ask_batch("DELETE", [{"key": name} for name in names])
        right = ["missing" if self._held.get(name) is None else "deleted" for name in names]
        self._compare_results("DELETE", results, right)
        self._held.update(dict.fromkeys(names))

    def _read_batch(self) -> None:
        names = self._some()
        began = time.time()
        answers = self._ask_batch("POST", [{"key": name} for name in names])
        for name in names:
            right = self._held.get(name)
            got = answers.get(name)
            if got != (None if right is None else right.decode()):
                told = _short(None if got is None else got.encode())
                self._tally.lie(f"POST batch, {name}", began, told, _short(right))

    # How it asks.

    def _ask_batch(self, method: str, items: list[dict[str, str]]) -> Any:
        kind = {"Content-Type": "application/json"}
        body = json.dumps(items).encode()
        doubtful = "" if method == "POST" else "batch"
        path = f"multi/{self._bucket}"
        return json.loads(self._ask(method, path, 200, body, kind, doubtful=doubtful).body)

    def _compare_results(self, method: str, results: Any, right: list[str]) -> None:
        got = [each.get("result") for each in results]
        if got != right:
            self._tally.lie(f"{method} batch", time.time(), str(got), str(right))

    def _ask(
        self,
        method: str,
        path: str,
        expected: int,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        *,
        doubtful: str = "",
    ) -> Answer:
        """The answer; Failed unless it came whole and has the expected status.

        ``doubtful`` names what a failure leaves in doubt: those keys are not used again.
        """
        what = f"{method} /{path}"
        began = time.time()
        answer = None
        is_kept = self._connection.sock is not None
        try:
            try:
                answer = self._send(method, path, body, headers)
            except _CLOSED:
                if not (self._reopens and is_kept):
                    raise
                with self._tally.lock:
                    self._tally.reopened += 1
                self._connection.close()
                answer = self._send(method, path, body, headers)
            kind = "" if answer.status == expected else f"{answer.status}, not {expected}"
        except (OSError, http.client.HTTPException) as error:
            kind = repr(error)
        self._tally.answered(what, began, answer)
        if not kind:
            return answer
        if answer:
            said = {name: answer.headers.get(name) for name in ("X-Cache", "X-Served-By")}
            kind += f" ({said}): {answer.body[:200]!r}"
        self._tally.fail(what, began, kind)
        if doubtful == "batch":
            self._batch = [self._new_name() for _ in self._batch]
        elif doubtful:
            self._singles[self._singles.index(doubtful)] = self._new_name()
        raise Failed

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None
    ) -> Answer:
        if self._connection.sock is None:
            with self._tally.lock:
                self._tally.connections += 1
        self._connection.request(method, f"/{path}", body, {**self._headers, **(headers or {})})
        with self._connection.getresponse() as response:
            return Answer(response.status, response.headers, response.read())

    def _some(self) -> list[str]:
        return self._random.sample(self._batch, self._random.randint(1, len(self._batch)))

    def _new_name(self) -> str:
        self._names += 1
        return f"{self._counters.run}-{self._number}-{self._names}"

    def _value(self, name: str) -> bytes:
        """A value that was never written before, 20 bytes to 100 kB."""
        self._written += 1
        length = self._random.choices((20, 300, 3_000, 100_000), (50, 35, 14, 1))[0]
        return f"{name} #{self._written} ".encode().ljust(length, b".")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Replace the report as a whole: a reader never sees half of it."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(report, indent=2) + "\n")
    draft.replace(path)


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or the time is over; 1 if anything failed or was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="where nginx answers plain HTTP")
    parser.add_argument("--bucket", default="hammer", help="one that exists")
    parser.add_argument("--report", type=Path, required=True, help="the file to keep up to date")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rate", type=float, default=8, help="requests a second of each client")
    parser.add_argument("--seconds", type=float, default=900, help="when to end at the latest")
    parser.add_argument("--requests", type=float, default=float("inf"), help="end after so many")
    parser.add_argument("--host", default="", help="the name to ask for, if not the URL's")
    parser.add_argument("--reopen", action="store_true", help="what a kept connection's end broke")
    given = parser.parse_args(arguments)

    stop, tally = threading.Event(), Tally()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
    counters = Counters(f"{time.time():.0f}", [0] * given.clients, [0] * given.clients)
    clients = [
        Client(
            n,
            given.url,
            given.bucket,
            given.rate,
            given.host,
            given.reopen,
            tally,
            counters,
            stop,
        )
        for n in range(given.clients)
    ]
    deadline = time.monotonic() + given.seconds
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    while not stop.wait(0.5) and time.monotonic() < deadline:
        report = tally.report(len(clients), finished=False)
        write_report(given.report, report)
        if report["requests"] >= given.requests:
            break
    stop.set()
    for thread in threads:
        thread.join(30)
    stuck = any(thread.is_alive() for thread in threads)
    report = tally.report(len(clients), finished=not stuck)
    write_report(given.report, report)
    print(
        f"{report['requests']} requests of {report['clients']} clients in {report['seconds']} s: "
        f"{report['failed']} failed, {report['wrong']} wrong"
    )
    return 1 if report["failed"] or report["wrong"] or stuck else 0


if __name__ == "__main__":
    sys.exit(main())
