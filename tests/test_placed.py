"""A store over several databases at its edges: unnamed, away, half made, or within a move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import pytest

from poky.store import (
    ALONE,
    Alone,
    ShardedStore,
    Store,
    StoreError,
    Value,
    Write,
)
from poky.store.one_shard import tagged
from poky.store.placements import Place, ShardState
from poky.store.results import Put
from poky.store.shared import Together
from tests.conftest import Cluster, Database
from tests.test_mover import pair, store
from tests.test_shards import alter, name, opened

__all__ = ["name", "pair", "store"]

AWAY = "postgresql://u@/poky?host=/nowhere"


def put_of(bucket: str, key: str = "k", value: bytes | None = b"v", **more: Any) -> Write:
    told = None if value is None else Value(value)
    return Write(bucket, key, told, "text/plain", None, None, None)._replace(**more)


def refused(call: Callable[[], object]) -> StoreError:
    with pytest.raises(StoreError) as refusal:
        call()
    return refusal.value


@contextmanager
def moving_away(database: Database, bucket: str, shard: int) -> Iterator[None]:
    """The bucket is fenced for a while, as within a move, and control says that it moves."""
    owner = (database, *database.others)[shard]
    with closing(opened(database)) as store:
        place = store.place(bucket)
    assert place is not None
    alter(database, f"SELECT poky._begin_move('{bucket}', {1 - shard})")
    alter(owner, f"SELECT poky._fence_bucket({place.id}, 'm')")
    try:
        yield
    finally:
        alter(owner, f"SELECT poky._unfence_bucket({place.id})")
        alter(owner, "DELETE FROM poky._mark")
        alter(database, "SELECT poky._end_move()")


# A database that the settings do not name, or that is away.


def test_a_bucket_on_a_database_that_the_settings_do_not_name_is_503(
    cluster: Cluster, store: ShardedStore
) -> None:
    database = cluster.create_sharded(3)
    with closing(opened(database)) as every:
        every.ensure_bucket("b", 2)
    first = {1: database.others[0].dsn_service}
    with closing(ShardedStore(database.dsn_service, first)) as store:
        assert store.shards == [0, 1]
        for call in (
            lambda: store.get("b", "k"),
            lambda: store.of_shard(2),
            lambda: store.ensure_bucket("c", 2),
            lambda: store.changes_of({"shard": 2}, "", "", 10),
        ):
            error = refused(call)
            assert (error.status, error.code) == (503, "database_unavailable")
            assert "on shard 2, which POKY_SHARDS of this instance does not name" in error.detail
        assert store.of_shard(0) is store
    cluster.drop(database)


def test_what_needs_all_databases_names_the_one_that_is_away(
    cluster: Cluster, pair: Database, name: str
) -> None:
    with closing(ShardedStore(pair.dsn_service, {1: AWAY})) as store:
        for call in (
            store.buckets,
            store.renew_changes,
            lambda: store.buckets_of([1]),
            lambda: store.register_node("n", "http://127.0.0.1:1"),
        ):
            error = refused(call)
            assert (error.status, error.code) == (503, "database_unavailable")
            assert error.detail.startswith("Shard 1: ")
        assert store.nodes() == []  # no cache before every database knows of it
        assert {each.shard for each in store.buckets_of([0])} <= {0}
        assert [each.shard for each in store.states()] == [0]
        assert store.unconfirmed(0, 10) == []
        assert store.serving()[0] == "partitioned"
        error = refused(store.spread_policy)
        assert (error.status, error.code, error.unknown) == (503, "outcome_unknown", True)
        assert error.detail.startswith(
            "It is changed, but shard 1 has not heard of it and goes by what was before ("
        )
        store.ensure_bucket(name)  # the emptiest of those that answer
        assert store.find_shard(name) == 0


def test_while_control_is_away_another_database_says_that_the_service_serves(
    pair: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    serving = Store.serving

    def counted(store: Store) -> object:
        asked.append("control" if isinstance(store, ShardedStore) else "shard")
        return serving(store)

    monkeypatch.setattr(Store, "serving", counted)
    shards = {1: pair.others[0].dsn_service}
    with closing(ShardedStore(AWAY, shards)) as store:
        assert store.serving()[0] == "partitioned"
        assert asked == ["control", "shard"]
        assert store.serving()[0] == "partitioned"
        assert asked == ["control", "shard", "shard"]  # control is left alone for a moment
        store._away_until = time.monotonic() - 1
        assert store.serving()[0] == "partitioned"
        assert asked[3:] == ["control", "shard"]
        assert refused(lambda: store.unconfirmed(0, 10)).code == "database_unavailable"
        assert store.states() == [store.of_shard(1).shard_state()]
    with closing(ShardedStore(AWAY, {1: AWAY})) as store:
        del asked[:]
        for _ in range(2):  # nobody serves: control is asked each time
            assert refused(store.serving).code == "database_unavailable"
        assert asked == ["control", "shard"] * 2
        assert store._emptiest() == 0
        assert store.states() == []


def test_a_control_without_a_schema_is_told_although_a_shard_has_one(
    pair: Database, empty_database: Database
) -> None:
    shards = {1: pair.others[0].dsn_service}
    with closing(ShardedStore(empty_database.dsn_owner, shards)) as store:
        for _ in range(2):
            assert refused(store.serving).code == "schema_missing"


def test_the_failure_of_one_database_does_not_keep_the_others_from_their_work(
    pair: Database, store: ShardedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def verb(each: Store) -> int:
        number = 0 if each is store else 1
        done.append(number)
        if number == 0:
            raise StoreError(503, "So it is.", code="database_slow", unknown=True)
        return 1

    error = refused(lambda: store._each(verb))
    assert done == [0, 1]
    assert (error.status, error.code, error.unknown) == (503, "database_slow", True)
    assert error.detail == "Shard 0: So it is."
    assert store._each(lambda each: each is store) == [True, False]


def test_closing_it_closes_the_connections_to_every_database(pair: Database) -> None:
    store = opened(pair)
    for number in store.shards:
        store.of_shard(number).shard_state()
    store.close()
    for number in store.shards:
        assert not store.of_shard(number)._idle


# Where a bucket is.


def test_a_bucket_that_was_dropped_where_it_was_is_404_though_control_was_not_told(
    pair: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 1)
    store.put(name, "k", b"v", "t")
    store.of_shard(1).drop_bucket(name, keys=True)
    assert store.place(name) is not None
    began = time.monotonic()
    error = refused(lambda: store.get(name, "k"))
    assert (error.status, error.code) == (404, "bucket_not_found")
    assert error.detail == f"There is no bucket named {name}."
    assert time.monotonic() - began < 1
    assert store.drop_bucket(name) is None  # control is told
    assert store.place(name) is None


def test_a_bucket_that_comes_to_its_place_in_this_moment_is_found(
    store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the refusal and the look at its place: it is asked once more."""
    store.ensure_bucket(name, 1)
    assert store.find_shard(name) == 1
    here = store.place(name)
    assert here is not None
    store.of_shard(1).drop_bucket(name)
    place = ShardedStore.place
    looks: list[bool] = []

    def come(self: ShardedStore, bucket: str) -> Place | None:
        looks.append(self.of_shard(1).adopt_bucket(bucket, here.id))
        return place(self, bucket)

    monkeypatch.setattr(ShardedStore, "place", come)
    assert store.get(name, "k") is None
    assert looks[0] is True


