"""Moves of buckets between servers that crash, or whose standby takes over."""

from __future__ import annotations

import itertools
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from poky import embedded
from poky.schema import SchemaError, moving
from poky.schema.migrate import migrate
from poky.schema.shards import join_shards
from poky.store import StoreError
from tests.conftest import HASTY, Cluster, Database
from tests.service import wait_until
from tests.support.followed import all_after, faults, identity, record, recorded
from tests.test_shards import Killed, alter, bring, name, nothing_is_left, opened, owners, sharded
from tests.test_standby import query, sockets

__all__ = ["name", "sharded"]
pytestmark = pytest.mark.slow


def of_server(server: embedded.Embedded) -> Database:
    """The migrated database of a server of its own."""
    migrate(server.dsn_owner, kind="partitioned", release="tests")
    return Database("poky", "partitioned", server.dsn_owner, server.dsn_service)


def crash(server: embedded.Embedded, **settings: str) -> None:
    """End it at once, as by a power cut: what was not written is lost. Then start it again."""
    ours = server._settings
    server._settings = {**ours, **settings}
    gone = os.pidfd_open(server.pid)
    os.kill(server.pid, signal.SIGQUIT)
    assert select.select([gone], [], [], 30)[0]
    os.close(gone)
    server._start()
    server._settings = ours


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Embedded]:
    """A server that writes what it commits down late."""
    settings = {**HASTY, "wal_writer_delay": "10s", "wal_retrieve_retry_interval": "200ms"}
    with embedded.ensure_running(tmp_path_factory.mktemp("target"), settings=settings) as server:
        yield server


@pytest.fixture(scope="module")
def apart(cluster: Cluster, target: embedded.Embedded) -> Iterator[Database]:
    """Control, and shard 1 on a server of its own."""
    control = cluster.create("partitioned")
    shard = of_server(target)
    join_shards(control.dsn_owner, {1: shard.dsn_owner})
    yield replace(control, others=(shard,))
    cluster.drop(control)


def test_what_a_target_lost_in_a_crash_comes_again_before_the_bucket_is_there(
    apart: Database, target: embedded.Embedded
) -> None:
    """Even if it committed what it was sent without waiting for its disk."""
    bring(apart, "crash", 0, keys=20)
    with closing(opened(apart)) as store:
        place = store.place("crash")
        assert place is not None
        lost = []
        again = threading.Timer(1.5, crash, [target])

        def look(done: str) -> None:
            if done == "copy":
                alter(
                    apart.others[0],
                    f"ALTER SUBSCRIPTION poky_move_{place.id} SET (synchronous_commit = 'off')",
                )
                for number in range(50):
                    store.put("crash", f"late{number}", b"v", "t")
            if done == "depart":
                crash(target, max_logical_replication_workers="0")
                found = ask(
                    apart.others[0],
                    f"SELECT count(*) FROM poky._o_{place.id} WHERE key LIKE 'late%'",
                )
                lost.append(50 - found)
                again.start()

        moving.move(owners(apart), "crash", 1, after=look)
        again.join()
        assert lost[0] > 0, "nothing was lost in the crash"
        there = store.list_page("crash", "late", limit=1000).entries
        assert len(there) == 50
        assert len(store.list_page("crash", "old", limit=1000).entries) == 20
    assert nothing_is_left(apart, "crash", 1) == []


@pytest.mark.parametrize("step", moving.STEPS[:-1])
def test_a_target_may_crash_after_every_step(
    apart: Database, target: embedded.Embedded, name: str, step: str
) -> None:
    bring(apart, name, 0, keys=20)
    crashes = []

    def look(done: str) -> None:
        if done == step and not crashes:
            crashes.append(done)
            crash(target)

    moving.move(owners(apart), name, 1, after=look)
    assert nothing_is_left(apart, name, 1) == []
    with closing(opened(apart)) as store:
        assert len(store.list_page(name, "old", limit=1000).entries) == 20


