"""Listing the keys of a bucket (docs/http-api.md)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

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
