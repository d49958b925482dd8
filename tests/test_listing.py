"""Listing, buckets, status, help and errors (docs/http-api.md)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

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


# Listing.


def test_a_listing_shows_everything_but_the_value(client: Client, bucket: str) -> None:
    stored = client.put(f"/kv/{bucket}/a", "four", content_type="text/x")
    assert client.get(f"/kv/{bucket}").json() == {
        "keys": [
            {
                "key": "a",
                "size": 4,
                "etag": stored.etag,
                "modified_at": stored.headers["Last-Modified"],
                "content_type": "text/x",
            }
        ],
        "next": None,
    }


def test_an_empty_bucket_lists_nothing(client: Client, bucket: str) -> None:
    assert client.get(f"/kv/{bucket}").json() == {"keys": [], "next": None}
    head = client.request("HEAD", f"/kv/{bucket}")
    assert (head.status, head.body) == (200, b"")


def _keys(page: Any) -> list[str]:
    return [each["key"] for each in page["keys"]]


def test_pages_follow_each_other_in_byte_order(client: Client, bucket: str) -> None:
    keys = sorted(["a", "B", "_", "~", "a-b", "aa", "1", "a.b", "Z", "z", ":", "a,"])
    client.batch("PUT", bucket, [{"key": key, "data": "v"} for key in keys])
    seen: list[str] = []
    after = ""
    while True:
        page = client.get(f"/kv/{bucket}?limit=5&after={after}").json()
        seen += _keys(page)
        if page["next"] is None:
            break
        assert len(page["keys"]) == 5
        after = page["next"]
    assert seen == keys


def test_a_full_last_page_has_no_next(client: Client, bucket: str) -> None:
    client.batch("PUT", bucket, [{"key": key, "data": "v"} for key in "abcd"])
    page = client.get(f"/kv/{bucket}?limit=4").json()
    assert (_keys(page), page["next"]) == (list("abcd"), None)


def test_a_prefix_takes_only_what_starts_with_it(client: Client, bucket: str) -> None:
    keys = ["a", "a-1", "a-2", "a-~~", "a.", "a_", "b", "A-1"]
    client.batch("PUT", bucket, [{"key": key, "data": "v"} for key in keys])
    assert _keys(client.get(f"/kv/{bucket}?prefix=a-").json()) == ["a-1", "a-2", "a-~~"]
    assert _keys(client.get(f"/kv/{bucket}?prefix=a-&after=a-1").json()) == ["a-2", "a-~~"]
    assert _keys(client.get(f"/kv/{bucket}?prefix=..").json()) == []
    assert _keys(client.get(f"/kv/{bucket}?prefix=%61-").json()) == ["a-1", "a-2", "a-~~"]


def test_a_cursor_can_be_sent_back_as_it_is(client: Client, bucket: str) -> None:
    keys = ["a+b", "a,b", "a=b", "a@b", "a~b", "a:b"]
    client.batch("PUT", bucket, [{"key": key, "data": "v"} for key in keys])
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get(f"/kv/{bucket}?limit=1&after={after}").json()
        seen += _keys(page)
        after = page["next"]
    assert seen == sorted(keys)


def test_the_default_limit_is_100(client: Client, bucket: str) -> None:
    client.batch("PUT", bucket, [{"key": f"k{n:04}", "data": ""} for n in range(1001)])
    assert len(client.get(f"/kv/{bucket}").json()["keys"]) == 100
    assert len(client.get(f"/kv/{bucket}?limit=1000").json()["keys"]) == 1000


@pytest.mark.parametrize(
    "query",
    "limit=0 limit=1001 limit=x limit=-1 limit= limt=5 limit=1&limit=2 after=a%20b prefix=a* "
    "prefix=%ff".split(),
)
def test_a_bad_query_is_400(client: Client, bucket: str, query: str) -> None:
    refused = client.get(f"/kv/{bucket}?{query}")
    assert refused.status == 400
    assert refused.detail


@pytest.mark.inside
def test_a_late_page_costs_what_the_first_costs(database: Any, bucket: str) -> None:
    """By keyset: PostgreSQL reads the page's rows and no others."""
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM (SELECT poky.put(%s, 'k' || lpad(n::text, 5, '0'), 'v', 't')"
            " FROM generate_series(1, 5000) AS n) AS x",
            [bucket],
        )
        connection.commit()
        cursor.execute("SELECT id, leaf FROM poky.bucket WHERE name = %s", [bucket])
        number, leaf = cursor.fetchone()
        cursor.execute(f"ANALYZE poky.{leaf or '_object'}")
        touched = []
        for after in ("", "k04800"):
            cursor.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT json) SELECT key, octet_length(value) FROM"
                f" poky.{leaf or '_object'} WHERE bucket_id = {number} AND key >= ''"
                f" AND key < chr(127) AND key > '{after}' ORDER BY key LIMIT 100"
            )
            plan = cursor.fetchone()[0][0]["Plan"]
            touched.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        assert touched[1] <= touched[0] + 5
    connection.close()


