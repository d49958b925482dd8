"""Another major version of PostgreSQL, by the playbook: nothing is lost, and tags go on."""

from __future__ import annotations

import time

from clients import Clients
from cluster import Cluster, first_after, recorded
from deployment import Deployment, machine, wait_until


def test_another_major_version(deployment: Deployment) -> None:
    cluster = Cluster(deployment)
    for name in cluster.databases:
        assert cluster.sql(name, "SHOW server_version_num").startswith("15")
    deployment.settings["postgresql_version"] = "17"
    deployment.fail("deploy", "has the data of PostgreSQL 15, and is to run 17")
    with Clients([deployment.address(name) for name in deployment.groups["web"]]) as clients:
        wait_until(lambda: len(clients.seen.acknowledged) > 20, 60, "writes are acknowledged")
        status, headers, _ = deployment.request("GET", "/kv/failover/witness")
        assert status == 200
        struck = time.monotonic_ns()
        deployment.succeed("upgrade")
        wait_until(first_after(clients, time.monotonic_ns()), 60, "writes go on")
        wait_until(cluster.is_whole, 240, "all members follow")
        time.sleep(5)
        recorded(cluster, clients, "another major version", struck, on=cluster.leader)
    for name in cluster.databases:
        assert cluster.sql(name, "SHOW server_version_num").startswith("17")
    again = deployment.request("GET", "/kv/failover/witness")
    assert (again[0], again[1]["ETag"]) == (200, headers["ETag"])


def test_it_is_what_a_deploy_makes(deployment: Deployment) -> None:
    again = deployment.succeed("deploy")
    assert set(again.changed().values()) == {0}, str(again)


def test_it_fails_over(deployment: Deployment) -> None:
    cluster = Cluster(deployment)
    with Clients([deployment.address(name) for name in deployment.groups["web"]]) as clients:
        wait_until(lambda: len(clients.seen.acknowledged) > 20, 60, "writes are acknowledged")
        leader = cluster.leader
        struck = time.monotonic_ns()
        done = cluster.podman("kill", leader)
        wait_until(first_after(clients, done), 60, "writes go on")
        assert cluster.leader != leader
        machine("up", "--image", "debian-13", leader)
        wait_until(cluster.is_whole, 240, "all members follow")
        recorded(cluster, clients, "leader of 17 killed", struck, on=cluster.leader)