def test_nothing_departs_before_a_standby_of_the_target_has_all_of_it(apart: Database) -> None:
    bring(apart, "strict", 0, keys=20)
    confirmed = threading.Event()
    departed_after: list[bool] = []

    def confirm() -> None:
        confirmed.set()
        set_standbys(apart.others[0], "")

    def look(done: str) -> None:
        if done == "copy" and not confirmed.is_set():
            set_standbys(apart.others[0], "nobody")
            threading.Timer(1.5, confirm).start()
        if done == "fence":
            departed_after.append(confirmed.is_set())

    moving.move(owners(apart), "strict", 1, after=look)
    assert departed_after == [True]
    with closing(opened(apart)) as store:
        assert len(store.list_page("strict", "old", limit=1000).entries) == 20


@pytest.mark.parametrize("has_slot", [True, False])
def test_what_will_not_be_sent_again_is_copied_again(
    apart: Database, name: str, has_slot: bool
) -> None:
    """The target has less than it confirmed; the source may be a server without the slot, too."""
    bring(apart, name, 0, keys=20)
    with closing(opened(apart)) as store:
        place = store.place(name)
        assert place is not None
        move = f"poky_move_{place.id}"
        told: list[str] = []

        def lose(done: str) -> None:
            if done == "depart":
                alter(apart.others[0], f"DELETE FROM poky._mark WHERE id = {place.id}")
                alter(apart.others[0], f"DELETE FROM poky._o_{place.id} WHERE key > 'old15'")
                if not has_slot:
                    alter(apart.others[0], f"ALTER SUBSCRIPTION {move} DISABLE")
                    drop = f"SELECT pg_drop_replication_slot('{move}')"
                    wait_until(lambda: altered(apart, drop), 30)

        moving.move(owners(apart), name, 1, lambda shown: told.append(shown.step), lose)
        assert len(store.list_page(name, "old", limit=1000).entries) == 20
    assert "The target cannot go on: copying from the beginning" in told
    assert nothing_is_left(apart, name, 1) == []


def test_nothing_arrives_before_all_of_its_tables_are_copied(apart: Database, name: str) -> None:
    """Copied again after the departure: the mark comes with its own table, which may be first."""
    bring(apart, name, 0, keys=20)
    target = apart.others[0]
    with closing(opened(apart)) as store:
        place = store.place(name)
        assert place is not None
        copied: list[bool] = []

        def let() -> None:
            copied.append(True)
            alter(target, "DROP EVENT TRIGGER later; DROP FUNCTION public.refuse CASCADE")

        later = threading.Timer(3, let)

        def lose(done: str) -> None:
            if done == "depart":
                alter(target, f"DELETE FROM poky._mark WHERE id = {place.id}")
                alter(target, f"DELETE FROM poky._o_{place.id}")
                alter(target, COPIED_LATER)
                later.start()
            if done == "arrive":
                assert copied, "it was not all there"

        moving.move(owners(apart), name, 1, after=lose)
        later.join()
        assert len(store.list_page(name, "old", limit=1000).entries) == 20
    assert nothing_is_left(apart, name, 1) == []


@pytest.mark.parametrize("step", ["copy", "fence", "depart"])
def test_a_mover_that_comes_late_harms_no_later_move(apart: Database, name: str, step: str) -> None:
    """It was held up in its last step, control failed over, and the bucket is on its way back."""
    bring(apart, name, 0, keys=20)
    with closing(opened(apart)) as store:
        place = store.place(name)
        assert place is not None
        moving.move(owners(apart), name, 1)
        late: list[str] = []

        def look(done: str) -> None:
            if done == step and not late:
                late.append(done)
                alter(apart.others[0], f"SELECT poky._queue_arrived({place.id})")
                alter(apart, f"SELECT poky._forget_departed({place.id})")

        moving.move(owners(apart), name, 0, after=look)
        assert late
        assert len(store.list_page(name, "old", limit=1000).entries) == 20
    assert nothing_is_left(apart, name, 0) == []


