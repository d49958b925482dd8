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
from typing import Any

import psycopg2
import pytest

from poky.store import CODES, Object, Store, StoreError, Together, Value, Write, bucket_functions
from poky.store import pool as pools
from poky.store.bucket_functions import BucketFunctions
from poky.store.errors import (
    BadDsn,
    ChangesElsewhere,
    PolicyChanged,
    cannot_connect,
    first_line,
    is_fit_after,
    is_policy_changed,
    is_read_only,
    is_undefined,
    may_retry,
    refuse_unreplicated,
    translated,
)
from poky.store.pool import Pool
from poky.store.rows import CopiedRows
from poky.store.shared import Shared
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
    # Four times a second in the end, and from the first refusals on by one thread with a rest.
    assert 3 <= sum(at > began + 2 for at in asked) <= 10
    assert 3 <= sum(began + 0.3 < at < began + 1.3 for at in asked) <= 12
    assert len(refusals) > 100
    assert all(refusals)


def test_a_failure_of_long_ago_refuses_nobody(database: Database) -> None:
    """Nobody has asked since: all who come at once get connections if it is well."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    told: list[object] = []
    together = threading.Barrier(6)

    def ask(store: Store) -> None:
        together.wait()
        try:
            told.append(store.nodes())
        except StoreError as error:
            told.append(error)

    with closing(Store(f"postgresql://poky_service@127.0.0.1:{port}/poky")) as store:
        with pytest.raises(StoreError):
            store.nodes()
        store._dsns = [database.dsn_service]
        time.sleep(2.1)
        threads = [threading.Thread(target=ask, args=(store,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert told == [[]] * 6


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


# What an error of PostgreSQL means.


def failure(code: str | None, text: str = "words") -> psycopg2.Error:
    """An error with this SQLSTATE."""
    kind = type("Failure", (psycopg2.DatabaseError,), {"pgcode": code})
    error: psycopg2.Error = kind(text)
    return error


@pytest.mark.parametrize(
    ("code", "read", "write", "is_fit"),
    [
        # Whether it is tried again, as a read and as a write; whether its connection is kept.
        ("40001", True, True, True),
        ("40P01", True, True, True),
        ("26000", True, True, False),
        ("0A000", True, True, False),
        ("42883", True, True, False),
        ("25006", True, True, False),
        ("23514", True, True, True),
        ("42P01", True, True, False),
        (None, True, False, False),
        ("57014", False, False, False),
        ("57P01", False, False, False),
        ("08006", False, False, False),
        ("55P03", False, False, True),
        ("22021", False, False, True),
        ("PK404", False, False, True),
    ],
)
def test_what_may_be_tried_again(code: str | None, read: bool, write: bool, is_fit: bool) -> None:
    error = failure(code)
    assert may_retry(error, is_write=False) is read
    assert may_retry(error, is_write=True) is write
    assert is_fit_after(error) is is_fit


def test_what_is_no_error_of_the_database_is_not_tried_again() -> None:
    for error in (ValueError("x"), psycopg2.InterfaceError("x")):
        assert not may_retry(error, is_write=False)
    assert is_undefined(failure("42883"))
    assert not is_undefined(failure("22000"))
    assert not is_undefined(failure(None))
    assert not is_undefined(ValueError("42883"))
    assert is_read_only(failure("25006"))
    assert not is_read_only(failure("25001"))
    assert not is_read_only(ValueError())
    assert is_policy_changed(failure("PK401"))
    assert not is_policy_changed(failure("PK404"))
    assert not is_policy_changed(ValueError())


@pytest.mark.parametrize(
    ("code", "status", "said", "in_doubt"),
    [
        ("PK404", 404, "bucket_not_found", False),
        ("PK400", 400, "bad_text", False),
        ("PK409", 409, "bucket_not_empty", False),
        ("PK418", 418, "database_failed", False),
        ("PK401", 503, "policy_changed", False),
        ("23514", 404, "bucket_not_found", False),
        ("42P01", 404, "bucket_not_found", False),
        ("22021", 400, "bad_text", False),
        ("22P05", 400, "bad_text", False),
        ("54000", 400, "bad_text", False),
        ("42501", 503, "rights_missing", False),
        ("57014", 503, "database_slow", False),
        ("55P03", 503, "database_slow", False),
        ("XX000", 503, "database_failed", False),
        ("57P01", 503, "database_failed", False),
        (None, 503, "outcome_unknown", True),
        ("57P02", 503, "outcome_unknown", True),
        ("08007", 503, "outcome_unknown", True),
        ("08006", 503, "outcome_unknown", True),
    ],
)
def test_an_error_is_told_in_our_own_words(
    code: str | None, status: int, said: str, in_doubt: bool
) -> None:
    for is_write in (True, False):
        told = translated(failure(code, "ERROR:  a secret\nDETAIL: value"), is_write=is_write)
        assert told.unknown is (in_doubt and is_write)
        expected = "database_failed" if in_doubt and not is_write else said
        assert (told.status, told.code) == (status, expected)
        ours = (code or "").startswith("PK") and code != "PK401"
        assert told.detail == "a secret" if ours else "secret" not in told.detail
    assert isinstance(translated(failure("PK401"), is_write=True), PolicyChanged)
    assert translated(ValueError("secret"), is_write=True).code == "bad_text"


@pytest.mark.parametrize(
    ("code", "said"),
    [("42501", "rights_missing"), ("3F000", "schema_missing"), ("42883", "schema_missing"),
     ("42704", "schema_missing"), ("28P01", "database_unavailable"),
     (None, "database_unavailable")],
)  # fmt: skip
def test_why_no_connection_can_be_made(code: str | None, said: str) -> None:
    refused = cannot_connect(failure(code))
    assert (refused.status, refused.code, refused.unknown) == (503, said, False)


def test_the_first_line_has_no_values() -> None:
    assert first_line(failure("22000", "ERROR:  why\nDETAIL:  Key (value)=(secret)\n")) == "why"
    assert first_line(failure("22000", " \n")) == "Failure"


def test_changes_elsewhere_say_where(store: Store) -> None:
    statement = (
        "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = 'PK503', MESSAGE = 'Elsewhere.',"
        " HINT = 'changes_elsewhere', DETAIL = '{\"shard\": 2}'; END $$"
    )
    with pytest.raises(ChangesElsewhere) as refused:
        store._read(statement, ())
    assert (refused.value.detail, refused.value.stay) == ("Elsewhere.", {"shard": 2})


@pytest.mark.parametrize("dsn", ["garbage", "nonsense=1"])
def test_a_dsn_that_is_none_is_told_without_it(dsn: str) -> None:
    with pytest.raises(BadDsn):
        Store(dsn)


# The pool.


def test_a_connection_is_set_up_for_what_it_does(database: Database) -> None:
    with closing(Pool(database.dsn_service, statement_timeout=3, lock_timeout=0.7)) as pool:
        for name, expected in {
            "statement_timeout": "3s",
            "lock_timeout": "700ms",
            "idle_in_transaction_session_timeout": "5s",
            "plan_cache_mode": "force_generic_plan",
            "synchronous_commit": "on",
            "standard_conforming_strings": "on",
            "timezone": "UTC",
            "application_name": "poky",
        }.items():
            assert pool._read(f"SHOW {name}", ()) == [(expected,)], name
        assert pool.connections == (0, 1)
        (connection,) = pool._idle
        assert connection.takes_text
        assert connection.autocommit


@pytest.mark.parametrize(
    ("items", "size", "seconds"),
    [
        (0, 0, 0),
        (1, 0, 0),
        (101, 0, 0.1),
        (2001, 0, 1.0),
        (1, 2_097_152, 1.0),
        (2001, 4_194_304, 3),
    ],
)
def test_what_is_large_has_more_time(items: int, size: int, seconds: float) -> None:
    assert pools._extra(items, size) == seconds


def test_more_time_is_for_one_statement_alone(database: Database) -> None:
    with closing(Pool(database.dsn_service, pool_size=1, statement_timeout=3)) as pool:
        show = "SHOW statement_timeout"
        assert pool._read(show, (), 2001) == [("4s",)]
        assert pool._read(show, ()) == [("3s",)]
        assert pool._write(show, (), 4001) == [("5s",)]
        assert pool._write_large(show, (), 2_097_152) == [("4s",)]


def test_who_has_little_time_waits_for_a_host_for_less() -> None:
    now = time.monotonic()
    assert pools._connect_options(None) == {}
    assert pools._connect_options(now + 3.5) == {}
    assert pools._connect_options(now + 2.9) == {"connect_timeout": 2}


def test_a_statement_behind_the_guard_is_one_message() -> None:
    guard = "EXECUTE poky_require_policy('p');"
    assert pools._guarded("p", "SELECT 1") == f"{guard}SELECT 1"
    assert pools._guarded("p", b"SELECT 1") == f"{guard}SELECT 1".encode()


def test_a_connection_is_not_kept_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Pool(database.dsn_service, pool_size=1)) as pool:

        def pid() -> object:
            return pool._read("SELECT pg_backend_pid()", ())[0][0]

        first = pid()
        assert pid() == first
        monkeypatch.setattr(pools, "_MAX_AGE", 0.0)
        second = pid()
        assert second != first
        monkeypatch.setattr(pools, "_MAX_AGE", 1800.0)
        assert pid() == second
        # One that has carried much is closed: libpq's buffers never shrink.
        monkeypatch.setattr(pools, "_KEPT_BYTES", 100)
        assert pid() == second
        for length, kept in ((100, 1), (101, 0)):
            assert pool._read("SELECT " + "1" * (length - 7), ())
            assert pool.connections == (0, kept)
        assert pool.counts.get("connects") == 2


def test_closing_a_pool_closes_what_is_idle(database: Database) -> None:
    pool = Pool(database.dsn_service, pool_size=1)
    pool._read("SELECT 1", ())
    (connection,) = pool._idle
    pool.close()
    assert connection.closed
    assert pool.connections == (0, 0)


def test_a_connection_that_was_ended_is_noticed_before_a_write(database: Database) -> None:
    end = "SELECT pg_terminate_backend(%s, 5000)"
    with (
        closing(Pool(database.dsn_service, pool_size=1)) as pool,
        closing(database.connect()) as other,
    ):
        for execute, retries in ((pool._write, 0), (pool._read, 1)):
            (pid,) = pool._read("SELECT pg_backend_pid()", ())[0]
            with other.cursor() as cursor:
                cursor.execute(end, [pid])
            connection = pool._idle[0]
            wait_until(connection.is_lost)
            assert execute("SELECT pg_backend_pid()", ()) != [(pid,)]
            assert pool.counts.get("retries") == retries


@pytest.fixture
def thrice(own_database: Database) -> Database:
    """A database with a function that fails twice and then does not: it counts its calls."""
    with closing(own_database.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("""
            CREATE SEQUENCE calls;
            CREATE FUNCTION fail(times bigint, code text) RETURNS bigint LANGUAGE plpgsql AS $$
            DECLARE call bigint := nextval('calls');
            BEGIN
                IF call <= times THEN RAISE EXCEPTION USING ERRCODE = code; END IF;
                RETURN call;
            END $$;
            GRANT ALL ON SEQUENCE calls TO PUBLIC;
        """)
    return own_database


@pytest.mark.parametrize("kind", ["partitioned"])
def test_what_did_nothing_is_tried_three_times(thrice: Database) -> None:
    def calls() -> int:
        with closing(thrice.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT last_value, setval('calls', 1, false) FROM calls")
            return int(cursor.fetchone()[0])  # type: ignore[index]

    with closing(Pool(thrice.dsn_service, pool_size=1)) as pool:
        assert pool._write("SELECT fail(2, '40001')", ()) == [(3,)]
        assert (calls(), pool.counts.get("retries")) == (3, 2)
        assert pool.counts.errors == {"40001": 2}
        with pytest.raises(StoreError) as failed:
            pool._write("SELECT fail(9, '40001')", ())
        assert failed.value.code == "database_failed"
        assert (calls(), pool.counts.get("retries")) == (3, 4)
        with pytest.raises(StoreError):
            pool._read("SELECT fail(9, '55P03')", ())
        assert (calls(), pool.counts.get("retries")) == (1, 4)
        # Under a policy that is another one by now: decided anew, and tried so often as well.
        decided: list[str] = []

        def renew(policy: str) -> str:
            decided.append(policy)
            return (pool._read_freely("SELECT tag FROM poky.policy", ())[0][0]) or ""

        with closing(thrice.connect()) as owner, owner, owner.cursor() as cursor:
            cursor.execute("GRANT SELECT ON poky.policy TO PUBLIC")
        nobody = "00000000-0000-0000-0000-000000000000"
        with pool.under(nobody, renew):
            assert pool._write("SELECT 7", ()) == [(7,)]
            assert pool.held_policy() == (pool.guard.policy, renew)
            assert pool.guard.policy != nobody
        assert decided == [nobody]
        assert pool.held_policy() is None
        again = pool.under(nobody, lambda policy: decided.append(policy) or nobody)
        with again, pytest.raises(PolicyChanged):
            pool._write("SELECT 7", ())
        assert decided == [nobody] * 3
        with pool.under(nobody), pytest.raises(PolicyChanged):
            pool._write("SELECT 7", ())


def test_a_host_that_hangs_is_asked_last_and_its_connections_are_closed(
    database: Database,
) -> None:
    with closing(Pool(database.dsn_service, pool_size=2)) as pool:
        pool._read("SELECT 1", ())
        (connection,) = pool._idle
        pool._dsns = ["first", connection.host, "last"]
        pool._distrust("other")
        assert pool.connections == (0, 1)
        assert pool._dsns == ["first", connection.host, "last", "other"]
        pool._distrust(connection.host)
        assert pool.connections == (0, 0)
        assert connection.closed
        assert pool._dsns == ["first", "last", "other", connection.host]


def test_a_statement_without_an_answer_is_cut_and_a_write_is_in_doubt(
    own_database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where even the statement's own limit does not end it."""
    monkeypatch.setattr(pools, "_WATCH_SECONDS", 0.02)
    with closing(Pool(own_database.dsn_service, pool_size=2)) as pool:
        pool._read("SELECT 1", ())
        pool._patience = pool._read_seconds = 0.2
        for execute, code in (
            (pool._write, "outcome_unknown"),
            (pool._read, "database_unavailable"),
        ):
            began = time.monotonic()
            with pytest.raises(StoreError) as failed:
                execute("SELECT pg_sleep(3)", ())
            assert 0.2 < time.monotonic() - began < 2
            assert (failed.value.status, failed.value.code) == (503, code)
            assert failed.value.unknown is (code == "outcome_unknown")
            assert pool.connections == (0, 0)
            assert "a statement got no answer from the database and was given up" in caplog.text
        pool._patience = pool._read_seconds = 5.0
        assert pool._read("SELECT 1", ()) == [(1,)]


