"""A cluster's shape and its first member: what playbooks refuse, and why. No machine is needed."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.support.roles import value
from tests.test_playbooks import ROOT, SECRETS, play, plugin

A, B, C, X, Y, Z = "abcxyz"


@pytest.fixture(scope="module")
def cluster_rules() -> ModuleType:
    return plugin("filter.poky_cluster")


@pytest.mark.parametrize(
    ("database", "etcd", "service", "words"),
    [
        ([], [], [X], []),
        ([A], [], [A], []),
        ([A, B, C], [X, Y, Z], [X, Y, Z], []),
        ([A, B], [], [X], ["“database” has 2 hosts", "“etcd” has 0 hosts"]),
        ([A, B], [X, Y, Z], [X], ["“database” has 2 hosts"]),
        ([A, B, C, "d"], [X, Y, Z], [X], ["“database” has 4 hosts"]),
        ([A, B, C], [], [X], ["“etcd” has 0 hosts"]),
        ([A, B, C], [X], [X], ["“etcd” has 1 host:"]),
        ([A, B, C], [X, Y, Z, "w"], [X], ["“etcd” has 4 hosts"]),
        ([A, B, C], [A, Y, Z], [X], ["a is in “database” and in “etcd”"]),
        ([A, B, C], [A, B, C], [X], [f"{host} is in “database” and in “etcd”" for host in "abc"]),
        ([A, B, C], [X, Y, Z], [A], ["a is in “database” and in “service”"]),
        ([A], [X, Y, Z], [X], ["etcd elects the leader of three"]),
        ([], [X, Y, Z], [X], ["etcd elects the leader of three"]),
    ],
)
def test_a_shape_that_is_not_safe_is_refused(
    cluster_rules: ModuleType,
    database: list[str],
    etcd: list[str],
    service: list[str],
    words: list[str],
) -> None:
    groups = {"database": database, "etcd": etcd, "service": service}
    faults = cluster_rules.poky_cluster_faults(groups)
    assert len(faults) == len(words), faults
    assert all(word in fault for word, fault in zip(words, faults, strict=True)), faults


@pytest.mark.parametrize(
    ("reasons", "is_lowered"),
    [
        ([], False),
        (["patroni", "PostgreSQL 17.6"], False),
        (["max_connections: 200->210"], False),
        (["max_connections: 210->200"], True),
        (["patroni", "max_connections: 99->100\nmax_worker_processes: 10->9"], True),
        (["shared_buffers: 2GB->1GB"], False),  # which a standby may have less of
        (["max_connections: 100->100"], False),
    ],
)
def test_what_is_lowered_is_the_leaders_first(
    cluster_rules: ModuleType, reasons: list[str], is_lowered: bool
) -> None:
    assert cluster_rules.poky_is_lowered(reasons) is is_lowered


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ({}, []),
        ({"a": 1, "b": "2"}, []),
        ({"a": None}, ["a is in “shards” and has no number"]),
        ({"a": 0, "b": 256, "c": "x"}, ["a is in", "b is in", "c is in"]),
        ({"a": 1, "b": "1"}, ["b and a are both shard 1"]),
        ({"d": 1}, ["d is in “database” and in “shards”"]),
    ],
)
def test_shards_have_numbers_of_their_own(
    cluster_rules: ModuleType, shards: dict[str, Any], words: list[str]
) -> None:
    hostvars = {host: {"poky_shard": number} for host, number in shards.items()}
    faults = cluster_rules.poky_shard_faults({"database": ["d"], "shards": [*shards]}, hostvars)
    assert len(faults) == len(words), faults
    assert all(word in fault for word, fault in zip(words, faults, strict=True)), faults


def test_buckets_move_between_servers_of_debian_13_alone(cluster_rules: ModuleType) -> None:
    groups = {"database": ["d"], "shards": ["s"]}
    assert cluster_rules.poky_cluster_host_faults(groups, facts(d="13", s="13")) == []
    (fault,) = cluster_rules.poky_cluster_host_faults(groups, facts(d="13", s="12"))
    assert "s runs Debian 12" in fault
    assert "only superusers move buckets" in fault


def facts(**releases: str) -> dict[str, Any]:
    return {
        host: {"ansible_facts": {"distribution_major_version": release} if release else {}}
        for host, release in releases.items()
    }


@pytest.mark.parametrize(
    ("releases", "words"),
    [
        ({}, []),
        ({"a": "12"}, ["a runs Debian 12", "different releases"]),
        ({"a": "12", "b": "12", "c": "12"}, [f"{host} runs Debian 12" for host in "abc"]),
        ({"x": "12"}, ["x runs Debian 12"]),
        ({"b": "14"}, ["different releases (a Debian 13, b Debian 14, c Debian 13)"]),
        ({"b": ""}, []),  # left out by --limit
    ],
)
def test_hosts_that_cannot_be_members_are_refused(
    cluster_rules: ModuleType, releases: dict[str, str], words: list[str]
) -> None:
    groups = {"database": ["a", "b", "c"], "etcd": ["x", "y", "z"], "service": ["x"]}
    hostvars = facts(**{**dict.fromkeys("abcxyz", "13"), **releases})
    faults = cluster_rules.poky_cluster_host_faults(groups, hostvars)
    assert len(faults) == len(words), faults
    assert all(word in fault for word, fault in zip(words, faults, strict=True)), faults


def test_a_single_server_may_be_on_debian_12(cluster_rules: ModuleType) -> None:
    groups = {"database": ["a"], "service": ["a"]}
    assert cluster_rules.poky_cluster_host_faults(groups, facts(a="12")) == []


@pytest.mark.parametrize(
    ("identities", "initialized", "first", "words"),
    [
        # From nothing; then a server that is adopted, wherever it stands.
        ({}, "", "a", []),
        ({"a": "7"}, "", "a", []),
        ({"c": "7"}, "", "c", []),
        # Members of the cluster, one of them made anew.
        ({"a": "7", "b": "7", "c": "7"}, "7", "a", []),
        ({"b": "7", "c": "7"}, "7", "b", []),
        # Data that would be lost, or that are not there.
        ({"a": "7", "b": "8"}, "", "a", ["a, b each have a PostgreSQL with data"]),
        ({"a": "8", "b": "7"}, "7", "b", ["a has the data of another PostgreSQL"]),
        ({}, "7", "a", ["No host has the data of the cluster"]),
    ],
)
def test_the_first_member_is_the_one_whose_data_count(
    cluster_rules: ModuleType,
    identities: dict[str, str],
    initialized: str,
    first: str,
    words: list[str],
) -> None:
    plan = cluster_rules.poky_first_member(["a", "b", "c"], identities, initialized)
    assert plan["first"] == first
    assert len(plan["faults"]) == len(words), plan
    assert all(word in fault for word, fault in zip(words, plan["faults"], strict=True)), plan


def inventory_of(path: Path, **groups: str) -> Path:
    """An inventory in which every host is this machine; by default a cluster."""
    shape = {"database": "abc", "etcd": "xyz", "service": "xyz", "cache": "x", "web": "x"}
    children = {
        group: {"hosts": dict.fromkeys(hosts)} for group, hosts in {**shape, **groups}.items()
    }
    variables = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "machine_image": "",
        "poky_address": "127.0.0.1",
        **SECRETS,
    }
    path.write_text(yaml.safe_dump({"all": {"vars": variables, "children": children}}))
    return path


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ({"etcd": "ayz"}, "a is in “database” and in “etcd”"),
        ({"database": "ab"}, "The group “database” has 2 hosts"),
    ],
)
def test_a_playbook_refuses_the_shape_before_it_asks_a_host(
    tmp_path: Path, groups: dict[str, str], sentence: str
) -> None:
    inventory = inventory_of(tmp_path / "hosts.yml", **groups)
    done = play("playbooks/given.yml", "-i", inventory)
    assert done.returncode != 0, done.stdout
    assert sentence in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("role", "given", "sentence"),
    [
        ("etcd", {"etcd_election": 300}, "at least five times etcd_heartbeat"),
        ("patroni", {"patroni_ttl": 10}, "no less than 20 seconds"),
        ("patroni", {"postgresql_settings": {"fsync": "off"}}, "postgresql_settings sets fsync"),
        ("patroni", {"patroni_rest_password": None}, "patroni_rest_password"),
    ],
)
def test_a_value_that_breaks_a_promise_is_refused(
    tmp_path: Path, role: str, given: dict[str, Any], sentence: str
) -> None:
    passwords = {f"patroni_{name}_password": "p" for name in ("rest", "replication", "rewind")}
    variables = {name: value for name, value in {**passwords, **given}.items() if value is not None}
    playbook = tmp_path / "play.yml"
    tasks = {"include_role": {"name": str(ROOT / "roles" / role), "tasks_from": "preflight"}}
    playbook.write_text(
        yaml.safe_dump([{"hosts": "a", "gather_facts": False, "vars": variables, "tasks": [tasks]}])
    )
    done = play(playbook, "-i", inventory_of(tmp_path / "hosts.yml"))
    assert done.returncode != 0, done.stdout
    assert sentence in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("there", "is_refused"),
    [([], False), (["15"], True), (["15", "17"], False), (["17"], False)],
)
def test_data_of_another_version_are_no_empty_database(
    tmp_path: Path, there: list[str], is_refused: bool
) -> None:
    for version in there:
        data = tmp_path / version / "main"
        data.mkdir(parents=True)
        (data / "PG_VERSION").write_text(version)
    tasks = {
        "include_role": {"name": str(ROOT / "roles/postgresql"), "tasks_from": "data"},
        "vars": {"_postgresql_home": str(tmp_path)},
    }
    playbook = tmp_path / "play.yml"
    given = {"postgresql_version": "17"}
    playbook.write_text(
        yaml.safe_dump([{"hosts": "a", "gather_facts": False, "vars": given, "tasks": [tasks]}])
    )
    done = play(playbook, "-i", inventory_of(tmp_path / "hosts.yml"))
    assert (done.returncode != 0) == is_refused, done.stdout
    assert ("has the data of PostgreSQL 15, and is to run 17" in done.stdout) == is_refused


@pytest.mark.parametrize(
    ("service", "here", "neighbours"),
    [
        (["x"], "x", []),
        (["x", "y"], "x", ["x", "y"]),  # by its address, as the other caches know it
        (["x", "y"], "w", ["x", "y"]),
    ],
)
def test_a_cache_and_the_instances_of_its_host_reach_each_other(
    service: list[str], here: str, neighbours: list[str]
) -> None:
    groups = {"service": service, "web": [here]}
    found = value("varnish", "_varnish_neighbours", groups=groups, inventory_hostname=here)
    assert found == neighbours


def test_a_plan_knows_of_no_member_of_etcd() -> None:
    """A task that is skipped, as a plan for an empty machine skips it, registers no result."""
    seen = {
        "x": {"skipped": True},
        "y": {"stat": {"exists": True}},
        "z": {"stat": {"exists": False}},
    }
    hostvars = {name: {"inventory_hostname": name, "_etcd_seen": seen[name]} for name in seen}
    hostvars["w"] = {"inventory_hostname": "w"}
    found = value("etcd", "_etcd_seeded", groups={"etcd": list("wxyz")}, hostvars=hostvars)
    assert list(found) == ["y"]


def test_what_a_role_registers_is_private() -> None:
    """Any other name would be one that an operator has misspelt, from the next playbook on."""
    for path in ROOT.glob("roles/*/tasks/**/*.yml"):
        names = re.findall(r"^\s+register: (\S+)", path.read_text(), re.MULTILINE)
        assert all(name.startswith("_") for name in names), path
