"""The reader against raw bytes, and the promises of `Server` against real sockets."""

from __future__ import annotations

import array
import contextlib
import io
import json
import logging
import os
import random
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from wsgiref.validate import validator

import bottle
import pytest

from poky.http import Server, connection
from poky.http.head import Refusal, parse_head

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
class Service:
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
def serving(app: Any = None, **settings: Any) -> Iterator[Service]:
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
    service = Service(server, calls, log)
    try:
        yield service
    finally:
        for client in service.clients:
            client.socket.close()
        server.stop()
        accepting.join(GIVE_UP)
        assert not accepting.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    """One server for all rows of the corpus: what a row leaves behind, the next one meets."""
    with serving() as service:
        yield service


@pytest.fixture
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def get(target: str = "/x", *fields: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: h", *fields, "", ""]).encode("latin-1")


def put(body: bytes, *fields: str, target: str = "/x") -> bytes:
    head = [f"PUT {target} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


# -- the corpus: raw bytes -> statuses, and whether the connection ends

CLOSES, STAYS, FIN = "closes", "stays", "closes after the client's FIN"


def with_head(*fields: bytes, line: bytes = b"POST /x HTTP/1.1", body: bytes = SMUGGLED) -> bytes:
    return b"\r\n".join([line, *fields, b"", b""]) + body


def length(value: bytes, body: bytes = SMUGGLED) -> bytes:
    return with_head(b"Host: h", b"Content-Length: " + value, body=body)


def coding(*fields: bytes, line: bytes = b"POST /x HTTP/1.1") -> bytes:
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    return with_head(b"Host: h", *fields, line=line, body=chunk + SMUGGLED)


def header(line: bytes, body: bytes = SMUGGLED) -> bytes:
    return with_head(b"Host: h", line, b"Content-Length: 0", body=body)


def host(*lines: bytes, line: bytes = b"GET /x HTTP/1.1") -> bytes:
    return with_head(*lines, line=line)


def target(text: bytes, method: bytes = b"GET") -> bytes:
    return with_head(b"Host: h", line=method + b" " + text + b" HTTP/1.1", body=b"")


def request_line(line: bytes, body: bytes = b"") -> bytes:
    return with_head(b"Host: h", line=line, body=body)


CORPUS: list[tuple[str, bytes, list[int], str]] = [
    # Content-Length
    ("length twice, the same", length(b"0\r\nContent-Length: 0"), [400], CLOSES),
    ("length twice, different", length(b"0\r\nContent-Length: 35"), [400], CLOSES),
    ("length twice, in other case", length(b"0\r\ncontent-length: 35"), [400], CLOSES),
    ("length as a list", length(b"0, 0"), [400], CLOSES),
    ("length with plus", length(b"+3"), [400], CLOSES),
    ("length negative", length(b"-1"), [400], CLOSES),
    ("length in hex", length(b"0x3"), [400], CLOSES),
    ("length with underscore", length(b"4_2"), [400], CLOSES),
    ("length of 10^30", length(b"1" + b"0" * 30), [400], CLOSES),
    ("length empty", length(b""), [400], CLOSES),
    ("length with point", length(b"3.0"), [400], CLOSES),
    ("length with parameter", length(b"0;a=1"), [400], CLOSES),
    ("length with inner space", length(b"1 0"), [400], CLOSES),
    ("length in superscript", length(b"\xb2"), [400], CLOSES),
    ("length in fullwidth digits", length("\uff13".encode()), [400], CLOSES),
    ("length after a vertical tab", length(b"\x0b0"), [400], CLOSES),
    ("length after a no-break space", length(b"\xa00"), [400], CLOSES),
    ("length before a form feed", length(b"0\x0c"), [400], CLOSES),
    ("length above the limit", length(b"999999999999"), [413], CLOSES),
    ("length name with underscore", header(b"Content_Length: 35"), [400], CLOSES),
    ("length name, then space", with_head(b"Host: h", b"Content-Length : 36"), [400], CLOSES),
    ("length name, then tab", with_head(b"Host: h", b"Content-Length\t: 36"), [400], CLOSES),
    ("length name after space", with_head(b"Host: h", b" Content-Length: 35"), [400], CLOSES),
    ("length in blanks", length(b"\t 2 \t", b"ab"), [200], STAYS),
    ("length with zeros", length(b"002", b"ab"), [200], STAYS),
    ("no length, no body", with_head(b"Host: h", body=b""), [200], STAYS),
    ("a body of GET is read", with_head(b"Host: h", b"Content-Length: 35", line=b"GET /x HTTP/1.1"),
     [200], STAYS),
    ("more than the length", length(b"2", b"ab#"), [200, 400], CLOSES),
    ("less than the length", length(b"99", b"ab"), [400], FIN),
    ("nothing of the length", length(b"99", b""), [400], FIN),
    # Transfer-Encoding
    ("chunked", coding(b"Transfer-Encoding: chunked"), [411], CLOSES),
    ("Chunked", coding(b"Transfer-Encoding: Chunked"), [411], CLOSES),
    ("length, then chunked", coding(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
     [400], CLOSES),
    ("chunked, then length", coding(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
     [400], CLOSES),
    ("chunked and length 0", coding(b"Transfer-Encoding: chunked", b"Content-Length: 0"),
     [400], CLOSES),
    ("chunked twice", coding(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
     [400], CLOSES),
    ("chunked, identity", coding(b"Transfer-Encoding: chunked, identity"), [400], CLOSES),
    ("identity", coding(b"Transfer-Encoding: identity"), [400], CLOSES),
    ("gzip, chunked", coding(b"Transfer-Encoding: gzip, chunked"), [400], CLOSES),
    ("xchunked", coding(b"Transfer-Encoding: xchunked"), [400], CLOSES),
    ("coding empty", coding(b"Transfer-Encoding:"), [400], CLOSES),
    ("coding in quotes", coding(b'Transfer-Encoding: "chunked"'), [400], CLOSES),
    ("coding name, then space", coding(b"Transfer-Encoding : chunked"), [400], CLOSES),
    ("coding after a vertical tab", coding(b"Transfer-Encoding: \x0bchunked"), [400], CLOSES),
    ("coding before NUL", coding(b"Transfer-Encoding: chunked\x00"), [400], CLOSES),
    ("coding folded", coding(b"Transfer-Encoding:\r\n chunked"), [400], CLOSES),
    ("coding name with underscore", coding(b"Transfer_Encoding: chunked"), [400], CLOSES),
    ("coding after bare LF", coding(b"X: y\nTransfer-Encoding: chunked"), [400], CLOSES),
    ("coding after bare CR", coding(b"X: y\rTransfer-Encoding: chunked"), [400], CLOSES),
    ("chunked in HTTP/1.0", coding(b"Transfer-Encoding: chunked", line=b"POST /x HTTP/1.0"),
     [400], CLOSES),
    ("chunk size wrong", with_head(b"Host: h", b"Transfer-Encoding: chunked", body=b"zz\r\nab\r\n"),
     [411], CLOSES),
    ("chunk size negative", with_head(b"Host: h", b"Transfer-Encoding: chunked", body=b"-1\r\n"),
     [411], CLOSES),
    # header fields
    ("NUL in a value", header(b"X: a\x00b"), [400], CLOSES),
    ("CR in a value", header(b"X: a\rb"), [400], CLOSES),
    ("LF in a value", header(b"X: a\nb: c"), [400], CLOSES),
    ("backspace in a value", header(b"X: a\x08b"), [400], CLOSES),
    ("DEL in a value", header(b"X: a\x7fb"), [400], CLOSES),
    ("escape in a value", header(b"X: \x1b[2J"), [400], CLOSES),
    ("name empty", header(b": x"), [400], CLOSES),
    ("name of 8-bit letters", header(b"X-\xe4: x"), [400], CLOSES),
    ("name with space", header(b"X Y: x"), [400], CLOSES),
    ("name with parenthesis", header(b"X(Y): x"), [400], CLOSES),
    ("name with NUL", header(b"X\x00: x"), [400], CLOSES),
    ("name without colon", header(b"Xyz"), [400], CLOSES),
    ("a known name without colon", header(b"Content-Type"), [400], CLOSES),
    ("line folded", header(b"X: a\r\n b"), [400], CLOSES),
    ("line folded by tab", header(b"X: a\r\n\tb"), [400], CLOSES),
    ("first line folded", with_head(b" X: a", b"Host: h"), [400], CLOSES),
    ("content type twice", header(b"Content-Type: a/b\r\nContent-Type: c/d"), [400], CLOSES),
    ("value empty", header(b"X:", b""), [200], STAYS),
    ("value with tab", header(b"X: a\tb", b""), [200], STAYS),
    ("value of 8-bit letters", header(b"X: \xe4", b""), [200], STAYS),
    ("value without blank", header(b"X:a", b""), [200], STAYS),
    ("lines end in LF", b"GET /x HTTP/1.1\nHost: h\n\n" + SMUGGLED, [400], CLOSES),
    ("lines end in LF, no more comes", b"GET /x HTTP/1.1\nHost: h\n\n", [400], CLOSES),
    ("one line ends in LF", b"GET /x HTTP/1.1\r\nHost: h\nX: y\r\n\r\n" + SMUGGLED, [400], CLOSES),
    ("lines end in CR", b"GET /x HTTP/1.1\rHost: h\r\r" + SMUGGLED, [400], CLOSES),
    ("lines end in CR CR LF", b"GET /x HTTP/1.1\r\r\nHost: h\r\r\n\r\r\n", [400], FIN),
    ("a header of 1 MiB", b"GET /x HTTP/1.1\r\nHost: h\r\nX: " + b"a" * (1 << 20), [431], CLOSES),
    ("10,000 headers", b"GET /x HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 10000 + b"\r\n",
     [431], CLOSES),
    ("101 headers", with_head(b"Host: h", *[b"X: y"] * 100, body=SMUGGLED), [431], CLOSES),
    ("100 headers", with_head(b"Host: h", *[b"X: y"] * 99, body=b""), [200], STAYS),
    # Host
    ("no Host", host(), [400], CLOSES),
    ("two Hosts", host(b"Host: h", b"Host: i"), [400], CLOSES),
    ("two equal Hosts", host(b"Host: h", b"host: h"), [400], CLOSES),
    ("Host empty", host(b"Host:"), [400], CLOSES),
    ("Host of two words", host(b"Host: a b"), [400], CLOSES),
    ("Host list", host(b"Host: a, b"), [400], CLOSES),
    ("Host with path", host(b"Host: a/b"), [400], CLOSES),
    ("Host with user", host(b"Host: a@b"), [400], CLOSES),
    ("Host with a port of letters", host(b"Host: a:b"), [400], CLOSES),
    ("Host with an open bracket", host(b"Host: [::1"), [400], CLOSES),
    ("Host of IPv6", target(b"/x").replace(b"Host: h", b"Host: [::1]:80"), [200], STAYS),
    ("HTTP/1.0 without Host", b"GET /x HTTP/1.0\r\n\r\n", [200], CLOSES),
    ("HTTP/1.0 with a bad Host", b"GET /x HTTP/1.0\r\nHost: a b\r\n\r\n", [400], CLOSES),
    # target
    ("target with NUL", target(b"/a\x00b"), [400], CLOSES),
    ("target with tab", target(b"/a\tb"), [400], CLOSES),
    ("target with 8-bit letters", target(b"/a\xc3\xa4"), [400], CLOSES),
    ("target with %00", target(b"/a%00b"), [400], CLOSES),
    ("target with %0a", target(b"/a%0ab"), [400], CLOSES),
    ("target with %0d%0a", target(b"/a%0d%0ab"), [400], CLOSES),
    ("target with %1f", target(b"/a%1fb"), [400], CLOSES),
    ("target with %7F", target(b"/a%7Fb"), [400], CLOSES),
    ("query with %00", target(b"/a?b=%00"), [400], CLOSES),
    ("target with half an escape", target(b"/a%4"), [400], CLOSES),
    ("target with no escape", target(b"/a%zzb"), [400], CLOSES),
    ("target with fragment", target(b"/a#b"), [400], CLOSES),
    ("target without slash", target(b"x"), [400], CLOSES),
    ("target empty", target(b""), [400], CLOSES),
    ("target of 64 KiB", target(b"/" + b"a" * 65536), [414], CLOSES),
    ("target of 9 KiB", target(b"/" + b"a" * 9216), [414], CLOSES),
    ("target of 8,000 bytes", target(b"/" + b"a" * 7999), [200], STAYS),
    ("target escaped", target(b"/%6b"), [200], STAYS),
    ("target with invalid UTF-8", target(b"/%ff"), [404], STAYS),
    ("target with two slashes", target(b"//x"), [200], STAYS),
    ("target with query", target(b"/x?x=1"), [200], STAYS),
    ("absolute target", target(b"http://h/x"), [200], STAYS),
    ("absolute target, host in other case", target(b"HTTP://H/x"), [200], STAYS),
    ("absolute target of another host", target(b"http://i/x"), [400], CLOSES),
    ("absolute target with user", target(b"http://u@h/x"), [400], CLOSES),
    ("absolute target of https", target(b"https://h/x"), [400], CLOSES),
    ("absolute target without Host", host(line=b"GET http://h/x HTTP/1.1"), [400], CLOSES),
    ("absolute target with an open bracket", target(b"http://[::1/x"), [400], CLOSES),
    ("OPTIONS *", target(b"*", b"OPTIONS"), [400], CLOSES),
    ("CONNECT", target(b"h:443", b"CONNECT"), [400], CLOSES),
    # method and version
    ("TRACE", target(b"/get-only", b"TRACE"), [405], STAYS),
    ("BREW", target(b"/get-only", b"BREW"), [405], STAYS),
    ("PURGE", target(b"/get-only", b"PURGE"), [405], STAYS),
    ("method in small letters", target(b"/x", b"get"), [400], CLOSES),
    ("method with colon", target(b"/x", b"GET:"), [400], CLOSES),
    ("method with control character", target(b"/x", b"GE\x01T"), [400], CLOSES),
    ("method of 1,000 letters", target(b"/x", b"G" * 1000), [400], CLOSES),
    ("HTTP/1.2", request_line(b"GET /x HTTP/1.2"), [505], CLOSES),
    ("HTTP/1.9", request_line(b"GET /x HTTP/1.9"), [505], CLOSES),
    ("HTTP/2.0", request_line(b"GET /x HTTP/2.0"), [505], CLOSES),
    ("HTTP/1.+1", request_line(b"GET /x HTTP/1.+1"), [400], CLOSES),
    ("HTTP/1.10", request_line(b"GET /x HTTP/1.10"), [400], CLOSES),
    ("HTTP/01.1", request_line(b"GET /x HTTP/01.1"), [400], CLOSES),
    ("http/1.1", request_line(b"GET /x http/1.1"), [400], CLOSES),
    ("no version", request_line(b"GET /x"), [400], CLOSES),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505], CLOSES),
    ("two spaces", request_line(b"GET  /x HTTP/1.1"), [400], CLOSES),
    ("tab for space", request_line(b"GET\t/x\tHTTP/1.1"), [400], CLOSES),
    ("space at the end", request_line(b"GET /x HTTP/1.1 "), [400], CLOSES),
    ("space at the beginning", b" " + get(), [400], CLOSES),
    ("an empty line first", b"\r\n" + get(), [200], STAYS),
    ("many empty lines first", b"\r\n\r\n\r\n" + get(), [400], CLOSES),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400], CLOSES),
    ("SSH hello", b"SSH-2.0-OpenSSH_9.2\r\n", [400], FIN),
    ("half a head", b"GET /x HTTP/1.1\r\nHost:", [400], FIN),
    ("nothing", b"", [], FIN),
    # connection options
    ("close", get("/x", "Connection: close"), [200], CLOSES),
    ("Close", get("/x", "Connection: Close"), [200], CLOSES),
    ("close in a list", get("/x", "Connection: TE,\tCLOSE ,x"), [200], CLOSES),
    ("close in a second field", get("/x", "Connection: x", "Connection: close"), [200], CLOSES),
    ("closed is not close", get("/x", "Connection: closed, not-close"), [200], STAYS),
    ("what follows close is dropped", get("/x", "Connection: close") + SMUGGLED, [200], CLOSES),
    ("HTTP/1.0", with_head(line=b"GET /x HTTP/1.0"), [200], CLOSES),
    ("HTTP/1.0 keep-alive", with_head(b"Connection: Keep-Alive", line=b"GET /x HTTP/1.0", body=b""),
     [200], STAYS),
    ("HTTP/1.0 keep-alive and close", with_head(b"Connection: keep-alive, close",
     line=b"GET /x HTTP/1.0"), [200], CLOSES),
    ("upgrade is ignored", get("/x", "Connection: upgrade", "Upgrade: h2c"), [200], STAYS),
    # pipelines and Expect
    ("three at once", get("/1") + put(b"ab", target="/2") + get("/3"), [200] * 3, STAYS),
    ("good, then bad", get("/1") + get("/2", "X : y") + SMUGGLED, [200, 400], CLOSES),
    ("good, then half", get("/1") + b"GET /2 HT", [200, 400], FIN),
    ("Expect with body", put(b"ab", "Expect: 100-Continue"), [200], STAYS),
    ("Expect without body", get("/x", "Expect: 100-continue"), [200], STAYS),
    ("Expect of something else", put(b"ab", "Expect: 200-ok") + SMUGGLED, [417], CLOSES),
    ("Expect in HTTP/1.0", put(b"ab", "Expect: x").replace(b"1.1", b"1.0"), [200], CLOSES),
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "statuses", "ending"), [row[1:] for row in CORPUS], ids=[row[0] for row in CORPUS]
)
def test_corpus(shared: Service, raw: bytes, statuses: list[int], ending: str) -> None:
    shared.calls.clear()
    client = shared.client()
    with contextlib.suppress(ConnectionError):  # it may be refused before all of it was sent
        client.send(raw)
    if ending == FIN:
        client.finish()
    answers = []
    for _ in statuses:
        answers.append(client.answer())
        assert answers[-1] is not None
    assert [answer.status for answer in answers] == statuses
    assert client.is_open() if ending == STAYS else client.at_end()
    if ending != STAYS and statuses:
        assert answers[-1].headers["connection"] == "close"
    from_app = [status for status in statuses if status in (200, 404, 405)]
    served = [uri for _, uri, _ in shared.calls if uri != "/probe"]
    assert len(served) == len(from_app)
    assert "/smuggled" not in served
    for answer in answers:
        if answer.status not in (200, 404, 405):
            problem = json.loads(answer.body)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["cache-control"] == "no-store"
            assert set(problem) == {"type", "title", "status", "detail"}
            assert problem["status"] == answer.status
            assert problem["detail"].endswith(".")