def test_a_wait_for_a_connection_is_counted_by_its_length(database: Database) -> None:
    with closing(_Sleeper(database.dsn_service, pool_size=1, pool_timeout=0.2)) as pool:
        pool.sleep(0)
        assert pool.counts.get("waits") == 0
        holding = threading.Thread(target=pool.sleep, args=(0.6,))
        holding.start()
        wait_until(lambda: pool.connections == (1, 0))
        with pytest.raises(StoreError) as refused:
            pool.sleep(0)
        assert (refused.value.status, refused.value.code) == (503, "busy")
        assert (pool.counts.get("waits"), pool.counts.get("timeouts")) == (1, 1)
        assert 0.2 <= pool.counts.get("wait_seconds") < 0.4
        holding.join()
        pool.sleep(0)
        assert pool.counts.get("waits") == 1


# The functions of single buckets.


class Numbered(BucketFunctions):
    """Knows the numbers of some buckets; what it is to execute fails, or is noted."""

    def __init__(self, **numbers: int) -> None:
        super().__init__("host=/nowhere")
        self.known = numbers
        self.asked: list[str] = []
        self.executed: list[tuple[str, Any]] = []
        self.failure: Exception | None = None

    def function_number(self, bucket: str) -> int | None:
        self.asked.append(bucket)
        return self.known.get(bucket)

    def _execute(self, statement: Any, parameters: Any, **more: Any) -> Any:
        function = more.get("bucket_function")
        if function and self.failure:
            raise self.failure
        self.executed.append((statement.partition("(")[0], function))
        return [(statement,)]

    def call(self, bucket: str, verb: str = "get") -> tuple[str, Any]:
        self._call(verb, "get", bucket, ("{}",), is_write=False)
        return self.executed.pop()


