"""Memory: what requests and answers hold is counted, and large values are copied no more.

`make abuse` shows the same under the role's MemoryMax; here are the parts.
"""

from __future__ import annotations

import base64
import json
import os
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poky.api.found import LargeAnswer, answer_bytes, show_objects, show_values
from poky.api.items import KeyItems
from poky.api.strings import read_string, write_string
from poky.http import Budget, Refused, Reservation
from poky.store import Object, Store, StoreError, Value
from poky.store.literals import compose
from poky.store.statements import EXECUTE
from tests.conftest import Database
from tests.service import Client, Service, running, wait_until
from tests.support.memory import high_water, resident

pytestmark = pytest.mark.slow

MB = 1024 * 1024
OBJECTS = "application/vnd.poky.objects+json"


# The budget


def test_a_reservation_is_raised_lowered_and_given_back() -> None:
    budget = Budget(100, factor=4)
    one, other = Reservation(budget), Reservation(budget)
    assert one.raise_to(60)
    assert one.raise_to(10), "less is there already"
    assert budget.used() == 60
    assert not other.raise_to(41)
    assert other.raise_to(40)
    with pytest.raises(Refused) as refused:
        other.need(41)
    assert refused.value.answer.status.startswith("503 ")
    assert ("Retry-After", "1") in refused.value.answer.headers
    one.lower_to(20)
    one.lower_to(30)
    assert (one.held, budget.used()) == (20, 60)
    other.need(80)
    one.lower_to(0)
    other.lower_to(0)
    assert budget.used() == 0


def test_a_body_is_admitted_only_if_it_could_be_answered_as_well() -> None:
    budget = Budget(100, factor=4)
    one, other = Reservation(budget), Reservation(budget)
    assert one.admit(10)
    assert budget.used() == 10, "while it is received, it takes no more than itself"
    assert not other.admit(23)
    assert other.admit(22)
    assert one.answer(10)
    assert budget.used() == 62
    assert not other.answer(22)
    one.lower_to(0)
    assert other.answer(22)


def test_a_request_that_is_alone_always_fits_and_an_answer_that_has_begun_is_finished() -> None:
    budget = Budget(100, factor=4)
    one, other = Reservation(budget), Reservation(budget)
    assert one.admit(1000)
    assert one.answer(1000)
    assert not other.raise_to(1)
    other.lower_to(50, exactly=True)
    assert budget.used() == 4050


# Strings and literals, in pieces


TEXTS = st.text(
    st.sampled_from('a"\\\n\x01é日\N{GRINNING FACE}/') | st.characters(codec="utf-8"), max_size=40
)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 20_000))
def test_a_string_is_read_and_written_as_msgspec_does(text: str, times: int) -> None:
    text *= times
    for literal in (json.dumps(text).encode(), msgspec.json.encode(text)):
        assert read_string(literal) == text.encode()
    out = BytesIO()
    write_string(text.encode(), out.write)
    assert out.getvalue() == msgspec.json.encode(text)


