"""The prober sees what no client should, and is quiet where all is well."""

from __future__ import annotations

import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poky.config import Config
from poky.metrics import Histogram
from poky.probe import Probe, _Canary
from poky.store import Put, StoreError
from tests.conftest import Database
from tests.service import Client, running, wait_until
from tests.test_client import scripted
from tests.test_exported import value

pytestmark = [pytest.mark.parametrize("kind", ["partitioned"]), pytest.mark.slow]


class Node(ThreadingHTTPServer):
    """A cache that passes everything on; it may keep what it once had."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.keeps = False
        self.kept: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Node
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        node = self.server
        body = node.kept.get(self.path) if node.keeps else None
        status = 200
        if body is None:
            try:
                url = f"http://127.0.0.1:{node.target}{self.path}"
                with urllib.request.urlopen(url, timeout=20) as answer:
                    body = node.kept[self.path] = answer.read()
            except urllib.error.HTTPError as error:
                status, body = error.code, error.read()
            except OSError:
                status, body = 503, b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def node(target: int) -> Iterator[Node]:
    server = Node(target)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def reads(admin: Client, name: str, outcome: str) -> float:
    return value(admin, "poky_probe_reads_total", node=name, outcome=outcome)


def stale(admin: Client, name: str) -> float:
    return value(admin, "poky_probe_stale_total", node=name)


def test_a_stale_read_is_seen_where_it_is(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with node(0) as good, node(0) as bad:
        settings = {
            "probe": f"good={good.url} bad={bad.url} gone=http://127.0.0.1:9",
            "probe_seconds": "0.1",
            "statement_timeout": "30",
        }
        with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
            admin = service.admin()
            good.target = bad.target = service.port
            wait_until(lambda: reads(admin, "bad", "fresh") >= 3)
            assert stale(admin, "good") == stale(admin, "bad") == 0
            bad.keeps = True
            wait_until(lambda: stale(admin, "bad") >= 2)
            wait_until(lambda: value(admin, "poky_probe_writes_total", outcome="acknowledged") > 5)
            assert stale(admin, "good") == 0
            assert reads(admin, "good", "fresh") > 3
            assert reads(admin, "gone", "failed") > 3
            assert stale(admin, "gone") == 0
            assert value(admin, "poky_probe_visible_seconds_count", node="good") > 3
            assert value(admin, "poky_probe_visible_seconds_count", node="gone") == 0
            assert "a read through bad was stale" in service.log.read_text()
            said = "A read through a cache was stale."
            wait_until(lambda: said in admin.get("/", accept="text/html").body.decode())

            # A bucket that is dropped is made again, and what is dropped is no stale read.
            assert admin.request("DELETE", "/buckets/poky-probe?keys=drop").status == 200
            before = reads(admin, "good", "fresh")
            wait_until(lambda: reads(admin, "good", "fresh") > before + 3)
            assert stale(admin, "good") == 0


def test_without_a_probe_nothing_is_written(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with running(own_database.dsn_service, tmp_path / "log") as service:
        assert service.admin().get("/buckets").json() == {"buckets": []}
        tasks = service.client().get("/status?verbose").json()["background"]
        assert "probe" not in [task["name"] for task in tasks]


# One canary, by what a cache and a database say.


class Told:
    """A store and its writes, which come to what the next of ``outcomes`` says."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []
        self.made: list[Any] = []
        self.buckets: list[str] = []
        self.turns = 0

    def ensure_bucket(self, name: str) -> None:
        self.buckets.append(name)

    def add(self, writing: Any) -> None:
        self.made.append(writing.write)
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            writing.done(outcome)

    def after_turn(self, alone: bool) -> None:
        assert not alone
        self.turns += 1


def canary(told: Told, url: str, shard: int = 0) -> _Canary:
    config = Config.from_env({"POKY_PROBE": f"one={url}", "POKY_INSTANCE": "me:1"})
    return _Canary(told, told, config, shard, Histogram())  # type: ignore[arg-type]


