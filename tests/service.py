"""A running ``poky serve`` as a black box, and a client that sends exactly what it is told.

Or a Poky that was deployed, with what is in front of it: whoever tests HTTP alone need not know.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Headers = dict[str, str]


def wait_until(condition: Callable[[], Any], timeout: float = 20, what: str = "") -> Any:
    """Return the condition's value once it is true; fail with a sentence at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout} s: {what or condition}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def etag(self) -> str:
        return self.headers["ETag"]

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a refusal, for programs."""
        assert self.detail
        return self.json()["code"]

    @property
    def detail(self) -> str:
        """The sentence of a refusal, which must be problem details (RFC 9457)."""
        assert self.headers["Content-Type"] == "application/problem+json", self.body
        assert self.headers["Cache-Control"] == "no-store"
        problem = self.json()
        assert set(problem) == {"type", "title", "status", "code", "detail"}
        assert problem["status"] == self.status
        return problem["detail"]


class Client:
    """One kept-alive connection."""

    def __init__(self, port: int, timeout: float = 30, host: str = "127.0.0.1") -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Headers | None = None,
    ) -> Response:
        if isinstance(body, str):
            body = body.encode()
        self._connection.putrequest(method, path, skip_accept_encoding=True)
        sent = {
            **({"Content-Length": str(len(body))} if body is not None else {}),
            **(headers or {}),
        }
        for name, value in sent.items():
            self._connection.putheader(name, value)
        self._connection.endheaders(body)
        answer = self._connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())

    def get(self, path: str, **headers: str) -> Response:
        return self.request("GET", path, headers=_named(headers))

    def put(self, path: str, body: bytes | str = b"", **headers: str) -> Response:
        return self.request("PUT", path, body, _named(headers))

    def delete(self, path: str, **headers: str) -> Response:
        return self.request("DELETE", path, headers=_named(headers))

    def batch(
        self, method: str, bucket: str, items: Any, query: str = "", **headers: str
    ) -> Response:
        return self.request(
            method,
            f"/multi/{bucket}{query}",
            json.dumps(items),
            {"Content-Type": "application/json", **_named(headers)},
        )

    def close(self) -> None:
        self._connection.close()


def _named(headers: Headers) -> Headers:
    """if_match=… for If-Match."""
    return {name.replace("_", "-").title(): value for name, value in headers.items()}


def free_ports(count: int) -> list[int]:
    """Ports to listen on that nothing listens on, and that nobody else was given of late.

    A counter in a file hands them out, to all test processes of this machine in turn: of two who
    drew the same port at random before either listened, one would fail. They lie below the
    kernel's ephemeral ports, which could become the local port of somebody's connection.
    """
    ports: list[int] = []
    with Path(f"/tmp/poky-test-ports-{os.geteuid()}").open("a+b") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        counter.seek(0)
        turn = int(counter.read() or random.SystemRandom().randrange(len(_PORTS)))
        while len(ports) < count:
            turn += 1
            with contextlib.suppress(OSError):
                port = _PORTS[turn % len(_PORTS)]
                socket.create_server(("127.0.0.1", port)).close()
                ports.append(port)
        counter.truncate(0)
        counter.write(str(turn).encode())
    return ports


_PORTS = range(10240, 32000)


@dataclass
class Service:
    """A process ``poky serve``."""

    dsn: str
    log: Path
    settings: Headers = field(default_factory=dict)
    port: int = 0
    admin_port: int = 0
    lease_port: int = 0
    module: str = "poky"
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        ports = free_ports(3)
        self.port = self.port or ports[0]
        self.admin_port, self.lease_port = ports[1:]

    def start(self, *, wait: bool = True, output: int | None = None) -> Service:
        """Start it; ``output``: where its log goes in place of the file."""
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("POKY_", "DATABASE_URL"))
        }
        settings = {
            "POKY_DSN": self.dsn,
            "POKY_PORT": str(self.port),
            "POKY_ADMIN_PORT": str(self.admin_port),
            "POKY_LEASE_PORT": str(self.lease_port),
            **self.settings,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "serve"],
                env={**clean, **settings},
                stdout=log if output is None else output,
                stderr=log if output is None else output,
            )
        if wait:
            wait_until(self.is_ready, what=f"poky serve is ready; see {self.log}")
        return self

    def is_ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, f"poky serve ended:\n{self.log.read_text()}"
        try:
            return self.client().get("/status").status == 200
        except OSError:
            return False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, timeout: float = 30) -> Client:
        return Client(self.port, timeout)

    def admin(self) -> Client:
        return Client(self.admin_port)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(40)


@dataclass(frozen=True)
class Deployed:
    """A Poky that runs somewhere: through nginx and Varnish, and one instance's admin listener."""

    url: str
    admin_url: str
    # Its log is elsewhere; what must not be in it is looked for in an empty one.
    log: Path = Path(os.devnull)

    def client(self, timeout: float = 30) -> Client:
        return self._client(self.url, timeout)

    def admin(self) -> Client:
        return self._client(self.admin_url)

    @staticmethod
    def _client(url: str, timeout: float = 30) -> Client:
        parts = urlsplit(url)
        return Client(parts.port or 80, timeout, parts.hostname or "127.0.0.1")


def deployed() -> Deployed | None:
    """The Poky that the environment names in place of services of our own."""
    url = os.environ.get("POKY_TEST_URL")
    return Deployed(url, os.environ["POKY_TEST_ADMIN_URL"]) if url else None


@contextmanager
def running(dsn: str, log: Path, **settings: str) -> Iterator[Service]:
    """A service for the length of a block; settings without their POKY_, in lower case."""
    service = Service(dsn, log, {f"POKY_{name.upper()}": value for name, value in settings.items()})
    try:
        yield service.start()
    finally:
        if service.process and service.process.poll() is None:
            service.stop()
