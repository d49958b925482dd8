"""The SQL interface, called as the service role: privileges, comments, order, races."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

import poky.store
from poky.api.names import check_key
from poky.schema.migrate import migrate
from poky.schema.owner import _ADVISORY_LOCK, OwnerConnection
from poky.store import Store, StoreError
from poky.store.statements import FUNCTIONS
from tests.conftest import ADMINISTRATION, Cluster, Database
from tests.service import wait_until

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
            WHERE p.pronamespace = 'poky'::regnamespace AND p.proname !~ '_[0-9]+$'
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
        assert allowed is not (private or name in ADMINISTRATION), name
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


def test_security_tells_of_every_function_that_a_stolen_password_calls(database: Database) -> None:
    text = (Path(__file__).parent.parent / "docs/security.md").read_text()
    section = text.partition("## What a stolen database password can do")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {
        "get_n",
        "update_n",
        "delete_n",
    }
    callable_ = {
        name
        for (name,) in query(
            database,
            "SELECT DISTINCT p.proname FROM pg_proc AS p"
            " WHERE p.pronamespace = 'poky'::regnamespace AND p.proname !~ '_[0-9]+$'"
            " AND has_function_privilege('poky_service', p.oid, 'EXECUTE')",
        )
    }
    assert sorted(told ^ callable_) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:6091",
        "http://10.1.2.3:6091/",
        "http://172.31.0.1",
        "http://192.168.1.1:1",
        "http://100.64.0.1:1",
        "http://[::1]:6091",
        "http://[fd00::7]:6091",
        "http://localhost:6091",
        "http://cache-1.rack.internal:6091",
    ],
)
def test_a_cache_is_registered_within_private_networks(store: Store, url: str) -> None:
    assert store.register_node("private", url)
    forget(store, "private")


def forget(store: Store, name: str) -> None:
    node = store.suspend_node(name)
    assert node
    store.drain_node(name, node.generation)
    assert store.remove_node(name)


@pytest.mark.parametrize(
    "url",
    [
        *("https://127.0.0.1:6091", "ftp://127.0.0.1", "127.0.0.1:6091", "", None, "http://"),
        *(
            "http://8.8.8.8:6091",
            "http://172.32.0.1:1",
            "http://169.254.169.254/",
            "http://0.0.0.0",
        ),
        *("http://[2001:db8::1]:80", "http://[::ffff:8.8.8.8]", "http://[::ffff:808:808]"),
        *(
            "http://134744072",
            "http://0x8080808",
            "http://010.8.8.8",
            "http://8.8",
            "http://127.1.8",
        ),
        *(
            "http://cache.example.com",
            "http://internal.example",
            "http://u@127.0.0.1",
            "http://a.b",
        ),
        *("http://127.0.0.1@8.8.8.8", "http://127.0.0.1:1/path", "http://127.0.0.1:1\n.example"),
        *(
            "http://127.0.0.1.example.com",
            "http://10.0.0.0/8",
            "http://10.0.0.1\n",
            "HTTP://8.8.8.8",
        ),
    ],
)
def test_a_stolen_password_sends_keys_nowhere_else(
    store: Store, database: Database, url: str | None
) -> None:
    with pytest.raises(StoreError) as refused:
        store.register_node("elsewhere", url)  # type: ignore[arg-type]
    assert (refused.value.status, refused.value.code) == (400, "bad_cache_url")


def test_the_owner_registers_a_cache_anywhere(store: Store, database: Database) -> None:
    with closing(Store(database.dsn_owner, pool_size=1)) as owner:
        assert owner.register_node("far", "http://203.0.113.7:6091")
    assert not store.register_node("far", "http://203.0.113.7:6091")  # it is known already
    forget(store, "far")


@pytest.mark.parametrize("seconds", [300.1, 1e9, float("inf"), float("nan"), -1.0, None])
def test_no_lease_is_without_end(store: Store, seconds: float | None) -> None:
    with pytest.raises(StoreError) as refused:
        store.lease("any", seconds)  # type: ignore[arg-type]
    assert (refused.value.status, refused.value.code) == (400, "bad_lease")


@pytest.mark.slow
def test_the_service_cannot_keep_a_migration_from_its_lock(own_database: Database) -> None:
    with closing(own_database.connect(as_service=True)) as thief, thief.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (_ADVISORY_LOCK,))
        with OwnerConnection(own_database.dsn_owner) as first:
            first.keep_others_out()
            waits = threading.Event()
            is_in = threading.Event()

            def migrate_too() -> None:
                with OwnerConnection(own_database.dsn_owner, lambda _: waits.set()) as second:
                    second.keep_others_out()
                    is_in.set()

            other = threading.Thread(target=migrate_too)
            other.start()
            assert waits.wait(10)
            assert not is_in.is_set()
        assert is_in.wait(10)
        other.join()
        assert migrate(own_database.dsn_owner, release="again").applied == []


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
            f" ON n.oid = p.pronamespace WHERE {INTERFACE} AND p.proname !~ '_[0-9]+$'",
        )
    }
    sources = Path(str(poky.store.__file__)).parent.glob("*.py")
    called = {
        name for file in sources for name in re.findall(r"poky\.([a-z_]+)\(", file.read_text())
    }
    # Release 0.1.0 calls them, or poky.transfer, or poky.schema.moving.
    elsewhere = {"reader", "writer", "list", "export", "import_staged", "moving"}
    prepared = {function.function or name for name, function in FUNCTIONS.items()}
    assert named - elsewhere - {"get"} == called | prepared
    methods = {name for name in dir(Store) if not name.startswith("_")}
    for name in named - elsewhere - {"status", "require_policy"}:  # Store.migrations, the pool's
        assert name in methods


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
    deadline = time.monotonic() + 60

    def write(number: int) -> None:
        try:
            for turn in itertools.count():
                if turn >= 250 and (len(set(seen)) > 50 or time.monotonic() > deadline):
                    return
                if number >= 4:
                    store.delete(bucket, "key")
                elif number == 3:
                    store.put(bucket, "key", b"created", "t", None, None, "*")
                elif number == 2:
                    store.put(bucket, "key", b"changed", "t", None, "*")
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
    put = f"poky.put('{bucket}', 'k', %s, 't')"
    a, b = database.connect(), database.connect()
    for connection in (a, b):
        connection.autocommit = True
    with a.cursor() as slow, b.cursor() as fast:
        # B's uncommitted insert makes A wait with its number already drawn.
        fast.execute("BEGIN")
        fast.execute(f"SELECT revision FROM {put}", ["b"])
        landed: list[int] = []

        def insert() -> None:
            slow.execute(f"SELECT revision FROM {put}", ["a"])
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
        fast.execute(f"SELECT revision FROM {put}", ["b2"])
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
        assert bytes(found.value) == name.encode()
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
    for bad_bucket, key in (
        ("a b", "k"),
        ("", "k"),
        (".", "k"),
        ("..", "k"),
        (bucket, ""),
        (bucket, "a//b"),
        (bucket, "/a"),
        (bucket, "a/"),
        (bucket, "a/./b"),
        (bucket, "a/.."),
        (bucket, ".."),
        (bucket, "a/" * 512 + "a"),
    ):
        with pytest.raises(StoreError) as refused:
            store.put(bad_bucket, key, b"", "t")
        assert refused.value.status == 400


def test_the_database_and_the_service_agree_on_what_is_a_key(database: Database) -> None:
    """Tried on all that four of these make, and around the greatest length."""
    alphabet = ["", "a", ".", "..", "...", "/", "//", "+", "~", "*", "%", " ", "\n", "é"]
    texts = {"".join(parts) for parts in itertools.product(alphabet, repeat=4)}
    texts |= {"a" * 1024, "a" * 1025, "a/" * 511 + "ab", "a/" * 512, "a/" * 512 + "a"}
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT k FROM unnest(%s) AS k WHERE poky._is_key(k)", [sorted(texts)])
        found = {key for (key,) in cursor.fetchall()}
    assert found == {text for text in texts if _is_key(text)}


def _is_key(text: str) -> bool:
    try:
        return check_key(text) == text
    except ValueError:
        return False


@pytest.mark.parametrize("name", [".", ".."])
def test_a_bucket_of_0_1_0_with_a_name_that_is_refused_now_can_be_dropped(
    database: Database, store: Store, name: str
) -> None:
    with pytest.raises(StoreError) as refused:
        store.ensure_bucket(name)
    assert (refused.value.status, "but not . or .." in refused.value.detail) == (400, True)
    query(database, f"INSERT INTO poky.bucket (name) VALUES ('{name}') RETURNING 1")
    if database.kind == "partitioned":
        query(
            database,
            "SET ROLE poky_owner; UPDATE poky.bucket SET leaf = poky._create_leaf(id, '_object')"
            f" WHERE name = '{name}' RETURNING 1",
        )
    assert store.put(name, "k", b"", "t").outcome == "inserted"
    store.drop_bucket(name, keys=True)
    assert name not in {bucket.name for bucket in store.buckets()}


def test_batches_that_delete_objects_dated_ahead_do_not_deadlock(
    database: Database, bucket: str
) -> None:
    """The bucket's row, which keeps their dates, is the last that a batch locks."""
    store = Store(database.dsn_service, pool_size=16, lock_timeout=15, statement_timeout=20)
    keys = [f"k{number:02}" for number in range(40)]
    tomorrow = int(time.time()) + 86400
    failures: list[BaseException] = []

    def work(number: int) -> None:
        mine = keys[number::2] if number % 2 else keys[: 20 + number * 3]
        nothing = [None] * len(mine)
        try:
            for turn in range(12):
                if number < 4:
                    dates = [tomorrow + turn] * len(mine)
                    store.put_many(
                        bucket, mine, [b"v"] * len(mine), ["t"] * len(mine), dates, nothing,
                        nothing, False,
                    )  # fmt: skip
                else:
                    store.delete_many(bucket, mine, nothing, nothing, nothing, number == 5)
        except BaseException as error:
            failures.append(error)

    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    store.close()
    assert not failures, failures
    query(database, "SELECT pg_stat_force_next_flush()")
    assert query(database, deadlocks) == [(0,)]


