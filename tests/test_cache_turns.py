"""What is looked after, turn by turn, with a database and caches that do as they are told."""

from __future__ import annotations

import logging
import time
from types import SimpleNamespace
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
        self.suspended: dict[str, Node] = {}
        self.generations: dict[str, str] = {}
        self.left = 0.0  # of the leases, when all are renewed

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
        self.done.append(("suspend", name, "hold") if hold else ("suspend", name))
        return self.suspended.get(name)

    def reinstate_node(self, name: str, generation: str) -> bool:
        self.done.append(("reinstate", name, generation))
        return True

    def drain_node(self, name: str, generation: str) -> None:
        self.done.append(("drain", name, generation))

    def renew_generations(self) -> float:
        self.done.append(("renew",))
        return self.left

    def lease(self, name: str, seconds: float) -> str | None:
        if self.refusal:
            raise self.refusal
        self.done.append(("lease", name, seconds))
        return self.generations.get(name)

    def end_node(self, name: str, generation: str) -> bool:
        self.done.append(("end", name, generation))
        return name in self.generations

    def resume_node(self, name: str) -> bool:
        self.done.append(("resume", name))
        return name in self.generations

    def remove_node(self, name: str) -> bool:
        self.done.append(("remove", name))
        return True

    def close(self) -> None:
        self.done.append(("close",))

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


AWAY = StoreError(503, "Away.", code="database_unavailable")


class Unreachable(Scripted):
    """A store whose database is away."""

    def nodes(self) -> list[Node]:
        raise AWAY

    def confirm(self, ids: list[int]) -> None:
        raise AWAY

    renew_generations = nodes  # type: ignore[assignment]


def test_what_was_told_to_all_is_noted_and_what_was_not_is_in_doubt() -> None:
    store, caches = scripted()
    caches._has_tasks = True
    store.there = [a_node()]
    caches.purge("b", ["k"], [1, 2])
    caches.forget_bucket(3)
    caches.forget_policy(4, 5)
    assert store.take() == [
        ("purge", ["one"], ["/kv/b/k"]),
        ("renew",),
        ("purge", ["one"], ["/policy"]),
    ]
    assert list(caches._confirmed) == [1, 2, 3, 4, 5]
    caches.stop()
    assert store.take() == [("confirm", [1, 2, 3, 4, 5]), ("close",)]
    caches._store = Unreachable()  # type: ignore[assignment]
    done: list[StoreError | None] = []
    calls = (
        lambda: caches.purge("b", ["k"], [6]),
        lambda: caches.forget_bucket(6),
        lambda: caches.forget_policy(6),
    )
    for call in calls:
        with pytest.raises(StoreError) as doubt:
            call()
        done.append(doubt.value)
    caches.purge_each([("b", "k")], [6], done.append)
    for error in done:
        assert error is not None
        assert (error.status, error.code, error.unknown) == (503, "outcome_unknown", True)
        assert error.detail == "The change is made but not acknowledged. Away."
    assert len(done) == 4
    assert not caches._confirmed
    caches._confirmed.append(7)
    caches.stop()  # it is told again, by another instance


def test_changes_of_several_are_told_at_once_and_each_key_once() -> None:
    store, caches = scripted()
    caches._has_tasks = True
    done: list[StoreError | None] = []
    caches.purge_each([("b", "k")], [1], done.append)  # no caches
    assert (store.take(), done, list(caches._confirmed)) == ([], [None], [1])
    store.there = [a_node()]
    caches.purge_each([("b", "k"), ("c", "k"), ("b", "k")], [2, 3], done.append)
    assert store.take() == [("purge", ["one"], ["/kv/b/k", "/kv/c/k"])]
    assert (done, list(caches._confirmed)) == ([None] * 2, [1, 2, 3])


@pytest.mark.parametrize("mode", ["lease", "bounded"])
def test_who_is_suspended_is_waited_for_unless_ages_are_bounded(mode: str) -> None:
    """All who were granted a lease: at most until it ends, and in the order of their changes."""
    store, caches = scripted(cache_mode=mode)
    caches._has_tasks = True
    store.failures = {"two": "is silent"}
    cut_off = a_node("two", drained=False, suspended_at=7, lease_seconds=0.3)
    store.there = [a_node("two", lease_seconds=0.3)]
    store.suspended = {"two": cut_off}
    done: list[float] = []
    began = time.monotonic()
    caches.purge_each([("b", "k")], [1], lambda error: done.append(time.monotonic()))
    store.there = [cut_off]
    waits = mode == "lease"
    assert len(done) == (0 if waits else 1)
    assert len(caches._waits) == int(waits)
    caches.purge("b", ["k"], [2])
    caches.forget_policy(3)
    assert (time.monotonic() - began >= 0.3) is waits
    assert list(caches._confirmed)[1:] == [2, 3] if waits else [1, 2, 3]
    while not done:
        assert time.monotonic() - began < 10
        time.sleep(0.01)
    assert (done[0] - began >= 0.3) is waits
    assert caches.figures()["cache_waits"].read() == (2 if waits else 0)
    store.left = 0.2
    began = time.monotonic()
    caches.forget_bucket(4)
    assert (time.monotonic() - began >= 0.2) is waits


