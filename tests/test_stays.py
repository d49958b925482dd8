"""Who follows a bucket goes on when it moves to another database: every change once, in order."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poky import embedded
from poky.background import Background
from poky.feed import Cursor, Feed
from poky.schema import moving
from poky.schema.shards import join_shards
from poky.store import Changed, ShardedStore, StoreError
from tests.conftest import HASTY, Cluster, Database
from tests.service import Service, running, wait_until
from tests.support.databases import hung
from tests.support.followed import all_after, faults, identity, record, recorded, shown
from tests.test_following import Copy, Events
from tests.test_moves import ask, of_server
from tests.test_shards import (
    Clients,
    Killed,
    alter,
    name,
    nothing_is_left,
    opened,
    owners,
    store,
)

__all__ = ["name", "store"]


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Embedded]:
    settings = {**HASTY, "wal_retrieve_retry_interval": "200ms"}
    with embedded.ensure_running(tmp_path_factory.mktemp("shard"), settings=settings) as server:
        yield server


@pytest.fixture(scope="module", params=[False, True], ids=["one-server", "servers"])
def sharded(
    request: pytest.FixtureRequest, cluster: Cluster, other_server: embedded.Embedded
) -> Iterator[Database]:
    """Three databases; or the second on a server whose numbers of transactions are its own."""
    database = cluster.create_sharded(3)
    if not request.param:
        yield database
        cluster.drop(database)
        return
    own = Cluster(other_server)
    first = own.create("partitioned")
    cluster.drop(database.others[0])
    shards = (first, database.others[1])
    join_shards(database.dsn_owner, {n: each.dsn_owner for n, each in enumerate(shards, start=1)})
    database = replace(database, others=shards)
    yield database
    own.drop(first)
    cluster.drop(replace(database, others=shards[1:]))


def test_a_follower_goes_on_where_the_bucket_is(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    """There and back again, from every cursor of every page, and from the oldest."""
    store.ensure_bucket(name, 1)
    record(sharded, name)
    begin = store.changes(name).next
    written = []
    for shard in (None, 2, 1, 0):
        if shard is not None:
            moving.move(owners(sharded), name, shard)
            assert nothing_is_left(sharded, name, shard) == []
        for number in range(7):
            put = store.put(name, f"k{number % 4}", b"%d" % number, "t")
            written.append((f"k{number % 4}", "put", put.revision))
    for limit in (1, 3, 7, 1000):
        for cursor in (begin, "0"):
            assert shown(all_after(store, name, cursor, limit)) == written
    assert [each[2] for each in written] == sorted(each[2] for each in written)
    everything = all_after(store, name, "0", 3)
    for number, change in enumerate(everything, start=1):
        assert shown(all_after(store, name, change.next, 4)) == written[number:]
    assert recorded(sharded, identity(store, name)) == Counter((k, r) for k, _, r in written)
    page = store.changes(name, "0", "", 7)
    assert (shown(page.changes), page.is_last) == (written[:7], False)
    assert shown(all_after(store, name, "", 7)) == []
    # A prefix that nothing of a stay has; and only what it has.
    assert all_after(store, name, begin)[0].key == "k0"
    found = store.changes(name, begin, "nothing", 7)
    assert (found.changes, found.is_last) == ([], False)
    stays = [Cursor.parse(each.next).stay for each in everything]
    assert stays == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7
    assert [str(Cursor.parse(each.next)) for each in everything] == [e.next for e in everything]


def test_a_follower_who_is_far_behind_goes_from_step_to_step_of_each_stay(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    """And not to one of a later stay in the same database."""
    store.ensure_bucket(name, 1)
    record(sharded, name)
    begin = store.changes(name).next
    with closing(sharded.others[0].connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for _ in range(1100):
            cursor.execute("SELECT pg_current_xact_id()")
    store.put(name, "first", b"v", "t")
    moving.move(owners(sharded), name, 2)
    moving.move(owners(sharded), name, 1)
    store.put(name, "second", b"v", "t")
    alter(
        sharded.others[0],
        "UPDATE poky._change SET step = pg_current_snapshot()"
        f" WHERE bucket_id = {identity(store, name)} AND key = 'second'",
    )
    for after in (begin, "0"):
        assert [each.key for each in all_after(store, name, after)] == ["first", "second"]


def test_a_follower_sees_each_change_once_while_the_bucket_moves(
    sharded: Database, name: str
) -> None:
    """Pages, as fast as they come, under writers: three moves, the last back."""
    with closing(opened(sharded, 2)) as store:
        store.ensure_bucket(name, 1)
        record(sharded, name)
        begin = store.changes(name).next
        followed: list[Changed] = []
        waits: Counter[str] = Counter()
        stop = threading.Event()
        end: list[str] = []

        def follow() -> None:
            cursor = begin
            with closing(opened(sharded, 2)) as mine:
                while True:
                    stopping = stop.is_set()
                    try:
                        page = mine.changes(name, cursor, "", 20)
                    except StoreError as error:
                        waits[f"{error.status} {error.code}"] += 1
                        continue
                    followed.extend(page.changes)
                    cursor = page.next
                    if page.is_last and stopping:
                        end.append(cursor)
                        return

        follower = threading.Thread(target=follow)
        follower.start()
        with Clients(sharded, name, 3, 1) as clients:
            for shard in (2, 1, 0, 1):
                time.sleep(0.5)
                moving.move(owners(sharded), name, shard)
            time.sleep(0.5)
        stop.set()
        follower.join()
        assert clients.faults == []
        assert clients.lost() == []
        logged = recorded(sharded, identity(store, name))
        assert len(followed) > 100
        assert faults([(each.key, each.revision) for each in followed], logged) == []
        told = {(key, told[0]) for key, told in clients.acknowledged.items() if told[1] is not None}
        assert told <= set(logged)
        again = all_after(store, name, "0")
        assert faults([(each.key, each.revision) for each in again], logged) == []
        assert waits.keys() <= {"503 bucket_moving"}
        assert Cursor.parse(end[0]).stay == 4


def test_waiting_and_streaming_followers_go_on_while_the_bucket_moves(
    sharded: Database, name: str, tmp_path: Path
) -> None:
    """A stream that is kept, one that is opened again with Last-Event-ID, and long polls."""
    with closing(opened(sharded, 2)) as store:
        store.ensure_bucket(name, 0)
        record(sharded, name)
        with running(sharded.dsn_service, tmp_path / "log", shards=sharded.shards) as service:
            begin = service.client().get(f"/changes/{name}").json()["next"]
            stop = threading.Event()
            ways = {
                "stream": Followed(lambda: streamed(service, name, begin, 10**9), stop),
                "reopened": Followed(lambda: streamed(service, name, begin, 40), stop),
                "polls": Followed(lambda: polled(service, name, begin), stop),
            }
            with Clients(sharded, name, 2, 0) as clients:
                for shard in (1, 2, 1, 0):
                    time.sleep(0.5)
                    moving.move(owners(sharded), name, shard)
                time.sleep(1)
            store.put(name, "the-end", b"v", "t")
            for way in ways.values():
                way.join()
        logged = recorded(sharded, identity(store, name))
        for kind, way in ways.items():
            # A deletion has no tag, so that its revision is not shown: those are counted.
            puts = [each for each in way.seen if each[1] is not None]
            shown_once = set(puts)
            there = Counter({each: n for each, n in logged.items() if each in shown_once})
            assert faults(puts, there) == [], kind  # type: ignore[arg-type]
            assert len(way.seen) == logged.total(), kind
        assert clients.lost() == []


class Watched(Copy):
    """A copy in a feed that runs, and why it was told no more."""

    def __init__(self, bucket: str, cursor: str) -> None:
        super().__init__(bucket, cursor)
        self.failures: list[Exception] = []

    def fail(self, error: Exception) -> None:
        self.failures.append(error)

    def tick(self, now: float) -> None: ...


class Followed:
    """A thread that takes what a way of following gives, up to the key the-end."""

    def __init__(self, way: Any, stop: threading.Event) -> None:
        self.seen: list[tuple[str, int | None]] = []
        self._way = way
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        for change in self._way():
            tag = change.get("etag")
            self.seen.append((change["key"], None if tag is None else revision_of(tag)))
            if change["key"] == "the-end":
                return

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), f"stopped after {len(self.seen)}: {self.seen[-3:]}"


def revision_of(tag: str) -> int:
    return int(tag.strip('"').split("-")[0])


def streamed(service: Service, bucket: str, cursor: str, events: int) -> Iterator[Any]:
    """Server-sent events; opened again after so many, and whenever it ends."""
    while True:
        with suppress(AssertionError, OSError):
            stream = Events(service, f"/changes/{bucket}?after={cursor}", Last_Event_ID=cursor)
            stream.cursor = cursor
            try:
                for _ in range(events):
                    change = stream.next()
                    cursor = stream.cursor
                    yield change
            finally:
                stream.close()
        time.sleep(0.01)


def polled(service: Service, bucket: str, cursor: str) -> Iterator[Any]:
    with closing(service.client(90)) as client:
        while True:
            answer = client.get(f"/changes/{bucket}?after={cursor}&wait=5&limit=20")
            if answer.status == 503:
                continue
            assert answer.status == 200, answer.body
            page = answer.json()
            yield from page["changes"]
            cursor = page["next"]


@contextmanager
def beside_a_server(
    control: Database, folder: Path
) -> Iterator[tuple[Database, embedded.Embedded]]:
    """Control with shard 1, on a server of its own that runs as long as this."""
    settings = {**HASTY, "wal_retrieve_retry_interval": "200ms"}
    with embedded.ensure_running(folder, settings=settings) as server:
        shard = of_server(server)
        join_shards(control.dsn_owner, {1: shard.dsn_owner})
        yield replace(control, others=(shard,)), server


def test_only_those_wait_who_need_a_database_that_is_away(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    control = cluster.create("partitioned")
    with (
        beside_a_server(control, tmp_path / "shard") as (database, _),
        closing(opened(database)) as store,
    ):
        store.ensure_bucket(name, 1)
        record(database, name)
        begin = store.changes(name).next
        store.put(name, "there", b"v", "t")
        moving.move(owners(database), name, 0)
        assert [each.key for each in all_after(store, name, begin)] == ["there"]
        here = store.changes(name).next
    with closing(opened(database)) as store:
        store.put(name, "here", b"v", "t")
        assert [each.key for each in all_after(store, name, here)] == ["here"]
        with pytest.raises(StoreError) as refused:
            store.changes(name, begin)
        assert refused.value.status == 503
        with running(database.dsn_service, tmp_path / "log", shards=database.shards) as service:
            client = service.client(60)
            assert client.get(f"/changes/{name}?after={begin}").status == 503
            page = client.get(f"/changes/{name}?after={here}&wait=5").json()
            assert [each["key"] for each in page["changes"]] == ["here"]
    with closing(ShardedStore(control.dsn_service, {2: control.dsn_service})) as store:
        with pytest.raises(StoreError) as refused:
            store.changes(name, begin)
        assert (refused.value.status, "shard 1" in refused.value.detail) == (503, True)
        # Who has waited for it since before learns it as well.
        feed = Feed(store, cast(Background, SimpleNamespace(add=_nothing, is_stopping=False)), 1)
        waiting = Watched(name, begin)
        feed.admit(waiting)
        feed.join(waiting)
        wait_until(lambda: waiting.failures, 5)
        assert "shard 1" in str(waiting.failures)
        feed.release(waiting)
    shards = f"2={control.dsn_service}"
    with running(database.dsn_service, tmp_path / "log", shards=shards) as service:
        client = service.client(60)
        for accept in ("application/json", "text/event-stream"):
            answer = client.get(f"/changes/{name}?after={begin}&wait=20", accept=accept)
            assert (answer.status, answer.json()["code"]) == (503, "database_unavailable")
            assert "shard 1, which POKY_SHARDS" in answer.json()["detail"]
    cluster.drop(control)


def _nothing(*arguments: Any, **options: Any) -> None: ...


def test_a_former_database_that_hangs_holds_up_those_alone_who_need_it(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    """Pages, long polls and streams; and those go on when it answers again, each change once."""
    control = cluster.create("partitioned")
    with beside_a_server(control, tmp_path / "shard") as (database, server):
        with closing(opened(database)) as store:
            for bucket, number in ((name, 1), ("other", 0)):
                store.ensure_bucket(bucket, number)
                record(database, bucket)
            begin = store.changes(name).next
            for number in range(30):
                store.put(name, f"k{number % 7}", b"v", "t")
            moving.move(owners(database), name, 0)
            for number in range(30):
                store.put(name, f"k{number % 7}", b"v", "t")
            logged = recorded(database, identity(store, name))
        with closing(opened(database)) as store:
            feed = Feed(
                store, cast(Background, SimpleNamespace(add=_nothing, is_stopping=False)), 2
            )
            behind = Watched(name, begin)
            beside = Watched("other", store.changes("other").next)
            store.changes(name)  # it is known where it is
            with hung(server):
                for each in (behind, beside):
                    feed.admit(each)
                    feed.join(each)
                time.sleep(0.5)
                store.put("other", "quick", b"v", "t")
                wait_until(lambda: beside.keys == ["quick"], 1)
                assert behind.keys == []
            wait_until(lambda: len(behind.keys) == logged.total(), 20)
            for each in (behind, beside):
                feed.release(each)
        with running(database.dsn_service, tmp_path / "log", shards=database.shards) as service:
            client = service.client(60)
            after = client.get("/changes/other").json()["next"]
            assert client.get(f"/changes/{name}").status == 200  # it is known where it is
            stop = threading.Event()
            with hung(server):
                ways = [
                    Followed(lambda: streamed(service, name, begin, 10**9), stop)
                    if number % 3 == 0
                    else Followed(lambda: polled(service, name, begin), stop)
                    for number in range(9)
                ]
                refused = client.get(f"/changes/{name}?after={begin}").status
                longest = 0.0
                for number in range(10):
                    told: list[Any] = []
                    path = f"/changes/other?after={after}&wait=20"
                    waiting = threading.Thread(
                        target=lambda: told.append(service.client(60).get(path).json()),  # noqa: B023
                        daemon=True,
                    )
                    began = time.monotonic()
                    waiting.start()
                    time.sleep(0.2)
                    assert client.put(f"/kv/other/k{number}", "v").status == 200
                    waiting.join()
                    longest = max(longest, time.monotonic() - began)
                    assert [each["key"] for each in told[0]["changes"]] == [f"k{number}"]
                    after = told[0]["next"]
            with closing(opened(database, 2)) as store:
                store.put(name, "the-end", b"v", "t")
                logged = recorded(database, identity(store, name))
            for way in ways:
                way.join()
                assert faults(way.seen, logged) == []  # type: ignore[arg-type]
            assert refused == 503
            assert longest < 1
    cluster.drop(control)


def test_a_log_is_kept_where_it_was_for_as_long_as_the_bucket_says(
    cluster: Cluster, name: str
) -> None:
    sharded = cluster.create_sharded(3)
    with closing(opened(sharded)) as store:
        follow_a_log_that_ages(sharded, store, name)
    cluster.drop(sharded)


def follow_a_log_that_ages(sharded: Database, store: ShardedStore, name: str) -> None:
    store.ensure_bucket(name, 1)
    record(sharded, name, 3600)
    begin = store.changes(name).next
    store.put(name, "k", b"v", "t")
    moving.move(owners(sharded), name, 2)
    # Longer than was promised there.
    record(sharded, name, 10 * 86400)
    log = f"SELECT count(*) FROM poky._change WHERE bucket_id = {identity(store, name)}"
    # No bucket is followed there any more; without one, rows go after a day.
    alter(
        sharded.others[0], "UPDATE poky._change SET recorded_at = recorded_at - interval '24.5 h'"
    )
    store.renew_changes()
    assert ask(sharded.others[0], log) == 1
    assert len(all_after(store, name, begin)) == 1
    seconds, _, rest = begin.partition(".")
    for age, code in ((3600, None), (2 * 3600 + 60, "changes_gone")):
        cursor = f"{int(seconds) - age}.{rest}"
        if code is None:
            assert len(all_after(store, name, cursor)) == 1
            continue
        with pytest.raises(StoreError) as refused:
            store.changes(name, cursor)
        assert (refused.value.status, refused.value.code) == (410, code)
    for stay in (5, 999999999):
        with pytest.raises(StoreError) as refused:
            store.changes(name, f"{stay}s{begin}")
        assert (refused.value.status, refused.value.code) == (410, "changes_gone")
    with pytest.raises(StoreError) as refused:
        store.changes(name, f"s{begin}")
    assert refused.value.code == "bad_cursor"
    alter(
        sharded.others[0],
        "UPDATE poky._stay SET ended_at = ended_at - interval '2 days'",
    )
    store.renew_changes()
    assert ask(sharded.others[0], log) == 0
    with pytest.raises(StoreError) as refused:
        store.changes(name, begin)
    assert (refused.value.status, refused.value.code) == (410, "changes_gone")


def test_a_bucket_whose_recording_ended_begins_anew(
    sharded: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 1)
    record(sharded, name)
    begin = store.changes(name).next
    store.put(name, "k", b"v", "t")
    moving.move(owners(sharded), name, 2)
    record(sharded, name, None)
    with pytest.raises(StoreError) as refused:
        store.changes(name, begin)
    assert refused.value.code == "changes_off"
    store.put(name, "unseen", b"v", "t")
    moving.move(owners(sharded), name, 0)
    record(sharded, name)
    with pytest.raises(StoreError) as refused:
        store.changes(name, begin)
    assert refused.value.code == "changes_gone"
    store.put(name, "l", b"v", "t")
    assert [each.key for each in all_after(store, name, "0")] == ["l"]


@pytest.mark.parametrize("step", ["fence", "depart", "arrive", "settle"])
def test_a_follower_goes_on_after_a_move_that_was_killed(
    sharded: Database, store: ShardedStore, name: str, step: str
) -> None:
    store.ensure_bucket(name, 1)
    record(sharded, name)
    begin = store.changes(name).next
    store.put(name, "before", b"v", "t")

    def die(done: str) -> None:
        if done == step:
            raise Killed

    with pytest.raises(Killed):
        moving.move(owners(sharded), name, 2, after=die)
    if step == "depart":
        with pytest.raises(StoreError) as refused:
            store.changes(name, begin)
        assert (refused.value.status, refused.value.code) == (503, "bucket_moving")
    moving.move(owners(sharded), name, 2)
    store.put(name, "after", b"v", "t")
    assert [each.key for each in all_after(store, name, begin)] == ["before", "after"]
