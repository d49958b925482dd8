"""What is known of the database and of other instances, by stores that answer as they are told."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import Any

import pytest

from poky import schema
from poky.health import Health, Instances, Shards, State, _ShardHealth
from poky.schema.plan import SCRIPTS
from poky.store import Store, StoreError
from tests.conftest import Database
from tests.service import wait_until

AWAY = StoreError(503, "Away.", code="database_unavailable")


class Answering:
    """A store that says what it is told to, once it may."""

    def __init__(self) -> None:
        self.answer: Any = ("", [], "db1")
        self.may = threading.Event()
        self.may.set()
        self.asked = 0

    def serving(self) -> Any:
        self.asked += 1
        self.may.wait(30)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def store() -> Answering:
    return Answering()


def test_a_database_is_as_it_answers(store: Answering) -> None:
    health = Health(store)  # type: ignore[arg-type]
    missing = StoreError(503, "Migrate.", code="schema_missing")
    for answer, state in (
        (("", [*SCRIPTS.migrations], "db1"), State("ok", schema.state(SCRIPTS.migrations), "db1")),
        (("", [], "db2"), State("ok", schema.state([]), "db2")),
        (missing, State("ok", "missing", None)),
        (AWAY, State("unavailable", "unknown", None)),
    ):
        store.answer = answer
        assert health.check(10) == state
    assert State("ok", "ok").ok
    assert State("ok", "ok", "db1").ok
    assert not State("ok", "missing").ok
    assert not State("unavailable", "ok").ok


def test_a_database_that_hangs_is_unavailable_in_time_and_asked_once(store: Answering) -> None:
    health = Health(store)  # type: ignore[arg-type]
    assert health.check(10).database == "ok"
    store.may.clear()
    began = time.monotonic()
    for _ in range(3):
        assert health.check(0.1) == State("unavailable", "unknown")
    assert 0.3 <= time.monotonic() - began < 2
    assert store.asked == 2
    store.may.set()
    wait_until(lambda: health.check(10).database == "ok")
    # What was asked before this call is no answer to it.
    number = health.ask()
    store.answer = AWAY
    later = health.ask()
    assert later == number + 1
    assert health.told(later, 10) == State("unavailable", "unknown")


def test_nothing_is_asked_unless_somebody_wants_to_know(store: Answering) -> None:
    health = Health(store)  # type: ignore[arg-type]
    assert health.check(10).database == "ok"
    time.sleep(0.05)
    assert store.asked == 1


def test_a_look_at_every_file_is_made_once_a_minute(database: Database) -> None:
    with closing(Store(database.dsn_service)) as store:
        health = _ShardHealth(store)
        assert health.held is None
        assert health.check(30).ok
        held = health.held
        assert held is not None
        assert time.monotonic() + 50 < health._until <= time.monotonic() + 60
        health.held = None
        assert health.check(30).ok
        assert health.held is None
        health._until = 0.0
        assert health.check(30).ok
        assert health.held is not None


def test_many_who_came_and_went_are_forgotten(store: Answering) -> None:
    instances = Instances(store)  # type: ignore[arg-type]
    instances.note(map(str, range(Instances.MOST)))
    instances.note(["a"])
    assert len(instances.gone()) == Instances.MOST
    instances.note(["b"])
    assert instances.gone() == {}


def test_its_thread_holds_up_no_end_of_the_process(store: Answering) -> None:
    Health(store)  # type: ignore[arg-type]
    assert all(each.daemon for each in threading.enumerate() if each.name == "poky-health")


def test_one_database_is_no_shard(database: Database) -> None:
    with closing(Store(database.dsn_service)) as store:
        shards = Shards(store)
        assert (shards.check(), shards.numbers, shards.seen) == ([], [], [])


def test_instances_that_are_gone_are_known_since_when(
    store: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = Instances(store)  # type: ignore[arg-type]
    assert instances.gone() == {}
    began = time.time()
    instances.note(["a", "b"])
    assert instances.gone() == {}
    instances.note(["b"])
    gone = instances.gone()
    assert list(gone) == ["a"]
    assert began <= gone["a"] <= time.time()
    instances.note(["b", "c"])
    assert instances.gone() == gone
    instances.note(["a"])
    assert set(instances.gone()) == {"b", "c"}
    store.instances = lambda: ["c"]  # type: ignore[attr-defined]
    instances.look()
    assert set(instances.gone()) == {"a", "b"}
    monkeypatch.setattr(Instances, "MOST", 3)
    instances.note(["d"])
    assert set(instances.gone()) == {"a", "b", "c"}
    instances.note(["d"])
    assert instances.gone() == {}
