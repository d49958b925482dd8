"""Range: a part of a value, from the service itself (docs/http-api.md)."""

from __future__ import annotations

import random
import threading
from contextlib import closing

import pytest

from poky.store import Store
from tests.conftest import Database
from tests.service import Client, wait_until

DIGITS = b"0123456789"
PARTS = {
    "bytes=0-0": (0, 1),
    "bytes=2-4": (2, 5),
    "bytes=2-": (2, 10),
    "bytes=0-": (0, 10),
    "bytes=9-9": (9, 10),
    "bytes=9-99999999999999999999": (9, 10),
    "bytes=-3": (7, 10),
    "bytes=-10": (0, 10),
    "bytes=-11": (0, 10),
    "bytes=-99999999999999999999": (0, 10),
    "bytes=002-0004": (2, 5),
    "BYTES=2-4": (2, 5),
}
BEYOND = ["bytes=10-", "bytes=10-20", "bytes=99999999999999999999-", "bytes=-0", "bytes=-000"]
IGNORED = [
    "",
    "bytes",
    "bytes=",
    "bytes=-",
    "bytes=4-2",
    "bytes=a-b",
    "bytes= 2-4",
    "bytes=2 -4",
    "bytes=2-4,6-7",
    "bytes=2-4,",
    "bytes=+2-4",
    "bytes=2--4",
    "items=2-4",
    "bytes:2-4",
    "bytes=" + "9" * 100 + "-",
    "bytes=" + ",".join(["0-0"] * 500),
]


@pytest.fixture
def url(bucket: str) -> str:
    return f"/kv/{bucket}/key"


@pytest.mark.parametrize("range", PARTS)
def test_a_part_is_206(client: Client, url: str, range: str) -> None:
    stored = client.put(url, DIGITS, content_type="text/x-own", content_encoding="gzip")
    got = client.get(url, range=range)
    begin, end = PARTS[range]
    assert (got.status, got.body) == (206, DIGITS[begin:end])
    assert got.headers["Content-Range"] == f"bytes {begin}-{end - 1}/10"
    assert got.headers["Content-Length"] == str(end - begin)
    assert (got.etag, got.headers["Accept-Ranges"]) == (stored.etag, "bytes")
    assert got.headers["Last-Modified"] == stored.headers["Last-Modified"]
    assert (got.headers["Content-Type"], got.headers["Content-Encoding"]) == ("text/x-own", "gzip")


@pytest.mark.parametrize("range", BEYOND)
def test_a_part_that_is_not_there_is_416(client: Client, url: str, range: str) -> None:
    client.put(url, DIGITS)
    got = client.get(url, range=range)
    assert (got.status, got.body, got.headers["Content-Range"]) == (416, b"", "bytes */10")


@pytest.mark.parametrize("range", IGNORED, ids=lambda range: range[:20])
def test_any_other_range_is_the_whole(client: Client, url: str, range: str) -> None:
    client.put(url, DIGITS)
    got = client.get(url, range=range)
    assert (got.status, got.body, got.headers["Content-Range"]) == (200, DIGITS, None)


def test_an_empty_value_has_no_parts(client: Client, url: str) -> None:
    client.put(url, b"")
    assert client.get(url, range="bytes=0-0").status == 200
    assert client.get(url, range="bytes=-1").status == 200
    assert client.get(f"{url}-missing", range="bytes=0-0").status == 404


def test_only_a_get_has_a_range(client: Client, url: str) -> None:
    client.put(url, DIGITS)
    head = client.request("HEAD", url, headers={"Range": "bytes=2-4"})
    assert (head.status, head.headers["Content-Length"]) == (200, "10")
    assert head.headers["Accept-Ranges"] == "bytes"
    assert client.request("PUT", url, DIGITS, {"Range": "bytes=2-4"}).status == 200
    assert client.get(url).body == DIGITS


@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
def test_conditions_come_before_the_range(client: Client, url: str, size: int) -> None:
    stored = client.put(url, b"x" * size)
    part = {"range": "bytes=2-4"}
    assert client.get(url, **part, if_match='"1-00000000"').status == 412
    assert client.get(url, **part, if_none_match=stored.etag).status == 304
    assert client.get(url, **part, if_match=stored.etag).status == 206
    past = "Tue, 04 Jun 2013 03:01:31 GMT"
    assert client.get(url, **part, if_unmodified_since=past).status == 412
    assert client.get(url, **part, if_modified_since=past).status == 206