def test_a_bucket_s_number_is_asked_for_once() -> None:
    with closing(Numbered(a=7)) as store:
        for _ in range(3):
            assert store.call("a") == ("EXECUTE poky_get_7", ("get", 7))
        assert store.call("a", "share")[1] == ("share", 7)
        assert store.asked == ["a"]
        # One that is not there may be made any moment.
        for _ in range(2):
            assert store.call("b") == ("EXECUTE poky_get", None)
        assert store.asked == ["a", "b", "b"]


def test_a_function_that_is_missing_is_asked_for_again_after_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with closing(Numbered(a=7, b=8)) as store:
        store.call("a")
        store.call("b")
        store.failure = failure("42883")
        assert store.call("a") == ("EXECUTE poky_get", None)
        assert store.call("a") == ("EXECUTE poky_get", None)
        assert store.asked == ["a", "b"]
        store.failure = None
        store.known["a"] = 9
        assert store.call("b")[1] == ("get", 8)
        assert store.call("a")[1] is None
        store._paused["a"] -= bucket_functions._PAUSE_SECONDS
        assert store.call("a")[1] == ("get", 9)
        assert store.asked == ["a", "b", "a"]
        assert store._paused == {}
        store.failure = failure("22000")
        with pytest.raises(psycopg2.Error):
            store.call("a")
        for number in range(1003):
            store._forget(f"b{number}", number)
        assert len(store._paused) == 2


