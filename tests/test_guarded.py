"""Tokens through nginx and Varnish, which decide as the service does (test_access)."""

from __future__ import annotations

import base64
import itertools
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from poky.access import RIGHTS, Grants, Token
from poky.api import ROUTES
from tests.service import Client, Headers, Response, wait_until
from tests.support.chain import Chain
from tests.test_access import OPEN, REQUESTS, ask, bearer

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]

PER_TOKEN = 60  # requests in a second


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    given: dict[str, dict[str, object]] = {
        "poky": {"poky_access": "tokens"},
        "varnish": {"varnish_access": "tokens", "varnish_failed_authorizations": 100_000},
        "nginx": {"nginx_requests_per_token": PER_TOKEN},
    }
    folder = tmp_path_factory.mktemp("guarded-chain")
    with Chain(folder, instances=2, given=given) as chain:
        yield chain


@pytest.fixture
def client(chain: Chain) -> Client:
    return Client(chain.http_port)


_numbers = itertools.count(1)


def make(chain: Chain, *grants: str) -> tuple[str, str]:
    """A new token: its name and its text."""
    token, name = Token.create(), f"t{next(_numbers)}"
    row = (token.id, name, token.hash, list(Grants.parse(grants).texts))
    with closing(psycopg2.connect(chain.database.dsn_owner)) as connection, connection:
        connection.cursor().execute("SELECT poky.create_token(%s, %s, %s, %s, NULL)", row)
    return name, str(token)


@pytest.fixture
def bucket(chain: Chain, client: Client) -> str:
    """A bucket with an object that is in the cache."""
    name = f"b{next(_numbers)}"
    chain.poky("bucket", "create", name)
    headers = bearer(make(chain, f"read,write:{name}")[1])
    assert client.request("PUT", f"/kv/{name}/k", "value", headers).status == 200
    wait_until(
        lambda: client.request("GET", f"/kv/{name}/k", headers=headers).headers["X-Cache"] == "HIT",
        what="it is in the cache",
    )
    return name


CONDITIONS: list[Headers] = [
    {},
    {"If-None-Match": "*"},
    {"If-None-Match": '"1-a"'},
    {"If-Match": "*"},
    {"If-Match": '"1-a"'},
    {"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"},
    {"If-Unmodified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"},
    {"Range": "bytes=0-0"},
    {"Accept": "text/html"},
]


@pytest.mark.parametrize(
    "route",
    [route for route in ROUTES if route.path not in OPEN],
    ids=lambda route: f"{route.methods[0]} {route.path}",
)
def test_each_route_needs_its_right_in_its_bucket(
    route: Any, chain: Chain, client: Client, bucket: str
) -> None:
    needed = route.right.split(",")
    others = tuple(right for right in RIGHTS if right not in needed)
    tokens = {
        "exact": (f"{route.right}:{bucket}", True),
        "prefix": (f"{route.right}:{bucket[:-1]}*", True),
        "other rights": (f"{','.join(others)}:*", False),
        "other bucket": (f"{route.right}:{bucket}x", False),
        "longer prefix": (f"{route.right}:{bucket}x*", False),
    }
    if route.path == "/buckets":  # as far as granted: no bucket at all
        tokens = {name: tokens[name] for name in ("exact", "other rights")}
    method = next(each for each in route.methods if each != "HEAD")
    path, body = REQUESTS[(method, route.path)]
    target = path.format(b=bucket)
    # Every spelling; a query only where it is not refused.
    targets = [target, *([target.replace("/k", "/%6B")] if "/kv" in target else [])]
    methods = [method]
    if method == "GET":
        targets.append(f"{target}?x")
        methods.append("HEAD")
    for what, (grant, is_granted) in tokens.items():
        headers = bearer(make(chain, grant)[1])
        for verb, spelling, condition in itertools.product(methods, targets, CONDITIONS):
            if method != "GET" and condition:
                continue
            answer = ask(client, verb, spelling, body, {**headers, **condition})
            seen = (what, verb, spelling, condition, answer.status, answer.body)
            assert (answer.status not in (401, 403)) == is_granted, seen
            if not is_granted:
                assert answer.status == 403, seen
            # A refusal by the condition would show the object.
            assert is_granted or "ETag" not in answer.headers, seen


def test_without_a_valid_token_nothing_is_answered(
    chain: Chain, client: Client, bucket: str
) -> None:
    unknown = Token.create()
    password = base64.b64encode(f"a:{unknown}".encode()).decode()
    values = ["", "Bearer", "Bearer x", f"Bearer {unknown}", f"Basic {password}", "Digest a=b"]
    for (method, path), (target, body) in REQUESTS.items():
        for value, condition in itertools.product(values, CONDITIONS):
            if method != "GET" and condition:
                continue
            headers = {**condition, **({"Authorization": value} if value else {})}
            answer = ask(client, method, target.format(b=bucket), body, headers)
            seen = (method, path, headers, answer.status, answer.body)
            assert answer.status == 401, seen
            assert answer.headers["WWW-Authenticate"].startswith("Bearer"), seen
            assert answer.code == "token_needed", seen


