"""Objects that expire: set, shown, missing from then on, and removed (docs/http-api.md)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any

import psycopg2
import pytest

from poky.background import Background
from poky.reaper import Reaper
from poky.store import Store
from tests.conftest import Database
from tests.service import Client, Service, wait_until
from tests.test_access import command

OBJECTS = "application/vnd.poky.objects+json"


@pytest.fixture
def url(bucket: str) -> str:
    return f"/kv/{bucket}/key"


def put(client: Client, url: str, ttl: object, value: str = "value", **headers: str) -> Any:
    return client.request(
        "PUT",
        url,
        value,
        {"Poky-TTL": str(ttl)} | {k.replace("_", "-"): v for k, v in headers.items()},
    )


def sql(database: Database, query: str, *parameters: object) -> list[Any]:
    with closing(database.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []


def expire(database: Database, key: str = "key") -> None:
    """Let the time pass that an object has left; in the queue, too."""
    for table, column in (("_object", "expires_at"), ("_expiry", "due_at")):
        changed = sql(
            database,
            f"UPDATE poky.{table} SET {column} = clock_timestamp() - interval '1 ms'"
            f" WHERE key = %s AND {column} IS NOT NULL RETURNING 1",
            key,
        )
        assert changed


def left(header: str | None) -> float:
    """The seconds until a date."""
    assert header
    return parsedate_to_datetime(header).timestamp() - time.time()


# Setting and showing.


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("ttl", [1, 60, 86_400 * 365, 1_000_000_000])
def test_ttl_is_shown_as_a_date(client: Client, url: str, method: str, ttl: int) -> None:
    stored = client.request(method, url, "value", {"Poky-TTL": str(ttl)})
    assert stored.status == 200
    assert ttl - 5 < left(stored.headers["Poky-Expires"]) <= ttl + 1
    if ttl == 1:
        return
    for answer in (
        client.get(url),
        client.request("HEAD", url),
        client.get(url, if_none_match=stored.etag),
    ):
        assert answer.status in (200, 304)
        assert answer.headers["Poky-Expires"] == stored.headers["Poky-Expires"]


def test_without_ttl_nothing_is_shown(client: Client, url: str, bucket: str) -> None:
    put(client, url, 60)
    assert client.put(url, "other").headers["Poky-Expires"] is None
    got = client.get(url)
    assert (got.headers["Poky-Expires"], got.headers["Poky-Left"]) == (None, None)
    assert "expires" not in client.get(f"/kv/{bucket}").json()["keys"][0]
    assert "expires" not in client.batch("POST", bucket, [{"key": "key"}], accept=OBJECTS).json()[0]


@pytest.mark.parametrize(
    "ttl",
    ["", "-1", "+1", "1.0", "1e3", "0x1", "abc", "1 0", "1, 2", "1000000001", "9" * 30, "\u00b2"],
)
def test_ttl_that_cannot_be_read_is_refused(client: Client, url: str, ttl: str) -> None:
    answer = client.request("PUT", url, "value", {"Poky-TTL": ttl})
    assert (answer.status, answer.code) == (400, "bad_ttl")
    assert "seconds" in answer.detail
    assert client.get(url).status == 404


@pytest.mark.parametrize("ttl", [-1, 1_000_000_001, 2**70, "60", 1.5, True, [], {}])
def test_ttl_of_an_item_that_is_none_is_refused(client: Client, bucket: str, ttl: object) -> None:
    items = [{"key": "a", "data": "x"}, {"key": "b", "data": "x", "ttl": ttl}]
    answer = client.batch("PUT", bucket, items)
    assert (answer.status, answer.code) == (400, "bad_item")
    assert "Item 1" in answer.detail
    assert client.get(f"/kv/{bucket}").json()["keys"] == []


def test_batch_gives_each_item_its_ttl(client: Client, bucket: str) -> None:
    items: list[dict[str, object]] = [
        {"key": "a", "data": "x", "ttl": 60},
        {"key": "b", "data": "x"},
        {"key": "c", "data": "x", "ttl": 0},
        {"key": "d", "data": "x", "ttl": None},
    ]
    outcomes = client.batch("PUT", bucket, items).json()
    assert ["expires" in each for each in outcomes] == [True, False, False, False]
    assert 55 < left(outcomes[0]["expires"]) <= 61
    keys = [{"key": each["key"]} for each in outcomes]
    found = client.batch("POST", bucket, keys, accept=OBJECTS).json()
    assert [each.get("expires") for each in found] == [outcomes[0]["expires"], None, None, None]
    listed = client.get(f"/kv/{bucket}").json()["keys"]
    assert [each.get("expires") for each in listed] == [outcomes[0]["expires"], None, None, None]


def test_objects_that_are_sent_back_expire_as_they_did(client: Client, bucket: str) -> None:
    client.batch("PUT", bucket, [{"key": "a", "data": "x", "ttl": 60}])
    found = client.batch("POST", bucket, [{"key": "a"}], accept=OBJECTS).json()
    (outcome,) = client.batch("PUT", bucket, found).json()
    assert (outcome["result"], outcome["expires"]) == ("updated", found[0]["expires"])
    answer = client.batch("PUT", bucket, [{**found[0], "ttl": 5}])
    assert (answer.status, answer.code) == (400, "bad_item")


def test_a_batch_has_no_ttl_in_its_head(client: Client, bucket: str) -> None:
    answer = client.request(
        "PUT",
        f"/multi/{bucket}",
        '[{"key": "a", "data": "x"}]',
        {"Content-Type": "application/json", "Poky-TTL": "60"},
    )
    assert (answer.status, answer.detail) == (400, "Send Poky-TTL as ttl of the items.")


def test_large_values_expire(client: Client, url: str, bucket: str) -> None:
    stored = put(client, url, 60, "x" * 400_000)
    assert client.get(url).headers["Poky-Expires"] == stored.headers["Poky-Expires"]
    found = client.batch("POST", bucket, [{"key": "key"}] * 2, accept=OBJECTS).json()
    assert [each["expires"] for each in found] == [stored.headers["Poky-Expires"]] * 2


# A bucket's default.


@pytest.mark.inside
def test_default_ttl_holds_for_writes_without_one(
    client: Client, url: str, bucket: str, database: Database
) -> None:
    client.put(url, "before")
    assert sql(database, "SELECT poky.set_bucket_ttl(%s, 60)", bucket) == [(True,)]
    assert sql(database, "SELECT poky.set_bucket_ttl(%s, 60)", bucket) == [(False,)]
    (row,) = (r for r in client.get("/buckets").json()["buckets"] if r["name"] == bucket)
    assert row["ttl"] == 60
    assert client.get(url).headers["Poky-Expires"] is None
    etag = client.get(url).etag
    for answer in (
        client.put(url, "x", if_match=etag),
        client.put(url, "x"),
        client.put(url, "x", content_encoding="gzip"),
    ):
        assert 55 < left(answer.headers["Poky-Expires"]) <= 61
    assert 595 < left(put(client, url, 600).headers["Poky-Expires"]) <= 601
    assert put(client, url, 0).headers["Poky-Expires"] is None
    etag = client.get(url).etag
    assert put(client, url, 0, If_Match=etag).headers["Poky-Expires"] is None
    items = [{"key": "a", "data": "x"}, {"key": "b", "data": "x", "ttl": 0}]
    outcomes = client.batch("PUT", bucket, items).json()
    assert ["expires" in each for each in outcomes] == [True, False]
    sql(database, "SELECT poky.set_bucket_ttl(%s, 0)", bucket)
    assert client.put(url, "x").headers["Poky-Expires"] is None
    (row,) = (r for r in client.get("/buckets").json()["buckets"] if r["name"] == bucket)
    assert row["ttl"] is None


@pytest.mark.inside
@pytest.mark.parametrize("ttl", [-1, 1_000_000_001])
def test_default_ttl_that_is_none_is_refused(database: Database, bucket: str, ttl: int) -> None:
    with pytest.raises(psycopg2.Error) as caught:
        sql(database, "SELECT poky.set_bucket_ttl(%s, %s)", bucket, ttl)
    assert caught.value.pgcode == "PK400"


@pytest.mark.inside
def test_the_command_sets_and_shows_a_default(
    database: Database, bucket_names: Callable[[], str]
) -> None:
    name = bucket_names()

    def shown() -> Any:
        listed = command(database, "bucket", "list")
        return next(each["default_ttl"] for each in listed if each["name"] == name)

    assert command(database, "bucket", "create", name, "--ttl", "60") == {name: "created"}
    assert shown() == 60
    assert command(database, "bucket", "create", name) == {name: "exists"}
    assert shown() == 60
    assert command(database, "bucket", "set", name, "--ttl", "0") == {name: "does not expire"}
    assert shown() is None
    command(database, "bucket", "set", name, "--ttl", "5", "--public", "none")
    assert shown() == 5
    assert "--ttl" in command(database, "bucket", "set", name, code=2)
    assert "--ttl" in command(database, "bucket", "set", name, "--ttl", "-1", code=2)


@pytest.mark.inside
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "poky", "X-Varnish": "1", "Poky-Cache": "expiry"}, 200),
        ({"Host": "poky", "X-Varnish": "1"}, 503),
        ({"Host": "other", "X-Varnish": "1"}, 200),
        ({"Host": "poky"}, 200),
    ],
    ids=str,
)
def test_a_cache_of_an_older_release_is_refused_what_expires(
    service: Service, url: str, headers: dict[str, str], status: int
) -> None:
    with closing(service.client()) as client:
        put(client, url, 60)
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"GET {url} HTTP/1.1\r\n{head}\r\n".encode())
        answer = connection.recv(4096)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert (b"cache_outdated" in answer) == (status == 503)
    assert (b"Poky-Left: 59." in answer) == (status == 200)


# From then on it is missing.


def test_it_is_missing_once_its_time_is_over(client: Client, url: str) -> None:
    stored = put(client, url, 1)
    assert client.get(url).status == 200
    wait_until(lambda: client.get(url).status == 404)
    created = client.put(url, "new", if_none_match="*")
    assert created.status == 200
    assert int(created.etag[1:].split("-")[0]) > int(stored.etag[1:].split("-")[0])


@pytest.mark.inside
def test_an_expired_object_is_missing_everywhere(
    client: Client, url: str, bucket: str, database: Database
) -> None:
    stored = put(client, url, 60)
    expire(database)
    assert client.get(url).status == 404
    assert client.request("HEAD", url).status == 404
    assert client.get(url, if_match="*").status == 412
    assert client.get(url, if_none_match=stored.etag).status == 404
    assert client.get(f"/kv/{bucket}").json() == {"keys": [], "next": None}
    assert client.batch("POST", bucket, [{"key": "key"}]).json() == {}
    (found,) = client.batch("POST", bucket, [{"key": "key"}], accept=OBJECTS).json()
    assert found == {"key": "key", "result": "missing"}
    for if_match in ("*", stored.etag):
        assert client.put(url, "x", if_match=if_match).status == 412
        assert client.get(url).status == 404


@pytest.mark.inside
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 404),
        ({"if_match": "*"}, 412),
        ({"if_none_match": '"1-00000000"'}, 404),
        ({"if_unmodified_since": "Tue, 04 Jun 2013 03:01:31 GMT"}, 404),
    ],
    ids=str,
)
def test_deleting_an_expired_object_is_as_deleting_a_missing_one(
    client: Client, url: str, bucket: str, database: Database, headers: dict[str, str], status: int
) -> None:
    assert client.delete(url, **headers).status == status
    put(client, url, 60)
    expire(database)
    assert client.delete(url, **headers).status == status
    put(client, url, 60)
    expire(database)
    item = {"key": "key"}
    result = client.batch("DELETE", bucket, [item]).json()[0]["result"]
    assert result == "missing"


@pytest.mark.inside
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"if_none_match": "*"},
        {"if_none_match": "STORED"},
        {"if_unmodified_since": "Tue, 04 Jun 2013 03:01:31 GMT"},
    ],
    ids=str,
)
def test_a_put_in_its_place_makes_it_anew(
    client: Client, url: str, database: Database, headers: dict[str, str]
) -> None:
    stored = put(client, url, 60, If_Unmodified_Since="Tue, 04 Jun 2019 03:01:31 GMT")
    expire(database)
    headers = {name: value.replace("STORED", stored.etag) for name, value in headers.items()}
    created = client.put(url, "new", **headers)
    assert created.status == 200
    revision = int(created.etag[1:].split("-")[0])
    assert revision > int(stored.etag[1:].split("-")[0])
    assert created.headers["Poky-Expires"] is None
    if "if_unmodified_since" in headers:
        assert created.headers["Last-Modified"] == headers["if_unmodified_since"]
    else:
        assert abs(left(created.headers["Last-Modified"])) < 60
    got = client.get(url)
    assert (got.body, got.etag, got.headers["Poky-Expires"]) == (b"new", created.etag, None)
    assert sql(
        database,
        "SELECT revision FROM poky._object WHERE key = 'key' AND bucket_id ="
        " (SELECT id FROM poky.bucket WHERE name = %s)",
        url.split("/")[2],
    ) == [(revision,)]


@pytest.mark.inside
def test_in_a_batch_an_expired_object_is_inserted(
    client: Client, bucket: str, url: str, database: Database
) -> None:
    put(client, url, 60)
    expire(database)
    items = [{"key": "key", "data": "x", "if_none_match": "*"}]
    (outcome,) = client.batch("PUT", bucket, items, "?atomic=true").json()
    assert outcome["result"] == "inserted"


@pytest.mark.inside
def test_pages_pass_over_what_has_expired(client: Client, bucket: str, database: Database) -> None:
    items: list[dict[str, object]] = [
        {"key": f"k{number}", "data": "x", "ttl": 60 if number % 3 else 0} for number in range(9)
    ]
    client.batch("PUT", bucket, items)
    for number in (1, 2, 4, 5, 7, 8):
        expire(database, f"k{number}")
    first = client.get(f"/kv/{bucket}?limit=2").json()
    assert [each["key"] for each in first["keys"]] == ["k0", "k3"]
    second = client.get(f"/kv/{bucket}?limit=2&after={first['next']}").json()
    assert ([each["key"] for each in second["keys"]], second["next"]) == (["k6"], None)


@pytest.mark.inside
def test_a_level_shows_no_prefix_of_nothing_but_expired_keys(
    client: Client, bucket: str, database: Database
) -> None:
    items: list[dict[str, object]] = [
        {"key": f"{folder}/{name}", "data": "x", "ttl": 60}
        for folder, name in (("a", "gone1"), ("a", "gone2"), ("b", "gone3"), ("b", "here"))
    ]
    outcomes = client.batch("PUT", bucket, [*items, {"key": "c", "data": "x", "ttl": 60}]).json()
    for key in ("a/gone1", "a/gone2", "b/gone3"):
        expire(database, key)
    found = client.get(f"/kv/{bucket}?delimiter=/").json()
    assert found["prefixes"] == ["b/"]
    assert [(each["key"], each["expires"]) for each in found["keys"]] == [
        ("c", outcomes[-1]["expires"])
    ]


@pytest.mark.inside
def test_a_page_is_bounded_work_where_thousands_have_expired(
    client: Client, bucket: str, database: Database
) -> None:
    """It ends early, and says where to go on: also in the midst of a folder."""
    sql(
        database,
        "INSERT INTO poky._object (bucket_id, key, revision, hash, modified_at, written_at,"
        " created_at, content_type, value, expires_at)"
        " SELECT b.id, 'd/' || lpad(n::text, 5, '0'), nextval('poky.revision'), 'ffffffff',"
        " 1, 1, 1, 't/t', '', now() - interval '1 s' FROM poky.bucket AS b,"
        " generate_series(1, 12000) AS n WHERE b.name = %s",
        bucket,
    )
    # The reaper comes when this test is over.
    sql(
        database,
        "INSERT INTO poky._expiry (due_at, bucket_id, key) SELECT now() + interval '1 day', b.id,"
        " 'd/00001' FROM poky.bucket AS b WHERE b.name = %s",
        bucket,
    )
    for key in ("a", "d/11000-live", "e"):
        client.put(f"/kv/{bucket}/{key}", "v")
    for delimiter, expected in (
        ("", ["a", "d/11000-live", "e"]),
        ("&delimiter=/", ["a", "d/", "e"]),
        ("&delimiter=/&prefix=d", ["d/"]),
        ("&prefix=d/", ["d/11000-live"]),
        ("&prefix=d/0", []),
    ):
        for limit in (1, 1000):
            pages = []
            after: str | None = ""
            while after is not None:
                query = f"limit={limit}&after={after}{delimiter}"
                page = client.get(f"/kv/{bucket}?{query}").json()
                pages.append([each["key"] for each in page["keys"]] + page.get("prefixes", []))
                after = page["next"]
            assert sorted(key for keys in pages for key in keys) == expected
            assert len(pages) >= 2
    answer = client.delete(f"/kv/{bucket}?prefix=d/&confirm=d/").json()
    assert answer == {"deleted": 1, "more": False}


@pytest.mark.inside
def test_a_bucket_with_nothing_but_expired_objects_is_empty(
    service: Service, client: Client, url: str, bucket: str, database: Database
) -> None:
    put(client, url, 60)
    with closing(service.admin()) as admin:
        assert admin.delete(f"/buckets/{bucket}").status == 409
        expire(database)
        assert admin.delete(f"/buckets/{bucket}").status == 200


@pytest.mark.inside
def test_a_date_that_is_older_than_a_lost_copy_says_nothing(
    client: Client, url: str, database: Database
) -> None:
    """If-Modified-Since: an expired object's date may lie ahead of the date of its successor."""
    ahead = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 3))
    put(client, url, 60, If_Unmodified_Since=ahead)
    expire(database)
    assert client.put(url, "new").status == 200
    wait_until(lambda: left(ahead) < -1)
    assert client.get(url, if_modified_since=ahead).status == 200


