"""The store beside two servers, of which one leads: real replication, a promotion, a hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest

from poky import embedded
from poky.schema.migrate import migrate
from poky.store import Store, StoreError
from tests.conftest import HASTY
from tests.service import running, wait_until
from tests.support.databases import hung

pytestmark = pytest.mark.slow


def query(server: embedded.Embedded, statement: str) -> Any:
    """Run one statement as the superuser; its first value."""
    with closing(psycopg2.connect(server.dsn_owner)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return (cursor.fetchone() or [None])[0] if cursor.description else None


def sockets(server: embedded.Embedded) -> str:
    return parse_qs(urlsplit(server.dsn_owner).query)["host"][0]


@dataclass
class Pair:
    """A server that leads, and its standby."""

    leader: embedded.Embedded
    standby: embedded.Embedded

    @property
    def dsn(self) -> str:
        """Both, the leader first. A connection to a server that hangs would take long."""
        hosts = ",".join(map(sockets, (self.leader, self.standby)))
        return f"host={hosts} dbname=poky user=poky_service connect_timeout=25"

    def fail_over(self) -> None:
        """Let the standby lead, with everything that was committed."""
        position = query(self.leader, "SELECT pg_current_wal_lsn()")
        caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{position}'"
        wait_until(lambda: query(self.standby, caught_up), 30)
        assert query(self.standby, "SELECT pg_promote()")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    settings = {**HASTY, "wal_level": "replica"}
    with embedded.ensure_running(tmp_path / "leader", settings=settings) as leader:
        migrate(leader.dsn_owner, release="tests", kind="partitioned")
        query(leader, "SELECT poky.ensure_bucket('b')")
        with (leader.data / "pg_hba.conf").open("a") as hba:
            hba.write("local replication all trust\n")
        query(leader, "SELECT pg_reload_conf()")
        home = tmp_path / "standby"
        copy = home / "postgresql/data"
        (home / "postgresql").mkdir(parents=True)
        source = f"host={sockets(leader)} user=postgres"
        leader._make_directory(copy, leader._server)
        leader._run("pg_basebackup", "-D", str(copy), "-d", source, "-R", "-c", "fast")
        with embedded.ensure_running(home, settings=settings) as standby:
            yield Pair(leader, standby)


def open_connections(store: Store, count: int) -> None:
    """Have so many idle connections in the pool."""
    together = threading.Barrier(count)

    def read() -> None:
        together.wait()
        for _ in range(20):
            store.get("b", "k")

    wait_until(lambda: _all_at_once(read, count) and store.connections[1] >= count, 30)


def _all_at_once(run: Any, count: int) -> bool:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return True


def test_a_write_that_a_former_leader_refuses_is_made_at_the_new_one(pair: Pair) -> None:
    """However many connections to it are in the pool: each of them would refuse."""
    with closing(Store(pair.dsn, pool_size=6)) as store:
        open_connections(store, 6)
        pair.fail_over()
        query(pair.leader, "ALTER SYSTEM SET default_transaction_read_only = on")
        query(pair.leader, "SELECT pg_reload_conf()")
        wait_until(lambda: query(pair.leader, "SHOW default_transaction_read_only") == "on", 30)
        store.put("b", "k", b"v", "text/plain")
        assert store.connections[1] == 1, "connections to the former leader are kept"
    statement = "SELECT count(*) FROM poky.get_many('b', '{k}')"
    assert (query(pair.leader, statement), query(pair.standby, statement)) == (0, 1)


def test_a_host_that_hangs_is_tried_last_from_then_on(pair: Pair) -> None:
    with closing(Store(pair.dsn, pool_size=6, statement_timeout=1, lock_timeout=1)) as store:
        open_connections(store, 4)
        pair.fail_over()
        with hung(pair.leader):
            with pytest.raises(StoreError) as failed:
                store.put("b", "k", b"1", "text/plain")
            assert failed.value.unknown
            began = time.monotonic()
            for number in range(5):
                store.put("b", f"k{number}", b"2", "text/plain")
            assert time.monotonic() - began < 20, "a connection to it was used, or made"
            assert store.get("b", "k0")


def test_status_names_the_server_that_answers(pair: Pair, tmp_path: Path) -> None:
    with running(pair.dsn, tmp_path / "log") as service:
        assert service.client().get("/status?verbose").json()["server"] == "socket"


def test_a_write_whose_wait_for_a_standby_is_cancelled_is_in_doubt(
    pair: Pair, tmp_path: Path
) -> None:
    """PostgreSQL commits it, says so in a notice alone, and has it on one machine."""
    waiting = (
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
        " WHERE wait_event = 'SyncRep' AND usename = 'poky_service'"
    )
    outcomes = []
    with running(pair.dsn, tmp_path / "log") as service:
        client = service.client(timeout=60)
        assert client.put("/kv/b/before", "v").status == 200
        for setting in ("synchronous_commit = on", "synchronous_standby_names = 'nobody'"):
            query(pair.leader, f"ALTER SYSTEM SET {setting}")
        query(pair.leader, "SELECT pg_reload_conf()")
        wait_until(lambda: query(pair.leader, "SHOW synchronous_standby_names") == "nobody", 30)
        writer = threading.Thread(target=lambda: outcomes.append(client.put("/kv/b/k", "v")))
        writer.start()
        wait_until(lambda: query(pair.leader, waiting), 30, "the write waits, and is cancelled")
        writer.join(60)
        (answer,) = outcomes
        assert answer.status == 503
        assert answer.headers["Poky-Outcome"] == "unknown"
        assert client.get("/kv/b/k").body == b"v"
