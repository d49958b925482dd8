"""Reads and writes that share a statement: each has its own outcome, whatever befalls others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import psycopg2.extensions
import pytest

from poky.sharing import Lane, Read, Reads, Writes, Writing
from poky.sharing import writes as writing
from poky.sharing.shards import ShardedLane, ShardedReads, ShardedWrites
from poky.sharing.stages import Stages
from poky.sharing.writes import FEW_WRITES, MOST_BYTES, MOST_WRITES
from poky.store import (
    ALONE,
    Object,
    OneShard,
    Put,
    Store,
    StoreError,
    Together,
    Value,
    Write,
    bucket_functions,
)
from tests.conftest import Database
from tests.fake_cache import FakeCache
from tests.service import Service, free_ports, running, wait_until

THREADS = 4


class Told:
    """Outcomes by position, told by any thread."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[Any] = [Told] * count
        self._left = threading.Semaphore(0)

    def done(self, position: int) -> Any:
        def tell(outcome: Any) -> None:
            assert self.outcomes[position] is Told, "told twice"
            self.outcomes[position] = outcome
            self._left.release()

        return tell

    def all(self) -> list[Any]:
        for _ in self.outcomes:
            assert self._left.acquire(timeout=30), self.outcomes
        return self.outcomes


class NoCaches:
    """The caches, where there are none; what they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def purge_each(self, objects: Any, outbox_ids: Any, done: Any) -> None:
        self.told += objects
        done(None)


@pytest.fixture
def store(own_database: Database) -> Iterator[Store]:
    store = Store(own_database.dsn_service, pool_size=8)
    for bucket in ("a", "b", "c"):
        store.ensure_bucket(bucket)
    yield store
    store.close()


def anything(size: int) -> None:
    """There is room for it."""


def read(reads: Reads, wanted: list[tuple[str, str]]) -> list[Any]:
    told = Told(len(wanted))
    for position, (bucket, key) in enumerate(wanted):
        reads.add(Read(bucket, key, anything, None, time.monotonic(), told.done(position)))
    reads.after_turn(False)
    return told.all()


def test_a_lone_read_is_answered_at_once_unless_it_might_hold_up_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(store, THREADS)
    write(
        Writes(store, NoCaches(), THREADS),
        [put_of("k", b"1"), put_of("large", b"1" * 300_000)],
    )
    found = reads.at_once("a", "k")
    assert isinstance(found, Object)
    assert (found.key, bytes(found.value), found.size) == ("k", b"1", 1)
    assert found == read(reads, [("a", "k")])[0]
    assert reads.at_once("a", "none") is None
    assert reads.at_once("a", "large") is ALONE
    assert reads.sizes.count == 4
    if store.function_number("nowhere") is None:  # in the flat schema every bucket is there
        with pytest.raises(StoreError, match="no bucket"):
            reads.at_once("nowhere", "k")
    # What is set apart goes its own way.
    monkeypatch.setattr("poky.sharing.reads.LARGE_SECONDS", 60)
    read(reads, [("a", "large")])
    assert reads.at_once("a", "k") is ALONE


def test_no_lone_read_begins_while_another_is_under_way(
    store: Store, own_database: Database
) -> None:
    write(Writes(store, NoCaches(), THREADS), [put_of("k", b"1"), put_of("k", b"1", "b")])
    with closing(own_database.connect()) as holder:
        holder.cursor().execute("LOCK TABLE poky._object IN ACCESS EXCLUSIVE MODE")
        reads = Reads(store, THREADS)
        waiting = threading.Thread(target=lambda: read(reads, [("a", "k")]))
        waiting.start()
        wait_until(lambda: store.connections[0] == 1)
        assert reads.at_once("b", "k") is ALONE
        holder.rollback()
        waiting.join(10)
    assert isinstance(reads.at_once("b", "k"), Object)


def write(writes: Writes, wanted: list[Write]) -> list[Any]:
    told = Told(len(wanted))
    for position, each in enumerate(wanted):
        writes.add(Writing(each, None, told.done(position)))
    writes.after_turn(False)
    return told.all()


def put_of(key: str, value: bytes | None, bucket: str = "a", **conditions: Any) -> Write:
    given = {"modified_at": None, "if_match": None, "if_none_match": None, **conditions}
    content = None if value is None else Value(value)
    return Write(bucket, key, content, "text/plain", **given)


def held(database: Database, bucket: str, key: str) -> psycopg2.extensions.connection:
    """A transaction of another client that has the object locked."""
    holder = database.connect()
    holder.cursor().execute("SELECT poky.put(%s, %s, 'held', 't')", [bucket, key])
    return holder


def terminate_waiting(database: Database) -> None:
    """End the backend that waits for a lock, as soon as there is one."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True

        def end() -> bool:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return bool(cursor.fetchall())

        wait_until(end)


# -- reads


@pytest.mark.parametrize("buckets", [["a"], ["a", "b", "c"]])
def test_each_read_of_a_statement_gets_its_own(store: Store, kind: str, buckets: list[str]) -> None:
    large = b"x" * 40_000
    for bucket in buckets:
        store.put(bucket, "k", bucket.encode(), "text/plain", content_encoding="gzip")
        store.put(bucket, "empty", b"", "text/plain")
        store.put(bucket, "large", large, "text/plain")
    reads = Reads(store, THREADS)
    wanted = [(bucket, key) for bucket in buckets for key in ("k", "none", "k", "large", "empty")]
    found = read(reads, wanted)
    for (bucket, key), each in zip(wanted, found, strict=True):
        expected = {"k": bucket.encode(), "large": large, "empty": b"", "none": None}[key]
        assert (each and bytes(each.value)) == expected or (each is None and expected is None)
        if each is not None:
            assert each == store.get(bucket, key)
    assert reads.sizes.count == 1


def test_buckets_whose_plans_are_not_kept_are_read_alike(
    store: Store, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bucket_functions._MOST, "share", 1)
    for bucket in ("a", "b", "c"):
        store.put(bucket, "k", bucket.encode(), "text/plain")
    wanted = [(bucket, key) for bucket in ("a", "b", "c") for key in ("k", "none")]
    found = read(Reads(store, THREADS), wanted)
    assert [each and bytes(each.value) for each in found] == [b"a", None, b"b", None, b"c", None]


def test_a_bucket_that_is_not_there_is_404_for_its_reads_alone(store: Store, kind: str) -> None:
    store.put("a", "k", b"1", "text/plain")
    found = read(Reads(store, THREADS), [("a", "k"), ("nowhere", "k"), ("a", "none")])
    assert isinstance(found[0], Object)
    assert found[2] is None
    if kind == "partitioned":
        assert isinstance(found[1], StoreError)
        assert found[1].code == "bucket_not_found"
    else:
        assert found[1] is None


@pytest.mark.parametrize("wanted", [[("a", "k")] * 3, [("a", "k"), ("b", "k")]])
def test_a_bucket_dropped_since_is_404(
    store: Store, kind: str, wanted: list[tuple[str, str]]
) -> None:
    reads = Reads(store, THREADS)
    store.put("a", "k", b"1", "text/plain")
    store.put("b", "k", b"1", "text/plain")
    assert all(isinstance(each, Object) for each in read(reads, [("a", "k"), ("b", "k")] * 2))
    store.drop_bucket("a", keys=True)
    for _ in range(2):
        gone, *others = read(reads, wanted)
        assert gone is None or gone.code == "bucket_not_found"
        assert (gone is None) == (kind == "flat")
        assert all(
            isinstance(each, Object) == (bucket == "b")
            for (bucket, _), each in zip(wanted[1:], others, strict=True)
        )


def test_reads_are_asked_again_when_their_connection_is_lost(
    store: Store, own_database: Database
) -> None:
    store.put("a", "k", b"1", "text/plain")
    reads = Reads(store, THREADS)
    read(reads, [("a", "k")] * 2)
    with closing(own_database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'poky' AND datname = current_database()"
        )
    found = read(reads, [("a", "k")] * 5)
    assert [bytes(each.value) for each in found] == [b"1"] * 5


