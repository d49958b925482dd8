"""What role hosts lets through, by the groups of an inventory (plugins/filter/poky_topology.py)."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
from psycopg2.extensions import parse_dsn

from poky import forms

GROUPS = {"web": ["edge"], "cache": ["edge"], "service": ["app1", "app2"], "database": ["data"]}
ADDRESSES = {
    **{"edge": "192.0.2.1", "app1": "192.0.2.2", "app2": "192.0.2.3"},
    "data": "2001:db8::4",
}
HOSTVARS = {name: {"poky_address": address} for name, address in ADDRESSES.items()}
SSH = "tcp dport { 22 } accept"


@pytest.fixture(scope="module")
def topology() -> ModuleType:
    return importlib.import_module("plugins.filter.poky_topology")


@pytest.mark.parametrize(
    ("host", "rules"),
    [
        (
            "edge",
            [
                SSH,
                "tcp dport { 80, 443 } accept",
                "ip saddr { 192.0.2.2, 192.0.2.3 } tcp dport { 6091 } accept",
            ],
        ),
        ("app1", [SSH, "ip saddr { 192.0.2.1 } tcp dport { 8081, 8082, 10081, 10082 } accept"]),
        ("data", [SSH, "ip saddr { 192.0.2.2, 192.0.2.3 } tcp dport { 5432 } accept"]),
    ],
)
def test_a_host_lets_through_what_others_need(
    topology: ModuleType, host: str, rules: list[str]
) -> None:
    """What it asks itself comes by loopback; nobody reaches a port for which nobody is left."""
    assert topology.poky_accepts(host, GROUPS, HOSTVARS, [22]) == rules


def test_monitoring_reaches_exporters_and_metrics(topology: ModuleType) -> None:
    groups = {**GROUPS, "monitoring": ["app2"]}
    rule = "ip saddr { 192.0.2.3 } tcp dport { 9081, 9082, 9100, 9113, 9131, 9187 } accept"
    assert topology.poky_accepts("data", groups, HOSTVARS, [22])[-1] == rule
    assert rule not in topology.poky_accepts("app2", groups, HOSTVARS, [22])


def test_monitoring_reaches_patroni_and_haproxy_of_a_cluster(topology: ModuleType) -> None:
    databases = {f"data{number}": {"poky_address": f"192.0.2.3{number}"} for number in range(3)}
    groups = {**GROUPS, "database": [*databases], "monitoring": ["eye"]}
    hostvars = {**HOSTVARS, **databases, "eye": {"poky_address": "192.0.2.7"}}
    seen = "ip saddr { 192.0.2.7 } tcp dport "
    common = "9081, 9082, 9100, 9113, 9131, 9187"
    for host, port in (("data1", 8008), ("app1", 8405)):
        rules = topology.poky_accepts(host, groups, hostvars, [22])
        assert f"{seen}{{ {port}, {common} }} accept" in rules
    assert f"{seen}{{ {common} }} accept" in topology.poky_accepts("edge", groups, hostvars, [22])


def test_the_service_asks_the_prometheus_that_it_can_reach(topology: ModuleType) -> None:
    def url(here: str, **known: object) -> str:
        groups = {**GROUPS, "monitoring": ["eye"]} if known else GROUPS
        found: str = topology.poky_prometheus_url(here, groups, {**HOSTVARS, "eye": known})
        return found

    eye = {"poky_address": "192.0.2.7"}
    assert url("app1") == ""
    assert url("app1", **eye) == ""  # it listens on loopback
    assert url("app1", **eye, monitoring_listen="localhost") == ""
    assert url("eye", **eye) == "http://127.0.0.1:9090"
    assert url("eye", **eye, monitoring_prometheus=False) == ""
    elsewhere = {"monitoring_listen": "192.0.2.8", "monitoring_port": 9091}
    assert url("app1", **eye, **elsewhere) == "http://192.0.2.8:9091"
    assert url("app1", **eye, monitoring_listen="0.0.0.0") == "http://192.0.2.7:9090"
    assert url("eye", **eye, monitoring_listen="0.0.0.0") == "http://127.0.0.1:9090"


def test_prometheus_lets_the_service_ask_if_it_listens_for_others(topology: ModuleType) -> None:
    groups = {**GROUPS, "monitoring": ["eye"]}
    known = {"poky_address": "192.0.2.7"}
    rule = "ip saddr { 192.0.2.2, 192.0.2.3 } tcp dport { 9090 } accept"
    for listen, is_let in ((None, False), ("127.0.0.1", False), ("192.0.2.7", True)):
        hostvars = {**HOSTVARS, "eye": {**known, "monitoring_listen": listen}}
        assert (rule in topology.poky_accepts("eye", groups, hostvars, [22])) == is_let
    allowed = topology.poky_ip_allow(groups, {**HOSTVARS, "eye": known}, [])
    assert "192.0.2.7" in allowed


def test_the_repository_and_the_database_reach_each_other(topology: ModuleType) -> None:
    hostvars = {**HOSTVARS, "kept": {"poky_address": "192.0.2.9", "backup_port": 8433}}
    groups = {**GROUPS, "backup": ["kept"]}
    assert topology.poky_accepts("data", groups, hostvars, [22])[-1] == (
        "ip saddr { 192.0.2.9 } tcp dport { 8432 } accept"
    )
    assert topology.poky_accepts("kept", groups, hostvars, [22]) == [
        SSH,
        "ip6 saddr { 2001:db8::4 } tcp dport { 8433 } accept",
    ]
    # On one host they meet by its files.
    assert topology.poky_accepts("data", {**GROUPS, "backup": ["data"]}, HOSTVARS, [22]) == (
        topology.poky_accepts("data", GROUPS, HOSTVARS, [22])
    )


SHARDS = {
    **GROUPS,
    "shards": ["two", "one"],
}
SHARD_VARS = {
    **HOSTVARS,
    "one": {"poky_address": "192.0.2.41", "poky_shard": 1},
    "two": {"poky_address": "192.0.2.42", "poky_shard": "2"},
}


def test_databases_of_buckets_reach_each_other_and_the_service_reaches_all(
    topology: ModuleType,
) -> None:
    rule = "ip saddr {{ 192.0.2.2, 192.0.2.3, {} }} tcp dport {{ 5432 }} accept"
    accepts = topology.poky_accepts
    data = HOSTVARS["data"]["poky_address"]
    assert rule.format("192.0.2.42") in "\n".join(accepts("one", SHARDS, SHARD_VARS, [22]))
    assert f"ip6 saddr {{ {data} }} tcp dport {{ 5432 }} accept" in accepts(
        "one", SHARDS, SHARD_VARS, [22]
    )
    assert rule.format("192.0.2.42, 192.0.2.41") in accepts("data", SHARDS, SHARD_VARS, [22])
    assert accepts("edge", SHARDS, SHARD_VARS, [22]) == accepts("edge", GROUPS, HOSTVARS, [22])
    assert {"192.0.2.41", "192.0.2.42"} <= {*topology.poky_ip_allow(SHARDS, SHARD_VARS, [])}


def test_shards_come_by_their_numbers(topology: ModuleType) -> None:
    assert topology.poky_shards(GROUPS, HOSTVARS) == []
    assert topology.poky_shards(SHARDS, SHARD_VARS) == [
        {"number": 1, "hosts": ["one"]},
        {"number": 2, "hosts": ["two"]},
    ]


def test_connection_strings_of_shards_are_those_that_the_service_reads(
    topology: ModuleType,
) -> None:
    login = {"user": "u", "password": "p/@ :%'é", "database": "poky", "options": ""}
    shards = [
        {"number": 1, "hosts": ["one"]},
        {"number": 7, "hosts": ["db1.example", "2001:db8::9"], "port": 5433},
    ]
    login["options"] = "sslmode=verify-full sslrootcert=/etc/poky/ca.pem"
    text = topology.poky_dsns(shards, SHARD_VARS, "edge", login)
    first, seventh = forms.shards(text)
    read = parse_dsn(first.dsn)
    assert (first.number, read["host"], read["port"]) == (1, "192.0.2.41", "5432")
    assert (read["user"], read["password"], read["dbname"]) == ("u", "p/@ :%'é", "poky")
    assert (read["sslmode"], read["sslrootcert"]) == ("verify-full", "/etc/poky/ca.pem")
    read = parse_dsn(seventh.dsn)
    assert (read["host"], read["port"]) == ("db1.example,2001:db8::9", "5433,5433")
    assert read["target_session_attrs"] == "read-write"
    assert "127.0.0.1" in topology.poky_dsns(shards, SHARD_VARS, "one", login)


@pytest.mark.parametrize("password", ["a", "it's", "\\", "\\'", "a b= c'\\", "é%s{{ x }}", ""])
def test_any_password_is_a_value_of_a_connection_string(
    topology: ModuleType, password: str
) -> None:
    read = parse_dsn(f"host=a password={topology.poky_dsn_value(password)}")
    assert read == {"host": "a", "password": password}


def test_further_rules_are_for_whom_they_name(topology: ModuleType) -> None:
    further = [
        {"ports": [9081], "from": ["198.51.100.0/24", "2001:db8::/32"]},
        {"ports": [7], "from": []},
    ]
    assert topology.poky_accepts("none", GROUPS, {"none": {}}, [22, 2222], further) == [
        "tcp dport { 22, 2222 } accept",
        "ip saddr { 198.51.100.0/24 } tcp dport { 9081 } accept",
        "ip6 saddr { 2001:db8::/32 } tcp dport { 9081 } accept",
        "tcp dport { 7 } accept",
    ]
    bad = [{"ports": [7], "from": ["all of them"]}]
    with pytest.raises(ValueError, match="all of them"):
        topology.poky_accepts("none", GROUPS, {"none": {}}, [22], bad)


def test_the_service_talks_with_what_has_an_address(topology: ModuleType) -> None:
    known = ["localhost", "192.0.2.2", "192.0.2.3", "192.0.2.1", "2001:db8::4"]
    assert topology.poky_ip_allow(GROUPS, HOSTVARS, ["", "192.0.2.1:8125"]) == known
    assert topology.poky_ip_allow(GROUPS, HOSTVARS, ["2001:db8::9"]) == [*known, "2001:db8::9"]
    # A name may have any address: then all are allowed.
    assert topology.poky_ip_allow(GROUPS, HOSTVARS, ["statsd.example:8125"]) == []


def test_prometheus_elsewhere_cannot_ask_a_loopback(topology: ModuleType) -> None:
    """It was found after eleven minutes of a deploy."""
    reached = {**HOSTVARS["app2"], "poky_admin_listen": "192.0.2.3"}
    hostvars = {**HOSTVARS, "app2": reached, "eye": {}}
    (fault,) = topology.poky_monitoring_faults({**GROUPS, "monitoring": ["eye"]}, hostvars)
    assert "admin listener of app1 is on loopback, where Prometheus on eye cannot" in fault
    (fault,) = topology.poky_monitoring_faults({**GROUPS, "monitoring": ["app1"]}, HOSTVARS)
    assert "admin listener of app2 is" in fault
    alone = {**GROUPS, "service": ["app1"]}
    for groups, known in (
        (GROUPS, hostvars),
        ({**GROUPS, "monitoring": ["app1"]}, hostvars),
        ({**alone, "monitoring": ["app1"]}, HOSTVARS),
        *(
            ({**GROUPS, "monitoring": ["eye"]}, {**HOSTVARS, "eye": {"monitoring_prometheus": no}})
            for no in (False, "false")
        ),
    ):
        assert topology.poky_monitoring_faults(groups, known) == []
