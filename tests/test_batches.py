"""/multi/{bucket}: batches (docs/http-api.md)."""

from __future__ import annotations

import base64
import json
import threading
import time
from email.utils import formatdate
from typing import Any

import pytest

from poky.api.items import parse_key_items, parse_put_items
from poky.api.later import show_failure
from poky.http import Refused, refuse
from poky.store import StoreError
from tests.service import Client, Service

PAST = "Tue, 04 Jun 2013 03:01:31 GMT"
LATER = "Tue, 04 Jun 2013 03:01:32 GMT"
OBJECTS = "application/vnd.poky.objects+json"


def results(answer: Any) -> list[str]:
    return [item["result"] for item in answer.json()]


# POST


def test_post_gives_the_values_that_are_there(client: Client, bucket: str) -> None:
    client.put(f"/kv/{bucket}/a", "1")
    client.put(f"/kv/{bucket}/b", "")
    got = client.batch("POST", bucket, [{"key": "b"}, {"key": "a"}, {"key": "c"}, {"key": "a"}])
    assert (got.status, got.headers["Content-Type"]) == (200, "application/json")
    assert got.json() == {"a": "1", "b": ""}


def test_batches_have_keys_with_slashes(client: Client, bucket: str) -> None:
    keys = ["a/b", "a", "a/b/c.txt"]
    put = client.batch("PUT", bucket, [{"key": key, "data": key} for key in keys])
    assert results(put) == ["inserted"] * 3
    got = client.batch("POST", bucket, [{"key": key} for key in keys])
    assert got.json() == {key: key for key in keys}
    assert client.get(f"/kv/{bucket}/a/b/c.txt").body == b"a/b/c.txt"
    deleted = client.batch("DELETE", bucket, [{"key": key} for key in keys])
    assert results(deleted) == ["deleted"] * 3


@pytest.mark.parametrize("key", ["/a", "a/", "a//b", "a/../b", ".", "a/.", "a%2Fb", ""])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_batch_with_an_illegal_key_is_400_naming_it(
    client: Client, bucket: str, method: str, key: str
) -> None:
    data = {"data": "v"} if method == "PUT" else {}
    refused = client.batch(method, bucket, [{"key": "good/1", **data}, {"key": key, **data}])
    assert (refused.status, refused.code) == (400, "bad_item")
    assert "Item 1" in refused.detail
    assert client.get(f"/kv/{bucket}").json()["keys"] == []


def test_post_with_modified_at_gives_only_what_equals_it(client: Client, bucket: str) -> None:
    for key in ("a", "b"):
        client.put(f"/kv/{bucket}/{key}", key, if_unmodified_since=PAST)
    wanted = [{"key": "a", "modified_at": PAST}, {"key": "b", "modified_at": LATER}]
    assert client.batch("POST", bucket, wanted).json() == {"a": "a"}


def test_post_with_tags(client: Client, bucket: str) -> None:
    tag = client.put(f"/kv/{bucket}/a", "1").etag
    assert client.batch("POST", bucket, [{"key": "a", "if_match": tag}]).json() == {"a": "1"}
    assert client.batch("POST", bucket, [{"key": "a", "if_match": '"x"'}]).json() == {}
    assert client.batch("POST", bucket, [{"key": "a", "if_none_match": tag}]).json() == {}
    other = [{"key": "a", "if_none_match": '"1-00000000"'}]
    assert set(client.batch("POST", bucket, other).json()) == {"a"}


def test_post_of_bytes_is_406_naming_the_key_and_the_media_type(
    client: Client, bucket: str
) -> None:
    client.put(f"/kv/{bucket}/text", "1")
    client.put(f"/kv/{bucket}/bytes", b"\xff\x00")
    refused = client.batch("POST", bucket, [{"key": "text"}, {"key": "bytes"}])
    assert refused.status == 406
    assert "bytes" in refused.detail
    assert OBJECTS in refused.detail