def test_a_date_ahead_is_kept_once(database: Database, bucket: str) -> None:
    tomorrow = int(time.time()) + 86400
    row = f"SELECT unsettled_until, xmin::text FROM poky.bucket WHERE name = '{bucket}'"
    with closing(Store(database.dsn_service)) as store:
        rows = []
        for date in (tomorrow, tomorrow, tomorrow - 60, tomorrow + 60):
            store.put(bucket, "k", b"", "t", date)
            store.delete(bucket, "k")
            rows += query(database, row)
        store.put(bucket, "k", b"", "t", tomorrow + 120)
        store.delete_many(bucket, ["k"], [None], [None], [None], False)
        rows += query(database, row)
    assert [date - tomorrow for date, _ in rows] == [0, 0, 0, 60, 120]
    assert len({xmin for _, xmin in rows[:3]}) == 1


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


# A bucket's own functions, which a connection may know longer than they live.

VERBS = ("get", "update", "delete")
OWN = "SELECT proname FROM pg_proc WHERE proname ~ '^[a-z]+_[0-9]+$'"


def own_functions(database: Database) -> set[str]:
    return {name for (name,) in query(database, OWN)}


def functions_in_use(store: Store) -> set[str]:
    """What the store's idle connections have prepared."""
    return {f"{verb}_{number}" for each in store._idle for verb, number in each.bucket_functions}


