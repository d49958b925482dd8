"""Buckets out and in, in bulk: poky export, import, verify, and taking over the original's."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from poky.cli import poky1, transfer
from poky.cli.context import Failed
from poky.cli.poky1 import Wrong, _merged
from poky.cli.transfer import _resumable, _Shown
from poky.store import Store, StoreError
from poky.transfer import (
    BadLine,
    Exported,
    Loader,
    Original,
    Session,
    compare,
    compressed,
    decompressed,
    export,
    exported_objects,
    import_file,
    stored_objects,
)
from poky.transfer import load as loading
from poky.transfer.lines import read_line, read_mark
from poky.transfer.load import Told
from poky.transfer.streams import streamed
from tests.conftest import Cluster, Database
from tests.fake_cache import FakeCache
from tests.service import wait_until
from tests.test_cli import told
from tests.test_process import poky

PAST = 1370314891


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    with closing(Store(database.dsn_service)) as store:
        yield store


@pytest.fixture
def other(store: Store, bucket_names: Callable[[], str]) -> str:
    name = bucket_names()
    store.ensure_bucket(name)
    return name


def exported(database: Database, bucket: str) -> bytes:
    file = io.BytesIO()
    with Session(database.dsn_service, "tests") as session:
        export(session, bucket, file, "tests")
    return file.getvalue()


def imported(
    database: Database, bucket: str, content: bytes, on_conflict: Any = "replace", **options: Any
) -> tuple[Any, Loader, list[tuple[int, str]]]:
    wrong: list[tuple[int, str]] = []
    with Session(database.dsn_owner, "tests", as_owner=True) as session:
        loader = Loader(session, on_conflict)
        read = import_file(
            decompressed(io.BufferedReader(io.BytesIO(content))),  # type: ignore[arg-type]
            bucket,
            loader,
            1000,
            lambda number, why: wrong.append((number, why)),
            **options,
        )
    return read, loader, wrong


def lines(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def differences(database: Database, one: str, another: str) -> list[tuple[str, str]]:
    with (
        Session(database.dsn_service, "tests") as left,
        Session(database.dsn_service, "tests") as right,
    ):
        return [*compare(stored_objects(left, one), stored_objects(right, another))]


def line(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def fill(store: Store, bucket: str) -> None:
    store.put(bucket, "text", 'ä\n"\\\u2028'.encode(), "text/plain", PAST)
    store.put(bucket, "bytes/all", bytes(range(256)), "application/octet-stream")
    store.put(bucket, "empty", b"", "text/x; charset=utf-8", content_encoding="gzip")
    store.put(bucket, "nul", b"a\0b", "text/plain")
    for number in range(30):
        store.put(bucket, f"many/{number}", random.randbytes(number), "t/t")


def test_an_export_has_everything(database: Database, store: Store, bucket: str) -> None:
    fill(store, bucket)
    head, *objects, end = lines(exported(database, bucket))
    assert (head["poky_export"], head["bucket"], head["release"]) == (1, bucket, "tests")
    assert end == {"end": True, "objects": 34, "cursor": None}
    assert [each["key"] for each in objects] == sorted(each["key"] for each in objects)
    for each in objects:
        found = store.get(bucket, each["key"])
        assert found is not None
        value = each["data"].encode() if "data" in each else base64.b64decode(each["data_base64"])
        assert value == bytes(found.value)
        assert each["content_type"] == found.content_type
        assert each.get("content_encoding") == found.content_encoding
        assert each["etag"] == f'"{found.revision}-{found.hash}"'
        assert (each["revision"], each["modified_at"]) == (found.revision, found.modified_at)
        assert 0 <= each["written_at"] - each["created_at"] < 60


def test_what_was_exported_comes_in_as_it_was_and_again_changes_nothing(
    database: Database, store: Store, bucket: str, other: str
) -> None:
    fill(store, bucket)
    content = exported(database, bucket)
    read, loader, wrong = imported(database, other, content)
    assert (read.lines, read.wrong, wrong, loader.stored) == (34, 0, [], (34, 0))
    assert differences(database, bucket, other) == []
    before = exported(database, other)
    for on_conflict in ("keep", "replace", "newer"):
        _, loader, _ = imported(database, other, content, on_conflict)
        assert loader.stored == (0, 0)
    assert lines(exported(database, other))[1:] == lines(before)[1:]
    # Revisions are this store's own: an import is a change.
    assert lines(before)[1]["revision"] > lines(content)[-2]["revision"]


def test_an_export_is_of_one_moment(database: Database, store: Store, bucket: str) -> None:
    """Pages of ten thousand; what is written while it runs is not in it, and stops nothing."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM (SELECT poky.put(%s, lpad(n::text, 6, '0'), 'old', 't')"
            " FROM generate_series(1, 12000) AS n) AS x",
            [bucket],
        )
        connection.commit()
    done = []

    def change(count: int) -> None:
        if not done:
            done.append(count)
            store.put(bucket, "011999", b"new", "t")
            store.delete(bucket, "012000")
            store.put(bucket, "1", b"new", "t")

    file = io.BytesIO()
    with Session(database.dsn_service, "tests") as session:
        end = export(session, bucket, file, "tests", change)
    objects = lines(file.getvalue())[1:-1]
    assert (end.objects, len(objects), len(done)) == (12000, 12000, 1)
    assert {each["data"] for each in objects} == {"old"}