def test_post_of_objects(client: Client, bucket: str) -> None:
    a = client.put(f"/kv/{bucket}/a", "1", content_type="text/x", if_unmodified_since=PAST)
    b = client.put(f"/kv/{bucket}/b", b"\xff\x00")
    got = client.batch(
        "POST", bucket, [{"key": "b"}, {"key": "no"}, {"key": "a"}, {"key": "a"}], accept=OBJECTS
    )
    assert got.headers["Content-Type"] == OBJECTS
    shown = {
        "key": "a",
        "etag": a.etag,
        "modified_at": PAST,
        "content_type": "text/x",
        "data": "1",
    }
    assert got.json() == [
        {
            "key": "b",
            "etag": b.etag,
            "modified_at": b.headers["Last-Modified"],
            "content_type": "application/octet-stream",
            "data_base64": base64.b64encode(b"\xff\x00").decode(),
        },
        {"key": "no", "result": "missing"},
        shown,
        shown,
    ]


# PUT


def test_put_tells_each_items_result_by_position(client: Client, bucket: str) -> None:
    client.put(f"/kv/{bucket}/b", "old", if_unmodified_since=LATER)
    client.put(f"/kv/{bucket}/c", "old")
    answer = client.batch(
        "PUT",
        bucket,
        [
            {"key": "c", "data": "3"},
            {"key": "b", "data": "2", "modified_at": PAST},
            {"key": "a", "data": "1", "modified_at": PAST},
        ],
    )
    assert answer.status == 200
    assert [item["key"] for item in answer.json()] == ["c", "b", "a"]
    assert results(answer) == ["updated", "rejected", "inserted"]
    assert "etag" not in answer.json()[1]
    for index, key, value in ((0, "c", b"3"), (2, "a", b"1")):
        got = client.get(f"/kv/{bucket}/{key}")
        assert (got.body, got.etag) == (value, answer.json()[index]["etag"])
    assert client.get(f"/kv/{bucket}/b").body == b"old"
    assert client.get(f"/kv/{bucket}/a").headers["Last-Modified"] == PAST


def test_put_of_bytes_and_content_types(client: Client, bucket: str) -> None:
    everything = bytes(range(256))
    client.batch(
        "PUT",
        bucket,
        [
            {"key": "a", "data_base64": base64.b64encode(everything).decode()},
            {"key": "b", "data": "{}", "content_type": "application/json"},
            {"key": "c", "data": "schön"},
            {"key": "d", "data_base64": ""},
        ],
    )
    got = {key: client.get(f"/kv/{bucket}/{key}") for key in "abcd"}
    assert {key: value.body for key, value in got.items()} == {
        "a": everything,
        "b": b"{}",
        "c": "schön".encode(),
        "d": b"",
    }
    assert [got[key].headers["Content-Type"] for key in "abc"] == [
        "application/octet-stream",
        "application/json",
        "text/plain; charset=utf-8",
    ]


def test_put_with_conditions(client: Client, bucket: str) -> None:
    tag = client.put(f"/kv/{bucket}/a", "1").etag
    answer = client.batch(
        "PUT",
        bucket,
        [
            {"key": "a", "data": "2", "if_match": tag},
            {"key": "a", "data": "3", "if_match": tag},
            {"key": "b", "data": "1", "if_none_match": "*"},
            {"key": "b", "data": "2", "if_none_match": "*"},
            {"key": "c", "data": "1", "if_match": "*"},
        ],
    )
    assert results(answer) == ["updated", "rejected", "inserted", "rejected", "rejected"]


def test_a_repeated_key_is_written_in_order(client: Client, bucket: str) -> None:
    items = [{"key": key, "data": str(number)} for number, key in enumerate("zaazz")]
    answer = client.batch("PUT", bucket, items)
    assert results(answer) == ["inserted", "inserted", "updated", "updated", "updated"]
    assert client.batch("POST", bucket, [{"key": "a"}, {"key": "z"}]).json() == {"a": "2", "z": "4"}


def test_the_two_ways_to_write_agree(client: Client, bucket: str) -> None:
    single = client.put(f"/kv/{bucket}/a", "value").etag.split("-")[1]
    batch = client.batch("PUT", bucket, [{"key": "b", "data": "value"}]).json()[0]["etag"]
    assert batch.split("-")[1] == single