def test_corpus_is_at_least_as_large_as_the_study() -> None:
    assert len({row[0] for row in CORPUS}) == len(CORPUS) >= 81


def test_corpus_sent_byte_by_byte_reads_the_same(shared: Service) -> None:
    raw = b"\r\n" + put(b"abc", "X: y") + get("/2")
    client = shared.client()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in raw:
        client.send(bytes([byte]))
        time.sleep(0)
    assert client.answer().body == b"abc"
    assert client.answer().status == 200
    assert client.is_open()


def test_any_mutation_of_a_head_is_refused_or_read() -> None:
    chance = random.Random(9112)
    seed = put(b"", "Connection: keep-alive", "If-Match: *", "Expect: 100-continue")[:-4]
    pieces = [b"\r\n", b"\n", b"\r", b":", b" ", b"\t", b"\x00", b"%00", b"%", b"\xff", b"0", b"/"]
    read = 0
    for _ in range(20000):
        head = bytearray(seed)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(head))
            head[at : at + chance.randint(0, 2)] = chance.choice(pieces)
        environ: dict[str, Any] = {}
        try:
            body, _, _ = parse_head(bytes(head), environ)
        except Refusal:
            continue
        read += 1
        assert body >= 0
        assert not any(
            ord(char) < 32 and char != "\t" for text in environ.values() for char in text
        )
    assert 500 < read < 15000