def test_the_functions_of_so_many_buckets_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_functions, "_MOST", {"get": 2, "share": 1, "update": 1, "delete": 1})
    with closing(Numbered(a=1, b=2, c=3)) as store:
        assert [store.call(each)[1] for each in "abca"] == [
            ("get", 1),
            ("get", 2),
            None,
            ("get", 1),
        ]
        assert [store.call(each, "delete")[1] for each in "ba"] == [("delete", 2), None]
        store._forget("a", 1)
        assert store.call("c")[1] == ("get", 3)
    with closing(Numbered(a=0, b=5)) as flat:
        assert flat.call("a")[1] == ("get", 0)
        assert flat.call("b")[1] == ("get", 0)
        assert flat.asked == ["a"]
        flat._forget("a", 0)
        assert flat.call("b")[1] == ("get", 5)


# Statements of several.


class Refusing(Shared):
    """Its writes fail as they are told."""

    def __init__(self, code: str | None, error: StoreError) -> None:
        super().__init__("host=/nowhere")
        self.code, self.error = code, error

    def _write(self, *_: Any, **__: Any) -> Any:
        raise self.error from failure(self.code)


@pytest.mark.parametrize(
    ("code", "said", "of_several", "of_one"),
    [
        # What comes of several changes, and of one that may not wait for a lock.
        ("55P03", "database_slow", Together, Together),
        ("23514", "bucket_not_found", Together, StoreError),
        ("PK401", "policy_changed", Together, StoreError),
        ("57014", "database_slow", StoreError, StoreError),
        (None, "database_failed", StoreError, StoreError),
        ("XX000", "database_failed", Together, StoreError),
    ],
)
def test_what_fails_all_of_several_changes_is_made_one_by_one(
    code: str | None, said: str, of_several: type[Exception], of_one: type[Exception]
) -> None:
    write = Write("b", "k", Value(b"v"), "t", None, None, None)
    error = StoreError(503, "x", code=said)
    with closing(Refusing(code, error)) as store:
        for writes, timeout, kind in (
            ([write] * 2, 0.2, of_several),
            ([write] * 2, None, of_several),
            ([write], 0.2, of_one),
        ):
            with pytest.raises(kind) as failed:
                store.change_each(writes, timeout)
            assert type(failed.value) is kind
        error.unknown = True
        with pytest.raises(StoreError):
            store.change_each([write] * 2, 0.2)