# DELETE


def test_delete_tells_each_items_result_by_position(client: Client, bucket: str) -> None:
    for key in ("a", "b", "c"):
        client.put(f"/kv/{bucket}/{key}", key, if_unmodified_since=LATER)
    answer = client.batch(
        "DELETE",
        bucket,
        [
            {"key": "c", "modified_at": PAST},
            {"key": "no"},
            {"key": "a"},
            {"key": "b", "modified_at": LATER, "if_match": "*"},
            {"key": "no", "if_match": "*"},
        ],
    )
    assert answer.status == 200
    assert answer.json() == [
        {"key": "c", "result": "rejected"},
        {"key": "no", "result": "missing"},
        {"key": "a", "result": "deleted"},
        {"key": "b", "result": "deleted"},
        {"key": "no", "result": "rejected"},
    ]
    assert client.batch("POST", bucket, [{"key": k} for k in "abc"]).json() == {"c": "c"}


# Atomic.


def test_an_atomic_put_is_all_or_nothing(client: Client, bucket: str) -> None:
    client.put(f"/kv/{bucket}/b", "old", if_unmodified_since=LATER)
    items = [
        {"key": "a", "data": "1"},
        {"key": "b", "data": "2", "modified_at": PAST},
        {"key": "c", "data": "3"},
    ]
    refused = client.batch("PUT", bucket, items, "?atomic=true")
    assert refused.status == 412
    assert [item["key"] for item in refused.json()] == ["a", "b", "c"]
    assert results(refused)[1] == "rejected"
    assert not any("etag" in item for item in refused.json())
    assert client.batch("POST", bucket, [{"key": k} for k in "abc"]).json() == {"b": "old"}
    items[1]["modified_at"] = LATER
    stored = client.batch("PUT", bucket, items, "?atomic=true")
    assert (stored.status, results(stored)) == (200, ["inserted", "updated", "inserted"])


def test_an_atomic_delete_is_all_or_nothing(client: Client, bucket: str) -> None:
    for key in ("a", "b"):
        client.put(f"/kv/{bucket}/{key}", key, if_unmodified_since=LATER)
    items = [{"key": "a"}, {"key": "b", "modified_at": PAST}, {"key": "no"}]
    refused = client.batch("DELETE", bucket, items, "?atomic=true")
    assert refused.status == 412
    assert results(refused)[1] == "rejected"
    assert client.batch("POST", bucket, [{"key": k} for k in "ab"]).json() == {"a": "a", "b": "b"}
    items[1]["modified_at"] = LATER
    done = client.batch("DELETE", bucket, items, "?atomic=true")
    assert (done.status, results(done)) == (200, ["deleted", "deleted", "missing"])


@pytest.mark.parametrize("query", ["?atomic=maybe", "?atomic=true&atomic=false", "?atomc=true"])
def test_a_query_that_would_be_ignored_is_400(client: Client, bucket: str, query: str) -> None:
    refused = client.batch("PUT", bucket, [{"key": "a", "data": "1"}], query)
    assert refused.status == 400
    assert "atomic" in refused.detail
    assert client.get(f"/kv/{bucket}/a").status == 404


