"""What may not be: two deploys at once, half a deploy for good, going back where no way leads."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest
from deployment import BUILD, Deployment, make_checkout, wait_until

ADDS = "ALTER TABLE poky.bucket ADD COLUMN molecule text;\n"
REMOVES = "ALTER TABLE poky.bucket DROP COLUMN molecule;\n"


@pytest.fixture(scope="module")
def first(deployment: Deployment) -> str:
    (release,) = deployment.releases()
    return release


@pytest.fixture(scope="module")
def second_checkout() -> Path:
    """A release with an expand and a contract migration."""
    return make_checkout(
        BUILD / "molecule/guards",
        title="guards",
        appended={
            "sql/migrations/0002_expand_molecule.sql": ADDS,
            "sql/migrations/0003_contract_molecule.sql": REMOVES,
        },
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
    deployment.fail("status", "rows are marked")

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
    before = deployment.instances()
    deployment.fail("rollback", "contract migration 3 took away what it needs")
    assert deployment.instances() == before
    deployment.fail("rollback", "is not on", poky_release="0.0+nothing")
    deployment.succeed("deploy")
    deployment.succeed("status")


def test_unlock_names_the_holder_before_it_breaks_a_lock(deployment: Deployment) -> None:
    run = deployment.succeed("unlock")
    assert "Nobody holds the deploy lock" in run.output
