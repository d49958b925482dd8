"""Whatever is deployed, changed, restarted or goes wrong: no client of twenty notices.

The tests build on one another, in this order; all of them run under one load.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from deployment import BUILD, Deployment, Hammer, make_checkout, next_migration, wait_until

WITNESS = "/kv/hammer/witness"

MIGRATION = next_migration("expand_molecule")
ADDS = "ALTER TABLE poky.bucket ADD COLUMN molecule text;\n"

# What is appended to a release to break it.
BROKEN = {
    "crashes": (
        "service/poky/cli/serve.py",
        """

def _crash(**given: object) -> None:
    raise SystemExit("This release crashes.")


serve.callback = _crash
""",
    ),
    "hangs": (
        "service/poky/cli/serve.py",
        """

def _hang(**given: object) -> None:
    import time

    time.sleep(3600)


serve.callback = _hang
""",
    ),
    "answers 500": (
        "service/poky/api/application.py",
        """

def _refuse(self: Application, environ: Environ, start_response: StartResponse) -> list[bytes]:
    start_response("500 Internal Server Error", [("Content-Length", "0")])
    return [b""]


Application.wsgi = Application.__call__ = _refuse
""",
    ),
    "names another release": (
        "service/poky/cli/serve.py",
        """

def _lie(given=serve.callback, **arguments):
    import os

    os.environ["POKY_RELEASE"] = "0.0+somebody-else"
    return given(**arguments)