def _shown(answer: Response) -> dict[str, str]:
    own = {"date", "x-request-id", "x-varnish"}
    return {name: value for name, value in answer.headers.items() if name.lower() not in own}


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_existence_never_shows(method: str, chain: Chain, client: Client, bucket: str) -> None:
    """By no token, and by one for elsewhere: cached, not cached, missing, no bucket."""
    headers = bearer(make(chain, f"write:{bucket}")[1])
    assert client.request("PUT", f"/kv/{bucket}/other", "value", headers).status == 200
    targets = [f"/kv/{bucket}/{key}" for key in ("k", "other", "missing")] + ["/kv/none/k"]
    for authorization in ({}, bearer(make(chain, "read,write,delete:elsewhere")[1])):
        answers = [
            client.request(method, target, "v" if method == "PUT" else None, authorization)
            for target in (*targets, *targets)
        ]
        first = answers[0]
        for answer in answers:
            assert (answer.status, answer.body) == (first.status, first.body)
            assert _shown(answer) == _shown(first)


def test_an_authorization_that_comes_twice_is_refused(
    chain: Chain, client: Client, bucket: str
) -> None:
    """By whichever of the two nginx, the cache and the service would decide."""
    good, bad = make(chain, f"read:{bucket}")[1], Token.create()
    for pair in ((good, bad), (bad, good), (good, good)):
        lines = "".join(f"Authorization: Bearer {each}\r\n" for each in pair)
        request = f"GET /kv/{bucket}/k HTTP/1.1\r\nHost: poky\r\nConnection: close\r\n{lines}\r\n"
        for port in (chain.http_port, chain.cache_port, chain.instances[0].port):
            with closing(socket.create_connection(("127.0.0.1", port), 20)) as connection:
                connection.sendall(request.encode())
                received = b"".join(iter(lambda: connection.recv(65536), b""))
            assert received[9:12] in (b"400", b"401"), (pair, port, received)


def test_no_header_of_a_client_steers_the_decision(chain: Chain, bucket: str) -> None:
    """Also at the cache itself, where nginx has not dropped any."""
    other = make(chain, "read:elsewhere")[1]
    names = ("Access", "Key", "Policy", "Granted", "Internal", "Generation", "Epoch", "Left")
    values = ("granted", "1", "ask", "lease", "service", "none", "")
    for port in (chain.http_port, chain.cache_port):
        client = Client(port)
        for name, value in itertools.product(names, values):
            # Few by a token, for those are limited; the others have none.
            for headers in ({}, bearer(other)) if value == "granted" else ({},):
                fields = {**headers, f"Poky-{name}": value, "Poky-Access": value}
                answer = client.request("GET", f"/kv/{bucket}/k", headers=fields)
                assert answer.status == (403 if headers else 401), (fields, answer)


def test_a_revoked_token_and_a_bucket_that_is_public_no_more_open_nothing(
    chain: Chain, client: Client, bucket: str
) -> None:
    name, token = make(chain, f"read,list,write:{bucket}")
    requests = [
        ("GET", f"/kv/{bucket}/k", None),
        ("HEAD", f"/kv/{bucket}/k", None),
        ("GET", f"/kv/{bucket}/%6B", None),
        ("GET", f"/kv/{bucket}/k?x", None),
        ("GET", f"/kv/{bucket}", None),
        ("POST", f"/multi/{bucket}", '[{"key": "k"}]'),
        ("PUT", f"/kv/{bucket}/mine", "v"),
    ]
    for method, path, body in requests:
        assert ask(client, method, path, body, bearer(token)).status == 200
    chain.poky("token", "revoke", name)
    for method, path, body in requests:
        assert ask(client, method, path, body, bearer(token)).status == 401, (method, path)
    chain.poky("bucket", "set", bucket, "--public", "read")
    for _ in "missed", "cached":
        assert client.get(f"/kv/{bucket}/k").body == b"value"
    assert client.get(f"/kv/{bucket}").status == 401
    assert client.request("GET", f"/kv/{bucket}/k", headers=bearer(token)).status == 401
    chain.poky("bucket", "set", bucket, "--public", "none")
    for method, path, body in requests:
        assert ask(client, method, path, body, {}).status == 401, (method, path)


def test_a_token_that_asks_too_much_waits_and_others_do_not(
    chain: Chain, client: Client, bucket: str
) -> None:
    greedy, other = make(chain, f"read:{bucket}")[1], make(chain, f"read:{bucket}")[1]
    basic = base64.b64encode(f"u:{greedy}".encode()).decode()
    path = f"/kv/{bucket}/k"
    for headers in (bearer(greedy), {"Authorization": f"Basic {basic}"}):

        def answer(headers: Headers = headers) -> Response:
            return client.request("GET", path, headers=headers)

        def too_many(ask: Callable[[], Response] = answer) -> Response | None:
            answers = [ask() for _ in range(3 * PER_TOKEN)]
            return next((each for each in answers if each.status == 429), None)

        refused = wait_until(too_many, what="too many")
        assert json.loads(refused.body)["code"] == "too_many_requests"
        assert refused.headers["Retry-After"] == "1"
        assert client.request("GET", path, headers=bearer(other)).status == 200
        assert client.get("/status").status == 200
        wait_until(lambda: answer().status == 200, what="it may ask again")