@pytest.mark.parametrize(
    "literal", [b'"' + b"x" * 70_000 + end for end in (rb"\x", rb"\ud800", b"\xff", b"\n")]
)
def test_a_large_string_that_is_none_is_refused(literal: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        read_string(literal + b'"')


@pytest.mark.parametrize("value", [b"", b"it's", b"a\\b", b"'" * 100, b"\0\xff", "日本".encode()])
@pytest.mark.parametrize("takes_text", [True, False])
def test_a_composed_statement_says_what_was_meant(
    database: Database, value: bytes, takes_text: bool
) -> None:
    with database.connect() as connection, connection.cursor() as cursor:
        given = ["it's \\ ü", Value(value), None, 7, True, [None, 5], [Value(value), Value(b"x")]]
        text = "SELECT %s, %s, %s::int, %s, %s, %s, %s"
        cursor.execute(compose(text, given, takes_text=takes_text))
        row = cursor.fetchone()
    assert row is not None
    assert row[0] == "it's \\ ü"
    assert bytes(row[1]) == value
    assert row[2:6] == (None, 7, True, [None, 5])
    assert list(map(bytes, row[6])) == [value, b"x"]


def test_a_value_is_forgotten_once_it_is_part_of_a_statement() -> None:
    value = Value(b"x" * 100)
    assert b"x" * 100 in compose("%s", [value], takes_text=True)
    assert (value.content, value.hash) == (b"", "09ecb6eb")


@pytest.mark.parametrize("value", [b"'" * MB, b"\\" * MB, os.urandom(MB), bytes(MB), b"x" * MB])
def test_no_literal_is_longer_than_four_thirds(value: bytes) -> None:
    assert len(compose("%s", [Value(value)], takes_text=True)) < MB * 4 / 3 + 100


# The answer of POST /multi


FOUND = st.builds(
    Object,
    key=st.sampled_from("abcd"),
    revision=st.integers(1, 9),
    hash=st.just("0" * 8),
    modified_at=st.integers(0, 9),
    unchanged_since=st.just(9),
    content_type=st.just("text/plain"),
    content_encoding=st.none(),
    expires_at=st.none() | st.integers(1, 253_402_300_799),  # to the end of the year 9999
    milliseconds_left=st.none(),
    value=st.binary(max_size=5) | TEXTS.map(str.encode),
    size=st.just(0),
)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from("abcde"), max_size=8),
    st.lists(FOUND, max_size=4, unique_by=lambda found: found.key),
    st.lists(st.none() | st.integers(0, 9), min_size=8, max_size=8),
    st.booleans(),
)
def test_a_large_answer_is_a_small_one_in_pieces(
    keys: list[str], there: list[Object], dates: list[int | None], objects: bool
) -> None:
    found = {each.key: each._replace(size=len(each.value or b"")) for each in there}
    nothing = [None] * len(keys)
    items = KeyItems(keys, dates[: len(keys)], nothing, nothing)  # type: ignore[arg-type]
    took = []
    answer = LargeAnswer(items, objects=objects, limit=MB, need=took.append)

    def large() -> Any:
        for _ in range(2):  # as after a failure
            answer.begin()
            for key in dict.fromkeys(keys):
                if key in found:
                    answer.add(found[key])
        return msgspec.json.decode(answer.end())

    show = show_objects if objects else show_values
    try:
        small = show(items, found)
    except Refused:
        with pytest.raises(Refused) as refused:
            large()
        with pytest.raises(Refused) as expected:
            show(items, found)
        assert refused.value.answer == expected.value.answer
        return
    encoded = msgspec.json.encode(small)
    assert large() == msgspec.json.decode(encoded)
    assert 0 < max(took) < 1.5 * (len(encoded) + 256 * 1024)
    assert answer_bytes(items, found, objects=objects) <= sum(
        len(found[key].value or b"") for key in keys if key in found
    )


def test_an_answer_of_repeated_keys_is_refused_before_a_value_is_read(
    client: Client, bucket: str
) -> None:
    assert client.put(f"/kv/{bucket}/big", b"x" * 9 * MB).status == 200
    for accept in (OBJECTS, "*/*"):
        answer = client.batch("POST", bucket, [{"key": "big"}] * 2, accept=accept)
        if accept == OBJECTS:
            assert answer.status == 413
            assert "18874368 bytes together, and an answer has at most 16777216" in answer.detail
            assert "GET" in answer.detail
        else:  # by key: once
            assert answer.json() == {"big": "x" * 9 * MB}


def test_many_positions_of_a_small_value_count_as_often(client: Client, bucket: str) -> None:
    client.put(f"/kv/{bucket}/k", b"x" * 4000)
    answer = client.batch("POST", bucket, [{"key": "k"}] * 5000, accept=OBJECTS)
    assert answer.status == 413
    answer = client.batch("POST", bucket, [{"key": "k"}] * 4000, accept=OBJECTS)
    assert answer.status == 200
    assert len(answer.json()) == 4000
    assert {item["data"] for item in answer.json()} == {"x" * 4000}


