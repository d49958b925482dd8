"""What clients see of the whole chain: nginx and Varnish before the service, as deployed.

The service's own rules are tested at the service; here are those that a program before it could
break, and what nginx and Varnish answer themselves.
"""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests import test_ranges as ranges
from tests.service import Client, Response, free_ports, wait_until
from tests.support import roles
from tests.support.chain import Chain

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

KEY = "/kv/b/key"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    given: dict[str, dict[str, object]] = {"nginx": {"nginx_hsts_seconds": 100}}
    with Chain(tmp_path_factory.mktemp("chain"), instances=2, given=given) as chain:
        chain.poky("bucket", "create", "b")
        yield chain


@pytest.fixture
def client(chain: Chain) -> Client:
    return Client(chain.http_port)


def raw(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([line, "Host: poky", *headers, "", ""]).encode("latin-1") + body


def answer(port: int, request: bytes, *, tls: bool = False) -> Response:
    """Send bytes on a connection of their own, and read one answer."""
    with closing(socket.create_connection(("127.0.0.1", port), 20)) as plain:
        context = ssl._create_unverified_context()
        connection = context.wrap_socket(plain, server_hostname="localhost") if tls else plain
        connection.sendall(request)
        response = http.client.HTTPResponse(connection, method=request.split(b" ")[0].decode())
        response.begin()
        return Response(response.status, response.msg, response.read())


def assert_problem(response: Response, status: int, code: str) -> str:
    """The answer is a refusal in words; return its sentence."""
    assert response.status == status, response
    assert response.headers["Content-Type"] == "application/problem+json", response
    assert response.headers["Cache-Control"] == "no-store"
    problem = json.loads(response.body)
    assert (problem["status"], problem["code"]) == (status, code)
    return str(problem["detail"])


REFUSED = {
    "no request": (400, "request_malformed", b"nonsense\r\n\r\n"),
    "no host": (400, "request_malformed", b"GET / HTTP/1.1\r\n\r\n"),
    "a field twice": (
        400,
        "request_malformed",
        raw(f"GET {KEY} HTTP/1.1", 'If-None-Match: "1-a"', 'If-None-Match: "2-b"'),
    ),
    "no length in 1.0": (
        411,
        "length_required",
        raw(f"PUT {KEY} HTTP/1.0", body=b"a body whose end is the connection's"),
    ),
    "no length in 1.0, POST": (411, "length_required", raw(f"POST {KEY} HTTP/1.0", body=b"x")),
    "too large": (
        413,
        "body_too_large",
        raw(f"PUT {KEY} HTTP/1.1", "Content-Length: 17000000"),
    ),
    "long line": (414, "head_too_large", raw(f"GET {KEY}{'y' * 9000} HTTP/1.1")),
    "long field": (431, "head_too_large", raw(f"GET {KEY} HTTP/1.1", f"A: {'b' * 9000}")),
    "unknown coding": (501, "coding_unknown", raw(f"PUT {KEY} HTTP/1.1", "Transfer-Encoding: x")),
    "version": (505, "version_unsupported", raw("GET / HTTP/9.1")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_of_nginx_is_a_problem_in_words(chain: Chain, client: Client, name: str) -> None:
    client.put(KEY, "untouched")
    status, code, request = REFUSED[name]
    assert_problem(answer(chain.http_port, request), status, code)
    assert client.get(KEY).body == b"untouched"


def test_a_field_that_comes_twice_is_called_that(chain: Chain) -> None:
    response = answer(chain.http_port, REFUSED["a field twice"][2])
    assert "comes twice" in assert_problem(response, 400, "request_malformed")


def test_what_follows_a_refused_body_is_no_request(chain: Chain) -> None:
    inner = raw("GET /status HTTP/1.1")
    request = raw(f"PUT {KEY} HTTP/1.0", "Connection: keep-alive", body=inner)
    with closing(socket.create_connection(("127.0.0.1", chain.http_port), 20)) as connection:
        connection.sendall(request)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.count(b"HTTP/1.1 ") == 1


def test_http_on_the_port_of_https_is_told_so(chain: Chain) -> None:
    response = answer(chain.https_port, raw(f"GET {KEY} HTTP/1.1"))
    assert "https://" in assert_problem(response, 400, "https_required")


@pytest.mark.parametrize("tls", [False, True])
def test_the_first_page_names_the_url_of_the_chain(chain: Chain, tls: bool) -> None:
    port = chain.https_port if tls else chain.http_port
    asked = f"GET / HTTP/1.1\r\nHost: kv.example.org:{port}\r\nAccept: text/html\r\n\r\n".encode()
    page = answer(port, asked, tls=tls)
    assert page.status == 200
    assert page.headers["X-Cache"] == "PASS"
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    base = f"http{'s' * tls}://kv.example.org:{port}"
    assert f"{base}/kv/greetings/hello" in page.body.decode()


@pytest.mark.parametrize("count", [101, 119, 120, 121, 128, 130, 256, 480])
def test_many_header_lines_are_431(chain: Chain, client: Client, count: int) -> None:
    client.put(KEY, "value")
    fields = [f"X-{number}: a" for number in range(count)]
    for line in (f"PUT {KEY}", "GET /kv/b?limit=1", "POST /multi/b"):
        response = answer(chain.http_port, raw(f"{line} HTTP/1.1", *fields, "Content-Length: 0"))
        assert_problem(response, 431, "head_too_large")
    # A read that a cache may answer does not carry them on, and is answered.
    wait_until(lambda: client.get(KEY).headers["X-Cache"] == "HIT", what="the cache has a lease")
    response = answer(chain.http_port, raw(f"GET {KEY} HTTP/1.1", *fields))
    assert (response.status, response.body) == (200, b"value")


@pytest.mark.parametrize("field", ["X-A: a\x01b", "X-A: a\x7f", "If-None-Match: \x0b"])
@pytest.mark.parametrize("line", [f"PUT {KEY}", f"GET {KEY}", f"DELETE {KEY}", "GET /status"])
def test_a_control_character_is_400_without_words(
    chain: Chain, client: Client, line: str, field: str
) -> None:
    """Varnish refuses it before any rule of ours, and nginx cannot tell that from an answer."""
    client.put(KEY, "untouched")
    request = raw(f"{line} HTTP/1.1", field, "Content-Length: 0")
    response = answer(chain.http_port, request)
    assert (response.status, response.body) == (400, b"")
    assert client.get(KEY).body == b"untouched"
    told = answer(chain.instances[0].port, request)
    assert_problem(told, 400, "request_malformed")


@pytest.mark.parametrize(
    ("method", "range"), [("PUT", "items=0-4"), ("PUT", "bytes=5-2"), ("DELETE", "bytes=abc")]
)
def test_a_write_has_no_range(client: Client, method: str, range: str) -> None:
    client.put(KEY, "before")
    response = client.request(method, KEY, b"after", {"Range": range})
    assert response.status == 200
    assert client.get(KEY).status == (200 if method == "PUT" else 404)


@pytest.mark.parametrize("path", ["/status", "/buckets", "/kv/b", "/kv/b?limit=2", "/help", "/"])
def test_only_an_object_has_parts(client: Client, path: str) -> None:
    whole = client.get(path)
    part = client.request("GET", path, headers={"Range": "bytes=0-1"})
    assert (part.status, part.body) == (200, whole.body)


@pytest.mark.parametrize("path", ["/status", "/buckets", "/kv/b?limit=2", KEY])
@pytest.mark.parametrize("range", ["bytes=abc", "bytes=5-2", "items=0-1", "bytes=0-0,1-1", "bytes"])
def test_what_is_no_plain_range_is_ignored(client: Client, path: str, range: str) -> None:
    client.put(KEY, "value")
    whole = client.get(path)
    response = client.request("GET", path, headers={"Range": range})
    assert (response.status, response.body) == (200, whole.body)


def test_the_service_answers_ranges_as_the_chain_does(chain: Chain, client: Client) -> None:
    client.put(KEY, ranges.DIGITS)
    service = Client(chain.instances[0].port)
    for range in (*ranges.PARTS, *ranges.BEYOND, *ranges.IGNORED):
        from_cache, from_service = (each.get(KEY, range=range) for each in (client, service))
        for show in (
            lambda answer: (answer.status, answer.body),
            lambda answer: [
                answer.headers[name] for name in ("Content-Range", "Content-Type", "Accept-Ranges")
            ],
        ):
            assert show(from_cache) == show(from_service), range


def test_all_spellings_of_a_key_share_one_copy_and_one_purge(client: Client) -> None:
    client.put("/kv/b/user:1", "one")
    spellings = [
        "/kv/b/user:1",
        "/kv/b/user%3A1",
        "/kv/b/user%3a1",
        "/kv/b/%75ser%3A%31",
        "/kv/%62/user:1",
    ]
    for spelling in spellings:
        client.get(spelling)
        assert client.get(spelling).headers["X-Cache"] == "HIT", spelling
    for number, spelling in enumerate(spellings):
        assert client.put(spelling, f"{number}").status == 200
        assert {client.get(each).body for each in spellings} == {b"%d" % number}
    assert client.request("DELETE", spellings[1]).status == 200
    assert {client.get(each).status for each in spellings} == {404}


@pytest.mark.parametrize("escape", ["%2F", "%00", "%0a", "%25", "%20", "%3F", "%C3%A4", "%2561"])
def test_an_escape_of_anything_else_is_refused(client: Client, escape: str) -> None:
    assert client.put(f"/kv/b/a{escape}b", "value").status in (400, 404)
    assert client.get(f"/kv/b/a{escape}b").status in (400, 404)


def kept(client: Client, path: str) -> None:
    """Return once the cache answers from its copy."""
    wait_until(lambda: client.get(path).headers["X-Cache"] == "HIT", 20, f"a hit of {path}")


def test_a_key_with_slashes_has_one_copy_and_one_purge(client: Client) -> None:
    url = "/kv/b/builds/2026/11/29/log.txt"
    longest = "/kv/b/" + "a/" * 511 + "ab"
    for key in (url, longest, "/kv/b/kv/b/key"):
        client.put(key, "one")
        spellings = [key, key.replace("b/", "%62/", 1), key[:-1] + f"%{ord(key[-1]):x}"]
        for spelling in spellings:
            kept(client, spelling)
        for number, spelling in enumerate(spellings):
            assert client.put(spelling, f"{number}").status == 200
            assert {client.get(each).body for each in spellings} == {b"%d" % number}
        assert client.request("DELETE", key).status == 200
        assert client.get(key).status == 404


def test_a_batch_purges_keys_with_slashes(client: Client) -> None:
    keys = ["batch/a", "batch/a/b", "batch"]
    client.batch("PUT", "b", [{"key": key, "data": "one"} for key in keys])
    for key in keys:
        kept(client, f"/kv/b/{key}")
    client.batch("PUT", "b", [{"key": key, "data": "two"} for key in keys])
    assert [client.get(f"/kv/b/{key}").body for key in keys] == [b"two"] * 3


def answered(port: int, request: bytes) -> Response:
    """The answer that is not 503, which says to try again."""
    last: list[Response] = []

    def is_final() -> bool:
        last[:] = [answer(port, request)]
        return last[0].status != 503

    wait_until(is_final, 20, "an answer other than 503")
    return last[0]


TARGETS = (
    "a//b a/./b a/../b /a a/ ./a ../a a/b/.. a/b/. %2e%2e/a a/%2e%2e/b a/%2E/b a%2Fb a%2fb a/%2Fb"
    " ../b/a ../../kv/b/a ../../nginx_status a/../../../status ../../.400 ../.. a/..;/b a\\b"
).split()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_no_path_is_resolved_into_another_key(chain: Chain, client: Client, method: str) -> None:
    """By nginx, Varnish and the service alike: each sees it as it came, and it is refused."""
    keys = ("a", "a/b", "b", "b/a")
    for key in keys:
        client.put(f"/kv/b/{key}", key)
    before = client.get("/kv/b?prefix=").json()
    for target in TARGETS:
        request = raw(f"{method} /kv/b/{target} HTTP/1.1", "Content-Length: 1", body=b"x")
        for port in (chain.http_port, chain.cache_port, chain.instances[0].port):
            response = answered(port, request)
            assert response.status in (400, 404, 405), (target, port, response)
            if response.status == 404:
                assert json.loads(response.body)["code"] == "path_not_found"
    assert client.get("/kv/b?prefix=").json() == before
    assert [client.get(f"/kv/b/{key}").body for key in keys] == [key.encode() for key in keys]


@pytest.mark.parametrize(
    "path", ["/changes", "/kv", "/multi", "/buckets/", "/help/", "/status/", "/kv/b/"]
)
def test_no_path_is_redirected(chain: Chain, client: Client, path: str) -> None:
    """nginx would send from a location to the same with a slash, as a page of its own."""
    through, direct = client.get(path), Client(chain.instances[0].port).get(path)
    assert (through.status, through.body) == (direct.status, direct.body)
    assert through.headers["Location"] is None


@pytest.mark.parametrize(
    ("coding", "value"),
    [("gzip", b"no gzip at all"), ("gzip", b""), ("br", b""), ("gzip", gzip.compress(b"x"))],
    ids=["no gzip", "empty gzip", "empty br", "gzip"],
)
@pytest.mark.parametrize("accepted", ["gzip", "identity", ""])
def test_a_coding_is_kept_and_never_looked_into(
    client: Client, coding: str, value: bytes, accepted: str
) -> None:
    client.put("/kv/b/coded", value, content_encoding=coding)
    for _ in range(2):
        got = client.request("GET", "/kv/b/coded", headers={"Accept-Encoding": accepted})
        assert (got.status, got.headers["Content-Encoding"], got.body) == (200, coding, value)


@pytest.mark.parametrize("status", ["hit", "miss"])
@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (",".join(['""'] * 1024), 200),
        (",".join(f'"{number}-{number:08x}"' for number in range(400)), 200),
        ('"a b!"', 400),
        ("1-a", 400),
        ('"x" "y"', 400),
        ("*", 304),
    ],
    ids=["1024 tags", "400 tags", "a space", "no quotes", "no comma", "star"],
)
def test_conditions_of_reads_are_the_services(
    chain: Chain, client: Client, condition: str, expected: int, status: str
) -> None:
    key = f"/kv/b/condition-{status}"
    client.put(key, "value")
    if status == "hit":
        client.get(key)
    service = Client(chain.instances[0].port)
    sent = {"If-None-Match": condition}
    assert service.request("GET", key, headers=sent).status == expected
    assert client.request("GET", key, headers=sent).status == expected


@pytest.mark.parametrize(
    ("date", "expected"),
    [("Sun, 06 Nov 1994 08:49:37 GMT", 412), ("Sun, 06 Nov 2094 08:49:37 GMT", 200)],
)
def test_a_date_is_compared_on_a_hit_as_well(client: Client, date: str, expected: int) -> None:
    client.put(KEY, "value")
    client.get(KEY)
    sent = {"If-Unmodified-Since": date}
    assert client.request("GET", KEY, headers=sent).status == expected
    assert client.get(KEY).headers["X-Cache"] == "HIT"


def test_date_and_age_are_of_one_clock(client: Client) -> None:
    client.put(KEY, "value")
    first = client.get(KEY)
    time.sleep(2.1)
    again = client.get(KEY)
    assert again.headers["X-Cache"] == "HIT"
    assert int(again.headers["Age"]) >= 2
    assert again.headers["Date"] == first.headers["Date"]
    assert len(again.headers.get_all("Date") or []) == 1
    assert parsedate_to_datetime(again.headers["Date"]).timestamp() <= time.time() - 1


# --- No answer from behind nginx ------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """The port of an nginx whose cache reads requests and hangs up, and its folder."""
    folder = tmp_path_factory.mktemp("nothing")
    with closing(socket.create_server(("127.0.0.1", 0), backlog=128)) as listener:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)

        threading.Thread(target=hang_up, daemon=True).start()
        chain = Chain(folder)
        chain.http_port, chain.https_port = free_ports(2)
        chain.cache_port = listener.getsockname()[1]
        with chain._exit:
            chain._start_nginx()
            yield chain.http_port, folder