serve.callback = _lie
""",
    ),
}


@pytest.fixture(autouse=True)
def _unnoticed(deployment: Deployment, hammer: Hammer) -> Iterator[None]:
    """The load sees no failure and no wrong value during the test, and the cache keeps all."""
    before, uptime = hammer.report(), varnish_uptime(deployment)
    began = time.monotonic()
    yield
    after = hammer.report()
    seen = {name: after[name] - before[name] for name in ("requests", "failed", "wrong")}
    print(f"{seen['requests']} requests, slowest so far {after['slowest']}")
    assert (seen["failed"], seen["wrong"]) == (0, 0), json.dumps(after, indent=2)
    assert seen["requests"] > (time.monotonic() - began) * 10
    assert varnish_uptime(deployment) >= uptime + int(time.monotonic() - began) - 2
    status, headers, _ = deployment.request("GET", WITNESS)
    assert (status, headers["X-Cache"]) == (200, "HIT"), "the cache has lost an object"


@pytest.fixture(scope="module", autouse=True)
def _witness(deployment: Deployment) -> None:
    """An object that is in the cache from now on."""
    assert deployment.request("PUT", WITNESS, "I was here")[0] == 200
    wait_until(
        lambda: deployment.request("GET", WITNESS)[1]["X-Cache"] == "HIT", 30, "a cached witness"
    )


def varnish_uptime(deployment: Deployment) -> int:
    """Seconds since the process that holds the cache was started."""
    said = deployment.edge.check_output("varnishstat -1 -f MAIN.uptime")
    return int(said.split()[1])


def active_vcl(deployment: Deployment) -> str:
    """The name of the VCL that serves."""
    listed = deployment.edge.check_output("varnishadm vcl.list").splitlines()
    (active,) = [line.split()[-1] for line in listed if line.startswith("active")]
    return active


def pids(deployment: Deployment) -> dict[str, int]:
    return {name: each["pid"] for name, each in deployment.instances().items()}


@contextmanager
def every_instance_is_restarted(deployment: Deployment) -> Iterator[None]:
    before = pids(deployment)
    yield
    after = pids(deployment)
    assert before.keys() == after.keys()
    assert all(after[name] not in (0, pid) for name, pid in before.items()), (before, after)


@contextmanager
def no_instance_is_restarted(deployment: Deployment) -> Iterator[None]:
    before = pids(deployment)
    yield
    assert pids(deployment) == before


@pytest.fixture(scope="module")
def first(deployment: Deployment) -> str:
    """The release that Molecule has deployed."""
    return str(deployment.journal()[0]["to"])


@pytest.fixture(scope="module", autouse=True)
def _second(deployment: Deployment) -> None:
    """From now on, a deploy deploys a release that brings a migration."""
    checkout = make_checkout(BUILD / "molecule/v2", title="v2", appended={MIGRATION: ADDS})
    deployment.settings["poky_source"] = str(checkout)
    deployment.settings["poky_build_directory"] = str(BUILD / "molecule/releases")


def test_a_release_with_a_migration_and_another_vcl(deployment: Deployment, first: str) -> None:
    assert deployment.releases() == {first}
    before = active_vcl(deployment)
    deployment.settings["varnish_object_ttl"] = 7200
    with every_instance_is_restarted(deployment):
        deployment.succeed("deploy")
    (second,) = deployment.releases()
    assert second != first
    last = deployment.journal()[-1]
    assert (last["from"], last["to"], last["outcome"]) == (first, second, "good")
    assert [name for name in last["migrations"] if name in MIGRATION]
    assert active_vcl(deployment) != before


@pytest.mark.long
def test_a_change_of_the_vcl_alone(deployment: Deployment) -> None:
    before = active_vcl(deployment)
    deployment.settings["varnish_object_ttl"] = 3600
    with no_instance_is_restarted(deployment):
        deployment.succeed("deploy")
    assert active_vcl(deployment) != before
    assert deployment.edge.file("/etc/varnish/poky_values.vcl").contains("3600")


@pytest.mark.long
def test_a_change_of_settings(deployment: Deployment) -> None:
    deployment.settings["poky_threads"] = 5
    with every_instance_is_restarted(deployment):
        deployment.succeed("deploy")
    for host in deployment.hosts("service"):
        assert host.file("/etc/poky/poky.env").contains("^POKY_THREADS=5$")


@pytest.mark.long
def test_a_rolling_restart(deployment: Deployment) -> None:
    with every_instance_is_restarted(deployment):
        deployment.succeed("restart")


def test_a_rollback(deployment: Deployment, first: str) -> None:
    with every_instance_is_restarted(deployment):
        deployment.succeed("rollback")
    assert deployment.releases() == {first}
    assert deployment.journal()[-1]["verb"] == "rollback"


@pytest.mark.parametrize(
    "fault",
    [
        fault if fault == "crashes" else pytest.param(fault, marks=pytest.mark.long)
        for fault in BROKEN
    ],
)
def test_a_broken_release_ends_at_the_first_instance(deployment: Deployment, fault: str) -> None:
    (good,) = deployment.releases()
    name, text = BROKEN[fault]
    checkout = make_checkout(
        BUILD / "molecule" / fault.replace(" ", "-"),
        title=fault,
        appended={name: text, MIGRATION: ADDS},
    )
    untouched = {name: pid for name, pid in pids(deployment).items() if "service-2" in name}
    run = deployment.fail("deploy", "went back to", poky_source=str(checkout))
    assert f"poky-m-service-1 went back to {good}" in " ".join(run.output.split())
    assert deployment.releases() == {good}
    assert untouched.items() <= pids(deployment).items()
    last = deployment.journal()[-1]
    assert last["outcome"] == "bad"
    assert last["to"] != good
    assert deployment.lock()["failed"]


def test_nothing_is_left_of_a_broken_release(deployment: Deployment) -> None:
    """Going back after a failure completes what was good before, and opens the lock."""
    (good,) = deployment.releases()
    with no_instance_is_restarted(deployment):
        deployment.succeed("rollback")
    assert deployment.releases() == {good}
    last = deployment.journal()[-1]
    assert (last["verb"], last["to"], last["outcome"]) == ("rollback", good, "good")
    assert deployment.lock() == {}
    deployment.succeed("status")


def test_the_load_was_one(hammer: Hammer) -> None:
    report = hammer.report()
    print(json.dumps(report, indent=2))
    assert report["clients"] >= 16
    assert set(report["kinds"]) == {"GET", "PUT", "DELETE", "POST"}
    assert (report["failed"], report["wrong"]) == (0, 0)
    assert report["cache"]["HIT"] > 100
