"""What is looked after, turn by turn, with a database and caches that do as they are told."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytest

from poky.background import Background
from poky.cache import Caches
from poky.cache.purge import NotConfirmed
from poky.config import Config
from poky.forms import CacheNode
from poky.store import Change, Node, StoreError


class Scripted:
    """A store, and a client of purge listeners."""

    def __init__(self) -> None:
        self.there: list[Node] = []
        self.done: list[tuple[Any, ...]] = []
        self.pages: list[list[Change]] = []
        self.failures: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.refusal: StoreError | None = None

    def nodes(self) -> list[Node]:
        return self.there

    def unconfirmed(self, seconds: float, limit: int) -> list[Change]:
        return self.pages.pop(0) if self.pages else []

    def purge(self, nodes: dict[str, str], paths: list[str]) -> dict[str, str]:
        self.done.append(("purge", sorted(nodes), paths))
        return {name: why for name, why in self.failures.items() if name in nodes}

    def probe(self, nodes: dict[str, str]) -> dict[str, str]:
        return {name: why for name, why in self.failures.items() if name in nodes}

    def name_of(self, url: str) -> str:
        if url not in self.names:
            raise NotConfirmed("is silent")
        return self.names[url]

    def register_node(self, name: str, url: str) -> bool:
        if self.refusal:
            raise self.refusal
        self.done.append(("register", name, url))
        return True

    def suspend_node(self, name: str, hold: bool = False) -> Node | None:
        self.done.append(("suspend", name))
        return None

    def reinstate_node(self, name: str, generation: str) -> bool:
        self.done.append(("reinstate", name, generation))
        return True

    def drain_node(self, name: str, generation: str) -> None:
        self.done.append(("drain", name, generation))

    def renew_generations(self) -> float:
        self.done.append(("renew",))
        return 0.0

    def confirm(self, ids: list[int]) -> None:
        self.done.append(("confirm", ids))

    def take(self) -> list[tuple[Any, ...]]:
        done, self.done = self.done, []
        return done


def scripted(*urls: str, **settings: Any) -> tuple[Scripted, Caches]:
    store = Scripted()
    given = tuple(CacheNode(*each.rpartition("=")[::2]) for each in urls)
    config = Config(caches=given, **settings)
    caches = Caches(store, config, Background(store))  # type: ignore[arg-type]
    caches._client = store  # type: ignore[assignment]
    return store, caches


def a_node(name: str = "one", **facts: Any) -> Node:
    given = {"name": name, "url": f"http://{name}:1", "generation": "g", "lease_seconds": 10.0}
    given |= {"suspended_at": None, "drained": True, "held": False, "leased_at": None}
    return Node(**{**given, "purged_at": None, **facts})


def test_what_writers_left_behind_is_purged_page_by_page() -> None:
    store, caches = scripted()
    store.there = [a_node(), a_node("away", suspended_at=7), a_node("two")]
    store.failures = {"two": "is silent"}
    full = [Change(number, "b", f"k{number % 2}") for number in range(1000)]
    store.pages = [full, [Change(2000, "b", "k"), Change(2001, "c", "")], [Change(3000, "b", "k")]]
    caches._sweep()
    first, *rest = store.take()
    assert first[:2] == ("purge", ["one", "two"])
    assert first[2] == [f"/kv/b/k{number % 2}" for number in range(1000)]
    assert rest == [
        ("suspend", "two"),
        ("confirm", [each.id for each in full]),
        ("renew",),  # of a bucket that was dropped
        ("purge", ["one", "two"], ["/kv/b/k"]),
        ("suspend", "two"),
        ("confirm", [2000, 2001]),
    ]
    assert caches.figures()["cache_swept"].read() == 1002
    assert len(store.pages) == 1
    caches._background.stop()
    caches._sweep()
    assert store.take() == []


def test_a_node_comes_back_after_three_good_answers_in_a_row(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "poky.cache")
    store, caches = scripted()
    nodes = [
        a_node(suspended_at=7),
        a_node("held", suspended_at=7, held=True),
        a_node("leased", suspended_at=7, drained=False),
    ]
    back = ("reinstate", "one", "g")
    turns: list[tuple[dict[str, str], list[Any]]] = [
        ({}, []),
        ({}, []),
        ({"one": "is silent"}, []),
        ({"one": "is silent"}, []),
        ({}, []),
        ({}, []),
        ({}, [back]),
        ({}, [back]),
    ]
    for failures, done in turns:
        store.failures = failures
        caches._reinstate(nodes)
        assert store.take() == done
    said = "the cache one stays suspended: it is silent"
    assert caplog.messages.count(said) == 1
    caches._reinstate([])
    caches._reinstate(nodes)
    assert store.take() == []


def test_leases_of_a_suspended_node_are_timed_by_its_generation() -> None:
    store, caches = scripted()
    node = a_node(suspended_at=7, drained=False, lease_seconds=60.0)
    caches._expire_leases([node, a_node("takes part"), a_node("drained", suspended_at=7)])
    assert store.take() == []
    assert list(caches._lease_ends) == ["g"]
    assert 59 < caches._lease_ends["g"] - time.monotonic() <= 60
    caches._lease_ends["g"] -= 60
    caches._expire_leases([node])
    assert store.take() == [("drain", "one", "g")]
    caches._expire_leases([node._replace(generation="h")])
    assert store.take() == []
    assert list(caches._lease_ends) == ["h"]
    caches._expire_leases([])
    assert caches._lease_ends == {}


def test_caches_of_the_configuration_are_registered_once_each(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, caches = scripted("one=http://one:1", "two=http://two:9", "http://three:1")
    store.there = [a_node(), a_node("two"), a_node("old"), a_node("older")]
    caches._register()
    assert store.take() == [("register", "two", "http://two:9")]
    assert "more caches are registered" not in caplog.text  # a name is still to be learned
    caches._register()
    assert store.take() == []
    store.names = {"http://three:1": "three"}
    caches._register()
    assert store.take() == [("register", "three", "http://three:1")]
    assert caches._unregistered == []
    caches._register()
    assert store.take() == []
    store, caches = scripted("one=http://one:1")
    store.there = [a_node(), a_node("old"), a_node("older")]
    caches._register()
    assert "more caches are registered than POKY_CACHES has: old, older" in caplog.text
    assert store.take() == []


def test_a_cache_that_the_database_refuses_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, caches = scripted("one=http://203.0.113.7:1")
    store.refusal = StoreError(503, "Away.", code="database_unavailable")
    with pytest.raises(StoreError):
        caches._register()
    assert len(caches._unregistered) == 1
    store.refusal = StoreError(400, "Not private.", code="bad_cache_url")
    caches._register()
    assert "the cache one at http://203.0.113.7:1 is refused: Not private." in caplog.text
    assert caches._unregistered == []


def test_what_caches_confirmed_is_noted_and_nothing_else() -> None:
    store, caches = scripted()
    caches._write_confirmed()
    assert store.take() == []
    caches._confirmed.extend(range(10_001))
    caches._write_confirmed()
    caches._write_confirmed()
    (_, first), (_, second) = store.take()
    assert (first, second) == ([*range(10_000)], [10_000])


def test_a_change_is_purged_where_caches_take_part(caplog: pytest.LogCaptureFixture) -> None:
    for mode, names in (("lease", ["one=http://one:1"]), ("revalidate", [])):
        _, caches = scripted("one=http://one:1", cache_mode=mode)
        assert [str(each) for each in caches._unregistered] == names
    store, caches = scripted("one=http://one:1", lease_seconds=7.0, purge_timeout=2.0)
    assert caches._grant == 5.0
    caches._has_tasks = True  # they are not to begin here
    caches.purge("b", ["k"], [])
    assert store.take() == []
    store.there = [a_node()]
    store.failures = {"one": "is silent"}
    caches.purge("b", ["k", "l", "k", ""], [])
    assert store.take() == [("purge", ["one"], ["/kv/b/k", "/kv/b/l"]), ("suspend", "one")]
    assert "the cache one is silent: it is suspended" in caplog.text
    figures = caches.figures()
    for name, number in (("cache_purges", 1), ("cache_purge_failures", 1), ("cache_waits", 0)):
        assert figures[name].read() == number