def test_a_text_that_cannot_be_stored_is_refused_in_a_large_write() -> None:
    write = Write("b", "k\0", Value(b"v" * 70_000), "t", None, None, None)
    with closing(Shared("host=/nowhere")) as store, pytest.raises(StoreError) as refused:
        store.change_each([write], 0.2)
    assert (refused.value.status, refused.value.code) == (400, "bad_text")


def test_rows_of_a_copy_are_read_message_by_message() -> None:
    rows: list[tuple[Any, ...]] = []
    begun: list[None] = []
    copied = CopiedRows(
        ("bigint", "text", "bytea"),
        lambda row: rows.append((*row[:2], None if row[2] is None else bytes(row[2]))),
        lambda: begun.append(None),
    )
    head = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    null = (-1).to_bytes(4, "big", signed=True)
    eight = (8).to_bytes(4, "big") + (-5).to_bytes(8, "big", signed=True)
    three = (3).to_bytes(4, "big")
    columns = (3).to_bytes(2, "big")
    one = columns + eight + three + b"abc" + three + b"\0\1\2"
    two = columns + null + null + null
    copied.clear()
    for message in (head + one + two, two, one + b"\xff\xff"):
        assert copied.write(message) == len(message)
    values = (-5, "abc", b"\0\1\2")
    assert rows == [values, (None,) * 3, (None,) * 3, values]
    assert copied.largest == len(head + one + two)
    copied.clear()
    assert len(begun) == 2
    with pytest.raises(ValueError, match="binary format"):
        copied.write(one)