class Asked(Store):
    """A store that counts how often it is asked for objects."""

    times = 0

    def get_each(self, *arguments: Any, **options: Any) -> Any:
        self.times += 1
        return super().get_each(*arguments, **options)


def test_no_more_than_a_thousand_are_kept_apart(store: Store) -> None:
    """Clients choose the keys: memory must not grow with them."""
    reads, writes = Reads(store, THREADS), Writes(store, NoCaches(), THREADS)
    for number in range(2500):
        reads._keep_apart(f"b{number}", 60, reads._locked)
        writes._keep_apart(Writing(put_of(f"k{number}", b""), None, Told(1).done(0)))
    for apart, last in ((reads._apart, "b2499"), (writes._apart, ("a", "k2499"))):
        assert len(apart) <= 1000
        assert last in apart


def test_reads_that_fail_for_all_are_not_asked_again_one_by_one() -> None:
    away = Asked(f"host=127.0.0.1 port={free_ports(1)[0]} dbname=none", pool_size=2)
    with closing(away):
        outcomes = read(Reads(away, THREADS), [("a", "k"), ("b", "k"), ("c", "k")])
        assert [each.code for each in outcomes] == ["database_unavailable"] * 3
        assert away.times == 1


class Late(OneShard):
    """One database of several that takes its time, or refuses."""

    seconds = 0.3
    error: StoreError | None = None

    def __init__(self) -> None:
        self.under = lambda *policy, **since: nullcontext()  # type: ignore[assignment]
        self.threads: list[int] = []

    def get_each(self, wanted: Any, *, is_quick: bool = False) -> Any:
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return [None] * len(wanted)

    def get_small(self, bucket: str, key: str) -> Any:
        return self.get_each([(bucket, key)])[0]


@pytest.mark.parametrize("is_away", [False, True], ids=["slow", "away"])
def test_no_thread_that_serves_others_waits_for_one_of_several_that_is_slow(
    *, is_away: bool
) -> None:
    """It waits once, until it is known, and not when the database answers again."""
    late = Late()
    if is_away:
        late.seconds, late.error = 0, StoreError(503, "Away.", code="database_unavailable")
    reads = Reads(late, THREADS, most=2)
    me = threading.get_ident()
    read(reads, [("a", "k")])
    assert late.threads == [me]
    for number in range(3):
        assert reads.at_once("a", "k") is ALONE
        read(reads, [("a", f"k{number}")])
    assert me not in late.threads[1:]
    assert len(late.threads) == 4
    late.seconds, late.error = 0, None
    assert read(reads, [("a", "k")]) == [None]

    def is_at_once() -> bool:  # on a busy machine it may be taken for slow once more
        read(reads, [("a", "k")])
        return late.threads[-1] == me and reads.at_once("a", "k") is None

    wait_until(is_at_once)