# -- what the application sees


def test_the_environ_is_that_of_pep_3333() -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    with serving(validator(app)) as service:
        raw = put(b"ab", "X-One: 1", "x-one: 2", "Cookie: a=1", "Cookie: b=2", "X_One: 3",
                  "Content-Type: text/x", target="/a%20b%2Fc%2fd?q=%20")  # fmt: skip
        assert service.client().ask(raw).status == 200
        port = str(service.server.bind_addr[1])
    expected = {
        "REQUEST_METHOD": "PUT", "SCRIPT_NAME": "", "PATH_INFO": "/a b%2Fc%2fd",
        "QUERY_STRING": "q=%20", "REQUEST_URI": "/a%20b%2Fc%2fd?q=%20", "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "2", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "h",
        "HTTP_X_ONE": "1, 2", "HTTP_COOKIE": "a=1; b=2", "wsgi.url_scheme": "http",
        "wsgi.multithread": True, "wsgi.multiprocess": False,
    }  # fmt: skip
    assert {key: seen[key] for key in expected} == expected


def test_invalid_utf_8_and_8_bit_escapes_reach_the_path_as_bytes(service: Service) -> None:
    environ: dict[str, Any] = {}
    parse_head(b"GET /%c3%a4%ff HTTP/1.1\r\nHost: h", environ)
    assert environ["PATH_INFO"].encode("latin-1") == b"/\xc3\xa4\xff"