@pytest.mark.parametrize(
    ("method", "path", "outcome"),
    [
        ("PUT", KEY, "unknown"),
        ("POST", KEY, "unknown"),
        ("DELETE", KEY, "unknown"),
        ("PUT", "/multi/b", "unknown"),
        ("DELETE", "/multi/b?atomic=true", "unknown"),
        ("POST", "/multi/b", None),
        ("GET", KEY, None),
    ],
)
def test_a_write_without_an_answer_may_have_been_made(
    behind_nothing: tuple[int, Path], method: str, path: str, outcome: str | None
) -> None:
    port, _ = behind_nothing
    response = wait_until(
        # nginx asks nobody for two seconds after a failure; then its answer is the same.
        lambda: Client(port).request(method, path, b"x" if method != "GET" else None),
    )
    detail = assert_problem(response, 502, "outcome_unknown" if outcome else "cache_unavailable")
    assert response.headers["Poky-Outcome"] == outcome
    assert ("may have been made" in detail) == bool(outcome)


# --- Whole or not at all --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """A chain whose cache has little memory."""
    given = {"varnish": {"varnish_storage": "4M", "varnish_transient": "64M"}}
    with Chain(tmp_path_factory.mktemp("small"), given=given) as chain:
        chain.poky("bucket", "create", "b")
        yield chain


