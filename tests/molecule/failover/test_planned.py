"""What operators do to a cluster while twenty clients use it.

Nothing has failed, so no read through a cache does, and writes wait for five seconds at most. What
replaces a machine, or takes the service away on purpose, says so.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from clients import Clients
from cluster import PLANNED, Cluster, first_after, survived
from deployment import machine, wait_until

pytestmark = pytest.mark.long


def started(cluster: Cluster) -> dict[str, str]:
    """When the PostgreSQL of each member was started."""
    query = "SELECT pg_postmaster_start_time()"
    return {name: cluster.sql(name, query) for name in cluster.databases}


@pytest.mark.parametrize("time_of_it", ["first", "second", "third"])
def test_a_switchover(cluster: Cluster, clients: Clients, time_of_it: str) -> None:
    with survived(cluster, clients, f"switchover, {time_of_it}", within=PLANNED) as told:
        leader, standby = cluster.leader, cluster.standby
        told["struck"] = time.monotonic_ns()
        cluster.deployment.succeed("switchover")
        assert (cluster.leader, leader) == (standby, leader)


def test_a_setting_that_needs_no_restart(cluster: Cluster, clients: Clients) -> None:
    before = started(cluster)
    with survived(cluster, clients, "setting changed", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.settings["postgresql_max_wal_size"] = 1536
        cluster.deployment.succeed("deploy")
    assert started(cluster) == before
    for name in cluster.databases:
        assert cluster.sql(name, "SHOW max_wal_size") == "1536MB"


def test_a_setting_that_needs_a_restart(cluster: Cluster, clients: Clients) -> None:
    """Standbys first, then a switchover, then the one that led."""
    with survived(cluster, clients, "setting changed, with restarts", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.settings["postgresql_max_connections"] = 210
        cluster.deployment.succeed("deploy")
    for name in cluster.databases:
        assert cluster.sql(name, "SHOW max_connections") == "210"


def test_a_setting_that_is_lowered(cluster: Cluster, clients: Clients) -> None:
    """The leader first, for a standby allows no less than it did; and then nothing waits."""
    before = int(cluster.sql(cluster.leader, "SHOW max_connections"))
    with survived(cluster, clients, "setting lowered", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.settings["postgresql_max_connections"] = before - 10
        cluster.deployment.succeed("deploy")
    for name in cluster.databases:
        assert cluster.sql(name, "SHOW max_connections") == str(before - 10)
    again = cluster.deployment.succeed("deploy")
    assert set(again.changed().values()) == {0}, str(again)


def test_a_rolling_restart_of_the_service(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "service restarted", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.succeed("restart")


def test_a_minor_upgrade(cluster: Cluster, clients: Clients) -> None:
    """Of the version that there is: the packages again restart nothing, and the deploy does."""
    before = started(cluster)
    with survived(cluster, clients, "minor upgrade", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        for name in cluster.databases:
            cluster.run(name, REINSTALLED)
        assert started(cluster) == before
        cluster.deployment.succeed("deploy")
    after = started(cluster)
    assert all(after[name] > before[name] for name in cluster.databases), (before, after)


# As the role installs them; Debian's own script would restart Patroni, and with it PostgreSQL.
REINSTALLED = """
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
    DEBIAN_FRONTEND=noninteractive apt-get install -qq --reinstall patroni \
        "postgresql-$(ls /usr/lib/postgresql)" >/dev/null
    rm /usr/sbin/policy-rc.d