def test_the_last_line_has_the_cursor_of_what_comes_after(
    database: Database, store: Store, bucket: str, other: str
) -> None:
    """Nothing that the file has, and all else: also what was written while it was made."""
    with closing(Store(database.dsn_owner)) as owner:
        owner.keep_changes(bucket, 3600)
        owner.keep_changes(other, 3600)
    store.put(bucket, "before", b"1", "t")
    wrote = []

    def change(count: int) -> None:
        if not wrote:
            wrote.append(store.put(bucket, "meanwhile", b"2", "t"))

    file = io.BytesIO()
    with Session(database.dsn_service, "tests") as session:
        end = export(session, bucket, file, "tests", change)
    store.put(bucket, "after", b"3", "t")
    assert wrote
    assert [each["key"] for each in lines(file.getvalue())[1:-1]] == ["before"]
    assert lines(file.getvalue())[-1]["cursor"] == end.cursor
    assert followed(database, bucket, end.cursor) == ["meanwhile", "after"]
    # And an import is followed like any change; what stays as it is, is none.
    for _ in range(2):
        read, _, _ = imported(database, other, file.getvalue())
        assert read.cursor == end.cursor
    assert followed(database, other, "0") == ["before"]


def test_an_export_that_is_followed_is_an_exact_copy(
    database: Database, store: Store, bucket: str
) -> None:
    """While four others write: what the file has not, the feed has after its cursor."""
    with closing(Store(database.dsn_owner)) as owner:
        owner.keep_changes(bucket, 3600)
    writing = threading.Event()
    writing.set()
    counts = [0] * 4

    def write(number: int) -> None:
        dice = random.Random(number)
        with closing(Store(database.dsn_service, pool_size=1)) as mine:
            while writing.is_set():
                keys = [f"k{dice.randrange(60)}" for _ in range(3)]
                none = [None] * 3
                if dice.random() < 0.5:
                    mine.put(bucket, keys[0], dice.randbytes(9), "t")
                elif dice.random() < 0.5:
                    mine.delete(bucket, keys[0])
                else:
                    values = [dice.randbytes(9) for _ in keys]
                    mine.put_many(bucket, keys, values, ["t"] * 3, none, none, none, False)
                counts[number] += 1

    def wait_for(more: int) -> None:
        enough = [count + more for count in counts]
        wait_until(lambda: all(c >= e for c, e in zip(counts, enough, strict=True)), 60)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(20)
        file = io.BytesIO()
        with Session(database.dsn_service, "tests") as session:
            end = export(session, bucket, file, "tests")
        wait_for(20)
    finally:
        writing.clear()
        for thread in threads:
            thread.join(60)
    copy = {each["key"]: each["etag"] for each in lines(file.getvalue())[1:-1]}
    cursor, is_last = end.cursor, False
    assert cursor
    while not is_last:
        page = store.changes(bucket, cursor, "", 7)
        for each in page.changes:
            copy.pop(each.key, None)
            if each.result == "put":
                copy[each.key] = f'"{each.revision}-{each.hash}"'
        cursor, is_last = page.next, page.is_last
    assert copy == {each["key"]: each["etag"] for each in lines(exported(database, bucket))[1:-1]}


def followed(database: Database, bucket: str, cursor: str | None) -> list[str]:
    with closing(database.connect(as_service=True)) as connection, connection.cursor() as found:
        found.execute("SELECT key FROM poky.changes(%s, %s, '', 100)", [bucket, cursor])
        return [key for (key,) in found.fetchall() if key]


@pytest.mark.parametrize(
    ("on_conflict", "date", "expected"),
    [
        ("keep", PAST + 1, b"here"),
        ("replace", PAST - 1, b"file"),
        ("newer", PAST - 1, b"here"),
        ("newer", PAST, b"file"),
        ("newer", PAST + 1, b"file"),
    ],
)
def test_a_conflict_is_decided_as_it_was_said(
    database: Database, store: Store, bucket: str, on_conflict: str, date: int, expected: bytes
) -> None:
    before = store.put(bucket, "k", b"here", "text/x", PAST)
    content = line(key="k", data="file", modified_at=date) + line(key="l", data="new")
    if on_conflict == "newer":
        content = line(key="k", data="file", modified_at=date)
    imported(database, bucket, content, on_conflict)
    found = store.get(bucket, "k")
    assert found is not None
    assert bytes(found.value) == expected
    if expected == b"here":
        assert (found.revision, found.modified_at) == (before.revision, PAST)
    else:
        assert found.revision > before.revision
        assert found.modified_at == date


def test_a_line_without_a_date_leaves_the_objects_own(
    database: Database, store: Store, bucket: str
) -> None:
    store.put(bucket, "k", b"here", "text/x", PAST)
    content = line(key="k", data="file") + line(key="l", data_base64="AAE=") + line(key="", data="")
    for _ in range(2):
        _, loader, _ = imported(database, bucket, content)
        found, new = store.get(bucket, "k"), store.get(bucket, "l")
        assert found is not None
        assert new is not None
        assert (bytes(found.value), found.modified_at) == (b"file", PAST)
        assert (bytes(new.value), new.content_type) == (b"\0\1", "text/plain; charset=utf-8")
    assert loader.stored == (0, 0)


def test_the_last_of_lines_with_one_key_counts(
    database: Database, store: Store, bucket: str
) -> None:
    content = b"".join(line(key="k", data=f"{number}") for number in range(5))
    imported(database, bucket, content)
    found = store.get(bucket, "k")
    assert found is not None
    assert bytes(found.value) == b"4"


