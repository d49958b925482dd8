"""Machines of a cluster die, freeze, thaw and are cut off: clients lose nothing, read nothing old.

They come by HTTP through every nginx. What they were told is then looked for on the server that the
history in etcd names last: a machine that rejoined may have an old view of its own.
"""

from __future__ import annotations

import time

import pytest
from clients import Clients
from cluster import PLANNED, Cluster, first_after, survived
from deployment import machine, wait_until


def test_the_leader_is_killed(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "leader killed") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        done = cluster.podman("kill", leader)
        wait_until(first_after(clients, done), 60, "writes go on")
        assert cluster.leader != leader
        machine("up", "--image", "debian-13", leader)


def test_the_leader_freezes_and_thaws_when_another_leads(
    cluster: Cluster, clients: Clients
) -> None:
    """The worst moment: the new leader has just acknowledged its first write."""
    with survived(cluster, clients, "leader frozen, thawed after the first write") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        done = cluster.podman("pause", leader)
        wait_until(first_after(clients, done), 60, "writes go on")
        time.sleep(0.3)
        cluster.podman("unpause", leader)
        assert cluster.last_leader() != leader


@pytest.mark.long
@pytest.mark.parametrize("time_of_it", ["second", "third"])
def test_it_freezes_and_thaws_again(cluster: Cluster, clients: Clients, time_of_it: str) -> None:
    with survived(cluster, clients, f"leader frozen and thawed, {time_of_it} time") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        done = cluster.podman("pause", leader)
        wait_until(first_after(clients, done), 60, "writes go on")
        time.sleep(0.3)
        cluster.podman("unpause", leader)
        assert cluster.last_leader() != leader


@pytest.mark.long
def test_the_leader_freezes_for_a_while(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "leader frozen for 20 s") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        cluster.podman("pause", leader)
        time.sleep(20)
        cluster.podman("unpause", leader)


@pytest.mark.long
def test_the_leader_is_cut_off(cluster: Cluster, clients: Clients) -> None:
    """Both ways, from everything, for half a minute."""
    with survived(cluster, clients, "leader cut off") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        cluster.run(leader, CUT)
        wait_until(first_after(clients, told["struck"] + 10**9), 60, "writes go on")
        cluster.run(leader, JOINED)


CUT = "ip route show default >/run/default; ip link set eth0 down"
JOINED = "ip link set eth0 up; ip route add $(cat /run/default) 2>/dev/null || true"


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("postmaster killed", "kill -9 $(head -n 1 /var/lib/postgresql/17/main/postmaster.pid)"),
        ("Patroni killed", "systemctl kill --signal=KILL --kill-whom=main patroni"),
    ],
)
def test_a_process_of_the_leader_is_killed(
    cluster: Cluster, clients: Clients, name: str, command: str
) -> None:
    with survived(cluster, clients, name) as told:
        told["struck"] = time.monotonic_ns()
        cluster.run(cluster.leader, command)
        wait_until(first_after(clients, told["struck"]), 60, "writes go on")


@pytest.mark.long
def test_patroni_of_the_leader_freezes(cluster: Cluster, clients: Clients) -> None:
    """HAProxy ends the sessions of a leader whose Patroni does not answer; PostgreSQL runs on."""
    with survived(cluster, clients, "Patroni of the leader frozen") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        cluster.run(leader, "systemctl kill --signal=STOP --kill-whom=main patroni")
        wait_until(lambda: cluster.leader not in ("", leader), 60, "another one leads")
        wait_until(first_after(clients, time.monotonic_ns()), 60, "writes go on")
        cluster.run(leader, "systemctl kill --signal=CONT --kill-whom=main patroni")


@pytest.mark.long
@pytest.mark.parametrize("verb", ["kill", "pause"])
def test_the_leader_of_etcd_goes(cluster: Cluster, clients: Clients, verb: str) -> None:
    """With its machine, which serves clients, too; so its etcd alone."""
    with survived(cluster, clients, f"etcd's leader: {verb}") as told:
        name = cluster.etcd_leader()
        signal = {"kill": "KILL", "pause": "STOP"}[verb]
        told["struck"] = time.monotonic_ns()
        cluster.run(name, f"systemctl kill --signal={signal} --kill-whom=main etcd")
        time.sleep(15)
        if verb == "pause":
            cluster.run(name, "systemctl kill --signal=CONT --kill-whom=main etcd")


