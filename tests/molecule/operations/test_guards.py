"""What may not be: two deploys at once, half a deploy for good, going back where no way leads."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
from deployment import BUILD, Deployment, make_checkout, next_migration, wait_until

EXPAND = next_migration("expand_molecule")
CONTRACT = next_migration("contract_molecule", after=1)
ADDS = "ALTER TABLE poky.bucket ADD COLUMN molecule text;\n"
REMOVES = "ALTER TABLE poky.bucket DROP COLUMN molecule;\n"


@pytest.fixture(scope="module")
def first(deployment: Deployment) -> str:
    (release,) = deployment.releases()
    return release


def processes(deployment: Deployment) -> dict[str, tuple[int, str]]:
    """The process and the release of each instance; what else it says of itself goes on."""
    found = deployment.instances().items()
    return {name: (each["pid"], each.get("release", "")) for name, each in found}


@pytest.fixture(scope="module")
def second_checkout() -> Path:
    """A release with an expand and a contract migration."""
    return make_checkout(
        BUILD / "molecule/guards",
        title="guards",
        appended={EXPAND: ADDS, CONTRACT: REMOVES},
    )


def test_of_two_at_once_the_second_is_refused(deployment: Deployment) -> None:
    one = deployment.start("restart")
    try:
        wait_until(deployment.lock, 600, "the first run has the lock")
        deployment.fail("restart", f"The deploy lock is held by {getpass.getuser()}@")
        assert deployment.lock(), "the first run has ended too early to say anything"
    finally:
        one.wait()
    assert one.ok, str(one)
    assert deployment.lock() == {}


def test_the_next_run_repairs_what_a_killed_one_left(
    deployment: Deployment, first: str, second_checkout: Path
) -> None:
    deployment.settings["poky_source"] = str(second_checkout)
    deployment.settings["poky_build_directory"] = str(BUILD / "molecule/releases")
    killed = deployment.start("deploy")
    try:
        wait_until(
            lambda: len(deployment.releases() - {""}) == 2, 1800, "half of the instances are rolled"
        )
    finally:
        killed.kill()
    assert deployment.lock()["what"].startswith("deploy ")
    # As if it had been killed between writing and reloading.
    files = "/etc/nginx/conf.d/poky.conf /etc/postgresql/*/main/pg_hba.conf"
    deployment.edge.check_output(f"touch {files}")
    said = deployment.fail("status", "rows are marked").output
    assert "poky.conf is newer than nginx" in said
    assert "pg_hba.conf is newer than PostgreSQL" in said

    repaired = deployment.succeed("deploy")
    assert "its process is gone" in " ".join(repaired.output.split())
    (second,) = deployment.releases()
    assert second != first
    assert deployment.lock() == {}
    deployment.succeed("status")


def test_going_back_is_possible_until_a_contract_migration(
    deployment: Deployment, first: str
) -> None:
    (second,) = deployment.releases()
    deployment.succeed("rollback", "--check")
    assert deployment.releases() == {second}
    deployment.succeed("migrate", poky_schema_phase="contract")
    before = processes(deployment)
    number = int(Path(CONTRACT).name[:4])
    deployment.fail("rollback", f"contract migration {number} took away what it needs")
    assert processes(deployment) == before
    deployment.fail("rollback", "is not on", poky_release="0.0+nothing")


def test_what_was_stopped_is_started(deployment: Deployment) -> None:
    deployment.edge.check_output("systemctl stop nginx varnish")
    deployment.succeed("deploy")
    deployment.succeed("status")


def test_objects_that_a_vcl_would_not_find_again_are_not_kept(deployment: Deployment) -> None:
    """A cache that was filled under another hash scheme is emptied, or the deploy refused."""
    edge = deployment.edge
    edge.check_output("sed -i 's/^# Hash scheme .*/# Hash scheme 0./' /etc/varnish/poky.vcl")
    edge.check_output("systemctl reload varnish")
    before = edge.service("varnish").systemd_properties["MainPID"]
    deployment.fail("deploy", "the cache holds objects of scheme 0")
    assert edge.service("varnish").systemd_properties["MainPID"] == before
    deployment.succeed("deploy", varnish_allow_restart=True)
    assert edge.service("varnish").systemd_properties["MainPID"] != before
    deployment.succeed("status")


def test_unlock_names_the_holder_before_it_breaks_a_lock(deployment: Deployment) -> None:
    run = deployment.succeed("unlock")
    assert "The deploy lock is free" in run.output
