"""How far a lease outlasts a failover, and what it costs when a cache is cut off: docs/cache.md."""

from __future__ import annotations

import time

import pytest
from clients import Clients
from cluster import Cluster, first_after, survived
from deployment import wait_until

pytestmark = pytest.mark.long

LEASES = (10, 30, 35, 60)


@pytest.fixture(params=LEASES)
def lease(cluster: Cluster, request: pytest.FixtureRequest) -> int:
    """Every instance grants such leases; the next deploy undoes it."""
    seconds: int = request.param
    for name in cluster.deployment.groups["service"]:
        cluster.run(
            name, f"sed -i 's/^\\(POKY_LEASE_SECONDS\\)=.*/\\1={seconds}/' /etc/poky/poky.env"
        )
        cluster.run(name, "systemctl restart 'poky@*'")
    time.sleep(max(LEASES))  # until every lease of before has ended
    return seconds


def test_a_failover_is_outlasted(cluster: Cluster, lease: int, clients: Clients) -> None:
    with survived(cluster, clients, f"lease of {lease} s, leader frozen") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        done = cluster.podman("pause", leader)
        wait_until(first_after(clients, done), 60, "writes go on")
        cluster.podman("unpause", leader)
    assert lease < 35 or not clients.seen.not_read


def test_a_cache_that_is_cut_off_is_waited_for(
    cluster: Cluster, lease: int, clients: Clients
) -> None:
    cache = cluster.deployment.groups["cache"][-1]
    with survived(cluster, clients, f"lease of {lease} s, cache cut off", within=lease + 5) as told:
        told["struck"] = time.monotonic_ns()
        with cluster.unheard(cache):
            wait_until(lambda: cluster.suspended() == {cache}, 30, "the cache is suspended")
            wait_until(first_after(clients, time.monotonic_ns()), lease + 30, "its lease has ended")
        wait_until(lambda: cluster.suspended() == set(), 180, "the cache takes part again")
