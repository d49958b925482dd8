"""A server in use becomes a cluster: no dump, nothing lost, a pause like that of a restart."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from clients import Clients
from cluster import Cluster, first_after, recorded
from deployment import Deployment, machine, wait_until


@pytest.fixture(scope="module")
def grown(deployment: Deployment) -> Cluster:
    return Cluster(Deployment(deployment.inventory.parent / "cluster", deployment.work))


@pytest.fixture
def clients(deployment: Deployment) -> Iterator[Clients]:
    with Clients([deployment.address(name) for name in deployment.groups["web"]]) as clients:
        wait_until(lambda: len(clients.seen.acknowledged) > 20, 60, "writes are acknowledged")
        yield clients


def test_a_restart_of_the_single_server(grown: Cluster, clients: Clients) -> None:
    """The yardstick."""
    name = grown.databases[0]
    struck = time.monotonic_ns()
    grown.run(name, "systemctl restart 'postgresql@*-main'")
    wait_until(first_after(clients, struck), 60, "writes go on")
    time.sleep(5)
    recorded(grown, clients, "single server restarted", struck, on=name)


def test_it_becomes_a_cluster(grown: Cluster, clients: Clients) -> None:
    struck = time.monotonic_ns()
    grown.deployment.succeed("deploy")
    wait_until(grown.is_whole, 120, "all members follow")
    assert grown.leader == grown.databases[0]
    row = recorded(grown, clients, "adoption", struck, on=grown.leader)
    assert row["pause"] < 10, row
    assert row["cached reads refused"] == 0, row


def test_the_same_again_changes_nothing(grown: Cluster) -> None:
    assert set(grown.deployment.succeed("deploy").changed().values()) == {0}


def test_it_fails_over(grown: Cluster, clients: Clients) -> None:
    leader = grown.leader
    struck = time.monotonic_ns()
    done = grown.podman("kill", leader)
    wait_until(first_after(clients, done), 60, "writes go on")
    assert grown.leader != leader
    machine("up", "--image", "debian-13", leader)
    wait_until(grown.is_whole, 240, "all members follow")
    recorded(grown, clients, "adopted leader killed", struck, on=grown.leader)