def test_what_a_read_says_of_a_canary(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    dropped = b'{"code": "bucket_not_found"}'
    with scripted(
        ("200 OK", b"5"),
        ("200 OK", b"6"),
        ("200 OK", b"4"),
        ("404 Not Found", b""),
        ("503 Busy", b""),
        ("200 OK", b"no number"),
        ("404 Not Found", dropped),
        ("200 OK", b"7"),
    ) as cache:
        bird = canary(Told(), cache.url)
        bird._acknowledged, bird._has_bucket = 5, True
        (node,) = bird._nodes
        assert [bird._read(node) for _ in range(2)] == [True, True]
        assert bird.stale_at is None
        assert [bird._read(node) for _ in range(2)] == [False, False]
        assert dict(bird.reads) == {("one", "fresh"): 2, ("one", "stale"): 2}
        assert bird.stale == {"one": 2}
        assert bird.stale_at
        assert "a read through one was stale: canary 4, not 5" in caplog.text
        assert [bird._read(node) for _ in range(2)] == [False, False]
        assert (bird._acknowledged, bird._has_bucket) == (5, True)
        assert not bird._read(node)  # the bucket was dropped, and the canaries with it
        assert (bird._acknowledged, bird._has_bucket) == (0, False)
        assert not bird._read(node)  # fresh, and of no write that was acknowledged
        assert bird.reads["one", "failed"] == 3
        assert bird.reads["one", "fresh"] == 3
        assert cache.lines == [b"GET /kv/poky-probe/canary.me:1"] * 8


def test_a_failure_to_read_is_logged_once_until_it_ends(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    busy, ok = ("503 Busy", b""), ("200 OK", b"7")
    with scripted(busy, busy, ("502 Bad", b""), ok, ("502 Bad", b"")) as cache:
        bird = canary(Told(), cache.url)
        (node,) = bird._nodes
        for _ in range(5):
            bird._read(node)
    said = "a canary could not be read through one: it answered"
    assert caplog.messages == [f"{said} {status}" for status in (503, 502, 502)]


def test_a_probe_shows_what_all_its_canaries_saw(kind: str) -> None:
    config = Config.from_env({"POKY_PROBE": "one=http://127.0.0.1:9", "POKY_PROBE_SECONDS": "7"})
    probe = Probe(Told(), Told(), config)  # type: ignore[arg-type]
    (bird,) = probe._canaries.values()
    probe._canaries["probe-2"] = other = canary(Told(), "http://127.0.0.1:9", 2)
    assert probe.figures()["probe_stale"].read() == {"one": 0}
    for each in (bird, other):
        each.reads["one", "fresh"] += 2
        each.written["failed"] += 1
    other.stale["one"] += 1
    other.stale_at = 7.0
    read = {name: figure.read() for name, figure in probe.figures().items()}
    assert read["probe_reads"] == {("one", "fresh"): 4}
    assert read["probe_writes"] == {"failed": 2}
    assert read["probe_stale"] == {"one": 1}
    assert read["probe_visible_seconds"] is probe._visible
    assert probe.stale_at == 7.0
    bird.stale_at = 9.0
    assert probe.stale_at == 9.0
    added: list[Any] = []
    probe.start(SimpleNamespace(add=lambda *task, period: added.append((*task, period))))  # type: ignore[arg-type]
    assert added == [("probe", bird.run, 7.0), ("probe-2", other.run, 7.0)]
    assert bird._bucket == "poky-probe"
    assert other._bucket == "poky-probe-2"
    assert bird._patience > config.lease_seconds


def test_what_a_write_of_a_canary_comes_to(kind: str) -> None:
    told = Told()
    bird = canary(told, "http://127.0.0.1:9")
    first = bird._number
    began = time.monotonic()
    done = Put("updated", 1, "h", 1, None)
    refusal = StoreError(503, "Away.", code="database_unavailable")
    for outcome, counted in (
        ("updated", "acknowledged"),
        ("inserted", "acknowledged"),
        ("no bucket", "failed"),
    ):
        told.outcomes = [done._replace(outcome=outcome)]
        bird._has_bucket = True
        before = bird.written[counted]
        bird._write()
        assert bird.written[counted] == before + 1
        assert bird._has_bucket is (counted == "acknowledged")
    assert bird._acknowledged == first + 2
    assert [write.value.content for write in told.made] == [
        str(first + number).encode() for number in (1, 2, 3)
    ]
    assert {write[:2] for write in told.made} == {("poky-probe", "canary.me:1")}
    told.outcomes = [refusal]
    with pytest.raises(StoreError, match="Away"):
        bird._write()
    assert time.monotonic() - began < 5, "it waits no longer than for the outcome"
    assert told.turns == 4
    bird._patience = 0.05
    told.outcomes = [None]
    with pytest.raises(StoreError) as failed:
        bird._write()
    assert failed.value.code == "outcome_unknown"
    assert bird.written == {"acknowledged": 2, "failed": 3}
    assert bird._acknowledged == first + 2


def test_a_run_reads_before_and_twice_after_a_write(kind: str) -> None:
    told = Told()
    with scripted(("404 Not Found", b""), ("200 OK", b"9" * 20)) as cache:
        bird = canary(told, cache.url, 2)
        for runs in (1, 2):
            told.outcomes = [Put("updated", 1, "h", 1, None)]
            told.ensure_bucket = lambda name, shard=None: told.buckets.append(name)  # type: ignore[method-assign, misc]
            bird.run()
            assert len(cache.lines) == 3 * runs
            (series,) = bird._visible.series().values()
            assert sum(series[:-1]) == runs
            assert 0 < series[-1] < 5 * runs
        assert told.buckets == ["poky-probe-2"]
        assert bird.reads == {("one", "fresh"): 6}
    probe = Probe(told, told, Config.from_env({}))  # type: ignore[arg-type]
    assert probe.stale_at is None
    (only,) = probe._canaries.values()
    only.stale_at = 7.0
    assert probe.stale_at == 7.0


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n5", b""])
def test_a_connection_that_a_cache_has_closed_is_made_anew(kind: str, answer: bytes) -> None:
    """One that it was to keep, as it said; a new one is not tried twice."""
    accepted: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        accepted.append(1)
                        connection.recv(65536)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        bird = canary(Told(), f"http://127.0.0.1:{listener.getsockname()[1]}")
        (node,) = bird._nodes
        for _ in range(3):
            bird._read(node)
        assert bird.reads == {("one", "fresh" if answer else "failed"): 3}
        assert len(accepted) == 3
        listener.shutdown(socket.SHUT_RDWR)
