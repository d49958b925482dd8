"""Moves of buckets between servers that crash, or whose standby takes over."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from poky import embedded
from poky.schema import moving
from poky.schema.migrate import migrate
from poky.schema.shards import join_shards
from tests.conftest import HASTY, Cluster, Database
from tests.service import wait_until
from tests.test_shards import alter, bring, name, nothing_is_left, opened, owners

__all__ = ["name"]
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


def set_standbys(database: Database, names: str) -> None:
    alter(database, f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    alter(database, "SELECT pg_reload_conf()")

    wait_until(lambda: ask(database, "SHOW synchronous_standby_names") == names, 30)


def ask(database: Database, question: str) -> Any:
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(question)
        return cursor.fetchall()[0][0]
