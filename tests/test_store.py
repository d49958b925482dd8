"""The store's failures: each has a code that programs compare, and the table of codes is whole."""

from __future__ import annotations

import ast
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest

from poky.store import CODES, Store, StoreError
from poky.store.errors import refuse_unreplicated
from poky.store.pool import Pool
from tests.conftest import Cluster, Database
from tests.service import wait_until
from tests.support.databases import hung

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def store(database: Database) -> Iterator[Store]:
    with closing(Store(database.dsn_service, lock_timeout=0.2)) as store:
        yield store


def test_every_code_is_in_the_table_and_nothing_else_is() -> None:
    sql = "".join(file.read_text() for file in (ROOT / "sql/functions").glob("*.sql"))
    given = set(re.findall(r"HINT = '(.*?)'", sql))
    for package in ("store", "cache", "feed"):
        for file in (ROOT / "service/poky" / package).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "code":
                    given |= {
                        part.value
                        for part in ast.walk(node.value)
                        if isinstance(part, ast.Constant) and isinstance(part.value, str)
                    }
    assert given == set(CODES)


def test_every_refusal_of_the_database_has_a_code() -> None:
    for file in (ROOT / "sql/functions").glob("*.sql"):
        for raised in re.findall(r"RAISE EXCEPTION USING(.*?);", file.read_text(), re.DOTALL):
            assert "HINT" in raised or "MESSAGE" not in raised, raised