def test_a_cache_full_of_small_values_serves_large_ones(small: Chain) -> None:
    client = Client(small.http_port)
    keys = [f"small-{number}" for number in range(6000)]
    assert client.batch("PUT", "b", [{"key": key, "data": "x" * 700} for key in keys]).status == 200
    sizes = [300_000, 500_000, 1_000_000, 4_000_000, 10_000_000, 16_777_216]
    for size in sizes:
        assert client.put(f"/kv/b/large-{size}", b"v" * size).status == 200
    for key in keys:
        assert client.get(f"/kv/b/{key}").status == 200
    for _ in range(3):
        for size in sizes:
            response = client.get(f"/kv/b/large-{size}")
            assert (response.status, len(response.body)) == (200, size)
        for key in keys[:500]:
            client.get(f"/kv/b/{key}")


def test_slow_readers_of_large_values_get_all_or_a_refusal(small: Chain) -> None:
    client = Client(small.http_port)
    size = 4_000_000
    assert client.put("/kv/b/slow", b"v" * size).status == 200
    connections = [socket.socket() for _ in range(24)]
    with ExitStack() as stack:
        for connection in connections:
            stack.enter_context(closing(connection))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            connection.settimeout(60)
            connection.connect(("127.0.0.1", small.http_port))
            # A query: passed by the cache, a copy of its own for each.
            connection.sendall(raw("GET /kv/b/slow? HTTP/1.1", "Connection: close"))
        heads = [connection.recv(12) for connection in connections]
        # Small answers do not suffer from it.
        assert client.put("/kv/b/other", "value").status == 200
        assert client.get("/kv/b/other").body == b"value"
        statuses = set()
        for head, connection in zip(heads, connections, strict=True):
            rest = b"".join(iter(lambda c=connection: c.recv(1 << 20), b""))
            status = int((head + rest).split(b" ")[1])
            statuses.add(status)
            fields, _, body = rest.partition(b"\r\n\r\n")
            assert (
                len(body) == size if status == 200 else status == 503 and b"Retry-After" in fields
            )
    assert 200 in statuses <= {200, 503}