# Bad input.


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("content_type", ["text/plain", "application/jsonp", None])
def test_another_content_type_is_415_with_the_fixed_sentence(
    client: Client, bucket: str, method: str, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    refused = client.request(method, f"/multi/{bucket}", "[]", headers)
    assert (refused.status, refused.body) == (415, b"Invalid Content-Type")


def test_json_may_have_parameters(client: Client, bucket: str) -> None:
    answer = client.request(
        "POST", f"/multi/{bucket}", "[]", {"Content-Type": "Application/JSON ; charset=utf-8"}
    )
    assert (answer.status, answer.json()) == (200, {})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "JSON"),
        ("[", "JSON"),
        ('{"key": "a"}', "expected"),
        ("[" * 100_000, "Item 0"),
        ("[NaN]", "JSON"),
        ("[" + "9" * 1_000_000 + "]", "Item 0"),
        ('[{"key": "a"}, 7]', "Item 1"),
        ('[{"key": "a"}, {"kex": "b"}]', "Item 1"),
        ('[{"key": "a"}, {"key": 7}]', "Item 1, field key"),
        ('[{"key": "a b"}]', "Item 0, field key"),
        ('[{"key": ".."}]', "Item 0, field key"),
        ('[{"key": "a", "modified_at": "soon"}]', "Item 0, field modified_at"),
        ('[{"key": "a", "if_match": "x"}]', "Item 0, field if_match"),
        ('[{"key": "a", "if_none_match": 1}]', "Item 0, field if_none_match"),
        ('[{"key": "\\ud800"}]', "JSON"),
        ('[{"key": "a\\u0000"}]', "Item 0, field key"),
        (b'[{"key": "\xff"}]', "JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_bad_body_is_400_naming_the_first_bad_item_and_field(
    client: Client, bucket: str, method: str, body: str | bytes, said: str
) -> None:
    began = time.monotonic()
    if method == "PUT" and isinstance(body, str):
        body = body.replace('"key": "', '"data": "v", "key": "')
    refused = client.request(method, f"/multi/{bucket}", body, {"Content-Type": "application/json"})
    assert refused.status == 400
    assert said in refused.detail
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'\xef\xbb\xbf[{"key": "a", "data": "v"}]', "byte order mark"),
        ('[{"key": "a", "data": "v"}]'.encode("utf-16"), "UTF-16"),
        ('[{"key": "a", "data": "v"}]'.encode("utf-16-be"), "UTF-16"),
        ('[{"key": "a", "data": "\\ud800"}]', "other half"),
        ('[{"key": "a", "data": "x\\udc00\\ud800"}]', "other half"),
        ('[{"key": "a", "data": 17}]', "expected a string, got a number: put it in quotes"),
        ('[{"key": "a", "data": {"b": 1}}]', "expected a string, got an object"),
        ('[{"key": "a", "data": true}]', "got true or false"),
        ('[{"key": "a", "data_base64": "YWJj\\nYWJj"}]', "without line breaks"),
        ('[{"key": "a", "data_base64": "_-__"}]', "+ /"),
        ('[{"key": "a", "data_base64": 17}]', "expected a string, got a number"),
        ('[{"key": "a", "data": "v", "ttl": 5.0}]', "expected a whole number, without point"),
        ('[{"key": "a", "data": "v", "ttl": 1e3}]', "expected a whole number, without point"),
        ('[{"key": "a", "data": "v", "ttl": "5"}]', "expected a whole number, got a string"),
        (
            '[{"key": "a", "data": "v"}, {"key": "b", "data": "na\u00efve"}]'.encode("latin-1"),
            "item 1, field data: the byte 0xef is not UTF-8; bytes go into data_base64",
        ),
        ('[{"key": "na\u00efve", "data": "v"}]'.encode("latin-1"), "the byte 0xef is not UTF-8"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_mistake_is_named(client: Client, bucket: str, body: str | bytes, said: str) -> None:
    headers = {"Content-Type": "application/json"}
    refused = client.request("PUT", f"/multi/{bucket}", body, headers)
    assert refused.status == 400
    assert said in refused.detail


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ('"if_none_match": "*", "if_none_match": null', "if_none_match"),
        ('"if_match": null, "if_match": null', "if_match"),
        ('"modified_at" :null,\n"modified_at"\t: null', "modified_at"),
        ('"key": "b"', "key"),
        ('"\\u006bey": "b"', "key"),
    ],
)
def test_a_field_given_twice_is_400(
    client: Client, bucket: str, method: str, fields: str, named: str
) -> None:
    data = ', "data": "\\": \\\\"' if method == "PUT" else ""
    body = f'[{{"key": "good"{data}}}, {{"key": "a"{data}, {fields}}}]'
    headers = {"Content-Type": "application/json"}
    refused = client.request(method, f"/multi/{bucket}", body, headers)
    assert refused.status == 400
    assert f"Item 1, field {named}" in refused.detail
    assert client.get(f"/kv/{bucket}/good").status == 404


