"""Pages in browsers: which may write, which of other origins may read, and by which names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from poky.api import ADMIN_ROUTES, ROUTES
from poky.config import Config, ConfigError
from tests.conftest import Database
from tests.service import Client, Headers, Response, Service, running
from tests.support import roles

pytestmark = pytest.mark.inside

APP = "https://app.example"
OTHER = "https://other.example:8443"
EVIL = "https://evil.example"

WRITES = [
    (listener, method, route.path)
    for listener, routes in (("main", ROUTES), ("admin", ADMIN_ROUTES))
    for route in routes
    for method in route.methods
    if method not in ("GET", "HEAD")
]
PATHS = sorted({route.path for route in ROUTES})
FOREIGN: dict[str, Headers] = {
    "origin": {"Origin": EVIL},
    "null": {"Origin": "null"},
    "empty": {"Origin": ""},
    "other scheme": {"Origin": "https://{host}"},
    "other port": {"Origin": "http://{host}0"},
    "longer name": {"Origin": "http://{host}.evil.example"},
    "user part": {"Origin": "http://{host}@evil.example"},
    "two": {"Origin": "http://{host}, https://evil.example"},
    "cross-site": {"Sec-Fetch-Site": "cross-site"},
    "same-site": {"Sec-Fetch-Site": "same-site"},
    "unknown site": {"Sec-Fetch-Site": "Same-Origin, cross-site"},
    "cross-site, own origin": {"Origin": "http://{host}", "Sec-Fetch-Site": "cross-site"},
    "forwarded for another": {"Origin": "http://{host}", "X-Forwarded-Host": "kv.example"},
}
OWN: dict[str, Headers] = {
    "no browser": {},
    "origin": {"Origin": "http://{host}"},
    "upper case": {"Origin": "HTTP://{host}"},
    "same-origin": {"Origin": "http://{host}", "Sec-Fetch-Site": "same-origin"},
    "behind a proxy": {"Origin": "https://kv.example", "Sec-Fetch-Site": "same-origin"},
    "typed": {"Sec-Fetch-Site": "none"},
    "forwarded": {
        "Origin": "https://kv.example:444",
        "X-Forwarded-Host": "kv.example:444",
        "X-Forwarded-Proto": "https",
    },
}


@pytest.fixture(scope="module")
def shared(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that two other origins may use."""
    log = tmp_path_factory.mktemp("shared") / "log"
    origins = f"{APP}:443 {OTHER.upper()}"
    with running(database.dsn_service, log, cors_origins=origins, statement_timeout="30") as it:
        yield it


def ask(
    service: Service, method: str, path: str, headers: Headers, *, listener: str = "main"
) -> Response:
    admin = listener == "admin"
    port = service.admin_port if admin else service.port
    sent = {name: text.format(host=f"127.0.0.1:{port}") for name, text in headers.items()}
    body = None
    if path.startswith("/multi"):
        sent["Content-Type"] = "application/json"
        body = '[{"key": "k"}]'
    elif path.startswith("/kv"):
        body = "from a page"
    return (service.admin() if admin else service.client()).request(method, path, body, sent)


def named(path: str, bucket: str) -> str:
    return path.replace("<bucket>", bucket).replace("<key>", "k")


# Writes.


@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize(("listener", "method", "path"), WRITES)
def test_a_page_of_another_origin_writes_nothing(
    service: Service, bucket: str, listener: str, method: str, path: str, how: str
) -> None:
    client = service.client()
    client.put(f"/kv/{bucket}/k", "before")
    refused = ask(service, method, named(path, bucket), FOREIGN[how], listener=listener)
    assert refused.status == 403
    assert (refused.code, "POKY_CORS_ORIGINS" in refused.detail) == ("cross_site", True)
    assert client.get(f"/kv/{bucket}/k").body == b"before"


@pytest.mark.parametrize("how", OWN)
@pytest.mark.parametrize(("listener", "method", "path"), WRITES)
def test_the_own_page_and_programs_write(
    service: Service, bucket: str, listener: str, method: str, path: str, how: str
) -> None:
    answer = ask(service, method, named(path, bucket), OWN[how], listener=listener)
    assert answer.status != 403 or answer.code == "admin_listener_needed"


def test_a_large_write_of_another_origin_is_refused_before_its_body(service: Service) -> None:
    client = service.client()
    head = {"Content-Length": "9000000", "Origin": EVIL}
    refused = client.request("PUT", "/kv/b/k", None, head)
    assert (refused.status, refused.code) == (403, "cross_site")


@pytest.mark.parametrize("how", FOREIGN)
def test_reads_of_other_origins_are_answered_but_not_shared(
    service: Service, bucket: str, how: str
) -> None:
    client = service.client()
    client.put(f"/kv/{bucket}/k", "value")
    answer = ask(service, "GET", f"/kv/{bucket}/k", FOREIGN[how])
    assert (answer.status, answer.body) == (200, b"value")
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "Vary" not in answer.headers


