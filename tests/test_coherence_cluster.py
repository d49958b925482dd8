"""What the processes of a cluster are told; the cluster runs in ``make coherence CLUSTER=yes``."""

from __future__ import annotations

from pathlib import Path

from tests.coherence.cluster import MEMBERS, LocalCluster


def test_processes_are_told_what_the_roles_say(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path)
    agreed = cluster.patroni_settings(0)["bootstrap"]["dcs"]
    # Not "quorum": docs/decisions/0013.
    assert agreed["synchronous_mode"] is True
    assert agreed["synchronous_mode_strict"]
    servers = [line for line in cluster.haproxy_settings().splitlines() if "server n" in line]
    assert len(servers) == len(MEMBERS)
    assert not any("ssl" in line for line in servers), servers