# --- Bodies ---------------------------------------------------------------------------------------


def test_large_bodies_that_trickle_are_bounded_and_small_ones_go_on(
    tmp_path: Path, chain: Chain
) -> None:
    front = Chain(tmp_path, given={"nginx": {"nginx_large_bodies": 4}})
    front.http_port, front.https_port = free_ports(2)
    front.cache_port = chain.cache_port
    with front._exit:
        front._start_nginx()
        head = raw(f"PUT {KEY} HTTP/1.1", "Content-Length: 16000000")
        with ExitStack() as stack:
            for _ in range(2):  # half of them for one client
                connection = socket.create_connection(("127.0.0.1", front.http_port), 20)
                stack.enter_context(closing(connection)).sendall(head + b"x" * 200_000)
            refused = wait_until(
                lambda: (response := answer(front.http_port, head)).status == 429 and response,
                what="a third large body is refused",
            )
            assert_problem(refused, 429, "too_many_requests")
            assert refused.headers["Retry-After"] == "1"
            chunked = raw(f"PUT {KEY} HTTP/1.1", "Transfer-Encoding: chunked", body=b"1\r\nx\r\n")
            assert answer(front.http_port, chunked).status == 429
            client = Client(front.http_port)
            assert client.put(KEY, "small").status == 200
            assert client.get(KEY).body == b"small"
        wait_until(lambda: answer(front.http_port, head + b"x" * 16_000_000).status == 200)
        assert client.get(KEY).body == b"x" * 16_000_000


