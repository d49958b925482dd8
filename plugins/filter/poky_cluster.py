"""What a cluster of PostgreSQL may look like, and which of its members begins.

Three servers, of which one leads and a second has every acknowledged write; three etcd members on
other machines, which elect the leader.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# What a standby must allow as much of as its leader (PostgreSQL: Hot Standby, Administrator's
# Overview); Patroni says why a member waits for a restart as in "max_connections: 210->200".
_SHARED = re.compile(
    r"\b(?:max_connections|max_prepared_transactions|max_locks_per_transaction|max_wal_senders"
    r"|max_worker_processes): (\d+)->(\d+)"
)


def poky_is_lowered(reasons: Iterable[str]) -> bool:
    """Whether a member waits for less of what a standby must allow as much of as its leader."""
    found = (change for reason in reasons for change in _SHARED.findall(str(reason)))
    return any(int(after) < int(before) for before, after in found)


def poky_cluster_faults(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what is wrong with the shape of the cluster, one sentence each."""
    databases, members = list(groups.get("database", ())), list(groups.get("etcd", ()))
    faults = []
    if len(databases) not in (0, 1, 3):
        faults.append(
            f"The group “database” has {_hosts(databases)}: one is a single server, three are a"
            " cluster that survives the loss of any one; other numbers survive no more."
        )
    if len(databases) <= 1:
        if members:
            faults.append(
                f"The group “etcd” has {_hosts(members)}, and the group “database”"
                f" {_hosts(databases)}: etcd elects the leader of three. Put three hosts into"
                " “database”, or none into “etcd”."
            )
        return faults
    if len(members) != 3:
        faults.append(
            f"The group “etcd” has {_hosts(members)}: it must be three, of which any two elect the"
            " leader of PostgreSQL. The service hosts will do."
        )
    for host in sorted({*databases} & {*members}):
        faults.append(
            f"{host} is in “database” and in “etcd”: when that machine freezes and thaws, etcd"
            " beside PostgreSQL can bring the former leader back, and acknowledged writes are"
            " lost. Put etcd on other machines."
        )
    for host in sorted({*databases} & {*groups.get("service", ())}):
        faults.append(
            f"{host} is in “database” and in “service”: in a cluster, the service's own way to"
            " the leader has PostgreSQL's port there. Put the service on other machines."
        )
    return faults


def poky_shard_faults(
    groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say what is wrong with the group of further databases, one sentence each."""
    faults = []
    by_number: dict[int, str] = {}
    for host in groups.get("shards", ()):
        number = hostvars[host].get("poky_shard")
        if not str(number).isdecimal() or not 1 <= int(str(number)) <= 255:
            faults.append(
                f"{host} is in “shards” and has no number: give it poky_shard, 1 to 255, which it"
                " keeps for good."
            )
        elif int(str(number)) in by_number:
            faults.append(
                f"{host} and {by_number[int(str(number))]} are both shard {number}: give each a"
                " poky_shard of its own."
            )
        else:
            by_number[int(str(number))] = host
        if host in groups.get("database", ()):
            faults.append(
                f"{host} is in “database” and in “shards”: shard 0 is “database”, each other one"
                " is another host."
            )
    return faults


def poky_cluster_host_faults(
    groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say which hosts cannot be what their groups say, by their facts; nothing for one server."""
    databases, shards = list(groups.get("database", ())), list(groups.get("shards", ()))
    faults = []
    for host in sorted({*databases, *shards}) if shards else []:
        if _release(hostvars, host) == "12":
            faults.append(
                f"{host} runs Debian 12, whose PostgreSQL lets only superusers move buckets from"
                " one database to another: several databases need Debian 13."
            )
    if len(databases) <= 1:
        return faults
    for host in sorted({*databases, *groups.get("etcd", ()), *groups.get("service", ())}):
        if _release(hostvars, host) == "12":
            faults.append(
                f"{host} runs Debian 12, whose Patroni and etcd can lose acknowledged writes: a"
                " cluster needs Debian 13. A single PostgreSQL may stay on 12."
            )
    # Facts of hosts that --limit leaves out are not known.
    releases = {host: _release(hostvars, host) for host in databases if _release(hostvars, host)}
    if len({*releases.values()}) > 1:
        told = ", ".join(f"{host} Debian {release}" for host, release in sorted(releases.items()))
        faults.append(
            f"The hosts of “database” have different releases ({told}), and so different major"
            " versions of PostgreSQL, which cannot follow each other."
        )
    return faults


def poky_first_member(
    hosts: Sequence[str], identities: Mapping[str, str], initialized: str
) -> dict[str, Any]:
    """Choose the member that begins: ``{"first": host, "faults": [sentences]}``.

    ``identities`` has the system identifier of each host's data ("": no data), ``initialized`` that
    of the cluster as etcd knows it ("": none yet). Data that would be lost are a fault.
    """
    with_data = [host for host in hosts if identities.get(host)]
    faults = []
    if initialized:
        mine = [host for host in with_data if identities[host] == initialized]
        faults = [
            f"{host} has the data of another PostgreSQL than this cluster's: move them away, and it"
            " copies those of the leader."
            for host in with_data
            if host not in mine
        ]
        if not mine:
            faults.append(
                "No host has the data of the cluster that etcd knows. If this is to be a new one,"
                " name it otherwise (patroni_scope)."
            )
        with_data = mine
    elif len(with_data) > 1:
        faults.append(
            f"{', '.join(with_data)} each have a PostgreSQL with data, and no cluster yet: keep the"
            " one that counts, and move the data of the others away."
        )
    return {"first": next(iter(with_data), hosts[0]), "faults": faults}


def _hosts(hosts: Sequence[str]) -> str:
    return f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}"


def _release(hostvars: Mapping[str, Mapping[str, Any]], host: str) -> str:
    facts = hostvars[host].get("ansible_facts", {})
    return str(facts.get("distribution_major_version", ""))


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            function.__name__: function
            for function in (
                poky_cluster_faults,
                poky_cluster_host_faults,
                poky_first_member,
                poky_is_lowered,
                poky_shard_faults,
            )
        }
