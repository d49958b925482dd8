"""A cache that has ended: what its host tells the service, as systemd has it told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from poky.store import Node, Store
from tests.conftest import Database
from tests.fake_cache import FakeCache
from tests.service import Client, Service, running, wait_until

pytestmark = pytest.mark.parametrize("kind", ["partitioned"])

PROGRAM = Path(__file__).parent.parent / "roles/varnish/files/poky-cache-ended"
NOTHING = "127.0.0.1:9"  # discard: no listener there


@pytest.fixture
def cache() -> Iterator[FakeCache]:
    with FakeCache("one") as cache:
        yield cache


@pytest.fixture
def service(own_database: Database, tmp_path: Path, cache: FakeCache) -> Iterator[Service]:
    """An instance whose cache holds a lease that no test waits for."""
    settings = {"caches": f"one={cache.url}", "lease_seconds": "300"}
    with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
        lease = Client(service.lease_port)
        wait_until(lambda: lease.get("/lease", poky_node="one").status == 200)
        yield service


@pytest.fixture
def store(own_database: Database) -> Iterator[Store]:
    with closing(Store(own_database.dsn_owner, pool_size=1)) as store:
        yield store


def tell(name: str, cache: FakeCache, *listeners: str) -> None:
    purge = cache.url.removeprefix("http://")
    subprocess.run([PROGRAM, name, purge, *listeners], timeout=60, check=False)


def only(store: Store) -> Node:
    (node,) = store.nodes()
    return node


def test_no_write_waits_for_a_cache_that_has_ended(
    service: Service, cache: FakeCache, store: Store
) -> None:
    cache.stop()
    # An instance that is down is no reason to wait.
    tell("one", cache, NOTHING, f"127.0.0.1:{service.lease_port}")
    assert only(store).drained
    store.ensure_bucket("b")
    assert service.client().put("/kv/b/k", "v").status == 200


def test_nothing_is_said_of_a_cache_that_may_still_serve(
    service: Service, cache: FakeCache, store: Store
) -> None:
    """It listens: the manager of Varnish died, and its child has not noticed yet."""
    for cache.is_silent in (False, True):
        tell("one", cache, f"127.0.0.1:{service.lease_port}")
        assert only(store).suspended_at is None


def test_another_cache_is_none_of_its_business(
    service: Service, cache: FakeCache, store: Store
) -> None:
    cache.stop()
    tell("two", cache, f"127.0.0.1:{service.lease_port}")
    assert not only(store).drained