def test_a_body_that_stops_is_ended(chain: Chain) -> None:
    with closing(socket.create_connection(("127.0.0.1", chain.http_port), 30)) as connection:
        connection.sendall(raw(f"PUT {KEY} HTTP/1.1", "Content-Length: 100", body=b"x"))
        connection.settimeout(12)
        with suppress(ConnectionResetError):
            assert not connection.recv(1000)


# --- Logs -----------------------------------------------------------------------------------------


def test_no_log_of_nginx_has_a_value_a_token_or_a_query(
    chain: Chain, behind_nothing: tuple[int, Path]
) -> None:
    port, folder = behind_nothing
    secrets = {"Authorization": "Bearer SECRET-token", "Cookie": "SECRET-cookie"}
    for place in (port, chain.http_port):
        client = Client(place)
        client.request("PUT", f"{KEY}?q=SECRET-query", b"SECRET-value", secrets)
        client.request("PUT", KEY, b"SECRET-value" * 20_000, secrets)
        client.request("GET", "/kv/b?prefix=SECRET-query", headers=secrets)
        answer(place, raw(f"GET {KEY}?q=SECRET{'y' * 9000} HTTP/1.1"))
        answer(place, raw(f"PUT {KEY}?q=SECRET HTTP/1.1", "Content-Length: 17000000"))
    for nginx in (folder / "nginx", chain.folder / "nginx"):
        access = nginx / "log" / "poky.access.log"
        wait_until(lambda access=access: access.read_text().count(f"PUT {KEY} ") >= 2)
        for log in (nginx / "log").iterdir():
            assert "SECRET" not in log.read_text(), log
    assert "SECRET" not in (chain.folder / "varnish.log").read_text()


