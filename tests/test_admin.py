"""What a service says of itself: status, help, OpenAPI, metrics (docs/http-api.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from poky.api import ADMIN_ROUTES, ROUTES, openapi
from poky.config import Config
from tests.service import Client, Service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    client = service.client()
    yield client
    client.close()


@pytest.fixture
def admin(service: Service) -> Iterator[Client]:
    client = service.admin()
    yield client
    client.close()


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
    assert set(shown) == {*("release", "database", "schema", "inflight", "instance", "background")}
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