# Under a lock: the clock decides once it is held.


def outcome_after_expiry(database: Database, call: str, span: float) -> str | None:
    """The outcome of a statement that waits for the object's lock until the object has expired.

    None: it did not wait yet when the object expired, after ``span`` seconds.
    """
    outcomes: list[str] = []

    def work() -> None:
        outcomes.extend(outcome for (outcome,) in sql(database, f"SELECT outcome FROM {call}"))

    live = "SELECT 1 FROM poky._object WHERE key = 'key' AND expires_at > clock_timestamp()"
    waits = (
        "SELECT 1 FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
        " WHERE NOT l.granted AND a.datname = %s"
    )
    with closing(database.connect()) as holder, holder.cursor() as cursor:
        cursor.execute(
            "UPDATE poky._object SET expires_at = clock_timestamp() + make_interval(secs => %s)"
            " WHERE key = 'key'",
            (span,),
        )
        holder.commit()
        cursor.execute("SELECT FROM poky._object WHERE key = 'key' FOR UPDATE")
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        wait_until(lambda: sql(database, waits, database.name))
        has_waited = bool(sql(database, live))
        wait_until(lambda: not sql(database, live))
        holder.rollback()
        thread.join(20)
    return outcomes[0] if has_waited else None


PUT = "'key', 'new', 't', NULL, {}, {}, NULL, NULL)"