def test_a_write_has_half_of_its_time_however_late_its_request_came(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_WATCH_SECONDS", 0.02)
    with closing(Pool(database.dsn_service, pool_size=1, statement_timeout=1.5)) as pool:
        pool._read("SELECT 1", ())
        late = time.monotonic() - 60  # of 2 s, which are a read's time
        with pool.under(None, since=late):
            assert pool._write("SELECT pg_sleep(0.6)", ())
            with pytest.raises(StoreError) as failed:
                pool._write("SELECT pg_sleep(1.4)", ())
            assert failed.value.code == "outcome_unknown"
            with pytest.raises(StoreError) as failed:
                pool._read("SELECT pg_sleep(0.6)", ())
            assert failed.value.code == "database_unavailable"
        assert pool._write("SELECT pg_sleep(1.4)", ())


def test_what_is_copied_is_refused_under_another_policy_as_well(own_database: Database) -> None:
    with closing(Store(own_database.dsn_service, pool_size=1)) as store:
        store.ensure_bucket("b")
        store.put("b", "k", b"v", "text/plain")
        policy = store.credential("", "b").policy
        found: list[bytes] = []

        def keep(each: Object) -> None:
            found.append(bytes(each.value))

        with store.under(policy):
            store.read_many("b", ["k"], found.clear, keep)
        assert found == [b"v"]
        with store.under("00000000-0000-0000-0000-000000000000"), pytest.raises(PolicyChanged):
            store.read_many("b", ["k"], found.clear, keep)