def test_a_request_id_in_the_log_is_one_word(chain: Chain, client: Client) -> None:
    log = chain.folder / "nginx" / "log" / "poky.access.log"
    for key, name, shown in (
        ("id-1", "r-1.a:b/c=", "r-1.a:b/c="),
        ("id-2", 'a" 200 [forged]', ""),
        ("id-3", "r" * 129, ""),
        ("id-4", "\xe9", ""),
    ):
        client.request("GET", f"/kv/b/{key}", headers={"X-Request-ID": name})
        (line,) = wait_until(
            lambda key=key: [
                line for line in log.read_text().splitlines() if f"/kv/b/{key} " in line
            ]
        )
        said = line.split()[-1]
        assert said == shown if shown else re.fullmatch("[0-9a-f]{32}", said), line


# --- TLS ------------------------------------------------------------------------------------------


def test_browsers_are_told_to_keep_to_https(chain: Chain) -> None:
    for request, status in (
        (raw(f"GET {KEY} HTTP/1.1"), (200, 404)),
        (REFUSED["long line"][2], (414,)),
        (raw("GET /nothing HTTP/1.1"), (404,)),
    ):
        response = answer(chain.https_port, request, tls=True)
        assert response.status in status
        assert response.headers["Strict-Transport-Security"] == "max-age=100"
        plain = answer(chain.http_port, request)
        assert "Strict-Transport-Security" not in plain.headers


def test_https_alone_is_for_certificates_that_every_browser_trusts() -> None:
    assert roles.value("nginx", "nginx_hsts_seconds") == 0
    given = roles.value("nginx", "nginx_hsts_seconds", nginx_tls_certificate="files/a.pem")
    assert given == 63072000


