"""The prober sees what no client should, and is quiet where all is well."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Database
from tests.service import Client, running, wait_until
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
