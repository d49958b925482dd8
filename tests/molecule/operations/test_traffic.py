"""Maintenance and drains: what clients see of them, and what they must not see."""

from __future__ import annotations

import json
import re

from deployment import Deployment, Hammer


def backends(deployment: Deployment) -> dict[str, str]:
    """{port: the administrative state} of the instances, as Varnish has it."""
    listed = json.loads(deployment.edge.check_output("varnishadm backend.list -j"))[-1]
    # Their lease listeners, which are never drained, have longer names.
    names = [name for name in listed if re.search(r"(^|\.)poky_\w+_808[12]$", name)]
    return {name.rpartition("_")[2]: listed[name]["admin_health"] for name in names}


def test_maintenance_is_503_until_it_ends(deployment: Deployment) -> None:
    deployment.succeed("buckets", poky_bucket="traffic")
    assert deployment.request("PUT", "/kv/traffic/key", "value")[0] == 200
    deployment.succeed("maintenance", nginx_maintenance="on")
    for method in ("GET", "PUT"):
        status, headers, body = deployment.request(method, "/kv/traffic/key", "other")
        assert (status, headers["Retry-After"]) == (503, "120")
        assert json.loads(body)["status"] == 503
    deployment.fail("status", "rows are marked")
    again = deployment.succeed("maintenance", nginx_maintenance="on")
    assert sum(again.changed().values()) == 0
    deployment.succeed("maintenance", nginx_maintenance="off")
    assert deployment.request("GET", "/kv/traffic/key")[2] == b"value"


def test_a_drain_goes_unnoticed_and_is_told(deployment: Deployment) -> None:
    (host,) = deployment.groups["service"]
    deployment.succeed("buckets", poky_bucket="hammer")
    one = {"poky_drain_host": host, "poky_drain_port": 8081}
    hammer = Hammer(deployment, clients=16, rate=5, seconds=600)
    try:
        deployment.succeed("drain", **one)
        assert backends(deployment) == {"8081": "sick", "8082": "probe"}
        deployment.fail("status", "rows are marked")
        other = {"poky_drain_host": host, "poky_drain_port": 8082}
        deployment.fail("drain", "would leave 0 healthy instances", **other)
        deployment.succeed("drain", **one, poky_drain_state="in_service")
        assert backends(deployment) == {"8081": "probe", "8082": "probe"}
    finally:
        report = hammer.stop()
    print(json.dumps(report, indent=2))
    assert report["requests"] > 100
    assert (report["failed"], report["wrong"]) == (0, 0), json.dumps(report, indent=2)
    deployment.succeed("status")
