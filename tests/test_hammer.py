"""The load generator of the deployments: content with what is right, and with nothing else."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import hammer
from tests.service import Service

Answer = tuple[int, dict[str, str], bytes]


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a service, and now and then does what a bad deployment does."""

    daemon_threads = True

    def __init__(self, service: Service, fault: str) -> None:
        self.service, self.fault, self.passed = service, fault, 0
        self.seen: dict[str, Answer] = {}
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass_on(self) -> None:
        self.server.passed += 1
        fault = self.server.fault
        if self.server.passed < 100 or (fault != "garbles" and self.server.passed % 5):
            fault = ""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fault == "refuses":
            return self._answer(503, {}, b"")
        status, headers, said = self._ask(body)
        if fault == "stale" and self.command == "GET":
            status, headers, said = self.server.seen.get(self.path, (status, headers, said))
        if self.command == "GET" and status == 200:
            self.server.seen.setdefault(self.path, (status, headers, said))
        if fault == "garbles" and self.command == "POST":
            said = b"{"
        if fault == "announces":
            headers["Connection"] = "close"
        if fault == "loses" and self.command == "PUT":
            self.close_connection = True
            return None
        self._answer(status, headers, said)
        if fault == "hangs up":
            self.close_connection = True
        return None

    do_GET = do_PUT = do_DELETE = do_POST = _pass_on

    def _ask(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.service.port, timeout=20)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        headers = {"ETag": answer.headers["ETag"]} if "ETag" in answer.headers else {}
        said = answer.read()
        connection.close()
        return answer.status, headers, said

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


pytestmark = [pytest.mark.parametrize("kind", ["partitioned"], scope="session"), pytest.mark.slow]


@pytest.fixture
def hammered(
    service: Service, bucket: str, tmp_path: Path
) -> Iterator[Callable[..., dict[str, Any]]]:
    """The report of some hundred requests through a proxy with a fault."""
    proxies: list[Proxy] = []

    def hammered(fault: str, *more: str) -> dict[str, Any]:
        proxy = Proxy(service, fault)
        proxies.append(proxy)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{proxy.server_address[1]}"
        report = tmp_path / "report.json"
        options = [
            "--bucket",
            bucket,
            "--clients",
            "4",
            "--rate",
            "100",
            "--requests",
            "300",
            *more,
        ]
        status = hammer.main([url, "--report", str(report), *options])
        found = json.loads(report.read_text())
        assert found["finished"]
        assert found["requests"] >= 300
        assert status == (1 if found["failed"] or found["wrong"] else 0)
        return found

    yield hammered
    for proxy in proxies:
        proxy.shutdown()
        proxy.server_close()


def test_a_service_that_is_right_has_no_failures(hammered: Any) -> None:
    report = hammered("nothing")
    assert (report["failed"], report["wrong"]) == (0, 0), report
    assert set(report["kinds"]) == {"GET", "PUT", "POST", "DELETE"}
    assert report["connections"] == report["clients"] == 4


def test_a_connection_may_end_if_its_end_is_announced(hammered: Any) -> None:
    report = hammered("announces")
    assert (report["failed"], report["wrong"]) == (0, 0), report
    assert report["connections"] > 4


@pytest.mark.parametrize("fault", ["refuses", "hangs up", "loses", "garbles"])
def test_what_was_not_answered_well_has_failed(hammered: Any, fault: str) -> None:
    report = hammered(fault)
    assert report["failed"], report
    assert report["wrong"] == 0, report
    assert set(report["failures"][0]) == {"began", "seen", "request", "kind"}


def test_a_kept_connection_may_end_for_who_opens_it_again(hammered: Any) -> None:
    report = hammered("hangs up", "--reopen")
    assert (report["failed"], report["wrong"]) == (0, 0), report
    assert report["reopened"] > 4


def test_who_opens_again_takes_no_refusal(hammered: Any) -> None:
    assert hammered("refuses", "--reopen")["failed"]


def test_an_old_value_is_wrong(hammered: Any) -> None:
    report = hammered("stale")
    assert report["wrong"], report
    assert report["lies"][0]["got"] != report["lies"][0]["right"]
