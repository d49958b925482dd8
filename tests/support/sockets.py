"""A server around an application, and clients that send exactly the bytes they are given."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import bottle

from poky.http import Server

GIVE_UP = 10.0  # seconds after which a test fails rather than waits
MAX_BODY = 32 * 1024 * 1024
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """A socket that reads whole answers, and knows a clean end from a reset."""

    def __init__(self, address: Any) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        if not isinstance(address, str) and ":" in address[0]:
            family = socket.AF_INET6
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(GIVE_UP)
        self.socket.connect(address)
        self.pending = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def finish(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def _receive(self) -> bool:
        data = self.socket.recv(1 << 18)
        self.pending += data
        return bool(data)

    def answer(self, head_only: bool = False) -> Answer | None:
        """The next answer; None at the end of the connection."""
        while b"\r\n\r\n" not in self.pending:
            if not self._receive():
                assert self.pending == b""
                return None
        head, self.pending = self.pending.split(b"\r\n\r\n", 1)
        line, *fields = head.decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1.1 ")
        headers = {}
        for name, value in (line.split(": ", 1) for line in fields):
            assert name.lower() not in headers
            headers[name.lower()] = value
        status = int(line[9:12])
        length = 0 if head_only or status < 200 else int(headers.get("content-length", 0))
        while len(self.pending) < length:
            assert self._receive(), "the answer was cut short"
        body, self.pending = self.pending[:length], self.pending[length:]
        return Answer(status, headers, body)

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        answer = self.answer()
        assert answer is not None
        return answer

    def at_end(self) -> bool:
        """Wait for the end of the connection; False if there is anything before it."""
        return not self.pending and not self._receive()

    def is_open(self) -> bool:
        answer = self.ask(b"GET /probe HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        return answer.status == 200 and self.at_end()


@dataclass
class Serving:
    """A running server around a Bottle application that records what reached it."""

    server: Server
    calls: list[tuple[str, str, bytes]]
    log: list[tuple[str, str, int, int]]
    clients: list[Client] = field(default_factory=list)

    def client(self) -> Client:
        client = Client(self.server.bind_addr)
        self.clients.append(client)
        return client


def bottle_app() -> bottle.Bottle:
    app = bottle.Bottle()

    @app.route("/get-only")
    def get_only() -> bytes:
        return b"got"

    @app.route("/big/<size:int>")
    def big(size: int) -> bytes:
        return bytes(size)

    @app.route("/status/<code:int>")
    def status(code: int) -> bottle.HTTPResponse:
        return bottle.HTTPResponse(b"body", code, ETag='"1"')

    @app.route("/<path:path>", method=["GET", "PUT", "POST"])
    def echo(path: str) -> bytes:
        return bottle.request.environ["wsgi.input"].read()

    return app


def eventually(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + GIVE_UP
    while not (result := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.005)
    return result


@contextlib.contextmanager
def serving(app: Any = None, **settings: Any) -> Iterator[Serving]:
    inner = app or bottle_app()
    calls: list[tuple[str, str, bytes]] = []
    log: list[tuple[str, str, int, int]] = []

    def recording(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read()
        environ["wsgi.input"] = io.BytesIO(body)
        calls.append((environ["REQUEST_METHOD"], environ["REQUEST_URI"], body))
        return inner(environ, start_response)

    def on_response(environ: dict[str, Any], status: int, sent: int, seconds: float) -> None:
        assert 0 <= seconds < GIVE_UP * 2
        log.append((environ["REQUEST_METHOD"], environ["REQUEST_URI"], status, sent))

    settings = {"threads": 2, "max_body_bytes": MAX_BODY, "on_response": on_response, **settings}
    bind = settings.pop("bind", ("127.0.0.1", 0))
    server = Server(bind, recording, **settings)
    server.expiration_interval = 0.02  # how long cheroot's accepting may take to notice stop()
    server.prepare()
    accepting = threading.Thread(target=server.serve)
    accepting.start()
    service = Serving(server, calls, log)
    try:
        yield service
    finally:
        for client in service.clients:
            client.socket.close()
        server.stop()
        accepting.join(GIVE_UP)
        assert not accepting.is_alive()


def get(target: str = "/x", *fields: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: h", *fields, "", ""]).encode("latin-1")


def put(body: bytes, *fields: str, target: str = "/x") -> bytes:
    head = [f"PUT {target} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def simple_app(
    status: str = "200 OK",
    headers: Any = (),
    body: Any = (b"ok",),
    fail: BaseException | None = None,
) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/probe":
            start_response("200 OK", [])
            return [b""]
        if fail is not None:
            raise fail
        start_response(status, list(headers))
        return body

    return app
