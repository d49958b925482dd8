"""Machines of a cluster die, freeze, thaw and are cut off: clients lose nothing, read nothing old.

They come by HTTP through every nginx. What they were told is then looked for on the server that the
history in etcd names last: a machine that rejoined may have an old view of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from clients import BUCKET, Clients
from deployment import Deployment, machine, wait_until
from tests.coherence.checker import check

PATRONI = "patronictl --config-file /etc/patroni/config.yml"
PROMISED = 25.0  #: seconds after which writes are acknowledged again


@dataclass
class Cluster:
    """The machines as podman and Patroni see them."""

    deployment: Deployment

    @property
    def databases(self) -> list[str]:
        return self.deployment.groups["database"]

    def podman(self, verb: str, name: str) -> None:
        machine("podman", verb, machine("container", name).strip())

    def run(self, name: str, command: str, *, check: bool = True) -> str:
        """By podman, which needs no network of the machine."""
        try:
            return machine(
                "podman", "exec", machine("container", name).strip(), "sh", "-c", command
            )
        except Exception:
            if check:
                raise
            return ""

    def members(self, asked: str = "") -> dict[str, dict[str, Any]]:
        """What a member says of all; nothing if none answers."""
        for name in [asked] if asked else self.databases:
            said = self.run(name, f"timeout 10 {PATRONI} list --format json", check=False)
            if said.strip().startswith("["):
                return {each["Member"]: each for each in json.loads(said)}
        return {}

    def with_role(self, role: str) -> str:
        names = [name for name, each in self.members().items() if each["Role"] == role]
        return names[0] if names else ""

    @property
    def leader(self) -> str:
        return self.with_role("Leader")

    @property
    def standby(self) -> str:
        return self.with_role("Sync Standby")

    def is_whole(self) -> bool:
        """Whether one leads, both others follow without a lag, and one of them is synchronous."""
        members = self.members()
        roles = sorted(each["Role"] for each in members.values())
        following = [each for each in members.values() if each["State"] == "streaming"]
        return (
            roles == ["Leader", "Replica", "Sync Standby"]
            and len(following) == 2
            and all(each.get("Lag in MB") == 0 for each in following)
        )

    def last_leader(self) -> str:
        """The member that led last, as etcd's history has it; the leader if there was no change."""
        for name in self.databases:
            said = self.run(name, f"timeout 10 {PATRONI} history --format json", check=False)
            if said.strip().startswith("["):
                history = json.loads(said)
                return str(history[-1]["New Leader"]) if history else self.leader
        raise AssertionError("no member knows the history")

    def etcd_leader(self) -> str:
        tls = "--cacert /etc/etcd/tls/ca.pem --cert /etc/etcd/tls/member.pem"
        tls += " --key /etc/etcd/tls/member.key"
        for name in self.deployment.groups["etcd"]:
            said = self.run(
                name,
                f"etcdctl {tls} --endpoints https://127.0.0.1:2379 endpoint status -w json",
                check=False,
            )
            if said.strip().startswith("["):
                status = json.loads(said)[0]["Status"]
                if status["leader"] == status["header"]["member_id"]:
                    return name
        raise AssertionError("etcd has no leader")

    def revisions(self, name: str) -> dict[str, int]:
        """Every key of the clients as a server has it."""
        query = (
            "SELECT o.key, o.revision FROM poky._object o JOIN poky.bucket b ON b.id = o.bucket_id"
            f" WHERE b.name = '{BUCKET}'"
        )
        said = self.run(name, f'runuser -u postgres -- psql -XAt -d poky_cluster -c "{query}"')
        return {key: int(revision) for key, revision in (row.split("|") for row in said.split())}


@pytest.fixture(scope="session")
def cluster(deployment: Deployment) -> Cluster:
    return Cluster(deployment)


@pytest.fixture
def clients(deployment: Deployment) -> Iterator[Clients]:
    addresses = [deployment.address(name) for name in deployment.groups["web"]]
    with Clients(addresses) as clients:
        wait_until(lambda: len(clients.seen.acknowledged) > 20, 60, "writes are acknowledged")
        yield clients