# Buckets.


def test_buckets_are_listed_with_estimates(client: Client, bucket: str, kind: str) -> None:
    client.put(f"/kv/{bucket}/a", "v")
    listed = client.get("/buckets").json()["buckets"]
    assert [each["name"] for each in listed] == sorted(each["name"] for each in listed)
    mine = next(each for each in listed if each["name"] == bucket)
    assert mine["schema"] == kind
    assert isinstance(mine["estimated_rows"], int)
    assert mine["bytes"] >= 0


def test_creating_a_bucket_is_200_also_if_it_exists(admin: Client, client: Client) -> None:
    for _ in range(2):
        created = admin.request("PUT", "/buckets/made-here")
        assert (created.status, created.body) == (200, b"")
    assert "made-here" in [each["name"] for each in client.get("/buckets").json()["buckets"]]
    assert admin.request("DELETE", "/buckets/made-here").status == 200
    assert "made-here" not in [each["name"] for each in client.get("/buckets").json()["buckets"]]
    gone = admin.request("DELETE", "/buckets/made-here")
    assert gone.status == 404
    assert "made-here" in gone.detail


def test_a_bucket_with_keys_is_dropped_only_when_told_so(admin: Client, client: Client) -> None:
    admin.request("PUT", "/buckets/full")
    client.put("/kv/full/key", "value")
    refused = admin.request("DELETE", "/buckets/full")
    assert refused.status == 409
    assert "keys=drop" in refused.detail
    assert client.get("/kv/full/key").body == b"value"
    assert admin.request("DELETE", "/buckets/full?keys=yes").status == 400
    assert admin.request("DELETE", "/buckets/full?keys=drop").status == 200
    admin.request("PUT", "/buckets/full")
    assert client.get("/kv/full/key").status == 404
    admin.request("DELETE", "/buckets/full")


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_buckets_are_changed_only_on_the_admin_listener(
    client: Client, bucket: str, method: str
) -> None:
    assert client.request(method, f"/buckets/{bucket}").status == 404
    assert client.request(method, "/buckets").status == 405


# Status, help, OpenAPI, metrics.


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
    assert set(shown) == {"release", "database", "schema", "inflight", "instance"}
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


# Errors.


@pytest.mark.parametrize("path", ["/", "/kv", "/kv/", "/kv/b/", "/kv//k", "/kv/b/k/x", "/none"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_an_unknown_path_is_404(client: Client, method: str, path: str) -> None:
    answer = client.request(method, path, "x" if method == "PUT" else None)
    assert answer.status == 404
    if method != "HEAD":
        assert "/help" in answer.detail


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/kv/b/k", {"GET", "HEAD", "PUT", "POST", "DELETE"}),
        ("/kv/b", {"GET", "HEAD"}),
        ("/multi/b", {"POST", "PUT", "DELETE"}),
        ("/status", {"GET", "HEAD"}),
        ("/buckets", {"GET", "HEAD"}),
        ("/help", {"GET", "HEAD"}),
        ("/openapi.json", {"GET", "HEAD"}),
    ],
)
def test_the_wrong_method_is_405_with_allow(client: Client, path: str, allowed: set[str]) -> None:
    for method in {"GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"} - allowed:
        refused = client.request(method, path, "x" if method in ("PUT", "POST") else None)
        assert refused.status == 405, method
        assert set(refused.headers["Allow"].split(", ")) == allowed
        assert refused.detail


def test_head_wherever_get(client: Client, bucket: str) -> None:
    for path in (f"/kv/{bucket}", "/buckets", "/status", "/help", "/openapi.json"):
        got, head = client.get(path), client.request("HEAD", path)
        assert (head.status, head.body) == (got.status, b"")
        assert head.headers["Content-Type"] == got.headers["Content-Type"]


@pytest.mark.inside
def test_one_line_per_request_in_the_log(client: Client, service: Service, bucket: str) -> None:
    client.request("PUT", f"/kv/{bucket}/logged", "12345", {"X-Request-Id": "r-1"})
    deadline = time.monotonic() + 10
    while True:
        lines = [line for line in service.log.read_text().splitlines() if "/logged " in line]
        if lines or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert len(lines) == 1
    for part in ("method=PUT", "status=200", "outcome=inserted", "id=r-1", "ms="):
        assert part in lines[0]
