"""The SQL interface, called as the service role: privileges, comments, order, races."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from poky.store import Store, StoreError
from tests.conftest import Database

INTERFACE = "n.nspname = 'poky' AND p.proname NOT LIKE '\\_%'"


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    store = Store(database.dsn_service, pool_size=16)
    yield store
    store.close()


def query(database: Database, statement: str, *, as_service: bool = False) -> list[Any]:
    connection = database.connect(as_service=as_service)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


def test_every_function_table_and_type_has_a_comment(database: Database) -> None:
    assert (
        query(
            database,
            """
            SELECT p.oid::regprocedure::text FROM pg_proc AS p
            WHERE p.pronamespace = 'poky'::regnamespace
            AND obj_description(p.oid, 'pg_proc') IS NULL
            UNION ALL
            SELECT c.oid::regclass::text FROM pg_class AS c
            WHERE c.relnamespace = 'poky'::regnamespace AND c.relkind IN ('r', 'p', 'c', 'S')
            AND c.relname NOT LIKE '\\_o\\_%' AND c.relname !~ '_seq$'
            AND obj_description(c.oid, 'pg_class') IS NULL
            AND NOT EXISTS (SELECT FROM pg_type AS t WHERE t.typrelid = c.oid
                            AND obj_description(t.oid, 'pg_type') IS NOT NULL)
            """,
        )
        == []
    )


def test_every_function_runs_as_its_owner_with_a_fixed_search_path(database: Database) -> None:
    functions = query(
        database,
        f"""
        SELECT p.proname, p.prosecdef, pg_get_userbyid(p.proowner), p.proconfig
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE {INTERFACE}
        """,
    )
    assert len(functions) >= 11
    for name, definer, owner, settings in functions:
        assert definer, name
        assert owner == "poky_owner"
        assert "search_path=poky, pg_temp" in settings, name


def test_the_service_may_call_the_interface_and_nothing_else(database: Database) -> None:
    for name, private, allowed in query(
        database,
        """
        SELECT p.proname, p.proname LIKE '\\_%',
            has_function_privilege('poky_service', p.oid, 'EXECUTE')
        FROM pg_proc AS p WHERE p.pronamespace = 'poky'::regnamespace
        """,
    ):
        assert allowed is not private, name
    for (relation,) in query(
        database,
        """
        SELECT c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace = 'poky'::regnamespace AND c.relkind IN ('r', 'p')
        AND (has_table_privilege('poky_service', c.oid, 'SELECT, INSERT, UPDATE, DELETE')
             OR has_table_privilege('poky_reader', c.oid, 'SELECT, INSERT, UPDATE, DELETE'))
        """,
    ):
        pytest.fail(f"a role may touch {relation}")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM poky._object",
        "SELECT * FROM poky.bucket",
        "DELETE FROM poky.migration",
        "SELECT nextval('poky.revision')",
        "CREATE TABLE poky.mine (x integer)",
        "DROP FUNCTION poky.get",
        "SELECT poky._is_flat()",
    ],
)
def test_the_service_is_refused_tables_and_ddl(database: Database, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        query(database, statement, as_service=True)


def test_the_store_has_a_method_of_the_same_name_for_every_function(database: Database) -> None:
    named = {
        name
        for (name,) in query(
            database,
            "SELECT DISTINCT p.proname FROM pg_proc AS p JOIN pg_namespace AS n"
            f" ON n.oid = p.pronamespace WHERE {INTERFACE} AND p.proname !~ '^get_[0-9]+$'",
        )
    }
    called = set(re.findall(r"poky\.([a-z_]+)\(", _source("store")))
    assert named == called
    methods = {name for name in vars(Store) if not name.startswith("_")}
    for name in named - {"status"}:  # Store.migrations
        assert name in methods


def _source(module: str) -> str:
    import importlib
    import inspect

    return inspect.getsource(importlib.import_module(f"poky.{module}"))


# Order per key.


@pytest.mark.slow
def test_revisions_grow_in_the_order_of_changes(store: Store, bucket: str) -> None:
    """Also across delete and re-create, where a number drawn early could land late.

    Whoever holds the key's state writes down what it saw; PostgreSQL decided the order.
    """
    store.ensure_bucket(bucket)
    seen: list[int] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def write(number: int) -> None:
        try:
            for turn in range(250):
                if number >= 4:
                    store.delete(bucket, "key")
                elif number == 3:
                    store.put(bucket, "key", b"created", "t", None, None, "*")
                else:
                    store.put(bucket, "key", b"%d" % turn, "t")
        except BaseException as error:
            failures.append(error)

    def watch() -> None:
        try:
            while not stop.is_set():
                found = store.get(bucket, "key")
                if found:
                    seen.append(found.revision)
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    watcher = threading.Thread(target=watch)
    watcher.start()
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(90)
    stop.set()
    watcher.join(10)
    assert not failures, failures
    assert len(set(seen)) > 50
    assert seen == sorted(seen)


def test_an_insert_that_was_overtaken_draws_anew(database: Database, bucket: str) -> None:
    """A holds the first number, then B inserts, C deletes, and only then A's insert lands."""
    a, b = database.connect(), database.connect()
    for connection in (a, b):
        connection.autocommit = True
    with a.cursor() as slow, b.cursor() as fast:
        # B's uncommitted insert makes A wait with its number already drawn.
        fast.execute("BEGIN")
        fast.execute("SELECT (poky.put(%s, 'k', 'b', 't')).revision", [bucket])
        landed: list[int] = []

        def insert() -> None:
            slow.execute("SELECT (poky.put(%s, 'k', 'a', 't')).revision", [bucket])
            landed.append(slow.fetchone()[0])

        waiting = threading.Thread(target=insert)
        waiting.start()
        watcher = database.connect()
        watcher.autocommit = True
        with watcher.cursor() as cursor:
            for _ in range(2000):
                cursor.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
                    " AND wait_event_type = 'Lock'",
                    [a.get_backend_pid()],
                )
                if cursor.fetchone()[0]:
                    break
            else:
                pytest.fail("the second insert does not wait for the first")
        watcher.close()
        fast.execute("SELECT (poky.put(%s, 'k', 'b2', 't')).revision", [bucket])
        latest = fast.fetchone()[0]
        fast.execute("SELECT poky.delete(%s, 'k')", [bucket])
        fast.execute("COMMIT")
        waiting.join(20)
        assert landed
        assert landed[0] > latest
    a.close()
    b.close()