WRONG = {
    "no JSON": b"{\n",
    "no object": b"[]\n",
    "no key": line(data=""),
    "an illegal key": line(key="a//b", data=""),
    "no value": line(key="k"),
    "two values": line(key="k", data="", data_base64=""),
    "a value that is none": line(key="k", data=5),
    "bad base 64": line(key="k", data_base64="*"),
    "an unknown field": line(key="k", data="", datum=1),
    "a bad content type": line(key="k", data="", content_type="ä"),
    "a coding that is not known": line(key="k", data="", content_encoding="aws-chunked"),
    "a date before 1970": line(key="k", data="", modified_at=-1),
    "a date that is none": line(key="k", data="", modified_at="today"),
    "a date too late": line(key="k", data="", expires_at=10**12),
    "a large value": line(key="k", data="x" * 1001),
    "a line that is too long": b'{"key": "k", "data": "' + b"x" * 30000 + b'"}\n',
    "no UTF-8": b'{"key": "k", "data": "\xff"}\n',
    "half a pair of surrogates": b'{"key": "k", "data": "\\ud800"}\n',
    "a first line in the middle": b'{"poky_export":1,"bucket":"b","release":"","exported_at":0}\n',
    "a form to come": b'{"poky_export":2,"bucket":"b"}\n',
}


def test_each_wrong_line_is_told_and_all_others_are_stored(
    database: Database, store: Store, bucket: str
) -> None:
    content = b"".join(
        line(key=f"good-{number}", data="") + b"\n" + bad
        for number, bad in enumerate(WRONG.values())
    )
    read, loader, wrong = imported(database, bucket, content)
    assert [number for number, _ in wrong] == [3 * n + 3 for n in range(len(WRONG))]
    assert all(why for _, why in wrong)
    assert (read.wrong, loader.stored) == (len(WRONG), (len(WRONG), 0))
    keys = [each.key for each in store.list_page(bucket).entries]
    assert keys == sorted(f"good-{number}" for number in range(len(WRONG)))


def test_an_export_that_was_cut_off_is_told(
    database: Database, store: Store, bucket: str, other: str
) -> None:
    fill(store, bucket)
    content = exported(database, bucket)
    parts = content.splitlines(keepends=True)
    for damaged, count in (
        (b"".join(parts[:-1]), 34),
        (b"".join(parts[:-2])[:-5], 32),
        (b"".join(parts[:5] + parts[6:]), 33),
        (content + parts[3], 34),
    ):
        read, _, wrong = imported(database, other, damaged)
        assert read.wrong >= 1
        assert wrong
        assert len(store.list_page(other).entries) == count
        store.drop_bucket(other, keys=True)
        store.ensure_bucket(other)


@pytest.mark.parametrize("how", ["none", "gzip", "zstd"])
def test_files_are_compressed_and_told_apart(how: Any) -> None:
    content = b"some text\n" * 10000
    file = io.BytesIO()
    with compressed(file, how) as packed:
        packed.write(content)
    unpack = {"none": bytes, "gzip": gzip.decompress}
    if how == "zstd":
        assert zstandard.ZstdDecompressor().decompressobj().decompress(file.getvalue()) == content
    else:
        assert unpack[how](file.getvalue()) == content
    reader = decompressed(io.BufferedReader(io.BytesIO(file.getvalue())))  # type: ignore[arg-type]
    assert reader.read() == content


def test_a_chunk_that_fails_leaves_what_was_stored_and_says_so(
    database: Database, store: Store, bucket: str
) -> None:
    """The bucket is dropped while its objects come in: the count is of what was committed."""
    with Session(database.dsn_owner, "tests", as_owner=True) as session:
        loader = Loader(session, "replace")
        file = [line(key=f"k{number}", data="") for number in range(10)]
        objects = list(exported_objects(io.BufferedReader(io.BytesIO(b"".join(file))), 1000))  # type: ignore[arg-type]
        for number, each in enumerate(objects[:5], start=1):
            loader.add(bucket, each, number)
        loader.finish()
        assert (loader.done, loader.stored) == (5, (5, 0))
        session.connection.close()
        for number, each in enumerate(objects[5:], start=6):
            loader.add(bucket, each, number)
        with pytest.raises(StoreError):
            loader.finish()
        assert (loader.done, loader.stored) == (5, (5, 0))
    assert len(store.list_page(bucket).entries) == 5


def test_a_revision_that_was_drawn_before_its_key_was_free_is_drawn_again(
    database: Database, store: Store, bucket: str
) -> None:
    """Another transaction inserts, changes and deletes the key while the import waits for it."""
    with closing(database.connect()) as busy, busy.cursor() as cursor:

        def put() -> int:
            cursor.execute("SELECT revision FROM poky.put(%s, 'k', 'w', 't')", [bucket])
            return int(cursor.fetchone()[0])

        put()
        importing = threading.Thread(
            target=imported, args=(database, bucket, line(key="k", data="in"))
        )
        importing.start()
        with closing(database.connect()) as looking, looking.cursor() as found:
            looking.autocommit = True

            def is_waiting() -> bool:
                found.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tests'"
                    " AND datname = current_database() AND wait_event_type = 'Lock'"
                )
                return bool(found.fetchone()[0])

            wait_until(is_waiting, 30, "the import waits for the key")
        latest = put()
        cursor.execute("SELECT poky.delete(%s, 'k')", [bucket])
        busy.commit()
        importing.join()
    stored = store.get(bucket, "k")
    assert stored is not None
    assert bytes(stored.value) == b"in"
    assert stored.revision > latest


def test_an_object_that_expires_does_so_where_it_came_in(
    database: Database, store: Store, bucket: str
) -> None:
    content = (
        line(key="soon", data="x", expires_at=4102444800)
        + line(key="gone", data="x", expires_at=1000)
        + line(key="never", data="x")
    )
    read, loader, _ = imported(database, bucket, content)
    assert (read.expired, loader.stored) == (1, (2, 0))
    objects = {each["key"]: each for each in lines(exported(database, bucket))[1:-1]}
    assert set(objects) == {"soon", "never"}
    assert objects["soon"]["expires_at"] == 4102444800
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM poky._expiry WHERE key = 'soon'")
        assert cursor.fetchone()[0] >= 1