def test_a_bucket_is_used_on_after_its_drop_and_its_return(database: Database) -> None:
    owner = Store(database.dsn_owner)
    is_flat = database.kind == "flat"
    with closing(owner), closing(Store(database.dsn_service)) as store:
        for value in (b"1", b"2", b"3"):
            owner.ensure_bucket("returning")
            assert store.get("returning", "k") is None
            assert store.put("returning", "k", value, "text/plain").outcome == "inserted"
            found = store.get("returning", "k")
            assert found is not None
            assert bytes(found.value) == value
            assert store.delete("returning", "other").outcome == "missing"
            assert store.delete("returning", "k").outcome == "deleted"
            store.put("returning", "k", value, "text/plain")
            number = store.function_number("returning")
            assert (number == 0) is is_flat
            assert {f"{verb}_{number}" for verb in VERBS} <= own_functions(database)
            owner.drop_bucket("returning", keys=True)
            if is_flat:
                assert store.get("returning", "k") is None
                continue
            for use in (
                lambda: store.get("returning", "k"),
                lambda: store.put("returning", "k", b"", "t"),
                lambda: store.delete("returning", "k"),
            ):
                with pytest.raises(StoreError) as refused:
                    use()
                assert (refused.value.status, refused.value.unknown) == (404, False)
    assert query(database, "SELECT poky._outdated_functions()") == []


