"""The cluster, and clients that come to it through every nginx."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clients import Clients
from cluster import Cluster
from deployment import Deployment, wait_until


@pytest.fixture(scope="session")
def cluster(deployment: Deployment) -> Cluster:
    return Cluster(deployment)


@pytest.fixture
def clients(deployment: Deployment) -> Iterator[Clients]:
    addresses = [deployment.address(name) for name in deployment.groups["web"]]
    with Clients(addresses) as clients:
        wait_until(lambda: len(clients.seen.acknowledged) > 20, 60, "writes are acknowledged")
        yield clients