@pytest.mark.long
def test_two_of_etcd_are_gone_for_a_while(cluster: Cluster, clients: Clients) -> None:
    """No leader can be elected then; the one that leads goes on, for the others confirm it."""
    with survived(cluster, clients, "two etcds gone for 10 s") as told:
        names = cluster.deployment.groups["etcd"][:2]
        told["struck"] = time.monotonic_ns()
        for name in names:
            cluster.run(name, "systemctl kill --signal=STOP --kill-whom=main etcd")
        time.sleep(10)
        for name in names:
            cluster.run(name, "systemctl kill --signal=CONT --kill-whom=main etcd")


@pytest.mark.long
def test_the_synchronous_standby_freezes(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "synchronous standby frozen for 15 s") as told:
        standby = cluster.standby
        told["struck"] = time.monotonic_ns()
        cluster.podman("pause", standby)
        time.sleep(15)
        cluster.podman("unpause", standby)


@pytest.mark.long
def test_both_standbys_are_cut_off_and_then_the_leader_dies(
    cluster: Cluster, clients: Clients
) -> None:
    """What only the leader has is not acknowledged: with synchronous mode off, seconds are lost."""
    with survived(cluster, clients, "standbys cut off, leader killed") as told:
        leader = cluster.leader
        standbys = [name for name in cluster.databases if name != leader]
        for name in standbys:
            cluster.run(name, CUT)
        time.sleep(3)
        told["struck"] = time.monotonic_ns()
        done = cluster.podman("kill", leader)
        for name in standbys:
            cluster.run(name, JOINED)
        wait_until(first_after(clients, done), 60, "writes go on")
        machine("up", "--image", "debian-13", leader)


@pytest.mark.long
def test_a_cache_that_is_cut_off_stays_so_over_a_failover(
    cluster: Cluster, clients: Clients
) -> None:
    """Its suspension is a write like any other; without it, it would serve what it has."""
    cache = cluster.deployment.groups["cache"][-1]
    with survived(cluster, clients, "cache cut off, then leader killed") as told:
        with cluster.unheard(cache):
            wait_until(lambda: cluster.suspended() == {cache}, 30, "the cache is suspended")
            cut = time.monotonic_ns()
            wait_until(first_after(clients, cut), 60, "its lease has ended")
            leader = cluster.leader
            told["struck"] = time.monotonic_ns()
            done = cluster.podman("kill", leader)
            wait_until(first_after(clients, done), 60, "writes go on")
            assert cluster.leader != leader
            assert cluster.suspended() == {cache}
            machine("up", "--image", "debian-13", leader)
        wait_until(lambda: cluster.suspended() == set(), 120, "the cache takes part again")


@pytest.mark.long
def test_a_cache_that_is_restarted_delays_no_write(cluster: Cluster, clients: Clients) -> None:
    """Its host says that it has ended, so no write waits for its lease."""
    cache = cluster.deployment.groups["cache"][-1]
    with survived(cluster, clients, "cache restarted", within=PLANNED + 1) as told:
        told["struck"] = time.monotonic_ns()
        cluster.run(cache, "systemctl restart varnish")
        wait_until(lambda: cluster.suspended() == set(), 120, "the cache takes part again")
        cluster.run(cache, "systemctl kill --signal=KILL --kill-whom=main varnish")
        wait_until(lambda: cluster.suspended() == {cache}, 30, "the cache is suspended")
        wait_until(lambda: cluster.suspended() == set(), 180, "the cache takes part again")


def test_status_shows_the_members(cluster: Cluster) -> None:
    wait_until(cluster.is_whole, 120, "all members follow")
    run = cluster.deployment.succeed("status")
    for word in ("Leader", "Sync Standby", "Replica", "etcd", "haproxy"):
        assert word in run.output, str(run)
