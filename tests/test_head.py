"""The reader of request heads against raw bytes: what is refused, and what the application sees."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from poky.http import Refused, parse_head
from tests.support.sockets import (
    SMUGGLED,
    Serving,
    get,
    put,
    serving,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Serving]:
    """One server for all rows of the corpus: what a row leaves behind, the next one meets."""
    with serving() as service:
        yield service


@pytest.fixture
def service() -> Iterator[Serving]:
    with serving() as service:
        yield service


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
    ("PUT of HTTP/1.0 without length", with_head(line=b"PUT /x HTTP/1.0",
     body=b"ab"), [411], CLOSES),
    ("POST of HTTP/1.0 without length", with_head(b"Connection: keep-alive",
     line=b"POST /x HTTP/1.0", body=b"ab"), [411], CLOSES),
    ("PUT of HTTP/1.0 with length", with_head(b"Content-Length: 2", line=b"PUT /x HTTP/1.0",
     body=b"ab"), [200], CLOSES),
    ("PUT of HTTP/1.0 with length 0", with_head(b"Content-Length: 0", line=b"PUT /x HTTP/1.0",
     body=b""), [200], CLOSES),
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
    ("absolute target of another host", target(b"http://i/x"), [200], STAYS),
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
    ("HTTP/1.9 without Host", with_head(line=b"GET /x HTTP/1.9"), [400], CLOSES),
    ("HTTP/3.0", request_line(b"GET /x HTTP/3.0"), [505], CLOSES),
    ("HTTP/0.9", request_line(b"GET /x HTTP/0.9"), [505], CLOSES),
    ("HTTP/1.9 chunked", coding(b"Transfer-Encoding: chunked",
     line=b"POST /x HTTP/1.9"), [411], CLOSES),
    ("HTTP/1.2", request_line(b"GET /x HTTP/1.2"), [200], STAYS),
    ("HTTP/1.9", request_line(b"GET /x HTTP/1.9"), [200], STAYS),
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
def test_corpus(shared: Serving, raw: bytes, statuses: list[int], ending: str) -> None:
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
            assert set(problem) == {"type", "title", "status", "code", "detail"}
            assert problem["status"] == answer.status
            assert problem["detail"].endswith(".")


def test_corpus_is_at_least_as_large_as_the_study() -> None:
    assert len({row[0] for row in CORPUS}) == len(CORPUS) >= 81


def test_corpus_sent_byte_by_byte_reads_the_same(shared: Serving) -> None:
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
        except Refused:
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


def test_invalid_utf_8_and_8_bit_escapes_reach_the_path_as_bytes(service: Serving) -> None:
    environ: dict[str, Any] = {}
    parse_head(b"GET /%c3%a4%ff HTTP/1.1\r\nHost: h", environ)
    assert environ["PATH_INFO"].encode("latin-1") == b"/\xc3\xa4\xff"


def test_an_absolute_target_decides_over_host() -> None:
    environ: dict[str, Any] = {}
    parse_head(b"GET http://target:80/x HTTP/1.1\r\nHost: other", environ)
    assert (environ["HTTP_HOST"], environ["PATH_INFO"]) == ("target:80", "/x")


def test_a_later_minor_version_is_read_as_http_1_1() -> None:
    environ: dict[str, Any] = {}
    assert parse_head(b"GET /x HTTP/1.7\r\nHost: h", environ) == (0, True, False)
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"


def test_an_absolute_target_names_the_host_and_keeps_its_spelling() -> None:
    environ: dict[str, Any] = {}
    parse_head(b"GET http://H:80?a=b HTTP/1.1\r\nHost: h:80", environ)
    assert (environ["HTTP_HOST"], environ["PATH_INFO"]) == ("H:80", "/")
    assert (environ["QUERY_STRING"], environ["REQUEST_URI"]) == ("a=b", "http://H:80?a=b")


def test_bodies_arrive_byte_for_byte(service: Serving) -> None:
    client = service.client()
    for size in (0, 1, 16383, 16384, 65537, 5_000_000):
        body = random.Random(size).randbytes(size)
        answer = client.ask(put(body))
        assert answer.status == 200
        assert answer.body == body