# Buckets.


def test_buckets_made_at_once_are_made_once(store: Store, bucket_names: Callable[[], str]) -> None:
    long = bucket_names() + "-" + "n" * 190
    names = [long + "a", long + "b"]
    created: list[str] = []
    failures: list[BaseException] = []

    def create(number: int) -> None:
        try:
            name = names[number % 2]
            if store.ensure_bucket(name):
                created.append(name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures
    assert sorted(created) == names
    for name in names:
        store.put(name, "k", name.encode(), "t")
    for name in names:
        found = store.get(name, "k")
        assert found
        assert found.value == name.encode()
        store.drop_bucket(name, keys=True)


def test_a_bucket_dropped_under_writers_loses_nobody(
    store: Store, bucket_names: Callable[[], str], kind: str
) -> None:
    """Writers see the bucket, or a refusal with 404, or a new bucket; never an error."""
    name = bucket_names()
    store.ensure_bucket(name)
    stop = threading.Event()
    statuses: set[int] = set()
    failures: list[BaseException] = []

    def write(number: int) -> None:
        while not stop.is_set():
            try:
                store.put(name, f"k{number}", b"v", "t")
                store.get(name, f"k{number}")
                store.delete(name, f"k{number}", "*")
            except StoreError as error:
                statuses.add(error.status)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            store.drop_bucket(name, keys=True)
            store.ensure_bucket(name)
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not failures, failures
    assert statuses <= ({404} if kind == "partitioned" else set())


def test_names_are_checked_by_the_database_too(store: Store, bucket: str) -> None:
    for bad_bucket, key in (("a b", "k"), ("", "k"), (bucket, ""), (bucket, "a/b"), (bucket, "..")):
        with pytest.raises(StoreError) as refused:
            store.put(bad_bucket, key, b"", "t")
        assert refused.value.status == 400


def test_large_values_are_compressed_with_lz4_where_there_is_lz4(database: Database) -> None:
    (has_lz4,) = query(
        database,
        "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'",
    )[0]
    (compression,) = query(
        database,
        "SELECT attcompression::text FROM pg_attribute WHERE attname = 'value'"
        " AND attrelid = 'poky._object'::regclass",
    )[0]
    assert (compression == "l") is has_lz4


def test_reads_of_a_bucket_survive_its_drop_and_its_return(database: Database) -> None:
    """Each bucket has a poky.get of its own, which a connection may know longer than it lives."""
    from contextlib import closing

    from poky.store import StoreError

    owner = Store(database.dsn_owner)
    with closing(owner), closing(Store(database.dsn_service)) as store:
        for value in (b"1", b"2", b"3"):
            owner.ensure_bucket("returning")
            assert store.get("returning", "k") is None
            store.put("returning", "k", value, "text/plain")
            found = store.get("returning", "k")
            assert found is not None
            assert found.value == value
            named = query(database, "SELECT proname FROM pg_proc WHERE proname ~ '^get_[0-9]+$'")
            assert (store.reader("returning") in {name for (name,) in named}) is (
                database.kind == "partitioned"
            )
            owner.drop_bucket("returning", keys=True)
            if database.kind == "partitioned":
                with pytest.raises(StoreError) as refused:
                    store.get("returning", "k")
                assert refused.value.status == 404
            else:
                assert store.get("returning", "k") is None
    left = "SELECT proname FROM pg_proc WHERE proname ~ '^get_[0-9]+$'"
    buckets = "SELECT 'get_' || id FROM poky.bucket"
    assert query(database, f"{left} EXCEPT {buckets}") == []