def test_two_movers_do_not_meet_in_an_arrival(apart: Database) -> None:
    """After a failover of control both may believe to be the only one."""
    calls = ("_give_up_arrival(1000)", '_arrive_bucket(1000, \'{"mark": "m"}\')')
    for first, second in itertools.product(calls[:1], calls):
        with ExitStack() as opened:
            one, two = (opened.enter_context(closing(apart.others[0].connect())) for _ in "12")
            one.cursor().execute(f"SELECT poky.{first}")
            two.cursor().execute("SET lock_timeout = 100")
            with pytest.raises(psycopg2.errors.LockNotAvailable):
                two.cursor().execute(f"SELECT poky.{second}")


# Tables that are made from now on take no rows of a replication.
COPIED_LATER = """
    CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE EXCEPTION 'not yet'; END $$;
    CREATE FUNCTION public.refuse_all() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER
    AS $$
    DECLARE
        v_made record;
    BEGIN
        FOR v_made IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
            IF v_made.object_type = 'table' THEN
                EXECUTE format('CREATE TRIGGER refuse BEFORE INSERT ON %s FOR EACH ROW'
                    ' EXECUTE FUNCTION public.refuse()', v_made.object_identity);
                EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse',
                    v_made.object_identity);
            END IF;
        END LOOP;
    END;
    $$;
    CREATE EVENT TRIGGER later ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
    EXECUTE FUNCTION public.refuse_all();
"""


def test_what_the_source_keeps_no_longer_is_copied_again(
    apart: Database, target: embedded.Embedded, name: str
) -> None:
    """Here the server of its own is the source: its disk is not filled by a move that lies idle."""
    bring(apart, name, 1, keys=20)
    told: list[str] = []
    limit = "ALTER SYSTEM {} max_slot_wal_keep_size{}"
    with closing(opened(apart)) as store:
        place = store.place(name)
        assert place is not None
        move = f"poky_move_{place.id}"
        status = f"SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{move}'"

        def lose(done: str) -> None:
            if done == "prepare" and not told.count("lost"):
                told.append("lost")
                alter(apart, f"ALTER SUBSCRIPTION {move} DISABLE")
                query(target, limit.format("SET", " = 0"))
                query(target, "SELECT pg_reload_conf()")

                def is_lost() -> bool:
                    store.put(name, "late", b"v", "t")
                    query(target, "SELECT pg_switch_wal()")
                    query(target, "CHECKPOINT")
                    return query(target, status) == "lost"

                wait_until(is_lost, 60)
                query(target, limit.format("RESET", ""))
                query(target, "SELECT pg_reload_conf()")

        moving.move(owners(apart), name, 0, lambda shown: told.append(shown.step), lose)
        assert len(store.list_page(name, "", limit=1000).entries) == 21
    assert "The target cannot go on: copying from the beginning" in told
    assert nothing_is_left(apart, name, 0) == []


def altered(database: Database, statement: str) -> bool:
    with suppress(psycopg2.errors.ObjectInUse):
        alter(database, statement)
        return True
    return False


# Standbys.


