"""What the commands do where something else goes on: caches, terminals, outages, conversions."""

from __future__ import annotations

import importlib
import json
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from poky.cli import poky1, served
from poky.cli.declared import apply_tokens
from poky.store import ChangesPage, Store, StoreError
from tests.conftest import Cluster, Database
from tests.fake_cache import FakeCache
from tests.test_cli import failure, told
from tests.test_process import poky
from tests.test_transfer import FLAT, execute, line

# Caches


@contextmanager
def cached(database: Database, bucket: str, *keys: str) -> Iterator[tuple[Store, FakeCache]]:
    """A bucket with these keys, and a cache that takes part."""
    with closing(Store(database.dsn_service)) as store, FakeCache("n") as cache:
        store.ensure_bucket(bucket)
        for key in keys:
            store.put(bucket, key, b"v", "t")
        store.register_node("n", cache.url)
        store.reinstate_node("n", store.nodes()[0].generation)
        yield store, cache


def test_clearing_a_bucket_tells_caches_of_each_key_and_confirms(own_database: Database) -> None:
    with cached(own_database, "b", "a/1", "a/2", "c") as (store, cache):
        said = told(own_database, "bucket", "clear", "b", "--prefix", "a/", "--confirm", "a/")
        assert said == "b: 2 deleted\n"
        assert sorted(cache.told) == ["/kv/b/a/1", "/kv/b/a/2"]
        assert store.unconfirmed(0, 9) == []
        cache.told.clear()
        assert told(own_database, "bucket", "clear", "b", "--confirm", "b") == "b: 1 deleted\n"
        assert cache.told == ["/kv/b/c"]


def test_dropping_a_bucket_has_caches_forget_everything_and_confirms(
    own_database: Database,
) -> None:
    with cached(own_database, "b", "k") as (store, _):
        generation = store.nodes()[0].generation
        assert told(own_database, "bucket", "drop", "b", "--keys") == "b: dropped\n"
        assert store.nodes()[0].generation != generation
        assert store.unconfirmed(0, 9) == []
        generation = store.nodes()[0].generation
        store.ensure_bucket("empty")
        if own_database.kind == "partitioned":  # of which caches can know nothing
            assert told(own_database, "bucket", "drop", "empty") == "empty: dropped\n"
            assert store.nodes()[0].generation == generation


def test_a_declaration_of_tokens_is_confirmed(own_database: Database) -> None:
    wanted = {"name": "app", "id": "a" * 12, "hash": "0" * 64, "grants": ["read:b"]}
    absent = {"name": "app", "state": "absent"}
    with cached(own_database, "b") as (store, _), closing(Store(own_database.dsn_owner)) as owner:
        for declared in (wanted, wanted | {"grants": ["write:b"]}, absent):
            given = json.dumps([declared]).encode()
            done = apply_tokens(owner, given, check=False)
            assert len(done.outbox_ids) == 1
            assert isinstance(done.outbox_ids[0], int)
            store.confirm(done.outbox_ids)
            again = apply_tokens(owner, given, check=False)
            assert (again.changes, again.outbox_ids) == ({}, [])
        assert waiting(own_database) == 0
        another = json.dumps([wanted | {"id": "b" * 12}])
        assert told(own_database, "token", "apply", given=another) == "app: created\n"
        assert waiting(own_database) == 0


def waiting(database: Database) -> int:
    """How many changes wait until caches know of them."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM poky._outbox")
        (count,) = cursor.fetchone() or (-1,)
        return int(count)


# Terminals


def on_a_terminal(database: Database, *words: str) -> tuple[int, str]:
    """The exit status of a command whose output is a terminal, and what a person reads there."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "poky", *words],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("POKY_")},
            "POKY_DSN": database.dsn_service,
            "POKY_OWNER_DSN": database.dsn_owner,
            "TERM": "xterm",
            "COLUMNS": "100",
        },
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # the other end is closed: Linux says EIO
        pass
    finally:
        os.close(ours)
    return process.wait(60), said.decode()


def test_compressed_output_is_not_for_a_terminal(database: Database, bucket: str) -> None:
    status, said = on_a_terminal(database, "export", bucket, "--compress", "gzip")
    assert status == 2
    assert "not for a terminal: name a file with -o" in said
    status, said = on_a_terminal(database, "export", bucket)
    assert status == 0
    assert '{"poky_export"' in said


def test_a_migration_has_a_bar_on_a_terminal(empty_database: Database) -> None:
    status, said = on_a_terminal(empty_database, "migrate")
    assert status == 0, said
    assert "━" in said
    assert "applied: " in said


# Outages


def test_a_follower_outlives_an_outage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = importlib.import_module("poky.cli.changes")  # the package has the command so named
    answers: list[Any] = []

    class Away:
        def changes(self, *_: object) -> ChangesPage:
            answer = answers.pop(0)
            if isinstance(answer, StoreError):
                raise answer
            return answer  # type: ignore[no-any-return]

    monkeypatch.setattr(changes, "_RETRY_SECONDS", 0.01)
    away = StoreError(503, "It is away.", code="database_unavailable")
    page = ChangesPage([], "1-1", True, "")
    answers += [away, away, page]
    store: Any = Away()
    assert changes._read(store, "b", "", "", follow=True) is page
    assert capsys.readouterr().err == "It is away.\n" * 2
    answers += [away]
    with pytest.raises(StoreError, match="It is away"):
        changes._read(store, "b", "", "", follow=False)
    answers += [StoreError(404, "There is none.", code="bucket_not_found")]
    with pytest.raises(StoreError, match="There is none"):
        changes._read(store, "b", "", "", follow=True)