@pytest.mark.parametrize(
    ("cipher", "accepted"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("ECDHE-ECDSA-AES128-SHA", False),
        ("ECDHE-ECDSA-AES256-SHA384", False),
        ("ECDHE-ECDSA-AES128-CCM", False),
    ],
)
def test_only_ciphers_of_mozillas_intermediate_list(
    chain: Chain, cipher: str, accepted: bool
) -> None:
    context = ssl._create_unverified_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with closing(socket.create_connection(("127.0.0.1", chain.https_port), 20)) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                assert connection.cipher()[0] == cipher
                shaken = True
        except ssl.SSLError:
            shaken = False
    assert shaken == accepted


# --- Many requests --------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_address_that_asks_too_much_waits(tmp_path: Path) -> None:
    given: dict[str, dict[str, object]] = {
        "poky": {"poky_access": "tokens"},
        "varnish": {"varnish_access": "tokens", "varnish_failed_authorizations": 5},
        "nginx": {"nginx_requests_per_address": 20},
    }
    with Chain(tmp_path, given=given) as chain:
        chain.poky("bucket", "create", "b")
        client = Client(chain.http_port)
        guess = {"Authorization": "Bearer poky_aaaaaaaaaaaa_guessed"}
        # A bucket of five that fills by one in two seconds.
        answers = [client.request("GET", KEY, headers=guess) for _ in range(12)]
        assert [each.status for each in answers[:5]] == [401] * 5
        assert [each.status for each in answers[-2:]] == [429] * 2, answers
        assert_problem(answers[-1], 429, "too_many_failures")
        assert answers[-1].headers["Retry-After"] == "10"
        refused = wait_until(
            lambda: (each := client.get("/status")).status == 429 and each, what="too many"
        )
        assert_problem(refused, 429, "too_many_requests")
        assert refused.headers["Retry-After"] == "1"
        wait_until(lambda: client.get("/status").status == 200, what="the address may ask again")


# Changes.


def test_a_change_comes_through_the_chain_at_once(chain: Chain) -> None:
    chain.poky("bucket", "create", "followed")
    chain.poky("bucket", "set", "followed", "--changes", "1d")
    client = Client(chain.http_port)
    begin = client.get("/changes/followed").json()["next"]
    request = raw(f"GET /changes/followed?after={begin}&wait=60 HTTP/1.1", "Connection: close")
    stream = raw("GET /changes/followed HTTP/1.1", "Accept: text/event-stream")
    with (
        closing(socket.create_connection(("127.0.0.1", chain.http_port), 20)) as waiting,
        closing(socket.create_connection(("127.0.0.1", chain.http_port), 20)) as events,
    ):
        waiting.sendall(request)
        events.sendall(stream)
        text = b""
        while b"\nid: " not in text:
            text += events.recv(65536)
        etags = []
        for key in ("a", "b"):
            etags.append(client.put(f"/kv/followed/{key}", "v").etag)
            while f'"key":"{key}"'.encode() not in text:
                received = events.recv(65536)
                assert received, text
                text += received
        assert b"Content-Type: text/event-stream" in text
        assert b"X-Cache: PASS" in text
        response = http.client.HTTPResponse(waiting)
        response.begin()
        page = json.loads(response.read())
    # A busy machine may answer the wait when both are there.
    assert [each["etag"] for each in page["changes"]] in (etags[:1], etags)
    pages = client.get(f"/changes/followed?after={begin}").json()
    assert [each["etag"] for each in pages["changes"]] == etags
    assert client.get("/changes/b").code == "changes_off"
    assert client.get(f"/changes/followed?after={begin}&limit=0").code == "bad_query"


@pytest.mark.slow
def test_a_wait_of_a_minute_is_no_timeout_of_the_chain(chain: Chain) -> None:
    chain.poky("bucket", "create", "quiet")
    chain.poky("bucket", "set", "quiet", "--changes", "1d")
    client = Client(chain.http_port, timeout=90)
    began = time.monotonic()
    answered = client.get("/changes/quiet?wait=60")
    assert answered.status == 200
    assert answered.json()["changes"] == []
    assert time.monotonic() - began >= 60