class Pair:
    """A server whose commits wait for its standby."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self._opened = ExitStack()
        self.leader = self._open(home / "leader")
        self.has_failed_over = False
        of_server(self.leader)
        with (self.leader.data / "pg_hba.conf").open("a") as hba:
            hba.write("local replication all trust\n")
        query(self.leader, "SELECT pg_reload_conf()")
        copy = home / "standby/postgresql/data"
        copy.parent.mkdir(parents=True)
        source = f"host={sockets(self.leader)} user=postgres application_name=standby"
        self.leader._make_directory(copy, self.leader._server)
        self.leader._run("pg_basebackup", "-D", str(copy), "-d", source, "-R", "-c", "fast")
        self.standby = self._open(home / "standby")
        query(self.leader, "ALTER SYSTEM SET synchronous_standby_names = '*'")
        query(self.leader, "SELECT pg_reload_conf()")
        is_sync = "SELECT sync_state FROM pg_stat_replication WHERE application_name = 'standby'"
        wait_until(lambda: query(self.leader, is_sync) == "sync", 30)

    def _open(self, home: Path) -> embedded.Embedded:
        settings = {
            **HASTY,
            "synchronous_commit": "on",
            "wal_retrieve_retry_interval": "200ms",
            "hot_standby_feedback": "on",
        }
        return self._opened.enter_context(embedded.ensure_running(home, settings=settings))

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    @property
    def database(self) -> Database:
        """Whichever of the two leads."""
        hosts = ",".join(map(sockets, (self.leader, self.standby)))
        dsn = f"host={hosts} dbname=poky target_session_attrs=read-write connect_timeout=5"
        return Database("poky", "partitioned", f"{dsn} user=postgres", f"{dsn} user=poky_service")

    def fail_over(self) -> None:
        """The leader dies, and the standby leads."""
        os.kill(self.leader.pid, signal.SIGQUIT)
        assert query(self.standby, "SELECT pg_promote()")


class Writer:
    """Writes to a bucket all the time, and knows what was acknowledged."""

    def __init__(self, database: Database, bucket: str) -> None:
        self._database = database
        self._bucket = bucket
        self.acknowledged: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self) -> None:
        with closing(opened(self._database, 2)) as store:
            for number in itertools.count(1):
                if self._stop.is_set():
                    return
                with suppress(StoreError):
                    store.put(self._bucket, f"w{number:09d}", b"v", "t")
                    self.acknowledged.append(number)

    def lost(self) -> list[int]:
        """What was acknowledged and is not there."""
        there: set[str] = set()
        after = ""
        with closing(opened(self._database, 2)) as store:
            while entries := store.list_page(self._bucket, "w", after, 1000).entries:
                after = entries[-1].key
                there.update(each.key for each in entries)
        return [number for number in self.acknowledged if f"w{number:09d}" not in there]


def takers(database: Database, bucket: str) -> int:
    """How many databases take writes of a bucket."""
    return sum(
        ask(
            each,
            "SELECT count(*) FROM poky.bucket AS b WHERE b.name = '" + bucket + "' AND NOT EXISTS"
            " (SELECT FROM pg_trigger WHERE tgname = '_fence' AND tgenabled <> 'D'"
            "  AND tgrelid = format('poky.%I', b.leaf)::regclass)",
        )
        for each in (database, *database.others)
    )


# Which of the databases has a standby, and from where to where the bucket moves. 0 is control.
SIDES = {
    "source": (1, (1, 0)),
    "target": (1, (0, 1)),
    "control": (0, (1, 2)),
    "control-source": (0, (0, 1)),
    "control-target": (0, (1, 0)),
}


@contextmanager
def beside_a_standby(
    cluster: Cluster, home: Path, side: str
) -> Iterator[tuple[Database, Pair, tuple[int, int]]]:
    """Databases of which one has a standby, that one, and from where to where a bucket moves."""
    number, way = SIDES[side]
    with Pair(home) as pair:
        databases = [cluster.create("partitioned") for _ in range(max(way))]
        databases.insert(number, pair.database)
        control, *others = databases
        join_shards(control.dsn_owner, {n: each.dsn_owner for n, each in enumerate(others, 1)})
        yield replace(control, others=tuple(others)), pair, way
        del databases[number]
        for each in databases:
            cluster.drop(each)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("step", moving.STEPS[:-1])
def test_a_standby_may_take_over_after_every_step(
    cluster: Cluster, tmp_path: Path, side: str, step: str
) -> None:
    with beside_a_standby(cluster, tmp_path / "pair", side) as (database, pair, way):
        bring(database, "b", way[0], keys=50)
        record(database, "b")
        with closing(opened(database)) as store:
            begin = store.changes("b").next
        counts: list[int] = []
        acknowledged_at: list[int] = []

        with Writer(database, "b") as writer:
            wait_until(lambda: len(writer.acknowledged) > 20, 30)

            def look(done: str) -> None:
                if done == step and not acknowledged_at:
                    acknowledged_at.append(len(writer.acknowledged))
                    pair.fail_over()
                counts.append(takers(database, "b"))

            moving.move(owners(database), "b", way[1], after=look)
            ended = len(writer.acknowledged)
            wait_until(lambda: len(writer.acknowledged) > ended + 20, 30)
        assert acknowledged_at, "it was not seen"
        assert max(counts) <= 1
        assert writer.lost() == []
        assert nothing_is_left(database, "b", way[1]) == []
        with closing(opened(database)) as store:
            assert len(store.list_page("b", "old", limit=1000).entries) == 50
            place = store.place("b")
            assert place is not None
            assert place.shard == way[1]
            followed = [(each.key, each.revision) for each in all_after(store, "b", begin)]
            logged = recorded(database, identity(store, "b"))
        assert faults(followed, logged) == []
        told = {f"w{number:09d}" for number in writer.acknowledged}
        assert told <= {key for key, _ in followed}


def test_a_move_that_ended_is_told_although_control_dies_then(
    cluster: Cluster, tmp_path: Path
) -> None:
    with beside_a_standby(cluster, tmp_path / "pair", "control") as (database, pair, way):
        bring(database, "b", way[0], keys=1)

        def look(done: str) -> None:
            if done == "clean":
                pair.fail_over()

        moved = moving.move(owners(database), "b", way[1], after=look)
        assert moved is not None
        assert moved.pause_seconds is not None


@pytest.mark.parametrize("side", ["control", "control-source"])
@pytest.mark.parametrize("step", moving.STEPS[:-1])
def test_a_move_whose_mover_and_control_died_is_given_up_or_goes_on(
    cluster: Cluster, tmp_path: Path, side: str, step: str
) -> None:
    with beside_a_standby(cluster, tmp_path / "pair", side) as (database, pair, way):
        bring(database, "b", way[0], keys=20)

        def die(done: str) -> None:
            if done == step:
                raise Killed

        with Writer(database, "b") as writer:
            wait_until(lambda: len(writer.acknowledged) > 20, 30)
            with pytest.raises(Killed):
                moving.move(owners(database), "b", way[1], after=die)
            pair.fail_over()
            assert takers(database, "b") <= 1
            if moving.STEPS.index(step) < moving.STEPS.index("depart"):
                assert moving.abort(owners(database)) is not None
                shard = way[0]
            else:
                with pytest.raises(SchemaError) as refused:
                    moving.abort(owners(database))
                assert refused.value.code == "too_late"
                shard = way[1]
                moving.move(owners(database), "b", shard)
            ended = len(writer.acknowledged)
            wait_until(lambda: len(writer.acknowledged) > ended + 20, 30)
        assert moving.under_way(owners(database)) is None
        assert takers(database, "b") == 1
        assert writer.lost() == []
        assert nothing_is_left(database, "b", shard) == []
        with closing(opened(database)) as store:
            place = store.place("b")
            assert place is not None
            assert (place.shard, place.moving) == (shard, False)
            assert len(store.list_page("b", "old", limit=1000).entries) == 20


def test_a_mover_that_was_frozen_harms_none_that_came_after(
    sharded: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control failed over while it prepared; it thaws when the bucket has left on its way back."""
    bring(sharded, name, 1, keys=20)
    held, thaws = threading.Event(), threading.Event()
    go_to = moving._Mover._go_to

    def go_and_freeze(mover: moving._Mover, to: str) -> None:
        go_to(mover, to)
        if threading.current_thread() is frozen and to == "prepare" and not held.is_set():
            held.set()
            assert thaws.wait(60)

    def move() -> None:
        with suppress(SchemaError):
            moving.move(owners(sharded), name, 2)

    def thaw(done: str) -> None:
        if done == "depart" and not thaws.is_set():
            thaws.set()
            frozen.join(1)

    monkeypatch.setattr(moving._Mover, "_go_to", go_and_freeze)
    frozen = threading.Thread(target=move, daemon=True)
    with Writer(sharded, name) as writer:
        frozen.start()
        assert held.wait(30)
        fail_over_control(sharded)
        moving.move(owners(sharded), name, 2)
        try:
            moving.move(owners(sharded), name, 1, after=thaw)
        finally:
            thaws.set()
            frozen.join(90)
        assert not frozen.is_alive()
        ended = len(writer.acknowledged)
        wait_until(lambda: len(writer.acknowledged) > ended + 20, 30)
    assert moving.under_way(owners(sharded)) is None
    assert takers(sharded, name) == 1
    assert writer.lost() == []
    with closing(opened(sharded)) as store:
        place = store.place(name)
        assert place is not None
        assert not place.moving
        assert len(store.list_page(name, "old", limit=1000).entries) == 20
    assert nothing_is_left(sharded, name, place.shard) == []