def test_an_absolute_target_names_the_host_and_keeps_its_spelling() -> None:
    environ: dict[str, Any] = {}
    parse_head(b"GET http://H:80?a=b HTTP/1.1\r\nHost: h:80", environ)
    assert (environ["HTTP_HOST"], environ["PATH_INFO"]) == ("H:80", "/")
    assert (environ["QUERY_STRING"], environ["REQUEST_URI"]) == ("a=b", "http://H:80?a=b")


def test_bodies_arrive_byte_for_byte(service: Service) -> None:
    client = service.client()
    for size in (0, 1, 16383, 16384, 65537, 5_000_000):
        body = random.Random(size).randbytes(size)
        answer = client.ask(put(body))
        assert answer.status == 200
        assert answer.body == body


# -- answers


def test_head_has_the_headers_of_get_and_no_body(service: Service) -> None:
    client = service.client()
    got = client.ask(get("/get-only"))
    client.send(get("/get-only").replace(b"GET", b"HEAD"))
    head = client.answer(head_only=True)
    assert head.body == b""
    del got.headers["date"], head.headers["date"]
    assert head.headers == got.headers
    assert client.is_open()


def test_head_of_a_refused_request_has_no_body(service: Service) -> None:
    client = service.client()
    client.send(get("/x", "Expect: x").replace(b"GET", b"HEAD"))
    assert client.answer(head_only=True).status == 417
    assert client.at_end()


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_content_have_no_length(service: Service, status: int) -> None:
    client = service.client()
    answer = client.ask(get(f"/status/{status}"))
    assert answer.status == status
    assert "content-length" not in answer.headers
    assert client.is_open()


