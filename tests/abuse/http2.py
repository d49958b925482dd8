"""Requests in HTTP/2, which nginx turns into HTTP/1.1: what it lets through must stay one request.

What a field of HTTP/1.1 could not hold (line ends, colons, two lengths) is sent as it is, and so
are frames that cost their reader much. The service alone speaks no HTTP/2.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, ResponseReceived, StreamEnded, StreamReset
from hyperframe.frame import ContinuationFrame, HeadersFrame

from tests.abuse.client import request
from tests.abuse.raw import BUCKET, following, prepare
from tests.abuse.report import DIRECT, Row
from tests.support.chain import Chain

QUIET = 15.0  # seconds without an answer after which there will be none
REFUSED = r"4\d\d|reset|closed"
RESETS = 2000

Fields = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Case:
    """A request; ``{path}`` is one that only it has, ``{next}`` a whole request of HTTP/1.1."""

    name: str
    fields: Fields
    body: bytes = b""
    expected: str = REFUSED
    leaves: bytes | None = None
    trailers: Fields = ()


def _put(*fields: tuple[bytes, bytes], **pseudo: bytes) -> Fields:
    named = {"method": b"PUT", "scheme": b"https", "authority": b"localhost", "path": b"{path}"}
    first = tuple((b":" + name.encode(), text) for name, text in (named | pseudo).items())
    return first + fields


def _cases() -> Iterator[Case]:
    length = (b"content-length", b"3")
    chunked = b"3\r\nabc\r\n0\r\n\r\n{next}"
    yield Case("no length", _put(), b"abc", "200", b"abc")
    yield Case("a length", _put(length), b"abc", "200", b"abc")
    yield Case("H2.CL: more than its length", _put(length), b"abc{next}")
    yield Case("less than its length", _put((b"content-length", b"99")), b"abc")
    yield Case("two lengths", _put(length, (b"content-length", b"0")), b"abc{next}")
    yield Case("a length of no number", _put((b"content-length", b"+3")), b"abc")
    # nginx leaves the field out: the data are the body, and have a length from there on.
    yield Case(
        "H2.TE: chunked", _put((b"transfer-encoding", b"chunked")), chunked, f"200|{REFUSED}",
        chunked,
    )  # fmt: skip
    yield Case("chunked, and a length", _put((b"transfer-encoding", b"chunked"), length), b"abc")
    for name, text in {
        "line end in a value": (b"x", b"y\r\ntransfer-encoding: chunked"),
        "LF in a value": (b"x", b"y\ntransfer-encoding: chunked"),
        "a request in a value": (b"x", b"y\r\n\r\n{next}"),
        "NUL in a value": (b"x", b"y\0z"),
        "line end in a name": (b"x: y\r\ntransfer-encoding", b"chunked"),
        "colon in a name": (b"transfer-encoding:", b"chunked"),
        "space in a name": (b"transfer-encoding ", b"chunked"),
        "capitals in a name": (b"Transfer-Encoding", b"chunked"),
        "no name": (b"", b"x"),
        "unknown pseudo-field": (b":x", b"y"),
        "another path": (b":path", b"/status"),
        "another method": (b":method", b"DELETE"),
        "another host": (b"host", b"other"),
    }.items():
        # What is no field of HTTP/2 is refused, or left out: then the body is whole.
        yield Case(name, _put(text), b"abc", f"200|{REFUSED}", b"abc")
    for name, pseudo in {
        "request in the method": {"method": b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n{next}"},
        "space in the method": {"method": b"PUT /status"},
        "lower-case method": {"method": b"put"},
        "request in the path": {"path": b"{path} HTTP/1.1\r\nHost: x\r\n\r\n{next}"},
        "space in the path": {"path": b"{path} HTTP/1.1"},
        "no slash": {"path": b"status"},
        "no path": {"path": b""},
        "asterisk": {"path": b"*"},
        "line end in the host": {"authority": b"localhost\r\nx: y"},
        "space in the host": {"authority": b"local host"},
        "a URL as the scheme": {"scheme": b"http://localhost{path}?"},
        "line end in the scheme": {"scheme": b"https\r\nx: y"},
    }.items():
        yield Case(name, _put(**pseudo), b"abc")
    for name in (b":method", b":path"):
        fields = tuple(each for each in _put() if each[0] != name)
        yield Case(f"without {name.decode()}", fields, b"abc")
        at_last = (*fields, (b"x", b"y"), *(each for each in _put() if each[0] == name))
        yield Case(f"{name.decode()} after a field", at_last, b"abc", f"200|{REFUSED}", b"abc")
    for name, text in ((b"connection", b"close"), (b"upgrade", b"h2c"), (b"te", b"gzip")):
        yield Case(name.decode(), _put((name, text)), b"abc", f"200|{REFUSED}", b"abc")
    for name, text in (length, (b"transfer-encoding", b"chunked"), (b":path", b"/status")):
        yield Case(
            f"{name.decode()} as a trailer", _put(), b"abc", f"200|{REFUSED}", b"abc",
            ((name, text),),
        )  # fmt: skip
    get = {"method": b"GET", "path": b"{path}-none"}
    yield Case("GET with a body", _put(**get), b"{next}", "404|4..")
    yield Case("GET with half of a body", _put(length, **get), b"{next}", "404|" + REFUSED)


CASES = tuple(_cases())


def run(chain: Chain, door: str, *, short: bool = False, only: str = "") -> list[Row]:
    """All cases, and frames without end; nothing where nobody speaks HTTP/2."""
    if door == DIRECT:
        return []
    prepare(chain)
    row = Row("http2", "requests", door, "answers as listed, 0 smuggled")
    chosen = [
        (number, _filled(number, case)) for number, case in enumerate(CASES) if only in case.name
    ]
    tried = [(number, case, _try(chain, case)) for number, case in chosen]
    time.sleep(0.5)  # the log's last lines
    log = "".join(instance.log.read_text(errors="replace") for instance in chain.instances)
    for number, case, answer in tried:
        row.count += 1
        for sentence in _violations(chain, number, case, answer, log):
            row.violations.append(f"{case.name}: {sentence}")
    row.seen = f"{row.count - len(row.violations)} of {row.count} as expected"
    floods: dict[str, Callable[[Chain], str]] = {
        f"{RESETS} streams, each reset at once": _reset,
        "a head without end": _continue,
    }
    rows = [row] if row.count else []
    for name, flood in floods.items():
        if only in name:
            rows.append(Row("http2", name, door, "others are answered", count=1, seen=flood(chain)))
            answered = request(chain.port, "GET", f"/kv/{BUCKET}/canary").status
            if answered != 200 or chain.deaths:
                rows[-1].violations.append(f"others got {answered}, {chain.deaths} instances ended")
    return rows


def _path(number: int) -> str:
    return f"/kv/{BUCKET}/h2-{number}"


def _filled(number: int, case: Case) -> Case:
    def fill(text: bytes) -> bytes:
        text = text.replace(b"{next}", following(f"h2-{number}"))
        return text.replace(b"{path}", _path(number).encode())

    fields = tuple((fill(name), fill(text)) for name, text in case.fields)
    leaves = None if case.leaves is None else fill(case.leaves)
    return replace(case, fields=fields, body=fill(case.body), leaves=leaves)


class _Client:
    """A connection that sends what it is told, whether HTTP/2 has it or not."""

    def __init__(self, port: int) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # made for this test
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), timeout=QUIET)
        self.socket = context.wrap_socket(plain)
        self.state = H2Connection(
            H2Configuration(
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                header_encoding=None,
            )
        )
        self.state.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.state.data_to_send())

    def answer(self) -> str:
        """The status of the first stream, "reset", "closed", or "silence"."""
        status = ""
        while True:
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                return status or "silence"
            except OSError:
                return status or "closed"
            if not data:
                return status or "closed"
            for event in self.state.receive_data(data):
                if isinstance(event, ResponseReceived):
                    status = dict(event.headers or [])[b":status"].decode()
                elif isinstance(event, StreamReset):
                    return status or "reset"
                elif isinstance(event, ConnectionTerminated):
                    return status or "closed"
                elif isinstance(event, StreamEnded):
                    return status
            self.flush()

    def close(self) -> None:
        self.socket.close()


def _try(chain: Chain, case: Case) -> str:
    with closing(_Client(chain.https_port)) as client:
        client.state.send_headers(1, list(case.fields), end_stream=not case.body)
        if case.body:
            client.state.send_data(1, case.body, end_stream=not case.trailers)
        if case.trailers:
            client.state.send_headers(1, list(case.trailers), end_stream=True)
        try:
            client.flush()
        except OSError:
            return "closed"
        return client.answer()


def _violations(chain: Chain, number: int, case: Case, answer: str, log: str) -> Iterable[str]:
    if not re.fullmatch(case.expected, answer):
        yield f"answered {answer!r}, not {case.expected!r}"
    if f"/smuggled-h2-{number}-" in log:
        yield "smuggled: the service saw a request that the client did not know it sent"
    stored = request(chain.instances[0].port, "GET", _path(number))
    content = stored.body if stored.status == 200 else None
    if content != (case.leaves if answer == "200" else None):
        yield f"left {content!r} with the answer {answer}"


def _reset(chain: Chain) -> str:
    """Streams that are given up as soon as they are opened (CVE-2023-44487)."""
    sent = 0
    with closing(_Client(chain.https_port)) as client:
        fields = list(_put(method=b"GET", path=f"/kv/{BUCKET}/none".encode()))
        try:
            for stream in range(1, 2 * RESETS, 2):
                client.state.send_headers(stream, fields, end_stream=True)
                client.state.reset_stream(stream, ErrorCodes.CANCEL)
                client.flush()
                sent += 1
        except OSError:
            return f"closed after {sent}"
    return f"{sent} taken"


def _continue(chain: Chain) -> str:
    """Frames of a head that never ends (CVE-2024-27316)."""
    sent = 0
    with closing(_Client(chain.https_port)) as client:
        block = client.state.encoder.encode(_put((b"x", b"y" * 8000)))
        try:
            client.socket.sendall(HeadersFrame(1, block).serialize())
            while sent < 1000:
                client.socket.sendall(ContinuationFrame(1, block).serialize())
                sent += 1
            while client.socket.recv(65536):
                pass
        except OSError:
            pass
    return f"the end after {sent} frames"
