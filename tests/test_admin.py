"""What a service says of itself: status, help, OpenAPI, metrics (docs/http-api.md)."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import socket
import subprocess
from base64 import b64encode

import pytest

from poky import __version__
from poky.api import ADMIN_ROUTES, LEASE_ROUTES, ROUTES, Route, openapi
from poky.config import Config
from tests.service import Client, Service


def test_status_is_ok(client: Client) -> None:
    status = client.get("/status")
    assert (status.status, status.body) == (200, b"ok")
    assert status.headers["Content-Type"].startswith("text/plain")
    assert status.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("way", ["query", "accept"])
def test_status_in_detail(client: Client, service: Service, way: str) -> None:
    if way == "query":
        status = client.get("/status?verbose")
    else:
        status = client.get("/status", accept="application/json")
    assert status.headers["Cache-Control"] == "no-store"
    shown = status.json()
    names = "release database schema server inflight instance background"
    assert set(shown) - {"shards"} == set(names.split())
    assert (shown["database"], shown["schema"], shown["inflight"]) == ("ok", "ok", 0)
    if isinstance(service, Service):
        assert shown["instance"].endswith(f":{service.port}")


def test_help_names_every_route(client: Client, admin: Client) -> None:
    for where, routes in ((client, ROUTES), (admin, ADMIN_ROUTES)):
        said = where.get("/help")
        assert said.headers["Content-Type"].startswith("text/plain")
        for route in routes:
            path = route.path.replace("<", "{").replace(">", "}")
            assert f" {path} " in said.body.decode()


def test_openapi_names_every_route_and_no_other(client: Client) -> None:
    document = client.get("/openapi.json").json()
    assert document == json.loads(json.dumps(openapi.document(Config(), ROUTES)))
    assert document["openapi"].startswith("3.1")
    named = {
        (path, method.upper())
        for path, operations in document["paths"].items()
        for method in operations
        if method != "parameters"
    }
    routed = {
        (route.path.replace("<", "{").replace(">", "}"), method)
        for route in ROUTES
        for method in route.methods
    }
    assert named == routed


@pytest.mark.parametrize("routes", [ROUTES, ADMIN_ROUTES, LEASE_ROUTES])
def test_every_listener_has_a_document(routes: tuple[Route, ...]) -> None:
    assert openapi.document(Config(), routes)["paths"]


def test_openapi_names_every_status_of_a_route(client: Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for route in ROUTES:
        path = route.path.replace("<", "{").replace(">", "}")
        for method in route.methods:
            documented = set(paths[path][method.lower()]["responses"])
            assert set(route.statuses.split()) <= documented, (path, method)


def test_metrics_are_on_the_admin_listener_only(client: Client, admin: Client, bucket: str) -> None:
    client.get(f"/kv/{bucket}/nothing")
    assert client.get("/metrics").status == 404
    metrics = admin.get("/metrics")
    assert metrics.status == 200
    assert (
        'poky_requests_total{method="GET",route="/kv/<bucket>/<key>",status="404"}'
        in metrics.body.decode()
    )


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (BROWSER, "text/html"),
        ("text/html", "text/html"),
        ("*/*", "text/plain"),
        ("", "text/plain"),
        ("text/plain, text/html;q=0.5", "text/plain"),
        ("text/html;q=0", "text/plain"),
        ("image/png", "text/plain"),
    ],
)
@pytest.mark.parametrize("where", ["main", "admin"])
def test_the_first_page_is_a_page_for_browsers_and_text_for_the_rest(
    client: Client, admin: Client, where: str, accept: str, media_type: str
) -> None:
    listener = client if where == "main" else admin
    page = listener.get("/", accept=accept)
    assert page.status == 200
    assert page.headers["Content-Type"] == f"{media_type}; charset=utf-8"
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Vary"] == "Accept"
    assert (b"<!DOCTYPE html>" in page.body) == (media_type == "text/html")
    for path in ("/help", "/status"):
        assert path.encode() in page.body
    head = listener.request("HEAD", "/", headers={"Accept": accept})
    assert (head.status, head.body) == (200, b"")
    if where == "main" or media_type == "text/plain":  # the admin's page shows times
        assert head.headers["Content-Length"] == str(len(page.body))
    assert head.headers["Content-Type"] == page.headers["Content-Type"]


def test_the_first_page_runs_nothing_and_its_style_is_in_force(client: Client) -> None:
    page = client.get("/", accept=BROWSER)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    style = re.search(b"<style>(.*?)</style>", page.body, re.DOTALL)
    assert style
    digest = b64encode(hashlib.sha256(style[1]).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert not re.search(b"<script| style=| on[a-z]+=", page.body)
    assert page.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.inside
def test_every_line_of_the_first_pages_can_be_pasted(service: Service) -> None:
    lines = []
    for listener in (service.admin(), service.client()):
        said = listener.get("/", accept="*/*").body.decode()
        lines += [line for line in said.splitlines() if line.startswith("  curl ")]
        lines += [f"curl {url}" for url in re.findall(r"^  (http://\S+)  ", said, re.MULTILINE)]
    assert len(lines) > 10
    for line in lines:
        done = subprocess.run(
            line.replace("curl ", "curl -sS --fail ", 1),
            shell=True,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, line + done.stderr


@pytest.mark.inside
@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"Host": "kv.example.org:8081"}, "http://kv.example.org:8081"),
        ({"Host": "[fd00::2]:8081"}, "http://[fd00::2]:8081"),
        (
            {"Host": "poky", "X-Forwarded-Host": "kv.example.org", "X-Forwarded-Proto": "https"},
            "https://kv.example.org",
        ),
        ({"Host": "poky", "X-Forwarded-Host": "x';id;'"}, "http://poky"),
        ({"Host": "poky", "X-Forwarded-Host": "<script>"}, "http://poky"),
        ({"Host": "poky", "X-Forwarded-Host": "a.example, b.example"}, "http://poky"),
    ],
)
def test_the_first_page_names_the_url_that_was_used_and_no_machine(
    service: Service, headers: dict[str, str], base: str
) -> None:
    for accept in ("*/*", BROWSER):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
        connection.putrequest("GET", "/", skip_host=True)
        for name, value in {**headers, "Accept": accept}.items():
            connection.putheader(name, value)
        connection.endheaders()
        said = connection.getresponse().read().decode()
        connection.close()
        assert f"{base}/kv/greetings/hello" in said
        for secret in (str(service.admin_port), __version__, socket.gethostname()):
            assert secret not in said
        assert "script" not in said


@pytest.mark.inside
@pytest.mark.parametrize(
    "host", ["127.0.0.1:{}", "LocalHost.:{}", "127.0.0.1", "[::1]:{}", "[::1]", None]
)
def test_who_came_to_this_machine_directly_is_told_of_the_admin_listener(
    service: Service, host: str | None
) -> None:
    """Also by a client that sends no Host: the address is the one that it came to."""
    field = "" if host is None else f"Host: {host.format(service.port)}\r\n"
    for more, is_told in (("", host is not None), ("Via: 1.1 proxy\r\n", False)):
        with socket.create_connection(("127.0.0.1", service.port), 20) as connection:
            connection.sendall(f"GET / HTTP/1.0\r\n{field}{more}\r\n".encode())
            said = b""
            while received := connection.recv(65536):
                said += received
        line = f"  curl -X PUT http://127.0.0.1:{service.admin_port}/buckets/greetings\n"
        assert (line in said.decode()) is is_told
        base = f"127.0.0.1:{service.port}" if host is None else host.format(service.port)
        assert f" http://{base}/kv/greetings/hello\n" in said.decode()


@pytest.mark.parametrize(
    ("accept", "as_json"),
    [
        ("application/json;q=0.9, text/plain;q=0.5", True),
        ("application/json;q=0", False),
        ("text/plain, application/json;q=0.5", False),
        ("text/html, */*;q=0.1", False),
    ],
)
def test_accept_chooses_the_kind_of_status(client: Client, accept: str, as_json: bool) -> None:
    status = client.get("/status", accept=accept)
    assert (status.headers["Content-Type"] == "application/json") == as_json
