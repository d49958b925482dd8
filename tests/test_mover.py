"""What a move does where its databases are slow, refuse it, or are not those it needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from poky import embedded
from poky.schema import SchemaError, moving, one_mover
from poky.schema.migrate import migrate
from poky.schema.owner import OwnerConnection, Progress
from poky.schema.shards import join_shards
from poky.store import ShardedStore
from tests.conftest import HASTY, Cluster, Database
from tests.service import wait_until
from tests.test_moves import ask
from tests.test_shards import Killed, alter, bring, name, nothing_is_left, opened, owners

__all__ = ["name"]


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> Iterator[Database]:
    """Control, and one database besides."""
    database = cluster.create_sharded(2)
    yield database
    cluster.drop(database)


@pytest.fixture
def store(pair: Database) -> Iterator[ShardedStore]:
    with closing(opened(pair)) as store:
        yield store


def killed_after(step: str) -> Callable[[str], None]:
    """For `after`: the mover ends once this step is done."""

    def die(done: str) -> None:
        if done == step:
            raise Killed

    return die


def given_up(database: Database) -> None:
    moving.abort(owners(database))


State = moving._State
THERE = State(0, True, 1, 1, 0)


def seen(monkeypatch: pytest.MonkeyPatch, *states: moving._State | None) -> list[object]:
    """Have the mover see these states of the target, then the real ones; which are left."""
    left = list(states)
    real = moving._Mover._state

    def state(mover: moving._Mover, position: str | None = None) -> moving._State | None:
        return left.pop(0) if left else real(mover, position)

    monkeypatch.setattr(moving._Mover, "_state", state)
    return left  # type: ignore[return-value]


# What is told.


def test_a_move_tells_its_steps_and_how_long_it_took(
    pair: Database, store: ShardedStore, name: str
) -> None:
    bring(pair, name, 0, keys=2)
    shown: list[Progress] = []
    done: dict[str, float] = {}

    def after(step: str) -> None:
        done[step] = time.monotonic()
        if step == "settle":
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                time.sleep(0.05)

    began = time.monotonic()
    moved = moving.move(owners(pair), name, 1, shown.append, after)
    took = time.monotonic() - began
    assert moved is not None
    assert moved.pause_seconds is not None
    assert moved[:3] == (name, 0, 1)
    assert 0.3 < moved.seconds <= took
    assert done["settle"] - done["fence"] <= moved.pause_seconds <= done["settle"] - done["copy"]
    assert tuple(done) == moving.STEPS
    told = [each.step for each in shown]
    assert [each for each in told if each != "Copying"] == [
        "Preparing",
        "Changing over",
        "Cleaning up",
    ]
    assert moving.move(owners(pair), name, 1) is None


def test_a_move_tells_how_much_is_copied_and_how_far_it_is_behind(
    pair: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(pair, name, 0, keys=2)
    shown: list[Progress] = []
    left = seen(
        monkeypatch,
        None,  # asked by the preparation: there is nothing yet
        State(1, True, 50, 200, 0),
        State(1, True, 300, 200, 0),
        State(0, True, 200, 200, 12_345_678),
        State(0, True, 200, 200, moving._LAG_BYTES - 1),
    )
    moving.move(owners(pair), name, 1, shown.append)
    assert left == []
    assert shown[1:5] == [
        ("Copying", 50, 200),
        ("Copying", 200, 200),
        ("Catching up, 12,345,678 bytes behind", 0, 0),
        ("Changing over", 0, 0),
    ]


def test_a_target_that_cannot_go_on_while_it_copies_begins_anew(
    pair: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(pair, name, 0, keys=2)
    shown: list[str] = []
    steps: list[str] = []
    seen(monkeypatch, None, None)
    moving.move(owners(pair), name, 1, lambda told: shown.append(told.step), steps.append)
    assert shown.count("The target cannot go on: copying from the beginning") == 1
    assert steps[:4] == ["prepare", "copy", "prepare", "copy"]
    assert nothing_is_left(pair, name, 1) == []


# What goes on where it was.


def test_a_move_that_goes_on_does_not_copy_what_is_copied(pair: Database, name: str) -> None:
    bring(pair, name, 0, keys=2)
    numbers: list[object] = []

    def look(done: str) -> None:
        if done == "prepare":
            with OwnerConnection(pair.others[0].dsn_owner) as target, one_mover.as_user(target):
                numbers.append(target.value("SELECT max(oid::bigint) FROM pg_subscription"))
            if len(numbers) == 1:
                raise Killed

    with pytest.raises(Killed):
        moving.move(owners(pair), name, 1, after=look)
    moving.move(owners(pair), name, 1, after=look)
    assert len(numbers) == 2
    assert numbers[0] == numbers[1] is not None


def test_how_long_no_write_was_taken_is_unknown_if_a_former_call_stopped_them(
    pair: Database, name: str
) -> None:
    bring(pair, name, 0, keys=1)
    with pytest.raises(Killed):
        moving.move(owners(pair), name, 1, after=killed_after("depart"))
    moved = moving.move(owners(pair), name, 1)
    assert moved is not None
    assert moved.pause_seconds is None


@pytest.mark.parametrize("step", ["copy", "fence"])
def test_a_fence_of_a_former_call_is_taken_down_first(
    pair: Database, store: ShardedStore, name: str, step: str
) -> None:
    """Who comes after it may have to copy for long, and writes go on meanwhile."""
    bring(pair, name, 0, keys=1)
    with pytest.raises(Killed):
        moving.move(owners(pair), name, 1, after=killed_after(step))
    steps: list[str] = []

    def after(done: str) -> None:
        steps.append(done)
        if done == "copy":
            store.put(name, "k", b"v", "t")

    moving.move(owners(pair), name, 1, after=after)
    assert steps[0] == "copy"
    assert store.get(name, "k") is not None


def test_a_move_given_up_takes_writes_and_can_be_made_again(
    pair: Database, store: ShardedStore, name: str
) -> None:
    bring(pair, name, 0, keys=1)
    with pytest.raises(Killed):
        moving.move(owners(pair), name, 1, after=killed_after("fence"))
    move = moving.abort(owners(pair))
    assert move is not None
    assert move[2:4] == (0, 1)
    assert moving.abort(owners(pair)) is None
    store.put(name, "k", b"v", "t")
    assert nothing_is_left(pair, name, 0) == []
    assert moving.move(owners(pair), name, 1) is not None


# What it waits for.


def test_a_target_that_is_not_heard_of_is_told_and_the_move_goes_on_later(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(pair, name, 0, keys=1)
    monkeypatch.setattr(moving, "_QUIET_SECONDS", 0.25)
    monkeypatch.setattr(moving, "_is_passing", lambda error, has_begun: False)
    with monkeypatch.context() as patched:
        seen(patched, None, *[State(1, False, 0, 1, 0)] * 1000)
        with pytest.raises(SchemaError, match="Shard 1 gets nothing from shard 0") as failed:
            moving.move(owners(pair), name, 1)
    assert failed.value.code == "replication_failed"
    store.put(name, "k", b"v", "t")
    with monkeypatch.context() as patched:  # listening, it may take longer than that
        seen(patched, *[State(1, True, 0, 1, 0)] * 6)
        assert moving.move(owners(pair), name, 1) is not None


def test_a_target_that_is_never_there_in_time_takes_no_bucket(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(pair, name, 0, keys=1)
    monkeypatch.setattr(moving, "_MARK_SECONDS", 0.0)
    monkeypatch.setattr(moving, "_FENCES", 2)
    shown: list[str] = []
    with pytest.raises(SchemaError, match="behind by more than 0 s all the time") as failed:
        moving.move(owners(pair), name, 1, lambda told: shown.append(told.step))
    assert failed.value.code == "busy"
    assert shown.count("Changing over") == 2
    store.put(name, "k", b"v", "t")  # it waits until somebody tries again
    move = moving.under_way(owners(pair))
    assert move is not None
    assert move.step == "fence"
    given_up(pair)


def test_a_mark_that_does_not_arrive_in_time_has_writes_taken_and_comes_again(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where the target lost what it had meanwhile, all of it is copied again."""
    bring(pair, name, 0, keys=1)
    steps: list[str] = []
    waited: list[float] = []
    copy = moving._Mover._copy

    def copied(mover: moving._Mover) -> str | None:
        if steps[-1:] == ["copy"]:
            store.put(name, f"k{len(waited)}", b"v", "t")  # writes are taken
            waited.append(time.monotonic())
            monkeypatch.setattr(moving, "_MARK_SECONDS", 30.0)
            if len(waited) == 1:
                return "prepare"
        return copy(mover)

    monkeypatch.setattr(moving, "_MARK_SECONDS", 0.0)
    monkeypatch.setattr(moving._Mover, "_copy", copied)
    moving.move(owners(pair), name, 1, after=steps.append)
    assert steps[:5] == ["prepare", "copy", "fence", "prepare", "copy"]
    assert len(waited) == 1
    assert store.get(name, "k0") is not None


