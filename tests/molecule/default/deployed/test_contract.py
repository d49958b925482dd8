"""What clients are promised (docs/http-api.md) holds through nginx and Varnish as well."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from deployment import BUILD, ROOT, Deployment, wait_until

BUCKET = "contract"
TESTS = "objects", "batches", "listing"


@contextmanager
def admin_listener(name: str) -> Iterator[str]:
    """The URL of a service host's admin listener, which answers on its own loopback alone."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    tunnel = subprocess.Popen(
        ["ssh", "-F", BUILD / "machines/ssh_config", "-N", "-L", f"{port}:127.0.0.1:9081", name]
    )
    try:
        wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), 30, "a tunnel")
        yield f"http://127.0.0.1:{port}"
    finally:
        tunnel.terminate()
        tunnel.wait(30)


def test_the_services_own_tests_pass(deployment: Deployment) -> None:
    with admin_listener(deployment.groups["service"][0]) as admin:
        here = {
            "POKY_TEST_URL": f"http://{deployment.address(deployment.groups['web'][0])}",
            "POKY_TEST_ADMIN_URL": admin,
            "PYTEST_ADDOPTS": "",
        }
        done = subprocess.run(
            [ROOT / ".venv/bin/python", "-m", "pytest", "-q", "--schema", "partitioned"]
            + [f"tests/test_{name}.py" for name in TESTS],
            cwd=ROOT,
            env={**os.environ, **here},
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
    print(done.stdout[-20000:])
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


# What nginx or Varnish answer themselves.


@pytest.fixture(scope="module", autouse=True)
def _bucket(deployment: Deployment) -> None:
    deployment.succeed("buckets", poky_bucket=BUCKET)


@contextmanager
def connected(deployment: Deployment) -> Iterator[socket.socket]:
    address = deployment.address(deployment.groups["web"][0])
    with closing(socket.create_connection((address, 80), 20)) as connection:
        yield connection


def answer(connection: socket.socket, method: str = "GET") -> http.client.HTTPResponse:
    response = http.client.HTTPResponse(connection, method=method)
    response.begin()
    return response


def raw(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: poky", *headers, "", ""]).encode() + body


KEY = f"/kv/{BUCKET}/key"
REFUSED = {
    "no request": (400, b"nonsense\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "no length": (400, raw(f"PUT {KEY} HTTP/1.1", "Content-Length: many")),
    "broken chunk": (400, raw(f"PUT {KEY} HTTP/1.1", "Transfer-Encoding: chunked", body=b"x\r\n")),
    "two framings": (
        400,
        raw(
            f"PUT {KEY} HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked", body=b"0\r\n"
        ),
    ),
    "trace": (405, raw(f"TRACE {KEY} HTTP/1.1")),
    "large": (413, raw(f"PUT {KEY} HTTP/1.1", "Content-Length: 200000000")),
    "long line": (414, raw(f"GET {KEY}{'y' * 9000} HTTP/1.1")),
    "long field": (431, raw(f"GET {KEY} HTTP/1.1", f"A: {'b' * 9000}")),
    "long fields": (431, raw(f"GET {KEY} HTTP/1.1", *[f"A: {'b' * 4000}"] * 9)),
    "many fields": (431, raw(f"PUT {KEY} HTTP/1.1", *["A: b"] * 110)),
    "too much for the cache": (431, raw(f"GET {KEY} HTTP/1.1", *[f"A: {'b' * 4000}"] * 8)),
    "too much for the service": (431, raw(f"PUT {KEY} HTTP/1.1", *[f"A: {'b' * 4000}"] * 5)),
    "coding": (501, raw(f"PUT {KEY} HTTP/1.1", "Transfer-Encoding: gzip, chunked")),
    "version": (505, raw("GET / HTTP/9.1")),
    "status of nginx": (404, raw("GET /nginx_status HTTP/1.1")),
    "answer of nginx": (404, raw("GET /.414 HTTP/1.1")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_a_problem_in_words(deployment: Deployment, name: str) -> None:
    status, request = REFUSED[name]
    with connected(deployment) as connection:
        connection.sendall(request)
        refused = answer(connection)
        said = refused.read()
    assert refused.status == status, said
    assert refused.headers["Content-Type"] == "application/problem+json", said
    assert refused.headers["Cache-Control"] == "no-store"
    problem = json.loads(said)
    assert set(problem) == {"type", "title", "status", "detail", "code"}
    assert problem["status"] == status
    if status == 405:
        assert "PUT" in refused.headers["Allow"]


def test_a_purge_is_not_for_clients(deployment: Deployment) -> None:
    deployment.request("PUT", KEY, "value")
    deployment.request("GET", KEY)
    assert deployment.request("PURGE", KEY)[0] == 405
    assert deployment.request("GET", KEY)[1]["X-Cache"] == "HIT"


def test_a_body_in_chunks_is_stored_byte_for_byte(deployment: Deployment) -> None:
    chunks = b"4\r\n\0\r\n\xff\r\n1\r\na\r\n0\r\n\r\n"
    with connected(deployment) as connection:
        connection.sendall(raw(f"PUT {KEY} HTTP/1.1", "Transfer-Encoding: chunked", body=chunks))
        assert answer(connection).status == 200
        connection.sendall(raw(f"GET {KEY} HTTP/1.1"))
        assert answer(connection).read() == b"\0\r\n\xffa"


def test_a_body_may_wait_until_it_is_expected(deployment: Deployment) -> None:
    head = raw(f"PUT {KEY} HTTP/1.1", "Content-Length: 8", "Expect: 100-continue")
    with connected(deployment) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"expected")
        assert answer(connection).status == 200
        connection.sendall(raw(f"GET {KEY} HTTP/1.1"))
        assert answer(connection).read() == b"expected"


def test_half_a_body_is_not_stored(deployment: Deployment) -> None:
    deployment.request("PUT", KEY, "before")
    with connected(deployment) as connection:
        connection.sendall(raw(f"PUT {KEY} HTTP/1.1", "Content-Length: 8", body=b"half"))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert deployment.request("GET", KEY)[2] == b"before"


def test_requests_may_follow_each_other_before_their_answers(deployment: Deployment) -> None:
    deployment.request("PUT", KEY, "value")
    with connected(deployment) as connection:
        request = raw(f"GET {KEY} HTTP/1.1")
        connection.sendall(
            request * 2 + request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        assert connection.makefile("rb").read().count(b"value") == 3


def test_a_url_with_its_host_is_the_same_object(deployment: Deployment) -> None:
    deployment.request("PUT", KEY, "value")
    for expected in ("MISS", "HIT"):
        with connected(deployment) as connection:
            connection.sendall(raw(f"GET http://poky{KEY} HTTP/1.1"))
            got = answer(connection)
            assert (got.read(), got.headers["X-Cache"]) == (b"value", expected)


@pytest.mark.parametrize(
    ("value", "wanted", "status", "part"),
    [
        ("0123456789", "bytes=2-4", 206, b"234"),
        ("0123456789", "bytes=-3", 206, b"789"),
        ("0123456789", "bytes=20-", 416, None),
        ("", "bytes=0-", 200, b""),
    ],
)
def test_a_part_of_a_value(
    deployment: Deployment, value: str, wanted: str, status: int, part: bytes | None
) -> None:
    deployment.request("PUT", KEY, value)
    for _ in "missed", "cached":
        got, headers, said = deployment.request("GET", KEY, Range=wanted)
        assert got == status, said
        if part is not None:
            assert said == part
        else:
            assert headers["Content-Range"] == f"bytes */{len(value)}"