def test_a_bucket_that_returned_meanwhile_is_written_to(database: Database) -> None:
    owner = Store(database.dsn_owner)
    with closing(owner), closing(Store(database.dsn_service)) as store:
        for _ in range(2):
            owner.ensure_bucket("back")
            assert store.put("back", "k", b"", "t").outcome == "inserted"
            assert store.put("back", "k", b"", "t", None, "*").outcome == "updated"
            assert store.delete("back", "k").outcome == "deleted"
            store.put("back", "k", b"", "t")
            owner.drop_bucket("back", keys=True)


def test_a_bucket_that_returned_is_soon_read_by_its_new_function(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poky.store.bucket_functions._PAUSE_SECONDS", 0.0)
    owner = Store(database.dsn_owner)
    with closing(owner), closing(Store(database.dsn_service)) as store:
        for _ in range(2):
            owner.ensure_bucket("renewed")
            for _ in range(2):  # the first finds that the former function is gone
                assert store.get("renewed", "k") is None
            assert f"get_{store.function_number('renewed')}" in functions_in_use(store)
            owner.drop_bucket("renewed", keys=True)


def test_of_many_buckets_some_statements_are_kept(
    store: Store, bucket_names: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poky.store.bucket_functions._MOST_STATEMENTS", 3)
    names = [bucket_names() for _ in range(5)]
    for name in names:
        store.ensure_bucket(name)
        store.put(name, "k", b"", "t")
        assert store.get(name, "k")
        assert 0 < len(store._own) <= 3
    # Those that were forgotten are made again.
    assert all(store.get(name, "k") for name in names)
    assert 0 < len(store._own) <= 3


def test_requests_change_nothing_in_the_catalogue(database: Database, bucket: str) -> None:
    """A bucket has its functions before the first request; what the service asks works anywhere."""
    catalogue = "SELECT oid, xmin::text FROM pg_proc WHERE pronamespace = 'poky'::regnamespace"
    before = set(query(database, catalogue))
    with closing(Store(database.dsn_service, pool_size=1)) as store:
        for _ in range(2):
            store.put(bucket, "k", b"", "t")
            store.put(bucket, "k", b"", "t", None, "*")
            store.get(bucket, "k")
            store.delete(bucket, "k")
        number = store.function_number(bucket)
        assert functions_in_use(store) == {f"{verb}_{number}" for verb in VERBS}
    assert set(query(database, catalogue)) == before
    on_a_replica = f"SET transaction_read_only = on; SELECT poky.function_number('{bucket}')"
    assert query(database, on_a_replica, as_service=True) == [(number,)]


@pytest.mark.parametrize(
    "use",
    [
        lambda store, bucket: store.get(bucket, "k"),
        lambda store, bucket: store.put(bucket, "k", b"", "t", None, "*"),
        lambda store, bucket: store.delete(bucket, "k"),
    ],
    ids=VERBS,
)
def test_a_passing_error_leaves_no_bucket_on_the_slow_path(
    database: Database, bucket: str, use: Callable[[Store, str], object]
) -> None:
    with closing(Store(database.dsn_service, pool_size=1, lock_timeout=0.05)) as store:
        with closing(database.connect()) as migration, migration.cursor() as cursor:
            cursor.execute("LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreError) as refused:
                use(store, bucket)
            assert refused.value.status == 503
            migration.rollback()
        use(store, bucket)
        assert len(functions_in_use(store)) == 1
        # Nor does one that a function itself meets.
        with closing(database.connect()) as migration, migration.cursor() as cursor:
            cursor.execute("LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreError) as refused:
                use(store, bucket)
            assert refused.value.status == 503
            migration.rollback()
        idle = store._idle[0]
        query(database, f"SELECT pg_terminate_backend({idle.get_backend_pid()})")
        wait_until(idle.is_lost, what="the backend has ended")
        use(store, bucket)
        assert len(functions_in_use(store)) == 1


def test_a_bucket_without_its_functions_is_served_until_it_has_them(
    own_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(own_database, "SELECT poky.ensure_bucket('b')")
    number = query(own_database, "SELECT poky.function_number('b')")[0][0]
    query(own_database, f"SELECT poky._drop_functions({number})")
    monkeypatch.setattr("poky.store.bucket_functions._PAUSE_SECONDS", 0.2)
    with closing(Store(own_database.dsn_service, pool_size=1)) as store:
        for _ in range(2):
            assert store.put("b", "k", b"v", "t").outcome != "rejected"
            assert store.put("b", "k", b"v", "t", None, "*").outcome == "updated"
            assert store.get("b", "k") is not None
            assert store.delete("b", "k").outcome == "deleted"
        assert functions_in_use(store) == set()
        assert migrate(own_database.dsn_owner, release="tests").applied == []
        wait_until(lambda: store.get("b", "k") or functions_in_use(store))
        assert functions_in_use(store) == {f"get_{number}"}


def test_migrate_replaces_functions_whose_template_has_changed(own_database: Database) -> None:
    query(own_database, "SELECT poky.ensure_bucket('b'), poky.ensure_bucket('c')")
    number = query(own_database, "SELECT poky.function_number('b')")[0][0]
    source = f"SELECT prosrc FROM pg_proc WHERE proname = 'update_{number}'"
    ((before,),) = query(own_database, source)
    template = "SELECT pg_get_functiondef('poky._update_object()'::regprocedure)"
    changed = query(own_database, template)[0][0].replace("'updated'", "'changed'")
    # As 0.1.0 left them, too, and what a bucket left that is gone.
    old = "(text) RETURNS text LANGUAGE sql AS 'SELECT 1::text'"
    for name in (f"put_{number}", f"get_{number}", "get_99"):
        query(own_database, f"CREATE FUNCTION poky.{name}{old}; SELECT 1")
    query(own_database, f"{changed}; SELECT 1")
    assert migrate(own_database.dsn_owner, release="tests").applied == []
    assert query(own_database, source) == [(before.replace("'updated'", "'changed'"),)]
    numbers = {number, query(own_database, "SELECT poky.function_number('c')")[0][0]}
    assert sorted(name for (name,) in query(own_database, OWN)) == sorted(
        f"{verb}_{number}" for verb in VERBS for number in numbers
    )
    privileges = (
        "SELECT has_function_privilege('poky_service', oid, 'EXECUTE') FROM pg_proc"
        " WHERE pronamespace = 'poky'::regnamespace AND proname ~ '_[0-9]+$'"
    )
    assert set(query(own_database, privileges)) == {(True,)}


@pytest.mark.parametrize(
    "use",
    [
        lambda store, bucket: store.get(bucket, "k"),
        lambda store, bucket: store.put(bucket, "k", b"", "t"),
        lambda store, bucket: store.delete(bucket, "k"),
        lambda store, bucket: store.list_page(bucket),
    ],
    ids=["get", "put", "delete", "list"],
)
def test_who_waits_for_a_migration_is_not_in_its_way(
    database: Database, bucket: str, use: Callable[[Store, str], object]
) -> None:
    """A migration locks poky.bucket, and may then lock all tables without waiting (rule 4)."""
    with closing(Store(database.dsn_service, pool_size=1, lock_timeout=9)) as store:
        use(store, bucket)
        (connection,) = store._idle
        held = (
            "SELECT array_agg(relation::regclass::text) FILTER (WHERE granted),"
            " bool_or(NOT granted) FROM pg_locks"
            f" WHERE pid = {connection.get_backend_pid()} AND locktype = 'relation'"
        )
        with closing(database.connect()) as migration, migration.cursor() as cursor:
            cursor.execute("LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE")
            waiting = threading.Thread(target=use, args=(store, bucket))
            waiting.start()
            wait_until(lambda: query(database, held)[0][1], what="the store waits")
            ((relations, _),) = query(database, held)
            migration.rollback()
        waiting.join(20)
        assert not [name for name in relations or () if name.startswith("poky._o")]


@pytest.mark.parametrize("most", [0, 1])
def test_buckets_without_functions_of_their_own_do_as_well(
    store: Store,
    bucket_names: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    most: int,
) -> None:
    monkeypatch.setattr("poky.store.bucket_functions._MOST", dict.fromkeys(VERBS, most))
    for _ in range(2):
        name = bucket_names()
        store.ensure_bucket(name)
        assert store.put(name, "k", b"1", "t").outcome == "inserted"
        assert store.put(name, "k", b"2", "t").outcome == "updated"
        assert store.put(name, "k", b"3", "t", None, "*").outcome == "updated"
        assert store.put(name, "k", b"4", "t", None, None, "*").outcome == "rejected"
        found = store.get(name, "k")
        assert found
        assert bytes(found.value) == b"3"
        assert store.delete(name, "k", "0-00000000").outcome == "rejected"
        assert store.delete(name, "k", None, None, 0).outcome == "rejected"
        assert store.delete(name, "k").outcome == "deleted"
        assert store.delete(name, "k").outcome == "missing"
        assert store.delete(name, "k", "*").outcome == "rejected"
        assert store.delete(name, "k", None, None, 0).outcome == "missing"


@pytest.mark.parametrize(
    "write",
    [
        "poky.put('mine', 'k', '1', 't')",
        "poky.put('mine', 'k', '1', 't', NULL, '*')",
        "poky.put('mine', 'k', '1', 't', NULL, NULL, '*')",
        "poky.delete('mine', 'k')",
        "poky.delete('mine', 'k', NULL, NULL, 2000000000)",
        "poky.put_many('mine', '{k}', '{1}', '{t}', '{NULL}', '{*}', '{NULL}', false)",
        "poky.delete_many('mine', '{k}', '{*}', '{NULL}', '{NULL}', true)",
        "poky._draw_anew((SELECT id FROM poky.bucket WHERE name = 'mine'), 'k')",
    ],
)
def test_a_write_locks_no_other_bucket(database: Database, write: str) -> None:
    """A plan that is kept for all partitions would lock them all: the store asks for such plans."""
    if database.kind == "flat":
        return
    query(database, "SELECT poky.ensure_bucket('mine'), poky.ensure_bucket('yours')")
    query(database, "SELECT poky.put('mine', 'k', '', 't')")
    locked = query(
        database,
        f"SET plan_cache_mode = force_generic_plan; SELECT FROM {write};"
        " SELECT b.name FROM pg_locks AS l JOIN poky.bucket AS b"
        " ON l.relation = ('poky.' || b.leaf)::regclass WHERE l.pid = pg_backend_pid()",
    )
    assert set(locked) == {("mine",)}


# Values on their way.

VALUES = [
    b"",
    b"plain",
    b"it's '' \\' \\\\' E'\\''",
    b"\\",
    b"\\x41",
    b"\\101",
    b"100 %s %(x)s %%",
    b"$1 $$ ; -- /* */ \r\n\t",
    "ä€😀\u0301".encode(),
    "it's ä \\x".encode(),
    b"\0",
    b"a\0b'\\",
    b"\xff\xfe'",
    b"\xc3",
    bytes(range(256)) * 3,
]


@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
def test_every_value_arrives_as_it_was_sent(
    cluster: Cluster, empty_database: Database, encoding: str
) -> None:
    from poky.schema.migrate import migrate

    name = empty_database.name
    cluster.drop(empty_database)
    cluster._execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"
        " LC_COLLATE 'C' LC_CTYPE 'C'"
    )
    migrate(f"{empty_database.dsn_owner}&client_encoding=UTF8", release="tests")
    with closing(Store(empty_database.dsn_service)) as store:
        store.ensure_bucket("b")
        keys = [str(number) for number in range(len(VALUES))]
        for key, value in zip(keys, VALUES, strict=True):
            put = store.put("b", key, value, "t")
            found = store.get("b", key)
            assert found
            assert (bytes(found.value), found.hash) == (value, put.hash)
        assert put.hash == hashlib.sha256(VALUES[-1]).hexdigest()[:8]
        nothing = [None] * len(keys)
        store.put_many(
            "b", keys, VALUES[::-1], ["t"] * len(keys), nothing, nothing, nothing, False
        )  # fmt: skip
        found_values = [store.get_many("b", keys)[key].value for key in keys]
        assert found_values == VALUES[::-1]


TEXTS = ["", "plain", "NULL", "a,b", "{}", '"', "\\", '\\"', "it's", "%s", " blank ", "ä€😀", "\n"]


def test_texts_arrive_in_batches_as_they_were_sent(store: Store, bucket: str) -> None:
    """Keys and content types share one literal; nobody's quotes end another's text."""
    keys = [f"k,{number}" for number in range(len(TEXTS))]
    nothing = [None] * len(TEXTS)
    empty = [b""] * len(TEXTS)
    outcomes = store.put_many(bucket, keys, empty, TEXTS, nothing, nothing, nothing, False)
    assert [outcome.outcome for outcome in outcomes] == ["inserted"] * len(TEXTS)
    found = store.get_many(bucket, [*keys, "NULL"])
    assert [found[key].content_type for key in keys] == TEXTS
    assert len(found) == len(TEXTS)
    assert store.get_many(bucket, []) == {}
    assert _put_one(store, bucket, "NULL") == "inserted"
    for key in ('a"', "a\\"):
        with pytest.raises(StoreError) as refused:
            _put_one(store, bucket, key)
        assert refused.value.status == 400
    nothing.append(None)
    outcomes = store.delete_many(bucket, [*keys, "none"], nothing, nothing, nothing, True)
    assert [outcome.outcome for outcome in outcomes] == ["deleted"] * len(TEXTS) + ["missing"]


def _put_one(store: Store, bucket: str, key: str) -> str:
    nothing = [None]
    return store.put_many(bucket, [key], [b""], ["t"], nothing, nothing, nothing, False)[0].outcome


def test_the_database_finds_the_same_hash(database: Database, bucket: str) -> None:
    """For those who do not bring it along."""
    found = query(
        database,
        f"SELECT p.hash, m.hash FROM poky.put('{bucket}', 'k', 'value', 't') AS p,"
        f" poky.put_many('{bucket}', '{{l}}', '{{value}}', '{{t}}', '{{NULL}}', '{{NULL}}',"
        " '{NULL}', false) AS m",
    )
    digest = hashlib.sha256(b"value").hexdigest()[:8]
    assert found == [(digest, digest)]
