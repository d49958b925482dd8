"""Leases, suspension and what a change waits for, against a real database and scripted caches."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner

from poky.access import Token
from poky.api import LEASE_ROUTES, Services, application
from poky.background import Background
from poky.cache import Caches
from poky.cache.waits import LeaseWaits
from poky.cli import poky
from poky.config import Config
from poky.forms import CacheNode
from poky.sharing import Lane
from poky.store import Node, Store, StoreError
from tests.conftest import Database
from tests.fake_cache import FakeCache
from tests.service import wait_until

pytestmark = pytest.mark.parametrize("kind", ["partitioned"], scope="session")

LEASE = 1.0
TIMEOUT = 0.2
GRANT = LEASE - TIMEOUT
MARGIN = 3.0  # what a busy machine may add
LONG = 60.0  # a lease so long that waiting for it would show on any machine


@pytest.fixture
def store(database: Database) -> Iterator[Store]:
    """A store of a database without caches; what a test left behind is removed."""
    with closing(Store(database.dsn_service, pool_size=8)) as store:
        yield store
    with closing(database.connect()) as connection, connection:
        connection.cursor().execute("DELETE FROM poky.cache_node; DELETE FROM poky._outbox")


@pytest.fixture
def nowhere(kind: str) -> Iterator[Store]:
    """A store whose database is away."""
    with closing(Store("postgresql:///nowhere?host=/nowhere", pool_size=1)) as nowhere:
        yield nowhere


@pytest.fixture
def node() -> Iterator[FakeCache]:
    with FakeCache("one") as node:
        yield node


Start = Callable[..., Caches]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Start the caches of an instance; settings as in Config."""
    with ExitStack() as stack:

        def start(*nodes: FakeCache, **settings: Any) -> Caches:
            given = tuple(CacheNode(node.name, node.url) for node in nodes)
            config = Config(
                caches=settings.pop("caches", given),
                lease_seconds=settings.pop("lease_seconds", LEASE),
                purge_timeout=TIMEOUT,
                **settings,
            )
            background = Background(store)
            caches = Caches(store, config, background)
            caches.start()
            stack.callback(caches.stop)
            stack.callback(background.stop)
            return caches

        yield start


def only(store: Store) -> Node:
    (node,) = store.nodes()
    return node


def takes_part(store: Store) -> bool:
    nodes = store.nodes()
    return bool(nodes) and all(node.suspended_at is None for node in nodes)


def lease_app(caches: Caches) -> Any:
    """The application of the lease listener over these caches and nothing else."""
    nothing: Any = None
    lanes = {"access": Lane("access", 1)}
    services = Services(nothing, caches, Config(), nothing, int, bytes, lanes=lanes)
    return application(LEASE_ROUTES, services)


def ask_for_lease(
    caches: Caches, name: str, method: str = "GET", generation: str = ""
) -> tuple[str, dict[str, str]]:
    answers: list[tuple[str, dict[str, str]]] = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": "/lease", "HTTP_POKY_NODE": name}
    if generation:
        environ["HTTP_POKY_GENERATION"] = generation
    lease_app(caches)(environ, lambda status, headers: answers.append((status, dict(headers))))
    return answers[0]


def leave(caches: Caches, name: str) -> None:
    """As a cache's host does once the cache has ended."""
    status, headers = ask_for_lease(caches, name, "DELETE")
    assert status == "200 OK"
    generation = headers["Poky-Generation"]
    assert ask_for_lease(caches, name, "DELETE", generation)[0] == "200 OK"


@pytest.fixture
def leased(start: Start, store: Store, node: FakeCache) -> Caches:
    """Caches with one node that takes part and holds a lease."""
    caches = start(node)
    wait_until(lambda: takes_part(store), what="the node takes part")
    assert ask_for_lease(caches, "one")[0] == "200 OK"
    return caches


def change(store: Store, bucket: str, key: str = "k") -> int:
    outbox_id = store.put(bucket, key, b"v", "text/plain").outbox_id
    assert outbox_id is not None
    return outbox_id


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    began = time.monotonic()
    function(*arguments)
    return time.monotonic() - began