@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
def test_if_range_is_an_entity_tag(client: Client, url: str, size: int) -> None:
    stored = client.put(url, b"x" * size)
    for if_range, status in (
        (stored.etag, 206),
        ('"1-00000000"', 200),
        (f"W/{stored.etag}", 200),
        (stored.headers["Last-Modified"], 200),
        ("", 200),
    ):
        got = client.get(url, range="bytes=2-4", if_range=if_range)
        assert (got.status, len(got.body)) == (status, 3 if status == 206 else size)


@pytest.mark.parametrize("size", [32_768, 32_769, 262_144, 262_145, 3_000_000])
def test_parts_of_a_large_value_are_the_whole(client: Client, url: str, size: int) -> None:
    value = random.Random(size).randbytes(size)
    client.put(url, value)
    got = b""
    while len(got) < size:
        answer = client.get(url, range=f"bytes={len(got)}-{len(got) + size // 7}")
        assert answer.status == 206
        assert answer.headers["Content-Range"].endswith(f"/{size}")
        got += answer.body
    assert got == value
    assert client.get(url, range="bytes=0-").body == value
    assert client.get(url, range=f"bytes=-{size}").body == value
    assert client.get(url, range=f"bytes={size}-").headers["Content-Range"] == f"bytes */{size}"


def test_a_part_is_of_the_value_that_its_tag_names(client: Client, url: str, bucket: str) -> None:
    """A large value is asked for in two statements: it may have been replaced between them."""
    size = 300_000
    values = [bytes([letter]) * (size + letter) for letter in b"abcdef"]
    tags = {client.put(url, value).etag.split("-")[1]: value[:1] for value in values}
    done = threading.Event()

    def write() -> None:
        with_own = client_of()
        while not done.is_set():
            for value in values:
                with_own.put(url, value)

    def client_of() -> Client:
        return Client(client._connection.port, host=client._connection.host)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()

        def read() -> bool:
            got = client.get(url, range="bytes=-5")
            if got.status == 503:  # replaced each time
                return False
            letter = tags[got.etag.split("-")[1]]
            assert (got.status, got.body) == (206, letter * 5)
            assert got.headers["Content-Range"].endswith(f"/{size + letter[0]}")
            seen.add(letter)
            return len(seen) > 2

        wait_until(read, 60)
    finally:
        done.set()
        writer.join()


@pytest.mark.inside
def test_one_part_of_a_large_value_is_read(
    client: Client, url: str, bucket: str, database: Database
) -> None:
    """Not the whole value: EXPLAIN counts the blocks that were looked at."""
    stored = client.put(url, random.Random(1).randbytes(8_000_000))  # does not compress
    revision = int(stored.etag[1:].split("-")[0])

    def blocks(begin: int, length: int) -> int:
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            part = (bucket, "key", revision, begin, length)
            cursor.execute("SELECT length(poky.get_part(%s, %s, %s, %s, %s))", part)
            assert cursor.fetchall() == [(length,)]
            cursor.execute(
                "EXPLAIN (ANALYZE, BUFFERS, FORMAT json)"
                " SELECT length(poky.get_part(%s, %s, %s, %s, %s))",
                part,
            )
            ((((explained,),),),) = (cursor.fetchall(),)
            plan = explained["Plan"]
            return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

    assert blocks(5_000_000, 1000) < 100
    assert blocks(0, 8_000_000) > 900


@pytest.mark.inside
def test_memory_is_asked_for_the_part_alone(database: Database, bucket: str) -> None:
    with closing(Store(database.dsn_service, pool_size=1)) as store:
        store.put(bucket, "key", DIGITS * 100_000, "t")
        needed: list[int] = []
        found = store.get(bucket, "key", needed.append, lambda found: (found.size - 7, 5))
        assert found
        assert (bytes(found.value), found.size) == (b"34567", 1_000_000)
        assert needed == [5 * store.COPY_FACTOR]
        assert store.get(bucket, "key", needed.append, lambda found: (0, 0))
        assert sum(needed) == 5 * store.COPY_FACTOR