@pytest.mark.parametrize("path", PATHS)
def test_without_origins_no_preflight_is_answered(service: Service, path: str) -> None:
    headers = {"Origin": APP, "Access-Control-Request-Method": "PUT"}
    answer = service.client().request("OPTIONS", named(path, "b"), None, headers)
    assert answer.status == 405
    assert "OPTIONS" not in answer.headers["Allow"]
    assert not [name for name in answer.headers if name.startswith("Access-Control-")]


# Sharing with origins (CORS).


@pytest.mark.parametrize("origin", [APP, OTHER])
@pytest.mark.parametrize("path", PATHS)
def test_preflights_of_allowed_origins(shared: Service, path: str, origin: str) -> None:
    headers = {
        "Origin": origin,
        "Sec-Fetch-Site": "cross-site",
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "if-match,authorization",
    }
    answer = shared.client().request("OPTIONS", named(path, "b"), None, headers)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "Access-Control-Allow-Credentials" not in answer.headers
    assert answer.headers["Vary"] == "Origin"
    assert int(answer.headers["Access-Control-Max-Age"]) > 0
    methods = {m for route in ROUTES if route.path == path for m in route.methods} | {"OPTIONS"}
    assert set(answer.headers["Access-Control-Allow-Methods"].split(", ")) == methods
    assert set(answer.headers["Allow"].split(", ")) == methods
    fields = set(answer.headers["Access-Control-Allow-Headers"].lower().split(", "))
    assert {"authorization", "content-type", "content-encoding", "if-match", "range"} <= fields


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("origin", [EVIL, "null", f"{APP}.evil.example", f"{APP}:8443", "*", ""])
def test_preflights_of_other_origins_are_refused(shared: Service, path: str, origin: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
    answer = shared.client().request("OPTIONS", named(path, "b"), None, headers)
    assert (answer.status, answer.code) == (403, "cross_site")
    assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize("origin", [APP, OTHER])
def test_an_allowed_origin_writes_and_reads(shared: Service, bucket: str, origin: str) -> None:
    path = f"/kv/{bucket}/k"
    own = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
    client = shared.client()
    answers = [
        client.request("PUT", path, "v", own),
        client.request("GET", path, None, own),
        client.request("GET", path, None, {**own, "If-None-Match": "*"}),
        client.request("GET", f"/kv/{bucket}", None, own),
        client.request("GET", f"/kv/{bucket}/missing", None, own),
        client.request("GET", "/nothing", None, own),
        client.request("PATCH", path, None, own),
        client.request("PUT", path, "v", {**own, "If-Match": "no tag"}),
        client.request("GET", "/status", None, own),
        client.batch("POST", bucket, [{"key": "k"}], origin=origin),
    ]
    assert [a.status for a in answers] == [200, 200, 304, 200, 404, 404, 405, 400, 200, 200]
    for answer in answers:
        assert answer.headers["Access-Control-Allow-Origin"] == origin
        assert answer.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in answer.headers
        exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
        assert {"ETag", "Poky-Outcome", "Retry-After", "WWW-Authenticate"} <= set(exposed)


def test_large_bodies_that_are_refused_early_are_shared_too(shared: Service) -> None:
    head = {"Content-Length": "9000000", "Origin": APP, "If-Match": "no tag"}
    refused = shared.client().request("PUT", "/kv/b/k", None, head)
    assert (refused.status, refused.code) == (400, "bad_condition")
    assert refused.headers["Access-Control-Allow-Origin"] == APP


@pytest.mark.parametrize("how", FOREIGN)
@pytest.mark.parametrize(("listener", "method", "path"), WRITES)
def test_other_origins_stay_out(
    shared: Service, bucket: str, listener: str, method: str, path: str, how: str
) -> None:
    refused = ask(shared, method, named(path, bucket), FOREIGN[how], listener=listener)
    assert (refused.status, refused.code) == (403, "cross_site")
    assert "Access-Control-Allow-Origin" not in refused.headers


def test_the_admin_listener_is_shared_with_no_origin(shared: Service, bucket: str) -> None:
    admin = shared.admin()
    refused = admin.request("DELETE", f"/buckets/{bucket}", None, {"Origin": APP})
    assert (refused.status, refused.code) == (403, "cross_site")
    assert admin.request("OPTIONS", "/buckets", None, {"Origin": APP}).status == 405
    listed = admin.request("GET", "/buckets", None, {"Origin": APP})
    assert "Access-Control-Allow-Origin" not in listed.headers


def test_a_preflight_needs_no_token_and_what_follows_does(
    database: Database, bucket: str, tmp_path: Path
) -> None:
    with running(
        database.dsn_service, tmp_path / "log", access="tokens", cors_origins=APP
    ) as service:
        client = service.client()
        assert client.request("OPTIONS", f"/kv/{bucket}/k", None, {"Origin": APP}).status == 204
        refused = client.request("PUT", f"/kv/{bucket}/k", "v", {"Origin": APP})
        assert (refused.status, refused.code) == (401, "token_needed")
        assert refused.headers["Access-Control-Allow-Origin"] == APP
        # Of another origin it says nothing of tokens.
        refused = client.request("PUT", f"/kv/{bucket}/k", "v", {"Origin": EVIL})
        assert (refused.status, refused.code) == (403, "cross_site")


def test_any_origin(database: Database, bucket: str, tmp_path: Path) -> None:
    with running(database.dsn_service, tmp_path / "log", cors_origins="*") as service:
        client = service.client()
        for origin in (EVIL, "null"):
            own = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
            assert client.request("PUT", f"/kv/{bucket}/k", "v", own).status == 200
            answer = client.request("GET", f"/kv/{bucket}/k", None, own)
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "Vary" not in answer.headers
            assert answer.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
            # The admin listener is for its own page still.
            assert service.admin().request("PUT", "/buckets/x", None, own).status == 403


# Values as parts of other pages.


def test_values_are_for_pages_of_the_same_origin(
    service: Service, shared: Service, bucket: str
) -> None:
    service.client().put(f"/kv/{bucket}/k", "value")
    for one, policy in ((service, "same-origin"), (shared, "cross-origin")):
        answer = one.client().get(f"/kv/{bucket}/k")
        assert answer.headers["Cross-Origin-Resource-Policy"] == policy


# The admin listener's names.

KNOWN = [
    "localhost",
    "LocalHost:80",
    "localhost.:1",
    "127.0.0.1:{port}",
    "127.8.8.8",
    "[::1]:{port}",
]
UNKNOWN = [
    *("evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("10.0.0.1", "192.168.1.7:{port}", "[::2]", "poky", "kv.example", "0.0.0.0", "2130706433"),
]


def by_name(client: Client, method: str, path: str, host: str) -> Response:
    client._connection.putrequest(method, path, skip_host=True)
    client._connection.putheader("Host", host)
    client._connection.endheaders()
    answer = client._connection.getresponse()
    return Response(answer.status, answer.headers, answer.read())


@pytest.mark.parametrize("route", ADMIN_ROUTES, ids=lambda route: f"{route.methods[0]}{route.path}")
@pytest.mark.parametrize("host", UNKNOWN)
def test_the_admin_listener_is_not_asked_by_other_names(
    service: Service, bucket: str, route: object, host: str
) -> None:
    for method in route.methods:  # type: ignore[attr-defined]
        path = named(route.path, bucket)  # type: ignore[attr-defined]
        asked = host.format(port=service.admin_port)
        answer = by_name(service.admin(), method, path, asked)
        assert answer.status == 421
        if method != "HEAD":
            assert (answer.code, "POKY_ADMIN_HOSTS" in answer.detail) == ("host_unknown", True)
    assert service.client().get(f"/kv/{bucket}").status == 200


@pytest.mark.parametrize("host", KNOWN)
def test_the_admin_listener_is_asked_by_loopback(service: Service, host: str) -> None:
    asked = host.format(port=service.admin_port)
    assert by_name(service.admin(), "GET", "/metrics", asked).status == 200


def test_the_admin_listener_has_the_names_that_are_configured(
    database: Database, tmp_path: Path
) -> None:
    with running(
        database.dsn_service,
        tmp_path / "log",
        admin_hosts="Metrics.example [fd00::7]",
        admin_listen="0.0.0.0",
    ) as service:
        # Where any address is listened on, any address is a name: none can be made to resolve.
        for host in ("metrics.example:9081", "10.0.0.1:9081", "[fd00::7]", "[fd00::8]:1"):
            assert by_name(service.admin(), "GET", "/status", host).status == 200, host
        for host in ("evil.example", "a.metrics.example"):
            assert by_name(service.admin(), "GET", "/status", host).status == 421, host


def test_the_admin_listener_answers_those_who_send_no_name(service: Service) -> None:
    client = service.admin()
    client._connection._http_vsn, client._connection._http_vsn_str = 10, "HTTP/1.0"
    client._connection.putrequest("GET", "/status", skip_host=True)
    client._connection.endheaders()
    assert client._connection.getresponse().status == 200


def test_the_cache_knows_origins_by_the_same_form() -> None:
    given = ["HTTPS://App.example:443", "http://[::1]:80", "http://a:8080", "https://b:80"]
    origins = roles.value("varnish", "_varnish_origins", varnish_cors_origins=given)
    config = Config.from_env({"POKY_CORS_ORIGINS": " ".join(given)})
    assert tuple(origins) == config.cors_origins


@pytest.mark.parametrize(
    "text",
    [
        "https://a.example",
        "HTTP://[::1]:80",
        "x+y://a_b",
        "*",
        "a.example",
        "https://a/",
        "https://a:1:2",
    ],
)
def test_the_role_takes_for_an_origin_what_the_service_does(text: str) -> None:
    pattern = roles.value("poky", "_poky_origin")
    try:
        taken = Config.from_env({"POKY_CORS_ORIGINS": f"http://b {text}"}).cors_origins
    except ConfigError:
        taken = ()
    assert bool(re.match(pattern, text.lower())) == bool(taken)