@contextmanager
def survived(cluster: Cluster, clients: Clients, name: str) -> Iterator[dict[str, int]]:
    """A fault inside, which says when it struck; then nothing is lost, old or too slow."""
    wait_until(cluster.is_whole, 120, "all members follow before the fault")
    told: dict[str, int] = {}
    yield told
    struck = told["struck"]
    wait_until(cluster.is_whole, 240, f"all members follow after: {name}")
    time.sleep(2)
    clients.__exit__()
    seen = clients.seen
    verdict = check(seen.history)
    stored = cluster.revisions(cluster.last_leader())
    lost = {
        key: (revision, stored.get(key))
        for key, revision in seen.acknowledged.items()
        if stored.get(key, 0) < revision
    }
    row = {
        "fault": name,
        "acknowledged": sum(write.end < 2**63 - 1 for write in seen.history.writes),
        "lost": len(lost),
        "stale": verdict.stale,
        "backwards": verdict.inversions + verdict.unordered,
        "first": round(seen.gap(struck), 1),
        "pause": round(seen.longest_gap(struck), 1),
        "unknown": seen.unknown,
        "refused": seen.refused,
        "cached reads": seen.cached,
        "cached reads refused": sum(map(len, seen.not_read.values())),
        "cached reads refused for, s": round(
            max(((times[-1] - times[0]) / 1e9 for times in seen.not_read.values()), default=0), 1
        ),
    }
    print(json.dumps(row))
    with (cluster.deployment.work / "faults.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert lost == {}
    assert verdict.ok, verdict.findings
    assert seen.surprises == []
    assert row["pause"] < PROMISED, row


def first_after(clients: Clients, since: int) -> Callable[[], bool]:
    return lambda: clients.seen.gap(since) != float("inf")


def test_the_leader_is_killed(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "leader killed") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        cluster.podman("kill", leader)
        wait_until(first_after(clients, told["struck"] + 10**9), 60, "writes go on")
        assert cluster.leader != leader
        machine("up", "--image", "debian-13", leader)


def test_the_leader_freezes_and_thaws_when_another_leads(
    cluster: Cluster, clients: Clients
) -> None:
    """The worst moment: the new leader has just acknowledged its first write."""
    with survived(cluster, clients, "leader frozen, thawed after the first write") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        cluster.podman("pause", leader)
        wait_until(first_after(clients, told["struck"] + 10**9), 60, "writes go on")
        time.sleep(0.3)
        cluster.podman("unpause", leader)


@pytest.mark.long
@pytest.mark.parametrize("time_of_it", ["second", "third"])
def test_it_freezes_and_thaws_again(cluster: Cluster, clients: Clients, time_of_it: str) -> None:
    with survived(cluster, clients, f"leader frozen and thawed, {time_of_it} time") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        cluster.podman("pause", leader)
        wait_until(first_after(clients, told["struck"] + 10**9), 60, "writes go on")
        time.sleep(0.3)
        cluster.podman("unpause", leader)


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
    """HAProxy ends the sessions of a leader whose Patroni does not answer."""
    with survived(cluster, clients, "Patroni of the leader frozen") as told:
        leader = cluster.leader
        told["struck"] = time.monotonic_ns()
        cluster.run(leader, "systemctl kill --signal=STOP --kill-whom=main patroni")
        wait_until(first_after(clients, told["struck"] + 5 * 10**9), 60, "writes go on")
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
def test_a_switchover(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "switchover") as told:
        leader, standby = cluster.leader, cluster.standby
        told["struck"] = time.monotonic_ns()
        cluster.deployment.succeed("switchover")
        assert (cluster.leader, leader) == (standby, leader)
    assert clients.seen.longest_gap(told["struck"]) < 15


@pytest.mark.long
def test_a_setting_that_needs_a_restart(cluster: Cluster, clients: Clients) -> None:
    """Standbys first, then a switchover, then the one that led."""
    with survived(cluster, clients, "rolling restart") as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.settings["postgresql_max_connections"] = 210
        cluster.deployment.succeed("deploy")
    for name in cluster.databases:
        shown = cluster.run(name, "runuser -u postgres -- psql -XAtc 'SHOW max_connections'")
        assert shown.strip() == "210"


@pytest.mark.long
def test_a_standby_is_copied_anew(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "reinit of a standby") as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.fail(
            "reinit", "its data are never deleted", patroni_member=cluster.leader
        )
        name = next(
            name for name in cluster.databases if name not in (cluster.leader, cluster.standby)
        )
        cluster.deployment.succeed("reinit", patroni_member=name)


def test_status_shows_the_members(cluster: Cluster) -> None:
    wait_until(cluster.is_whole, 120, "all members follow")
    run = cluster.deployment.succeed("status")
    for word in ("Leader", "Sync Standby", "Replica", "etcd", "haproxy"):
        assert word in run.output, str(run)
