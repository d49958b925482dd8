"""A cluster of PostgreSQL as podman and Patroni see it, and what every fault has to leave whole."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clients import BUCKET, Clients
from deployment import Deployment, machine, wait_until
from tests.coherence.checker import check

PATRONI = "patronictl --config-file /etc/patroni/config.yml"
PROMISED = 25.0  #: seconds after which writes are acknowledged again
PLANNED = 5.0  #: the same where nothing has failed: a switchover, a restart, a deploy


@dataclass
class Cluster:
    """The machines as podman and Patroni see them."""

    deployment: Deployment

    @property
    def databases(self) -> list[str]:
        return self.deployment.groups["database"]

    def podman(self, verb: str, name: str) -> int:
        """Do that to a machine; the time when it was done, which may be a second or two later."""
        machine("podman", verb, machine("container", name).strip())
        return time.monotonic_ns()

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

    def sql(self, name: str, query: str) -> str:
        """What the server of a host answers, a row in a line."""
        said = self.run(name, f'runuser -u postgres -- psql -XAt -d poky_cluster -c "{query}"')
        return said.strip()

    def suspended(self) -> set[str]:
        """The caches that get no lease."""
        query = "SELECT name FROM poky.cache_node WHERE suspended_at IS NOT NULL"
        return set(self.sql(self.leader, query).split())

    @contextmanager
    def unheard(self, cache: str) -> Iterator[None]:
        """No purge reaches the cache: packets to its listener are dropped."""
        container = machine("container", cache).strip()
        pid = machine("podman", "inspect", container, "--format", "{{.State.Pid}}").strip()
        rule = "INPUT --protocol tcp --dport 6091 --jump DROP"
        into = ["nsenter", "--target", pid, "--net", "iptables"]
        subprocess.run([*into, "--append", *rule.split()], check=True)
        try:
            yield
        finally:
            subprocess.run([*into, "--delete", *rule.split()], check=True)

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
        rows = self.sql(name, query).split()
        return {key: int(revision) for key, revision in (row.split("|") for row in rows)}


def recorded(
    cluster: Cluster, clients: Clients, name: str, struck: int, *, on: str
) -> dict[str, Any]:
    """The clients' figures, once they have stopped; no write is lost on that host, no read old."""
    clients.__exit__()
    seen = clients.seen
    verdict = check(seen.history)
    stored = cluster.revisions(on)
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
    return row


@contextmanager
def survived(
    cluster: Cluster, clients: Clients, name: str, *, within: float = PROMISED
) -> Iterator[dict[str, int]]:
    """A fault inside, which says when it struck; then nothing is lost, old or too slow.

    Writes are acknowledged again ``within`` so many seconds. Where nothing has failed, cached
    objects are read all the while.
    """
    wait_until(cluster.is_whole, 120, "all members follow before the fault")
    told: dict[str, int] = {}
    yield told
    struck = told["struck"]
    wait_until(cluster.is_whole, 240, f"all members follow after: {name}")
    time.sleep(2)
    row = recorded(cluster, clients, name, struck, on=cluster.last_leader())
    assert row["pause"] < within, row
    assert within > PLANNED or row["cached reads refused"] == 0, row


def first_after(clients: Clients, since: int) -> Callable[[], bool]:
    return lambda: clients.seen.gap(since) != float("inf")
