"""A database that was restored to an earlier time: nothing of the lost time passes for new.

A copy of the database stands for what a backup brings back. The whole, a PostgreSQL that is damaged
under load, is tests/molecule/backup.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from email.utils import formatdate
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from poky.schema.migrate import migrate, plan
from poky.schema.plan import Kind
from poky.store import Store, StoreError
from tests.conftest import Cluster, Database
from tests.service import running, wait_until
from tests.test_changes import query
from tests.test_cli import told
from tests.test_process import poky

pytestmark = pytest.mark.slow

BUCKET = "tips"


@contextmanager
def opened(database: Database) -> Iterator[Store]:
    with closing(Store(database.dsn_owner, pool_size=2)) as store:
        yield store


@pytest.fixture
def restored(cluster: Cluster, own_database: Database) -> Iterator[list[Database]]:
    """Two copies of a database with one object, made before the time that is lost."""
    with opened(own_database) as store:
        store.ensure_bucket(BUCKET)
        store.keep_changes(BUCKET, 86400)
        store.put(BUCKET, "k", b"first", "text/plain")
        store.register_node("cache1", "http://127.0.0.1:6091")
    with ExitStack() as stack:
        copies = [cluster.copy(own_database) for _ in range(2)]
        for copy in copies:
            stack.callback(cluster.drop, copy)
        yield copies


def test_revisions_go_on_where_none_was_drawn(
    own_database: Database, restored: list[Database]
) -> None:
    """Also after a second restore to the same time, which knows nothing of the first."""
    drawn = []
    for database in [own_database, *restored]:
        with opened(database) as store:
            if database is not own_database:
                revision, _ = store.after_restore(0)
                assert revision > max(drawn)
            for number in range(40):
                done = store.put(BUCKET, "k", b"%d" % number, "text/plain")
                assert done.revision
                assert done.revision > max(drawn, default=0)
                drawn.append(done.revision)
    assert max(drawn) < 2**53, "JavaScript's numbers end there"


def test_databases_that_share_the_numbers_keep_to_their_own(
    empty_database: Database, kind: Kind
) -> None:
    migrate(
        empty_database.dsn_owner, release="t", kind=kind, revision_start=3, revision_increment=7
    )
    with opened(empty_database) as store:
        store.ensure_bucket(BUCKET)
        before = store.put(BUCKET, "k", b"v", "text/plain").revision
        store.after_restore(0)
        after = store.put(BUCKET, "k", b"w", "text/plain").revision
    assert before is not None
    assert after is not None
    assert (before % 7, after % 7) == (3, 3)
    assert after > before


def test_a_copy_of_the_lost_time_is_not_confirmed(
    own_database: Database, restored: list[Database], tmp_path: Path
) -> None:
    path = f"/kv/{BUCKET}/k"
    with running(own_database.dsn_service, tmp_path / "lost.log") as service:
        client = service.client()
        written = int(time.time())
        wait_until(lambda: time.time() > written + 2, what="a later second")
        date = formatdate(written + 1, usegmt=True)
        client.put(path, "lost", If_Unmodified_Since=date)
        lost = client.get(path)
        assert lost.body == b"lost"
        assert lost.headers["Last-Modified"] == date
    with opened(restored[0]) as store:
        store.after_restore(3600)
    with running(restored[0].dsn_service, tmp_path / "restored.log") as service:
        client = service.client()
        for condition in (
            {"If_Modified_Since": date},
            {"If_None_Match": lost.headers["ETag"]},
        ):
            answer = client.get(path, **condition)
            assert (answer.status, answer.body) == (200, b"first"), condition
        assert client.put(path, "x", If_Match=lost.headers["ETag"]).status == 412
        # The same value again is another object.
        client.put(path, "lost")
        assert client.get(path).headers["ETag"] != lost.headers["ETag"]


def test_a_cursor_of_the_lost_time_is_gone_for_good(
    own_database: Database, restored: list[Database]
) -> None:
    """Even when the numbers of its transactions have been given out again."""
    with opened(own_database) as store:
        store.put(BUCKET, "k", b"lost", "text/plain")
        cursors = [store.changes(BUCKET).next, store.cursor()]
    wait_until(lambda: int(time.time()) > int(cursors[1].split(".")[0]), what="a later second")
    with opened(restored[0]) as store:
        store.after_restore(0)
        store.put(BUCKET, "l", b"new", "text/plain")
        for cursor in cursors:
            with pytest.raises(StoreError) as refused:
                store.changes(BUCKET, cursor)
            assert refused.value.code == "changes_gone"
        assert [change.key for change in store.changes(BUCKET, "0").changes] == ["l"]
        following = store.changes(BUCKET).next
        store.put(BUCKET, "m", b"new", "text/plain")
        assert [change.key for change in store.changes(BUCKET, following).changes] == ["m"]


def test_caches_and_decisions_forget_the_lost_time(restored: list[Database]) -> None:
    """A suspended cache too: it keeps its generation when it is reinstated."""
    both = "SELECT generation FROM poky.cache_node UNION ALL SELECT tag FROM poky.policy"
    before = query(restored[0], both)
    with opened(restored[0]) as store:
        assert store.nodes()[0].suspended_at
        store.after_restore(0)
    after = query(restored[0], both)
    assert len(after) == len(before) == 2
    assert not {*after} & {*before}


def test_the_command_says_so_and_the_release_serves(
    restored: list[Database], tmp_path: Path
) -> None:
    database = restored[0]
    refused = poky("restored", "--json", "-d", database.dsn_service)
    assert json.loads(refused.stderr.splitlines()[-1])["code"] == "rights_missing"
    said = poky("restored", "--json", env={"POKY_OWNER_DSN": database.dsn_owner})
    assert json.loads(said.stdout)["revision"] > 10**15, said.stderr
    planned = plan(database.dsn_owner)
    assert (planned.state, planned.pending, planned.refusal) == ("ok", [], None)
    with running(database.dsn_service, tmp_path / "log") as service:
        assert service.client().get(f"/kv/{BUCKET}/k").body == b"first"


def test_the_command_ends_when_no_cache_uses_an_old_copy(
    restored: list[Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one whose lease the restored database does not know."""
    waits: list[float] = []
    command = import_module("poky.cli.restored")
    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=waits.append))
    database = restored[0]
    caches = {"POKY_CACHES": "cache1=http://127.0.0.1:6091", "POKY_LEASE_SECONDS": "4"}
    with opened(database) as store:
        (node,) = store.nodes()
        assert store.reinstate_node(node.name, node.generation)
        assert store.lease(node.name, 7)
    for env, seconds in (({}, 7), (caches, 7), ({**caches, "POKY_LEASE_SECONDS": "90"}, 90)):
        said = told(database, "restored", **env)
        revision = int(said.split("revisions go on from ")[1].split(";")[0])
        assert said == (f"revisions go on from {revision}; the caches have forgotten everything\n")
        assert waits.pop() == seconds
    assert waits == []
    bare = restored[1]
    with opened(bare) as store:
        (node,) = store.nodes()
        store.drain_node(node.name, node.generation)
        store.remove_node(node.name)
    assert told(bare, "restored", POKY_LEASE_SECONDS="90")
    assert waits == [0]
