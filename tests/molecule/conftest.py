"""The fixtures of every scenario. Machines that a test failed on say what happened on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import ROOT, Deployment, Hammer, diagnose


@pytest.fixture(scope="session")
def deployment() -> Deployment:
    """The machines and playbooks of the scenario that Molecule verifies."""
    scenario = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
    work = ROOT / "build/molecule" / scenario.name
    work.mkdir(parents=True, exist_ok=True)
    return Deployment(scenario / "inventory", work)


@pytest.fixture(scope="session")
def hammer(deployment: Deployment) -> Iterator[Hammer]:
    """Traffic from now on to the end of the session."""
    hammer = Hammer(deployment, clients=20, rate=5, seconds=3600)
    yield hammer
    hammer.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    deployment = getattr(item, "funcargs", {}).get("deployment")
    if report.failed and deployment:
        report.sections.append(("The machines", diagnose(deployment)))
    return report