def test_a_cut_off_cache_has_so_many_changes_wait_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poky.cache.caches._MOST_WAITING", 1)
    store, caches = scripted()
    caches._has_tasks = True
    store.there = [a_node("two", drained=False, suspended_at=7, lease_seconds=0.5)]
    with caches.admit():
        pass
    done: list[StoreError | None] = []
    caches.purge_each([("b", "k")], [1], done.append)
    with pytest.raises(StoreError) as refused, caches.admit():
        pass
    assert (refused.value.status, refused.value.code) == (503, "cache_cut_off")
    caches.purge_each([("b", "k")], [2], done.append)
    with pytest.raises(StoreError) as doubt:
        caches.purge("b", ["k"], [3])
    (error,) = done
    for each in (error, doubt.value):
        assert each is not None
        assert (each.code, each.unknown) == ("outcome_unknown", True)
        assert "A cache is cut off, and enough changes wait for it" in each.detail
    figures = caches.figures()
    assert (figures["cache_refusals"].read(), figures["cache_waits"].read()) == (3, 1)
    assert figures["cache_waiting"].read() == 1
    until = time.monotonic() + 10
    while len(done) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert list(caches._confirmed) == [1]


def test_leases_are_granted_and_counted_and_nodes_end() -> None:
    store, caches = scripted(lease_seconds=7.0, purge_timeout=2.0)
    store.generations = {"one": "g"}
    assert caches.lease("one") == ("g", 5.0)
    assert caches.lease("two") is None
    store.refusal = AWAY
    with pytest.raises(StoreError):
        caches.lease("one")
    leases = caches.figures()["cache_leases"].read()
    assert leases == {"granted": 1, "refused": 1, "failed": 1}
    assert store.take() == [("lease", "one", 5.0), ("lease", "two", 5.0)]
    assert caches.leave("one", "g") == "g"
    assert caches.leave("two", "g") is None
    assert caches.leave("two") is None
    store.suspended = {"one": a_node(generation="h")}
    assert caches.leave("one") == "h"
    assert store.take() == [
        ("end", "one", "g"),
        ("end", "two", "g"),
        ("suspend", "two"),
        ("suspend", "one"),
    ]


def test_by_command_a_node_is_held_until_it_is_resumed_or_removed() -> None:
    store, caches = scripted()
    store.generations = {"one": "g"}
    store.suspended = {"one": a_node(drained=False, suspended_at=7, lease_seconds=0.2)}
    began = time.monotonic()
    assert caches.suspend("one") is True
    assert time.monotonic() - began >= 0.2
    assert caches.suspend("two") is False
    assert caches.resume("one") is True
    assert caches.resume("two") is False
    store.suspended = {"one": a_node(suspended_at=7, lease_seconds=60)}
    assert caches.remove("one") is True  # it is drained
    assert caches.remove("two") is False
    assert [each for each in store.take() if each[0] != "drain"] == [
        ("suspend", "one", "hold"),
        ("suspend", "two", "hold"),
        ("resume", "one"),
        ("resume", "two"),
        ("suspend", "one", "hold"),
        ("remove", "one"),
        ("suspend", "two", "hold"),
    ]


def test_the_figures_of_nodes_are_those_of_the_last_look() -> None:
    store, caches = scripted()
    figures = caches.figures()
    assert figures["cache_nodes"].read() == 0
    store.there = [a_node(leased_at=9.0), a_node("two", suspended_at=7.0, held=True)]
    caches._look_after()
    assert caches.seen == store.there
    assert (figures["cache_nodes"].read(), figures["cache_nodes_suspended"].read()) == (2, 1)
    assert figures["cache_node_suspended"].read() == {"one": 0.0, "two": 1.0}
    stamps = figures["cache_node_suspended_timestamp_seconds"].read()
    assert stamps == {"one": 0.0, "two": 7.0}
    assert figures["cache_node_lease_timestamp_seconds"].read() == {"one": 9.0, "two": 0.0}


def test_the_work_for_caches_begins_once_and_only_where_there_are_any(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = "caches are registered, but POKY_CACHES is empty here"
    for urls in ([], ["one=http://one:1"]):
        caplog.clear()
        store, caches = scripted(*urls)
        begun: list[tuple[str, float]] = []
        caches._background = SimpleNamespace(  # type: ignore[assignment]
            add=lambda name, run, period, begun=begun: begun.append((name, period))
        )
        caches.start()
        assert bool(begun) is bool(urls)
        done: list[StoreError | None] = []
        caches.purge_each([("b", "k")], [], done.append)
        assert bool(begun) is bool(urls)
        store.there = [a_node()]
        caches.purge_each([("b", "k")], [], done.append)
        caches.purge("b", ["k"], [])
        caches.forget_bucket(1)
        assert [name for name, _ in begun] == ["caches", "cache-sweep"]
        assert (said in caplog.text) is not bool(urls)
    for call in (lambda: caches.purge("b", ["k"], []), lambda: caches.forget_bucket(1)):
        caches._has_tasks = False
        del begun[:]
        call()
        assert len(begun) == 2