def test_an_embedded_database_that_cannot_be_made_says_what_else_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = poky("bucket", "list", "--json", env={"POKY_HOME": str(tmp_path / "file")})
    assert failure(said) == (1, "embedded_failed")
    assert "Or name a database: POKY_DSN, or -d." in said.stderr


def test_a_note_that_was_removed_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    real = served.fcntl.flock
    removed: list[Path] = []

    def flock(descriptor: int, how: int) -> None:
        if not removed:
            removed.extend(served._folder().iterdir())
            removed[0].unlink()
        real(descriptor, how)

    monkeypatch.setattr(served.fcntl, "flock", flock)
    before = len(os.listdir("/proc/self/fd"))
    descriptor = served._lock(tmp_path)
    assert removed == [*served._folder().iterdir()]
    os.close(descriptor)
    assert len(os.listdir("/proc/self/fd")) == before


# Conversions and the original


@pytest.mark.parametrize("kind", ["flat"])
def test_a_conversion_is_told_before_and_after(own_database: Database) -> None:
    to = ("migrate", "--schema", "partitioned")
    assert told(own_database, *to, "--plan") == "The flat schema would become a partitioned one.\n"
    said = told(own_database, *to)
    assert said == "The flat schema has become a partitioned one.\n"
    nothing = "nothing: the schema is up to date\n"
    assert told(own_database, *to, "--plan") == f"to apply: {nothing}"
    assert told(own_database, *to) == f"applied: {nothing}"


@pytest.mark.parametrize("kind", ["partitioned"])
def test_what_changes_while_it_is_copied_is_told(
    empty_database: Database, own_database: Database
) -> None:
    execute(empty_database, FLAT)
    execute(
        empty_database,
        "INSERT INTO poky (bucket, key, data) VALUES ('b', 'k', 'v')",
    )
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set() and number < 500:
            number += 1
            execute(
                empty_database,
                f"INSERT INTO poky (bucket, key, data) VALUES ('b', 'k{number}', 'v')",
            )
            stop.wait(0.02)

    writer = threading.Thread(target=write)
    writer.start()
    timer = threading.Timer(1.5, stop.set)
    timer.start()
    try:
        take = ("import", "--from-poky1", empty_database.dsn_owner, "--quiet", "0.8")
        said = told(own_database, *take)
    finally:
        stop.set()
        writer.join()
    assert "caught up with " in said


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_bucket_whose_name_is_none_here_is_named_with_its_rows(
    empty_database: Database, own_database: Database
) -> None:
    execute(empty_database, FLAT)
    execute(
        empty_database,
        "INSERT INTO poky (bucket, key, data) VALUES ('b', 'k', 'v'), ('no name', 'k', 'v')",
    )
    take = ("import", "--from-poky1", empty_database.dsn_owner, "--quiet", "0.1")
    said = told(own_database, *take, status=1)
    assert "no name/k: " in said
    assert "1 rows could not be stored, and 0 keys are here" in said
    with closing(Store(own_database.dsn_service)) as store:
        assert [each.name for each in store.buckets()] == ["b"]


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_take_over_ends_where_the_original_is_still_written_to(
    empty_database: Database, own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(empty_database, FLAT)
    execute(empty_database, "INSERT INTO poky (bucket, key, data) VALUES ('b', 'k', 'v')")
    with closing(Store(own_database.dsn_service)) as store:
        store.ensure_bucket("b")
    monkeypatch.setattr(poky1, "_follow", lambda *_, **__: None)  # the row came after it
    said = told(own_database, "import", "--from-poky1", empty_database.dsn_owner, status=1)
    assert "b/k is not here: the original is still written to. Do it again." in said


def test_the_original_comes_into_one_database(empty_database: Database, cluster: Cluster) -> None:
    sharded = cluster.create_sharded(2)
    execute(empty_database, FLAT)
    shards = {"POKY_SHARDS": f"1={sharded.others[0].dsn_service}"}
    said = told(sharded, "import", "--from-poky1", empty_database.dsn_owner, status=1, **shards)
    assert "name control's with -d" in said
    cluster.drop(sharded)


def test_what_is_imported_where_dates_decide_needs_them(
    database: Database, bucket: str, tmp_path: Path
) -> None:
    file = tmp_path / "b.jsonl"
    file.write_bytes(line(key="k", data="v"))
    newer = ("import", bucket, str(file), "--on-conflict", "newer")
    said = told(database, *newer, status=1)
    assert "line 1: there is no modified_at, by which it could be newer" in said
    assert told(database, "import", bucket, str(file)).startswith(f"{bucket}: 1 objects inserted")


def test_a_dsn_that_is_none_is_one_sentence(database: Database) -> None:
    said = told(database, "verify", "b", "--with", "x=1", status=1)
    assert "Error: The DSN is not one that PostgreSQL understands." in said