def test_an_abort_that_was_frozen_harms_none_that_came_after(
    sharded: Database, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(sharded, name, 1, keys=20)
    held, thaws = threading.Event(), threading.Event()
    give_up = moving._Mover.give_up

    def freeze_and_give_up(mover: moving._Mover) -> None:
        held.set()
        assert thaws.wait(60)
        give_up(mover)

    def die(done: str) -> None:
        if done == "copy":
            raise Killed

    def abort() -> None:
        with suppress(SchemaError):
            ended.append(moving.abort(owners(sharded)))

    def thaw(done: str) -> None:
        if done == "fence":
            thaws.set()
            frozen.join(30)

    ended: list[object] = []
    monkeypatch.setattr(moving._Mover, "give_up", freeze_and_give_up)
    with pytest.raises(Killed):
        moving.move(owners(sharded), name, 2, after=die)
    frozen = threading.Thread(target=abort, daemon=True)
    frozen.start()
    assert held.wait(30)
    fail_over_control(sharded)
    moving.move(owners(sharded), name, 2)
    moved = moving.move(owners(sharded), name, 1, after=thaw)
    assert moved is not None
    assert not frozen.is_alive()
    assert ended == []
    with closing(opened(sharded)) as store:
        assert len(store.list_page(name, "old", limit=1000).entries) == 20
    assert nothing_is_left(sharded, name, 1) == []


def fail_over_control(database: Database) -> None:
    """Who moves loses its connection to control, and so the lock."""
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        ended = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            " AND granted AND pid <> pg_backend_pid()"
        )
        cursor.execute(ended)
        assert cursor.fetchall() == [(True,)]