@pytest.mark.parametrize("kind", ["partitioned"])  # the flat schema has one table for all
def test_reads_of_one_locked_bucket_are_not_asked_again(own_database: Database) -> None:
    locked = Asked(own_database.dsn_service, pool_size=2, lock_timeout=0.2)
    locked.ensure_bucket("a")
    locked.put("a", "k", b"1", "text/plain")
    with closing(locked), closing(own_database.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT leaf FROM poky.bucket WHERE name = 'a'")
        cursor.execute(f"LOCK poky.{cursor.fetchone()[0]} IN ACCESS EXCLUSIVE MODE")
        outcomes = read(Reads(locked, THREADS), [("a", "k"), ("a", "l")])
        assert [each.code for each in outcomes] == ["database_slow"] * 2
        assert locked.times == 1


class Transferring(Store):
    """A store from which a large value takes a while."""

    def get(self, bucket: str, key: str, *arguments: Any, **options: Any) -> Any:
        found = super().get(bucket, key, *arguments, **options)
        if found is not None and found.size > 256 * 1024:
            time.sleep(0.3)
        return found


def test_a_small_object_does_not_wait_for_large_ones_while_statements_are_late(
    own_database: Database,
) -> None:
    """On a busy machine any statement is late, and what its bucket has is asked for alone."""
    store = Transferring(own_database.dsn_service, pool_size=8)
    store.ensure_bucket("a")
    store.put("a", "large", b"x" * 1_000_000, "text/plain")
    store.put("a", "small", b"1", "text/plain")
    reads = Reads(store, THREADS)
    reads._running[0] = time.monotonic() - 1, (("a", "other"),)
    told = Told(13)
    for position, key in enumerate(["large"] * 12 + ["small"]):
        reads.add(Read("a", key, anything, None, time.monotonic(), told.done(position)))
    began = time.monotonic()
    reads.after_turn(False)
    wait_until(lambda: told.outcomes[12] is not Told, timeout=30)
    took = time.monotonic() - began
    assert isinstance(told.outcomes[12], Object), told.outcomes[12]
    assert took < 1.2, "it waited for the large ones"
    wait_until(lambda: all(each is not Told for each in told.outcomes), timeout=30)
    assert {len(each.value) for each in told.outcomes if isinstance(each, Object)} == {1, 1_000_000}
    store.close()


@pytest.mark.parametrize("kind", ["partitioned"])  # the flat schema has one table for all
def test_a_locked_bucket_delays_only_its_own_reads(store: Store, own_database: Database) -> None:
    for bucket in ("a", "b"):
        store.put(bucket, "k", b"1", "text/plain")
    reads = Reads(store, THREADS)
    with closing(own_database.connect()) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT leaf FROM poky.bucket WHERE name = 'b'")
        cursor.execute(f"LOCK poky.{cursor.fetchone()[0]} IN ACCESS EXCLUSIVE MODE")
        told = Told(6)
        for position, bucket in enumerate(("a", "b", "a", "a", "b", "a")):
            reads.add(Read(bucket, "k", anything, None, time.monotonic(), told.done(position)))
        began = time.monotonic()
        reads.after_turn(False)
        wait_until(lambda: all(told.outcomes[n] is not Told for n in (0, 2, 3, 5)))
        assert time.monotonic() - began < 1.4, "as long as the locked ones"
        outcomes = told.all()
        assert [outcomes[n].code for n in (1, 4)] == ["database_slow"] * 2
        began = time.monotonic()
        for _ in range(20):  # it stays apart
            told = Told(2)
            reads.add(Read("b", "k", anything, None, time.monotonic(), told.done(0)))
            reads.add(Read("a", "k", anything, None, time.monotonic(), told.done(1)))
            reads.after_turn(False)
            assert isinstance(told.outcomes[1], Object)
        assert time.monotonic() - began < 1
    wait_until(lambda: told.outcomes[0] is not Told, timeout=60)


def test_a_small_object_does_not_wait_for_large_ones_of_its_bucket(store: Store) -> None:
    """Nor does it fail, when more of them are asked for than there are threads."""
    store.put("a", "large", b"x" * 2_000_000, "text/plain")
    store.put("a", "small", b"small", "text/plain")
    reads = Reads(store, THREADS)
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def slow(size: int) -> None:
        begun.release()
        assert go_on.wait(30)

    told = Told(8)
    for position in range(8):
        reads.add(Read("a", "large", slow, None, time.monotonic(), told.done(position)))
    reads.after_turn(False)
    for _ in range(THREADS // 2):  # all that may ask for large ones
        assert begun.acquire(timeout=30)
    for _ in range(5):
        (found,) = read(reads, [("a", "small")])
        assert found.value == b"small"
    go_on.set()
    told.all()


# -- writes


def test_each_write_of_a_statement_has_its_own_outcome(store: Store, kind: str) -> None:
    there = store.put("a", "there", b"1", "text/plain")
    tag = f"{there.revision}-{there.hash}"
    caches = NoCaches()
    writes = Writes(store, caches, THREADS)
    wanted = [put_of(f"k{n}", b"%d" % n) for n in range(10)]
    wanted += [
        put_of("there", b"2", if_match=tag),
        put_of("there", b"3", if_match="1-00000000"),
        put_of("there", b"4", "b", if_none_match="*"),
        put_of("k", b"5", "nowhere"),
        put_of("missing", None, "b"),
        put_of("none", b"6", "c", if_match="*"),
        put_of("old", b"7", "c", modified_at=10),
    ]
    outcomes = [each.outcome for each in write(writes, wanted)]
    nowhere = "no bucket" if kind == "partitioned" else "inserted"
    expected = ["updated", "rejected", "inserted", nowhere, "missing", "rejected", "inserted"]
    assert outcomes == ["inserted"] * 10 + expected
    assert writes.sizes.count == 1
    assert caches.told == []
    for n in range(10):
        found = store.get("a", f"k{n}")
        assert found is not None
        assert bytes(found.value) == b"%d" % n
    found = store.get("a", "there")
    assert found is not None
    assert bytes(found.value) == b"2"
    outcomes = [
        each.outcome
        for each in write(
            writes,
            [
                put_of("old", b"8", "c", modified_at=9),
                put_of("k1", None),
                put_of("k2", None, if_match="1-00000000"),
            ],
        )
    ]
    assert outcomes == ["rejected", "deleted", "rejected"]


def test_twenty_puts_of_one_key_take_effect_one_after_the_other(store: Store) -> None:
    writes = Writes(store, NoCaches(), THREADS)
    outcomes: list[Put] = write(writes, [put_of("k", b"%d" % n) for n in range(20)])
    revisions = [each.revision for each in outcomes]
    assert len(set(revisions)) == 20
    found = store.get("a", "k")
    assert found is not None
    assert found.revision == max(revisions)
    assert bytes(found.value) == b"%d" % revisions.index(max(revisions))


def test_of_twelve_creators_in_one_statement_one_wins(store: Store) -> None:
    writes = Writes(store, NoCaches(), THREADS)
    outcomes = write(writes, [put_of("new", b"%d" % n, if_none_match="*") for n in range(12)])
    assert sorted(each.outcome for each in outcomes) == ["inserted"] + ["rejected"] * 11
    assert writes.sizes.count == 1


def test_writes_decided_under_one_policy_share_a_statement(store: Store) -> None:
    """How each of them would be decided anew is its own affair."""
    with closing(psycopg2.connect(store.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT policy FROM poky.credential('', '')")
        ((policy,),) = cursor.fetchall()
    writes = Writes(store, NoCaches(), THREADS)
    told = Told(10)
    for number in range(10):
        held = policy, lambda outdated: outdated
        writes.add(Writing(put_of(f"k{number}", b"1"), held, told.done(number)))
    writes.after_turn(False)
    assert [each.outcome for each in told.all()] == ["inserted"] * 10
    assert writes.sizes.count == 1


@pytest.mark.parametrize("policy", [None, "p"])
def test_a_statement_that_fails_as_nobody_expected_leaves_no_write_untold(
    store: Store, monkeypatch: pytest.MonkeyPatch, policy: str | None
) -> None:
    """Whatever tokens it was decided under; only a lone one may have been decided anew."""

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(store, "change_each", fail)
    writes = Writes(store, NoCaches(), THREADS)
    told = Told(3)
    for number in range(3):
        held = (policy, lambda outdated: outdated) if policy else None
        writes.add(Writing(put_of(f"k{number}", b"1"), held, told.done(number)))
    writes.after_turn(False)
    outcomes = told.all()
    assert all(isinstance(each, StoreError) and each.unknown for each in outcomes), outcomes


def test_what_comes_while_a_statement_waits_is_written_by_another_when_it_is_late(
    store: Store, own_database: Database
) -> None:
    store.put("a", "locked", b"1", "text/plain")
    writes = Writes(store, NoCaches(), THREADS)
    told = Told(FEW_WRITES + 1)
    with closing(held(own_database, "a", "locked")) as holder:
        writes.add(Writing(put_of("locked", b"2"), None, told.done(0)))
        writes.after_turn(False)
        wait_until(lambda: writes.sizes.count == 1)
        for number in range(1, FEW_WRITES + 1):
            writes.add(Writing(put_of(f"k{number}", b"1"), None, told.done(number)))
        writes.after_turn(False)
        assert writes.sizes.count == 1  # it may end any moment: nothing waits in a second thread

        def are_written() -> bool:
            writes.late()  # as every 20 ms under load
            return all(each is not Told for each in told.outcomes[1:])

        wait_until(are_written)
        assert told.outcomes[0] is Told
        holder.rollback()
    assert [each.outcome for each in told.all()[1:]] == ["inserted"] * FEW_WRITES
    assert writes.sizes.count == 2


def test_for_late_writes_one_thread_more_is_asked_at_a_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    writes = Writes(store, NoCaches(), THREADS)
    monkeypatch.setattr(writes._lane, "submit", lambda begin, refuse: asked.append(begin))
    told = Told(1)
    writes.add(Writing(put_of("k", b"1"), None, told.done(0)))
    writes.after_turn(False)
    writes.late()
    assert len(asked) == 1  # it has not begun yet
    writes._begun = 0
    for busy, expected in ((THREADS - 1, 1), (THREADS - 2, 2)):
        writes._began = dict.fromkeys(range(busy), (0.0, 1))
        writes.late()
        assert len(asked) == expected


def test_while_few_writes_are_under_way_a_second_thread_writes(
    store: Store, own_database: Database
) -> None:
    store.put("a", "locked", b"1", "text/plain")
    writes = Writes(store, NoCaches(), THREADS)
    for _ in range(2):  # what has been told counts no longer
        told = Told(3)
        with closing(held(own_database, "a", "locked")) as holder:
            writes.add(Writing(put_of("locked", b"2"), None, told.done(0)))
            writes.after_turn(False)
            for number in (1, 2):
                writes.add(Writing(put_of(f"k{number}", b"1"), None, told.done(number)))
                writes.after_turn(False)
            wait_until(lambda told=told: Told not in told.outcomes[1:])  # type: ignore[misc]
            assert told.outcomes[0] is Told
            holder.rollback()
        told.all()
        for number in range(3 * FEW_WRITES):
            write(writes, [put_of(f"n{number}", b"1")])


def test_a_refusal_is_purged_as_well_where_there_are_caches(store: Store) -> None:
    caches = NoCaches()
    writes = Writes(store, caches, THREADS)
    store.register_node("node", "http://127.0.0.1:1")
    write(
        writes,
        [put_of("k", b"1", if_match="*"), put_of("gone", None), put_of("new", b"1")],
    )
    assert sorted(caches.told) == [("a", "gone"), ("a", "k"), ("a", "new")]


@pytest.mark.parametrize(
    "refused",
    [
        put_of("there", b"2", if_none_match="*"),
        put_of("there", b"2", modified_at=1),
        put_of("there", b"2", if_match="@1"),
        put_of("there", None, if_match="@1"),
        put_of("there", None, if_none_match="*"),
        put_of("gone", b"2", if_match="*"),
        put_of("gone", None),
        put_of("gone", None, if_none_match="*"),
    ],
)
@pytest.mark.parametrize("company", [0, 1])
def test_each_refusal_is_purged_alone_and_among_others(
    store: Store, refused: Write, company: int
) -> None:
    write(Writes(store, NoCaches(), THREADS), [put_of("there", b"1")])
    writes = [refused, *[put_of("other", b"1")] * company]
    outcomes = dict(zip(writes, store.change_each(writes), strict=True))
    assert outcomes[refused].outcome in ("rejected", "missing")
    assert outcomes[refused].outbox_id is None
    store.register_node("node", "http://127.0.0.1:1")
    outcomes = dict(zip(writes, store.change_each(writes), strict=True))
    assert outcomes[refused].outbox_id == 0


@pytest.mark.parametrize("kind", ["partitioned"])
@pytest.mark.parametrize("company", [0, 1])
def test_that_a_bucket_is_gone_is_told_to_the_caches_first(store: Store, company: int) -> None:
    """Its drop, by another client, may not be acknowledged yet."""
    caches = NoCaches()
    writes = Writes(store, caches, THREADS)
    store.register_node("node", "http://127.0.0.1:1")
    store.drop_bucket("b", keys=True)
    told = Told(1 + company)
    for number in range(1 + company):
        bucket = "ba"[number]
        writes.add(Writing(put_of("k", b"1", bucket), None, told.done(number)))
    writes.after_turn(not company)
    gone = told.all()[0]
    assert isinstance(gone, StoreError) or gone.outcome == "no bucket"
    assert ("b", "k") in caches.told


@pytest.mark.parametrize("kind", ["partitioned"])
@pytest.mark.parametrize(
    "refused", [put_of("k", b"1", if_match="*"), put_of("k", None), put_of("k", b"1", "gone")]
)
def test_a_refusal_of_which_caches_cannot_be_told_reveals_nothing(
    store: Store, refused: Write
) -> None:
    class CutOff(NoCaches):
        def purge_each(self, objects: Any, outbox_ids: Any, done: Any) -> None:
            done(StoreError(503, "A cache does not answer.", code="cache_cut_off"))

    store.register_node("node", "http://127.0.0.1:1")
    (outcome,) = write(Writes(store, CutOff(), THREADS), [refused])
    assert isinstance(outcome, StoreError)
    assert (outcome.status, outcome.code) == (503, "cache_cut_off")
    assert outcome.detail.startswith("Nothing was changed")
    assert not outcome.unknown


def test_the_order_is_commit_then_caches_then_answers(store: Store, own_database: Database) -> None:
    store.register_node("node", "http://127.0.0.1:1")
    told = Told(4)
    seen: list[tuple[str, str]] = []

    class Watching(NoCaches):
        def purge_each(self, objects: Any, outbox_ids: Any, done: Any) -> None:
            with closing(own_database.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT b.name, o.key FROM poky._object AS o JOIN poky.bucket AS b"
                               " ON b.id = o.bucket_id ORDER BY 1, 2")  # fmt: skip
                seen.extend(cursor.fetchall())
            assert told.outcomes == [Told] * 4, "answered before the caches knew"
            super().purge_each(objects, outbox_ids, done)

    caches = Watching()
    writes = Writes(store, caches, THREADS)
    for position, (bucket, key) in enumerate((("a", "k"), ("b", "k"), ("a", "l"))):
        writes.add(Writing(put_of(key, b"1", bucket), None, told.done(position)))
    writes.add(Writing(put_of("none", None, "c"), None, told.done(3)))
    writes.after_turn(False)
    assert [each.outcome for each in told.all()] == ["inserted"] * 3 + ["missing"]
    assert seen == [("a", "k"), ("a", "l"), ("b", "k")]
    assert sorted(caches.told) == [("a", "k"), ("a", "l"), ("b", "k"), ("c", "none")]


def test_a_locked_object_delays_its_neighbours_only_briefly(
    store: Store, own_database: Database
) -> None:
    writes = Writes(store, NoCaches(), THREADS)
    holder = held(own_database, "a", "locked")
    for attempt in range(2):
        told = Told(21)
        began = time.monotonic()
        took: dict[int, float] = {}

        def done(position: int, told: Told = told, began: float = began, took: Any = took) -> Any:
            tell = told.done(position)

            def note(outcome: Any) -> None:
                took[position] = time.monotonic() - began
                tell(outcome)

            return note

        writes.add(Writing(put_of("locked", b"x"), None, done(20)))
        for n in range(20):
            writes.add(Writing(put_of(f"k{n}", b"x", "abc"[n % 3]), None, done(n)))
        writes.after_turn(False)
        wait_until(lambda: ("a", "locked") in writes._apart)
        assert 20 not in took  # what comes for it meanwhile goes its own way, too
        *others, locked = told.all()
        assert {type(each) for each in others} == {Put}
        assert isinstance(locked, StoreError)
        assert (locked.code, locked.unknown) == ("database_slow", False)
        assert took.pop(20) > 1.2
        assert max(took.values()) < (1.2, 0.5)[attempt], "the second time it is known"
    holder.close()


def test_a_lost_connection_leaves_all_in_doubt_and_repeats_none(
    store: Store, own_database: Database
) -> None:
    writes = Writes(store, NoCaches(), THREADS)
    write(writes, [put_of("k5", b"0")])
    holder = held(own_database, "a", "k5")
    told = Told(10)
    for n in range(10):
        writes.add(Writing(put_of(f"k{n}", b"x"), None, told.done(n)))
    writes.after_turn(False)
    terminate_waiting(own_database)
    outcomes = told.all()
    holder.rollback()
    holder.close()
    assert {each.unknown for each in outcomes} == {True}
    assert store.get("a", "k0") is None


def test_a_bucket_dropped_meanwhile_fails_only_its_writes(store: Store, kind: str) -> None:
    writes = Writes(store, NoCaches(), THREADS)
    write(writes, [put_of("k", b"1"), put_of("k", b"1", "b")])
    store.drop_bucket("b", keys=True)
    outcomes = write(writes, [put_of("k", b"2"), put_of("k", b"2", "b"), put_of("k", b"2", "c")])
    gone = "no bucket" if kind == "partitioned" else "inserted"
    assert [each.outcome for each in outcomes] == ["updated", gone, "inserted"]


def test_deletes_of_the_future_keep_their_dates(store: Store) -> None:
    later = int(time.time()) + 1000
    for bucket in ("a", "b"):
        store.put(bucket, "k", b"1", "text/plain", later)
    writes = Writes(store, NoCaches(), THREADS)
    write(writes, [put_of("k", None), put_of("k", None, "b"), put_of("x", b"1", "b")])
    found = store.get("b", "x")
    assert found is not None
    assert found.unchanged_since == later


# -- the whole service


@pytest.fixture
def service(own_database: Database, tmp_path: Path) -> Iterator[Service]:
    with running(own_database.dsn_service, tmp_path / "log") as service:
        for bucket in ("a", "b"):
            service.admin().request("PUT", f"/buckets/{bucket}")
        yield service


def test_many_clients_share_statements(service: Service) -> None:
    def work(number: int) -> None:
        client = service.client()
        for n in range(50):
            body = f"{number}-{n}"
            stored = client.put(f"/kv/a/{number}", body)
            assert stored.status == 200, stored.body
            found = client.get(f"/kv/a/{number}")
            assert (found.body.decode(), found.etag) == (body, stored.etag)

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(work, range(24)))
    figures = {
        line.split()[0]: float(line.split()[1])
        for line in service.admin().get("/metrics").body.decode().splitlines()
        if line.startswith("poky_shared")
    }
    for verb in ("reads", "writes"):
        assert figures[f"poky_shared_{verb}_objects_total"] >= 600
        assert figures[f"poky_shared_{verb}_statements_total"] < 1200


def test_slow_work_does_not_delay_probes_reads_and_writes(
    service: Service, own_database: Database
) -> None:
    service.client().put("/kv/b/k", b"1")
    holder = held(own_database, "a", "locked")
    stop = threading.Event()

    def bother(request: Any) -> None:
        client = service.client()
        while not stop.is_set():
            request(client)

    with ThreadPoolExecutor(16) as pool:
        for _ in range(8):
            pool.submit(bother, lambda client: client.put("/kv/a/locked", b"x"))
            pool.submit(
                bother, lambda client: client.batch("PUT", "a", [{"key": "locked", "data": "x"}])
            )
        try:
            time.sleep(0.5)
            took = []
            client = service.client()
            for _ in range(40):
                began = time.monotonic()
                assert client.get("/status").status == 200
                assert client.get("/kv/b/k").status == 200
                assert client.put("/kv/b/k", b"1").status == 200
                took.append(time.monotonic() - began)
        finally:
            stop.set()
            holder.close()
    assert sorted(took)[36] < 1.0, took


def test_what_a_refusal_tells_is_told_to_the_caches_first(
    own_database: Database, tmp_path: Path, kind: str
) -> None:
    with (
        FakeCache("one") as node,
        running(own_database.dsn_service, tmp_path / "log", caches=f"one={node.url}") as service,
    ):
        service.admin().request("PUT", "/buckets/a")
        with closing(Store(own_database.dsn_service)) as store:
            wait_until(lambda: [node.suspended_at for node in store.nodes()] == [None])
        client = service.client()
        assert client.delete("/kv/a/gone").status == 404
        assert client.put("/kv/a/absent", b"1", if_match="*").status == 412
        items = [{"key": "x"}, {"key": "y", "if_match": "*"}]
        assert client.batch("DELETE", "a", items).status == 200
        assert client.batch("PUT", "a", [{"key": "z", "data": "", "if_match": "*"}]).status == 200
        assert client.put("/kv/a/there", b"1").status == 200
        assert client.put("/kv/a/there", b"2", if_none_match="*").status == 412
        assert node.told == [
            f"/kv/a/{key}" for key in ("gone", "absent", "x", "y", "z", "there", "there")
        ]
        if kind == "flat":
            return  # a bucket that is missing is made
        del node.told[:]
        assert client.put("/kv/none/p", b"1").code == "bucket_not_found"
        assert client.delete("/kv/none/d").code == "bucket_not_found"
        for method in ("PUT", "DELETE"):
            items = [{"key": method, **({"data": ""} if method == "PUT" else {})}]
            assert client.batch(method, "none", items).code == "bucket_not_found"
        assert node.told == [f"/kv/none/{key}" for key in ("p", "d", "PUT", "DELETE")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_the_only_thread_looks_for_work_however_much_there_is(
    own_database: Database, tmp_path: Path
) -> None:
    """It makes writes without an end; a watchdog ends what has not looked for 20 s."""
    over = time.monotonic() + 27
    with running(own_database.dsn_service, tmp_path / "log", threads="1") as service:
        service.admin().request("PUT", "/buckets/a")

        def load(number: int) -> set[int]:
            client, statuses = service.client(), set()
            while time.monotonic() < over:
                statuses.add(client.put(f"/kv/a/{number % 3}", b"x").status)
                statuses.add(client.get(f"/kv/a/{number % 3}").status)
            return statuses

        with ThreadPoolExecutor(6) as pool:
            loads = [pool.submit(load, number) for number in range(6)]
            slowest = 0.0
            while time.monotonic() < over:
                began = time.monotonic()
                assert service.client().get("/status").status == 200
                slowest = max(slowest, time.monotonic() - began)
                time.sleep(0.2)
        assert set().union(*(each.result() for each in loads)) == {200}
        assert slowest < 5
        assert service.stop() == 0
        assert "looked for work" not in service.log.read_text()


def test_a_silent_cache_delays_no_write_of_another_key_for_long(
    own_database: Database, tmp_path: Path
) -> None:
    with (
        FakeCache("one") as node,
        running(own_database.dsn_service, tmp_path / "log", caches=f"one={node.url}") as service,
    ):
        service.admin().request("PUT", "/buckets/a")
        with closing(Store(own_database.dsn_service)) as store:
            wait_until(lambda: [node.suspended_at for node in store.nodes()] == [None])
            store.lease("one", 8.0)
        node.is_silent = True
        with ThreadPoolExecutor(8) as pool:
            waiting = [pool.submit(service.client().put, f"/kv/a/{n}", b"x") for n in range(7)]
            wait_until(lambda: service.client().get("/kv/a/0").status == 200)
            began = time.monotonic()
            assert service.client().get("/kv/a/0").status == 200
            assert service.client().get("/status").status == 200
            assert time.monotonic() - began < 1
            assert {each.result().status for each in waiting} == {200}


# Lanes.


def test_work_that_has_waited_too_long_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    lane = Lane("tests", 1, patience=0.1)
    go_on, said = threading.Event(), Told(4)
    assert (lane.is_busy, lane.waiting) == (False, 0)

    def work(position: int) -> tuple[Any, Any]:
        tell = said.done(position)
        return (lambda: tell(threading.current_thread().name)), tell

    lane.submit(lambda: go_on.wait(30), lambda _: None)
    wait_until(lambda: lane.waiting == 0)
    assert lane.is_busy
    lane.submit(*work(0))
    assert lane.waiting == 1
    time.sleep(0.12)
    lane.submit(*work(1))
    go_on.set()
    wait_until(lambda: said.outcomes[1] is not Told)
    assert isinstance(said.outcomes[0], StoreError)
    assert (said.outcomes[0].status, said.outcomes[0].code) == (503, "busy")
    assert said.outcomes[1] == "tests-1"
    lane.submit(lambda: 1 // 0, lambda _: None)  # type: ignore[arg-type, return-value]
    lane.submit(*work(2))  # the thread lives
    wait_until(lambda: said.outcomes[2] is not Told)
    assert "work in lane tests failed" in caplog.text
    wait_until(lambda: not lane.is_busy)
    lane.submit(*work(3))
    assert said.all()[2:] == ["tests-1"] * 2


def test_a_lane_has_as_many_threads_as_work_that_waits_and_no_more() -> None:
    lane = Lane("tests", 2)
    go_on, said = threading.Event(), Told(5)
    for position in range(5):
        tell = said.done(position)
        lane.submit(
            lambda tell=tell: (go_on.wait(30), tell(threading.current_thread().name)),  # type: ignore[misc]
            lambda _: None,
        )
    wait_until(lambda: lane.waiting == 3)
    assert lane.is_busy
    go_on.set()
    assert set(said.all()) == {"tests-1", "tests-2"}


# What a statement of writes comes to, by a store that does as it is told.


class Obedient:
    """A store that does as it is told, once ``go_on`` is set; it knows under which policies."""

    def __init__(self) -> None:
        self.policies: list[str | None] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def under(self, policy: str | None, renew: Any = None, since: float = 0.0) -> Any:
        self.policies.append(policy)
        return nullcontext()


class Scripted(Obedient):
    """A store whose statements come to what the next of ``outcomes`` says, or are done."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[tuple[str, list[str], float | None]] = []
        self.outcomes: list[Any] = []

    def change_each(self, writes: list[Write], lock_timeout: float | None) -> list[Put]:
        name = threading.current_thread().name.rpartition("-")[0]
        self.statements.append((name, [each.key for each in writes], lock_timeout))
        self.go_on.wait(30)
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or [Put("inserted", 1, "h", 1, None) for _ in writes]


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


def given(writes: Writes, told: Told, *wanted: Write, policies: Any = None) -> None:
    for position, write in enumerate(wanted):
        held = (policies[position], lambda policy: policy) if policies else None
        writes.add(Writing(write, held, told.done(position)))
    writes.after_turn(False)


def of_size(key: str, size: int) -> Write:
    return put_of(key, b"x" * size)


def test_a_statement_has_so_many_writes_and_bytes_at_most(scripted: Scripted) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    told = Told(MOST_WRITES + 1)
    given(writes, told, *(of_size(f"{number:03}", 1) for number in range(MOST_WRITES + 1)))
    told.all()
    assert [len(keys) for _, keys, _ in scripted.statements] == [MOST_WRITES, 1]
    assert [timeout for *_, timeout in scripted.statements] == [writing.TOGETHER_SECONDS, None]
    assert [name for name, *_ in scripted.statements] == ["writes"] * 2
    scripted.statements.clear()
    size, count = 32_768, MOST_BYTES // 32_768
    told = Told(count + 1)
    given(writes, told, *(of_size(f"{number:03}", size) for number in range(count + 1)))
    told.all()
    assert [len(keys) for _, keys, _ in scripted.statements] == [count, 1]
    scripted.statements.clear()
    told = Told(1)
    given(writes, told, of_size("large", size + 1))
    told.all()
    assert scripted.statements == [("writes-large", ["large"], None)]


def test_writes_of_two_policies_are_two_statements(scripted: Scripted) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    told = Told(4)
    wanted = [put_of(key, b"") for key in "dcba"]
    given(writes, told, *wanted, policies=["p", "p", "q", "p"])
    told.all()
    assert [keys for _, keys, _ in scripted.statements] == [["c", "d"], ["b"], ["a"]]
    assert scripted.policies == ["p", "q", "p"]


def test_what_has_waited_for_four_seconds_is_not_begun(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    told = Told(3)
    for position, age in enumerate((writing.QUEUED_SECONDS + 0.1, 60.0, 0.0)):
        late = Writing(put_of(f"{position}", b""), None, told.done(position))
        late.since -= age
        writes.add(late)
    writes.after_turn(False)
    outcomes = told.all()
    assert [getattr(each, "code", "done") for each in outcomes] == ["busy", "busy", "done"]
    assert [keys for _, keys, _ in scripted.statements] == [["2"]]
    # All threads write: who looks for late ones refuses what is too old.
    monkeypatch.setattr(writes._lane, "submit", lambda begin, refuse: None)
    writes._began = dict.fromkeys(range(THREADS), (time.monotonic(), 1))
    told = Told(2)
    for position, age in enumerate((writing.QUEUED_SECONDS + 0.1, 1.0)):
        late = Writing(put_of(f"{position}", b""), None, told.done(position))
        late.since -= age
        writes.add(late)
    writes.late()
    assert told.outcomes[0].code == "busy"
    assert told.outcomes[1] is Told
    assert len(writes._queue) == 1


def test_what_is_locked_is_written_apart_for_a_while(scripted: Scripted) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    scripted.outcomes = [Together(), Together(), None, None]
    told = Told(2)
    given(writes, told, put_of("a", b""), put_of("b", b""))
    told.all()
    wait_until(lambda: len(scripted.statements) == 4)
    assert scripted.statements[0] == ("writes", ["a", "b"], writing.TOGETHER_SECONDS)
    assert scripted.statements[1] == ("writes-parted", ["a"], writing.ALONE_SECONDS)
    assert sorted(scripted.statements[2:], key=str) == [
        ("writes-locked", ["a"], None),
        ("writes-parted", ["b"], writing.ALONE_SECONDS),
    ]
    for seconds, lane in ((0.0, "writes-locked"), (writing.LOCKED_SECONDS, "writes")):
        scripted.statements.clear()
        writes._apart["a", "a"] -= seconds
        told = Told(1)
        given(writes, told, put_of("a", b""))
        told.all()
        assert scripted.statements == [(lane, ["a"], None)]
    scripted.outcomes = [StoreError(503, "Slow.", code="database_slow")]
    told = Told(1)
    given(writes, told, put_of("c", b""))
    assert told.all()[0].code == "database_slow"
    assert set(writes._apart) == {("a", "a"), ("a", "c")}
    scripted.outcomes = [StoreError(503, "Slow.", code="database_slow")]
    told = Told(2)
    given(writes, told, put_of("d", b""), put_of("e", b""))
    assert [each.code for each in told.all()] == ["database_slow"] * 2
    assert set(writes._apart) == {("a", "a"), ("a", "c")}


def test_no_more_than_a_thousand_objects_are_kept_apart(scripted: Scripted) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    for number in range(1001):
        writes._keep_apart(Writing(put_of(f"{number}", b""), None, lambda _: None))
        assert len(writes._apart) == (number + 1 if number < 1000 else 1)


def test_a_lone_write_that_is_decided_anew_and_refused_is_told_why(scripted: Scripted) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    for policies, said in ((["p"], LookupError), (None, StoreError)):
        scripted.outcomes = [LookupError()]
        told = Told(1)
        given(writes, told, put_of("a", b""), policies=policies)
        assert type(told.all()[0]) is said


def test_a_lone_client_s_write_is_made_by_its_own_thread(scripted: Scripted) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    for count, alone, names in ((1, True, [""]), (1, False, ["writes"]), (2, True, ["writes"])):
        scripted.statements.clear()
        told = Told(count)
        for position in range(count):
            writes.add(Writing(put_of(f"{position}", b""), None, told.done(position)))
        writes.after_turn(alone)
        told.all()
        assert [name for name, *_ in scripted.statements] == names
        wait_until(lambda: not writes._began and not writes._begun)
    # What comes meanwhile is left to the lane.
    scripted.statements.clear()
    told = Told(2)
    scripted.go_on.clear()

    def later() -> None:
        wait_until(lambda: scripted.statements)
        writes.add(Writing(put_of("b", b""), None, told.done(1)))
        scripted.go_on.set()

    thread = threading.Thread(target=later)
    thread.start()
    writes.add(Writing(put_of("a", b""), None, told.done(0)))
    writes.after_turn(True)
    told.all()
    thread.join()
    assert [(name, keys) for name, keys, _ in scripted.statements] == [
        ("", ["a"]),
        ("writes", ["b"]),
    ]


# What a statement of reads comes to, by a store that does as it is told.


class Answering(Obedient):
    """A store that finds whatever it is asked for, unless ``failures`` has the call, once."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, str, list[str]]] = []  # the thread, the call, the objects
        self.large: set[str] = set()
        self.failures: dict[str, Exception] = {}  # by the call and its first object

    def _answer(self, call: str, wanted: list[tuple[str, str]]) -> None:
        name = threading.current_thread().name.rpartition("-")[0]
        self.asked.append((name, call, ["/".join(each) for each in wanted]))
        self.go_on.wait(30)
        failure = self.failures.pop(f"{call} {'/'.join(wanted[0])}", None)
        if failure:
            raise failure

    def get_each(self, wanted: list[tuple[str, str]], *, is_quick: bool = False) -> list[Any]:
        self._answer("quick" if is_quick else "each", wanted)
        return [ALONE if key in self.large else f"{bucket}/{key}" for bucket, key in wanted]

    def get_small(self, bucket: str, key: str) -> Any:
        self._answer("small", [(bucket, key)])
        return ALONE if key in self.large else f"{bucket}/{key}"

    def get(self, bucket: str, key: str, room: Any, select: Any) -> Any:
        self._answer("get", [(bucket, key)])
        return f"{bucket}/{key}"

    def take(self) -> list[tuple[str, str, list[str]]]:
        asked, self.asked = self.asked, []
        return asked


SLOW = StoreError(503, "Slow.", code="database_slow")


def asked_for(reads: Reads, *names: str, policies: Any = None, alone: bool = False) -> list[Any]:
    """What comes of reads of bucket/key that one turn has collected."""
    told = Told(len(names))
    for position, name in enumerate(names):
        bucket, _, key = name.partition("/")
        held = (policies[position], lambda policy: policy) if policies else None
        since = time.monotonic()
        reads.add(Read(bucket, key, anything, held, since, told.done(position)))
    reads.after_turn(alone)
    return told.all()


@pytest.fixture
def answering() -> Answering:
    return Answering()


@pytest.fixture
def asking(answering: Answering) -> Reads:
    return Reads(answering, THREADS)  # type: ignore[arg-type]


def test_what_a_turn_collected_is_one_statement_for_each_policy(
    answering: Answering, asking: Reads
) -> None:
    asking.after_turn(False)
    assert answering.take() == []
    assert asked_for(asking, "a/1", "b/2", "a/3") == ["a/1", "b/2", "a/3"]
    assert answering.take() == [("", "each", ["a/1", "b/2", "a/3"])]
    wanted = ["a/1", "a/2", "a/3"]
    assert asked_for(asking, *wanted, policies=["p", "q", "p"]) == wanted
    assert answering.take() == [("", "each", ["a/1", "a/3"]), ("", "each", ["a/2"])]
    assert answering.policies[-2:] == ["p", "q"]
    assert (asking.sizes.count, asking.sizes.sum) == (3, 6)


def test_a_read_is_answered_at_once_where_nothing_is_in_its_way(
    answering: Answering, asking: Reads
) -> None:
    assert asking.at_once("a", "1") == "a/1"
    assert answering.take() == [("", "small", ["a/1"])]
    assert (asking.sizes.count, asking._running) == (1, {})
    for state in ("_apart", "_running"):
        getattr(asking, state)["b"] = (0.0, ())
        assert asking.at_once("a", "1") is ALONE
        getattr(asking, state).clear()
    asking._is_slow = True
    assert asking.at_once("a", "1") is ALONE
    asking._is_slow = False
    answering.failures = {"small a/1": SLOW}
    with pytest.raises(StoreError):
        asking.at_once("a", "1")
    assert not asking._is_slow  # it is the only database
    assert asking._running == {}


def test_large_objects_are_asked_for_alone_and_so_is_their_bucket_for_a_moment(
    answering: Answering, asking: Reads
) -> None:
    answering.large = {"large"}
    wanted = ["a/large", "a/1", "a/2"]
    assert asked_for(asking, *wanted) == wanted
    assert answering.take() == [("", "each", wanted), ("reads-large", "get", ["a/large"])]
    assert asking._apart == {}  # one of three
    assert asked_for(asking, "a/large") == ["a/large"]
    answering.take()
    assert list(asking._apart) == ["a"]
    assert asked_for(asking, "a/1", "b/1") == ["a/1", "b/1"]
    assert sorted(answering.take()) == [("", "each", ["b/1"]), ("reads-large", "get", ["a/1"])]
    assert asked_for(asking, "a/1", alone=True) == ["a/1"]
    assert answering.take() == [("", "get", ["a/1"])]
    until, lane = asking._apart["a"]
    asking._apart["a"] = until - 1.0, lane
    assert asked_for(asking, "a/1") == ["a/1"]
    assert answering.take() == [("", "each", ["a/1"])]
    assert asking._apart == {}


def test_which_of_several_buckets_is_locked_is_found_out_one_by_one(
    answering: Answering, asking: Reads
) -> None:
    gone = StoreError(404, "Gone.", code="bucket_not_found")
    answering.failures = {"each a/1": SLOW, "quick b/1": SLOW, "quick c/1": gone}
    wanted = ["a/1", "b/1", "c/1"]
    assert asked_for(asking, *wanted) == wanted
    first, *quick = [each for each in answering.asked if each[1] != "small"]
    assert first == ("", "each", wanted)
    assert quick == [("reads-parted", "quick", [each]) for each in wanted]
    assert sorted(each for each in answering.take() if each[1] == "small") == [
        ("reads-locked", "small", ["b/1"]),
        ("reads-parted", "small", ["c/1"]),
    ]
    until, lane = asking._apart.pop("b")
    assert lane is asking._locked
    assert 4 < until - time.monotonic() <= 5
    assert asking._apart == {}
    # Of one bucket, or of another failure, all are told.
    for wanted, failure in ((["a/1", "a/2"], SLOW), (["a/1", "b/1"], gone)):
        answering.failures = {"each a/1": failure}
        assert asked_for(asking, *wanted) == [failure, failure]
        assert len(answering.take()) == 1
    changed = StoreError(503, "Changed.", code="policy_changed")
    answering.failures = {"each a/1": changed}
    assert asked_for(asking, "a/1", "b/1") == ["a/1", "b/1"]
    assert sorted(answering.take())[1:] == [
        ("reads-parted", "small", ["a/1"]),
        ("reads-parted", "small", ["b/1"]),
    ]


def test_a_bucket_whose_lone_read_is_slow_is_asked_for_in_the_lane_of_the_locked(
    answering: Answering, asking: Reads
) -> None:
    answering.large = {"large"}
    answering.failures = {"get a/large": SLOW}
    assert asked_for(asking, "a/large") == [SLOW]
    assert "a" in asking._apart
    asking._keep_apart("a", 5.0, asking._locked)
    answering.take()
    assert asked_for(asking, "a/large") == ["a/large"]
    assert answering.take() == [
        ("reads-locked", "small", ["a/large"]),
        ("reads-large", "get", ["a/large"]),
    ]


def test_while_a_statement_is_late_its_bucket_is_asked_for_elsewhere(
    answering: Answering, asking: Reads
) -> None:
    asking._running[0] = time.monotonic(), [("a", "1")]
    assert asking._late() == set()
    assert asked_for(asking, "a/2", "b/2") == ["a/2", "b/2"]
    assert answering.take() == [("", "each", ["a/2", "b/2"])]
    asking._running[0] = time.monotonic() - 0.03, [("a", "1")]
    assert asking._late() == {"a"}
    assert asked_for(asking, "a/2", "b/2") == ["a/2", "b/2"]
    assert sorted(answering.take()) == [("", "each", ["b/2"]), ("reads-locked", "small", ["a/2"])]
    for number in range(1, THREADS - 1):  # nearly all threads are: the last one must not wait
        asking._running[number] = time.monotonic(), [("c", "1")]
    assert asked_for(asking, "b/2") == ["b/2"]
    assert answering.take() == [("reads-locked", "small", ["b/2"])]


def test_no_more_threads_ask_a_database_than_may(answering: Answering) -> None:
    asking = Reads(answering, THREADS, most=1)  # type: ignore[arg-type]
    answering.go_on.clear()
    first = threading.Thread(target=asked_for, args=(asking, "a/1"))
    first.start()
    wait_until(lambda: answering.asked)
    second = threading.Thread(target=asked_for, args=(asking, "b/1"))
    second.start()
    wait_until(lambda: len(answering.asked) == 2)
    assert answering.take()[1][0] == "reads-full"
    answering.go_on.set()
    first.join()
    second.join()


# What is refused, and what is noted.


BUSY = StoreError(503, "Busy.", code="busy")


def refusing(lane: Lane) -> None:
    """Have a lane refuse what it is given, as when it has waited too long."""
    lane.submit = lambda work, refuse, bucket="", shard=None: refuse(BUSY)  # type: ignore[method-assign, assignment]


def test_all_that_a_lane_refuses_is_told(scripted: Scripted, answering: Answering) -> None:
    writes = Writes(scripted, NoCaches(), THREADS)  # type: ignore[arg-type]
    submit = writes._lane.submit
    refusing(writes._lane)
    for _ in range(2):  # the next ones are begun as well
        told = Told(3)
        given(writes, told, *(put_of(key, b"") for key in "abc"))
        assert told.all() == [BUSY] * 3
        assert (writes._begun, len(writes._queue)) == (0, 0)
    writes._lane.submit = submit  # type: ignore[method-assign]
    for lane in (writes._parted, writes._locked):
        refusing(lane)
        scripted.outcomes = [Together()]
        told = Told(2)
        given(writes, told, put_of("a", b""), put_of("b", b""))
        assert told.all() == [BUSY] * 2
    refusing(writes._large)
    told = Told(1)
    given(writes, told, of_size("large", 32_769))
    assert told.all() == [BUSY]
    reads = Reads(answering, THREADS, most=1)  # type: ignore[arg-type]
    for lane in (reads._parted, reads._large, reads._full, reads._slow):
        refusing(lane)
    answering.failures = {"each a/1": SLOW}
    assert asked_for(reads, "a/1", "b/1") == [BUSY] * 2
    answering.large = {"large"}
    assert asked_for(reads, "a/large", "b/1") == [BUSY, "b/1"]
    reads._running[0] = time.monotonic() + 60, [("c", "1")]
    assert asked_for(reads, "a/1", "b/1") == [BUSY] * 2
    reads._running.clear()
    reads._is_slow = True
    assert asked_for(reads, "a/1", "b/1") == [BUSY] * 2


def test_a_failure_that_nobody_expected_is_told_to_each_read(
    answering: Answering, asking: Reads
) -> None:
    failure = LookupError()
    answering.failures = {"each a/1": failure}
    assert asked_for(asking, "a/1", "b/1") == [failure] * 2
    answering.large = {"large"}
    answering.failures = {"get a/large": failure}
    assert asked_for(asking, "a/large") == [failure]
    assert asking._running == {}
    assert asking._apart.keys() <= {"a"}


def test_only_a_bucket_that_is_slow_is_asked_for_apart(answering: Answering, asking: Reads) -> None:
    gone = StoreError(404, "Gone.", code="bucket_not_found")
    for failure, is_apart in ((gone, False), (LookupError(), False), (SLOW, True)):
        answering.failures = {"get a/1": failure}
        told = Told(1)
        asking._read_one(Read("a", "1", anything, None, time.monotonic(), told.done(0)))
        assert told.all() == [failure]
        assert ("a" in asking._apart) is is_apart
    until, lane = asking._apart["a"]
    assert lane is asking._locked
    assert 4 < until - time.monotonic() <= 5


class Noted(Stages):
    """What was noted, by thread and in order."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[tuple[float, float]] = []

    def set(self, began: float, ended: float) -> None:
        self.noted.append((began, ended))


def test_how_long_a_statement_took_is_noted_before_it_is_told(
    scripted: Scripted, answering: Answering
) -> None:
    stages = Noted()

    class Late(NoCaches):
        """Caches that answer later, in another thread."""

        def purge_each(self, objects: Any, outbox_ids: Any, done: Any) -> None:
            threading.Thread(target=done, args=[None]).start()

    writes = Writes(scripted, Late(), THREADS, stages)  # type: ignore[arg-type]
    for outbox_id, times in ((None, 1), (7, 2)):
        stages.noted.clear()
        scripted.outcomes = [[Put("inserted", 1, "h", 1, outbox_id)]]
        told = Told(1)
        began = time.monotonic()
        given(writes, told, put_of("a", b""))
        told.all()
        assert len(stages.noted) == times
        for first, last in stages.noted:
            assert began <= first <= last <= time.monotonic()
    reads = Reads(answering, THREADS, stages)  # type: ignore[arg-type]
    answering.large = {"large"}
    for ask, times in (
        (lambda: asked_for(reads, "a/1"), 1),
        (lambda: asked_for(reads, "a/large"), 2),
        (lambda: reads.at_once("b", "1"), 1),
    ):
        reads._apart.clear()
        stages.noted.clear()
        began = time.monotonic()
        ask()
        assert len(stages.noted) == times
        for first, last in stages.noted:
            assert began <= first <= last <= time.monotonic()


# Of several databases.


class Several(Obedient):
    """Two databases that do as they are told, and a map of buckets: by their first letter."""

    shards = (0, 1)

    def __init__(self, kind: type[Obedient]) -> None:
        super().__init__()
        self.parts = [kind(), kind()]
        self.known: dict[str, int] = {}
        self.there: dict[str, int] = {}
        self.since: list[float] = []

    def under(self, policy: str | None, renew: Any = None, since: float = 0.0) -> Any:
        self.since.append(since)
        return super().under(policy, renew, since)

    def one(self, number: int) -> Any:
        return self.parts[number]

    def known_shard(self, bucket: str) -> int | None:
        return self.known.get(bucket)

    def find_shard(self, bucket: str) -> int:
        if bucket not in self.there:
            raise StoreError(503, "Away.", code="database_unavailable")
        return self.there[bucket]

    def get(self, bucket: str, key: str, room: Any, select: Any) -> Any:
        return f"{threading.current_thread().name} {bucket}/{key}"


def test_work_is_done_in_the_lane_of_its_bucket_s_database() -> None:
    several = Several(Answering)
    several.known = {"a": 0, "b": 1, "gone": 9}
    lane = ShardedLane("tests", 2, several, 5.0)  # type: ignore[arg-type]
    wanted = [("a", None), ("b", None), ("c", None), ("gone", None), ("b", 0), ("c", 1), ("", 7)]
    for bucket, shard in wanted:
        said = Told(1)
        tell = said.done(0)
        lane.submit(
            lambda tell=tell: tell(threading.current_thread().name.rpartition("-")[0]),  # type: ignore[misc]
            tell,
            bucket,
            shard,
        )
        expected = several.known.get(bucket) if shard is None else shard
        assert said.all() == [f"tests-{expected}" if expected in (0, 1) else "tests"]
    assert [each._patience for each in (lane, *lane._shards.values())] == [5.0] * 3


def test_reads_go_to_the_database_of_their_bucket_and_others_to_a_lane() -> None:
    several = Several(Answering)
    several.known = {"a": 0, "b": 1, "gone": 9}
    reads = ShardedReads(several, THREADS)  # type: ignore[arg-type]
    found = asked_for(reads, "a/1", "b/1", "b/2", "new/1", "gone/1")
    assert found[:3] == ["a/1", "b/1", "b/2"]
    for each, name in zip(found[3:], ("new/1", "gone/1"), strict=True):
        assert each.startswith("reads-unknown-")
        assert each.endswith(f" {name}")
    assert [each.take() for each in several.parts] == [  # type: ignore[attr-defined]
        [("", "each", ["a/1"])],
        [("", "each", ["b/1", "b/2"])],
    ]
    assert reads.at_once("b", "1") == "b/1"
    assert reads.at_once("new", "1") is ALONE
    assert reads.at_once("gone", "1") is ALONE
    assert several.parts[1].take() == [("", "small", ["b/1"])]  # type: ignore[attr-defined]
    assert (reads.sizes.count, reads.sizes.sum) == (3, 4)  # of all of them
    assert {each._most for each in reads._shards.values()} == {THREADS // 2}
    one_thread = ShardedReads(several, 1)  # type: ignore[arg-type]
    assert {each._most for each in one_thread._shards.values()} == {1}


def test_writes_go_to_the_database_of_their_bucket_which_may_be_looked_up() -> None:
    several = Several(Scripted)
    several.known = {"a": 0, "b": 1}
    several.there = {"new": 1, "unnamed": 9}
    writes = ShardedWrites(several, NoCaches(), THREADS)  # type: ignore[arg-type]
    told = Told(5)
    wanted = [put_of(bucket, b"", bucket) for bucket in ("a", "b", "new", "unnamed", "away")]
    given(writes, told, *wanted)
    outcomes = told.all()
    assert [getattr(each, "outcome", None) for each in outcomes[:4]] == ["inserted"] * 4
    assert outcomes[4].code == "database_unavailable"
    first, second = (
        {key for _, keys, _ in each.statements for key in keys}  # type: ignore[attr-defined]
        for each in several.parts
    )
    assert (first, second) == ({"a", "unnamed"}, {"b", "new"})
    now = time.monotonic()
    assert all(now - 60 < each <= now for each in several.since)
    assert writes.sizes.sum == 4


def test_late_writes_of_each_database_are_seen_to() -> None:
    several = Several(Scripted)
    several.known = {"a": 0, "b": 1}
    writes = ShardedWrites(several, NoCaches(), THREADS)  # type: ignore[arg-type]
    told = Told(2)
    for position, bucket in enumerate("ab"):
        old = Writing(put_of("k", b"", bucket), None, told.done(position))
        old.since -= writing.QUEUED_SECONDS
        writes.add(old)
    writes.late()
    assert [each.code for each in told.all()] == ["busy"] * 2


def test_of_the_threads_only_some_do_what_may_take_long() -> None:
    """The others go on with what does not."""
    writes = Writes(Scripted(), NoCaches(), THREADS)  # type: ignore[arg-type]
    reads = Reads(Answering(), THREADS)  # type: ignore[arg-type]
    for kept in (writes, reads):
        for lane in (kept._large, kept._parted, kept._locked):
            assert 1 <= lane._most <= THREADS // 2
    for few in (1, 2):
        writes = Writes(Scripted(), NoCaches(), few)  # type: ignore[arg-type]
        reads = Reads(Answering(), few)  # type: ignore[arg-type]
        assert {each._most for kept in (writes, reads) for each in (kept._large, kept._locked)} == {
            1
        }


def test_no_lane_keeps_a_process_that_ends() -> None:
    lane = Lane("tests-ending", 1)
    said = Told(1)
    tell = said.done(0)
    lane.submit(lambda: tell(threading.current_thread().daemon), tell)
    assert said.all() == [True]


def test_stages_are_of_the_thread_that_asks() -> None:
    stages = Stages()
    assert stages.of_thread() is None
    stages.set(1.0, 2.0)
    assert stages.of_thread() == (1.0, 2.0)
    others: list[object] = []
    thread = threading.Thread(target=lambda: others.append(stages.of_thread()))
    thread.start()
    thread.join()
    assert others == [None]
    stages.forget()
    assert stages.of_thread() is None