"""


def test_a_standby_is_copied_anew(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "reinit of a standby", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.fail(
            "reinit", "its data are never deleted", patroni_member=cluster.leader
        )
        name = next(
            name for name in cluster.databases if name not in (cluster.leader, cluster.standby)
        )
        cluster.run(name, "touch /var/lib/postgresql/17/main/old")
        cluster.deployment.succeed("reinit", patroni_member=name)
        assert cluster.members()[name]["State"] == "streaming"
    assert "old" not in cluster.run(name, "ls /var/lib/postgresql/17/main").split()


def test_a_backup(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "backup", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.succeed("backup", backup_type="full")


def test_passwords_are_rotated(cluster: Cluster, clients: Clients) -> None:
    with survived(cluster, clients, "passwords rotated", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        for name in PASSWORDS:
            cluster.deployment.settings[name] = f"rotated, {time.time()}"
        cluster.deployment.succeed("rotate")


PASSWORDS = (
    *("poky_database_password", "poky_database_owner_password"),
    *("patroni_replication_password", "patroni_rewind_password", "patroni_rest_password"),
)


def test_certificates_are_renewed(cluster: Cluster, clients: Clients) -> None:
    """Those of etcd, Patroni and nginx; the member that leads is restarted after a switchover."""
    before = fingerprints(cluster)
    with survived(cluster, clients, "certificates renewed", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        cluster.deployment.succeed("certificates")
    after = fingerprints(cluster)
    assert set(before) == set(after)
    assert [file for file in before if before[file] == after[file]] == []


def fingerprints(cluster: Cluster) -> dict[str, str]:
    """Of every certificate of a host's own, by host and file."""
    look = (
        "find /etc/etcd /etc/patroni /etc/nginx /etc/pgbackrest -name '*.pem' ! -name ca.pem"
        " -exec sha256sum {} + 2>/dev/null || true"
    )
    found = {}
    for host in {name for names in cluster.deployment.groups.values() for name in names}:
        for line in cluster.run(host, look).splitlines():
            digest, file = line.split()
            found[f"{host}:{file}"] = digest
    for needed in ("etcd", "patroni", "nginx"):
        assert any(f":/etc/{needed}" in file for file in found), found
    return found


def lose(name: str) -> None:
    """Remove the machine, and the connections that Ansible kept to it."""
    machine("down", name)
    for kept in Path(os.environ["ANSIBLE_SSH_CONTROL_PATH_DIR"]).iterdir():
        kept.unlink()


@pytest.mark.parametrize("which", ["standby", "leader"])
def test_a_lost_machine_of_postgresql_is_replaced(
    cluster: Cluster, clients: Clients, which: str
) -> None:
    """As docs/failover.md has it: an empty machine under the same name, and a deploy."""
    lost = cluster.leader if which == "leader" else cluster.standby
    with survived(cluster, clients, f"machine of the {which} replaced") as told:
        told["struck"] = time.monotonic_ns()
        lose(lost)
        wait_until(first_after(clients, time.monotonic_ns()), 60, "writes go on")
        cluster.deployment.succeed("deploy")


def test_a_lost_machine_of_etcd_is_replaced(cluster: Cluster, clients: Clients) -> None:
    """One that no client comes through: its instances are gone with it, and the backups."""
    web = cluster.deployment.groups["web"]
    lost = next(name for name in cluster.deployment.groups["etcd"] if name not in web)
    with survived(cluster, clients, "machine of etcd replaced", within=PLANNED) as told:
        told["struck"] = time.monotonic_ns()
        lose(lost)
        time.sleep(5)
        cluster.deployment.succeed("deploy")
    assert cluster.run(lost, "systemctl is-active etcd").strip() == "active"


def test_a_restore(cluster: Cluster, clients: Clients) -> None:
    """To a moment: every member has what was acknowledged before, and nothing that came later."""
    wait_until(cluster.is_whole, 240, "all members follow before the restore")
    cluster.deployment.succeed("backup")
    time.sleep(2)
    with clients.seen.lock:
        before = dict(clients.seen.acknowledged)
    moment = datetime.now(UTC).isoformat()
    time.sleep(2)
    clients.__exit__()
    later = {
        key: revision
        for key, revision in clients.seen.acknowledged.items()
        if revision > before.get(key, 0)
    }
    assert later
    environment = cluster.deployment.inventory.resolve().name
    run = cluster.deployment.succeed(
        "restore", backup_restore_time=moment, backup_restore_confirm=environment
    )
    print(run.output[-3000:])
    wait_until(cluster.is_whole, 240, "all members follow after the restore")
    for name in cluster.databases:
        stored = cluster.revisions(name)
        lost = {key for key, revision in before.items() if stored.get(key, 0) < revision}
        assert lost == set()
        assert max(stored.values()) < max(later.values())
    again = cluster.deployment.succeed("deploy")
    assert set(again.changed().values()) == {0}, str(again)