def test_a_read_that_holds_on_to_the_bucket_has_it_depart_later(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(pair, name, 0, keys=1)
    place = store.place(name)
    assert place is not None
    monkeypatch.setattr(moving, "_DEPART_SECONDS", 0.05)
    steps: list[str] = []
    with closing(pair.connect()) as reader:

        def after(done: str) -> None:
            steps.append(done)
            if done == "fence" and steps.count("fence") == 1:
                reader.cursor().execute(f"SELECT count(*) FROM poky._o_{place.id}")
            if done == "depart" and steps.count("depart") == 1:
                store.put(name, "k", b"v", "t")  # writes are taken again
                reader.rollback()

        moving.move(owners(pair), name, 1, after=after)
    assert steps == ["prepare", "copy", "fence", "depart", *moving.STEPS[1:]]
    assert store.get(name, "k") is not None


def test_what_is_kept_from_arriving_by_something_else_is_told(
    pair: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(pair, name, 0, keys=1)
    monkeypatch.setattr(moving, "_is_passing", lambda error, has_begun: False)
    with pytest.raises(Killed):
        moving.move(owners(pair), name, 1, after=killed_after("depart"))
    refuse = "CREATE RULE refuse AS ON INSERT TO poky.bucket DO INSTEAD SELECT 1 / 0"
    alter(pair.others[0], refuse)
    try:
        with pytest.raises(SchemaError, match="PostgreSQL refused") as failed:
            moving.move(owners(pair), name, 1)
    finally:
        alter(pair.others[0], "DROP RULE refuse ON poky.bucket")
    assert failed.value.code == "database_failed"
    assert moving.move(owners(pair), name, 1) is not None
    assert nothing_is_left(pair, name, 1) == []


@pytest.mark.parametrize(
    ("states", "again"),
    [
        ([None], 1),
        ([State(0, True, 1, 1, 0)], 1),
        ([State(1, True, 1, 1, 0)], 0),
        ([State(0, True, 1, 1, 1)], 0),
        ([State(0, True, 1, 1, -1)], 1),
    ],
    ids=["away", "all", "copying", "behind", "more"],
)
def test_only_what_will_not_come_is_copied_again_after_the_departure(
    pair: Database,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    states: list[moving._State | None],
    again: int,
) -> None:
    bring(pair, name, 0, keys=3)
    shown: list[str] = []

    def lose(done: str) -> None:
        if done == "depart":
            with OwnerConnection(pair.others[0].dsn_owner) as target:
                (mark,) = target.run("DELETE FROM poky._mark RETURNING id, value")
            if not again:
                left = [*states]

                def state(mover: moving._Mover, position: str | None = None) -> object:
                    assert position is not None
                    if not left:
                        with OwnerConnection(pair.others[0].dsn_owner) as target:
                            target.run(
                                "INSERT INTO poky._mark (id, value) VALUES (%s, %s)"
                                " ON CONFLICT DO NOTHING",
                                *mark,
                            )
                        return State(1, True, 1, 1, 1)
                    return left.pop()

                monkeypatch.setattr(moving._Mover, "_state", state)
            else:
                seen(monkeypatch, *states)

    moving.move(owners(pair), name, 1, lambda told: shown.append(told.step), lose)
    assert shown.count("The target cannot go on: copying from the beginning") == again
    with closing(opened(pair)) as store:
        assert len(store.list_page(name, "old", limit=10).entries) == 3
    assert nothing_is_left(pair, name, 1) == []


@pytest.mark.parametrize("is_alive", [False, True])
def test_a_bucket_whose_rest_does_not_come_waits_for_it_and_then_says_so(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch, is_alive: bool
) -> None:
    """A target that listens has all the time."""
    bring(pair, name, 0, keys=1)
    monkeypatch.setattr(moving, "_is_passing", lambda error, has_begun: False)
    real = moving._Mover._state
    with monkeypatch.context() as patched:
        patched.setattr(moving, "_QUIET_SECONDS", 0.2)

        def lose(done: str) -> None:
            if done == "depart":
                alter(pair.others[0], "DELETE FROM poky._mark")
                began = time.monotonic()

                def state(mover: moving._Mover, position: str | None = None) -> object:
                    waits = time.monotonic() - began < 0.6
                    return State(1, is_alive, 1, 1, 1) if waits else real(mover, position)

                patched.setattr(moving._Mover, "_state", state)

        if is_alive:
            assert moving.move(owners(pair), name, 1, after=lose) is not None
        else:
            with pytest.raises(SchemaError, match="gets nothing from shard 0"):
                moving.move(owners(pair), name, 1, after=lose)
    if not is_alive:
        assert moving.move(owners(pair), name, 1) is not None
    assert store.get(name, "old0") is not None


# What it needs.


def test_a_move_needs_the_owner_of_each_database_that_it_concerns(
    pair: Database, name: str
) -> None:
    bring(pair, name, 0, keys=1)
    control = {0: pair.dsn_owner}
    for _ in range(2):
        with pytest.raises(SchemaError, match="There is no shard 1: POKY_OWNER_SHARDS") as refused:
            moving.move(control, name, 1)
        assert refused.value.code == "no_shard"
        assert moving.under_way(owners(pair)) is None  # it was not begun
    with pytest.raises(Killed):
        moving.move(owners(pair), name, 1, after=killed_after("copy"))
    for call in (lambda: moving.move(control, name, 1), lambda: moving.abort(control)):
        with pytest.raises(SchemaError, match="There is no shard 1") as refused:
            call()
        assert refused.value.code == "no_shard"
    given_up(pair)


def test_what_our_functions_refuse_is_told_in_their_words(pair: Database) -> None:
    raising = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{}', MESSAGE = 'so it is'{}; END $$"
    with OwnerConnection(pair.dsn_owner) as owner:
        assert moving._refusing(owner, "SELECT %s", 7) == [(7,)]
        for hint, code in ((", HINT = 'too_late'", "too_late"), ("", "schema_refused")):
            with pytest.raises(SchemaError, match=r"^so it is$") as refused:
                moving._refusing(owner, raising.format("PK409", hint))
            assert refused.value.code == code
        with pytest.raises(psycopg2.errors.DivisionByZero):
            moving._refusing(owner, "SELECT 1 / 0")
        owner._connection.close()
        with pytest.raises(psycopg2.InterfaceError):
            moving._refusing(owner, "SELECT 1")
    with pytest.raises(SchemaError) as missing:
        moving.move(owners(pair), "nothing", 1)
    assert missing.value.code == "bucket_not_found"


def test_what_a_step_came_to_is_durable_whatever_the_server_is_set_to(
    pair: Database, store: ShardedStore, name: str
) -> None:
    store.ensure_bucket(name, 0)
    place = store.place(name)
    assert place is not None
    for setting, expected in {"off": "on", "local": "on", "remote_apply": "remote_apply"}.items():
        dsn = make_dsn(pair.dsn_owner, options=f"-c synchronous_commit={setting}")
        with OwnerConnection(dsn) as one, OwnerConnection(dsn) as two, OwnerConnection(dsn) as six:
            move = moving.Move(name, place.id, 0, 1, "prepare")
            moving._Mover(move, one, two, six, dsn, lambda step: None)
            assert [each.value("SHOW synchronous_commit") for each in (one, two, six)] == [
                expected
            ] * 3


@pytest.mark.slow
def test_a_source_without_logical_replication_is_told(cluster: Cluster, tmp_path: Path) -> None:
    settings = {**HASTY, "wal_level": "replica"}
    with embedded.ensure_running(tmp_path / "source", settings=settings) as server:
        migrate(server.dsn_owner, kind="partitioned", release="tests")
        shard = Database("poky", "partitioned", server.dsn_owner, server.dsn_service)
        control = cluster.create("partitioned")
        database = replace(control, others=(shard,))
        join_shards(control.dsn_owner, {1: shard.dsn_owner})
        bring(database, "b", 1, keys=1)
        with pytest.raises(SchemaError, match="PostgreSQL of shard 1 has to run with") as refused:
            moving.move(owners(database), "b", 0)
        assert refused.value.code == "wal_level"
        given_up(database)
        assert nothing_is_left(database, "b", 1) == []
    cluster.drop(control)


def test_a_slot_that_is_in_use_is_dropped_once_it_is_free(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walsender of a subscription that was dropped may live on for a moment."""
    bring(pair, name, 0, keys=1)
    place = store.place(name)
    assert place is not None
    with pytest.raises(Killed):
        moving.move(owners(pair), name, 1, after=killed_after("copy"))
    slot = f"poky_move_{place.id}"
    tries: list[str] = []
    run = OwnerConnection.run

    def busy(owner: OwnerConnection, statements: str, *values: object) -> object:
        if "pg_drop_replication_slot" in statements and len(tries) < 2:
            tries.append(str(values[0]))
            raise psycopg2.errors.ObjectInUse
        return run(owner, statements, *values)

    monkeypatch.setattr(OwnerConnection, "run", busy)
    assert moving.abort(owners(pair)) is not None
    assert tries == [slot] * 2
    assert nothing_is_left(pair, name, 0) == []


def test_a_move_is_given_up_while_a_transaction_at_the_source_goes_on(
    pair: Database, store: ShardedStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is to copy waits for it; who gives up must not, nor wait for who waits."""
    bring(pair, name, 0, keys=1)
    real = moving.make_dsn
    with closing(pair.connect()) as other:

        def begun(*given: str, **named: str) -> str:
            """Between the making of the slot and that of the subscription."""
            other.cursor().execute("SELECT pg_current_xact_id()")
            return real(*given, **named)

        monkeypatch.setattr(moving, "make_dsn", begun)
        with pytest.raises(Killed):
            moving.move(owners(pair), name, 1, after=killed_after("prepare"))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND query LIKE 'CREATE_REPLICATION_SLOT%'"
        )
        wait_until(lambda: ask(pair, waiting) > 0, 30)
        release = threading.Timer(20, other.rollback)  # so that this fails in place of hanging
        release.start()
        began = time.monotonic()
        given_up(pair)
        assert time.monotonic() - began < 15
        assert other.get_transaction_status() == psycopg2.extensions.TRANSACTION_STATUS_INTRANS
        release.cancel()
    assert nothing_is_left(pair, name, 0) == []
    assert store.get(name, "old0") is not None
    monkeypatch.setattr(moving, "make_dsn", real)
    moving.move(owners(pair), name, 1)
    assert nothing_is_left(pair, name, 1) == []


# One at a time.


def test_only_one_command_moves_and_the_next_may_come_at_once(pair: Database, name: str) -> None:
    bring(pair, name, 0, keys=1)
    with one_mover.alone(owners(pair), None):
        for call in (lambda: moving.move(owners(pair), name, 1), lambda: given_up(pair)):
            with pytest.raises(SchemaError, match="Another poky bucket move is running") as busy:
                call()
            assert busy.value.code == "busy"
    for _ in range(3):
        with one_mover.alone(owners(pair), None) as control:
            assert control.value("SELECT 1") == 1
    shown: list[Progress] = []
    with one_mover.alone(owners(pair), shown.append) as control:
        control.report(Progress("heard"))
    assert shown == [("heard", 0, 0)]


def test_who_moves_ends_whoever_did_before_and_acts_as_owner_again(pair: Database) -> None:
    with OwnerConnection(pair.dsn_owner) as former:
        one_mover.end_others(former)
        assert former.value("SELECT current_user") == "poky_owner"
        with OwnerConnection(pair.dsn_owner) as later:
            one_mover.end_others(later)
            assert later.value("SELECT current_user") == "poky_owner"
            with pytest.raises(psycopg2.OperationalError):
                former.value("SELECT 1")
            one_mover.end_others(later)  # it holds the lock itself


def test_who_may_not_end_another_mover_says_that_there_is_one(
    pair: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    alter(pair, "CREATE ROLE weak LOGIN IN ROLE poky_owner")
    try:
        with (
            OwnerConnection(pair.dsn_owner) as former,
            OwnerConnection(make_dsn(pair.dsn_owner, user="weak")) as weak,
        ):
            one_mover.end_others(former)
            with pytest.raises(SchemaError, match="Another poky bucket move is running") as busy:
                one_mover.end_others(weak)
            assert busy.value.code == "busy"
            assert former.value("SELECT 1") == 1
        with OwnerConnection(pair.dsn_owner) as former, OwnerConnection(pair.dsn_owner) as later:
            one_mover.end_others(former)
            monkeypatch.setattr(one_mover, "_END_MOVER", "SELECT 1")  # it does not end
            monkeypatch.setattr(one_mover, "_TAKE_OVER_SECONDS", 0.05)
            with pytest.raises(SchemaError, match="Another poky bucket move is running") as busy:
                one_mover.end_others(later)
            assert busy.value.code == "busy"
    finally:
        alter(pair, "DROP ROLE weak")
