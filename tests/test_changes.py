"""The changes of a bucket in PostgreSQL: what is recorded, in which order it is read, how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest

from poky.schema.migrate import migrate
from poky.store import Changed, Store, StoreError
from tests.conftest import Cluster, Database
from tests.service import wait_until

DAY = 86400


@pytest.fixture
def store(database: Database, bucket: str) -> Iterator[Store]:
    store = Store(database.dsn_service, pool_size=4)
    record(database, bucket)
    yield store
    store.close()


def record(database: Database, bucket: str, seconds: int | None = DAY) -> None:
    owner = Store(database.dsn_owner, pool_size=1)
    owner.ensure_bucket(bucket)
    owner.keep_changes(bucket, seconds)
    owner.close()


def query(database: Database, statement: str, *parameters: Any) -> list[Any]:
    connection = database.connect()
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def run(database: Database, statement: str) -> None:
    """Outside of a transaction."""
    connection = database.connect()
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(statement)
    connection.close()


class Transaction:
    """Writes that are committed when we say so."""

    def __init__(self, connection: psycopg2.extensions.connection, bucket: str) -> None:
        self._connection = connection
        self._bucket = bucket

    def put(self, key: str, value: str = "v") -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT poky.put(%s, %s, %s, 'text/plain')", (self._bucket, key, value.encode())
            )

    def commit(self) -> None:
        self._connection.commit()


@contextmanager
def transactions(database: Database, bucket: str, count: int) -> Iterator[list[Transaction]]:
    connections = [database.connect(as_service=True) for _ in range(count)]
    try:
        yield [Transaction(connection, bucket) for connection in connections]
    finally:
        for connection in connections:
            connection.close()


class Follower:
    """Follows a bucket page by page."""

    def __init__(self, store: Store, bucket: str, after: str = "0", limit: int = 100) -> None:
        self._store = store
        self._bucket = bucket
        self._limit = limit
        self.cursor = after or store.changes(bucket, "").next

    def read(self, prefix: str = "") -> list[Changed]:
        """All that is new."""
        found: list[Changed] = []
        while True:
            page = self._store.changes(self._bucket, self.cursor, prefix, self._limit)
            self.cursor = page.next
            if not page.changes:
                return found
            found += page.changes

    def keys(self) -> list[str]:
        return [change.key for change in self.read()]


def put(store: Store, bucket: str, key: str, value: bytes = b"v", **more: Any) -> Any:
    return store.put(bucket, key, value, "text/plain", None, **more)


def put_many(store: Store, bucket: str, keys: list[str], *, atomic: bool = False) -> None:
    none = [None] * len(keys)
    store.put_many(bucket, keys, [b"v"] * len(keys), ["t"] * len(keys), none, none, none, atomic)


# What is recorded.


def test_every_change_is_there_once_in_order(store: Store, bucket: str) -> None:
    follower = Follower(store, bucket)
    first = put(store, bucket, "k")
    second = put(store, bucket, "k", b"w", if_match="*")
    store.delete(bucket, "k")
    put_many(store, bucket, ["x", "x"])
    found = follower.read()
    assert [(each.key, each.result) for each in found] == [
        ("k", "put"),
        ("k", "put"),
        ("k", "delete"),
        ("x", "put"),
        ("x", "put"),
    ]
    assert [(each.revision, each.hash, each.modified_at) for each in found[:2]] == [
        (first.revision, first.hash, first.modified_at),
        (second.revision, second.hash, second.modified_at),
    ]
    assert found[2].hash is None
    assert [each.revision for each in found] == sorted({each.revision for each in found})
    assert follower.read() == []


def test_what_changed_nothing_is_not_there(store: Store, bucket: str) -> None:
    put(store, bucket, "k")
    follower = Follower(store, bucket, "")
    put(store, bucket, "k", if_none_match="*")
    put(store, bucket, "k", if_match="1-00000000")
    store.delete(bucket, "missing")
    store.delete(bucket, "k", "1-00000000")
    none = [None, None]
    store.put_many(
        bucket, ["k", "l"], [b"v", b"v"], ["t", "t"], none, none, ["*", None], atomic=True
    )
    assert follower.read() == []


def test_writes_of_the_previous_release_are_there(database: Database, bucket: str) -> None:
    record(database, bucket)
    store = Store(database.dsn_service, pool_size=1)
    follower = Follower(store, bucket)
    query(database, "SELECT poky.put(%s, 'one', 'v', 't')", bucket)
    query(
        database,
        "SELECT poky.put_many(%s, '{two}', '{v}', '{t}', '{}', '{}', '{}', false)",
        bucket,
    )
    query(database, "SELECT poky.delete(%s, 'one')", bucket)
    assert follower.keys() == ["one", "two", "one"]
    store.close()


def test_an_insert_that_drew_anew_is_there_with_its_last_revision(
    database: Database, store: Store, bucket: str
) -> None:
    follower = Follower(store, bucket)
    with transactions(database, bucket, 1) as [other]:
        # Its number is the latest when the next insert lands: so that one draws again.
        query(
            database,
            f"""
            CREATE FUNCTION poky._overtake() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM nextval('poky.revision'); RETURN new; END $$;
            CREATE TRIGGER overtake BEFORE INSERT ON poky.{table_of(database, bucket)}
            FOR EACH ROW EXECUTE FUNCTION poky._overtake()
            """,
        )
        made = put(store, bucket, "k")
        query(database, "DROP FUNCTION poky._overtake CASCADE")
        assert [(each.key, each.revision) for each in follower.read()] == [("k", made.revision)]
        other.commit()


def table_of(database: Database, bucket: str) -> str:
    return str(
        query(
            database, "SELECT coalesce(leaf, '_object') FROM poky.bucket WHERE name = %s", bucket
        )[0][0]
    )


def expire(database: Database, bucket: str, key: str) -> None:
    query(
        database,
        "UPDATE poky._object AS o SET expires_at = now() - interval '1 second'"
        " FROM poky.bucket AS b WHERE o.bucket_id = b.id AND b.name = %s AND o.key = %s",
        bucket,
        key,
    )


def test_an_object_that_has_expired_is_removed_as_such(
    database: Database, store: Store, bucket: str
) -> None:
    for key in ("a", "b", "c"):
        query(
            database,
            "SELECT poky.put(%s, %s, 'v', 't', NULL, NULL, NULL, NULL, '{\"ttl\": 3600}')",
            bucket,
            key,
        )
    follower = Follower(store, bucket, "")
    expire(database, bucket, "a")
    expire(database, bucket, "b")
    query(database, "UPDATE poky._expiry SET due_at = now() - interval '1 second'")
    query(database, "SELECT poky.reap(100)")
    store.delete(bucket, "c")
    found = {each.key: each.result for each in follower.read()}
    assert found == {"a": "expire", "b": "expire", "c": "delete"}


def test_what_is_put_in_the_place_of_an_expired_object_is_one_change(
    database: Database, store: Store, bucket: str
) -> None:
    store.put(bucket, "k", b"v", "t", 1)
    store.put(bucket, "l", b"v", "t", 1)
    follower = Follower(store, bucket, "")
    for key in ("k", "l"):
        expire(database, bucket, key)
    put_many(store, bucket, ["k", "l"])
    found = store.get_many(bucket, ["k", "l"])
    assert [
        (each.key, each.result, each.revision, each.modified_at) for each in follower.read()
    ] == [(key, "put", found[key].revision, found[key].modified_at) for key in ("k", "l")]


def test_a_bucket_that_records_nothing_has_no_triggers(database: Database, bucket: str) -> None:
    triggers = (
        "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'record%' AND tgrelid = %s::regclass"
    )
    record(database, bucket)
    table = "poky." + table_of(database, bucket)
    assert query(database, triggers.replace("record%", "record%%"), table) == [(3,)]
    record(database, bucket, None)
    if database.kind == "partitioned":
        assert query(database, triggers.replace("record%", "record%%"), table) == [(0,)]


def test_other_buckets_are_not_recorded(
    database: Database, store: Store, bucket: str, bucket_names: Any
) -> None:
    before = query(database, "SELECT count(*) FROM poky._change")
    other = bucket_names()
    store.ensure_bucket(other)
    put(store, other, "k")
    store.delete(other, "k")
    assert query(database, "SELECT count(*) FROM poky._change") == before
    with pytest.raises(StoreError) as refused:
        store.changes(other)
    assert (refused.value.status, refused.value.code) == (404, "changes_off")


# The order, whatever commits overlap.


def test_a_change_that_is_committed_late_is_not_missed(
    database: Database, store: Store, bucket: str
) -> None:
    """Its number is lower than one that was seen before: a cursor that is a number skips it."""
    follower = Follower(store, bucket)
    with transactions(database, bucket, 2) as (slow, quick):
        slow.put("slow")
        quick.put("quick")
        quick.commit()
        assert follower.keys() == ["quick"]
        slow.commit()
        assert follower.keys() == ["slow"]
        assert follower.keys() == []


@pytest.mark.parametrize("limit", [1, 100])
def test_a_key_keeps_its_order_when_three_transactions_overlap(
    database: Database, store: Store, bucket: str, limit: int
) -> None:
    """The order of transactions is not the order of a key: the earliest writes it last here."""
    follower = Follower(store, bucket, limit=limit)
    with transactions(database, bucket, 3) as (first, second, third):
        first.put("other-1")
        second.put("other-2")
        third.put("k", "earlier")
        third.commit()
        first.put("k", "later")
        first.commit()
        found = follower.read()
        second.commit()
        found += follower.read()
    assert [each.key for each in found] == ["other-1", "k", "k", "other-2"]
    assert [each.revision for each in found if each.key == "k"] == sorted(
        each.revision for each in found if each.key == "k"
    )


@pytest.mark.parametrize(
    ("function", "sound", "mutant", "proof"),
    [
        pytest.param(
            "poky._settled_snapshot()",
            "WHERE x::text::bigint < v_xmax",
            "WHERE false",
            test_a_change_that_is_committed_late_is_not_missed,
            id="by-number-alone",
        ),
        pytest.param(
            "poky._changes_between(integer,pg_snapshot,pg_snapshot,bigint,text,integer)",
            "ORDER BY c.revision",
            "ORDER BY c.xid, c.revision",
            lambda *given: test_a_key_keeps_its_order_when_three_transactions_overlap(*given, 100),
            id="by-transaction-alone",
        ),
    ],
)
def test_a_mutant_of_the_order_is_seen(
    own_database: Database, function: str, sound: str, mutant: str, proof: Callable[..., None]
) -> None:
    [(source,)] = query(own_database, "SELECT pg_get_functiondef(%s::regprocedure)", function)
    record(own_database, "b")
    with closing(Store(own_database.dsn_service, pool_size=4)) as store:
        proof(own_database, store, "b")
    assert source.count(sound) == 1
    query(own_database, source.replace(sound, mutant))
    with (
        closing(Store(own_database.dsn_service, pool_size=4)) as store,
        pytest.raises(AssertionError),
    ):
        proof(own_database, store, "b")


def test_what_was_read_in_between_does_not_come_again(
    database: Database, store: Store, bucket: str
) -> None:
    follower = Follower(store, bucket, limit=1)
    with transactions(database, bucket, 3) as (first, second, third):
        first.put("other-1")
        second.put("other-2")
        third.put("k", "earlier")
        third.commit()
        assert follower.keys() == ["k"]
        first.put("k", "later")
        first.commit()
        assert follower.keys() == ["other-1", "k"]
        second.commit()
        assert follower.keys() == ["other-2"]


def test_a_transaction_that_is_open_elsewhere_holds_nothing_up(
    database: Database, store: Store, bucket: str
) -> None:
    follower = Follower(store, bucket)
    with transactions(database, bucket, 1) as [other]:
        other.put("open")
        put(store, bucket, "k")
        assert follower.keys() == ["k"]


def test_a_follower_far_behind_goes_in_steps(database: Database, store: Store, bucket: str) -> None:
    follower = Follower(store, bucket, limit=1000)
    run(
        database,
        "DO $$ BEGIN FOR i IN 1 .. 5000 LOOP"
        f" PERFORM poky.put('{bucket}', 'k' || i % 700, 'v', 't'); COMMIT; END LOOP; END $$",
    )
    with transactions(database, bucket, 1) as [other]:
        other.put("late")
        steps = query(database, "SELECT count(*) FROM poky._change WHERE step IS NOT NULL")[0][0]
        assert steps >= 4
        found = follower.read()
        assert len(found) == 5000
        of_key: dict[str, list[int]] = {}
        for each in found:
            of_key.setdefault(each.key, []).append(each.revision)
        assert all(revisions == sorted(revisions) for revisions in of_key.values())
        # Without a match a page goes on as well, as far as one statement looks.
        assert store.changes(bucket, "0", "nothing", 10).changes == []
        other.commit()
        assert follower.keys() == ["late"]


def test_what_is_committed_between_two_pages_comes_once(
    database: Database, store: Store, bucket: str
) -> None:
    with transactions(database, bucket, 1) as [other]:
        put(store, bucket, "k1")
        other.put("late")
        put(store, bucket, "k2")
        page = store.changes(bucket, "0", "", 1)
        other.commit()
    follower = Follower(store, bucket, page.next)
    assert [each.key for each in page.changes] + follower.keys() == ["k1", "k2", "late"]


def test_no_step_leads_back(database: Database, store: Store, bucket: str) -> None:
    """A cursor leaves out the latest numbers that were rolled back, which a step may have."""
    put(store, bucket, "k")
    follower = Follower(store, bucket)
    [seen] = follower.read()
    run(
        database,
        "DO $$ BEGIN FOR i IN 1 .. 1100 LOOP"
        " PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$",
    )
    query(
        database,
        "UPDATE poky._change SET step = (xid::text || ':999999:' || xid::text)::pg_snapshot"
        " WHERE revision = %s",
        seen.revision,
    )
    assert follower.read() == []


def test_pages_have_the_prefix(store: Store, bucket: str) -> None:
    follower = Follower(store, bucket)
    for key in ("a", "ab", "b", "a-1"):
        put(store, bucket, key)
    assert [each.key for each in follower.read("a")] == ["a", "ab", "a-1"]


# Where it begins.


def test_a_cursor_of_a_snapshot_goes_on_where_it_ends(
    database: Database, store: Store, bucket: str
) -> None:
    """What an export reads, and what comes after its cursor, are all there is, without overlap."""
    put(store, bucket, "before")
    with transactions(database, bucket, 1) as [open_one], database.connect() as export:
        open_one.put("open")
        with export.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SELECT poky.cursor()")
            after = cursor.fetchone()[0]
            put(store, bucket, "after")
            open_one.commit()
            cursor.execute("SELECT key FROM poky.list(%s, '', '', 100)", [bucket])
            assert [key for (key,) in cursor.fetchall()] == ["before"]
    export.close()
    assert sorted(Follower(store, bucket, after).keys()) == ["after", "open"]


@pytest.mark.parametrize(
    "cursor",
    ["x", "1", "1.2", "1.5.3.", "..", "1.2.3.4_", "9" * 30 + ".1.1.", "1.2.3.4_5.6.7.", "-1", "é"],
)
def test_what_is_no_cursor_is_refused(store: Store, bucket: str, cursor: str) -> None:
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, cursor)
    assert (refused.value.status, refused.value.code) == (400, "bad_cursor")


def test_a_cursor_from_before_the_recording_is_gone(
    database: Database, bucket: str, bucket_names: Any
) -> None:
    store = Store(database.dsn_service, pool_size=2)
    before = store.cursor()
    record(database, bucket_names())  # another one's changes nothing
    record(database, bucket)
    put(store, bucket, "k")
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, before)
    assert (refused.value.status, refused.value.code) == (410, "changes_gone")
    # Off and on again: what was not recorded in between is a gap, which is told.
    cursor = store.changes(bucket).next
    record(database, bucket, None)
    put(store, bucket, "l")
    record(database, bucket)
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, cursor)
    assert refused.value.code == "changes_gone"
    assert Follower(store, bucket).keys() == []
    store.close()


def test_a_bucket_that_is_made_anew_has_no_changes(
    database: Database, store: Store, bucket: str
) -> None:
    put(store, bucket, "k")
    cursor = store.changes(bucket).next
    store.drop_bucket(bucket, keys=True)
    store.ensure_bucket(bucket)
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, cursor)
    assert refused.value.code == "changes_off"
    record(database, bucket)
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, cursor)
    assert refused.value.code == "changes_gone"
    put(store, bucket, "l")
    assert Follower(store, bucket).keys() == ["l"]


def test_a_cursor_ages(store: Store, database: Database, bucket: str) -> None:
    query(
        database,
        "UPDATE poky.bucket SET created_at = created_at - interval '9 days' WHERE name = %s",
        bucket,
    )
    seconds, _, rest = store.changes(bucket).next.partition(".")
    assert store.changes(bucket, f"{int(seconds) - DAY}.{rest}").changes == []
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, f"{int(seconds) - DAY - 7200}.{rest}")
    assert refused.value.code == "changes_gone"
    record(database, bucket, 7 * DAY)
    assert store.changes(bucket, f"{int(seconds) - DAY - 7200}.{rest}").changes == []


def test_a_cursor_from_before_the_bucket_was_here_is_gone(store: Store, bucket: str) -> None:
    """It may be of a bucket of this name in another database, whose transactions are others."""
    seconds, _, rest = store.changes(bucket).next.partition(".")
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, f"{int(seconds) - 600}.{rest}")
    assert refused.value.code == "changes_gone"


def test_a_cursor_of_another_time_is_gone(store: Store, bucket: str) -> None:
    """After a restore to an earlier time its transactions have yet to come."""
    seconds, xmin, xmax, _ = store.changes(bucket).next.split(".")
    with pytest.raises(StoreError) as refused:
        store.changes(bucket, f"{seconds}.{xmin}.{int(xmax) + 10**9}.")
    assert refused.value.code == "changes_gone"


# How long it is kept.


def test_days_have_partitions_which_are_dropped_whole(own_database: Database, bucket: str) -> None:
    record(own_database, bucket)
    store = Store(own_database.dsn_service, pool_size=2)
    days = "SELECT relname FROM pg_class WHERE relname ~ '^_change_[0-9]{8}$' ORDER BY 1"
    assert len(query(own_database, days)) == 3
    query(
        own_database,
        """
        CREATE TABLE poky._change_20200101 PARTITION OF poky._change
        FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z');
        INSERT INTO poky._change (xid, revision, recorded_at, bucket_id, key, result)
        VALUES ('3', 1, '2020-01-01 12:00Z', 1, 'k', 'put'), ('3', 2, '2020-01-03Z', 1, 'k', 'put')
        """,
    )
    assert store.renew_changes() == 1
    assert len(query(own_database, days)) == 3
    assert query(own_database, "SELECT count(*) FROM poky._change") == [(0,)]
    record(own_database, bucket, None)
    query(own_database, "SELECT poky.renew_changes()")
    assert len(query(own_database, days)) == 3, "today's goes when it is over"
    store.close()


def test_a_day_without_a_partition_is_kept_all_the_same(
    own_database: Database, bucket: str
) -> None:
    """An older release does not make any."""
    record(own_database, bucket)
    store = Store(own_database.dsn_service, pool_size=2)
    for (name,) in query(
        own_database, "SELECT relname FROM pg_class WHERE relname ~ '^_change_[0-9]{8}$'"
    ):
        query(own_database, f"DROP TABLE poky.{name}")
    follower = Follower(store, bucket)
    put(store, bucket, "k")
    store.renew_changes()
    put(store, bucket, "l")
    assert follower.keys() == ["k", "l"]
    store.close()


@pytest.mark.parametrize("seconds", [0, -1, 40_000_000])
def test_a_retention_that_is_none_is_refused(database: Database, bucket: str, seconds: int) -> None:
    with pytest.raises(StoreError) as refused:
        record(database, bucket, seconds)
    assert refused.value.code == "bad_retention"


def test_a_conversion_goes_on_recording(cluster: Cluster) -> None:
    database = cluster.create("flat")
    record(database, "b")
    store = Store(database.dsn_service, pool_size=2)
    follower = Follower(store, "b")
    put(store, "b", "flat")
    migrate(database.dsn_owner, kind="partitioned", release="tests")
    put(store, "b", "partitioned")
    store.delete("b", "flat")
    assert follower.keys() == ["flat", "partitioned", "flat"]
    store.close()
    cluster.drop(database)


def test_a_cursor_has_no_number_that_a_crash_could_bring_back(database: Database) -> None:
    """A transaction that was rolled back last may have left nothing in the WAL."""

    def rolled_back_last() -> bool:
        connection = database.connect()
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE t (); SELECT pg_current_xact_id()::text::bigint")
            number = cursor.fetchone()[0]
            connection.rollback()
            cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text, poky.cursor()")
            latest, after = cursor.fetchone()
        connection.close()
        if int(latest) != number + 1:
            return False  # another one was quicker
        assert int(after.split(".")[2]) <= number
        return True

    wait_until(rolled_back_last, 30)