def test_an_expired_object_is_none_to_an_import(
    database: Database, store: Store, bucket: str
) -> None:
    imported(database, bucket, line(key="k", data="old", modified_at=PAST, expires_at=4102444800))
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE poky._object SET expires_at = now() WHERE key = 'k'")
        connection.commit()
    imported(database, bucket, line(key="k", data="new", modified_at=PAST - 9), "keep")
    found = store.get(bucket, "k")
    assert found is not None
    assert (bytes(found.value), found.modified_at) == (b"new", PAST - 9)


def test_caches_hear_once_and_the_sweeper_waits(own_database: Database, tmp_path: Path) -> None:
    """One announcement for many chunks, renewed by each, and confirmed by the command.

    A few keys are purged one by one, and what else caches hold stays; many: they forget everything.
    """
    with closing(Store(own_database.dsn_service)) as store, FakeCache("n") as cache:
        store.ensure_bucket("b")
        store.register_node("n", cache.url)
        store.reinstate_node("n", store.nodes()[0].generation)
        generation = store.nodes()[0].generation
        with Session(own_database.dsn_owner, "tests", as_owner=True) as session:
            loader = Loader(session, "replace")
            for number in range(3):
                for each in exported_objects(
                    io.BufferedReader(io.BytesIO(line(key="k", data=f"{number}"))),  # type: ignore[arg-type]
                    1000,
                ):
                    loader.add("b", each)
                loader.finish()
            assert len(loader.outbox_ids) == 1
            assert (loader.told.keys, loader.told.is_everything) == ({"b": ["k"] * 3}, False)
            with closing(own_database.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT id, key FROM poky._outbox")
                assert cursor.fetchall() == [(loader.outbox_ids["b"], "")]
            assert store.unconfirmed(0, 9) == []
        store.confirm([*loader.outbox_ids.values()])
        file = tmp_path / "b.jsonl"
        env = {"POKY_DSN": own_database.dsn_service, "POKY_OWNER_DSN": own_database.dsn_owner}

        def outbox() -> int:
            with closing(own_database.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM poky._outbox")
                return int(cursor.fetchone()[0])

        file.write_bytes(line(key="k", data="2") + line(key="new/1", data="by the command"))
        done = poky("import", "b", str(file), env=env)
        assert done.returncode == 0, done.stderr
        assert (cache.told, outbox()) == (["/kv/b/new/1"], 0)
        assert store.nodes()[0].generation == generation
        file.write_bytes(b"".join(line(key=f"k{number}", data="") for number in range(10_001)))
        done = poky("import", "b", str(file), env=env)
        assert done.returncode == 0, done.stderr
        assert (len(cache.told), outbox()) == (1, 0)
        assert store.nodes()[0].generation != generation


def test_the_import_after_one_that_was_killed_tells_caches_of_both(
    own_database: Database, tmp_path: Path
) -> None:
    """It finds all as it should be, but caches may not have heard of that."""
    with closing(Store(own_database.dsn_service)) as store, FakeCache("n") as cache:
        store.ensure_bucket("b")
        store.ensure_bucket("other")
        store.register_node("n", cache.url)
        store.reinstate_node("n", store.nodes()[0].generation)
        generation = store.nodes()[0].generation
        file = tmp_path / "b.jsonl"
        file.write_bytes(line(key="k", data="v"))
        with Session(own_database.dsn_owner, "tests", as_owner=True) as session:
            loader = Loader(session, "replace")
            for each in exported_objects(
                io.BufferedReader(io.BytesIO(file.read_bytes())),  # type: ignore[arg-type]
                1000,
            ):
                loader.add("b", each)
            loader.finish()  # and nobody is told
        env = {"POKY_DSN": own_database.dsn_service, "POKY_OWNER_DSN": own_database.dsn_owner}
        done = poky("import", "other", str(file), env=env)
        assert done.returncode == 0, done.stderr
        assert (cache.told, store.nodes()[0].generation) == (["/kv/other/k"], generation)
        done = poky("import", "b", str(file), env=env)
        assert done.returncode == 0, done.stderr
        assert store.nodes()[0].generation != generation


def test_a_chunk_that_may_have_been_stored_makes_caches_forget_everything(
    database: Database, bucket: str
) -> None:
    with Session(database.dsn_owner, "tests", as_owner=True) as session:
        loader = Loader(session, "replace")
        session.connection.close()
        for each in exported_objects(
            io.BufferedReader(io.BytesIO(line(key="k", data="v"))),  # type: ignore[arg-type]
            1000,
        ):
            loader.add(bucket, each)
        with pytest.raises(StoreError):
            loader.finish()
        loader.settle()
        assert loader.told.is_everything


def test_comparing_tells_what_is_missing_extra_and_different(
    database: Database, store: Store, bucket: str, other: str
) -> None:
    fill(store, bucket)
    imported(database, other, exported(database, bucket))
    store.delete(other, "text")
    store.put(other, "empty", b"", "text/x; charset=utf-8", content_encoding="br")
    store.put(other, "more", b"", "t")
    store.put(other, "many/3", b"other", "t/u")
    assert differences(database, bucket, other) == [
        ("empty", "content_encoding"),
        ("many/3", "value, content_type"),
        ("more", "extra"),
        ("text", "missing"),
    ]


def test_a_file_that_is_compared_has_to_be_in_order() -> None:
    content = line(key="b", data="") + line(key="a", data="")
    with pytest.raises(BadLine, match="line 2"):
        list(exported_objects(io.BufferedReader(io.BytesIO(content)), 1000))  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_commands(database: Database, store: Store, bucket: str, tmp_path: Path) -> None:
    fill(store, bucket)
    env = {"POKY_DSN": database.dsn_service, "POKY_OWNER_DSN": database.dsn_owner}
    file = tmp_path / "b.jsonl.zst"
    assert poky("export", bucket, "-o", str(file), env=env).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["b.jsonl.zst"]
    assert poky("verify", bucket, str(file), env=env).stdout == f"{bucket}: the same\n"
    done = poky("import", f"{bucket}-copy", str(file), "--create", "--json", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inserted"] == 34
    assert differences(database, bucket, f"{bucket}-copy") == []
    store.put(bucket, "text", b"changed", "text/plain")
    done = poky("verify", bucket, str(file), "--json", env=env)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"key": "text", "what": "value"}
    assert json.loads(done.stderr.splitlines()[-1])["code"] == "objects_differ"
    done = subprocess.run(
        [sys.executable, "-m", "poky", "import", bucket],
        input='{"key":"a","data":""}\n{"key":"/"}\n',
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "line 2: " in done.stderr
    assert "Error: 1 lines are wrong" in done.stderr
    assert store.get(bucket, "a") is not None
    done = poky("import", "absent", str(file), "--json", env=env)
    if database.kind == "partitioned":
        assert json.loads(done.stderr.splitlines()[-1])["code"] == "bucket_not_found"
    done = poky("export", "absent", "-o", str(tmp_path / "absent.jsonl"), env=env)
    assert (tmp_path / "absent.jsonl").exists() == (database.kind == "flat")


# The original.

FLAT = """
CREATE TABLE poky (bucket varchar(256) NOT NULL, key varchar(1024) NOT NULL, data text,
    created_at timestamptz DEFAULT now(), modified_at timestamptz DEFAULT now(),
    PRIMARY KEY (bucket, key))
"""
CHILD = """
CREATE TABLE poky_{0} (CHECK (bucket = '{0}'), PRIMARY KEY (bucket, key)) INHERITS (poky)
"""


@pytest.fixture(params=["flat", "partitioned"])
def original(
    request: pytest.FixtureRequest, cluster: Cluster, empty_database: Database
) -> tuple[Database, Callable[[str], str]]:
    """A database of the original, and in which table a bucket is."""
    with closing(empty_database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(FLAT)
        for bucket in ("b", "c"):
            if request.param == "partitioned":
                cursor.execute(CHILD.format(bucket))
        connection.commit()
    return empty_database, (lambda name: "poky" if request.param == "flat" else f"poky_{name}")


def execute(database: Database, statement: str) -> None:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.commit()


def test_the_original_is_followed_while_it_is_written_to(
    original: tuple[Database, Callable[[str], str]], own_database: Database
) -> None:
    source, table = original
    for bucket in ("b", "c"):
        execute(
            source,
            f"INSERT INTO {table(bucket)} SELECT '{bucket}', 'k' || n, 'ä' || n,"
            " '2013-06-04 03:01:31.7+00', '2013-06-04 03:01:31.7+00'"
            " FROM generate_series(1, 500) AS n",
        )
    execute(source, f"INSERT INTO {table('b')} VALUES ('b', 'no key', 'x'), ('b', 'k0', NULL)")
    wrong: list[str] = []
    with (
        closing(Store(own_database.dsn_service)) as store,
        Session(source.dsn_owner, "tests") as theirs,
        Session(own_database.dsn_owner, "tests", as_owner=True) as ours,
    ):
        for bucket in ("b", "c"):
            store.ensure_bucket(bucket)
        followed, loader = Original(theirs), Loader(ours, "replace")
        assert followed.buckets() == ["b", "c"]

        def follow() -> tuple[int, int]:
            looked = followed.follow(loader, lambda name, why: wrong.append(name))
            return looked.rows, looked.changed

        assert follow() == (1002, 1000)
        assert sorted(wrong) == ["b/k0", "b/no key"]
        found = store.get("c", "k7")
        assert found is not None
        assert (bytes(found.value).decode(), found.modified_at) == ("ä7", PAST)
        # Its modified_at stands still, as the original leaves it without If-Unmodified-Since.
        execute(
            source, f"UPDATE {table('b')} SET data = 'second' WHERE bucket = 'b' AND key = 'k1'"
        )
        with closing(source.connect()) as busy, busy.cursor() as cursor:
            cursor.execute(
                f"UPDATE {table('c')} SET data = 'open' WHERE bucket = 'c' AND key = 'k2'"
            )
            rows, changed = follow()
            assert changed == 1
            assert rows < 100
            execute(source, f"INSERT INTO {table('c')} VALUES ('c', 'new/key', 'x')")
            assert follow()[1] == 1
            busy.commit()  # began before, and ends after others have been seen
        assert follow()[1] == 1
        assert follow()[1] == 0
        for bucket, key, value in (
            ("b", "k1", "second"),
            ("c", "k2", "open"),
            ("c", "new/key", "x"),
        ):
            found = store.get(bucket, key)
            assert found is not None
            assert bytes(found.value).decode() == value
        listed = store.list_page("c", limit=1000).entries
        assert [*followed.keys("c")] == [each.key for each in listed]


def test_going_back_is_as_the_page_says(
    original: tuple[Database, Callable[[str], str]], own_database: Database, tmp_path: Path
) -> None:
    source, table = original
    execute(
        source,
        f"INSERT INTO {table('b')} SELECT 'b', k, 'old', '2013-06-04', '2013-06-04'"
        " FROM unnest('{stays,changed,deleted,binary,no key}'::text[]) AS k",
    )
    execute(source, f"INSERT INTO {table('c')} SELECT 'c', 'deleted', 'other bucket'")
    text = 'ä "quoted" \\ \\n \t and\nmore\u2028'
    with closing(Store(own_database.dsn_service)) as store:
        store.ensure_bucket("b")
        store.put("b", "stays", b"old", "text/plain", PAST)
        store.put("b", "changed", text.encode(), "text/plain", PAST)
        store.put("b", "new", b"", "text/plain", PAST)
        store.put("b", "binary", b"\xff", "text/plain", PAST)
        store.put("b", "nul", b"\\u0000\0", "text/plain", PAST)
        store.put("b", "no-nul", rb"\u0000", "text/plain", PAST)
        store.put("b", "a/path", b"v", "text/plain", PAST)
    file = tmp_path / "b.jsonl"
    file.write_bytes(exported(own_database, "b"))
    page = (Path(__file__).parent.parent / "docs" / "moving-from-poky1.md").read_text()
    [lines] = re.findall(r"(?m)^ {7}BEGIN;\n(?: {7}.*\n)+? {7}COMMIT;\n", page)
    lines = lines.replace("BUCKET.jsonl", str(file)).replace("BUCKET", "b")
    lines = lines.replace("INSERT INTO poky (", f"INSERT INTO {table('b')} (")
    done = subprocess.run(
        ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", source.dsn_owner],
        input=textwrap.dedent(lines),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with closing(source.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT bucket, key, data, extract(epoch FROM modified_at)::bigint FROM poky"
        )
        rows = {row[:2]: row[2:] for row in cursor.fetchall()}
        cursor.execute("SELECT DISTINCT tableoid::regclass::text FROM poky WHERE bucket = 'b'")
        assert cursor.fetchall() == [(table("b"),)]
    assert rows.pop(("c", "deleted"))[0] == "other bucket"
    assert rows.pop(("b", "no key"))[0] == "old"
    assert rows.pop(("b", "binary"))[0] == "old"
    assert rows == {
        ("b", "stays"): ("old", PAST),
        ("b", "changed"): (text, PAST),
        ("b", "new"): ("", PAST),
        ("b", "no-nul"): (r"\u0000", PAST),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_the_command_takes_over_and_says_when_to_switch(
    original: tuple[Database, Callable[[str], str]], own_database: Database
) -> None:
    source, table = original
    for bucket in ("b", "c"):
        execute(
            source,
            f"INSERT INTO {table(bucket)} (bucket, key, data) SELECT '{bucket}', 'k' || n, n::text"
            " FROM generate_series(1, 20) AS n",
        )
    env = {"POKY_DSN": own_database.dsn_service, "POKY_OWNER_DSN": own_database.dsn_owner}
    command = ["import", "--from-poky1", source.dsn_owner, "--quiet", "1"]
    done = poky(*command, "--once", env=env)
    assert done.returncode == 0, done.stderr
    assert "copied: 40 rows" in done.stdout
    execute(source, f"DELETE FROM {table('b')} WHERE bucket = 'b' AND key = 'k3'")
    done = poky(*command, env=env)
    assert done.returncode == 1
    assert "b/k3: not in the original" in done.stderr
    done = poky(*command, "--mirror", env=env)
    assert done.returncode == 0, done.stderr
    assert "Stop what writes to it" in done.stdout
    assert "its 39 objects are here: switch over" in done.stdout
    with closing(Store(own_database.dsn_service)) as store:
        assert len(store.list_page("b").entries) == 19
    done = poky("import", "--from-poky1", own_database.dsn_owner, "--json", env=env)
    assert json.loads(done.stderr.splitlines()[-1])["code"] == "schema_missing"


def test_an_import_that_fails_says_where_to_go_on() -> None:
    loader: Any = SimpleNamespace(done=7)
    with pytest.raises(Failed) as failed, _resumable(loader):
        raise StoreError(503, "The database does not answer.", code="database_unavailable")
    assert failed.value.code == "database_unavailable"
    assert "All up to line 7 is stored" in str(failed.value)
    assert "--from-line 8" in str(failed.value)
    with _resumable(loader):
        pass


def test_what_the_commands_say_of_a_bucket(
    database: Database, store: Store, bucket: str, other: str, tmp_path: Path
) -> None:
    fill(store, bucket)
    files = {name: tmp_path / name for name in ("b.gz", "b.zst", "b.jsonl", "b.other")}
    env = {"POKY_DSN": database.dsn_service}
    for name, begins in {
        "b.gz": b"\x1f\x8b",
        "b.zst": b"\x28\xb5\x2f\xfd",
        "b.jsonl": b'{"poky_export"',
        "b.other": b"\x1f\x8b",
    }.items():
        how = ["--compress", "gzip"] if name == "b.other" else []
        done = poky("export", bucket, "-o", str(files[name]), *how, env=env)
        pace = r"in \d+\.\d s \([\d,]+ a second\)\."
        assert re.fullmatch(rf"{bucket}: 34 objects exported {pace}\n", done.stderr)
        assert files[name].read_bytes().startswith(begins)
    for name, inserted in (("b.gz", 34), ("b.zst", 0), ("b.other", 0)):
        said = told(database, "import", other, str(files[name]))
        assert re.fullmatch(rf"{other}: {inserted} objects inserted, 0 updated {pace}\n", said)
    store.put(other, "text", b"changed", "text/plain")
    assert ", 1 updated " in told(database, "import", other, str(files["b.gz"]))
    store.put(other, "text", b"changed", "text/plain", PAST)
    assert ", 0 updated " in told(
        database, "import", other, str(files["b.gz"]), "--on-conflict", "keep"
    )
    # With another store, and with a file.
    assert (
        told(database, "verify", bucket, "--with", database.dsn_service) == f"{bucket}: the same\n"
    )
    said = told(database, "verify", other, str(files["b.gz"]), status=1)
    assert said == f"text: value\nError: 1 keys of {other} differ.\n"
    for words in ([], [str(files["b.gz"]), "--with", "x"]):
        assert "Name a file, or another store" in told(database, "verify", bucket, *words, status=2)
    assert "Name the bucket." in told(database, "import", status=2)
    assert "name none" in told(database, "import", bucket, "--from-poky1", "x", status=2)


def test_an_import_goes_on_from_a_line(
    database: Database, store: Store, bucket: str, other: str, tmp_path: Path
) -> None:
    """Line 1 is the file's head: the objects are on lines 2 to 35."""
    fill(store, bucket)
    file = tmp_path / "b.jsonl"
    file.write_bytes(exported(database, bucket))
    said = json.loads(told(database, "import", other, str(file), "--from-line", "34", "--json"))
    assert said == {
        "bucket": other,
        "inserted": 2,
        "updated": 0,
        "expired": 0,
        "wrong": 0,
        "cursor": None,
    }
    last = [each["key"] for each in lines(exported(database, bucket))[-3:-1]]
    assert [each.key for each in store.list_page(other).entries] == last


def test_a_file_that_cannot_be_read_or_written_is_one_sentence(
    database: Database, store: Store, bucket: str, tmp_path: Path
) -> None:
    fill(store, bucket)
    damaged = tmp_path / "b.gz"
    damaged.write_bytes(gzip.compress(exported(database, bucket))[:-9])
    for command in ("import", "verify"):
        said = told(database, command, bucket, str(damaged), status=1).splitlines()[-1]
        assert said.startswith("Error: The file cannot be read or written: ")
    disordered = tmp_path / "b.jsonl"
    disordered.write_bytes(line(key="b", data="") + line(key="a", data=""))
    said = told(database, "verify", bucket, str(disordered), status=1).splitlines()[-1]
    assert said.startswith("Error: line 2: the keys are not in order")
    said = told(database, "export", bucket, "-o", "/nowhere/b.jsonl", status=1)
    assert "cannot be read or written" in said
    if database.kind == "partitioned":
        absent = told(database, "export", "absent", "-o", str(tmp_path / "a"), status=1)
        assert "absent" in absent
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b.gz", "b.jsonl"]


def test_wrong_lines_are_named_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "_SHOWN", 2)
    monkeypatch.setattr(poky1, "_SHOWN", 2)
    shown, wrong = _Shown(), Wrong()
    for number in range(1, 5):
        shown(number, "why")
    assert capsys.readouterr().err == "line 1: why\nline 2: why\nand others\n"
    for name in ("b/k", "b/k", "b/l", "b/m"):
        wrong(name, "why")
    assert capsys.readouterr().err == "b/k: why\nb/l: why\n"
    assert wrong.names == {"b/k", "b/l", "b/m"}


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("", "", ""),
        ("ab", "", "a- b-"),
        ("", "ab", "-a -b"),
        ("acd", "bce", "a- -b cc d- -e"),
        ("abc", "abc", "aa bb cc"),
        ("c", "ab", "-a -b c-"),
    ],
)
def test_keys_of_two_sides_are_told_apart(theirs: str, ours: str, expected: str) -> None:
    merged = _merged(iter(theirs), iter(ours))
    assert " ".join((key if a else "-") + (key if b else "-") for key, a, b in merged) == expected


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_take_over_names_what_it_cannot_store_and_mirrors_only_if_told(
    empty_database: Database, own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(empty_database, FLAT)
    execute(
        empty_database,
        "INSERT INTO poky SELECT 'b', k, 'v' FROM unnest('{k1,k2,no key}'::text[]) AS k",
    )
    monkeypatch.setattr(poky1, "_KEYS", 2)
    take = ("import", "--from-poky1", empty_database.dsn_owner, "--quiet", "0.1")
    said = told(own_database, *take, status=1)
    assert "b/no key: " in said
    assert "1 rows could not be stored, and 0 keys are here that" in said
    execute(empty_database, "DELETE FROM poky WHERE key = 'no key'")
    with closing(Store(own_database.dsn_service)) as store:
        for number in range(5):
            store.put("b", f"more/{number}", b"v", "t")
        said = told(own_database, *take, status=1)
        assert "0 rows could not be stored, and 5 keys are here that" in said
        assert said.count(": not in the original\n") == 5
        assert len(store.list_page("b").entries) == 7
        said = told(own_database, *take, "--mirror")
        assert "deleted: 5 keys that the original does not have\n" in said
        assert said.count("once it has stood still for 0.1 s, this says so and ends.\n") == 1
        assert [each.key for each in store.list_page("b").entries] == ["k1", "k2"]
        assert "deleted" not in told(own_database, *take, "--mirror")


# Its parts.


def test_caches_are_told_of_ten_thousand_keys_at_most() -> None:
    told = Told()
    told.add("a", [])
    assert (told.keys, told.is_everything) == ({}, False)
    told.add("a", ["k"] * 9_000)
    told.add("b", ["l"] * 1_000)
    assert (len(told.keys["a"]), len(told.keys["b"]), told.is_everything) == (9_000, 1_000, False)
    told.add("a", ["k"])
    assert (told.keys, told.is_everything) == ({}, True)
    told.add("a", ["k"])
    assert told.keys == {}
    many = Told()
    many.add("a", None)
    assert (many.keys, many.is_everything) == ({}, True)


def given(key: str, value: bytes = b"v", modified_at: int | None = None) -> Exported:
    return Exported(key, value, "t", None, "0" * 8, modified_at=modified_at)


@pytest.mark.parametrize(
    ("rows", "size", "objects", "expected"),
    [
        # Of objects, which of them are stored together: limits, a key again, dates and none.
        (2, 10_000, [given("a"), given("b"), given("c")], [2, 1]),
        (9, 402, [given("a"), given("b"), given("c")], [2, 1]),
        (9, 403, [given("a"), given("b"), given("c")], [3]),
        (9, 10_000, [given("a"), given("b"), given("a")], [2, 1]),
        (9, 10_000, [given("a"), given("b", modified_at=1), given("c", modified_at=1)], [1, 2]),
    ],
)
def test_objects_are_stored_in_chunks(
    database: Database,
    bucket: str,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    size: int,
    objects: list[Exported],
    expected: list[int],
) -> None:
    monkeypatch.setattr(loading, "_CHUNK_ROWS", rows)
    monkeypatch.setattr(loading, "_CHUNK_BYTES", size)
    with Session(database.dsn_owner, "tests", as_owner=True) as session:
        loader = Loader(session, "replace")
        chunks: list[int] = []
        stored = loader._store_one
        monkeypatch.setattr(
            loader, "_store_one", lambda chunk: (chunks.append(len(chunk.keys)), stored(chunk))
        )
        for number, each in enumerate(objects, start=1):
            loader.add(bucket, each, number)
        loader.finish()
        assert chunks == expected
        assert loader.done == len(objects)
        assert loader.stored.inserted == len({each.key for each in objects})
        loader.finish()
        assert chunks == expected


def test_a_line_is_as_long_as_it_may_be(database: Database, bucket: str) -> None:
    """Each byte of a value may be an escape, and there is room for the rest."""
    limit = 1000 * 6 + 16_384
    text = b'{"key": "k", "data": "' + b"\\u0061" * 1000 + b'"}'
    for length, numbers in ((limit - 1, []), (limit, [1])):
        content = text.ljust(length) + b"\n" + line(key="next", data="")
        read, _, wrong = imported(database, bucket, content)
        assert ([number for number, _ in wrong], read.lines) == (numbers, 2)


def test_progress_is_told_by_the_thousand(database: Database, bucket: str) -> None:
    told: list[int] = []
    content = b"".join(line(key=f"k{number}", data="") for number in range(2001))
    imported(database, bucket, content, report=told.append)
    assert told == [1000, 2000, 2001]


def test_a_file_says_that_it_is_whole() -> None:
    def read(*parts: bytes) -> list[str]:
        file = io.BufferedReader(io.BytesIO(b"".join(parts)))  # type: ignore[arg-type]
        return [each.key for each in exported_objects(file, 1000)]

    head = b'{"poky_export":1,"bucket":"b","release":"r","exported_at":0}\n'
    end = b'{"end":true,"objects":2,"cursor":null}\n'
    one, two = line(key="a", data=""), line(key="b", data="")
    assert read(head, one, b"\n", two, end) == ["a", "b"]
    assert read(one, two) == ["a", "b"]
    assert read() == []
    for parts in ((head, one), (head, end, head)):
        with pytest.raises(BadLine, match="it was cut off"):
            read(*parts)
    with pytest.raises(BadLine, match="line 3: the keys are not in order"):
        read(head, one, one, end)
    with pytest.raises(BadLine, match="line 2: "):
        read(head, b"{\n")


def test_a_mark_is_told_from_an_object() -> None:
    assert read_mark(line(key="a", data="")) is None
    with pytest.raises(BadLine, match="the file has form 2, and this release reads 1"):
        read_mark(b'{"poky_export":2,"bucket":"b","release":"r","exported_at":0}')
    for wrong in (b'{"poky_export":1}', b'{"end":true}', b'{"end":true,"objects":"x"}'):
        with pytest.raises(BadLine):
            read_mark(wrong)
    found = read_line(line(key="a", data_base64="/w==", modified_at=0, expires_at=253402300799), 1)
    assert (found.value, found.content_type) == (b"\xff", "application/octet-stream")
    assert (found.modified_at, found.expires_at, found.created_at) == (0, 253402300799, None)
    with pytest.raises(BadLine, match="whole seconds since 1970"):
        read_line(line(key="a", data="", created_at=253402300800), 1)
    with pytest.raises(BadLine, match="at most 1 bytes"):
        read_line(line(key="a", data="xx"), 1)


def test_rows_are_streamed_a_bounded_number_ahead() -> None:
    taken: list[int] = []

    def read(take: Callable[[int], object]) -> None:
        for number in range(100_000):
            taken.append(number)
            take(number)

    before = threading.active_count()
    rows = streamed(read)
    assert [next(rows) for _ in range(3)] == [0, 1, 2]
    wait_until(lambda: len(taken) >= 16 * 500)
    assert len(taken) <= 18 * 500
    rows.close()
    wait_until(lambda: threading.active_count() == before)
    assert len(taken) <= 18 * 500
    large = streamed(lambda take: [take(number) for number in range(3)], lambda row: row == 1)
    assert list(large) == [0, 1, 2]

    def fail(take: Callable[[int], object]) -> None:
        take(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(streamed(fail))
    assert list(streamed(lambda take: None)) == []


def test_a_session_has_no_limits_of_requests(database: Database) -> None:
    with Session(database.dsn_service, "some name") as session:
        for name, expected in {
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            "application_name": "some name",
            "client_encoding": "UTF8",
            "transaction_isolation": "read committed",
        }.items():
            assert session.run(f"SHOW {name}") == [(expected,)], name
        session.begin_snapshot()
        assert session.run("SHOW transaction_isolation") == [("repeatable read",)]
        assert session.run("SHOW transaction_read_only") == [("on",)]
        session.end()
        assert session.run("SELECT %s::int + 1", (1,)) == [(2,)]
        with pytest.raises(StoreError):
            session.run("SELECT no_such_column")
        session.end()
        assert session.run("SELECT current_user") == [("poky_service",)]
    assert session.connection.closed
    with Session(database.dsn_owner, "tests", as_owner=True) as session:
        assert session.run("SELECT current_user") == [("poky_owner",)]
    with pytest.raises(StoreError, match="Cannot connect to the database: ") as failed:
        Session("host=/nowhere", "tests")
    assert (failed.value.status, failed.value.code) == (503, "database_unavailable")