def test_text_that_looks_like_json_is_no_field(client: Client, bucket: str) -> None:
    for text in ('{"key": "a", "key": "b"}', '\\"key": "\\', '":":"\\":', "\\", '"'):
        stored = client.batch("PUT", bucket, [{"key": "a", "data": text, "if_match": None}])
        assert stored.status == 200, text
        assert client.get(f"/kv/{bucket}/a").body.decode() == text


def test_objects_as_read_can_be_stored_again(client: Client, bucket: str) -> None:
    items = [
        {"key": "a", "data": "1", "content_type": "text/x"},
        {"key": "b", "data_base64": "/w=="},
    ]
    client.batch("PUT", bucket, items)
    keys = [{"key": "a"}, {"key": "b"}]
    read = client.batch("POST", bucket, keys, accept=OBJECTS).json()
    stored = client.batch("PUT", bucket, read)
    assert [each["result"] for each in stored.json()] == ["updated", "updated"]
    again = client.batch("POST", bucket, keys, accept=OBJECTS).json()
    for each in (*read, *again):
        del each["etag"]
    assert again == read


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ({"key": "a"}, "data"),
        ({"key": "a", "data": "1", "data_base64": "MQ=="}, "data"),
        ({"key": "a", "data": 1}, "field data"),
        ({"key": "a", "data_base64": "?"}, "data_base64"),
        ({"key": "a", "data": "1", "content_type": "a\r\nb: c"}, "content_type"),
        (
            {
                "key": "a",
                "data": "1",
                "modified_at": formatdate(time.time() + 49 * 3600, usegmt=True),
            },
            "modified_at",
        ),
    ],
)
def test_a_bad_item_is_400_and_nothing_is_stored(
    client: Client, bucket: str, item: Any, said: str
) -> None:
    refused = client.batch("PUT", bucket, [{"key": "good", "data": "1"}, item])
    assert refused.status == 400
    assert "Item 1" in refused.detail
    assert said in refused.detail
    assert client.get(f"/kv/{bucket}/good").status == 404


def test_a_malformed_date_is_400_for_the_whole_request(client: Client, bucket: str) -> None:
    """The original made it an unconditional write."""
    items = [{"key": "a", "data": "1"}, {"key": "b", "data": "1", "modified_at": "2013-06-04"}]
    assert client.batch("PUT", bucket, items).status == 400
    assert client.batch("POST", bucket, [{"key": "a"}, {"key": "b"}]).json() == {}


def test_nul_is_a_character_of_a_value_like_any_other(client: Client, bucket: str) -> None:
    client.batch("PUT", bucket, [{"key": "a", "data": "\0"}])
    assert client.get(f"/kv/{bucket}/a").body == b"\0"


def test_too_many_items_are_413(client: Client, bucket: str) -> None:
    refused = client.batch("POST", bucket, [{"key": "a"}] * 10_001)
    assert refused.status == 413
    assert "10000" in refused.detail


def test_an_empty_batch_is_no_error(client: Client, bucket: str) -> None:
    assert client.batch("POST", bucket, []).json() == {}
    assert client.batch("PUT", bucket, []).json() == []
    assert client.batch("DELETE", bucket, []).json() == []


# One statement, and no deadlock.


@pytest.mark.inside
def test_one_statement_per_request(database: Any, service: Service, bucket: str) -> None:
    """A batch is one round trip, not one per item: PostgreSQL counts one transaction."""
    client = service.client()
    items = [{"key": f"k{number}", "data": "v"} for number in range(200)]
    client.batch("PUT", bucket, items)
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(DISTINCT o.xmin::text) FROM poky._object AS o"
            f" JOIN poky.bucket AS b ON b.id = o.bucket_id WHERE b.name = '{bucket}'"
        )
        # One transaction, or its subtransactions' parent: never one per item.
        assert cursor.fetchone()[0] == 1
    client.close()