def test_every_answer_is_dated_and_http_1_0_hears_keep_alive(service: Service) -> None:
    answer = service.client().ask(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answer.headers["connection"] == "keep-alive"
    assert answer.headers["date"].endswith(" GMT")
    assert answer.headers["server"] == "poky"


@pytest.mark.parametrize("size", [0, 12, connection.JOINED_BYTES, 8_000_000])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_memoryview_is_sent_as_the_bytes_it_is(size: int, method: str) -> None:
    numbers = array.array("I", range(size // 4))
    with serving(simple_app(body=[memoryview(numbers)])) as service:
        client = service.client()
        client.send(get().replace(b"GET", method.encode()))
        answer = client.answer(head_only=method == "HEAD")
        assert answer is not None
        assert int(answer.headers.get("content-length", 0)) == size
        assert answer.body == (b"" if method == "HEAD" else numbers.tobytes())
        assert client.is_open()


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


@pytest.mark.parametrize(
    "app",
    [
        simple_app(fail=RuntimeError("secret")),
        simple_app(fail=SystemExit("secret")),
        simple_app(fail=BrokenPipeError("secret")),
        simple_app(headers=[("X", "secret\r\nSet-Cookie: a")]),
        simple_app(headers=[("X", "secret\n")]),
        simple_app(headers=[("X", "secret \u20ac")]),
        simple_app(headers=[("Content-Length", "99")]),
        simple_app(status="secret"),
        simple_app(status="100 Continue"),
        simple_app(status="200 OK\r\nX: secret"),
        simple_app(body=["secret"]),
        simple_app(body=None),
        lambda environ, start_response: [b"secret"],
    ],
)
def test_a_failing_application_is_a_500_and_a_traceback_in_the_log(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(app, threads=1) as service:
        for _ in range(2):  # the only worker survives
            client = service.client()
            answer = client.ask(get("/x"))
            assert answer.status == 500
            assert answer.headers["content-type"] == "application/problem+json"
            assert b"secret" not in answer.body
            assert client.at_end()
    assert [record.exc_info is not None for record in caplog.records] == [True, True]


def test_generators_write_and_close_work_as_in_pep_3333() -> None:
    closed = []

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b"b"
            yield b""
            yield b"c"

        def close(self) -> None:
            closed.append(True)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        with pytest.raises(AssertionError):
            start_response("200 OK", [])
        start_response("202 Accepted", [("X", "y")], (ValueError, ValueError(), None))(b"a")
        return Result()

    with serving(app) as service:
        client = service.client()
        for _ in range(2):
            answer = client.ask(get())
            assert (answer.status, answer.body, answer.headers["x"]) == (202, b"abc", "y")
    assert closed == [True, True]


def test_what_the_application_writes_to_wsgi_errors_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = bottle.Bottle()

    @app.route("/fail")
    def fail() -> None:
        raise RuntimeError("seen only in the log")

    with serving(app) as service:
        assert b"seen only" not in service.client().ask(get("/fail")).body
    assert "seen only in the log" in caplog.text


# -- slow clients, many clients


def test_slow_heads_and_bodies_hold_no_worker() -> None:
    with serving(threads=1) as service:
        for _ in range(100):
            service.client().send(b"GET /x HTTP/1.1\r\nHos")
            service.client().send(put(b"a" * 100)[:-50])
        eventually(lambda: service.server.in_flight == 100)
        client = service.client()
        start = time.monotonic()
        for _ in range(20):
            assert client.ask(get()).status == 200
        assert time.monotonic() - start < 2
        service.clients[1].send(b"a" * 50)
        assert service.clients[1].answer().body == b"a" * 100
        eventually(lambda: service.server.in_flight == 99)


@pytest.mark.parametrize("raw", [b"GET /x HTTP/1.1\r\nHos", put(b"abc")[:-1], put(b"abc")[:-3]])
def test_a_request_that_stalls_is_ended(raw: bytes) -> None:
    with serving(timeout=0.4) as service:
        client = service.client()
        start = time.monotonic()
        client.send(raw)
        assert client.answer().status == 408
        assert 0.3 < time.monotonic() - start < 3
        assert client.at_end()
        assert not service.calls
        assert service.log[-1][2] == 408


def test_a_trickle_does_not_stretch_the_time_for_a_head() -> None:
    with serving(timeout=0.5) as service:
        client = service.client()
        start = time.monotonic()
        client.send(b"GET /x HTTP/1.1\r\nX: ")
        while not select.select([client.socket], [], [], 0.05)[0]:
            client.send(b"a")
            assert time.monotonic() - start < 5
        assert client.answer().status == 408


def test_a_trickle_does_not_stretch_the_time_for_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SLOWEST_TRANSFER", 1000)
    with serving(timeout=0.5) as service:
        client = service.client()
        start = time.monotonic()
        client.send(put(b"a" * 500, "X: y")[:-500])
        while not select.select([client.socket], [], [], 0.05)[0]:
            client.send(b"a")
            assert time.monotonic() - start < 5
        assert client.answer().status == 408
        assert time.monotonic() - start > 0.9
        assert not service.calls


def test_an_idle_connection_ends_without_a_word() -> None:
    with serving(timeout=0.4) as service:
        fresh, used = service.client(), service.client()
        assert used.ask(get()).status == 200
        assert fresh.at_end()
        assert used.at_end()
        assert [entry[2] for entry in service.log] == [200]


def test_a_request_that_waited_for_a_busy_worker_is_served_all_the_same() -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [b""]

    with serving(app, threads=1, timeout=0.3) as service:
        waiting, later, half = service.client(), service.client(), service.client()
        half.send(put(b"abc")[:-1])
        eventually(lambda: service.server.in_flight == 1)
        waiting.send(get("/wait"))
        eventually(lambda: service.calls)
        later.send(get("/later"))
        half.send(b"c")
        time.sleep(0.5)  # longer than `timeout`: their deadlines pass while nobody can read
        gate.set()
        assert [client.answer().status for client in (waiting, later, half)] == [200] * 3


def test_a_slow_reader_holds_no_worker_and_gets_every_byte() -> None:
    size = 16 * 1024 * 1024
    with serving(threads=1) as service:
        slow = service.client()
        slow.send(get(f"/big/{size}"))
        eventually(service.server.parked_bytes)
        other = service.client()
        assert other.ask(get()).status == 200
        eventually(lambda: service.server.in_flight == 1)
        assert slow.answer().body == bytes(size)
        eventually(lambda: ("GET", f"/big/{size}", 200, size) in service.log)
        assert slow.is_open()


def test_unread_answers_are_bounded_by_making_workers_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "PARKED_BYTES", 1024 * 1024)
    size = 16 * 1024 * 1024
    with serving(threads=1) as service:
        first, second = service.client(), service.client()
        first.send(get(f"/big/{size}"))
        eventually(service.server.parked_bytes)
        second.send(get(f"/big/{size}"))
        eventually(lambda: service.server.parked_bytes() > size)
        third = service.client()
        third.send(get())
        assert not select.select([third.socket], [], [], 0.3)[0]
        assert second.answer().body == bytes(size)
        assert third.answer().status == 200
        assert first.answer().body == bytes(size)
        assert first.is_open()


def test_an_answer_waits_for_room_in_a_full_socket(service: Service) -> None:
    ours, theirs = socket.socketpair()
    conn = connection.Connection(service.server, ours)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += ours.send(bytes(4096))
    theirs.send(get("/get-only"))
    assert conn.communicate()
    assert theirs.recv(filled, socket.MSG_WAITALL) == bytes(filled)
    assert conn.communicate()
    assert theirs.recv(1000).endswith(b"got")
    conn.close()
    theirs.close()


def test_a_reader_who_never_reads_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    size = 16 * 1024 * 1024
    with serving(threads=1, timeout=0.4) as service:
        client = service.client()
        client.send(get(f"/big/{size}"))
        eventually(lambda: service.log)
        assert service.log[0][3] < size
        assert not service.server.in_flight
        with pytest.raises((AssertionError, ConnectionError)):
            client.answer()
    assert not caplog.records


def test_two_thousand_idle_connections_hurt_nobody() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with serving(threads=2, max_connections=3000) as service:
            for _ in range(2000):
                service.client()
            eventually(lambda: len(service.server.connections) == 2000)
            client = service.client()
            times = []
            for _ in range(200):
                start = time.perf_counter()
                assert client.ask(get()).status == 200
                times.append(time.perf_counter() - start)
            assert sorted(times)[100] < 0.05
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_connections_are_answered_503() -> None:
    with serving(max_connections=3) as service:
        kept = [service.client() for _ in range(3)]
        eventually(lambda: len(service.server.connections) == 3)
        refused = service.client()
        answer = refused.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert refused.at_end()
        refused.socket.close()
        assert [client.ask(get()).status for client in kept] == [200] * 3
        kept[0].socket.close()
        eventually(lambda: len(service.server.connections) < 3)
        assert service.client().ask(get()).status == 200


# -- order and fairness


def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    client = service.client()
    bodies = [str(number).encode() * (number % 7) for number in range(500)]
    sender = threading.Thread(target=client.send, args=(b"".join(put(body) for body in bodies),))
    sender.start()
    assert [client.answer().body for _ in bodies] == bodies
    sender.join()
    assert client.is_open()


def test_a_pipeline_lets_others_through() -> None:
    gate = threading.Event()
    inner = bottle_app()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        gate.wait(GIVE_UP)
        return inner(environ, start_response)

    with serving(app, threads=1) as service:
        greedy, other = service.client(), service.client()
        greedy.send(get("/greedy") * 300)
        eventually(lambda: service.calls)
        other.send(get("/other"))
        gate.set()
        assert other.answer().status == 200
        for _ in range(300):
            assert greedy.answer().status == 200
        order = [uri for _, uri, _ in service.calls]
        assert order.index("/other") <= 2 * connection.REQUESTS_PER_TURN


def test_connections_get_equal_shares(service: Service) -> None:
    clients = [service.client() for _ in range(24)]
    by_fd = {client.socket.fileno(): client for client in clients}
    counts = dict.fromkeys(by_fd, 0)
    poll = select.poll()
    for fd, client in by_fd.items():
        poll.register(fd, select.POLLIN)
        client.send(get())
    while sum(counts.values()) < 2400:
        for fd, _ in poll.poll(GIVE_UP * 1000):
            assert by_fd[fd].answer().status == 200
            counts[fd] += 1
            by_fd[fd].send(get())
    assert min(counts.values()) > 50  # 100 each, were it exact


# -- hooks


def test_admission_comes_before_the_body_and_is_released_once() -> None:
    budget = [100]
    released = []

    def admit(environ: dict[str, Any], size: int) -> Callable[[], None] | None:
        assert environ["CONTENT_LENGTH"] == str(size)
        if size > budget[0]:
            return None
        budget[0] -= size

        def release() -> None:
            budget[0] += size
            released.append(size)

        return release

    with serving(admit=admit, timeout=0.5) as service:
        stalled = service.client()
        stalled.send(put(b"a" * 80)[:-1])
        eventually(lambda: budget == [20])
        refused = service.client()
        refused.send(put(b"b" * 30, "Expect: 100-continue")[:-30])
        answer = refused.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert refused.at_end()
        client = service.client()
        assert client.ask(put(b"c" * 20)).status == 200
        assert client.ask(get()).status == 200  # no body, no question
        eventually(lambda: released == [20])
        gone = service.client()
        gone.send(put(b"d" * 10)[:-1])
        eventually(lambda: budget == [10])
        gone.reset()
        eventually(lambda: sorted(released) == [10, 20])
        assert stalled.answer().status == 408
        eventually(lambda: budget == [100])
        assert [uri for _, uri, _ in service.calls] == ["/x", "/x"]


def test_admission_is_released_when_the_application_fails() -> None:
    released = []
    with serving(
        simple_app(fail=RuntimeError()), admit=lambda environ, size: lambda: released.append(size)
    ) as service:
        assert service.client().ask(put(b"abc")).status == 500
        eventually(lambda: released == [3])


def test_every_answer_is_reported(service: Service) -> None:
    client = service.client()
    assert client.ask(put(b"abc", target="/a")).status == 200
    assert client.ask(get("/b", "Expect: x")).status == 417
    broken = service.client()
    size = len(broken.ask(b"\x16\x03\x01").body)
    eventually(lambda: len(service.log) == 3)
    assert ("PUT", "/a", 200, 3) in service.log
    assert ("-", "-", 400, size) in service.log
    assert ("GET", "/b", 417) in [entry[:3] for entry in service.log]


def test_a_client_that_goes_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [bytes(1 << 22)]

    with serving(app, threads=1) as service:
        client = service.client()
        client.send(get())
        eventually(lambda: service.calls)
        client.reset()
        half = service.client()
        half.send(b"GET /")
        half.reset()
        gate.set()
        eventually(lambda: len(service.log) == 1 and not service.server.connections)
        assert service.server.in_flight == 0
    assert not caplog.records


def test_expect_is_answered_before_the_body_but_not_if_the_body_is_refused() -> None:
    with serving(max_body_bytes=10) as service:
        client = service.client()
        client.send(put(b"abc", "Expect: 100-continue")[:-3])
        assert client.answer().status == 100
        assert client.ask(b"abc").body == b"abc"
        client.send(put(b"a" * 11, "Expect: 100-continue")[:-11])
        assert client.answer().status == 413
        assert client.at_end()


def test_a_refusal_arrives_although_the_client_is_still_sending() -> None:
    with serving(max_body_bytes=1000) as service:
        client = service.client()
        client.send(put(bytes(8 * 1024 * 1024)))
        assert client.answer().status == 413
        client.finish()
        assert client.at_end()
        assert not service.calls


# -- addresses


@pytest.mark.parametrize("family", ["ipv6", "unix"])
def test_other_addresses(family: str, tmp_path: Any) -> None:
    bind = ("::1", 0) if family == "ipv6" else str(tmp_path / "socket")
    with serving(bind=bind) as service:
        assert service.client().ask(put(b"abc")).body == b"abc"


def test_a_body_is_not_kept_after_its_answer() -> None:
    kept = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        kept.append(environ)
        start_response("200 OK", [])
        return [b""]

    with serving(app) as service:
        assert service.client().ask(put(b"abc")).status == 200
        eventually(lambda: "wsgi.input" not in kept[0])


def test_answers_are_not_delayed_by_nagle(service: Service) -> None:
    client = service.client()
    assert client.ask(get()).status == 200
    (accepted,) = service.server.connections
    assert accepted.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# -- the end


def test_drain_ends_connections_with_their_next_answer(service: Service) -> None:
    old = service.client()
    assert "connection" not in old.ask(get()).headers
    service.server.drain()
    assert old.ask(get()).headers["connection"] == "close"
    assert old.at_end()
    new = service.client()
    assert new.ask(get()).headers["connection"] == "close"
    assert new.at_end()


def test_stop_finishes_what_has_begun() -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [b"done"]

    with serving(app) as service:
        idle, busy, sending = service.client(), service.client(), service.client()
        assert idle.ask(get()).status == 200
        busy.send(get("/wait"))
        sending.send(put(b"abc")[:-1])
        eventually(lambda: service.server.in_flight == 2)
        stopping = threading.Thread(target=service.server.stop)
        stopping.start()
        assert idle.at_end()
        assert stopping.is_alive()
        with pytest.raises(OSError, match="refused"):
            service.client()
        sending.send(b"c")
        gate.set()
        for client in (busy, sending):
            answer = client.answer()
            assert (answer.body, answer.headers["connection"]) == (b"done", "close")
            assert client.at_end()
        stopping.join(GIVE_UP)
        assert not stopping.is_alive()
        assert service.server.requests.alive == 0
        assert not service.server.connections


def test_stop_serves_a_request_that_waited_for_a_worker() -> None:
    gate = threading.Event()
    inner = bottle_app()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        gate.wait(GIVE_UP)
        return inner(environ, start_response)

    with serving(app, threads=1) as service:
        first, second = service.client(), service.client()
        first.send(get())
        eventually(lambda: service.calls)
        second.send(get())
        stopping = threading.Thread(target=service.server.stop)
        stopping.start()
        stopping.join(5 * connection.QUIET_SECONDS)
        assert stopping.is_alive()
        gate.set()
        assert [client.answer().status for client in (first, second)] == [200, 200]
        stopping.join(GIVE_UP)
        assert not stopping.is_alive()


def test_stop_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [b""]

    with serving(app, threads=1, shutdown_timeout=0.3) as service:
        service.client().send(get())
        eventually(lambda: service.server.in_flight)
        start = time.monotonic()
        service.server.stop()
        assert time.monotonic() - start < 3
        assert "1 requests unanswered" in caplog.text
        gate.set()


def test_stop_under_load_leaves_no_request_without_an_answer() -> None:
    answered = []
    unanswered = []

    def load(address: Any) -> None:
        # Refused, or reset by the listener that closes while we connect.
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            while True:
                client = Client(address)
                while True:
                    try:
                        client.send(put(b"abc"))
                        answer = client.answer()
                    except ConnectionError:
                        answer = None
                    (answered if answer else unanswered).append(1)
                    if answer is None or answer.headers.get("connection") == "close":
                        break
                client.socket.close()

    with serving() as service:
        threads = [
            threading.Thread(target=load, args=(service.server.bind_addr,)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answered) > 500)
        service.server.stop()
        for thread in threads:
            thread.join(GIVE_UP)
            assert not thread.is_alive()
    assert len(unanswered) <= 1  # a connection made in the instant before the listener closed
    assert len(service.calls) == len(answered)


def test_the_heartbeat_beats_and_the_workers_live(service: Service) -> None:
    first = service.server.heartbeat
    eventually(lambda: service.server.heartbeat > first)
    assert abs(service.server.heartbeat - time.monotonic()) < 2
    assert service.server.requests.alive == 2


def test_no_file_is_left_open() -> None:
    with serving() as service:
        service.client().ask(get())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with serving() as service:
            service.client().ask(get())
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture(autouse=True)
def _quick_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "QUIET_SECONDS", 0.05)


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