# In the flat schema a bucket is there before it is made.
@pytest.mark.parametrize("kind", ["partitioned"], scope="session")
@pytest.mark.parametrize(
    ("verb", "arguments", "status", "code"),
    [
        ("put", ("nowhere", "k", b"", "text/plain"), 404, "bucket_not_found"),
        ("delete", ("nowhere", "k"), 404, "bucket_not_found"),
        ("get_many", ("nowhere", ["k"]), 404, "bucket_not_found"),
        ("list_page", ("nowhere",), 404, "bucket_not_found"),
        ("drop_bucket", ("nowhere",), 404, "bucket_not_found"),
        ("ensure_bucket", ("no/name",), 400, "bad_bucket_name"),
        ("register_node", ("no/name", "http://127.0.0.1:1"), 400, "bad_cache_name"),
        ("put", ("{bucket}", "no//key", b"", "text/plain"), 400, "bad_key"),
        ("put", ("{bucket}", "k\0", b"", "text/plain"), 400, "bad_text"),
    ],
)
def test_a_refusal_has_its_code(
    store: Store, bucket: str, verb: str, arguments: tuple[object, ...], status: int, code: str
) -> None:
    given = [a.format(bucket=bucket) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(StoreError) as refused:
        getattr(store, verb)(*given)
    assert (refused.value.status, refused.value.code, refused.value.unknown) == (
        status,
        code,
        False,
    )


def test_a_bucket_with_keys_is_refused_by_its_code(store: Store, bucket: str) -> None:
    store.put(bucket, "k", b"v", "text/plain")
    with pytest.raises(StoreError) as refused:
        store.drop_bucket(bucket)
    assert (refused.value.status, refused.value.code) == (409, "bucket_not_empty")


def test_a_cache_with_a_lease_is_refused_by_its_code(store: Store) -> None:
    store.register_node("leased", "http://127.0.0.1:1")
    (generation,) = {node.generation for node in store.nodes() if node.name == "leased"}
    assert store.reinstate_node("leased", generation)
    assert store.lease("leased", 10)
    with pytest.raises(StoreError) as refused:
        store.remove_node("leased")
    assert (refused.value.status, refused.value.code) == (409, "cache_leased")
    node = store.suspend_node("leased", hold=True)
    assert node
    store.drain_node("leased", node.generation)
    assert store.remove_node("leased")


def test_a_locked_object_is_slow(store: Store, database: Database, bucket: str) -> None:
    store.put(bucket, "k", b"v", "text/plain")
    with closing(psycopg2.connect(database.dsn_service)) as other:
        with other.cursor() as cursor:
            cursor.execute(
                "SELECT poky.put(%s, 'k', 'x', 'text/plain', NULL, NULL, NULL)", [bucket]
            )
        with pytest.raises(StoreError) as refused:
            store.put(bucket, "k", b"w", "text/plain")
    assert (refused.value.status, refused.value.code) == (503, "database_slow")
    assert not refused.value.unknown


def test_a_database_without_a_schema_is_known_by_its_code(empty_database: Database) -> None:
    with closing(Store(empty_database.dsn_owner)) as store, pytest.raises(StoreError) as refused:
        store.migrations()
    assert (refused.value.status, refused.value.code) == (503, "schema_missing")


def test_a_database_that_is_away_is_known_by_its_code() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dsn = f"postgresql://poky_service@127.0.0.1:{port}/poky"
    with closing(Store(dsn)) as store, pytest.raises(StoreError) as refused:
        store.nodes()
    assert (refused.value.status, refused.value.code) == (503, "database_unavailable")


def test_a_server_that_refuses_is_not_asked_for_each_request(
    database: Database,
) -> None:
    """A connection costs it and us more than a request; it is noticed when it is back."""
    asked: list[float] = []

    def refuse(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                server.accept()[0].close()
                asked.append(time.monotonic())

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=refuse, args=(server,), daemon=True).start()
        with closing(Store(f"postgresql://poky_service@127.0.0.1:{port}/poky")) as store:
            refusals = 0
            began = time.monotonic()
            while time.monotonic() < began + 3.5:
                with pytest.raises(StoreError) as refused:
                    store.nodes()
                assert refused.value.code == "database_unavailable"
                refusals += 1
            assert refusals > 100
            assert 3 <= sum(at > began + 2 for at in asked) <= 8
            store._dsns = [database.dsn_service]
            time.sleep(0.26)
            assert store.nodes() == []
        server.shutdown(socket.SHUT_RDWR)


def test_of_all_who_want_a_connection_one_asks_a_server_that_refuses() -> None:
    """Each attempt is a process there, and as many at once as there are threads delay others."""
    asked: list[float] = []
    refusals: list[str] = []
    stop = threading.Event()

    def refuse(server: socket.socket) -> None:
        def refuse_one(client: socket.socket) -> None:
            asked.append(time.monotonic())
            time.sleep(0.05)
            client.close()

        with suppress(OSError):
            while True:
                threading.Thread(target=refuse_one, args=(server.accept()[0],), daemon=True).start()

    def ask(store: Store) -> None:
        while not stop.is_set():
            with pytest.raises(StoreError) as refused:
                store.nodes()
            refusals.append(refused.value.detail)
            time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=refuse, args=(server,), daemon=True).start()
        with closing(
            Store(f"postgresql://poky_service@127.0.0.1:{port}/poky", pool_size=8)
        ) as store:
            began = time.monotonic()
            threads = [threading.Thread(target=ask, args=(store,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            time.sleep(4)
            stop.set()
            for thread in threads:
                thread.join()
        server.shutdown(socket.SHUT_RDWR)
    # Four times a second: each is asked for once or, as it may have been ended, twice.
    assert 3 <= sum(at > began + 2 for at in asked) <= 10
    assert len(refusals) > 100
    assert all(refusals)


def test_a_read_of_a_database_that_hangs_takes_five_seconds_at_most(
    database: Database, cluster: Cluster, bucket: str
) -> None:
    took: list[float] = []
    codes: set[str] = set()

    def read(store: Store) -> None:
        began = time.monotonic()
        try:
            store.get(bucket, "k")
        except StoreError as error:
            codes.add(error.code)
        took.append(time.monotonic() - began)

    with closing(Store(database.dsn_service, pool_size=3)) as store:
        store.get(bucket, "k")  # one connection is made already
        with hung(cluster.server):
            readers = [threading.Thread(target=read, args=(store,)) for _ in range(8)]
            for reader in readers:
                reader.start()
                time.sleep(0.25)
            for reader in readers:
                reader.join()
    assert len(took) == 8
    assert max(took) < 5.2
    assert codes <= {"busy", "database_unavailable"}


# Time for what is large.


@pytest.fixture
def slow(own_database: Database) -> Database:
    """A database that takes 1.3 seconds to store one of two keys."""
    with closing(own_database.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("""
            SELECT poky.ensure_bucket('b');
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                'BEGIN PERFORM pg_sleep(1.3); RETURN NEW; END';
            CREATE TRIGGER slow BEFORE INSERT ON poky._object FOR EACH ROW
                WHEN (NEW.key IN ('small', 'large')) EXECUTE FUNCTION slow();
        """)
    return own_database


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flat"])
def test_a_statement_may_take_longer_for_what_is_larger(slow: Database) -> None:
    """Of two statements on one connection, the large has more time and the small does not."""
    with closing(
        Store(slow.dsn_service, pool_size=1, statement_timeout=1, lock_timeout=1)
    ) as store:
        store.put("b", "large", b"x" * 2_000_000, "t")
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(StoreError) as failed:
                store.put("b", "small", b"x", "t")
            assert failed.value.code == "database_slow"
            assert not failed.value.unknown
            assert time.monotonic() - began < 3
        keys = [f"k{number}" for number in range(1999)]
        nothing = [None] * 2000
        store.put_many(
            "b", [*keys, "small"], [b"x"] * 2000, ["t"] * 2000, nothing, nothing, nothing, True
        )


def test_a_write_that_the_standby_does_not_confirm_is_in_doubt() -> None:
    """PostgreSQL says so in a warning. That it ends the connection afterwards is no doubt."""
    for notices in ([], ["FATAL:  terminating connection due to administrator command\n"]):
        refuse_unreplicated(notices)
        assert notices == []
    with pytest.raises(StoreError) as refused:
        refuse_unreplicated(
            ["WARNING:  canceling wait for synchronous replication\n", "FATAL:  x\n"]
        )
    assert (refused.value.code, refused.value.unknown) == ("outcome_unknown", True)


class _Sleeper(Pool):
    """A pool whose statements take as long as they are told."""

    def sleep(self, seconds: float) -> None:
        self._read("SELECT pg_sleep(%s)", (seconds,))


@pytest.mark.alone
def test_a_wait_for_a_connection_ends_in_time_if_one_comes_in_that_moment(
    database: Database,
) -> None:
    """Those who lose the race for it must not wait for the next one as well."""
    waited: list[float] = []
    codes: set[str] = set()

    def wait(pool: _Sleeper) -> None:
        began = time.monotonic()
        slept = 0.3
        try:
            pool.sleep(slept)
        except StoreError as error:
            codes.add(error.code)
            slept = 0
        waited.append(time.monotonic() - began - slept)

    with closing(_Sleeper(database.dsn_service, pool_size=3, pool_timeout=0.1)) as pool:
        for round_ in range(12):
            holding = 0.0975 + round_ * 0.0003
            threads = [threading.Thread(target=pool.sleep, args=(holding,)) for _ in range(3)]
            threads += [threading.Thread(target=wait, args=(pool,)) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert len(waited) == 12 * 16
    assert max(waited) < 0.3
    assert codes == {"busy"}


def test_a_read_waits_for_a_connection_no_longer_than_its_request_has_time(
    database: Database,
) -> None:
    with closing(_Sleeper(database.dsn_service, pool_size=1, pool_timeout=3)) as pool:
        pool.sleep(0)
        holding = threading.Thread(target=pool.sleep, args=(2.0,))
        holding.start()
        wait_until(lambda: pool.connections == (1, 0))
        began = time.monotonic()
        # 4.5 s are a read's time; its request came 4.3 s ago.
        with pool.under(None, since=began - 4.3), pytest.raises(StoreError) as refused:
            pool.sleep(0)
        assert refused.value.code == "busy"
        assert time.monotonic() - began < 1
        holding.join()