def test_crossing_batches_do_not_deadlock(service: Service, bucket: str) -> None:
    keys = [f"k{number}" for number in range(60)]
    statuses: set[int] = set()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            client = service.client()
            order = keys if number % 2 else keys[::-1]
            for turn in range(12):
                if number == 5:
                    answer = client.batch("DELETE", bucket, [{"key": key} for key in order])
                else:
                    answer = client.batch(
                        "PUT", bucket, [{"key": key, "data": f"{number}-{turn}"} for key in order]
                    )
                    assert "rejected" not in results(answer)
                statuses.add(answer.status)
            client.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    assert statuses == {200}
    assert "deadlock" not in service.log.read_text()


def test_a_read_of_many_sees_one_moment(service: Service, bucket: str) -> None:
    keys = [f"k{number}" for number in range(20)]
    stop = threading.Event()

    def write() -> None:
        client = service.client()
        turn = 0
        while not stop.is_set():
            turn += 1
            client.batch("PUT", bucket, [{"key": key, "data": str(turn)} for key in keys])
        client.close()

    writer = threading.Thread(target=write)
    writer.start()
    client = service.client()
    try:
        for _ in range(100):
            got = client.batch("POST", bucket, [{"key": key} for key in keys]).json()
            assert len(set(got.values())) <= 1
            assert len(got) in (0, len(keys))
    finally:
        stop.set()
        writer.join(30)
        client.close()


def test_a_batch_of_a_thousand(client: Client, bucket: str) -> None:
    items = [{"key": f"key-{number:04}", "data": f"value {number}"} for number in range(1000)]
    assert set(results(client.batch("PUT", bucket, items))) == {"inserted"}
    got = client.batch("POST", bucket, [{"key": item["key"]} for item in items]).json()
    assert got == {item["key"]: item["data"] for item in items}
    done = client.batch("DELETE", bucket, [{"key": item["key"]} for item in items])
    assert set(results(done)) == {"deleted"}
    assert json.loads(done.body)[999]["key"] == "key-0999"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("header", ["If-Match", "If-None-Match", "If-Unmodified-Since"])
def test_a_condition_in_the_head_belongs_into_the_items(
    client: Client, bucket: str, method: str, header: str
) -> None:
    item = {"key": "a"} | ({"data": "1"} if method == "PUT" else {})
    value = "Tue, 04 Jun 2013 03:01:31 GMT" if header.endswith("Since") else "*"
    refused = client.request(
        method,
        f"/multi/{bucket}",
        json.dumps([item]),
        {"Content-Type": "application/json", header: value},
    )
    assert (refused.status, refused.code) == (400, "bad_condition")
    assert header in refused.detail
    assert client.get(f"/kv/{bucket}/a").status == 404


def test_a_batch_is_whole_and_its_digest_is_checked(client: Client, bucket: str) -> None:
    for header, value, code in (
        ("Content-Range", "bytes 0-1/9", "partial_write"),
        ("Content-Digest", "sha-256=:AAAA:", "digest_mismatch"),
    ):
        refused = client.request(
            "PUT",
            f"/multi/{bucket}",
            '[{"key": "a", "data": "1"}]',
            {"Content-Type": "application/json", header: value},
        )
        assert (refused.status, refused.code) == (400, code)
    assert client.get(f"/kv/{bucket}/a").status == 404


@pytest.mark.parametrize(
    ("accept", "objects"),
    [
        (OBJECTS, True),
        (OBJECTS.upper(), True),
        (f"application/json, {OBJECTS}", True),
        (f"application/json;q=0.5, {OBJECTS};q=0.8", True),
        (f"{OBJECTS}; v=1 ; q=1.0, */*;q=0.1", True),
        (f"{OBJECTS};q=0", False),
        (f"{OBJECTS};q=0.0, */*", False),
        (f"application/json, {OBJECTS};q=0.5", False),
        (f"*/*, {OBJECTS};Q=0.5", False),
        (f"application/*, {OBJECTS};q=0.5", False),
        (f"x-{OBJECTS}", False),
        (f'text/x;a="{OBJECTS}"', False),
        ("*/*", False),
        ("application/*", False),
        ("text/html", False),
        ("", False),
        (f";;q=,{OBJECTS};q=x", False),
    ],
)
def test_accept_chooses_the_answer(client: Client, bucket: str, accept: str, objects: bool) -> None:
    answer = client.batch("POST", bucket, [{"key": "missing"}], accept=accept)
    assert answer.status == 200
    expected = [{"key": "missing", "result": "missing"}] if objects else {}
    assert answer.json() == expected