@pytest.mark.inside
@pytest.mark.parametrize(
    ("call", "outcome", "status"),
    [
        ("poky.put('{b}', " + PUT.format("'*'", "NULL"), "rejected", 404),
        ("poky.update_{n}('{b}', " + PUT.format("'*'", "NULL"), "rejected", 404),
        ("poky.put('{b}', " + PUT.format("NULL", "'*'"), "inserted", 200),
        ("poky.put('{b}', " + PUT.format("NULL", "NULL"), "inserted", 200),
        ("poky.delete('{b}', 'key')", "missing", 404),
        ("poky.delete('{b}', 'key', '*')", "rejected", 404),
        ("poky.delete('{b}', 'key', NULL, '1-00000000')", "missing", 404),
        ("poky.delete_{n}('{b}', 'key', NULL, NULL, 9999999999)", "missing", 404),
        ("poky.delete_many('{b}', '{{key}}', '{{*}}', NULL, NULL, false)", "rejected", 404),
    ],
)
def test_what_expires_while_a_write_waits_is_missing(
    client: Client,
    url: str,
    own_bucket: str,
    database: Database,
    call: str,
    outcome: str,
    status: int,
) -> None:
    url = f"/kv/{own_bucket}/key"
    (number,) = sql(database, "SELECT poky.function_number(%s)", own_bucket)[0]
    call = call.format(b=own_bucket, n=number)
    for span in (0.4, 3, 10):  # the later ones for a busy machine
        put(client, url, 60)
        found = outcome_after_expiry(database, call, span)
        if found:
            break
    assert found == outcome
    assert client.get(url).status == status


