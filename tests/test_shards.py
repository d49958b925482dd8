"""Buckets on several databases: each in one of them, refused by the others, moved while used."""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import psycopg2
import pytest

from poky.schema import SchemaError, moving
from poky.schema.shards import join_shards
from poky.sharing import Read, Reads, Writes, Writing
from poky.store import Alone, ShardedStore, Store, StoreError, Value, Write
from tests.conftest import Cluster, Database
from tests.service import running
from tests.support.databases import hung
from tests.test_cli import cells, told
from tests.test_process import poky

JSON = {"Content-Type": "application/json"}
MOVED = pytest.mark.parametrize(
    "way", [(0, 1), (1, 2), (2, 0)], ids=lambda way: f"{way[0]}-{way[1]}"
)


@pytest.fixture(scope="module")
def sharded(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_sharded(3)
    yield database
    cluster.drop(database)


@pytest.fixture
def store(sharded: Database) -> Iterator[ShardedStore]:
    with closing(opened(sharded)) as store:
        yield store


@pytest.fixture
def name(bucket_names: object) -> str:
    return bucket_names()  # type: ignore[operator, no-any-return]


def opened(database: Database, pool_size: int = 6, **limits: float) -> ShardedStore:
    shards = {n: each.dsn_service for n, each in enumerate(database.others, start=1)}
    return ShardedStore(database.dsn_service, shards, pool_size=pool_size, **limits)


def owners(database: Database) -> dict[int, str]:
    return {n: each.dsn_owner for n, each in enumerate((database, *database.others))}


# Where a bucket is.


def test_a_bucket_is_made_where_it_is_told_and_found_by_everybody(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    names = [f"{name}-{n}" for n in range(3)]
    for number, each in enumerate(names):
        assert store.ensure_bucket(each, number)
        assert not store.ensure_bucket(each, (number + 1) % 3)  # it stays where it is
        store.put(each, "k", b"v%d" % number, "text/plain")
    with closing(opened(sharded)) as other:
        for number, each in enumerate(names):
            found = other.get(each, "k")
            assert found is not None
            assert bytes(found.value) == b"v%d" % number
            place = other.place(each)
            assert place is not None
            assert (place.shard, place.settled, place.moving) == (number, True, False)
        assert {*names} <= {each.name for each in other.buckets()}
        found = other.get_each([(each, "k") for each in names])
        assert [bytes(each.value) for each in found] == [b"v0", b"v1", b"v2"]


def test_of_how_many_buckets_the_place_is_remembered_is_bounded(
    store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poky.store.sharded._KNOWN", 3)
    names = [f"{name}-{n}" for n in range(5)]
    for each in names:
        store.ensure_bucket(each, 2)
    for _ in range(2):
        assert [store.find_shard(each) for each in names] == [2] * 5
        assert 0 < len(store._map) <= 3


def test_a_new_bucket_goes_to_the_emptiest_shard(cluster: Cluster, name: str) -> None:
    database = cluster.create_sharded(2)
    with closing(opened(database)) as store:
        store.ensure_bucket("full", 0)
        store.put("full", "k", random.Random(1).randbytes(4_000_000), "t")
        store.ensure_bucket(name)
        place = store.place(name)
    cluster.drop(database)
    assert place is not None
    assert place.shard == 1


def test_many_new_buckets_go_to_all_shards(cluster: Cluster) -> None:
    database = cluster.create_sharded(3)
    with closing(opened(database)) as store:
        for number in range(24):
            store.ensure_bucket(f"b{number}")
        shards = list(store.places().values())
    cluster.drop(database)
    assert {*shards} == {0, 1, 2}
    assert max(map(shards.count, shards)) < 20


def test_a_bucket_that_is_dropped_can_be_made_elsewhere(store: ShardedStore, name: str) -> None:
    store.ensure_bucket(name, 1)
    store.put(name, "k", b"v", "t")
    with pytest.raises(StoreError) as refused:
        store.drop_bucket(name)
    assert refused.value.code == "bucket_not_empty"
    assert store.get(name, "k") is not None
    store.drop_bucket(name, keys=True)
    for _ in range(2):
        with pytest.raises(StoreError) as refused:
            store.get(name, "k")
        assert refused.value.code == "bucket_not_found"
        with pytest.raises(StoreError) as refused:
            store.drop_bucket(name)
        assert refused.value.code == "bucket_not_found"
    assert store.ensure_bucket(name, 2)
    assert store.get(name, "k") is None


def test_a_drop_that_was_interrupted_goes_on(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 1)
    place = store.place(name)
    assert place is not None
    store.settle_bucket(name, place.id, False)
    store.of_shard(1).drop_bucket(name)  # and the process died
    with closing(opened(sharded)) as other:
        with pytest.raises(StoreError) as refused:
            other.get(name, "k")
        assert refused.value.code == "bucket_not_found"
        assert other.ensure_bucket(name)
        other.put(name, "k", b"v", "t")
    assert store.get(name, "k") is not None


@pytest.mark.parametrize("number", [0, 1])
def test_a_database_refuses_what_it_does_not_have(
    sharded: Database, store: ShardedStore, name: str, number: int
) -> None:
    """Whatever function is asked: no map of an instance can be wrong with effect."""
    store.ensure_bucket(name, 2)
    calls = {
        "get": "SELECT poky.get(%s, 'k')",
        "get_many": "SELECT poky.get_many(%s, '{k}')",
        "put": "SELECT poky.put(%s, 'k', '', 't', NULL, NULL, NULL, NULL, NULL)",
        "update": "SELECT poky.put(%s, 'k', '', 't', NULL, '*', NULL, NULL, NULL)",
        "put_many": "SELECT poky.put_many(%s, '{k}', '{v}', '{t}', '{NULL}', '{NULL}', '{NULL}',"
        " false, '{NULL}', '{NULL}')",
        "delete": "SELECT poky.delete(%s, 'k')",
        "delete_many": "SELECT poky.delete_many(%s, '{k}', '{NULL}', '{NULL}', '{NULL}', false)",
        "list": "SELECT poky.list(%s)",
        "list_page": "SELECT poky.list_page(%s, '', '', 10, false)",
        "export": "SELECT poky.export(%s, '', 10)",
        "drop": "SELECT poky.drop_bucket(%s)",
        "ensure": "SELECT poky.ensure_bucket(%s)",
        "ttl": "SELECT poky.set_bucket_ttl(%s, 60)",
        "changes": "SELECT poky.changes(%s, '', '', 10)",
        "keep": "SELECT poky.keep_changes(%s, 60)",
    }
    database = (sharded, *sharded.others)[number]
    refused = {}
    with closing(database.connect()) as connection:
        connection.autocommit = True
        for call, statement in calls.items():
            with connection.cursor() as cursor:
                try:
                    cursor.execute(statement, (name,))
                    refused[call] = str(cursor.fetchall())
                except psycopg2.Error as error:
                    refused[call] = error.pgcode or str(error)
    assert refused == dict.fromkeys(calls, "PK421")
    change = Write(name, "k", Value(b"v"), "t", None, None, None)
    assert [put.outcome for put in store.one(number).change_each([change, change])] == [
        "elsewhere"
    ] * 2


def test_a_database_with_buckets_of_its_own_becomes_no_shard(cluster: Cluster) -> None:
    control, other = cluster.create("partitioned"), cluster.create("partitioned")
    with closing(other.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT poky.ensure_bucket('mine')")
    with pytest.raises(SchemaError, match="cannot become shard 1"):
        join_shards(control.dsn_owner, {1: other.dsn_owner})
    with pytest.raises(SchemaError, match="the database that is control"):
        join_shards(control.dsn_owner, {1: control.dsn_owner})
    for each in (control, other):
        cluster.drop(each)


def test_what_cannot_be_a_shard_is_said(cluster: Cluster) -> None:
    control, one, flat = (cluster.create(kind) for kind in ("partitioned", "partitioned", "flat"))
    with pytest.raises(SchemaError, match="need the partitioned schema"):
        join_shards(flat.dsn_owner, {1: one.dsn_owner})
    with pytest.raises(SchemaError, match="DSN of shard 2 leads to the database that is shard 1"):
        join_shards(control.dsn_owner, {1: one.dsn_owner, 2: one.dsn_owner})
    join_shards(control.dsn_owner, {1: one.dsn_owner})
    with pytest.raises(SchemaError, match="shard 2"):
        join_shards(control.dsn_owner, {2: one.dsn_owner})
    with pytest.raises(SchemaError, match="is the DSN of a shard: control is needed there"):
        join_shards(one.dsn_owner, {1: control.dsn_owner})
    for each in (control, one, flat):
        cluster.drop(each)


def test_a_database_that_is_no_shard_for_another_reason_is_told_as_it_is(
    cluster: Cluster,
) -> None:
    control, empty = cluster.create("partitioned"), cluster.create()
    with pytest.raises(SchemaError, match=r'^PostgreSQL refused: schema "poky" does') as refused:
        join_shards(control.dsn_owner, {1: empty.dsn_owner})
    assert refused.value.code == "database_failed"
    for each in (control, empty):
        cluster.drop(each)


def test_a_shard_knows_of_caches_and_of_the_policy_from_the_beginning(cluster: Cluster) -> None:
    control, one = cluster.create("partitioned"), cluster.create("partitioned")

    def first(database: Database, statement: str) -> object:
        with closing(database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()

    with closing(Store(control.dsn_owner)) as store, closing(Store(one.dsn_owner)) as shard:
        store.ensure_bucket("b")
        for has_caches in (False, True):
            if has_caches:
                store.register_node("one", "http://127.0.0.1:1")
            join_shards(control.dsn_owner, {1: one.dsn_owner})
            policy = "SELECT tag, revision FROM poky.policy"
            assert first(one, policy) == first(control, policy)
            shard.adopt_bucket("there", 70_000)
            told = shard.put("there", "k", b"v", "t")
            assert (told.outbox_id is not None) is has_caches
    for each in (control, one):
        cluster.drop(each)


@pytest.mark.parametrize(
    ("code", "pgcode", "is_passing", "later"),
    [
        ("database_failed", "57P01", True, True),
        ("database_failed", "08006", True, True),
        ("database_failed", "25006", True, True),
        ("database_failed", None, True, True),
        ("database_failed", "42P01", False, False),
        ("database_failed", "25001", False, False),
        ("database_unavailable", None, False, True),
        ("busy", None, False, True),
        ("no_shard", None, False, False),
        ("schema_refused", "57P01", False, False),
    ],
)
def test_a_move_goes_on_by_itself_after_what_passes(
    code: str, pgcode: str | None, is_passing: bool, later: bool
) -> None:
    """Before it began, nothing that its caller could mend is waited for."""
    kind = type("Failure", (psycopg2.DatabaseError,), {"pgcode": pgcode})
    error = SchemaError("x", code=code)
    assert not moving._is_passing(SchemaError("x", code="database_failed"), has_begun=True)
    error.__cause__ = kind()
    assert moving._is_passing(error, has_begun=False) is is_passing
    assert moving._is_passing(error, has_begun=True) is later


def test_a_move_waits_for_a_standby_each_time_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a try that went well for long, not since the first outage."""
    now = 1000.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(moving, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    tries: list[float] = []

    def attempt(*_: object) -> None:
        tries.append(now)
        if len(tries) == 3:
            sleep(61)
        error = SchemaError("away", code="database_failed")
        error.__cause__ = psycopg2.OperationalError()
        raise error

    monkeypatch.setattr(moving, "_move", attempt)
    with pytest.raises(SchemaError, match="away"):
        moving.move({}, "b", 1)
    assert tries[1] - tries[0] == 0.5
    after_the_long_one = tries[2] + 61
    assert 60 <= now - after_the_long_one <= 61


# Tokens.


def test_a_revocation_holds_at_every_shard(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 1)
    with closing(ShardedStore(sharded.dsn_owner, dict(owners_besides(sharded)))) as admin:
        policy, _ = store.policy_tag()
        with store.under(policy):
            store.put(name, "k", b"v", "t")
        admin.create_token("A" * 12, "t" + name, "0" * 64, ["write:*"], None)
        admin.revoke_token("t" + name)
        now, _ = store.policy_tag()
        assert now != policy
        for number in store.shards:
            with store.under(policy), pytest.raises(StoreError) as refused:
                store.one(number).get_each([(name, "k"), (name, "l")])
            assert refused.value.code == "policy_changed"
        with store.under(now):
            assert store.get(name, "k") is not None


def test_a_shard_that_has_not_heard_of_a_policy_is_told(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    """And never of an older one than it knows."""
    store.ensure_bucket(name, 1)
    with closing(sharded.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute("SELECT poky._change_policy()")  # and the process died
    now, revision = store.policy_tag()
    with store.under(now):
        store.put(name, "k", b"v", "t")
    assert not store.of_shard(1).adopt_policy("older", revision - 1)
    with store.under(now):
        assert store.get(name, "k") is not None


def owners_besides(database: Database) -> Iterator[tuple[int, str]]:
    return ((n, each.dsn_owner) for n, each in enumerate(database.others, start=1))


def test_after_a_restore_nothing_of_the_lost_time_passes_for_new_in_any_database(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    for number in store.shards:
        store.ensure_bucket(f"{name}-{number}", number)
    policy = store.policy_tag()
    # Shards go by control's policy even if their own numbers are ahead of its.
    alter(sharded.others[0], "SELECT setval('poky.revision', 4000000000000000)")
    owned = ShardedStore(
        sharded.dsn_owner,
        {n: each.dsn_owner for n, each in enumerate(sharded.others, start=1)},
        pool_size=2,
    )
    with closing(owned):
        owned.after_restore(60)
    least = time.time() * 1e6 - 60e6  # revisions go on from the clock
    for number in store.shards:
        assert store.put(f"{name}-{number}", "k", b"v", "text/plain").revision > least
        assert store.of_shard(number).policy_tag()[0] == store.policy_tag()[0] != policy[0]


# A move.


class Clients:
    """Writers and readers of a bucket, and what they saw."""

    def __init__(self, database: Database, bucket: str, writers: int = 4, readers: int = 3) -> None:
        self.database = database
        self.bucket = bucket
        self.keys = [f"k{n}" for n in range(40)]
        self.acknowledged: dict[str, tuple[int, int | None]] = {}  #: revision, and the value
        self.faults: list[str] = []
        self.refused: list[str] = []
        self.reads = self.writes = 0
        self.longest = 0.0
        self._stop = threading.Event()
        self._locks = {key: threading.Lock() for key in self.keys}
        self._threads = [
            *(threading.Thread(target=self._write, args=(n, writers)) for n in range(writers)),
            *(threading.Thread(target=self._read, args=(n,)) for n in range(readers)),
        ]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _write(self, number: int, count: int) -> None:
        """Each writer has keys of its own: what it was told last is what is there."""
        chance = random.Random(number)
        mine = self.keys[number::count]
        with closing(opened(self.database, 2)) as store:
            for value in itertools.count(number, count):
                if self._stop.is_set():
                    return
                key = chance.choice(mine)
                began = time.monotonic()
                try:
                    self._change(store, chance.random(), key, value)
                    self.writes += 1
                except StoreError as error:
                    self.refused.append(f"{error.status} {error.code}")
                self.longest = max(self.longest, time.monotonic() - began)

    def _change(self, store: ShardedStore, chance: float, key: str, value: int) -> None:
        told: tuple[int, int | None]
        if chance < 0.15:
            store.delete(self.bucket, key)
            told = (self.acknowledged.get(key, (0, None))[0], None)
        elif chance < 0.4:
            nothing = [None]
            outcomes = store.put_many(
                self.bucket, [key], [b"%d" % value], ["t"], nothing, nothing, nothing, False
            )
            told = (outcomes[0].revision, value)
        elif chance < 0.6:
            change = Write(self.bucket, key, Value(b"%d" % value), "t", None, None, None)
            told = (store.change_each([change])[0].revision, value)
        else:
            told = (store.put(self.bucket, key, b"%d" % value, "t").revision, value)
        before = self.acknowledged.get(key, (0, None))[0]
        if value is not None and told[1] is not None and told[0] <= before:
            self.faults.append(f"{key}: revision {told[0]} after {before}")
        self.acknowledged[key] = told

    def _read(self, number: int) -> None:
        chance = random.Random(100 + number)
        seen: dict[str, int] = {}
        with closing(opened(self.database, 2)) as store:
            while not self._stop.is_set():
                key = chance.choice(self.keys)
                before = self.acknowledged.get(key, (0, None))
                try:
                    if chance.random() < 0.5:
                        found = store.get(self.bucket, key)
                    else:
                        each = store.get_each([(self.bucket, key)])[0]
                        found = store.get(self.bucket, key) if isinstance(each, Alone) else each
                except StoreError as error:
                    self.faults.append(f"{key}: a read was refused: {error.code}")
                    continue
                self.reads += 1
                if found is None:
                    continue
                revision = found.revision
                if revision < max(before[0], seen.get(key, 0)):
                    self.faults.append(f"{key}: read {revision} after {before[0]}")
                seen[key] = max(revision, seen.get(key, 0))

    def lost(self) -> list[str]:
        """What was acknowledged last and is not there; called once all have stopped."""
        lost = []
        with closing(opened(self.database, 2)) as store:
            for key, (revision, value) in self.acknowledged.items():
                found = store.get(self.bucket, key)
                there = None if found is None else (found.revision, int(bytes(found.value)))
                if there != (None if value is None else (revision, value)):
                    lost.append(f"{key}: {revision} {value} was told, {there} is there")
        return lost


def bring(database: Database, name: str, shard: int, keys: int = 300) -> None:
    # Patient: how long a busy machine takes is not what is tested with it.
    with closing(opened(database, statement_timeout=60)) as store:
        store.ensure_bucket(name, shard)
        for number in range(keys):
            store.put(name, f"old{number}", b"x" * 500, "t")


@MOVED
def test_a_bucket_moves_while_it_is_used(
    sharded: Database, name: str, way: tuple[int, int]
) -> None:
    source, target = way
    bring(sharded, name, source)
    with Clients(sharded, name) as clients:
        time.sleep(0.5)
        moved = moving.move(owners(sharded), name, target)
        time.sleep(0.5)
    assert moved is not None
    assert moved.pause_seconds is not None
    assert moved.pause_seconds < 1
    assert clients.faults == []
    assert clients.refused == []
    assert clients.longest < 3
    assert clients.lost() == []
    assert min(clients.reads, clients.writes) > 200
    with closing(opened(sharded)) as store:
        place = store.place(name)
        assert place is not None
        assert (place.shard, place.moving) == (target, False)
        assert len(store.list_page(name, "old", limit=1000).entries) == 300
    assert nothing_is_left(sharded, name, target) == []
    assert moving.under_way(owners(sharded)) is None


def nothing_is_left(database: Database, name: str, target: int) -> list[str]:
    """What a move left behind, in words."""
    left = []
    for number, each in enumerate((database, *database.others)):
        with closing(each.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT 'publication ' || pubname FROM pg_publication"
                " UNION ALL SELECT 'subscription ' || subname FROM pg_subscription"
                "  WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
                " UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots"
                "  WHERE database = current_database()"
                " UNION ALL SELECT 'fence ' || tgrelid::regclass FROM pg_trigger"
                "  WHERE tgname = '_fence'"
                " UNION ALL SELECT 'table ' || relname FROM pg_class"
                "  WHERE relname ~ '^_o_[0-9]+$' AND relkind = 'r' AND NOT relispartition"
                "  AND relnamespace = 'poky'::regnamespace"
                " UNION ALL SELECT 'mark' FROM poky._mark"
                " UNION ALL SELECT 'facts ' || name FROM poky.placement WHERE facts IS NOT NULL"
                " UNION ALL SELECT 'bucket ' || name FROM poky.bucket"
                "  WHERE name = %s AND %s <> %s",
                (name, number, target),
            )
            left += [f"{number}: {what}" for (what,) in cursor.fetchall()]
    return left


def test_a_fenced_bucket_takes_no_write_by_whatever_function(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    bring(sharded, name, 1, keys=2)
    place = store.place(name)
    assert place is not None
    calls = (
        "SELECT poky.put(%s, 'new', '', 't', NULL, NULL, NULL, NULL, NULL)",
        "SELECT poky.put(%s, 'old1', '', 't', NULL, NULL, NULL, NULL, NULL)",
        "SELECT poky.put(%s, 'old1', '', 't', NULL, '*', NULL, NULL, NULL)",
        f"SELECT poky.update_{place.id}(%s, 'old1', '', 't', NULL, '*', NULL, NULL, NULL)",
        "SELECT poky.delete(%s, 'old1')",
        f"SELECT poky.delete_{place.id}(%s, 'old1', NULL, NULL, NULL)",
    )
    refused: list[str | None] = []

    def write(done: str) -> None:
        if done == "fence":
            with closing(sharded.others[0].connect(as_service=True)) as connection:
                connection.autocommit = True
                for call in calls:
                    with connection.cursor() as cursor:
                        try:
                            cursor.execute(call, (name,))
                            refused.append(None)
                        except psycopg2.Error as error:
                            refused.append(error.pgcode)

    moving.move(owners(sharded), name, 2, after=write)
    assert refused == ["PK421"] * len(calls)
    found = store.get(name, "old1")
    assert found is not None
    assert bytes(found.value) == b"x" * 500


def test_a_write_under_way_is_waited_for(sharded: Database, store: ShardedStore, name: str) -> None:
    bring(sharded, name, 1, keys=2)
    committed = threading.Event()
    fenced_after_commit: list[bool] = []

    def watch(done: str) -> None:
        if done == "copy":
            writer = sharded.others[0].connect(as_service=True)
            writer.cursor().execute(
                "SELECT poky.put(%s, 'slow', 'v', 't', NULL, NULL, NULL, NULL, NULL)", (name,)
            )

            def commit() -> None:
                committed.set()
                writer.commit()
                writer.close()

            threading.Timer(1, commit).start()
        if done == "fence":
            fenced_after_commit.append(committed.is_set())

    moving.move(owners(sharded), name, 2, after=watch)
    assert fenced_after_commit == [True]
    assert store.get(name, "slow") is not None


def test_nothing_departs_before_all_of_it_has_arrived(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    """Replication stands still behind the fence: it is taken down, and tried again later."""
    bring(sharded, name, 1, keys=2)
    place = store.place(name)
    assert place is not None
    subscription = f"poky_move_{place.id}"
    copies = 0

    def hold_up(done: str) -> None:
        nonlocal copies
        if done == "copy":
            copies += 1
            if copies == 1:
                alter(sharded.others[1], f"ALTER SUBSCRIPTION {subscription} DISABLE")
                store.put(name, "late", b"v", "t")
                threading.Timer(
                    1.5, alter, (sharded.others[1], f"ALTER SUBSCRIPTION {subscription} ENABLE")
                ).start()

    began = time.monotonic()
    moved = moving.move(owners(sharded), name, 2, after=hold_up)
    assert moved is not None
    assert time.monotonic() - began > 1.5
    assert store.get(name, "late") is not None
    store.put(name, "late", b"w", "t")


def alter(database: Database, statement: str) -> None:
    with closing(database.connect()) as connection:
        connection.autocommit = True
        connection.cursor().execute(statement)


def test_a_change_is_confirmed_where_it_was_announced(cluster: Cluster) -> None:
    """The numbers of announcements are the same in several databases."""
    database = cluster.create_sharded(3)
    with closing(opened(database)) as store:
        store.register_node("n1", "http://127.0.0.1:1")
        ids = []
        for number in range(3):
            store.ensure_bucket(f"b{number}", number)
            for key in ("k", "l"):
                ids.append(store.put(f"b{number}", key, b"v", "t").outbox_id)
        change = Write("b2", "m", Value(b"v"), "t", None, None, None)
        ids += [put.outbox_id for put in store.one(2).change_each([change, change])]
        none = [None]
        for number in range(3):
            bucket = f"b{number}"
            many = store.put_many(bucket, ["x"], [b"v"], ["t"], none, none, none, False)
            many += store.delete_many(bucket, ["x"], none, none, none, False)
            ids += [each.outbox_id for each in many]
            assert ids[-1]
            assert ids[-1] & 0xFF == number
        assert None not in ids
        assert len({*ids}) == len(ids)
        waiting = {each.id for each in store.unconfirmed(0, 100)}
        assert waiting == {*ids}
        for each in ids:
            assert each is not None
            store.confirm([each])
            waiting.remove(each)
            assert {each.id for each in store.unconfirmed(0, 100)} == waiting
    cluster.drop(database)


def test_writes_whose_bucket_has_gone_elsewhere_follow_it(store: ShardedStore, name: str) -> None:
    """Two of them share a statement with one whose bucket is still there."""

    class NoCaches:
        def purge_each(self, objects: object, ids: object, done: Callable[[None], None]) -> None:
            done(None)

    store.ensure_bucket(f"{name}-0", 0)
    store.ensure_bucket(f"{name}-1", 1)
    writes = Writes(store.one(0), NoCaches(), 2)
    outcomes: dict[str, object] = {}
    done = threading.Event()

    def told(key: str) -> Callable[[object], None]:
        def tell(outcome: object) -> None:
            outcomes[key] = getattr(outcome, "outcome", outcome)
            if len(outcomes) == 3:
                done.set()

        return tell

    for key, bucket in {"a": f"{name}-0", "b": f"{name}-1", "c": f"{name}-1"}.items():
        write = Write(bucket, key, Value(b"v"), "t", None, None, None)
        writes.add(Writing(write, None, told(key)))
    writes.after_turn(False)
    assert done.wait(10)
    assert outcomes == dict.fromkeys("abc", "inserted")
    assert store.get(f"{name}-1", "b") is not None


class Killed(BaseException):
    """The mover ends here, as by SIGKILL: nothing is undone."""


@pytest.mark.parametrize("step", moving.STEPS)
def test_a_move_that_was_killed_after_a_step_goes_on(
    sharded: Database, name: str, step: str
) -> None:
    bring(sharded, name, 1, keys=20)

    def die(done: str) -> None:
        if done == step:
            raise Killed

    with Clients(sharded, name, 2, 0) as clients:
        with pytest.raises(Killed):
            moving.move(owners(sharded), name, 2, after=die)
        if step not in ("clean",):
            noted = moving.under_way(owners(sharded))
            assert noted is not None
        moving.move(owners(sharded), name, 2)
    assert clients.faults == []
    assert set(clients.refused) <= {"503 bucket_moving"}
    assert clients.lost() == []
    assert nothing_is_left(sharded, name, 2) == []
    with closing(opened(sharded)) as store:
        place = store.place(name)
        assert place is not None
        assert place.shard == 2


@pytest.mark.parametrize("step", ["prepare", "copy", "fence"])
def test_a_move_is_given_up_before_the_bucket_has_left(
    sharded: Database, name: str, step: str
) -> None:
    bring(sharded, name, 0, keys=20)

    def die(done: str) -> None:
        if done == step:
            raise Killed

    with Clients(sharded, name, 2, 1) as clients:
        with pytest.raises(Killed):
            moving.move(owners(sharded), name, 1, after=die)
        given_up = moving.abort(owners(sharded))
        assert given_up is not None
        assert given_up.name == name
        time.sleep(0.3)
    assert clients.faults == []
    assert clients.lost() == []
    assert nothing_is_left(sharded, name, 0) == []
    with closing(opened(sharded)) as store:
        place = store.place(name)
        assert place is not None
        assert place.shard == 0


@pytest.mark.parametrize("step", ["depart", "arrive", "settle"])
def test_a_move_is_not_given_up_once_the_bucket_has_left(
    sharded: Database, name: str, step: str
) -> None:
    bring(sharded, name, 1, keys=5)

    def die(done: str) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        moving.move(owners(sharded), name, 0, after=die)
    with pytest.raises(SchemaError, match="go on with poky bucket move"):
        moving.abort(owners(sharded))
    moving.move(owners(sharded), name, 0)
    with closing(opened(sharded)) as store:
        assert store.get(name, "old4") is not None


def test_databases_reach_each_other_by_names_of_their_own(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 0)
    store.put(name, "k", b"v", "text/plain")
    told = []

    def look(step: str) -> None:
        if step == "prepare":
            with closing(sharded.others[0].connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT subconninfo FROM pg_subscription")
                told.extend(row[0] for row in cursor.fetchall())

    among = {0: f"{sharded.dsn_owner}&fallback_application_name=among"}
    moving.move(owners(sharded), name, 1, after=look, among=among)
    assert ["fallback_application_name=among" in each for each in told] == [True]
    assert bytes(store.get(name, "k").value) == b"v"


def test_the_service_sees_what_is_being_moved(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 0)
    environment = {
        "POKY_DSN": sharded.dsn_service,
        "POKY_SHARDS": " ".join(
            f"{n}={each.dsn_service}" for n, each in enumerate(sharded.others, start=1)
        ),
    }

    def seen() -> object:
        done = poky("shards", "--json", env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["move"]

    def stop(step: str) -> None:
        raise KeyboardInterrupt

    assert seen() is None
    with pytest.raises(KeyboardInterrupt):
        moving.move(owners(sharded), name, 1, after=stop)
    move = seen()
    assert isinstance(move, dict)
    assert (move["name"], move["source"], move["target"]) == (name, 0, 1)
    moving.abort(owners(sharded))
    assert seen() is None


def test_a_bucket_that_moves_is_not_dropped_and_no_other_one_moves(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    for shard in (0, 1):
        store.ensure_bucket(f"{name}-{shard}", shard)

        def die(done: str) -> None:
            raise Killed

        with pytest.raises(Killed):
            moving.move(owners(sharded), f"{name}-{shard}", 2, after=die)
        with pytest.raises(StoreError) as refused:
            store.drop_bucket(f"{name}-{shard}")
        assert refused.value.code == "bucket_moving"
        with pytest.raises(SchemaError, match=f"bucket {name}-{shard} is being moved"):
            moving.move(owners(sharded), f"{name}-{1 - shard}", 2)
        moving.abort(owners(sharded))
        store.put(f"{name}-{shard}", "k", b"v", "t")


def test_what_a_bucket_is_moves_with_it(sharded: Database, store: ShardedStore, name: str) -> None:
    """Its ttl, its visibility, and objects that expire; and back again."""
    store.ensure_bucket(name, 0)
    store.set_bucket_ttl(name, 2)
    with closing(ShardedStore(sharded.dsn_owner, dict(owners_besides(sharded)))) as admin:
        admin.publish_bucket(name, True)
    store.put(name, "short", b"v", "t")
    for target in (1, 2, 0):
        moving.move(owners(sharded), name, target)
        assert name in store.public_buckets()
        assert store.credential("", name).public_read
        assert {each.name: each.default_ttl for each in store.buckets()}[name] == 2
    deadline = time.monotonic() + 20
    while store.list_page(name).entries or store.expiry_lag() is not None:
        store.reap(100)
        assert time.monotonic() < deadline
        time.sleep(0.1)


# The service.


def test_a_service_serves_buckets_of_several_databases_while_they_move(
    sharded: Database, name: str, tmp_path: Path
) -> None:
    with (
        running(sharded.dsn_service, tmp_path / "log", shards=sharded.shards) as service,
        closing(service.client()) as client,
        closing(service.admin()) as admin,
    ):
        assert admin.request("PUT", f"/buckets/{name}").status == 200
        for target in (1, 2, 0):
            revisions = []
            moving.move(owners(sharded), name, target)
            for number in range(5):
                put = client.request("PUT", f"/kv/{name}/k{number}", b"v%d" % target)
                assert put.status in (200, 201, 204), put.body
                got = client.request("GET", f"/kv/{name}/k{number}")
                assert (got.status, got.body) == (200, b"v%d" % target)
                revisions.append(got.headers["ETag"])
        listed = admin.request("GET", "/buckets")
        assert name.encode() in listed.body


def test_of_the_threads_that_ask_a_database_only_some_wait_for_it(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    """However fast they come: all of them at the moment in which it stops to answer."""
    store.ensure_bucket(name, 1)
    store.get(name, "k")
    place = store.place(name)
    assert place is not None
    reads = Reads(store.one(1), 4, most=2)
    barrier = threading.Barrier(4)
    took: list[float] = []
    told: list[object] = []

    def turn() -> None:
        reads.add(Read(name, "k", lambda size: None, None, 0.0, told.append))
        barrier.wait()
        began = time.monotonic()
        reads.after_turn(False)
        took.append(time.monotonic() - began)

    with closing(sharded.others[0].connect()) as locking:
        locking.cursor().execute(f"LOCK TABLE poky._o_{place.id} IN ACCESS EXCLUSIVE MODE")
        threads = [threading.Thread(target=turn) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        locking.rollback()
    assert sum(seconds > 0.5 for seconds in took) < 4
    deadline = time.monotonic() + 10
    while len(told) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_shard_that_hangs_delays_no_other(cluster: Cluster, tmp_path: Path) -> None:
    """It is a cluster of its own here; the others' reads and writes go on beside."""
    from poky import embedded
    from poky.schema.migrate import migrate
    from tests.conftest import HASTY

    control = cluster.create("partitioned")
    batch = b'[{"key": "k"}]'
    with embedded.ensure_running(tmp_path / "shard", settings=HASTY) as server:
        migrate(server.dsn_owner, kind="partitioned", release="tests")
        join_shards(control.dsn_owner, {1: server.dsn_owner})
        shards = {1: server.dsn_service}
        with closing(ShardedStore(control.dsn_service, shards)) as store:
            store.ensure_bucket("here", 0)
            store.ensure_bucket("there", 1)
        with running(
            control.dsn_service, tmp_path / "log", shards=f"1={server.dsn_service}"
        ) as service:
            with closing(service.client()) as client:
                for bucket in ("here", "there"):
                    assert client.request("POST", f"/multi/{bucket}", batch, JSON).status == 200
                    assert client.request("PUT", f"/kv/{bucket}/k", b"v").status < 300
                    assert client.request("GET", f"/kv/{bucket}/k").status == 200
            times: list[float] = []
            batches: list[float] = []
            statuses: set[int] = set()
            stop = threading.Event()

            def bother() -> None:
                with closing(service.client()) as client:
                    while not stop.is_set():
                        statuses.add(client.request("GET", "/kv/there/k").status)

            def bother_by_batches() -> None:
                with closing(service.client()) as client:
                    while not stop.is_set():
                        statuses.add(client.request("POST", "/multi/there", batch, JSON).status)

            def work() -> None:
                with closing(service.client()) as client:
                    for number in range(150):
                        began = time.monotonic()
                        path = f"/kv/here/k{number % 5}"
                        assert client.request("PUT", path, b"v").status < 300
                        assert client.request("GET", path).status == 200
                        times.append(time.monotonic() - began)
                    for _ in range(20):
                        began = time.monotonic()
                        assert client.request("POST", "/multi/here", batch, JSON).status == 200
                        batches.append(time.monotonic() - began)

            with hung(server):
                others = [
                    threading.Thread(target=target)
                    for target in (*[bother] * 6, *[bother_by_batches] * 4)
                ]
                for thread in others:
                    thread.start()
                time.sleep(0.5)
                worker = threading.Thread(target=work)
                worker.start()
                worker.join()
                assert closing_status(service) == 200
                deadline = time.monotonic() + 10
                while 503 not in statuses:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                stop.set()
            for thread in others:
                thread.join()
            assert len(times) == 150
            assert sorted(times)[-3] < 0.5
            assert len(batches) == 20
            assert sorted(batches)[-3] < 0.5
            assert statuses <= {200, 503}
    cluster.drop(control)


def test_what_is_known_of_buckets_goes_on_while_control_hangs(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Control is a cluster of its own here. What it alone knows is 503 in bounded time."""
    from poky import embedded
    from poky.schema.migrate import migrate
    from tests.conftest import HASTY

    shard = cluster.create("partitioned")
    with embedded.ensure_running(tmp_path / "control", settings=HASTY) as control:
        migrate(control.dsn_owner, kind="partitioned", release="tests")
        join_shards(control.dsn_owner, {1: shard.dsn_owner})
        with closing(ShardedStore(control.dsn_service, {1: shard.dsn_service})) as store:
            for bucket in ("known", "other"):
                store.ensure_bucket(bucket, 1)
        with (
            running(
                control.dsn_service, tmp_path / "log", shards=f"1={shard.dsn_service}"
            ) as service,
            closing(service.client()) as client,
        ):
            assert client.request("PUT", "/kv/known/k", b"v").status < 300
            with hung(control):
                times = []
                until = time.monotonic() + 12
                while time.monotonic() < until:
                    began = time.monotonic()
                    assert client.request("GET", "/kv/known/k").status == 200
                    assert client.request("PUT", "/kv/known/k", b"w").status < 300
                    times.append(time.monotonic() - began)
                    time.sleep(0.02)
                assert max(times) < 1
                began = time.monotonic()
                assert client.request("GET", "/kv/other/k").status == 503
                assert time.monotonic() - began < 6
                deadline = time.monotonic() + 10
                while closing_status(service) != 200:
                    assert time.monotonic() < deadline
            assert client.request("GET", "/kv/other/k").status == 404
            assert closing_status(service) == 200
    cluster.drop(shard)


def closing_status(service: object) -> int:
    with closing(service.client()) as client:  # type: ignore[attr-defined]
        return int(client.request("GET", "/status").status)


# The command.


def test_the_command_makes_shards_of_databases_and_moves_a_bucket(
    cluster: Cluster, tmp_path: Path
) -> None:
    control, first = cluster.create(), cluster.create()
    environment = {
        "POKY_DSN": control.dsn_service,
        "POKY_OWNER_DSN": control.dsn_owner,
        "POKY_SHARDS": f"1={first.dsn_service}",
        "POKY_OWNER_SHARDS": f"1={first.dsn_owner}",
    }
    migrated = poky("migrate", env=environment)
    assert migrated.returncode == 0, migrated.stderr
    assert "shard 1: applied: schema.sql" in migrated.stdout
    assert poky("migrate", env=environment).returncode == 0
    created = poky("bucket", "create", "b", "--shard", "1", env=environment)
    assert (created.returncode, created.stdout) == (0, "b: created\n"), created.stderr
    wrong = poky("bucket", "create", "c", "--shard", "7", env=environment)
    assert wrong.returncode == 1
    assert "There is no shard 7" in wrong.stderr
    shown = poky("shards", env=environment)
    assert shown.returncode == 0, shown.stderr
    assert "1 bucket" in shown.stdout
    (tmp_path / "b.jsonl").write_text('{"key":"k","data":"v","content_type":"text/plain"}\n')
    stored = poky("import", "b", str(tmp_path / "b.jsonl"), env=environment)
    assert stored.returncode == 0, stored.stderr
    said = poky("export", "b", env=environment)
    assert said.returncode == 0, said.stderr
    assert '"key":"k"' in said.stdout
    moved = poky("bucket", "move", "b", "--to", "0", env=environment)
    assert moved.returncode == 0, moved.stderr
    assert moved.stdout.startswith("b: moved from shard 1 to shard 0 in ")
    again = poky("bucket", "move", "b", "--to", "0", env=environment)
    assert (again.returncode, again.stdout) == (0, "b: is on shard 0\n")
    for arguments, sentence in {
        ("b", "--to", "9"): "There is no shard 9",
        ("nothing", "--to", "1"): "There is no bucket named nothing",
    }.items():
        refused = poky("bucket", "move", *arguments, env=environment)
        assert refused.returncode == 1
        assert sentence in refused.stderr
        assert "Traceback" not in refused.stderr
    assert poky("bucket", "move", "--abort", env=environment).stdout == (
        "No bucket is being moved.\n"
    )
    assert poky("verify", "b", str(tmp_path / "b.jsonl"), env=environment).stdout
    for each in (control, first):
        cluster.drop(each)


def test_the_command_says_what_does_not_fit(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    """Each on its line; exit status 1 if there is anything."""
    settings = {"POKY_SHARDS": sharded.shards, "POKY_OWNER_SHARDS": sharded.owner_shards}
    first, second = sharded.others
    store.ensure_bucket(name, 1)
    shown = cells(told(sharded, "shards", **settings))
    assert [row[0] for row in shown] == ["0", "1", "2"]
    assert all(re.fullmatch(r"1 bucket|[\d,]+ buckets", row[1]) for row in shown)
    assert all(re.fullmatch(r"[\d,]+", row[2]) for row in shown)
    found = json.loads(told(sharded, "shards", "--json", **settings))
    assert [each["shard"] for each in found["shards"]] == [0, 1, 2]
    assert [f"{each['bytes']:,}" for each in found["shards"]] == [row[2] for row in shown]
    assert (found["move"], found["troubles"]) == (None, [])

    swapped = f"1={second.dsn_service} 2={first.dsn_service}"
    said = told(sharded, "shards", status=1, **{**settings, "POKY_SHARDS": swapped})
    for number, other in ((1, 2), (2, 1)):
        assert f"settings call shard {number} is shard {other}: correct POKY_SHARDS" in said
    away = f"1={first.dsn_service} 2=postgresql://u@/poky?host=/nowhere"
    said = told(sharded, "shards", status=1, **{**settings, "POKY_SHARDS": away})
    assert cells(said)[2] == ["2", "does not answer", "-"]
    assert "Shard 2 does not answer: " in said

    def stop(step: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moving.move(owners(sharded), name, 2, after=stop)
    said = told(sharded, "shards", **settings)
    assert re.search(rf"Moving: bucket {name}, from shard 1 to shard 2, step [a-z]+\.", said)
    said = told(sharded, "bucket", "move", "--abort", **settings)
    assert said == f"{name}: stays on shard 1\n"

    renamed = "UPDATE poky.bucket SET name = %s WHERE name = %s"
    with closing(first.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(renamed, [f"{name}-other", name])
        connection.commit()
        said = told(sharded, "shards", status=1, **settings)
        assert f"Bucket {name}-other on shard 1 is none that control places there" in said
        assert f"Bucket {name} should be on shard 1, which does not have it" in said
        cursor.execute(renamed, [name, f"{name}-other"])
        connection.commit()
    told(sharded, "shards", **settings)


def test_a_command_with_a_dsn_concerns_that_database_alone(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    settings = {"POKY_SHARDS": sharded.shards, "POKY_OWNER_SHARDS": sharded.owner_shards}
    for number in (0, 1):
        store.ensure_bucket(f"{name}-{number}", number)

    def listed(*words: str) -> set[str]:
        rows = json.loads(told(sharded, "bucket", "list", "--json", *words, **settings))
        return {each["name"] for each in rows} & {f"{name}-0", f"{name}-1"}

    assert listed() == {f"{name}-0", f"{name}-1"}
    assert listed("-d", sharded.dsn_service) == {f"{name}-0"}
    assert listed("-d", sharded.others[0].dsn_service) == {f"{name}-1"}


def test_what_a_move_wants_is_said_in_full(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    settings = {"POKY_SHARDS": sharded.shards, "POKY_OWNER_SHARDS": sharded.owner_shards}
    for words in ([], [name], ["--to", "1"], [name, "--to", "1", "--abort"]):
        said = told(sharded, "bucket", "move", *words, status=2, **settings)
        assert "Say NAME and --to, or --abort alone." in said
    said = told(sharded, "bucket", "move", name, "--to", "1", status=1)
    assert "There is one database only" in said
    store.ensure_bucket(name, 0)
    move = ("bucket", "move", name, "--to", "1")
    moved = json.loads(told(sharded, *move, "--json", **settings))
    assert (moved["name"], moved["source"], moved["target"]) == (name, 0, 1)
    assert 0 <= moved["pause_seconds"] < moved["seconds"]
    again = json.loads(told(sharded, *move, "--json", **settings))
    assert again == {**moved, "source": 1, "seconds": 0.0, "pause_seconds": None}
    back = told(sharded, "bucket", "move", name, "--to", "0", **settings)
    assert re.fullmatch(
        rf"{name}: moved from shard 1 to shard 0 in \d+\.\d s, writes paused for \d\.\d\d s\n", back
    )