@pytest.mark.parametrize("field", ["value", "Data", "if-match", "etags", "_key"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_field_that_is_not_known_is_named(
    client: Client, bucket: str, method: str, field: str
) -> None:
    """It would be ignored: a condition that is misspelt must not make a write unconditional."""
    item = {"key": "k", field: "x", **({"data": "v"} if method == "PUT" else {})}
    refused = client.batch(method, bucket, [{**item}, item])
    assert refused.status == 400
    assert "Item 0" in refused.detail
    assert field in refused.detail
    assert client.get(f"/kv/{bucket}/k").status == 404


def test_as_many_items_as_are_allowed_are_taken(client: Client, bucket: str) -> None:
    found = client.batch("POST", bucket, [{"key": "a"}] * 10_000)
    assert (found.status, found.json()) == (200, {})


@pytest.mark.parametrize("wrong", ["", "é/x", "text/plain\nX: y", "a" * 256, "\x00", " "])
def test_a_content_type_that_cannot_be_sent_back_is_refused(
    client: Client, bucket: str, wrong: str
) -> None:
    item = {"key": "k", "data": "v", "content_type": wrong}
    refused = client.batch("PUT", bucket, [item])
    assert refused.status == 400
    assert "content_type" in refused.detail
    assert client.get(f"/kv/{bucket}/k").status == 404


@pytest.mark.parametrize(
    ("item", "size"),
    [
        ({"data": "abc"}, 3),
        ({"data": "\u00e4"}, 2),
        ({"data_base64": "AAEC"}, 3),
        ({"data": ""}, 0),
    ],
)
def test_no_item_has_a_larger_value_than_an_object_may(item: dict[str, str], size: int) -> None:
    body = json.dumps([{"key": "first", "data": ""}, {"key": "k", **item}]).encode()
    assert [len(each.content) for each in parse_put_items(body, 9, size, 0).values] == [0, size]
    if size:
        with pytest.raises(Refused) as refused:
            parse_put_items(body, 9, size - 1, 0)
        problem = json.loads(refused.value.answer.body)
        assert (problem["status"], problem["code"]) == (413, "value_too_large")
        assert problem["detail"] == f"Item 1: a value has at most {size - 1} bytes."


def refusal(parse: Any, *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(Refused) as refused:
        parse(*arguments)
    problem = json.loads(refused.value.answer.body)
    return problem["status"], problem["code"], problem["detail"]


@pytest.mark.parametrize("text", ["x", "{{{{{{{"])
def test_a_batch_has_so_many_items_and_no_more(text: str) -> None:
    """However many braces its values have."""
    items = [{"key": f"k{number}", "data": text} for number in range(3)]
    body = json.dumps(items).encode()
    assert parse_put_items(body, 3, 99, 0).keys == ["k0", "k1", "k2"]
    assert refusal(parse_put_items, body, 2, 99, 0)[:2] == (413, "batch_too_large")
    keys = json.dumps([{"key": each["key"]} for each in items]).encode()
    assert parse_key_items(keys, 3).keys == ["k0", "k1", "k2"]
    status, code, detail = refusal(parse_key_items, keys, 2)
    assert (status, code, detail) == (
        413,
        "batch_too_large",
        "A batch has at most 2 items. Split it.",
    )


def test_a_date_of_an_item_may_be_the_latest_and_its_expiry_is_one_of_two() -> None:
    def parsed(**fields: Any) -> Any:
        item = {"key": "k", "data": "", "modified_at": PAST, **fields}
        return parse_put_items(json.dumps([item]).encode(), 9, 9, 1370314891)

    assert parsed().modified_at == [1370314891]
    assert "too far in the future" in refusal(lambda: parsed(modified_at=LATER))[2]
    assert parsed(modified_at=None).modified_at == [None]
    for fields, expected in (
        ({}, None),
        ({"ttl": None}, None),
        ({"ttl": None, "expires": None}, None),
        ({"ttl": 0}, (0, None)),
        ({"ttl": 60, "expires": None}, (60, None)),
        ({"expires": PAST}, (None, 1370314891)),
    ):
        assert parsed(**fields).expiries == [expected]
    assert "give either ttl or expires" in refusal(lambda: parsed(ttl=0, expires=PAST))[2]
    for fields in ({"data": None}, {"data_base64": ""}, {"data": None, "data_base64": None}):
        assert "give either data" in refusal(lambda: parsed(**fields))[2]  # noqa: B023
    other = parsed(data=None, data_base64="", content_encoding="x-gzip", content_type="a/b")
    assert (other.content_encodings, other.content_types) == (["gzip"], ["a/b"])
    assert (parsed().content_encodings, parsed().content_types) == (
        [None],
        ["text/plain; charset=utf-8"],
    )


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("bucket_not_found", "poky bucket create NAME."),
        ("bucket_not_empty", "Add ?keys=drop"),
        ("changes_off", "poky bucket set NAME --changes 7d."),
        ("changes_gone", "Read the bucket anew"),
        ("busy", "Why."),
    ],
)
@pytest.mark.parametrize("unknown", [True, False])
def test_what_the_store_refuses_is_told_with_what_to_do(
    code: str, said: str, unknown: bool
) -> None:
    environ: dict[str, Any] = {}
    answer = show_failure(StoreError(503, "Why.", code=code, unknown=unknown), environ)
    problem = json.loads(answer.body)
    assert (problem["status"], problem["code"]) == (503, code)
    assert problem["detail"].startswith("Why.")
    assert problem["detail"].endswith(said) or said in problem["detail"]
    assert (("Poky-Outcome", "unknown") in answer.headers) is unknown
    assert environ == ({"poky.outcome": "unknown"} if unknown else {})


def test_a_defect_is_told_and_logged_by_its_path(caplog: pytest.LogCaptureFixture) -> None:
    environ = {"REQUEST_METHOD": "GET", "REQUEST_URI": "/kv/b/k?secret"}
    answer = show_failure(ZeroDivisionError("secret"), environ)
    assert answer.status.startswith("500 ")
    assert b"secret" not in answer.body
    assert caplog.messages == ["GET /kv/b/k failed"]
    refused = refuse(418, "teapot", "Short.")
    assert show_failure(refused, environ) is refused.answer


def test_values_of_every_size_are_read_in_a_batch_as_alone(client: Client, bucket: str) -> None:
    """Alone and together: small ones, those that come apart, and more than one piece."""
    sizes = (0, 1, 32_768, 32_769, 100_000, 262_144, 262_145)
    values = {f"k{size}": "ä" * (size // 2) + "x" * (size % 2) for size in sizes}
    for key, value in values.items():
        assert client.put(f"/kv/{bucket}/{key}", value.encode()).status == 200
    for keys in (*([key] for key in values), ["k0", "k32769"], ["k1", "k100000"], [*values]):
        items = [{"key": key} for key in keys]
        got = client.batch("POST", bucket, items)
        assert got.status == 200, got.detail
        assert got.json() == {key: values[key] for key in keys}
        whole = client.batch("POST", bucket, items, accept=OBJECTS)
        assert [each["data"] for each in whole.json()] == [values[key] for key in keys]
    # One that does not match its condition is not in the answer, but was among those together.
    items = [{"key": "k262145", "if_match": '"1-00000000"'}, {"key": "k1"}]
    assert client.batch("POST", bucket, items).json() == {"k1": "x"}