@pytest.fixture
def own_bucket(database: Database, bucket: str) -> Iterator[str]:
    """A bucket that has the only object of its key."""
    sql(database, "DELETE FROM poky._object WHERE key = 'key'")
    yield bucket
    sql(database, "DELETE FROM poky._object WHERE key = 'key'")


# Removal.


def rows(database: Database, bucket: str) -> tuple[list[str], list[str]]:
    """The keys that are stored, and those in the queue."""
    query = (
        "SELECT key FROM poky.{} WHERE bucket_id = (SELECT id FROM poky.bucket WHERE name = %s)"
        " ORDER BY key"
    )
    stored, queued = (
        sql(database, query.format(table), bucket) for table in ("_object", "_expiry")
    )
    return [key for (key,) in stored], [key for (key,) in queued]


def reap(database: Database, limit: int = 1000) -> int:
    return int(sql(database, "SELECT poky.reap(%s)", limit)[0][0])


@pytest.mark.inside
def test_reap_removes_what_has_expired_and_nothing_else(
    own_database: Database, bucket_names: Callable[[], str]
) -> None:
    names = [bucket_names(), bucket_names()]
    for name in names:
        sql(own_database, "SELECT poky.ensure_bucket(%s)", name)
        for key, ttl in (("gone", 60), ("goes", 60), ("stays", 0), ("renewed", 60), ("kept", 60)):
            store(own_database, name, key, ttl)
        store(own_database, name, "renewed", 6000)
        store(own_database, name, "kept", 0)
    assert sql(own_database, "SELECT poky.expiry_lag()") == [(None,)]
    assert reap(own_database) == 0
    for key in ("gone", "goes"):
        expire(own_database, key)
    sql(own_database, "UPDATE poky._expiry SET due_at = clock_timestamp() - interval '9 s'")
    assert 9 <= sql(own_database, "SELECT poky.expiry_lag()")[0][0] < 30
    assert reap(own_database, 3) + reap(own_database) + reap(own_database) == 4
    for name in names:
        assert rows(own_database, name) == (["kept", "renewed", "stays"], ["renewed"])
    assert sql(own_database, "SELECT poky.expiry_lag()") == [(None,)]


