"""Listing the keys of a bucket (docs/http-api.md)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service import Client, Service


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
    "prefix=%ff delimiter= delimiter=, delimiter=// delimiter=/&delimiter=/ after=a%2F%20".split(),
)
def test_a_bad_query_is_400(client: Client, bucket: str, query: str) -> None:
    refused = client.get(f"/kv/{bucket}?{query}")
    assert refused.status == 400
    assert refused.detail


PATHS = (
    "2026 2026.txt 2026/10/31/a 2026/11/28/b 2026/11/29/c 2026/11/29/d 2026/log 2026- 20260/x"
    " a a/b/c a0 b/c"
).split()


def _level(client: Client, bucket: str, query: str) -> tuple[list[str], list[str]]:
    """All pages of a level, each with the next as its beginning."""
    keys: list[str] = []
    prefixes: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get(f"/kv/{bucket}?{query}&after={after}").json()
        entries = _keys(page) + page["prefixes"]
        assert all(entry > after for entry in entries)
        assert page["next"] in (None, max(entries, default=""))
        keys += _keys(page)
        prefixes += page["prefixes"]
        after = page["next"]
    return keys, prefixes


@pytest.mark.parametrize("limit", [1, 2, 1000])
@pytest.mark.parametrize(
    "prefix", ["", "2", "2026", "2026/", "2026/1", "2026/11/29/", "a", "a/", "x"]
)
def test_a_level_is_the_keys_up_to_the_next_slash(
    client: Client, bucket: str, prefix: str, limit: int
) -> None:
    client.batch("PUT", bucket, [{"key": key, "data": "v"} for key in PATHS])
    below = [key for key in sorted(PATHS) if key.startswith(prefix)]
    at_end = {key: key.find("/", len(prefix)) for key in below}
    expected = (
        [key for key in below if at_end[key] < 0],
        list(dict.fromkeys(key[: at_end[key] + 1] for key in below if at_end[key] >= 0)),
    )
    assert _level(client, bucket, f"prefix={prefix}&delimiter=/&limit={limit}") == expected
    assert _level(client, bucket, f"prefix={prefix}&delimiter=%2F&limit={limit}") == expected


def test_a_level_shows_of_a_key_what_a_list_does(client: Client, bucket: str) -> None:
    client.batch("PUT", bucket, [{"key": "d/a", "data": "four", "content_encoding": "gzip"}])
    client.batch("PUT", bucket, [{"key": "d/e/f", "data": ""}])
    listed = client.get(f"/kv/{bucket}?limit=1").json()["keys"]
    assert client.get(f"/kv/{bucket}?prefix=d/&delimiter=/").json() == {
        "keys": listed,
        "prefixes": ["d/e/"],
        "next": None,
    }


def test_keys_with_slashes_are_listed_page_by_page(client: Client, bucket: str) -> None:
    client.batch("PUT", bucket, [{"key": key, "data": "v"} for key in PATHS])
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get(f"/kv/{bucket}?limit=2&prefix=2026/&after={after}").json()
        seen += _keys(page)
        after = page["next"]
    assert seen == [key for key in sorted(PATHS) if key.startswith("2026/")]


def test_a_level_of_a_bucket_that_is_not_there(
    service: Service, client: Client, bucket: str
) -> None:
    """As a list of it: 404, or empty where buckets need no creation."""
    status = client.get("/kv/not-there?delimiter=/").status
    assert status == client.get("/kv/not-there").status


@pytest.mark.inside
@pytest.mark.parametrize("below", [1, 3000])
def test_a_page_of_a_level_costs_its_entries_and_not_their_keys(
    database: Any, bucket: str, below: int
) -> None:
    """A probe of the index for each entry, early and late."""
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM (SELECT poky.put(%s, 'k' || d || '/' || n, 'v', 't')"
            " FROM generate_series(10, 29) AS d, generate_series(1, %s) AS n) AS x",
            [bucket, below // 10 or 1],
        )
        connection.commit()
        touched = []
        for after in ("", "", "k19/"):  # the first one also reads the catalogue
            cursor.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT json)"
                " SELECT * FROM poky.list_page(%s, '', %s, 10, true)",
                [bucket, after],
            )
            plan = cursor.fetchone()[0][0]["Plan"]
            assert plan["Actual Rows"] == 10
            touched.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        assert max(touched[1:]) <= 6 * 10
    connection.close()


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