def test_what_becomes_far_larger_as_json_is_refused(client: Client, bucket: str) -> None:
    client.put(f"/kv/{bucket}/controls", b"\x01" * 8 * MB)
    answer = client.batch("POST", bucket, [{"key": "controls"}])
    assert answer.status == 413
    assert "Ask for fewer" in answer.detail


def test_items_whose_conditions_fail_do_not_count(client: Client, bucket: str) -> None:
    tag = client.put(f"/kv/{bucket}/big", b"x" * 9 * MB).etag
    wanted = [{"key": "big"}, {"key": "big", "if_none_match": tag}, {"key": "none"}]
    answer = client.batch("POST", bucket, wanted, accept=OBJECTS)
    assert [item.get("result") for item in answer.json()] == [None, "missing", "missing"]
    assert answer.json()[0]["data"] == "x" * 9 * MB


@pytest.mark.parametrize(
    "value",
    [
        *(b"plain" * MB, b"'\\" * MB, ("x" * 3 * MB + "\N{GRINNING FACE}").encode()),
        *(bytes(MB), os.urandom(3 * MB), "日本\n\"\\".encode() * (MB // 4)),
    ],
)  # fmt: skip
def test_large_values_come_back_as_they_were(client: Client, bucket: str, value: bytes) -> None:
    put = client.put(f"/kv/{bucket}/k", value)
    assert put.status == 200
    got = client.get(f"/kv/{bucket}/k")
    assert (got.status, got.body, got.etag) == (200, value, put.etag)
    assert client.get(f"/kv/{bucket}/k", if_none_match=put.etag).status == 304
    assert client.get(f"/kv/{bucket}/k", if_match='"1-00000000"').status == 412
    (item,) = client.batch("POST", bucket, [{"key": "k"}], accept=OBJECTS).json()
    shown = item["data"].encode() if "data" in item else base64.b64decode(item["data_base64"])
    assert (shown, item["etag"]) == (value, put.etag)
    field = "data_base64" if "data_base64" in item else "data"
    again = [{"key": "a", field: item[field]}, {"key": "b", field: item[field]}]
    assert client.batch("PUT", bucket, again).status == 200
    assert client.get(f"/kv/{bucket}/b").body == value


def test_a_large_object_is_read_again_when_it_grew(database: Database, bucket: str) -> None:
    store = Store(database.dsn_service, pool_size=2)
    took = []
    store.put(bucket, "k", b"x" * MB, "text/plain")

    def room(size: int) -> None:
        if not took:
            store.put(bucket, "k", b"y" * 2 * MB, "text/plain")
        took.append(size)

    found = store.get(bucket, "k", room)
    assert found is not None
    assert (bytes(found.value), found.size) == (b"y" * 2 * MB, 2 * MB)
    assert took == [3 * MB, 6 * MB]
    store.close()


def test_a_large_object_that_is_deleted_meanwhile_is_not_there(
    database: Database, bucket: str
) -> None:
    class Late(Store):
        def _read(self, statement: Any, *given: Any, **more: Any) -> Any:
            if statement == EXECUTE["get_many"]:
                other.delete(bucket, "k")
            return super()._read(statement, *given, **more)

    with (
        closing(Store(database.dsn_service)) as other,
        closing(Late(database.dsn_service)) as store,
    ):
        store.put(bucket, "k", b"x" * MB, "text/plain")
        assert store.get(bucket, "k") is None


def test_a_part_of_an_object_that_changes_at_each_attempt_is_given_up(
    database: Database, bucket: str
) -> None:
    store = Store(database.dsn_service, pool_size=2)
    written = []

    def room(size: int) -> None:
        if not size:
            return
        assert size == 30, "what the part takes"
        written.append(store.put(bucket, "k", b"y" * MB, "text/plain"))

    store.put(bucket, "k", b"x" * MB, "text/plain")
    with pytest.raises(StoreError) as refused:
        store.get(bucket, "k", room, lambda found: (0, 10))
    assert (refused.value.status, refused.value.code) == (503, "database_slow")
    assert "changes too often. Try again shortly." in refused.value.detail
    assert 1 < len(written) < 10
    # What is empty needs no room, and is of no revision.
    part = store.get(bucket, "k", room, lambda found: (0, 0))
    assert part is not None
    assert (bytes(part.value), part.size) == (b"", MB)
    store.close()


def test_too_many_items_are_refused_before_they_are_all_read(
    client: Client, bucket: str, service: Service
) -> None:
    body = b"[" + b",".join([b'{"key":"a"}'] * 1_300_000) + b"]"
    assert service.process
    before = resident(service.process.pid)
    for method in ("POST", "DELETE"):
        headers = {"Content-Type": "application/json"}
        answer = client.request(method, f"/multi/{bucket}", body, headers)
        assert answer.status == 413
        assert "at most 10000 items" in answer.detail
    assert high_water(service.process.pid) - before < 4 * len(body)


@pytest.mark.parametrize(
    ("data", "words"),
    [("7", "got a number"), ("[1]", "got an array"), ("{}", "got an object"), ("true", "true or")],
)
def test_data_that_is_no_string_is_named(
    client: Client, bucket: str, data: str, words: str
) -> None:
    body = f'[{{"key": "k", "data": "v"}}, {{"key": "k", "data": {data}}}]'.encode()
    answer = client.request("PUT", f"/multi/{bucket}", body, {"Content-Type": "application/json"})
    assert answer.status == 400
    assert "Item 1, field data: " in answer.detail
    assert words in answer.detail


# What a value takes, measured


@pytest.mark.parametrize(
    ("form", "most"), [("text", 3.4), ("quotes", 4.2), ("binary", 4.2), ("wide", 3.4)]
)
def test_a_put_takes_at_most_four_times_its_value_and_keeps_nothing(
    database: Database, bucket: str, tmp_path: Any, form: str, most: float
) -> None:
    size = 16 * MB
    value = {
        "text": b"x" * size,
        "quotes": b"'" * size,
        "binary": os.urandom(MB) * 16,
        "wide": b"x" * (size - 4) + "\N{GRINNING FACE}".encode(),
    }[form]
    with running(database.dsn_service, tmp_path / "log", statement_timeout="30") as service:
        client = service.client()
        assert client.put(f"/kv/{bucket}/k", value).status == 200  # what is loaded once
        assert service.process
        pid = service.process.pid
        before = resident(pid)
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the high water
        assert client.put(f"/kv/{bucket}/k", value).status == 200
        assert high_water(pid) - before < most * size
        assert resident(pid) - before < size / 4


def test_get_is_refused_where_there_is_no_room_and_served_again_after_that(
    database: Database, bucket: str, tmp_path: Any
) -> None:
    """A reader that does not read holds its answer; a request that is alone fits all the same."""
    size = 14 * MB  # more than sockets take
    with running(
        database.dsn_service, tmp_path / "log", max_inflight_bytes=str(32 * MB)
    ) as service:
        assert service.client().put(f"/kv/{bucket}/k", b"x" * size).status == 200
        slow = service.client()
        slow._connection.putrequest("GET", f"/kv/{bucket}/k")
        slow._connection.endheaders()
        wait_until(lambda: service.client().get("/status?verbose").json()["inflight"] == 1)
        refused = wait_until(
            lambda: (answer := service.client().get(f"/kv/{bucket}/k")).status == 503 and answer
        )
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["code"] == "overloaded"
        assert service.client().get("/status").status == 200
        assert slow._connection.getresponse().read() == b"x" * size
        wait_until(lambda: service.client().get(f"/kv/{bucket}/k").status == 200)