def store(database: Database, bucket: str, key: str, ttl: int) -> None:
    sql(
        database,
        "SELECT poky.put(%s, %s, 'value', 't', NULL, NULL, NULL, NULL, %s)",
        bucket,
        key,
        f'{{"ttl": {ttl}}}',
    )


@pytest.mark.inside
def test_reap_leaves_what_a_writer_holds_for_later(
    own_database: Database, bucket_names: Callable[[], str]
) -> None:
    name = bucket_names()
    sql(own_database, "SELECT poky.ensure_bucket(%s)", name)
    for key in ("free", "held"):
        store(own_database, name, key, 60)
        expire(own_database, key)
    with closing(own_database.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT FROM poky._object WHERE key = 'held' FOR UPDATE")
        assert reap(own_database) == 1
        assert rows(own_database, name) == (["held"], ["held"])
        assert sql(own_database, "SELECT poky.expiry_lag()") == [(None,)]
    expire(own_database, "held")
    assert reap(own_database) == 1
    assert rows(own_database, name) == ([], [])


@pytest.mark.inside
def test_reap_forgets_a_dropped_bucket(
    own_database: Database, bucket_names: Callable[[], str]
) -> None:
    name = bucket_names()
    sql(own_database, "SELECT poky.ensure_bucket(%s)", name)
    store(own_database, name, "key", 60)
    sql(own_database, "SELECT poky.drop_bucket(%s, true)", name)
    sql(own_database, "UPDATE poky._expiry SET due_at = clock_timestamp()")
    assert reap(own_database) == 0
    assert sql(own_database, "SELECT count(*) FROM poky._expiry") == [(0,)]


@pytest.mark.inside
def test_a_deleted_object_leaves_the_queue(
    client: Client, url: str, bucket: str, database: Database
) -> None:
    put(client, url, 60)
    assert rows(database, bucket) == (["key"], ["key"])
    client.delete(url)
    assert rows(database, bucket) == ([], [])


@pytest.mark.inside
def test_revisions_grow_over_a_removal(
    client: Client, url: str, bucket: str, database: Database
) -> None:
    stored = put(client, url, 60)
    expire(database)
    wait_until(lambda: reap(database) or not rows(database, bucket)[0])
    created = client.put(url, "value")
    assert int(created.etag[1:].split("-")[0]) > int(stored.etag[1:].split("-")[0])


@pytest.mark.inside
def test_release_0_1_0_gives_no_cache_what_expires(
    own_database: Database, bucket_names: Callable[[], str]
) -> None:
    name = bucket_names()
    sql(own_database, "SELECT poky.ensure_bucket(%s)", name)
    store(own_database, name, "key", 60)
    store(own_database, name, "stays", 0)
    read = "SET application_name = 'poky'; SELECT value FROM poky.get(%s, %s)"
    assert len(sql(own_database, read, name, "key")) == 1
    sql(own_database, "SELECT poky.register_node('cache', 'http://127.0.0.1:6091')")
    assert len(sql(own_database, read, name, "stays")) == 1
    with pytest.raises(psycopg2.Error) as caught:
        sql(own_database, read, name, "key")
    assert caught.value.pgcode == "PK503"


# The reaper.


@pytest.fixture
def background(own_database: Database) -> Iterator[tuple[Store, Background]]:
    with closing(Store(own_database.dsn_service, pool_size=2)) as store:
        background = Background(store)
        yield store, background
        background.stop()


def filled(database: Database, name: str, count: int) -> None:
    """A bucket with so many expired objects, and one that stays."""
    sql(database, "SELECT poky.ensure_bucket(%s)", name)
    store(database, name, "stays", 6000)
    sql(
        database,
        "SELECT outcome FROM generate_series(1, %s) AS n,"
        " poky.put(%s, 'k' || n, 'v', 't', NULL, NULL, NULL, NULL, '{\"expires_at\": 1}')",
        count,
        name,
    )


@pytest.mark.inside
def test_the_reaper_removes_in_several_transactions(
    own_database: Database,
    background: tuple[Store, Background],
    bucket_names: Callable[[], str],
) -> None:
    reaper = Reaper(*background)
    figures = reaper.figures()
    assert [figures[name].read() for name in ("expired_objects", "expired_lag_seconds")] == [0, 0]
    assert not reaper._is_needed()
    name = bucket_names()
    filled(own_database, name, 2500)
    reaper.start(period=0.05)
    wait_until(lambda: not reaper._is_needed())
    assert rows(own_database, name) == (["stays"], ["stays"])
    figures = reaper.figures()
    wait_until(lambda: figures["expired_objects"].read() == 2500)
    assert figures["expired_lag_seconds"].read() == 0
    (task,) = background[1].status()
    assert (task["name"], task["scope"], task["errors"]) == ("reap", "fleet", 0)


@pytest.mark.inside
def test_a_run_of_the_reaper_removes_all_unless_it_has_to_end(
    own_database: Database,
    background: tuple[Store, Background],
    bucket_names: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = bucket_names(), bucket_names()
    reaper = Reaper(*background)
    filled(own_database, first, 2500)
    reaper.run()
    assert rows(own_database, first) == (["stays"], ["stays"])
    filled(own_database, second, 3500)
    rests: list[float] = []
    monkeypatch.setattr(background[1], "rest", rests.append)
    reaper.run()
    assert len(rows(own_database, second)[0]) == 2501
    assert 0.05 <= rests[0] < 60
    monkeypatch.setattr("poky.reaper._RUN_SECONDS", -1.0)
    monkeypatch.setattr(background[1], "rest", lambda seconds: True)
    reaper.run()
    assert len(rows(own_database, second)[0]) == 1501, "another one may go on"


@pytest.mark.inside
def test_one_reaper_of_the_fleet_removes(
    own_database: Database,
    background: tuple[Store, Background],
    bucket_names: Callable[[], str],
) -> None:
    name = bucket_names()
    filled(own_database, name, 3)
    reaper = Reaper(*background)
    with background[0].try_lock("poky reap"):
        reaper.start(period=0.01)
        time.sleep(0.3)  # any number of turns
        assert len(rows(own_database, name)[0]) == 4
        assert reaper.figures()["expired_lag_seconds"].read() > 0
    wait_until(lambda: rows(own_database, name)[0] == ["stays"])


@pytest.mark.inside
def test_the_service_reaps_without_caches(client: Client, url: str, database: Database) -> None:
    bucket = url.split("/")[2]
    put(client, url, 1)
    wait_until(lambda: rows(database, bucket) == ([], []), 60)