# Users.


def test_a_move_needs_no_superuser(target: embedded.Embedded) -> None:
    own = Cluster(target)
    database = own.create_sharded(2)
    query(
        target,
        "CREATE ROLE mover LOGIN REPLICATION PASSWORD 'secret' IN ROLE poky_owner,"
        " pg_create_subscription",
    )
    for each in (database, *database.others):
        alter(each, f"GRANT CREATE ON DATABASE {each.name} TO mover")
    hba = target.data / "pg_hba.conf"
    hba.write_text("local all mover scram-sha-256\n" + hba.read_text())
    query(target, "SELECT pg_reload_conf()")

    def as_mover(each: Database) -> Database:
        return replace(
            each,
            dsn_owner=make_dsn(each.dsn_owner, user="mover", password="secret"),
        )

    moved = replace(as_mover(database), others=tuple(map(as_mover, database.others)))
    join_shards(moved.dsn_owner, {1: moved.others[0].dsn_owner})
    bring(moved, "b", 0, keys=20)
    with Writer(moved, "b") as writer:
        for shard in (1, 0):
            moving.move(owners(moved), "b", shard)
            assert nothing_is_left(moved, "b", shard) == []
    assert writer.lost() == []
    moving.move(owners(moved), "b", 1)
    with pytest.raises(Killed):
        moving.move(owners(moved), "b", 0, after=killed)
    assert moving.abort(owners(moved)) is not None
    assert nothing_is_left(moved, "b", 1) == []
    own.drop(database)


def killed(done: str) -> None:
    if done == "copy":
        raise Killed


def set_standbys(database: Database, names: str) -> None:
    alter(database, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    alter(database, "SELECT pg_reload_conf()")

    wait_until(lambda: ask(database, "SHOW synchronous_standby_names") == names, 30)


def ask(database: Database, question: str) -> Any:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchall()[0][0]