def test_a_lease_is_refused_with_the_reason_if_the_database_is_away(
    store: Store, nowhere: Store
) -> None:
    """By that a cache may serve copies unverified; any other failure says nothing of it."""

    def asked(store: Store) -> tuple[str, str | None]:
        caches = Caches(store, Config(), Background(store))
        status, headers = ask_for_lease(caches, "one")
        return status[:3], headers.get("Poky-Database")

    assert asked(nowhere) == ("503", "away")
    assert asked(store) == ("403", None)
    with closing(Store(store.dsn, pool_size=1, pool_timeout=0.01)) as busy:
        busy._places.acquire()
        assert asked(busy) == ("503", None)


# Without caches.


def test_without_caches_nothing_is_paid(start: Start, store: Store, bucket: str) -> None:
    before = threading.active_count()
    start()
    assert store.put(bucket, "k", b"v", "text/plain").outbox_id is None
    assert threading.active_count() == before


def test_an_instance_that_was_told_of_no_cache_tells_them_all_the_same(
    leased: Caches,
    start: Start,
    store: Store,
    bucket: str,
    node: FakeCache,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unaware = start()
    with caplog.at_level(logging.WARNING, "poky.cache"):
        unaware.purge(bucket, ["k"], [change(store, bucket)])
    assert node.told == [f"/kv/{bucket}/k"]
    assert "POKY_CACHES is empty here" in caplog.text


@pytest.mark.parametrize("way", ["purge", "purge_each", "forget_bucket"])
def test_what_such_an_instance_has_told_is_noted_however_it_is_told(
    start: Start, store: Store, bucket: str, node: FakeCache, way: str
) -> None:
    """There may be no other one."""
    store.register_node("one", node.url)
    assert store.reinstate_node("one", only(store).generation)
    unaware = start()
    outbox_id = change(store, bucket)
    told = threading.Event()
    if way == "purge":
        unaware.purge(bucket, ["k"], [outbox_id])
    elif way == "purge_each":
        unaware.purge_each([(bucket, "k")], [outbox_id], lambda error: told.set())
        assert told.wait(10)
    else:
        unaware.forget_bucket(outbox_id)
    wait_until(lambda: store.unconfirmed(0, 9) == [])


# Taking part.


@pytest.mark.slow
def test_a_node_takes_part_once_it_has_answered(
    start: Start, store: Store, node: FakeCache
) -> None:
    node.is_silent = True
    start(node)
    wait_until(store.nodes, what="the node is registered")
    time.sleep(1)
    assert only(store).suspended_at is not None
    node.is_silent = False
    wait_until(lambda: takes_part(store))


def test_a_node_that_calls_itself_otherwise_takes_no_part(
    start: Start, store: Store, node: FakeCache, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "poky.cache"):
        start(caches=(CacheNode("other", node.url),))
        wait_until(lambda: "calls itself one" in caplog.text)
    assert only(store).suspended_at is not None


def test_a_nameless_node_is_asked_for_its_name(start: Start, store: Store, node: FakeCache) -> None:
    start(caches=(CacheNode("", node.url),))
    wait_until(lambda: takes_part(store))
    assert only(store).name == "one"


@pytest.mark.slow
def test_a_node_at_a_new_address_is_suspended_first(
    leased: Caches, start: Start, store: Store
) -> None:
    generation = only(store).generation
    with FakeCache("one") as elsewhere:
        start(elsewhere)
        wait_until(lambda: only(store).url == elsewhere.url)
        assert only(store).suspended_at is not None
        assert only(store).generation != generation
        wait_until(lambda: takes_part(store))


def test_registration_waits_for_writers_that_saw_no_cache(
    database: Database, store: Store, bucket: str
) -> None:
    """They will purge nothing, so the node must not read before they have committed."""
    with closing(database.connect(as_service=True)) as writer:
        cursor = writer.cursor()
        cursor.execute("SELECT outbox_id FROM poky.put(%s, 'k', 'v', 't')", [bucket])
        assert cursor.fetchone() == (None,)
        done = threading.Event()

        def register() -> None:
            store.register_node("one", "http://127.0.0.1:1")
            done.set()

        thread = threading.Thread(target=register)
        thread.start()
        assert not done.wait(0.5)
        writer.commit()
        thread.join(5)
        assert done.is_set()
    assert change(store, bucket)


# Leases.


def test_a_lease_names_the_generation_and_its_length(leased: Caches, store: Store) -> None:
    status, headers = ask_for_lease(leased, "one")
    assert status == "200 OK"
    assert headers == {
        "Poky-Generation": only(store).generation,
        "Poky-Lease": f"{GRANT:.3f}",
    }
    assert only(store).lease_seconds == GRANT


def test_no_lease_for_a_stranger(leased: Caches) -> None:
    assert ask_for_lease(leased, "stranger")[0] == "403 Forbidden"
    assert ask_for_lease(leased, "")[0] == "403 Forbidden"


def test_no_lease_for_a_suspended_node(leased: Caches, store: Store) -> None:
    store.suspend_node("one", hold=True)
    assert ask_for_lease(leased, "one")[0] == "403 Forbidden"


@pytest.fixture
def leased_for_long(start: Start, store: Store, node: FakeCache) -> Caches:
    """The same with a lease that no test waits for."""
    caches = start(node, lease_seconds=LONG)
    wait_until(lambda: takes_part(store), what="the node takes part")
    assert ask_for_lease(caches, "one")[0] == "200 OK"
    return caches


def test_a_node_that_has_ended_is_not_waited_for(
    leased_for_long: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    node.stop()
    leave(leased_for_long, "one")
    assert timed(leased_for_long.purge, bucket, ["k"], [change(store, bucket)]) < LONG / 2


def test_a_change_that_waits_for_a_node_goes_on_once_it_has_ended(
    leased_for_long: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    node.stop()
    purge = threading.Thread(
        target=leased_for_long.purge, args=(bucket, ["k"], [change(store, bucket)])
    )
    purge.start()
    wait_until(lambda: only(store).suspended_at is not None, what="the node is suspended")
    assert not only(store).drained
    leave(leased_for_long, "one")
    purge.join(LONG / 2)
    assert not purge.is_alive()


def test_a_node_that_ended_comes_back_at_once_however_often(
    leased_for_long: Caches, store: Store
) -> None:
    """Under another generation; no writer waited for it, so it has no pause to keep."""
    for _ in range(3):
        before = only(store).generation
        leave(leased_for_long, "one")
        wait_until(lambda: takes_part(store), what="the node takes part again")
        assert only(store).generation != before
        assert ask_for_lease(leased_for_long, "one")[0] == "200 OK"


def test_that_a_node_has_ended_says_nothing_of_its_successor(leased: Caches, store: Store) -> None:
    """Whichever of the two requests is late, and whatever has happened since."""
    status, headers = ask_for_lease(leased, "one", "DELETE")
    assert status == "200 OK"
    late = headers["Poky-Generation"]
    assert ask_for_lease(leased, "one")[0] == "403 Forbidden", "a lease while it is suspended"
    store.drain_node("one", late)
    wait_until(lambda: takes_part(store), what="the successor takes part")
    assert ask_for_lease(leased, "one")[0] == "200 OK"
    assert ask_for_lease(leased, "one", "DELETE", late)[0] == "403 Forbidden"
    assert takes_part(store)
    suspended = store.suspend_node("one", hold=True)
    assert suspended
    assert suspended.generation != late
    assert ask_for_lease(leased, "one", "DELETE", late)[0] == "403 Forbidden"
    assert not only(store).drained


def test_a_stranger_has_nothing_to_end(leased: Caches, store: Store) -> None:
    for generation in ("", only(store).generation):
        assert ask_for_lease(leased, "stranger", "DELETE", generation)[0] == "403 Forbidden"
    # The generation that it has is no word of a suspension.
    generation = only(store).generation
    assert ask_for_lease(leased, "one", "DELETE", generation)[0] == "403 Forbidden"
    assert takes_part(store)


def test_neither_yes_nor_no_without_a_database(nowhere: Store, node: FakeCache) -> None:
    config = Config(caches=(CacheNode("one", node.url),))
    caches = Caches(nowhere, config, Background(nowhere))
    assert ask_for_lease(caches, "one")[0] == "503 Service Unavailable"


def test_the_lease_listener_has_one_path(leased: Caches) -> None:
    answers: list[str] = []
    lease_app(leased)(
        {"REQUEST_METHOD": "GET", "PATH_INFO": "/kv/b/k"},
        lambda status, _: answers.append(status),
    )
    assert answers == ["404 Not Found"]


# The way of a change.


def test_a_change_is_told_and_then_forgotten(
    leased: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    leased.purge(bucket, ["k"], [change(store, bucket)])
    assert node.told == [f"/kv/{bucket}/k"]
    wait_until(lambda: not store.unconfirmed(0, 10), what="the outbox is empty")
    assert only(store).purged_at is not None


def test_a_key_of_a_batch_is_told_once(
    leased: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    leased.purge(bucket, ["k", "l", "k"], [change(store, bucket)])
    assert node.told == [f"/kv/{bucket}/k", f"/kv/{bucket}/l"]


def test_a_node_that_joined_after_the_change_began_is_told(
    leased: Caches, start: Start, store: Store, bucket: str
) -> None:
    outbox_id = change(store, bucket)
    with FakeCache("two") as two:
        start(two)
        wait_until(lambda: len(store.nodes()) == 2 and takes_part(store))
        leased.purge(bucket, ["k"], [outbox_id])
        assert two.told == [f"/kv/{bucket}/k"]


def test_a_change_waits_for_the_lease_of_a_node_that_does_not_confirm(
    leased: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    before = only(store)
    node.is_silent = True
    took = timed(leased.purge, bucket, ["k"], [change(store, bucket)])
    assert GRANT <= took < LEASE + MARGIN
    after = only(store)
    assert after.suspended_at is not None
    assert after.drained
    assert after.generation != before.generation
    # And no change waits for it again.
    waits = leased.figures()["cache_waits"].read
    assert waits() == 1
    leased.purge(bucket, ["k"], [change(store, bucket)])
    assert waits() == 1


def test_one_wait_after_another_ends(store: Store) -> None:
    """The thread of the first has ended before the second begins."""
    store.register_node("one", "http://127.0.0.1:1")
    node = only(store)._replace(lease_seconds=0.05)
    waits = LeaseWaits(store)
    for _ in range(3):
        ended = threading.Event()
        waits.begin([node], ended.set)
        assert ended.wait(10)
        wait_until(lambda: not waits._is_running)
        assert len(waits) == 0
    store.drain_node("one", node.generation)
    store.remove_node("one")


def test_a_node_that_never_had_a_lease_is_not_waited_for(
    start: Start, store: Store, bucket: str, node: FakeCache
) -> None:
    caches = start(node, lease_seconds=LONG)
    wait_until(lambda: takes_part(store))
    node.is_silent = True
    assert timed(caches.purge, bucket, ["k"], [change(store, bucket)]) < LONG / 2


def test_a_change_waits_for_a_node_that_another_instance_suspended(
    leased: Caches, store: Store, bucket: str
) -> None:
    store.suspend_node("one", hold=True)
    took = timed(leased.purge, bucket, ["k"], [change(store, bucket)])
    assert took >= GRANT - 0.3  # its background task may have seen it a little before


def test_a_wait_ends_when_another_instance_records_the_expiry(
    start: Start, store: Store, bucket: str, node: FakeCache
) -> None:
    caches = start(node, lease_seconds=LONG)
    wait_until(lambda: takes_part(store))
    ask_for_lease(caches, "one")
    suspended = store.suspend_node("one", hold=True)
    assert suspended
    outbox_id = change(store, bucket)
    threading.Timer(0.3, store.drain_node, ("one", suspended.generation)).start()
    assert 0.2 < timed(caches.purge, bucket, ["k"], [outbox_id]) < LONG / 2


def test_a_drained_flag_of_another_suspension_counts_for_nothing(store: Store) -> None:
    store.register_node("one", "http://127.0.0.1:1")
    first = only(store)
    assert store.reinstate_node("one", first.generation)
    assert store.lease("one", 1.0) == first.generation
    second = store.suspend_node("one")
    assert second
    assert not store.drain_node("one", first.generation)
    assert not only(store).drained
    assert not store.reinstate_node("one", second.generation)


def test_a_suspended_node_comes_back_under_another_generation(
    leased: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    before = only(store).generation
    node.is_silent = True
    leased.purge(bucket, ["k"], [change(store, bucket)])
    node.is_silent = False
    wait_until(lambda: takes_part(store))
    assert only(store).generation != before
    assert ask_for_lease(leased, "one")[1]["Poky-Generation"] == only(store).generation


def test_a_node_whose_writer_died_waiting_comes_back(leased: Caches, store: Store) -> None:
    store.suspend_node("one")
    began = time.monotonic()
    wait_until(lambda: takes_part(store))
    assert time.monotonic() - began >= GRANT


@pytest.mark.slow
def test_a_node_that_fails_again_and_again_pauses_longer(store: Store) -> None:
    store.register_node("one", "http://127.0.0.1:1")
    store.reinstate_node("one", only(store).generation)
    for relapse in range(4):
        store.lease("one", 0.2)
        node = store.suspend_node("one")
        assert node
        store.drain_node("one", node.generation)
        began = time.monotonic()
        wait_until(lambda node=node: store.reinstate_node("one", node.generation))
        assert time.monotonic() - began >= 0.2 * (2**relapse - 1) - 0.1


def test_so_many_changes_wait_at_most(
    leased: Caches, store: Store, bucket: str, node: FakeCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poky.cache.caches._MOST_WAITING", 2)
    node.is_silent = True
    outcomes: list[str] = []
    told = threading.Semaphore(0)

    def done(error: StoreError | None) -> None:
        outcomes.append(f"{error.status} unknown={error.unknown}" if error else "acknowledged")
        told.release()

    threads = threading.active_count()
    for _ in range(3):
        leased.purge_each([(bucket, "k")], [change(store, bucket)], done)
    with pytest.raises(StoreError) as refused:
        leased.admit()
    assert refused.value.status == 503
    assert not refused.value.unknown
    assert threading.active_count() <= threads + 2, "a thread for each that waits"
    for _ in range(3):
        assert told.acquire(timeout=20)
    assert sorted(outcomes) == ["503 unknown=True", "acknowledged", "acknowledged"]
    with leased.admit():
        pass


def test_a_change_that_cannot_be_told_is_not_acknowledged(nowhere: Store, bucket: str) -> None:
    background = Background(nowhere)
    caches = Caches(nowhere, Config(), background)
    with pytest.raises(StoreError) as error:
        caches.purge(bucket, ["k"], [1])
    background.stop()
    caches.stop()
    assert error.value.status == 503
    assert error.value.unknown


# Changes whose writers did not tell.


@pytest.mark.slow
def test_a_change_whose_writer_died_is_told(
    leased: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    change(store, bucket, "left-behind")
    wait_until(lambda: node.told == [f"/kv/{bucket}/left-behind"], 10)
    wait_until(lambda: not store.unconfirmed(0, 10))


@pytest.mark.slow
def test_a_dropped_bucket_whose_dropper_died_is_forgotten(
    leased: Caches, store: Store, bucket: str
) -> None:
    change(store, bucket)
    before = only(store).generation
    assert store.drop_bucket(bucket, keys=True)
    wait_until(lambda: only(store).generation != before, 10)


# Buckets.


def test_dropping_a_bucket_waits_until_its_copies_are_out_of_use(
    leased: Caches, store: Store, bucket: str
) -> None:
    change(store, bucket)
    before = only(store).generation
    outbox_id = store.drop_bucket(bucket, keys=True)
    assert outbox_id
    assert timed(leased.forget_bucket, outbox_id) >= GRANT
    after = only(store)
    assert after.generation != before
    assert after.suspended_at is None


def test_dropping_an_empty_bucket_concerns_no_cache(
    leased: Caches, store: Store, bucket: str
) -> None:
    assert store.drop_bucket(bucket) is None


# The other bargains.


def test_bounded_never_waits(start: Start, store: Store, bucket: str, node: FakeCache) -> None:
    caches = start(node, cache_mode="bounded", lease_seconds=LONG)
    wait_until(lambda: takes_part(store))
    ask_for_lease(caches, "one")
    node.is_silent = True
    assert timed(caches.purge, bucket, ["k"], [change(store, bucket)]) < LONG / 2
    assert only(store).suspended_at is not None


def test_revalidate_has_nothing_to_purge(
    start: Start, store: Store, bucket: str, node: FakeCache
) -> None:
    start(node, cache_mode="revalidate")
    time.sleep(0.5)
    assert store.nodes() == []
    assert store.put(bucket, "k", b"v", "text/plain").outbox_id is None


# For people.


@pytest.mark.slow
def test_a_suspended_node_stays_so_until_it_is_resumed(leased: Caches, store: Store) -> None:
    assert timed(leased.suspend, "one") >= GRANT - 0.3
    assert only(store).drained
    time.sleep(1.5)
    assert only(store).suspended_at is not None
    assert leased.resume("one")
    wait_until(lambda: takes_part(store))


def test_a_node_is_removed_once_it_is_drained(leased: Caches, store: Store) -> None:
    with pytest.raises(StoreError) as refused:
        store.remove_node("one")
    assert refused.value.status == 409
    assert timed(leased.remove, "one") >= GRANT - 0.3
    assert store.nodes() == []
    assert not leased.remove("one")


def test_the_figures_say_what_happened(
    leased: Caches, store: Store, bucket: str, node: FakeCache
) -> None:
    node.is_silent = True
    leased.purge(bucket, ["k"], [change(store, bucket)])
    values = {name: figure.read() for name, figure in leased.figures().items()}
    assert values["cache_nodes"] == 1
    assert values["cache_purges"] == 1
    assert values["cache_purge_failures"] == 1
    assert values["cache_waits"] == 1
    assert values["cache_waiting"] == 0
    wait_until(lambda: leased.figures()["cache_nodes_suspended"].read() == 1)


@pytest.mark.slow
def test_the_command(
    leased: Caches, database: Database, store: Store, bucket: str, node: FakeCache
) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(poky, ["cache", *arguments, "-d", database.dsn_service])
        assert result.exit_code == 0, result.output
        return result.output

    (shown,) = json.loads(run("status", "--json"))
    assert shown["name"] == "one"
    assert shown["url"] == node.url
    assert "takes part" in run("status")
    run("purge", bucket, "k")
    assert node.told == [f"/kv/{bucket}/k"]
    before = only(store).generation
    run("purge", "--all")
    assert only(store).generation != before
    run("suspend", "one")
    assert "suspended, held" in run("status")
    run("resume", "one")
    wait_until(lambda: takes_part(store))
    run("remove", "one")
    assert store.nodes() == []


def token_command(database: Database, *words: str, stdin: str = "", status: int = 0) -> str:
    """Run poky token as the owner, and return what it printed on stdout."""
    words = ("token", *words, "-d", database.dsn_owner)
    result = CliRunner().invoke(poky, words, input=stdin)
    assert result.exit_code == status, result.output
    return result.stdout


def make_token(database: Database, name: str) -> None:
    with closing(database.connect()) as connection, connection:
        row = (name[-12:].rjust(12, "0").replace("-", "0"), name, "0" * 64, ["read:x"])
        connection.cursor().execute("SELECT poky.create_token(%s, %s, %s, %s, NULL)", row)


@pytest.mark.slow
def test_a_revocation_is_told_again_until_it_is_confirmed(
    leased: Caches, database: Database, store: Store, bucket: str, node: FakeCache
) -> None:
    """The writer of the first one died between its commit and the purge."""
    make_token(database, bucket)
    with closing(database.connect()) as connection, connection:
        connection.cursor().execute("SELECT poky.revoke_token(%s)", [bucket])
    assert node.told == []
    assert token_command(database, "revoke", bucket) == f"{bucket}: revoked\n"
    assert node.told == ["/policy"]
    token_command(database, "apply", "--check", stdin="[]")
    assert node.told == ["/policy"]
    # A declaration that is applied again as well, though it changes nothing.
    token_command(database, "apply", stdin="[]")
    assert node.told == ["/policy", "/policy"]
    node.is_silent = True
    assert ask_for_lease(leased, "one")[0] == "200 OK"
    token_command(database, "apply", stdin="[]")
    assert only(store).drained


@pytest.mark.slow
def test_a_secret_is_shown_although_the_caches_cannot_be_told(
    leased: Caches, database: Database, store: Store, bucket: str, node: FakeCache
) -> None:
    """It is made, and shown only once. The lock on its row keeps a cache from its suspension."""
    node.is_silent = True
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM poky.cache_node FOR UPDATE")
        shown = token_command(database, "create", bucket, "--grant", "read:x", status=1)
        assert Token.parse(shown.strip())
        assert token_command(database, "show", bucket)
        connection.rollback()
    token_command(database, "revoke", bucket)
    assert only(store).drained


def test_the_command_names_what_is_wrong(database: Database, store: Store) -> None:
    for verb in ("suspend", "resume", "remove"):
        result = CliRunner().invoke(poky, ["cache", verb, "nobody", "-d", database.dsn_service])
        assert result.exit_code == 1
        assert "There is no cache named nobody" in result.output
    result = CliRunner().invoke(poky, ["cache", "purge", "-d", database.dsn_service])
    assert result.exit_code == 2


# What an instance sees of them.


def test_the_time_of_purges_is_that_in_the_middle_of_recent_ones(
    start: Start, store: Store, node: FakeCache
) -> None:
    caches = start(node)
    for seconds in (0.5, 0.1, 0.4, 0.2):
        caches._observe("one", "confirmed", seconds)
    caches._observe("one", "silent", 9.0)
    assert caches.purge_seconds() == {}
    caches._observe("one", "confirmed", 0.3)
    assert caches.purge_seconds() == {"one": 0.3}
    times = caches._recent["one"]
    times[0] = (time.monotonic() - 11, 0.5)
    assert caches.purge_seconds() == {}
    for _ in range(100):
        caches._observe("one", "confirmed", 0.7)
    assert caches.purge_seconds() == {"one": 0.7}
    assert len(times) == 50
    purges = caches.figures()["cache_purge_seconds"].read()
    assert purges.series()["one", "silent"][-1] == 9.0  # type: ignore[union-attr]


def test_a_moment_that_never_was_is_zero_in_the_figures(start: Start, store: Store) -> None:
    caches = start()
    store.register_node("one", "http://127.0.0.1:1")
    (node,) = store.nodes()
    assert node.suspended_at is not None

    def read(name: str, **facts: Any) -> Any:
        caches._seen = [node._replace(**facts)]
        return caches.figures()[name].read()

    lease = "cache_node_lease_timestamp_seconds"
    suspended = "cache_node_suspended_timestamp_seconds"
    assert read(lease) == {"one": 0}
    assert read(lease, leased_at=7) == {"one": 7}
    assert read(suspended) == {"one": node.suspended_at}
    assert read(suspended, suspended_at=None) == {"one": 0}
    assert read("cache_node_suspended") == {"one": 1}
    assert read("cache_node_suspended", suspended_at=None) == {"one": 0}
    assert (read("cache_nodes"), read("cache_nodes_suspended")) == (1, 1)
    assert read("cache_nodes_suspended", suspended_at=None) == 0
    store.drain_node("one", node.generation)
    store.remove_node("one")


# Privileges.


def test_the_service_reaches_the_nodes_only_through_functions(database: Database) -> None:
    with (
        closing(database.connect(as_service=True)) as connection,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        connection.cursor().execute("UPDATE poky.cache_node SET drained = true")