def test_a_request_for_a_bucket_that_moves_waits_and_is_then_refused(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ensure_bucket(name, 1)
    store.put(name, "k", b"v", "t")
    with moving_away(pair, name, 1):
        with monkeypatch.context() as patched:
            patched.setattr("poky.store.sharded.MOVE_SECONDS", 0.2)
            began = time.monotonic()
            for call in (
                lambda: store.put(name, "k", b"w", "t"),
                lambda: store.one(1).change_each([put_of(name, value=b"w")]),
            ):
                error = refused(call)
                assert (error.status, error.code) == (503, "bucket_moving")
                assert "being moved" in error.detail
            assert 0.4 <= time.monotonic() - began < 2
        later = threading.Timer(
            0.3, alter, (pair.others[0], f"DROP TRIGGER _fence ON {leaf(store, name)}")
        )
        later.start()
        assert store.put(name, "k", b"x", "t").outcome == "updated"
        later.join()
    found = store.get(name, "k")
    assert found is not None
    assert bytes(found.value) == b"x"


def leaf(store: ShardedStore, bucket: str) -> str:
    place = store.place(bucket)
    assert place is not None
    return f"poky._o_{place.id}"


def test_where_a_bucket_is_is_known_once_it_was_asked_for(store: ShardedStore, name: str) -> None:
    assert store.known_shard(name) is None
    assert store.find_shard(name) == 0
    assert store.known_shard(name) is None  # there is none
    store.ensure_bucket(name, 1)
    assert store.find_shard(name) == 1
    assert store.known_shard(name) == 1
    place = store.place(name)
    assert place is not None
    assert store.holding(name) is store.of_shard(1)
    store.settle_bucket(name, place.id, False)
    del store._map[name]
    assert store.find_shard(name) == 0
    assert name not in store.places()
    store.settle_bucket(name, place.id, True)
    assert store.places()[name] == 1
    assert store.place("nothing") is None


def test_ids_of_a_bucket_in_bulk_are_confirmed_where_it_is(cluster: Cluster) -> None:
    database = cluster.create_sharded(2)
    with closing(opened(database)) as store:
        assert store.register_node("n1", "http://127.0.0.1:1") is True
        assert store.register_node("n1", "http://127.0.0.1:1") is False
        store.ensure_bucket("b", 1)
        ids = [store.holding("b").put("b", key, b"v", "t").outbox_id for key in "kl"]
        assert len(store.unconfirmed(0, 10)) == 2
        assert len(store.unconfirmed(0, 1)) == 1
        store.confirm_in("b", [each for each in ids if each is not None])
        assert store.unconfirmed(0, 10) == []
    cluster.drop(database)


# A bucket is made and dropped.


def test_who_makes_a_bucket_is_told_whether_it_was_made(store: ShardedStore, name: str) -> None:
    for shard in (0, 1):
        bucket = f"{name}-{shard}"
        assert store.ensure_bucket(bucket, shard) is True
        for again in (shard, 1 - shard, None):
            assert store.ensure_bucket(bucket, again) is False
        assert store.find_shard(bucket) == shard
        assert store.drop_bucket(bucket) is None  # no caches


def test_a_bucket_is_made_once_by_all_who_come_at_the_same_moment(
    store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at its place somebody makes it, or drops it."""
    place = ShardedStore.place

    def after(first: Place | None) -> None:
        looks = [first]
        monkeypatch.setattr(
            ShardedStore,
            "place",
            lambda self, bucket: looks.pop() if looks else place(self, bucket),
        )

    store.ensure_bucket(name, 1)
    after(None)
    assert store.ensure_bucket(name, 1) is False
    here = store.place(name)
    assert here is not None
    monkeypatch.setattr(ShardedStore, "_emptiest", lambda self: 0)
    after(here._replace(settled=False))
    assert store.ensure_bucket(f"{name}-x") is True  # it was dropped meanwhile
    assert store.find_shard(f"{name}-x") == 0
    monkeypatch.setattr(ShardedStore, "_emptiest", lambda self: 1)
    after(here._replace(settled=False))
    assert store.ensure_bucket(f"{name}-y") is True
    assert store.find_shard(f"{name}-y") == 1
    after(here._replace(settled=False))
    assert store.ensure_bucket(f"{name}-z", 0) is True
    assert store.find_shard(f"{name}-z") == 0


def test_who_makes_a_bucket_while_another_client_does_waits_and_is_then_refused(
    store: ShardedStore, pair: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(opened(pair)) as other, other.try_lock(f"poky placing {name}") as is_ours:
        assert is_ours
        with monkeypatch.context() as patched:
            patched.setattr("poky.store.sharded.MOVE_SECONDS", 0.1)
            error = refused(lambda: store.ensure_bucket(name, 1))
        assert (error.status, error.code) == (503, "busy")
        assert "makes or drops the bucket just now" in error.detail
        made: list[bool] = []
        waiting = threading.Thread(target=lambda: made.append(store.ensure_bucket(name, 1)))
        waiting.start()
        time.sleep(0.2)
        assert made == []
    waiting.join(10)
    assert made == [True]


@pytest.mark.parametrize("unknown", [False, True])
def test_a_drop_that_fails_leaves_the_bucket_unless_it_may_have_been_made(
    store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch, unknown: bool
) -> None:
    store.ensure_bucket(name, 1)

    def fails(bucket: str, keys: bool) -> int:
        raise StoreError(503, "So it is.", code="database_slow", unknown=unknown)

    with monkeypatch.context() as patched:
        patched.setattr(store.of_shard(1), "drop_bucket", fails)
        assert refused(lambda: store.drop_bucket(name)).code == "database_slow"
    place = store.place(name)
    assert place is not None
    assert place.settled is not unknown
    assert store.drop_bucket(name) is None
    assert store.place(name) is None
    assert store.known_shard(name) is None


def test_a_drop_keeps_keys_unless_told_and_tells_the_caches(cluster: Cluster) -> None:
    database = cluster.create_sharded(2)
    with closing(opened(database)) as store:
        store.register_node("n1", "http://127.0.0.1:1")
        for shard in (0, 1):
            bucket = f"b{shard}"
            store.ensure_bucket(bucket, shard)
            store.put(bucket, "k", b"v", "t")
            assert refused(partial(store.drop_bucket, bucket)).code == "bucket_not_empty"
            outbox_id = store.drop_bucket(bucket, keys=True)
            assert outbox_id is not None
            assert outbox_id & 0xFF == shard
            assert outbox_id in {each.id for each in store.unconfirmed(0, 100)}
    cluster.drop(database)


def test_new_buckets_go_to_the_emptiest_database_by_sizes_of_the_last_minute(
    store: ShardedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    sizes = {0: 1000, 1: 500}

    def states(self: ShardedStore) -> list[ShardState]:
        asked.append(1)
        return [ShardState(number, size, 0) for number, size in sizes.items()]

    monkeypatch.setattr(ShardedStore, "states", states)
    monkeypatch.setattr("poky.store.sharded._NEW_BYTES", 600)
    assert [store._emptiest() for _ in range(4)] == [1, 0, 1, 0]
    assert len(asked) == 1
    store._sizes = (time.monotonic() - 1, store._sizes[1])
    assert store._emptiest() == 1
    assert len(asked) == 2
    sizes.update({0: 7, 1: 7})
    store._sizes = (0.0, {})
    assert store._emptiest() == 0


def test_a_bucket_that_is_not_listed_yet_is_waited_for_a_moment(
    store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.ensure_bucket(name, 0)
    lists: list[bool] = []
    found = ShardedStore.buckets_of

    def listed(self: ShardedStore, numbers: Any) -> Any:
        lists.append(True)
        some = found(self, numbers)
        return some if len(lists) > 2 else [each for each in some if each.name != name]

    monkeypatch.setattr(ShardedStore, "buckets_of", listed)
    assert name in {each.name for each in store.buckets()}
    assert len(lists) == 3
    names = [each.name for each in store.buckets()]
    assert names == sorted(names)
    del lists[:]
    monkeypatch.setattr("poky.store.sharded.MOVE_SECONDS", -1.0)
    assert name not in {each.name for each in store.buckets()}
    assert len(lists) == 1


# Requests that share statements.


def test_writes_of_one_statement_are_to_one_database(store: ShardedStore, name: str) -> None:
    for shard in (0, 1):
        store.ensure_bucket(f"{name}-{shard}", shard)
    writes = [put_of(f"{name}-{shard}", key) for key in "kl" for shard in (0, 1)]
    with pytest.raises(Together):
        store.change_each(writes)
    for shard in (0, 1):
        some = [each for each in writes if each.bucket == f"{name}-{shard}"]
        assert [put.outcome for put in store.change_each(some)] == ["inserted"] * 2
        assert [put.outcome for put in store.change_each(some[:1])] == ["updated"]
        gone = put_of(f"{name}-{shard}", "k", None)
        assert [put.outcome for put in store.change_each([gone])] == ["deleted"]
    wanted = [(each.bucket, each.key) for each in writes] + [(writes[2].bucket, "l")]
    found = store.get_each(wanted)
    assert [None if each is None else bytes(each.value) for each in found] == [
        None, None, b"v", b"v", b"v",
    ]  # fmt: skip


def test_a_write_whose_bucket_has_left_is_made_where_it_is(
    pair: Database, store: ShardedStore, name: str
) -> None:
    """Its share of a statement, and a lone one, whatever this instance believed."""
    store.ensure_bucket(name, 1)
    store._map[name] = 0
    puts = store.change_each([put_of(name, "k"), put_of(name, "l")])
    assert [put.outcome for put in puts] == ["inserted"] * 2
    assert store.of_shard(1).get(name, "l") is not None
    one = store.one(0)
    assert [put.outcome for put in one.change_each([put_of(name, "m")])] == ["inserted"]
    assert [put.outcome for put in one.change_each([put_of(name, "m", None)])] == ["deleted"]
    assert [put.outcome for put in one.change_each([put_of(name, "m")], 1.0)] == ["elsewhere"]
    assert store.get(name, "m") is None
    assert one.get(name, "k") == store.get(name, "k") is not None


def test_a_read_whose_bucket_is_elsewhere_is_asked_for_alone(
    pair: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 1)
    store.put(name, "k", b"v", "t")
    here, there = store.one(0), store.one(1)
    assert here.get_small(name, "k") is ALONE
    assert here.get_each([(name, "k")]) == [ALONE]
    assert here.get_each([(name, "k")], is_quick=True) == [ALONE]
    assert here.get_each([(name, "k"), (name, "l")]) == [ALONE] * 2
    for found in (
        there.get_small(name, "k"),
        *there.get_each([(name, "k")]),
        *there.get_each([(name, "k")], is_quick=True),
        there.get_each([(name, "l"), (name, "k")])[1],
        here.get(name, "k"),
    ):
        assert not isinstance(found, Alone)
        assert found is not None
        assert bytes(found.value) == b"v"
    assert there.get_each([(name, "l"), (name, "k")])[0] is None
    assert there.get_small(name, "l") is None


def test_what_is_wrong_with_a_database_is_no_question_of_where_the_bucket_is(
    pair: Database, name: str
) -> None:
    with closing(ShardedStore(pair.dsn_service, {1: AWAY})) as store:
        there = store.one(1)
        for call in (
            lambda: there.get_small(name, "k"),
            lambda: there.get_each([(name, "k")]),
            lambda: there.get_each([(name, "k"), (name, "l")]),
            lambda: there.change_each([put_of(name)]),
            lambda: there.change_each([put_of(name), put_of(name)]),
        ):
            assert refused(call).code == "database_unavailable"
    with closing(opened(pair)) as store:
        error = refused(lambda: store.one(0).change_each([put_of(name)]))
        assert error.code == "bucket_not_found"


def test_a_write_by_a_policy_that_has_changed_is_sent_alone_again(
    pair: Database, store: ShardedStore, name: str
) -> None:
    """Where the database has not heard of it yet, it is told."""
    store.ensure_bucket(name, 1)
    alter(pair, "SELECT poky._change_policy()")
    now, _ = store.policy_tag()
    with store.under(now), pytest.raises(Together):
        store.one(1).change_each([put_of(name)], 1.0)
    alter(pair, "SELECT poky._change_policy()")
    now, _ = store.policy_tag()
    with store.under(now):
        (put,) = store.one(1).change_each([put_of(name)])
    assert put.outcome == "inserted"


def test_what_is_given_out_tells_its_database() -> None:
    """In the eight lowest bits; what is no number of an announcement stays as it is."""
    assert tagged(1, 7) == 7 * 256 + 1
    assert tagged(0, 7) == 7 * 256
    assert tagged(255, 1) == 511
    for given in (None, True, False, 0, "x"):
        assert tagged(3, given) == given
        assert type(tagged(3, given)) is type(given)
    put = Put("inserted", 5, "", 0, 7)
    assert tagged(1, put) == put._replace(outbox_id=7 * 256 + 1)
    for nothing in (None, 0):
        assert tagged(1, put._replace(outbox_id=nothing)).outbox_id == nothing
    assert tagged(2, [7, None, put]) == [7 * 256 + 2, None, put._replace(outbox_id=7 * 256 + 2)]
